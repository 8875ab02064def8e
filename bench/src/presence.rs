//! What an agent takes of the machine that it watches (S5): memory, and time of a processor.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::fleet::{Fleet, resident_bytes};
use crate::report::Row;
use crate::sockets::{Size, Sockets, in_new_namespace};
use crate::stats::mebibytes;

const SIZES: [Size; 2] = [Size::new(50, 20, 0), Size::new(1_000, 500, 0)];

/// Until everything is told and nothing is left of the start.
const SETTLING: Duration = Duration::from_secs(10);

/// What an agent does when nothing happens.
const SCANS_PER_SECOND: f64 = 2.0;

const TLS: &[&str] = &["--tls", "auto"];

/// How long the processor's time is counted.
const SPAN: Duration = Duration::from_secs(30);

/// In beds of both sizes.
pub(crate) fn rows() -> Result<Vec<Row>> {
    let mut found = Vec::new();
    for size in SIZES {
        let what = format!("{}: an agent", size.name());
        found.extend(in_new_namespace(&what, || rows_of(size))?);
    }
    Ok(found)
}

fn rows_of(size: Size) -> Result<Vec<Row>> {
    let _sockets = Sockets::open(size)?;
    let bench = std::env::current_exe()?;
    let fleet = Fleet::start_from(bench.with_file_name(""), TLS)?;
    let agent = fleet.agent.id();
    wait(SETTLING);
    let (before, resident) = (spent(agent)?, resident_bytes(agent)?);
    wait(SPAN);
    let share = (spent(agent)? - before).as_secs_f64() / SPAN.as_secs_f64() * 100.0;
    let own = own_bytes(agent)?;
    drop(fleet);
    let name = size.name();
    let what = |what: &str| format!("{name}: {what}");
    let is_measure = size.listeners == 1_000;
    let memory = format!("{} ({} of it not shared with the file)", mebibytes(resident), mebibytes(own));
    let memory = Row::new(what("resident memory of the agent, glibc, with TLS"), memory);
    let each = share / SCANS_PER_SECOND;
    let figure = format!("{each:.2} % ({share:.2} % at {SCANS_PER_SECOND} scans a second)");
    let time = Row::new(what("an idle agent's share of a processor, for each scan a second"), figure);
    let mut rows = vec![memory, time];
    if is_measure {
        rows[0] = rows[0].clone().with("≤ 7 MiB", resident <= 7 << 20);
        rows[1] = rows[1].clone().with("≤ 0.2 %", each <= 0.2);
        rows.push(static_row(what("resident memory of the agent, static musl, with TLS"))?);
    }
    Ok(rows)
}

/// That of the program which `make static` makes, if it was made, and with musl.
fn static_row(what: String) -> Result<Row> {
    let target = "≤ 4.5 MiB";
    let bench = std::env::current_exe()?;
    let directory = bench.ancestors().nth(2).context("a program lies in target/release")?.join("static");
    if !is_of_musl(&directory.join("gatekeeper-agent")) {
        return Ok(Row::not_measured(what, target));
    }
    let fleet = Fleet::start_from(directory, TLS)?;
    wait(SETTLING);
    let resident = resident_bytes(fleet.agent.id())?;
    Ok(Row::new(what, mebibytes(resident)).with(target, resident as f64 <= 4.5 * f64::from(1 << 20)))
}

/// A static program of glibc names its C library; one of musl does not.
fn is_of_musl(program: &PathBuf) -> bool {
    let text = Command::new("grep").args(["-q", "GLIBC"]).arg(program).stderr(Stdio::null()).status();
    program.exists() && text.is_ok_and(|status| !status.success())
}

fn wait(span: Duration) {
    // A measurement over a span of time; nothing is awaited.
    let end = std::time::Instant::now() + span;
    while let Some(left) =
        end.checked_duration_since(std::time::Instant::now()).filter(|left| !left.is_zero())
    {
        std::thread::park_timeout(left);
    }
}

/// Time of processors that all threads of a process have had so far.
fn spent(pid: u32) -> Result<Duration> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        nanoseconds += text.split(' ').next().context("no time")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Memory that is this process's alone: its heap and stacks.
fn own_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
