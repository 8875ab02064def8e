//! Other people's programs that answer the same question: `ss`, `lsof`, and psutil.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::syncs::without_shim;

/// Seconds that a whole command takes; `None` when there is no such program. One that fails is no measurement.
pub(crate) fn time(program: &str, words: &[&str]) -> Result<Option<f64>> {
    let mut command = Command::new(program);
    without_shim(&mut command);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let begun = Instant::now();
    match command.status() {
        Ok(status) => {
            let spent = begun.elapsed().as_secs_f64();
            // `lsof` fails although it has printed everything, when a file of no interest could not be looked at.
            let is_well = status.success() || (program == "lsof" && status.code() == Some(1));
            ensure!(is_well, "`{program} {}` failed: {status}", words.join(" "));
            Ok(Some(spent))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot run {program}")),
    }
}

/// A Python interpreter that has loaded psutil and looks when it is told to, so that starting it is not measured.
pub(crate) struct Psutil {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

const LOOP: &str = "
import sys, time, psutil
for _ in sys.stdin:
    begun = time.perf_counter()
    psutil.net_connections('inet')
    print(time.perf_counter() - begun, flush=True)
";

impl Psutil {
    /// With an interpreter from [`python`].
    pub(crate) fn start(python: &Path) -> Result<Psutil> {
        let mut command = Command::new(python);
        without_shim(&mut command);
        command.args(["-c", LOOP]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot run Python")?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take());
        let orders = orders.context("its input is a pipe")?;
        let answers = BufReader::new(answers.context("its output is a pipe")?);
        Ok(Psutil { child, orders, answers })
    }

    /// Seconds that one look takes, as Python itself measures them.
    pub(crate) fn look(&mut self) -> Result<f64> {
        writeln!(self.orders)?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        answer.trim().parse().context("psutil failed")
    }
}

impl Drop for Psutil {
    fn drop(&mut self) {
        // It has nothing to lose.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A Python interpreter with psutil: that of the machine, or one below `target` into which it is installed once. `None`
/// where neither is to be had.
pub(crate) fn python() -> Result<Option<PathBuf>> {
    let has_psutil = |python: &PathBuf| {
        let tried = Command::new(python).args(["-c", "import psutil"]).stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    };
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(2).context("a program lies in target/release")?;
    let (theirs, environment) = (PathBuf::from("python3"), target.join("psutil"));
    let ours = environment.join("bin/python");
    if let Some(python) = [&theirs, &ours].into_iter().find(|python| has_psutil(python)) {
        return Ok(Some(python.clone()));
    }
    let made = Command::new(&theirs).args(["-m", "venv"]).arg(&environment).status();
    if !made.is_ok_and(|status| status.success()) {
        return Ok(None);
    }
    let installed = Command::new(&ours).args(["-m", "pip", "install", "--quiet", "psutil"]).status()?;
    Ok(installed.success().then_some(ours).filter(has_psutil))
}
