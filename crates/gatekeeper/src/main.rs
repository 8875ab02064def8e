//! `gatekeeper`: the server, the agent, both at once for a first try, the scanner, and the care of the database. `gkctl`
//! is the other program.

mod agent;
mod args;
mod config;
mod config_file;
mod data;
mod dev;
mod logs;
mod mask;
mod scan;
mod server;
mod service;
mod surface;
mod tls;

use std::process::ExitCode;

use crate::args::Role;

fn main() -> ExitCode {
    let args = match config::read() {
        Ok(args) => args,
        Err(error) => {
            eprintln!("error: {error:#}");
            // As for a command line that cannot be used.
            return ExitCode::from(2);
        }
    };
    logs::start(&args.logs);
    let ended = match args.role {
        Role::Server(args) => server::run(&args),
        Role::Agent(args) => agent::run(&args),
        Role::Dev(args) => dev::run(&args),
        Role::Scan(args) => scan::run(&args),
        Role::Backup(args) => data::backup(&args),
        Role::Restore(args) => data::restore(&args),
        Role::Config(_) => Ok(()),
        Role::Verify(args) => return exit_code(data::verify(&args)),
    };
    exit_code(ended.map(|()| ExitCode::SUCCESS))
}

fn exit_code(ended: anyhow::Result<ExitCode>) -> ExitCode {
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            service::exit_code(&error)
        }
    }
}
