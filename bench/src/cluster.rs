//! A PostgreSQL server of the benchmarks' own: private directory, other account, Unix socket only, its syncs counted.
//!
//! Nothing of its durability is switched off, because that is what is measured; only its memory is made larger, and its
//! log small enough for a disk that also holds the long histories.

use std::fs::File;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::fleet::wait;
use crate::syncs::{Syncs, without_shim};

/// Starts a server and stops it when standard input ends, which it does however we end.
const KEEPER: &str = r#"
trap '' INT TERM HUP
directory=$1; shift
"$@" & server=$!
cat > /dev/null
kill -INT $server; wait $server
[ -e /proc/$PPID ] || rm -rf "$directory"
"#;

const SETTINGS: [&str; 7] = [
    "listen_addresses=",
    "max_connections=100",
    "shared_buffers=1GB",
    "maintenance_work_mem=512MB",
    "max_wal_size=2GB",
    "checkpoint_timeout=1h",
    "autovacuum=off",
];

/// A PostgreSQL server.
pub(crate) struct Cluster {
    directory: TempDir,
    account: Option<(u32, u32)>,
    keeper: Option<Child>,
    pub(crate) syncs: Syncs,
}

impl Cluster {
    /// A new server with its data below `parent`; none where PostgreSQL is not installed.
    pub(crate) fn start(parent: &Path) -> Result<Option<Cluster>> {
        if find_program("initdb").is_none() {
            return Ok(None);
        }
        let directory = TempDir::with_prefix_in("gatekeeper-bench-pg-", parent)?;
        let syncs = Syncs::create(directory.path())?;
        let mut cluster = Cluster { account: account()?, directory, keeper: None, syncs };
        if let Some((uid, gid)) = cluster.account {
            chown(cluster.directory.path(), Some(uid), Some(gid))?;
        }
        let initdb = ["-A", "trust", "-U", "gatekeeper", "-E", "UTF8", "--locale=C", "--no-sync", "-D"];
        let mut command = cluster.as_account(Command::new(program("initdb")));
        without_shim(&mut command);
        let made = command.args(initdb).arg(cluster.data()).output()?;
        ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        cluster.keeper = Some(cluster.serve()?);
        wait(|| cluster.psql("select 1").is_ok())?;
        Ok(Some(cluster))
    }

    /// An empty schema, which is a database of its own to whoever connects with this address.
    pub(crate) fn create_url(&self) -> Result<String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let schema = format!("bench_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.psql(&format!("create schema {schema}"))?;
        Ok(format!("{}&options=-c%20search_path%3D{schema}", self.url()))
    }

    /// Runs SQL as the administrator.
    pub(crate) fn psql(&self, sql: &str) -> Result<()> {
        let mut command = Command::new(program("psql"));
        without_shim(&mut command);
        let ended = command.args(["-X", "-q", "-A", "-t", "-c", sql, &self.url()]).output()?;
        ensure!(ended.status.success(), "psql: {}", String::from_utf8_lossy(&ended.stderr));
        Ok(())
    }

    fn url(&self) -> String {
        format!("postgres://gatekeeper@/postgres?host={}", self.directory.path().display())
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// PostgreSQL refuses to be root. Signals to us are not for it.
    fn as_account(&self, mut command: Command) -> Command {
        if let Some((uid, gid)) = self.account {
            command.uid(uid).gid(gid);
        }
        command.current_dir(self.directory.path()).process_group(0);
        command
    }

    fn serve(&self) -> Result<Child> {
        let place = self.directory.path();
        let mut keeper = self.as_account(Command::new("sh"));
        keeper.args(["-c", KEEPER, "sh"]).arg(place).arg(program("postgres"));
        keeper.arg("-D").arg(self.data()).arg("-k").arg(place);
        for setting in SETTINGS {
            keeper.args(["-c", setting]);
        }
        self.syncs.preload(&mut keeper, Some(place))?;
        let log = File::create(place.join("log"))?;
        keeper.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        keeper.spawn().context("cannot start PostgreSQL")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            drop(keeper.stdin.take());
            // Nothing is kept, so nothing can be lost.
            let _reaped = keeper.wait();
        }
    }
}

/// The newest server program that is installed: where Debian puts it, or in the path.
fn find_program(name: &str) -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|version| version.path().join("bin").join(name)).collect();
    found.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|directory| directory.join(name));
    found.into_iter().rev().chain(in_path).find(|program| program.exists())
}

fn program(name: &str) -> PathBuf {
    find_program(name).unwrap_or_else(|| name.into())
}

/// Root hands the server to the account that the package made, or to nobody.
fn account() -> Result<Option<(u32, u32)>> {
    if std::fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own))? != 0 {
        return Ok(None);
    }
    let accounts = std::fs::read_to_string("/etc/passwd")?;
    let ids = |name: &str| {
        let line = accounts.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    Ok(Some(ids("postgres").or_else(|| ids("nobody")).unwrap_or((65534, 65534))))
}
