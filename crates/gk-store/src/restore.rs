//! Restoring: a backup becomes the database of a new data directory.
//!
//! The backup is read whole and checked before anything is touched, and it is never changed: one of an older schema
//! version is migrated on a copy. Everything arrives in one transaction, so a restore that is killed leaves an empty
//! database, into which it can be done again. The event log gets a new id, because numbers that were given after the
//! backup will be given again.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use gk_model::time::Timestamp;

use crate::StoreConfig;
use crate::backup::{BackupError, open_backup, remove_database};
use crate::copy::{self, Copied, Progress};
use crate::directory::{DirectoryLock, OpenError};
use crate::driver::{Access, Connection, Location};
use crate::error::StoreError;
use crate::log::renew_log;
use crate::migrate::{self, STEPS};
use crate::schema;

/// Copies a backup into an empty database that no server uses. Blocks.
///
/// # Errors
/// [`BackupError`]; nothing was restored then.
pub fn restore(
    config: &StoreConfig,
    file: &Path,
    now: Timestamp,
    progress: Progress<'_>,
) -> Result<Copied, BackupError> {
    // While it is only looked at, nothing counts as done.
    let (mut from, version) = open_backup(file, &mut |_| progress(0))?;
    let _lock = DirectoryLock::acquire(&config.directory)?;
    let mut target = Target::open(config)?;
    let before =
        migrate::find_known_version(&mut target.connection).map_err(|source| target.about(source))?;
    // Before the migration already: a database that is refused is not changed.
    target.check_is_empty(before)?;
    migrate::migrate(&mut target.connection, now).map_err(|source| target.about(source))?;
    let newest = STEPS.len() as u64;
    let migrated = if version < newest { Some(Migrated::copy(file, &config.directory, now)?) } else { None };
    if let Some(migrated) = &migrated {
        from = migrated.open()?;
    }
    target.take_turn().map_err(|source| target.about(source))?;
    target.check_is_empty(newest)?;
    let copied = fill(&mut from, &mut target.connection, now, progress);
    let copied = copied.map_err(|source| target.about(source))?;
    target.connection.commit().map_err(|source| target.about(source))?;
    Ok(copied)
}

/// The database that is to be filled.
struct Target {
    connection: Connection,
    place: String,
}

impl Target {
    fn open(config: &StoreConfig) -> Result<Target, OpenError> {
        let location = Location::of(config);
        let place = location.to_string();
        let opened = Connection::open(&location, Access::Write).and_then(|mut connection| {
            connection.take_all_time()?;
            Ok(connection)
        });
        match opened {
            Ok(connection) => Ok(Target { connection, place }),
            Err(source) => Err(OpenError::Database { place, source }),
        }
    }

    fn about(&self, source: StoreError) -> BackupError {
        OpenError::Database { place: self.place.clone(), source }.into()
    }

    /// The writer's lock: from here on nobody else changes anything.
    fn take_turn(&mut self) -> Result<(), StoreError> {
        self.connection.begin(Access::Write)?;
        self.connection.query("update event_seq set seq = seq where id = 0 returning seq", &[]).map(drop)
    }

    /// Whether a database of this version is as the migrations left it; that it was served once is no harm.
    fn check_is_empty(&mut self, version: u64) -> Result<(), BackupError> {
        for table in schema::list_tables(version).map_err(|source| self.about(source))? {
            let sql = match table.name.as_str() {
                "log" => continue,
                "event_seq" => "select 1 from event_seq where seq > 0".to_owned(),
                _ if !table.begins_empty => continue,
                name => format!("select 1 from {name} limit 1"),
            };
            let found = self.connection.query(&sql, &[]).map_err(|source| self.about(source))?;
            if !found.is_empty() {
                return Err(BackupError::NotEmpty { place: self.place.clone(), table: table.name });
            }
        }
        Ok(())
    }
}

fn fill(
    from: &mut Connection,
    to: &mut Connection,
    now: Timestamp,
    progress: Progress<'_>,
) -> Result<Copied, StoreError> {
    let mut tables = schema::list_tables(STEPS.len() as u64)?;
    tables.retain(|table| table.name != "log");
    let (copied, _) = copy::copy(from, to, &tables, progress)?;
    renew_log(to, now)?;
    Ok(copied)
}

/// A copy of an older backup, brought to the newest version; gone when this is.
struct Migrated(PathBuf);

impl Migrated {
    /// In the data directory, which is private and has room for the same again.
    fn copy(file: &Path, directory: &Path, now: Timestamp) -> Result<Migrated, BackupError> {
        let path = directory.join("restore.partial");
        remove_database(&path);
        let migrated = Migrated(path);
        let copied = std::fs::copy(file, &migrated.0)
            .and_then(|_| std::fs::set_permissions(&migrated.0, Permissions::from_mode(0o600)));
        copied.map_err(|source| BackupError::File { path: migrated.0.clone(), source })?;
        let done = Connection::open(&Location::of_file(&migrated.0), Access::Write)
            .and_then(|mut connection| migrate::migrate(&mut connection, now));
        done.map_err(|source| BackupError::Backup { path: file.to_owned(), source })?;
        Ok(migrated)
    }

