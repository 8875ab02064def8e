//! Who may have written a file of the state directory, and who may read it.
//!
//! Reading: the file is by root, by this account, or by whoever owns the directory, and nobody else may write to it. So a
//! system's agent may have an account of its own, and a directory that everybody may write to, such as `/tmp`, makes
//! nobody's file believed. Keeping: the directory is this account's own and nobody else may write to it; private
//! files that others can read are closed to them; a link is refused, since it may lead anywhere.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use gk_model::paths::{
    AGENT_LOCK_FILE, CREDENTIAL_FILE, ENGINES_FILE, IDENTITY_FILE, PENDING_CREDENTIAL_FILE, PROTECTION_FILE,
    SESSION_FILE, SPOOL_FILE,
};

use crate::files::at;

/// For everybody to read.
const PUBLIC: [&str; 1] = [IDENTITY_FILE];

/// For their owner only.
const PRIVATE: [&str; 7] = [
    CREDENTIAL_FILE,
    PENDING_CREDENTIAL_FILE,
    SESSION_FILE,
    PROTECTION_FILE,
    ENGINES_FILE,
    SPOOL_FILE,
    AGENT_LOCK_FILE,
];

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whether this file, open already, may be believed.
pub(crate) fn check_read(dir: &Path, file: &Metadata) -> io::Result<()> {
    let is_by = |owner: u32| file.uid() == owner;
    if !is_by(0) && !is_by(own_uid()) && !is_by(fs::metadata(dir)?.uid()) {
        return Err(distrust(format!("it belongs to uid {}, who is a stranger here: remove it", file.uid())));
    }
    refuse_writable(file)
}

/// Makes sure that nobody else writes to the directory, or reads its private files. Answers which ones others could read.
pub(crate) fn close_to_others(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let metadata = fs::metadata(dir).map_err(|error| at(dir, &error))?;
    refuse_foreign(&metadata).and_then(|()| refuse_writable(&metadata)).map_err(|error| at(dir, &error))?;
    let mut closed = Vec::new();
    for name in PRIVATE.into_iter().chain(PUBLIC) {
        let path = dir.join(name);
        let is_private = PRIVATE.contains(&name);
        if close(&path, is_private).map_err(|error| at(&path, &error))? {
            closed.push(path);
        }
    }
    Ok(closed)
}

/// Whether others could read the file until now. Nobody exchanges it meanwhile: the directory is ours.
fn close(path: &Path, is_private: bool) -> io::Result<bool> {
    let metadata = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        found => found?,
    };
    if !metadata.is_file() {
        return Err(distrust("it is a link or no plain file: put the file itself there".to_owned()));
    }
    refuse_foreign(&metadata)?;
    refuse_writable(&metadata)?;
    if !is_private || metadata.mode() & 0o077 == 0 {
        return Ok(false);
    }
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(true)
}

fn refuse_foreign(metadata: &Metadata) -> io::Result<()> {
    let (owner, own) = (metadata.uid(), own_uid());
    match owner == own {
        true => Ok(()),
        false => Err(distrust(format!(
            "it belongs to uid {owner}, and this is uid {own}: run it as that account, or chown -R {own} the directory"
        ))),
    }
}

fn refuse_writable(metadata: &Metadata) -> io::Result<()> {
    match metadata.mode() & 0o022 {
        0 => Ok(()),
        _ => Err(distrust("others may write to it: if nobody has, run chmod go-w on it".to_owned())),
    }
}

/// Not `PermissionDenied`, which means that there is a file that is no business of this account's.
fn distrust(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::files;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn told<T: std::fmt::Debug>(result: io::Result<T>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn a_file_that_others_may_write_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(IDENTITY_FILE);
        fs::write(&file, "{}").unwrap();
        set_mode(&file, 0o644);
        assert_eq!(files::read(dir.path(), IDENTITY_FILE).unwrap().as_deref(), Some("{}"));
        for mode in [0o664, 0o646] {
            set_mode(&file, mode);
            let told = told(files::read(dir.path(), IDENTITY_FILE));
            assert!(told.contains("instance.json") && told.contains("chmod go-w"), "{told}");
        }
    }

    #[test]
    fn a_strangers_file_is_not_believed_and_the_directorys_owner_is_no_stranger() {
        if own_uid() != 0 {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(IDENTITY_FILE);
        fs::write(&file, "{}").unwrap();
        std::os::unix::fs::chown(&file, Some(12_345), None).unwrap();
        assert!(told(files::read(dir.path(), IDENTITY_FILE)).contains("uid 12345"));
        std::os::unix::fs::chown(dir.path(), Some(12_345), None).unwrap();
        assert!(files::read(dir.path(), IDENTITY_FILE).unwrap().is_some());
        assert!(told(close_to_others(dir.path())).contains("run it as that account"));
    }

    #[test]
    fn private_files_are_closed_and_public_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        set_mode(dir.path(), 0o755);
        let path = |name: &str| dir.path().join(name);
        for name in PRIVATE.into_iter().chain(PUBLIC) {
            fs::write(path(name), "").unwrap();
            set_mode(&path(name), 0o644);
        }
        let closed = close_to_others(dir.path()).unwrap();
        assert_eq!(closed, PRIVATE.map(path));
        let mode = |name: &str| fs::metadata(path(name)).unwrap().mode() & 0o777;
        assert!(
            PRIVATE.iter().all(|name| mode(name) == 0o600) && PUBLIC.iter().all(|name| mode(name) == 0o644)
        );
        assert!(close_to_others(dir.path()).unwrap().is_empty());
        fs::remove_file(path(SPOOL_FILE)).unwrap();
        symlink("/etc/passwd", path(SPOOL_FILE)).unwrap();
        assert!(told(close_to_others(dir.path())).contains("spool: it is a link"));
        fs::remove_file(path(SPOOL_FILE)).unwrap();
        set_mode(dir.path(), 0o777);
        assert!(told(close_to_others(dir.path())).contains("chmod go-w"));
    }
}
