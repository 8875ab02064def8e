//! Logs: structured, to standard error.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::args::{LogArgs, LogFormat};

/// Starts logging. An unusable filter falls back to `info` and says so.
pub(crate) fn start(args: &LogArgs) {
    let parsed = args.log.parse::<EnvFilter>();
    let refused = parsed.as_ref().err().map(ToString::to_string);
    let filter = parsed.unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colours)
        // It would print to standard error that standard error failed, and panic because that fails too: a log file on
        // a full disk would end the thread that wants to say so.
        .log_internal_errors(false);
    match args.log_format {
        LogFormat::Text => logs.with_target(false).init(),
        LogFormat::Json => logs.json().init(),
    }
    if let Some(reason) = refused {
        tracing::warn!(log.filter = args.log, reason, "unusable log filter, logging at info");
    }
}
