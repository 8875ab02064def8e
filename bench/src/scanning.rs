//! Scanning (S1 to S4): polls against the floor, and against what else answers the question.

use std::cell::Cell;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use gk_model::time::Timestamp;
use gk_scan::Scanner;

use crate::callgrind;
use crate::netns::BareDumps;
use crate::peers::{self, Psutil};
use crate::report::Row;
use crate::sockets::{Size, Sockets, in_new_namespace};
use crate::stats::{median, milliseconds};

const SMALL: Size = Size::new(50, 20, 0);
const MIDDLE: Size = Size::new(1_000, 500, 0);
const BUSY: Size = Size::new(1_000, 500, 10_000);
const LARGE: Size = Size::new(10_000, 500, 20_000);

/// How many scans it takes until nothing is left to be done for the first time.
const WARM_UP: usize = 5;

/// Pairs of what takes less than a millisecond, and of what takes a process.
const POLLS: usize = 300;
const COMMANDS: usize = 21;
const LOOKS: usize = 11;

/// Everything, in beds of three sizes, or four.
pub(crate) fn rows(quick: bool) -> Result<Vec<Row>> {
    // Before any namespace of ours, from which the world is out of reach.
    let python = peers::python()?;
    let mut found = Vec::new();
    for size in [SMALL, MIDDLE, BUSY, LARGE].into_iter().take(if quick { 3 } else { 4 }) {
        let what = format!("{}: everything", size.name());
        found.extend(in_new_namespace(&what, || rows_of(size, python.as_deref()))?);
    }
    found.extend(in_new_namespace("what connections add to a poll", connections_row)?);
    found.push(callgrind::row()?);
    Ok(found)
}

fn rows_of(size: Size, python: Option<&Path>) -> Result<Vec<Row>> {
    let mut sockets = Sockets::open(size)?;
    let mut psutil = python.map(Psutil::start).transpose()?;
    let mut found = vec![floor_row(size)?, all_namespaces_row()?];
    found.extend(psutil_rows(size, psutil.as_mut())?);
    drop(psutil);
    found.extend(command_rows(size)?);
    if size.connections > 0 {
        found.push(newcomer_row(&mut sockets)?);
    }
    let name = size.name();
    found.iter_mut().for_each(|row| row.what = format!("{name}: {}", row.what));
    Ok(found)
}

fn now() -> Timestamp {
    Timestamp::from_clock()
}

/// Seconds.
fn time<T>(work: impl FnOnce() -> Result<T>) -> Result<f64> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Seconds that a scan takes, as the agent scans: listeners are made only when there is news.
fn poll(scanner: &mut Scanner) -> Result<f64> {
    time(|| {
        if scanner.look(now())? {
            black_box(scanner.listeners());
        }
        Ok(())
    })
}

/// A scanner to which nothing is new any more.
fn steady(mut scanner: Scanner) -> Result<Scanner> {
    for _ in 0..WARM_UP {
        scanner.look(now())?;
    }
    Ok(scanner)
}

/// Both sides of so many pairs, and the median of first / second.
struct Pairs {
    ratio: f64,
    medians: [f64; 2],
}

impl Pairs {
    /// In turn, so that both meet the same disturbances.
    fn measure(
        count: usize,
        mut one: impl FnMut() -> Result<f64>,
        mut other: impl FnMut() -> Result<f64>,
    ) -> Result<Pairs> {
        let (mut ones, mut others, mut ratios) = (vec![], vec![], vec![]);
        for _ in 0..count {
            let (one, other) = (one()?, other()?);
            ratios.push(one / other);
            ones.push(one);
            others.push(other);
        }
        Ok(Pairs { ratio: median(ratios), medians: [median(ones), median(others)] })
    }

    fn figure(&self) -> String {
        let [one, other] = self.medians.map(fine);
        format!("{:.2}×: {one} against {other}", self.ratio)
    }
}

fn fine(seconds: f64) -> String {
    if seconds < 1e-3 { crate::stats::microseconds(seconds) } else { milliseconds(seconds) }
}

/// S1: a poll in which nothing changed, against the same dumps thrown away.
fn floor_row(size: Size) -> Result<Row> {
    let mut scanner = steady(Scanner::new()?)?;
    let mut bare = BareDumps::open()?;
    let pairs = Pairs::measure(POLLS, || poll(&mut scanner), || time(|| bare.run()))?;
    let row = Row::new("a poll without news against a bare dump of the same tables", pairs.figure());
    // Below that, a poll is a handful of system calls whatever it does.
    Ok(if size.listeners >= 1_000 { row.with("≤ 1.2×", pairs.ratio <= 1.2) } else { row })
}

/// What the agent really does, twice a second; other people's namespaces are in it.
fn all_namespaces_row() -> Result<Row> {
    let mut scanner = steady(Scanner::of_all_namespaces()?)?;
    let figure = fine(typical_poll(&mut scanner)?);
    Ok(Row::new("a poll without news, with all other namespaces of this machine", figure))
}

fn typical_poll(scanner: &mut Scanner) -> Result<f64> {
    Ok(median((0..POLLS).map(|_| poll(scanner)).collect::<Result<_>>()?))
}