    fn open(&self) -> Result<Connection, BackupError> {
        Connection::open(&Location::of_file(&self.0), Access::Read)
            .map_err(|source| BackupError::Backup { path: self.0.clone(), source })
    }
}

impl Drop for Migrated {
    fn drop(&mut self) {
        remove_database(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use tempfile::TempDir;

    use super::*;
    use crate::samples::{at, damage, filled};
    use crate::value::Value;
    use crate::{Store, backup, verify};

    fn quiet() -> impl FnMut(u64) {
        |_| {}
    }

    /// Every row of every table but the log's id, and the number of tables.
    fn rows(directory: &Path) -> (usize, Vec<Vec<Value>>) {
        let mut connection =
            Connection::open(&Location::of(&StoreConfig::embedded(directory)), Access::Read).unwrap();
        let mut tables = schema::list_tables(STEPS.len() as u64).unwrap();
        let mut names = connection.list_tables().unwrap();
        names.sort();
        names.retain(|name| name != "migration");
        assert!(tables.iter().map(|table| &table.name).eq(&names), "a table would not be copied: {names:?}");
        tables.retain(|table| table.name != "log");
        let mut found = Vec::new();
        let each = |_: &schema::Table, row: &[Value]| {
            found.push(row.to_vec());
            Ok(())
        };
        copy::walk(&mut connection, &tables, &mut quiet(), each).unwrap();
        (tables.len(), found)
    }

    fn backed_up(directory: &Path) -> (TempDir, PathBuf) {
        let place = TempDir::new().unwrap();
        let file = place.path().join("backup");
        backup(&StoreConfig::embedded(directory), &file, at(100), &mut quiet()).unwrap();
        (place, file)
    }

    fn refused(directory: &Path, file: &Path) -> String {
        let before = std::fs::read(file).ok();
        let error = restore(&StoreConfig::embedded(directory), file, at(200), &mut quiet()).unwrap_err();
        assert!(std::fs::read(file).ok() == before, "the backup was touched");
        error.to_string()
    }

    #[test]
    fn every_row_of_every_table_comes_back() {
        let source = filled();
        let (place, file) = backed_up(source.path());
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1, "and nothing beside it");
        let target = place.path().join("data");
        let copied = restore(&StoreConfig::embedded(&target), &file, at(200), &mut quiet()).unwrap();
        assert_eq!((copied.instances, copied.reservations), (2, 4));
        assert_eq!(rows(source.path()), rows(&target));
        assert!(rows(&target).1.len() as u64 == copied.rows && copied.events > 10, "{copied:?}");
        assert_eq!(
            verify(&StoreConfig::embedded(&target), at(200), &mut |_| {}).unwrap().problems(),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_backup_of_an_older_version_is_migrated_on_a_copy() {
        let source = old();
        let (place, file) = backed_up(source.path());
        let (_, version) = open_backup(&file, &mut quiet()).unwrap();
        assert_eq!(version, 1);
        let (before, target) = (std::fs::read(&file).unwrap(), place.path().join("data"));
        restore(&StoreConfig::embedded(&target), &file, at(200), &mut quiet()).unwrap();
        assert!(std::fs::read(&file).unwrap() == before, "the backup was touched");
        assert!(rows(&target).1.iter().any(|row| row.contains(&Value::from("hash"))));
        let left = std::fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("partial")).collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn what_is_no_whole_backup_is_refused_before_anything_happens() {
        let source = filled();
        let (place, file) = backed_up(source.path());
        let target = place.path().join("data");
        let bytes = std::fs::read(&file).unwrap();
        let other = place.path().join("other");
        let refuse = |bytes: &[u8]| {
            std::fs::write(&other, bytes).unwrap();
            refused(&target, &other)
        };
        let half = refuse(&bytes[..bytes.len() / 2]);
        assert!(half.contains("is damaged"), "{half}");
        let word = b"tcp reserved by";
        let place_of_word = bytes.windows(word.len()).position(|window| window == word).unwrap();
        let mut flipped = bytes.clone();
        flipped[place_of_word] ^= 1;
        assert!(refuse(&flipped).contains("is damaged (its rows are not those that were written)"));
        assert!(refuse(b"dear diary").contains("is no backup made by"));
        assert!(refuse(b"").contains("is no backup made by"));
        assert!(
            refuse(&std::fs::read(source.path().join("gatekeeper.db")).unwrap()).contains("is no backup")
        );
        assert!(refused(&target, &place.path().join("missing")).contains("cannot use"));
        std::fs::copy(&file, place.path().join("gatekeeper.db")).unwrap();
        damage(place.path(), "insert into migration values (99, 0)");
        let newer = restore(
            &StoreConfig::embedded(&target),
            &place.path().join("gatekeeper.db"),
            at(200),
            &mut quiet(),
        )
        .unwrap_err();
        let why = std::error::Error::source(&newer).unwrap().to_string();
        assert!(why.contains("schema version 99"), "{why}");
        assert!(!target.exists(), "nothing was begun");
    }

    #[test]
    fn a_target_that_holds_anything_is_refused_untouched() {
        let source = filled();
        let (place, file) = backed_up(source.path());
        let before = rows(source.path());
        let why = refused(source.path(), &file);
        assert!(why.contains("is not empty (it has rows in claim)"), "{why}");
        assert_eq!(rows(source.path()), before);
        // One that was only served, without anybody coming, is as good as new.
        let target = place.path().join("data");
        let store = Store::open_here(&StoreConfig::embedded(&target), at(0)).unwrap();
        assert!(refused(&target, &file).contains("another server is using the data directory"));
        store.close();
        drop(store);
        restore(&StoreConfig::embedded(&target), &file, at(200), &mut quiet()).unwrap();
        assert_eq!(rows(&target), before);
        assert!(refused(&target, &file).contains("is not empty"));
    }

    /// A database of the first version, with a token in it.
    fn old() -> TempDir {
        let directory = TempDir::new().unwrap();
        let mut old =
            Connection::open(&Location::of(&StoreConfig::embedded(directory.path())), Access::Write).unwrap();
        old.begin(Access::Write).unwrap();
        migrate::create(&mut old, 1, at(0)).unwrap();
        old.script("insert into token values ('hash', 'gkt_', 'ada', 'admin', 7, null, null)").unwrap();
        old.commit().unwrap();
        directory
    }

    #[test]
    fn an_older_target_that_holds_anything_is_not_even_migrated() {
        let (target, source) = (old(), filled());
        let (_place, file) = backed_up(source.path());
        assert!(refused(target.path(), &file).contains("is not empty (it has rows in token)"));
        let mut connection =
            Connection::open(&Location::of(&StoreConfig::embedded(target.path())), Access::Read).unwrap();
        assert_eq!(migrate::find_known_version(&mut connection).unwrap(), 1);
    }

    #[test]
    fn a_restore_that_ends_half_way_can_be_done_again() {
        let source = filled();
        let (place, file) = backed_up(source.path());
        let target = place.path().join("data");
        let half_way = || {
            restore(&StoreConfig::embedded(&target), &file, at(200), &mut |rows| {
                assert!(rows < 20, "killed");
            })
            .unwrap();
        };
        assert!(catch_unwind(AssertUnwindSafe(half_way)).is_err());
        assert_eq!(
            verify(&StoreConfig::embedded(&target), at(200), &mut |_| {}).unwrap().checks[4].looked_at,
            0,
            "no event is there"
        );
        restore(&StoreConfig::embedded(&target), &file, at(200), &mut quiet()).unwrap();
        assert_eq!(rows(&target), rows(source.path()));
    }

    #[test]
    fn a_restored_log_is_another_log() {
        let source = filled();
        let (place, file) = backed_up(source.path());
        let target = place.path().join("data");
        let log = |directory: &Path| {
            let store = Store::open_here(&StoreConfig::embedded(directory), at(300)).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let log = runtime.block_on(store.log()).unwrap();
            store.close();
            log
        };
        let of_an_empty_log = log(&target);
        restore(&StoreConfig::embedded(&target), &file, at(200), &mut quiet()).unwrap();
        let (before, after) = (log(source.path()), log(&target));
        assert_ne!(before.log_id, after.log_id);
        assert_ne!(of_an_empty_log.log_id, after.log_id);
        assert_eq!((before.oldest_seq, before.newest_seq), (after.oldest_seq, after.newest_seq));
        assert_eq!(log(&target), after, "and stays it");
    }

    #[test]
    fn a_backup_never_overwrites() {
        let source = filled();
        let (_place, file) = backed_up(source.path());
        let before = std::fs::read(&file).unwrap();
        let at_the_end = &mut |_| panic!("the file was looked at too late");
        let again = backup(&StoreConfig::embedded(source.path()), &file, at(101), at_the_end).unwrap_err();
        assert!(matches!(again, BackupError::FileExists(_)), "{again}");
        assert!(std::fs::read(&file).unwrap() == before);
        // Somebody else was faster while it was written.
        let other = file.with_file_name("other");
        let raced = backup(&StoreConfig::embedded(source.path()), &other, at(101), &mut |_| {
            std::fs::write(&other, "mine").unwrap();
        });
        assert!(matches!(raced, Err(BackupError::FileExists(_))), "{raced:?}");
        assert_eq!(std::fs::read(&other).unwrap(), b"mine");
        let nowhere = backup(
            &StoreConfig::embedded(file.parent().unwrap()),
            &file.with_file_name("x"),
            at(101),
            &mut quiet(),
        );
        assert!(nowhere.unwrap_err().to_string().contains("there is no Gatekeeper database at"));
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 2, "nothing half is left");
    }
}
