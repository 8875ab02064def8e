//! Syncs: counting them, and a disk that takes exactly as long on every machine.
//!
//! A small shim (`bench/shim/syncs.c`) is preloaded into whatever writes: this program itself, which therefore begins by
//! running itself once more, servers of ours, and PostgreSQL. It shares two numbers with us through a file.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

/// Where the shim finds the numbers.
const VARIABLE: &str = "BENCH_SYNCS";

/// Where the shim itself is.
const LIBRARY: &str = "BENCH_SHIM";

/// A sync of the slow disk: what a disk without a cache of its own takes.
pub(crate) const SLOW: Duration = Duration::from_millis(4);

/// The numbers that are shared with one program and its children.
pub(crate) struct Syncs {
    file: File,
    path: PathBuf,
}

impl Syncs {
    /// New numbers, in this directory.
    pub(crate) fn create(directory: &Path) -> Result<Syncs> {
        let path = directory.join("syncs");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        file.set_len(16)?;
        // PostgreSQL runs under an account of its own.
        file.set_permissions(PermissionsExt::from_mode(0o666))?;
        Ok(Syncs { file, path })
    }

    /// Those of this program.
    pub(crate) fn own() -> Result<Syncs> {
        let path: PathBuf = std::env::var_os(VARIABLE).context("the shim is not loaded")?.into();
        Ok(Syncs { file: File::options().read(true).write(true).open(&path)?, path })
    }

    /// How many there were so far.
    pub(crate) fn count(&self) -> Result<u64> {
        let mut number = [0; 8];
        self.file.read_exact_at(&mut number, 0)?;
        Ok(u64::from_ne_bytes(number))
    }

    /// How long each takes from now on; the disk decides when it is nothing.
    pub(crate) fn take(&self, duration: Duration) -> Result<()> {
        let microseconds = u64::try_from(duration.as_micros())?;
        Ok(self.file.write_all_at(&microseconds.to_ne_bytes(), 8)?)
    }

    /// Has `command` counted here. PostgreSQL can only load what its account can read, so it has a copy.
    pub(crate) fn preload(&self, command: &mut Command, copy_in: Option<&Path>) -> Result<()> {
        let library: PathBuf = std::env::var_os(LIBRARY).context("the shim is not loaded")?.into();
        let library = match copy_in {
            None => library,
            Some(directory) => {
                let copy = directory.join("syncs.so");
                std::fs::copy(&library, &copy)?;
                std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755))?;
                copy
            }
        };
        command.env("LD_PRELOAD", library).env(VARIABLE, &self.path);
        Ok(())
    }
}

/// Leaves the shim to those who ask for it.
pub(crate) fn without_shim(command: &mut Command) {
    command.env_remove("LD_PRELOAD").env_remove(VARIABLE);
}

/// Runs this program once more with the shim in it, unless this is that run; then answers whether it went well.
pub(crate) fn run_with_shim() -> Result<Option<bool>> {
    if std::env::var_os(VARIABLE).is_some() {
        return Ok(None);
    }
    let directory = TempDir::new()?;
    let (source, library) =
        (concat!(env!("CARGO_MANIFEST_DIR"), "/shim/syncs.c"), directory.path().join("syncs.so"));
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-o"]).arg(&library).arg(source).arg("-ldl");
    ensure!(compiler.status().context("no C compiler")?.success(), "the shim does not compile");
    let syncs = Syncs::create(directory.path())?;
    let mut again = Command::new(std::env::current_exe()?);
    again.args(std::env::args_os().skip(1)).env(LIBRARY, &library);
    again.env("LD_PRELOAD", &library).env(VARIABLE, &syncs.path);
    Ok(Some(again.status()?.success()))
}
