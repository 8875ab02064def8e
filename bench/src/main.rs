//! `make bench`: runs the release programs as their users do, and writes what it measured to `docs/benchmarks.md`.
//!
//! Times depend on the machine and its disk; the report names both. No test asserts a time.

mod fleet;
mod rows;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::fleet::Fleet;

/// One line of the report.
pub(crate) struct Row {
    what: String,
    figure: String,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, figure: impl Into<String>) -> Row {
        Row { what: what.into(), figure: figure.into() }
    }
}

fn main() -> Result<()> {
    let fleet = Fleet::start()?;
    let mut report = Vec::new();
    report.extend(rows::sizes(&fleet)?);
    report.extend(rows::listener_latency(&fleet)?);
    report.extend(rows::reserve(&fleet)?);
    report.extend(rows::commands(&fleet)?);
    report.extend(rows::memory(&fleet)?);
    let text = render(&report)?;
    print!("{text}");
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/benchmarks.md"));
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn render(report: &[Row]) -> Result<String> {
    let mut text = String::from(
        "# Benchmarks\n\nWritten by `make bench`: release programs, SQLite, durable commits. Absolute times move with \
         the machine and its disk.\n\n",
    );
    writeln!(text, "Machine: {}\n\n| what | measured |\n|---|---|", fleet::describe_machine())?;
    for Row { what, figure } in report {
        writeln!(text, "| {what} | {figure} |")?;
    }
    Ok(text)
}
