//! `gkctl`: the verbs of Gatekeeper on a command line.
//!
//! What was asked for goes to stdout, everything else to stderr; the exit code tells the rest (see `error`). This
//! program links neither the server nor a database, and opens nothing before it knows that it must.

mod absence;
mod adopt;
mod args;
mod connect;
mod context;
mod doctor;
mod drift;
mod error;
mod event;
mod follow;
mod ignore;
mod instance;
mod invitation;
mod join;
mod label;
mod left;
mod login;
mod machine;
mod output;
mod pool;
mod port;
mod reservation;
mod run;
#[cfg(test)]
mod samples;
mod secret_input;
mod status;
mod this_machine;
mod token;

use std::process::ExitCode;

use clap::Parser;
use gk_model::time::Timestamp;

use crate::args::Args;
use crate::context::Context;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    if let Err(failure) = secret_input::refuse_in_arguments(words.iter().map(AsRef::as_ref)) {
        return error::report(&failure.into(), None);
    }
    let args = Args::parse_from(words);
    let context = match Context::new(&args.global, Timestamp::from_clock()) {
        Ok(context) => context,
        Err(error) => return error::report(&error, None),
    };
    match run::run(&context, &args.verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error::report(&error, context.shown()),
    }
}
