//! `gatekeeper`: the server, the agent, both at once for a first try, and the scanner. `gkctl` is the other program.

mod agent;
mod args;
mod dev;
mod logs;
mod scan;
mod server;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Role};

fn main() -> ExitCode {
    let args = Args::parse();
    logs::start(&args.logs);
    let ended = match args.role {
        Role::Server(args) => server::run(&args),
        Role::Agent(args) => agent::run(&args),
        Role::Dev(args) => dev::run(&args),
        Role::Scan(args) => scan::run(&args),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
