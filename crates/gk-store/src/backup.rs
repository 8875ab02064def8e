//! Backups: a database as one file, made while the server runs.
//!
//! The file is an SQLite database in our own schema, of the schema version that the source has, whichever database the
//! source is. It is copied row by row from one read transaction, so it shows one moment. It appears under its name only
//! when it is whole and synced; nothing is ever overwritten. It holds what the database holds, hashes of secrets
//! included, and is its owner's alone (0600). Copying the database file instead would work for one of two databases,
//! and would also copy the damage in its pages.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use gk_model::time::Timestamp;

use crate::StoreConfig;
use crate::copy::{self, Copied, Progress, Sum};
use crate::directory::OpenError;
use crate::driver::{Access, Connection, Location};
use crate::error::StoreError;
use crate::migrate;
use crate::schema;
use crate::value::values;

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A backup never overwrites.
    #[error("{} exists: name a file that does not, or move this one away", .0.display())]
    FileExists(PathBuf),
    /// The backup file cannot be read, or not be written.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Writing the backup failed, or reading a whole one did.
    #[error("cannot use the backup {}", path.display())]
    Backup {
        /// The file.
        path: PathBuf,
        /// Why.
        source: StoreError,
    },
    /// The file is something else.
    #[error("{} is no backup made by `gatekeeper backup`", .0.display())]
    NotABackup(PathBuf),
    /// The file is not what was written.
    #[error("the backup {} is damaged ({why}): use another one; nothing was restored", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// A restore never overwrites.
    #[error(
        "the database {place} is not empty (it has rows in {table}): restore into a new directory with --data, or \
         into an empty database"
    )]
    NotEmpty {
        /// The file, or the address without its password.
        place: String,
        /// A table that is not empty.
        table: String,
    },
    /// The database cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// The table that makes a database a backup, written last.
const MARK: &str = "create table backup (id bigint not null primary key, made_at bigint not null, \
                    rows bigint not null, sum text not null)";

/// Copies a database, served or not, into a new file. Blocks.
///
/// # Errors
/// [`BackupError`]; there is no file then.
pub fn backup(
    config: &StoreConfig,
    file: &Path,
    now: Timestamp,
    progress: Progress<'_>,
) -> Result<Copied, BackupError> {
    let (mut from, version) = open_existing(config)?;
    if file.symlink_metadata().is_ok() {
        return Err(BackupError::FileExists(file.to_owned()));
    }
    let partial = Partial::beside(file)?;
    let copied = write(&mut from, version, &partial.0, now, progress);
    let copied = copied.map_err(|source| BackupError::Backup { path: file.to_owned(), source })?;
    partial.publish(file)?;
    Ok(copied)
}

/// A consistent view of a database, with its schema version; it is not changed in any way.
pub(crate) fn open_existing(config: &StoreConfig) -> Result<(Connection, u64), OpenError> {
    let location = Location::of(config);
    let place = location.to_string();
    if location.is_missing() {
        return Err(OpenError::NoDatabase(place));
    }
    let opened = Connection::open(&location, Access::Read).and_then(|mut connection| {
        connection.take_all_time()?;
        connection.begin(Access::Read)?;
        let version = migrate::find_known_version(&mut connection)?;
        Ok((connection, version))
    });
    match opened {
        Ok((_, 0)) => Err(OpenError::NoDatabase(place)),
        Ok(opened) => Ok(opened),
        Err(source) => Err(OpenError::Database { place, source }),
    }
}

fn write(
    from: &mut Connection,
    version: u64,
    file: &Path,
    now: Timestamp,
    progress: Progress<'_>,
) -> Result<Copied, StoreError> {
    let mut to = Connection::open(&Location::of_file(file), Access::Write)?;
    to.write_at_once()?;
    to.begin(Access::Write)?;
    migrate::create(&mut to, version, now)?;
    let (copied, sum) = copy::copy(from, &mut to, &schema::list_tables(version)?, progress)?;
    to.script(MARK)?;
    to.later(
        "insert into backup (id, made_at, rows, sum) values (0, $1, $2, $3)",
        values![now, copied.rows, sum.to_string()],
    )?;
    to.commit()?;
    Ok(copied)
}

