//! `make bench`: runs the release programs as their users do, and writes what it measured to `docs/benchmarks.md`.
//!
//! Times depend on the machine and its disk, and the report names both; ratios measured side by side hold, so targets
//! are ratios. No test asserts either.

mod agents;
mod bed;
mod cluster;
mod density;
mod fleet;
mod group;
mod http;
mod loader;
mod options;
mod paging;
mod pressure;
mod report;
mod rows;
mod server;
mod stats;
mod suite;
mod syncs;

use std::process::ExitCode;

use anyhow::Result;

use crate::options::Options;

fn main() -> Result<ExitCode> {
    let options = Options::parse(std::env::args().skip(1))?;
    match syncs::run_with_shim()? {
        None => suite::run(&options),
        Some(true) => Ok(ExitCode::SUCCESS),
        Some(false) => Ok(ExitCode::FAILURE),
    }
}
