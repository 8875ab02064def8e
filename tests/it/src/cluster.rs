//! A PostgreSQL server of the tests' own: private directory, other account, Unix socket only, gone when they end.
//!
//! `GATEKEEPER_TEST_POSTGRES` names another one to use instead, as `postgres://…`, in which the tests may make and drop
//! schemas. Without either the tests fail; `make test` leaves them out, loudly, where nobody can install PostgreSQL.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use gk_store::DatabaseUrl;
use tempfile::TempDir;

use crate::process::crash::shim;
use crate::process::harness::wait_for;

/// Starts a server and stops it when standard input ends, which it does however the tests end. Nobody else is left to
/// remove the directory when they were killed.
const KEEPER: &str = r#"
trap '' INT TERM HUP
directory=$1; shift
"$@" & server=$!
cat > /dev/null
kill -INT $server; wait $server
[ -e /proc/$PPID ] || rm -rf "$directory"
"#;

/// One server, started by the first test that needs it, for all tests that do not harm it.
pub(crate) fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| match std::env::var("GATEKEEPER_TEST_POSTGRES") {
        Ok(url) => Cluster { url, own: None },
        // In memory a durable commit costs nothing, so the server can do what it has to.
        Err(_) => Cluster::start(in_memory(), &[]),
    })
}

/// A PostgreSQL server.
pub(crate) struct Cluster {
    /// Address of the database that the tests make their schemas in.
    url: String,
    own: Option<Own>,
}

/// A server of ours.
struct Own {
    directory: TempDir,
    account: Option<(u32, u32)>,
    settings: Vec<String>,
    /// The library that keeps a copy of what was synced; see [`Cluster::lose_unsynced`].
    shim: Option<PathBuf>,
    keeper: Mutex<Option<Child>>,
}

impl Cluster {
    /// A new server with its data below `parent`, and these settings of `postgresql.conf`.
    pub(crate) fn start(parent: PathBuf, settings: &[&str]) -> Cluster {
        Cluster::prepare(parent, settings).serving()
    }

    /// The same, of which [`Cluster::lose_unsynced`] leaves only what was synced.
    pub(crate) fn start_losing_unsynced(parent: PathBuf) -> Cluster {
        let mut cluster = Cluster::prepare(parent, &[]);
        let own = cluster.own.as_mut().unwrap();
        own.shim = Some(shim(own.directory.path()));
        cluster.serving()
    }

    /// Not running yet: what is in its directory may still be changed.
    pub(crate) fn prepare(parent: PathBuf, settings: &[&str]) -> Cluster {
        let directory = TempDir::with_prefix_in("gatekeeper-pg-", parent).unwrap();
        let account = account();
        if let Some((uid, gid)) = account {
            chown(directory.path(), Some(uid), Some(gid)).unwrap();
        }
        let url = format!("postgres://gatekeeper@/postgres?host={}", directory.path().display());
        let own = Own {
            directory,
            account,
            settings: settings.iter().map(|setting| (*setting).to_owned()).collect(),
            shim: None,
            keeper: Mutex::default(),
        };
        // Sorts like people, not like bytes, unless it is told to: as a database that somebody else made might. Small
        // segments: what a test writes is little, and the shim copies each segment at each sync.
        let initdb = "-A trust -U gatekeeper -E UTF8 --locale=C --locale-provider=icu --icu-locale=en --wal-segsize=1 \
                      --no-sync -D";
        succeed(&own.command("initdb").args(initdb.split(' ')).arg(own.data()).output().unwrap());
        Cluster { url, own: Some(own) }
    }

    /// Starts it.
    pub(crate) fn serving(self) -> Cluster {
        self.resume();
        self
    }

    /// Its directory: `data` is in it, its socket, and its log.
    pub(crate) fn directory(&self) -> &Path {
        self.own().directory.path()
    }

    /// Starts the server again after [`Cluster::stop`] or [`Cluster::crash`].
    pub(crate) fn resume(&self) {
        let own = self.own();
        wait_for("PostgreSQL to serve", || {
            let mut keeper = own.keeper.lock().unwrap_or_else(PoisonError::into_inner);
            // What a crash left behind may keep the first try from starting.
            let ended = keeper.as_mut().is_none_or(|keeper| keeper.try_wait().unwrap().is_some());
            if ended {
                *keeper = Some(own.serve());
            }
            self.psql("select 1").status.success().then_some(())
        });
    }

