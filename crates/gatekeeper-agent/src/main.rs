//! `gatekeeper-agent`: what `gatekeeper agent` is, by itself.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use gatekeeper_agent::{AgentArgs, CONFIG_FILE, needs_people, run};
use gk_program::config::{self, Source};
use gk_program::{LogArgs, service, start_logs};

/// Watch this machine's listeners and tell the server about every change.
#[derive(Parser)]
#[command(name = "gatekeeper-agent", version, max_term_width = 100)]
struct Args {
    #[command(flatten)]
    agent: AgentArgs,
    #[command(flatten)]
    logs: LogArgs,
}

fn main() -> ExitCode {
    let args = match read() {
        Ok(args) => args,
        Err(error) => {
            eprintln!("error: {error:#}");
            // As for a command line that cannot be used.
            return ExitCode::from(2);
        }
    };
    start_logs(&args.logs);
    match run(&args.agent) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            service::exit_code(needs_people(&error))
        }
    }
}

fn read() -> anyhow::Result<Args> {
    let words: Vec<OsString> = std::env::args_os().collect();
    let file = Source { file: Some(CONFIG_FILE), ..Source::default() };
    let (args, _): (Args, _) = config::read(&words, |_| file)?;
    args.agent.check()?;
    Ok(args)
}
