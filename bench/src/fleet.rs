//! A server and an agent of their own, in a throw-away directory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use gk_client::{Client, ServerAddress};
use gk_model::id::InstanceId;
use gk_model::query::InstanceQuery;
use tempfile::TempDir;

use crate::syncs::without_shim;

pub(crate) struct Fleet {
    programs: PathBuf,
    directory: TempDir,
    pub(crate) server: Child,
    pub(crate) agent: Child,
    pub(crate) instance: InstanceId,
}

impl Fleet {
    /// Server, joined machine and running agent, which speaks to the server's socket.
    pub(crate) fn start() -> Result<Fleet> {
        let bench = std::env::current_exe().context("where is this program?")?;
        Fleet::start_from(bench.parent().context("a program lies in a directory")?.to_owned(), &[])
    }

    /// The same with the programs of this directory, and these options of the server. With TLS, the agent speaks that, as
    /// one of another machine would.
    pub(crate) fn start_from(programs: PathBuf, options: &[&str]) -> Result<Fleet> {
        let directory = TempDir::new()?;
        let mut server = command(&programs, &directory, "gatekeeper");
        let server = server
            .args(["server", "--listen", "127.0.0.1:0"])
            .args(options)
            .spawn()
            .context("run `make release` first")?;
        let socket = socket(&directory);
        wait(|| Client::new(ServerAddress::Unix(socket.clone()), None).ready().is_ok())?;
        let joined = command(&programs, &directory, "gkctl").args(["instance", "join"]).status()?;
        if !joined.success() {
            bail!("gkctl instance join failed");
        }
        let client = Client::new(ServerAddress::Unix(socket), None);
        let mut agent = command(&programs, &directory, "gatekeeper-agent");
        if let Some(url) = client.ready()?.local_url().filter(|url| url.starts_with("https:")) {
            agent.env("GATEKEEPER_SERVER", url);
        }
        let agent = agent.spawn()?;
        let instance = client.list_instances(&InstanceQuery::default())?.items[0].id;
        Ok(Fleet { programs, directory, server, agent, instance })
    }

    /// A client that is admin by its place at the socket.
    pub(crate) fn client(&self) -> Client {
        Client::new(ServerAddress::Unix(socket(&self.directory)), None)
    }

    /// One of the programs, speaking to this server.
    pub(crate) fn command(&self, name: &str) -> Command {
        command(&self.programs, &self.directory, name)
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for child in [&mut self.agent, &mut self.server] {
            // Nothing is kept, so nothing can be lost.
            let _killed = child.kill();
            let _reaped = child.wait();
        }
    }
}

fn socket(directory: &TempDir) -> PathBuf {
    directory.path().join("data/gatekeeper.sock")
}

fn command(programs: &Path, directory: &TempDir, name: &str) -> Command {
    let mut command = Command::new(programs.join(name));
    without_shim(&mut command);
    command.env("GATEKEEPER_DATA", directory.path().join("data"));
    command.env("GATEKEEPER_STATE", directory.path().join("state"));
    command.env("GATEKEEPER_SERVER", format!("unix:{}", socket(directory).display()));
    command.env("GATEKEEPER_LOG", "warn").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Until `condition` holds, looking every millisecond, for at most 30 s.
pub(crate) fn wait(mut condition: impl FnMut() -> bool) -> Result<Duration> {
    let begun = Instant::now();
    while !condition() {
        if begun.elapsed() > Duration::from_secs(30) {
            bail!("waited in vain");
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    Ok(begun.elapsed())
}

/// Resident memory of a process.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes * 1024)
}

/// Kernel, processors, and the file system that the database was on.
pub(crate) fn describe_machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("");
    format!("Linux {}, {processors} × {}", kernel.trim(), model.trim_start_matches([':', ' ', '\t']))
}