/// A file that is not yet what it is going to be; gone again unless it is published.
struct Partial(PathBuf);

impl Partial {
    fn beside(file: &Path) -> Result<Partial, BackupError> {
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.partial", std::process::id()));
        let path = file.with_file_name(name);
        // A leftover of a killed process that had our number. Whether the place can be written shows at once. The file stays:
        // where others may write too, as in /tmp, one of theirs might take its place, and everything would go into that.
        let about = |source| BackupError::File { path: file.to_owned(), source };
        remove(&path).map_err(about)?;
        File::options().write(true).create_new(true).mode(0o600).open(&path).map_err(about)?;
        Ok(Partial(path))
    }

    /// Syncs it, and gives it its name unless something else has it by now.
    fn publish(self, file: &Path) -> Result<(), BackupError> {
        let publish = || {
            File::open(&self.0)?.sync_all()?;
            // Unlike a rename, a link never replaces what is there; some file systems have none.
            match std::fs::hard_link(&self.0, file) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
                Err(_) if file.symlink_metadata().is_err() => std::fs::rename(&self.0, file)?,
                linked => linked?,
            }
            let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
        };
        publish().map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => BackupError::FileExists(file.to_owned()),
            _ => BackupError::File { path: file.to_owned(), source },
        })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        remove_database(&self.0);
    }
}

/// Removes an SQLite file and what SQLite keeps beside it, as far as it is there.
pub(crate) fn remove_database(path: &Path) {
    for suffix in ["", "-journal", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        if let Err(error) = remove(Path::new(&name)) {
            tracing::warn!(%error, file = %Path::new(&name).display(), "a temporary file was not removed");
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Opens a backup and reads all of it once: it is ours, of a version that we know, and what was written.
pub(crate) fn open_backup(file: &Path, progress: Progress<'_>) -> Result<(Connection, u64), BackupError> {
    let path = || file.to_owned();
    File::open(file).map_err(|source| BackupError::File { path: path(), source })?;
    let damaged = |why: String| BackupError::Damaged { path: path(), why };
    let opened = Connection::open(&Location::of_file(file), Access::Read).and_then(|mut connection| {
        connection.begin(Access::Read)?;
        let tables = connection.list_tables()?;
        Ok((connection, tables))
    });
    let mut connection = match opened {
        Ok((connection, tables)) if tables.iter().any(|table| table == "backup") => connection,
        Ok(_) | Err(StoreError::NotOurs(_)) => return Err(BackupError::NotABackup(path())),
        Err(StoreError::Corrupt(why)) => return Err(damaged(why)),
        Err(source) => return Err(BackupError::Backup { path: path(), source }),
    };
    let version = migrate::find_known_version(&mut connection).map_err(|source| match source {
        StoreError::Newer { .. } => BackupError::Backup { path: path(), source },
        other => damaged(other.to_string()),
    })?;
    let read = read_all(&mut connection, version, progress).map_err(|error| damaged(error.to_string()))?;
    match read {
        (promised, found) if promised == found.to_string() => Ok((connection, version)),
        _ => Err(damaged("its rows are not those that were written".to_owned())),
    }
}

/// The sum that a backup says it has, and the one it has.
fn read_all(
    connection: &mut Connection,
    version: u64,
    progress: Progress<'_>,
) -> Result<(String, Sum), StoreError> {
    let mark = connection.query("select sum from backup where id = 0", &[])?.first();
    let promised = mark.map_or_else(|| Ok(String::new()), |mut row| row.take())?;
    let (_, sum) = copy::walk(connection, &schema::list_tables(version)?, progress, |_, _| Ok(()))?;
    Ok((promised, sum))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_place_is_taken_before_anything_is_written_there() {
        let place = tempfile::tempdir().unwrap();
        let partial = Partial::beside(&place.path().join("backup")).unwrap();
        assert_eq!(std::fs::metadata(&partial.0).unwrap().mode() & 0o777, 0o600);
        assert!(File::create_new(&partial.0).is_err(), "nobody else can take it any more");
    }
}
