//! `make bench`: runs the release programs as their users do, and writes what it measured to `docs/benchmarks.md`.
//!
//! Times depend on the machine and its disk, and the report names both; ratios measured side by side hold, so targets
//! are ratios. No test asserts either.

mod agents;
mod attack;
mod bed;
mod callgrind;
mod cluster;
mod density;
mod fleet;
mod group;
mod holder;
mod http;
mod loader;
mod netns;
mod options;
mod paging;
mod peers;
mod presence;
mod pressure;
mod report;
mod rows;
mod scanning;
mod server;
mod size;
mod sockets;
mod stats;
mod suite;
mod syncs;
mod watching;

use std::process::ExitCode;

use anyhow::Result;

use crate::options::Options;

fn main() -> Result<ExitCode> {
    match std::env::args().nth(1).as_deref() {
        Some(holder::WORD) => return holder::run().map(|()| ExitCode::SUCCESS),
        Some(callgrind::WORD) => return callgrind::run(std::env::args().skip(2)).map(|()| ExitCode::SUCCESS),
        _ => {}
    }
    let options = Options::parse(std::env::args().skip(1))?;
    match syncs::run_with_shim()? {
        None => suite::run(&options),
        Some(true) => Ok(ExitCode::SUCCESS),
        Some(false) => Ok(ExitCode::FAILURE),
    }
}
