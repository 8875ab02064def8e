//! `gatekeeper backup`, `restore` and `verify`: the database as a whole, by hand.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use gk_model::time::Timestamp;
use gk_store::{Checked, Copied};

use crate::args::{CopyArgs, VerifyArgs};

/// Copies the database into a file.
pub(crate) fn backup(args: &CopyArgs) -> anyhow::Result<()> {
    let mut progress = Progress::new();
    let copied =
        gk_store::backup(&args.database.store()?, &args.file, Timestamp::from_clock(), &mut |rows| {
            progress.tell(&format!("{} rows so far", grouped(rows)));
        });
    progress.clear();
    let (copied, file) = (described(&copied?), args.file.display());
    println!("backed up {copied} to {file}");
    eprintln!("restore it into a new data directory with: gatekeeper restore --data DIR {file}");
    Ok(())
}

/// Copies a backup into an empty database.
pub(crate) fn restore(args: &CopyArgs) -> anyhow::Result<()> {
    let (mut progress, store) = (Progress::new(), args.database.store()?);
    let copied = gk_store::restore(&store, &args.file, Timestamp::from_clock(), &mut |rows| match rows {
        0 => progress.tell("checking the backup"),
        rows => progress.tell(&format!("{} rows so far", grouped(rows))),
    });
    progress.clear();
    println!("restored {} from {} to {}", described(&copied?), args.file.display(), store.place());
    let database = store.database.as_ref().map(|url| format!(" --database '{url}'")).unwrap_or_default();
    eprintln!("start it with: gatekeeper server --data {}{database}", store.directory.display());
    Ok(())
}

/// Checks every invariant of the database; fails when one does not hold.
pub(crate) fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let (mut progress, store) = (Progress::new(), args.database.store()?);
    let verdict = gk_store::verify(&store, Timestamp::from_clock(), &mut |invariant| {
        progress.tell(&format!("checking: {invariant}"));
    });
    progress.clear();
    let verdict = verdict?;
    let text: String = verdict.checks.iter().map(lines).collect();
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            return Err(error).context("cannot write");
        }
        _ => {}
    }
    match verdict.violations() {
        0 => Ok(ExitCode::SUCCESS),
        count => {
            eprintln!(
                "error: {} in the database {}: keep a copy of it, and restore the last good backup into a new \
                 directory",
                counted(count, "violation"),
                store.place()
            );
            Ok(ExitCode::FAILURE)
        }
    }
}

fn lines(check: &Checked) -> String {
    let verdict = match check.violations {
        0 => "ok   ",
        _ => "WRONG",
    };
    let mut text = format!("{verdict} {} ({} looked at", check.invariant, grouped(check.looked_at));
    if check.violations > 0 {
        text.push_str(&format!(", {}", counted(check.violations, "violation")));
    }
    text.push_str(")\n");
    for shown in &check.shown {
        text.push_str(&format!("        {shown}\n"));
    }
    match check.violations - check.shown.len() as u64 {
        0 => text,
        more => text + &format!("        and {} more\n", grouped(more)),
    }
}

fn described(copied: &Copied) -> String {
    format!(
        "{}, {} and {}",
        counted(copied.events, "event"),
        counted(copied.reservations, "reservation"),
        counted(copied.instances, "instance")
    )
}

fn counted(count: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(count), if count == 1 { "" } else { "s" })
}

/// `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    groups.collect::<Vec<_>>().join(",")
}

/// One line on a terminal that changes in place, for work that takes long; elsewhere nothing.
struct Progress {
    shown: bool,
    next_at: Option<Instant>,
}

impl Progress {
    const EVERY: Duration = Duration::from_millis(200);

    fn new() -> Progress {
        let next_at = std::io::stderr().is_terminal().then(|| Instant::now() + Progress::EVERY);
        Progress { shown: false, next_at }
    }

    fn tell(&mut self, text: &str) {
        if self.next_at.is_some_and(|next_at| Instant::now() >= next_at) {
            self.next_at = Some(Instant::now() + Progress::EVERY);
            self.shown = true;
            eprint!("\r\x1b[K{text}");
        }
    }

    fn clear(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        let table = [(0, "0 rows"), (1, "1 row"), (999, "999 rows"), (1000, "1,000 rows")];
        for (number, text) in table {
            assert_eq!(counted(number, "row"), text);
        }
        assert_eq!(grouped(1_234_567), "1,234,567");
    }

    #[test]
    fn a_check_says_what_it_looked_at_and_what_is_wrong() {
        let sound = Checked { invariant: "all is well", looked_at: 1200, violations: 0, shown: vec![] };
        assert_eq!(lines(&sound), "ok    all is well (1,200 looked at)\n");
        let broken = Checked { violations: 22, shown: vec!["this".into(), "that".into()], ..sound };
        assert_eq!(
            lines(&broken),
            "WRONG all is well (1,200 looked at, 22 violations)\n        this\n        that\n        and 20 more\n"
        );
    }
}
