//! Small files that survive a crash: written beside, synced, renamed into place, and the directory synced.
//!
//! A file that somebody else may have written is not believed: it says to which server secrets go. Who may have is told by
//! `trust`.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::trust;

/// Who may read a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readers {
    /// Everyone on this machine.
    Everyone,
    /// Its owner only.
    Owner,
}

/// Makes the directory and the one above, world-readable. One that exists keeps its mode: it may be somebody's home.
pub(crate) fn ensure_dir(dir: &Path) -> io::Result<()> {
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.map_or(Ok(()), make_readable).and_then(|()| make_readable(dir)).map_err(|error| at(dir, &error))
}

fn make_readable(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    // The umask may have taken bits away, and everyone on this machine is to find the identity.
    fs::set_permissions(dir, Permissions::from_mode(0o755))
}

/// Replaces a file as a whole, or leaves it as it was.
pub(crate) fn write(dir: &Path, name: &str, text: &str, readers: Readers) -> io::Result<()> {
    let path = dir.join(name);
    let temporary = dir.join(format!(".{name}.{}.tmp", std::process::id()));
    let written = write_new(&temporary, text, readers)
        .and_then(|()| fs::rename(&temporary, &path))
        .and_then(|()| File::open(dir)?.sync_all());
    written.map_err(|error| {
        let _ = fs::remove_file(&temporary);
        at(&path, &error)
    })
}

fn write_new(path: &Path, text: &str, readers: Readers) -> io::Result<()> {
    // What lies there was left by a crashed process of the same number.
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    if readers == Readers::Everyone {
        file.set_permissions(Permissions::from_mode(0o644))?;
    }
    file.sync_all()
}

/// Tries whether files can be made in the directory.
pub(crate) fn probe(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!(".probe.{}.tmp", std::process::id()));
    write_new(&path, "", Readers::Owner)
        .and_then(|()| fs::remove_file(&path))
        .map_err(|error| at(dir, &error))
}

/// Removes a file if it is there.
pub(crate) fn remove(dir: &Path, name: &str) -> io::Result<()> {
    let path = dir.join(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&path, &error)),
        _ => Ok(()),
    }
}

/// The text of a file; none when there is no such file.
pub(crate) fn read(dir: &Path, name: &str) -> io::Result<Option<String>> {
    let path = dir.join(name);
    match read_trusted(dir, &path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(at(&path, &error)),
    }
}

fn read_trusted(dir: &Path, path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    trust::check_read(dir, &file.metadata()?)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// The same error, naming the file.
pub(crate) fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The error for a file whose contents are not what they should be.
pub(crate) fn malformed(dir: &Path, name: &str, why: &dyn std::fmt::Display) -> io::Error {
    let path = dir.join(name);
    let message = format!(
        "{} is damaged ({why}): remove it, and take the identity of this machine back with `gkctl instance join \
         --replace NAME`",
        path.display()
    );
    io::Error::new(io::ErrorKind::InvalidData, message)
}
