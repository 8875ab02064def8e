//! Where a store is measured: which database, on which disk, with its syncs counted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use gk_model::time::Timestamp;
use gk_store::{Store, StoreConfig};
use tempfile::TempDir;

use crate::cluster::Cluster;
use crate::syncs::Syncs;

/// What data lies on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    /// The one that this program was built on.
    Real,
    /// Memory: a sync costs nothing, or as long as it is told to sleep.
    Memory,
}

impl Disk {
    /// A directory on it.
    pub(crate) fn path(self) -> PathBuf {
        match self {
            Disk::Memory => PathBuf::from("/dev/shm"),
            Disk::Real => {
                let program = std::env::current_exe().ok();
                program
                    .and_then(|program| program.parent().map(Path::to_owned))
                    .unwrap_or_else(|| "/tmp".into())
            }
        }
    }
}

/// A database, ready for any number of stores. Dropped, it is gone.
pub(crate) struct Bed {
    /// As it is called in the report.
    pub(crate) name: &'static str,
    pub(crate) directory: TempDir,
    pub(crate) cluster: Option<Cluster>,
    own: Syncs,
}

impl Bed {
    pub(crate) fn sqlite(disk: Disk) -> Result<Bed> {
        let directory = TempDir::with_prefix_in("gatekeeper-bench-", disk.path())?;
        Ok(Bed { name: "SQLite", directory, cluster: None, own: Syncs::own()? })
    }

    /// None where PostgreSQL is not installed.
    pub(crate) fn postgres(disk: Disk) -> Result<Option<Bed>> {
        let Some(cluster) = Cluster::start(&disk.path())? else { return Ok(None) };
        Ok(Some(Bed { name: "PostgreSQL", cluster: Some(cluster), ..Bed::sqlite(disk)? }))
    }

    /// What counts the syncs of stores in this program.
    pub(crate) fn syncs(&self) -> &Syncs {
        self.cluster.as_ref().map_or(&self.own, |cluster| &cluster.syncs)
    }

    /// Runs `work` while each sync takes this long.
    pub(crate) fn with_syncs<T>(&self, taking: Duration, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.syncs().take(taking)?;
        let done = work();
        self.syncs().take(Duration::ZERO)?;
        done
    }

    /// A new database, with nothing in it.
    pub(crate) fn create_data(&self) -> Result<Data> {
        let directory = TempDir::new_in(self.directory.path())?.keep();
        Ok(Data { directory, url: self.cluster.as_ref().map(Cluster::create_url).transpose()? })
    }

    /// A new database.
    pub(crate) fn config(&self, max_batch: usize) -> Result<StoreConfig> {
        self.create_data()?.config(max_batch)
    }

    /// A store on a new database.
    pub(crate) async fn open(&self, max_batch: usize) -> Result<Store> {
        Ok(Store::open(self.config(max_batch)?, Timestamp::from_clock()).await?)
    }
}

/// Where a store keeps what it has.
pub(crate) struct Data {
    pub(crate) directory: PathBuf,
    /// The address of its database, where that is not in the directory.
    pub(crate) url: Option<String>,
}

impl Data {
    pub(crate) fn config(&self, max_batch: usize) -> Result<StoreConfig> {
        let database = self.url.as_deref().map(str::parse).transpose()?;
        Ok(StoreConfig { database, max_batch, ..StoreConfig::embedded(&self.directory) })
    }
}

/// Runs `measure` on both databases; where PostgreSQL is missing its rows say so.
pub(crate) fn on_both(
    disk: Disk,
    mut measure: impl FnMut(&Bed) -> Result<Vec<crate::report::Row>>,
) -> Result<Vec<crate::report::Row>> {
    let mut rows = measure(&Bed::sqlite(disk)?)?;
    match Bed::postgres(disk)? {
        Some(bed) => rows.extend(measure(&bed)?),
        None => rows.extend(rows.clone().iter().map(crate::report::Row::elsewhere)),
    }
    Ok(rows)
}
