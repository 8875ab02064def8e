//! The spool's file: appended to, replaced as a whole, and synced every few seconds.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gk_model::id::InstanceId;
use gk_model::paths::SPOOL_FILE;

use crate::spool::{Spooled, Write};

/// How long what was appended may be without a sync: what a crash of the machine, not of the agent, may take away.
const SYNC_EVERY: Duration = Duration::from_secs(5);

/// The file in a state directory, for its owner only.
#[derive(Debug)]
pub(crate) struct SpoolFile {
    path: PathBuf,
    file: Option<File>,
    /// Since when something is not synced.
    unsynced_since: Option<Duration>,
    /// Whether the disk refused the last write: then what follows would have a gap before it.
    is_broken: bool,
}

impl SpoolFile {
    /// Of this directory; nothing is opened yet.
    pub(crate) fn of(state_dir: &Path) -> SpoolFile {
        let path = state_dir.join(SPOOL_FILE);
        SpoolFile { path, file: None, unsynced_since: None, is_broken: false }
    }

    /// What is in it; none when there is no file.
    pub(crate) fn read(&self) -> io::Result<Option<Vec<u8>>> {
        match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some).map_err(|error| named(&self.path, &error)),
        }
    }

    /// What an earlier run of this instance spooled. What cannot be read is told by its result.
    pub(crate) fn load(&self, instance: InstanceId) -> Option<Spooled> {
        let bytes = match self.read() {
            Ok(bytes) => bytes?,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the spool is not read");
                return None;
            }
        };
        let spooled = Spooled::read(&bytes).filter(|spooled| spooled.instance == instance);
        let whole = spooled.as_ref().map_or(0, |spooled| bytes.len() - spooled.torn_bytes);
        if whole < bytes.len() {
            tracing::warn!(
                bytes.count = bytes.len() - whole,
                "the spool ends in what is no record of this instance"
            );
        }
        spooled
    }

    /// Does what is to be done. After a failure nothing is appended until the whole is written anew.
    pub(crate) fn write(&mut self, writes: Vec<Write>, elapsed: Duration) -> io::Result<()> {
        for write in writes {
            let done = match write {
                Write::Append(_) if self.is_broken => continue,
                Write::Append(bytes) => self.append(&bytes, elapsed),
                Write::Replace(bytes) => self.replace(&bytes),
                Write::Remove => self.remove(),
            };
            self.is_broken = done.is_err();
            done.map_err(|error| named(&self.path, &error))?;
        }
        Ok(())
    }

    /// Syncs what was appended, if it is time or has to be now.
    pub(crate) fn sync(&mut self, elapsed: Duration, now: bool) -> io::Result<()> {
        let is_due = self.unsynced_since.is_some_and(|since| now || since + SYNC_EVERY <= elapsed);
        if let (true, Some(file)) = (is_due, &self.file) {
            self.unsynced_since = None;
            file.sync_data().map_err(|error| named(&self.path, &error))?;
        }
        Ok(())
    }

    fn append(&mut self, bytes: &[u8], elapsed: Duration) -> io::Result<()> {
        self.unsynced_since.get_or_insert(elapsed);
        match &mut self.file {
            Some(file) => file.write_all(bytes),
            None => Err(io::Error::other("it has no base")),
        }
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.path.with_extension("tmp");
        // What lies there was left by a crash.
        let _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&temporary, &self.path)?;
        (self.file, self.unsynced_since) = (Some(file), None);
        self.path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    }

    fn remove(&mut self) -> io::Result<()> {
        (self.file, self.unsynced_since) = (None, None);
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
