//! One agent per state directory: the lock that an agent holds as long as it runs.
//!
//! It is an advisory lock on a file, released by the kernel when its holder ends, however it ends. The file itself
//! says nothing and is never removed: removing it would let two agents hold two files of the same name. Only its owner can
//! open it: whoever may read a file may lock it, and would keep the agent from starting.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
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
        let options = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).clone();
        let file = options.open(&path).map_err(|error| files::at(&path, &error))?;
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

/// Whether somebody holds the lock.
///
/// It is asked by taking a shared lock for an instant. An agent that starts in that very instant finds the lock held;
/// it should try once more before it believes that another one runs. An account that may not open the file asks the kernel
/// for its list of locks instead, which is for everybody.
///
/// # Errors
/// When the file is there, this account may not open it, and the kernel shows no such lock: it shows none of processes in
/// another PID namespace.
pub fn is_held(state_dir: &Path) -> io::Result<bool> {
    let path = state_dir.join(AGENT_LOCK_FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(false);
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_listed(&path)? => {
            return Ok(true);
        }
        Err(error) => return Err(files::at(&path, &error)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(files::at(&path, &error)),
    }
}

/// Whether the kernel lists a lock on this file.
fn is_listed(path: &Path) -> io::Result<bool> {
    let (file, locks) = (path.metadata()?, fs::read_to_string("/proc/locks")?);
    Ok(locks.lines().any(|line| is_of(line, &file)))
}

/// `1: FLOCK  ADVISORY  WRITE 11392 fe:00:10494816 0 EOF`: device by major and minor number in hexadecimal, and inode.
fn is_of(line: &str, file: &Metadata) -> bool {
    let mut words = line.split_whitespace().skip(1);
    let (kind, place) = (words.next(), words.nth(3));
    let parse = |place: &str| {
        let mut parts = place.split(':');
        let major = u32::from_str_radix(parts.next()?, 16).ok()?;
        let minor = u32::from_str_radix(parts.next()?, 16).ok()?;
        Some((major, minor, parts.next()?.parse().ok()?))
    };
    let device = file.dev();
    let own = (rustix::fs::major(device), rustix::fs::minor(device), file.ino());
    kind == Some("FLOCK") && place.and_then(parse) == Some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_tells_whether_the_lock_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(AGENT_LOCK_FILE);
        let held = AgentLock::acquire(dir.path()).unwrap().expect("free at first");
        assert!(is_listed(&path).unwrap());
        drop(held);
        assert!(!is_listed(&path).unwrap());
    }

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
