//! The spool's file: appended to, replaced as a whole, and synced every few seconds.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gk_model::id::InstanceId;
use gk_model::paths::SPOOL_FILE;

use crate::clock::Mark;
use crate::spool::{Spooled, Write};
use crate::state::SyncState;

/// How long what was appended may be without a sync: what a crash of the machine, not of the agent, may take away.
const SYNC_EVERY: Duration = Duration::from_secs(5);

/// How long a disk that refused is left alone: to ask costs writing everything anew, and it takes people to make room.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// The file in a state directory, for its owner only.
#[derive(Debug)]
pub(crate) struct SpoolFile {
    path: PathBuf,
    file: Option<File>,
    /// Since when something is not synced.
    unsynced_since: Option<Duration>,
    /// When the disk refused last, if something is missing since: what follows would have a gap before it.
    refused_at: Option<Duration>,
}

impl SpoolFile {
    /// Of this directory; nothing is opened yet.
    pub(crate) fn of(state_dir: &Path) -> SpoolFile {
        let path = state_dir.join(SPOOL_FILE);
        SpoolFile { path, file: None, unsynced_since: None, refused_at: None }
    }

    /// What is in it; none when there is no file.
    pub(crate) fn read(&self) -> io::Result<Option<Vec<u8>>> {
        match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some).map_err(|error| self.named(&error)),
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

    /// Does what the state wants written, and syncs what was appended, if it is time or has to be now. After a failure
    /// nothing is appended until the whole is written anew, which is tried every [`ASK_AGAIN_AFTER`].
    pub(crate) fn follow(
        &mut self,
        state: &mut SyncState,
        mark: impl FnOnce() -> Mark,
        elapsed: Duration,
        sync_now: bool,
    ) -> io::Result<()> {
        if self.refused_at.is_some_and(|at| at + ASK_AGAIN_AFTER <= elapsed) {
            state.is_spool_old = true;
        }
        let mut writes = state.take_writes(mark).into_iter();
        let done = writes.try_for_each(|write| self.write(write, elapsed));
        done.and_then(|()| self.sync(elapsed, sync_now)).map_err(|error| {
            self.refused_at = Some(elapsed);
            self.named(&error)
        })
    }

    /// Whether the disk refused something that is still missing.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused_at.is_some()
    }

    fn write(&mut self, write: Write, elapsed: Duration) -> io::Result<()> {
        match write {
            Write::Append(_) if self.is_refused() => return Ok(()),
            Write::Append(bytes) => return self.append(&bytes, elapsed),
            Write::Replace(bytes) => self.replace(&bytes)?,
            Write::Remove => self.remove()?,
        }
        self.refused_at = None;
        Ok(())
    }

    fn sync(&mut self, elapsed: Duration, now: bool) -> io::Result<()> {
        let is_due = self.unsynced_since.is_some_and(|since| now || since + SYNC_EVERY <= elapsed);
        match &self.file {
            Some(file) if is_due => {
                self.unsynced_since = None;
                file.sync_data()
            }
            _ => Ok(()),
        }
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
        // What lies there was left by a crash, or did not fit.
        let _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let written = file.write_all(bytes).and_then(|()| file.sync_data());
        if let Err(error) = written.and_then(|()| fs::rename(&temporary, &self.path)) {
            // A disk that is full is not to be filled with half a file.
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
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

    fn named(&self, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use gk_client::session::SavedSession;
    use gk_model::contact::Session;

    use super::*;
    use crate::samples::{at, habits, listener, snapshot};

    fn names(dir: &Path) -> Vec<String> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_disk_that_refused_is_asked_again_and_gets_what_is_missing() {
        let (dir, seconds) = (tempfile::tempdir().unwrap(), Duration::from_secs);
        let habits = habits(seconds(300));
        let instance = habits.instance;
        let mut state = SyncState::new(SavedSession { session: Session(4), opening: None }, false, habits);
        let mut file = SpoolFile::of(dir.path());
        let mut follow = |state: &mut SyncState, elapsed| {
            let mark = Mark { boot_id: None, at: at(0), wall: at(0), since_boot_micros: 0 };
            let followed = file.follow(state, || mark, seconds(elapsed), true);
            (followed.map_err(|error| error.to_string()), file.is_refused())
        };
        let sees = |state: &mut SyncState, ports: std::ops::Range<u16>| {
            state.observe(snapshot(ports.map(|port| listener(port, 1)), at(1)), at(1), seconds(1));
        };
        sees(&mut state, 80..81);
        // Not even root can put a file in its place.
        let obstacle = dir.path().join("spool");
        fs::create_dir(&obstacle).unwrap();
        state.begin_spool();
        let (refused, _) = follow(&mut state, 10);
        assert!(refused.as_ref().is_err_and(|text| text.contains("spool: ")), "{refused:?}");
        assert_eq!(names(dir.path()), ["spool"], "and what does not fit does not stay");
        sees(&mut state, 80..82);
        assert_eq!(
            follow(&mut state, 39),
            (Ok(()), true),
            "left alone: all of it is too much to try each time"
        );
        assert!(follow(&mut state, 40).0.is_err());
        fs::remove_dir(&obstacle).unwrap();
        sees(&mut state, 80..83);
        assert_eq!(follow(&mut state, 69), (Ok(()), true));
        assert_eq!(follow(&mut state, 70), (Ok(()), false));
        sees(&mut state, 80..84);
        assert_eq!(follow(&mut state, 71), (Ok(()), false));
        assert_eq!(names(dir.path()), ["spool"]);
        let spooled = file.load(instance).unwrap();
        assert_eq!((spooled.set.len(), spooled.torn_bytes), (4, 0));
    }
}
