//! One agent per state directory: the lock that an agent holds as long as it runs.
//!
//! It is an advisory lock on a file, released by the kernel when its holder ends, however it ends. The file itself
//! says nothing and is never removed: removing it would let two agents hold two files of the same name.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use gk_model::paths::AGENT_LOCK_FILE;

use crate::{files, trust};

/// Held as long as it lives; whoever holds it may use the session of this state directory.
#[derive(Debug)]
pub struct AgentLock {
    #[expect(dead_code, reason = "the lock lives as long as the open file")]
    file: File,
    closed: Vec<PathBuf>,
}

impl AgentLock {
    /// Takes the lock; none when somebody else holds it. Private files of the directory are its owner's alone from then on.
    ///
    /// # Errors
    /// When somebody else may have changed what is in the directory, or the file cannot be made or locked for any other
    /// reason.
    pub fn acquire(state_dir: &Path) -> io::Result<Option<AgentLock>> {
        files::ensure_dir(state_dir)?;
        let closed = trust::close_to_others(state_dir)?;
        let path = state_dir.join(AGENT_LOCK_FILE);
        let file = open(&path).map_err(|error| files::at(&path, &error))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(AgentLock { file, closed })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(files::at(&path, &error)),
        }
    }

    /// The private files that other accounts could read until now.
    pub fn closed(&self) -> &[PathBuf] {
        &self.closed
    }
}

/// Opens the file, and makes it world-readable whatever the umask, so that every account can ask whether the agent runs.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    if file.metadata()?.permissions().mode() & 0o777 != 0o644 {
        file.set_permissions(Permissions::from_mode(0o644))?;
    }
    Ok(file)
}

/// Whether somebody holds the lock.
///
/// It is asked by taking a shared lock for an instant. An agent that starts in that very instant finds the lock held;
/// it should try once more before it believes that another one runs.
///
/// # Errors
/// When the file is there and this account may not read it.
pub fn is_held(state_dir: &Path) -> io::Result<bool> {
    let path = state_dir.join(AGENT_LOCK_FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(false);
        }
        Err(error) => return Err(files::at(&path, &error)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(files::at(&path, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_free_again_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_held(dir.path()).unwrap());
        let held = AgentLock::acquire(dir.path()).unwrap().expect("free at first");
        assert!(is_held(dir.path()).unwrap());
        assert!(AgentLock::acquire(dir.path()).unwrap().is_none());
        drop(held);
        assert!(!is_held(dir.path()).unwrap());
        assert!(AgentLock::acquire(dir.path()).unwrap().is_some());
    }
}
