//! `gatekeeper`: the server, the agent, both at once for a first try, the scanner, and the care of the database. The
//! other programs are `gkctl`, and `gatekeeper-agent` for machines that need no more.

mod args;
mod config;
mod data;
mod dev;
mod scan;
mod server;
mod surface;
mod tls;

use std::process::ExitCode;

use gk_program::{service, start_logs};
use gk_server::TlsError;
use gk_store::OpenError;

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
    start_logs(&args.logs);
    let ended = match args.role {
        Role::Server(args) => server::run(&args),
        Role::Agent(args) => gatekeeper_agent::run(&args),
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
            service::exit_code(needs_people(&error))
        }
    }
}

/// Whether a start would end as this one did, until somebody has looked: an agent without an identity, files that others
/// could have changed, a key that others could have read.
fn needs_people(error: &anyhow::Error) -> bool {
    gatekeeper_agent::needs_people(error)
        || matches!(error.downcast_ref(), Some(OpenError::Exposed(_)))
        || matches!(error.downcast_ref(), Some(TlsError::Exposed { .. }))
}
