//! Built programs as real processes: what only shows when something is killed, restarted or typed.

mod agent;
mod backup;
mod cli;
mod crash;
pub(crate) mod harness;
mod retries;
mod server;
