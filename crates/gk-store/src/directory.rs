//! The data directory: made private, and owned by one process at a time.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::StoreError;
use crate::private::{self, Exposed};

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The data directory cannot be used.
    #[error("cannot use the data directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Other accounts could change what is in it, or could have.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// Another process owns it.
    #[error("another server is using the data directory {}: stop it, or choose another one with --data", .0.display())]
    Locked(PathBuf),
    /// There is nothing to back up or to verify.
    #[error(
        "there is no Gatekeeper database at {0}: name its directory with --data, or its address with --database"
    )]
    NoDatabase(String),
    /// The database waits for its migration.
    #[error(
        "the database {place} has schema version {found}, and this Gatekeeper can verify version {known}: start its \
         server once, or use the Gatekeeper that wrote it"
    )]
    Older {
        /// The file, or the address without its password.
        place: String,
        /// The version found.
        found: u64,
        /// The version wanted.
        known: u64,
    },
    /// The database cannot be used.
    #[error("cannot use the database {place}")]
    Database {
        /// The file, or the address without its password.
        place: String,
        /// Why.
        source: StoreError,
    },
    /// The writer's thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// Opening panicked.
    #[error("a fault in the server: {0}")]
    Fault(String),
}

/// Held for as long as the store is open; the kernel lets go of it when the process ends, however it ends.
pub(crate) struct DirectoryLock {
    file: File,
}

/// Let go of by word: a process that another thread is just starting may hold the file for a moment longer.
impl Drop for DirectoryLock {
    fn drop(&mut self) {
        if let Err(error) = self.file.unlock() {
            tracing::debug!(%error, "the lock of the data directory was not let go of");
        }
    }
}

impl DirectoryLock {
    pub(crate) fn acquire(directory: &Path) -> Result<DirectoryLock, OpenError> {
        let about = |source| OpenError::Directory { path: directory.to_owned(), source };
        private::make(directory).map_err(about)?;
        private::close_to_others(directory)?;
        // No link by now, and nobody else can lay one.
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(directory.join("gatekeeper.lock"))
            .map_err(about)?;
        match file.try_lock() {
            Ok(()) => Ok(DirectoryLock { file }),
            Err(TryLockError::WouldBlock) => Err(OpenError::Locked(directory.to_owned())),
            Err(TryLockError::Error(source)) => Err(about(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_was_inherited_is_let_go_of_all_the_same() {
        let place = tempfile::tempdir().unwrap();
        let lock = DirectoryLock::acquire(place.path()).unwrap();
        let _inherited = lock.file.try_clone().unwrap();
        drop(lock);
        DirectoryLock::acquire(place.path()).unwrap();
    }
}
