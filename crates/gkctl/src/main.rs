//! `gkctl`: the verbs of Gatekeeper on a command line.
//!
//! What was asked for goes to stdout, everything else to stderr; the exit code tells the rest (see `error`). This
//! program links neither the server nor a database, and opens nothing before it knows that it must.

mod args;
mod connect;
mod context;
mod error;
mod event;
mod history;
mod instance;
mod join;
mod left;
mod machine;
mod output;
mod port;
mod release;
mod reserve;
mod status;
mod this_machine;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use gk_model::time::Timestamp;

use crate::args::{Args, InstanceVerb, PortVerb, Verb};
use crate::context::Context;

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error::report(&error),
    }
}

fn run(args: &Args) -> Result<()> {
    let context = Context::new(&args.global, Timestamp::from_clock())?;
    match &args.verb {
        Verb::Status => status::status(&context),
        Verb::Instance(InstanceVerb::Join(wanted)) => join::join(&context, wanted),
        Verb::Instance(InstanceVerb::List(wanted)) => instance::list(&context, wanted),
        Verb::Instance(InstanceVerb::Show(wanted)) => instance::show(&context, wanted),
        Verb::Instance(InstanceVerb::Leave(wanted)) => instance::leave(&context, wanted),
        Verb::Instance(InstanceVerb::Rename(wanted)) => instance::rename(&context, wanted),
        Verb::Port(PortVerb::Reserve(wanted)) => reserve::reserve(&context, wanted),
        Verb::Port(PortVerb::Release(wanted)) => release::release(&context, wanted),
        Verb::Port(PortVerb::List(wanted)) => port::list(&context, wanted),
        Verb::Port(PortVerb::Show(wanted)) => port::show(&context, wanted),
        Verb::Port(PortVerb::History(wanted)) => history::list(&context, wanted),
        Verb::Events(wanted) => event::list(&context, wanted),
    }
}
