//! Counting instructions, which no neighbour on the machine disturbs: valgrind's callgrind runs this program once more.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use gk_model::time::Timestamp;
use gk_scan::Scanner;
use tempfile::TempDir;

use crate::netns;
use crate::report::Row;
use crate::syncs::without_shim;

/// The word on the command line that makes this program the one that is counted.
pub(crate) const WORD: &str = "count-polls";

const LISTENERS: [usize; 2] = [200, 1_200];
const POLLS: [usize; 2] = [10, 30];

/// S1: instructions of a poll without news, for each socket.
pub(crate) fn row() -> Result<Row> {
    let (what, target) = ("instructions of a poll without news, for each listener", "≤ 250");
    let directory = TempDir::new()?;
    let mut costs = [0.0; 2];
    for (cost, listeners) in costs.iter_mut().zip(LISTENERS) {
        let mut counts = [0.0; 2];
        for (count, polls) in counts.iter_mut().zip(POLLS) {
            match instructions(directory.path(), listeners, polls)? {
                Some(counted) => *count = counted,
                None => return Ok(Row::not_measured(what, target)),
            }
        }
        *cost = (counts[1] - counts[0]) / (POLLS[1] - POLLS[0]) as f64;
    }
    // What a poll costs anyhow is in both, and so is what comes before the polls.
    let each = (costs[1] - costs[0]) / (LISTENERS[1] - LISTENERS[0]) as f64;
    Ok(Row::new(what, format!("{each:.0}")).with(target, each <= 250.0))
}

/// Of a run with so many listeners and polls; `None` without valgrind, or without the right to a network namespace.
fn instructions(directory: &Path, listeners: usize, polls: usize) -> Result<Option<f64>> {
    let out = directory.join("callgrind.out");
    let mut command = Command::new("valgrind");
    without_shim(&mut command);
    command.args(["--quiet", "--tool=callgrind"]).arg(format!("--callgrind-out-file={}", out.display()));
    command.arg(std::env::current_exe()?).args([WORD, &listeners.to_string(), &polls.to_string()]);
    // It complains of system calls that it does not know; we do without them then.
    match command.stdin(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("cannot run valgrind"),
    }
    let text = std::fs::read_to_string(out)?;
    let total = text.lines().find_map(|line| line.strip_prefix("summary: ")).context("no summary")?;
    Ok(Some(total.trim().parse()?))
}

/// What is counted: so many polls of a namespace with so many listeners.
pub(crate) fn run(mut words: impl Iterator<Item = String>) -> Result<()> {
    let mut number = || anyhow::Ok(words.next().context("two numbers are missing")?.parse::<usize>()?);
    let (listeners, polls) = (number()?, number()?);
    netns::enter_new()?;
    let bind = |_| std::net::TcpListener::bind("127.0.0.1:0");
    let _listeners = (0..listeners).map(bind).collect::<std::io::Result<Vec<_>>>()?;
    let mut scanner = Scanner::new()?;
    for _ in 0..polls {
        scanner.look(Timestamp::from_clock())?;
    }
    Ok(())
}