/// What each of the polls takes that fit into so many seconds.
fn mean_poll(scanner: &mut Scanner, seconds: f64) -> Result<f64> {
    let (mut spent, mut count) = (0.0, 0_u32);
    while spent < seconds {
        spent += poll(scanner)?;
        count += 1;
    }
    Ok(spent / f64::from(count))
}

/// S2 and S4: polls and whole searches against psutil.
fn psutil_rows(size: Size, psutil: Option<&mut Psutil>) -> Result<Vec<Row>> {
    let poll_target = match size {
        Size { connections: 1.., .. } => Some(200.0),
        Size { listeners: 1_000.., .. } => Some(40.0),
        _ => None,
    };
    let of_poll = "psutil against a poll without news";
    let of_first = "psutil against a first scan, which finds every owner";
    let Some(psutil) = psutil else {
        let target = poll_target.map_or_else(String::new, |target| format!("≥ {target:.0}×"));
        return Ok(vec![Row::not_measured(of_poll, target), Row::not_measured(of_first, "≥ 3×")]);
    };
    let mut scanner = steady(Scanner::new()?)?;
    let first = || time(|| Ok(Scanner::new()?.scan(now())?));
    // The second look of two, because the first finds the caches as the other side has left them; and polls for as long as
    // that took, for the same reason.
    let look_took = Cell::new(0.0);
    let polls = Pairs::measure(
        LOOKS,
        || {
            psutil.look()?;
            psutil.look().inspect(|seconds| look_took.set(*seconds))
        },
        || mean_poll(&mut scanner, look_took.get()),
    )?;
    let firsts = Pairs::measure(
        LOOKS,
        || psutil.look().and_then(|_| psutil.look()),
        || first().and_then(|_| first()),
    )?;
    let polls_row = Row::new(of_poll, polls.figure());
    let polls_row = match poll_target {
        Some(target) => polls_row.with(format!("≥ {target:.0}×"), polls.ratio >= target),
        None => polls_row,
    };
    Ok(vec![polls_row, Row::new(of_first, firsts.figure()).with("≥ 3×", firsts.ratio >= 3.0)])
}

/// S3: whole commands.
fn command_rows(size: Size) -> Result<Vec<Row>> {
    let program = std::env::current_exe()?.with_file_name("gatekeeper");
    let program = program.to_str().context("its path is text")?;
    let table: [(&[&str], &[&str], Option<f64>); 3] = [
        (&["ss", "-tulnp"], &["scan"], Some(1.8)),
        (&["ss", "-tuln"], &["scan", "--no-processes"], Some(2.2)),
        (&["lsof", "-nP", "-iTCP", "-sTCP:LISTEN", "-iUDP"], &["scan"], None),
    ];
    let rows = table.into_iter().map(|(theirs, ours, target)| {
        let what = format!("`{}` against `gatekeeper {}`", theirs.join(" "), ours.join(" "));
        let target = target.filter(|_| size.listeners == 1_000);
        let promise = target.map_or_else(String::new, |target| format!("≥ {target}×"));
        if peers::time(theirs[0], &theirs[1..])?.is_none() {
            return Ok(Row::not_measured(what, promise));
        }
        let count = if size.connections > 0 { COMMANDS / 2 } else { COMMANDS };
        let pairs = Pairs::measure(
            count,
            || peers::time(theirs[0], &theirs[1..])?.context("it was there"),
            || peers::time(program, ours)?.context("run `make release` first"),
        )?;
        let row = Row::new(what, pairs.figure());
        Ok(match target {
            Some(target) => row.with(promise, pairs.ratio >= target),
            None => row,
        })
    });
    rows.collect()
}

/// S4: the scan in which one listener is new, against a first scan.
fn newcomer_row(sockets: &mut Sockets) -> Result<Row> {
    let mut scanner = steady(Scanner::new()?)?;
    let pairs = Pairs::measure(
        LOOKS,
        || {
            sockets.add_listener()?;
            let spent = poll(&mut scanner)?;
            // Its owner is verified in the scans after: in this one, and in those that find the next newcomers.
            poll(&mut scanner)?;
            Ok(spent)
        },
        || time(|| Ok(Scanner::new()?.scan(now())?)),
    )?;
    let row = Row::new("the scan that finds one new listener, against a first scan", pairs.figure());
    Ok(row.with("≤ 1/6", pairs.ratio <= 1.0 / 6.0))
}

/// S2: the same poll before and after 10,000 connections.
fn connections_row() -> Result<Vec<Row>> {
    let mut sockets = Sockets::open(MIDDLE)?;
    let mut scanner = steady(Scanner::new()?)?;
    let before = typical_poll(&mut scanner)?;
    sockets.add("connect", BUSY.connections)?;
    let after = typical_poll(&mut scanner)?;
    let what = format!("{}: a poll without news after 10,000 connections, against before", MIDDLE.name());
    let figure = format!("{:.2}×: {} against {}", after / before, fine(after), fine(before));
    Ok(vec![Row::new(what, figure).with("≤ 1.2×", after / before <= 1.2)])
}
