//! A server process of ours, and what is on it.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use gk_model::paths::SOCKET_FILE;
use tempfile::TempDir;

use crate::bed::{Bed, Data};
use crate::fleet::{resident_bytes, wait};
use crate::loader::{Address, once, request};
use crate::syncs::{Syncs, without_shim};

/// A running `gatekeeper server`. Dropped, it is gone.
pub(crate) struct Server {
    child: Child,
    path: PathBuf,
    _directory: TempDir,
    syncs: Option<Syncs>,
}

impl Server {
    /// On a new database; a sync of its own database is slow when the bed's are.
    pub(crate) fn start(bed: &Bed, max_batch: Option<usize>) -> Result<Server> {
        // One client measures what many would ask.
        Server::launch(bed, None, max_batch, "off")
    }

    /// The same with the rate limits that it has unless told otherwise.
    pub(crate) fn start_limited(bed: &Bed) -> Result<Server> {
        Server::launch(bed, None, None, "")
    }

    /// On a database that is there.
    pub(crate) fn start_on(bed: &Bed, data: &Data) -> Result<Server> {
        Server::launch(bed, Some(data), None, "off")
    }

    fn launch(bed: &Bed, data: Option<&Data>, max_batch: Option<usize>, rate_limit: &str) -> Result<Server> {
        let directory = TempDir::new_in(bed.directory.path())?;
        let program = std::env::current_exe()?.with_file_name("gatekeeper");
        let mut command = Command::new(program);
        command.args(["server", "--listen", "127.0.0.1:0"]).env("GATEKEEPER_LOG", "warn");
        let path = data.map_or_else(|| directory.path().join("data"), |data| data.directory.clone());
        command.env("GATEKEEPER_RATE_LIMIT", rate_limit).env("GATEKEEPER_DATA", &path);
        let mut syncs = None;
        match &bed.cluster {
            Some(cluster) => {
                without_shim(&mut command);
                let url = data.and_then(|data| data.url.clone());
                command.env("GATEKEEPER_DATABASE", url.map_or_else(|| cluster.create_url(), Ok)?);
            }
            None => {
                let own = Syncs::create(directory.path())?;
                own.preload(&mut command, None)?;
                syncs = Some(own);
            }
        }
        if let Some(max_batch) = max_batch {
            command.args(["--max-batch", &max_batch.to_string()]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().context("run `make release` first")?;
        let server = Server { child, path, _directory: directory, syncs };
        let address = server.socket();
        wait(|| once(&address, request("GET", "/readyz", None, b"")).is_ok())?;
        Ok(server)
    }

    /// What counts its syncs.
    pub(crate) fn syncs<'a>(&'a self, bed: &'a Bed) -> &'a Syncs {
        self.syncs.as_ref().unwrap_or_else(|| bed.syncs())
    }

    /// Where we are admin.
    pub(crate) fn socket(&self) -> Address {
        Address::Unix(self.path.join(SOCKET_FILE))
    }

    /// Where tokens are asked for.
    pub(crate) fn tcp(&self) -> Result<Address> {
        #[derive(serde::Deserialize)]
        struct Health {
            address: std::net::SocketAddr,
        }
        let health = once(&self.socket(), request("GET", "/healthz", None, b""))?;
        let Health { address } = serde_json::from_slice(&health).context("where does it listen?")?;
        Ok(Address::Tcp(address))
    }

    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        resident_bytes(self.child.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing is kept, so nothing can be lost.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}
