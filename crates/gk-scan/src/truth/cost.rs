//! What a poll costs: instructions of our own, counted by valgrind, which no neighbour on the machine disturbs.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use gk_model::port::Protocol;

use super::world::{at, enter_new_namespace, exercised, in_new_namespace, refused};
use crate::scanner::Scanner;

/// Tells the same test, run by valgrind, how many listeners to open.
const LISTENERS: &str = "GK_SCAN_TEST_LISTENERS";

const FEW: u32 = 200;
const MANY: u32 = 1_200;
const POLLS: usize = 21;

/// What is promised of the release build is 250, and `make bench` measures that. This build is not optimised, and takes
/// 31 to 39 (rustc 1.95): the kernel tells the same bytes again, which are compared as they are.
const MOST: u64 = 80;

/// Less means that nothing was counted.
const LEAST: u64 = 10;

#[test]
fn a_poll_without_news_takes_few_instructions_a_socket() {
    if let Ok(listeners) = std::env::var(LISTENERS) {
        return poll_among(listeners.parse().unwrap());
    }
    let facility = "valgrind, which counts instructions";
    in_new_namespace("what a poll costs", || {
        let directory = tempfile::tempdir().unwrap();
        let mut counts = [0; 2];
        for (count, listeners) in counts.iter_mut().zip([FEW, MANY]) {
            match count_instructions(directory.path(), listeners) {
                Ok(counted) => *count = counted,
                Err(error) => return refused(facility, "what a poll costs", &error),
            }
        }
        exercised(facility);
        // What a poll costs anyhow is in both.
        let each = counts[1].saturating_sub(counts[0]) / u64::from(MANY - FEW);
        assert!((LEAST..=MOST).contains(&each), "{each} instructions a socket: {counts:?}");
    });
}

fn poll_among(listeners: u32) {
    enter_new_namespace().unwrap();
    let _open: Vec<OwnedFd> = (0..listeners).map(|_| at(Protocol::Tcp, "127.0.0.1").serve()).collect();
    let mut scanner = Scanner::new().unwrap();
    // Until nothing is left to be done for the first time.
    for _ in 0..5 {
        scanner.look(super::start()).unwrap();
    }
    for _ in 0..POLLS {
        counted_poll(&mut scanner);
    }
}

/// Valgrind counts each by itself, and knows it by its name.
#[inline(never)]
fn counted_poll(scanner: &mut Scanner) {
    scanner.look(super::start()).unwrap();
}

/// Of one poll, by the only process of a namespace, so that no other's beginning is news: the median, because now and then
/// one looks into a process although nothing says that it should.
fn count_instructions(directory: &Path, listeners: u32) -> io::Result<u64> {
    let out = directory.join(format!("callgrind.{listeners}"));
    Command::new("valgrind").arg("--version").output()?;
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "valgrind"]);
    let poll = concat!(module_path!(), "::counted_poll");
    // Two options with one and the same pattern undo each other.
    command.args(["--tool=callgrind", "--toggle-collect=*counted_poll*", &format!("--dump-after={poll}")]);
    command.arg(format!("--callgrind-out-file={}", out.display()));
    command.arg(std::env::current_exe()?).args(["--exact", NAME, "--test-threads=1"]);
    let output = command.env(LISTENERS, listeners.to_string()).stdin(Stdio::null()).output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let file = |poll| format!("{}.{poll}", out.display());
    let mut counts: Vec<u64> = (1..=POLLS).map(|poll| instructions_in(file(poll))).collect();
    counts.sort_unstable();
    Ok(counts[POLLS / 2])
}

/// As valgrind wrote them after one poll.
fn instructions_in(file: String) -> u64 {
    let text = std::fs::read_to_string(file).unwrap();
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")).unwrap();
    total.trim().parse().unwrap()
}

/// The name of the test above, by which the process of valgrind runs it alone.
const NAME: &str = "truth::cost::a_poll_without_news_takes_few_instructions_a_socket";
