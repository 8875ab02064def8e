//! Logs: structured, to standard error.

use std::io::{self, IsTerminal};

use clap::{Args as ClapArgs, ValueEnum};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// What to log, and how.
#[derive(ClapArgs)]
#[command(next_help_heading = "Logs")]
pub struct LogArgs {
    /// What to log: error, warn, info, debug, trace, or a filter such as gk_agent=debug,info.
    #[arg(
        long,
        global = true,
        env = "GATEKEEPER_LOG",
        hide_env_values = true,
        default_value = "info",
        value_name = "FILTER"
    )]
    log: String,
    /// How to log, always to standard error: text or json.
    #[arg(long, global = true, env = "GATEKEEPER_LOG_FORMAT", hide_env_values = true, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT", hide_possible_values = true)]
    log_format: LogFormat,
}

/// Forms of log lines.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging. An unusable filter falls back to `info` and says so.
pub fn start_logs(args: &LogArgs) {
    // By level and module only: to choose by the fields of spans, too, would bring a library of regular expressions.
    let parsed = args.log.parse::<Targets>();
    let refused = parsed.as_ref().err().map(ToString::to_string);
    let filter = parsed.unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO));
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let logs = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(io::stderr)
        .with_ansi(colours)
        // It would print to standard error that standard error failed, and panic because that fails too: a log file on
        // a full disk would end the thread that wants to say so.
        .log_internal_errors(false);
    match args.log_format {
        LogFormat::Text => logs.with_target(false).finish().with(filter).init(),
        LogFormat::Json => logs.json().finish().with(filter).init(),
    }
    if let Some(reason) = refused {
        tracing::warn!(log.filter = args.log, reason, "unusable log filter, logging at info");
    }
}