    /// Ends the server in an orderly way, open connections or not.
    pub(crate) fn stop(&self) {
        let keeper = self.own().keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut keeper) = keeper {
            drop(keeper.stdin.take());
            keeper.wait().unwrap();
        }
    }

    /// SIGKILL to every process of the server.
    pub(crate) fn crash(&self) {
        let file = std::fs::read_to_string(self.own().data().join("postmaster.pid")).unwrap();
        let pid = file.lines().next().unwrap();
        let script = format!("kill -9 {pid} $(cat /proc/{pid}/task/*/children)");
        // Children may end by themselves in between.
        let _some_are_gone = Command::new("sh").args(["-c", &script]).output().unwrap();
        self.stop();
    }

    /// What a power cut does: every process is gone, and everything that was not synced.
    pub(crate) fn lose_unsynced(&self) {
        self.crash();
        let own = self.own();
        std::fs::remove_dir_all(own.data()).unwrap();
        std::fs::rename(own.synced(), own.data()).unwrap();
    }

    /// An empty schema, which is a database of its own to whoever connects with this address.
    pub(crate) fn create_database(&self) -> DatabaseUrl {
        self.create_url().parse().unwrap()
    }

    /// The same as text.
    pub(crate) fn create_url(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let schema = format!("test_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        succeed(&self.psql(&format!("create schema {schema}")));
        let separator = if self.url.contains('?') { '&' } else { '?' };
        format!("{}{separator}options=-c%20search_path%3D{schema}", self.url)
    }

    /// Runs SQL as the administrator.
    pub(crate) fn psql(&self, sql: &str) -> Output {
        self.psql_command().args(["-c", sql]).output().unwrap()
    }

    /// Standard output of SQL that must succeed, as text.
    pub(crate) fn ask(&self, sql: &str) -> String {
        let output = self.psql(sql);
        succeed(&output);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Runs SQL as the administrator in a session that lasts until the child's standard input ends.
    pub(crate) fn begin_session(&self, sql: &str) -> Child {
        let mut session = self.psql_command().stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        std::io::Write::write_all(session.stdin.as_mut().unwrap(), sql.as_bytes()).unwrap();
        session
    }

    fn psql_command(&self) -> Command {
        let mut command = match &self.own {
            Some(_) => Command::new(program("psql")),
            None => Command::new("psql"),
        };
        command.args(["-X", "-q", "-A", "-t", &self.url]);
        command
    }

    /// Hands a file to the account that the server runs under.
    pub(crate) fn give(&self, file: &Path) {
        if let Some((uid, gid)) = self.own().account {
            chown(file, Some(uid), Some(gid)).unwrap();
        }
    }

    fn own(&self) -> &Own {
        self.own.as_ref().expect("a server that others use is left alone")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.own.is_some() {
            self.stop();
        }
    }
}

impl Own {
    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The copy of what was synced.
    fn synced(&self) -> PathBuf {
        self.directory.path().join("synced")
    }

    /// A program of PostgreSQL, as the account that it runs under: it refuses to be root.
    fn command(&self, name: &str) -> Command {
        self.as_account(Command::new(program(name)))
    }

    fn as_account(&self, mut command: Command) -> Command {
        if let Some((uid, gid)) = self.account {
            command.uid(uid).gid(gid);
        }
        // Signals to the tests are not for the server.
        command.current_dir(self.directory.path()).process_group(0);
        command
    }

    fn serve(&self) -> Child {
        let mut keeper = self.as_account(Command::new("sh"));
        keeper.args(["-c", KEEPER, "sh"]).arg(self.directory.path()).arg(program("postgres"));
        keeper.arg("-D").arg(self.data()).arg("-k").arg(self.directory.path());
        for setting in ["listen_addresses=", "max_connections=300", "shared_buffers=64MB"] {
            keeper.args(["-c", setting]);
        }
        for setting in &self.settings {
            keeper.args(["-c", setting]);
        }
        if let Some(shim) = &self.shim {
            // What is there before counts as synced: it was, by the server before.
            let copy = r#"rm -rf "$2" && cp -a "$1" "$2" && rm -f "$2"/postmaster.pid"#;
            let mut copy_to = self.as_account(Command::new("sh"));
            succeed(&copy_to.args(["-c", copy, "sh"]).arg(self.data()).arg(self.synced()).output().unwrap());
            keeper
                .env("LD_PRELOAD", shim)
                .env("UNSYNCED_FROM", self.data())
                .env("UNSYNCED_TO", self.synced());
        }
        let log = self.directory.path().join("log");
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        keeper.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }
}

/// Below which durable data is in memory, if this machine has enough of it.
pub(crate) fn in_memory() -> PathBuf {
    let free = Command::new("df").args(["--output=avail", "-k", "/dev/shm"]).output();
    let free = free.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let free_kib = free.lines().last().and_then(|line| line.trim().parse::<u64>().ok());
    if free_kib.is_some_and(|kib| kib > 1 << 20) { "/dev/shm".into() } else { std::env::temp_dir() }
}

/// The newest server program that is installed: in the path, or where Debian puts it.
fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|version| version.path().join("bin").join(name)).collect();
    found.retain(|path| path.exists());
    found.sort();
    found.pop().unwrap_or_else(|| name.into())
}

/// Root hands the server to the account that the package made, or to nobody.
fn account() -> Option<(u32, u32)> {
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let uid = own.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    if uid.split_whitespace().next() != Some("0") {
        return None;
    }
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap();
    let ids = |name: &str| {
        let line = accounts.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    Some(ids("postgres").or_else(|| ids("nobody")).unwrap_or((65534, 65534)))
}

fn succeed(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
