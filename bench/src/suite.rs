//! Every section of the report, in its order.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::fleet::{Fleet, describe_machine};
use crate::options::Options;
use crate::report::{Row, Section};
use crate::{attack, density, group, http, paging, presence, pressure, rows, scanning, size, watching};

type Measure<'a> = Box<dyn Fn() -> Result<Vec<Row>> + 'a>;

/// Measures, prints, and writes the report. Fails when something could not be measured, not when a target is missed.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut text = format!(
        "# Benchmarks\n\nWritten by `make bench`: release programs, durable commits. Absolute times move with the \
         machine and its disk; ratios are medians of pairs measured side by side. \"4 ms a sync\" is data in memory and a \
         preloaded sync that sleeps, the same on every machine.\n\nMachine: {}\n",
        describe_machine()
    );
    print!("{text}");
    let (mut missed, mut failed) = (0, false);
    for (title, measure) in sections(options) {
        if options.only.as_ref().is_some_and(|only| !title.contains(only.as_str())) {
            continue;
        }
        let begun = Instant::now();
        let rows = measure().unwrap_or_else(|error| {
            failed = true;
            vec![Row::new("failed", format!("{error:#}"))]
        });
        let section = Section { title, rows };
        let part = format!("\n{}", section.render()?);
        print!("{part}");
        eprintln!("{title}: {:.0} s", begun.elapsed().as_secs_f64());
        text.push_str(&part);
        missed += section.missed();
    }
    eprintln!("{missed} targets missed");
    if options.only.is_none() {
        let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/benchmarks.md"));
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn sections(options: &Options) -> Vec<(&'static str, Measure<'_>)> {
    let history = if options.quick { 1_000_000 } else { 10_000_000 };
    vec![
        ("Programs and agents", Box::new(programs)),
        ("Scanning", Box::new(|| scanning::rows(options.quick))),
        ("Agents at rest", Box::new(presence::rows)),
        ("Group commit in the store", Box::new(group::rows)),
        ("Group commit through HTTP", Box::new(http::group_rows)),
        ("Two servers on one database", Box::new(group::two_servers)),
        ("Reserving against doing nothing", Box::new(http::no_op_rows)),
        ("Reserving against the Python system", Box::new(|| http::python_rows(options.python.as_deref()))),
        ("One allocation", Box::new(density::rows)),
        ("Heartbeats of a fleet", Box::new(pressure::heartbeat_rows)),
        ("Reserving while a fleet reports", Box::new(pressure::latency_rows)),
        ("Under attack", Box::new(attack::rows)),
        ("Memory of a large fleet", Box::new(pressure::memory_rows)),
        ("A fleet of ten thousand", Box::new(|| size::rows(options.quick))),
        ("Watching", Box::new(|| watching::rows(options.quick))),
        ("Long histories: SQLite", Box::new(move || paging::sqlite_rows(history))),
        ("Long histories: PostgreSQL", Box::new(move || paging::postgres_rows(history))),
    ]
}

fn programs() -> Result<Vec<Row>> {
    let fleet = Fleet::start()?;
    let mut found = rows::sizes(&fleet)?;
    found.extend(rows::listener_latency(&fleet)?);
    found.extend(rows::commands(&fleet)?);
    found.extend(rows::memory(&fleet)?);
    Ok(found)
}
