//! SQLite: one file in the data directory, a write-ahead log beside it, every commit synced.

use std::path::Path;
use std::time::Duration;

use rusqlite::ffi::SQLITE_IOERR_SHMSIZE;
use rusqlite::types::{Null, ValueRef};
use rusqlite::{ErrorCode, OpenFlags};

use crate::driver::Access;
use crate::error::StoreError;
use crate::rows::{Cell, Rows};
use crate::value::Value;

/// How long a statement waits for another process (a backup, say) to let go of the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection to a database file.
pub(super) struct Sqlite(rusqlite::Connection);

impl Sqlite {
    pub(super) fn open(path: &Path, access: Access) -> Result<Sqlite, StoreError> {
        open(path, access).map(Sqlite).map_err(|error| failure(&error))
    }

    pub(super) fn in_memory() -> Result<Sqlite, StoreError> {
        rusqlite::Connection::open_in_memory().map(Sqlite).map_err(|error| failure(&error))
    }

    /// A transaction that may write takes the database's write lock at once, never half-way through.
    pub(super) fn begin(&mut self, access: Access) -> Result<(), StoreError> {
        self.query(if access == Access::Write { "begin immediate" } else { "begin" }, &[]).map(drop)
    }

    /// Most failures here may have come after the data reached the disk; a full disk is found before the record that
    /// makes the transaction count.
    pub(super) fn commit(&mut self) -> Result<(), StoreError> {
        self.query("commit", &[]).map(drop).map_err(|error| match error {
            StoreError::DiskFull => StoreError::DiskFull,
            other => StoreError::Unknown(other.to_string()),
        })
    }

    /// SQLite has already rolled back by itself after some failures, such as a full disk.
    pub(super) fn rollback(&mut self) -> Result<(), StoreError> {
        if self.0.is_autocommit() { Ok(()) } else { self.query("rollback", &[]).map(drop) }
    }

    pub(super) fn query(&mut self, sql: &str, values: &[Value]) -> Result<Rows, StoreError> {
        query(&self.0, sql, values).map_err(|error| failure(&error))
    }

    pub(super) fn script(&mut self, sql: &str) -> Result<(), StoreError> {
        // Only this spelling makes a key the number of the row itself, where others get an index beside the table.
        let sql = sql.replace("bigint not null primary key", "integer not null primary key");
        self.0.execute_batch(&sql).map_err(|error| failure(&error))
    }

    pub(super) fn adopt(&mut self) -> Result<(), StoreError> {
        if self.0.is_readonly("main").map_err(|error| failure(&error))? {
            return Err(StoreError::ReadOnly("this account may not write to the database file"));
        }
        let answer = self.query("pragma journal_mode = wal", &[])?.first();
        match answer.map(|mut row| row.take::<String>()).transpose()?.as_deref() {
            Some("wal") => Ok(()),
            _ => Err(StoreError::ReadOnly("its file system does not support a write-ahead log")),
        }
    }

    pub(super) fn write_at_once(&mut self) -> Result<(), StoreError> {
        self.script("pragma journal_mode = off; pragma synchronous = off; pragma cache_size = -131072;")
    }

    pub(super) fn list_damage(&mut self, most: usize) -> Result<Vec<String>, StoreError> {
        let rows = self.query(&format!("pragma integrity_check({most})"), &[])?;
        let lines = rows.into_iter().map(|mut row| row.take()).collect::<Result<Vec<String>, _>>()?;
        Ok(lines.into_iter().filter(|line| line != "ok").collect())
    }

    pub(super) fn list_tables(&mut self) -> Result<Vec<String>, StoreError> {
        let sql =
            "select name from sqlite_schema where type = 'table' and name not like 'sqlite~_%' escape '~'";
        self.query(sql, &[])?.into_iter().map(|mut row| row.take()).collect()
    }
}

fn open(path: &Path, access: Access) -> rusqlite::Result<rusqlite::Connection> {
    if access == Access::Write {
        create_private(path)?;
    }
    let mode = match access {
        Access::Read => OpenFlags::SQLITE_OPEN_READ_ONLY,
        Access::Write => OpenFlags::SQLITE_OPEN_READ_WRITE,
    };
    let connection = rusqlite::Connection::open_with_flags(path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(128);
    // FULL: the write-ahead log is synced at every commit. With NORMAL a power cut takes back what was acknowledged.
    // A checkpoint at 64 MiB instead of 4: each costs two syncs, and copies the same busy pages again.
    connection.execute_batch(
        "pragma synchronous = full; pragma cache_size = -32768; pragma temp_store = memory; \
         pragma wal_autocheckpoint = 16000;",
    )?;
    Ok(connection)
}

/// Makes an empty database file that only its owner may read; SQLite gives the files beside it the same mode.
fn create_private(path: &Path) -> rusqlite::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let created = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path);
    match created {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
            Err(rusqlite::Error::SqliteFailure(
                code,
                Some(format!("cannot create {}: {error}", path.display())),
            ))
        }
        _ => Ok(()),
    }
}

fn query(connection: &rusqlite::Connection, sql: &str, values: &[Value]) -> rusqlite::Result<Rows> {
    let mut statement = connection.prepare_cached(sql)?;
    for (index, value) in values.iter().enumerate() {
        bind(&mut statement, index + 1, value)?;
    }
    let width = statement.column_count();
    let mut found = Rows::new(width);
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next()? {
        for index in 0..width {
            found.push(match row.get_ref(index)? {
                ValueRef::Null => Cell::Null,
                ValueRef::Integer(number) => Cell::Integer(number),
                other => Cell::Text(other.as_str()?),
            });
        }
    }
    Ok(found)
}

/// Binds by name: SQLite numbers `$2` by where it first appears in the text, not by its digit.
fn bind(statement: &mut rusqlite::Statement<'_>, number: usize, value: &Value) -> rusqlite::Result<()> {
    // Nearly every statement has the numbers in their order, so that the name at the place is the name.
    let index = match statement.parameter_name(number) {
        Some(name) if name.strip_prefix('$').is_some_and(|digits| digits.parse() == Ok(number)) => number,
        _ => {
            let name = format!("${number}");
            let found = statement.parameter_index(&name)?;
            found.ok_or(rusqlite::Error::InvalidParameterName(name))?
        }
    };
    match value {
        Value::Null => statement.raw_bind_parameter(index, Null),
        Value::Integer(number) => statement.raw_bind_parameter(index, number),
        Value::Text(text) => statement.raw_bind_parameter(index, text.as_ref()),
    }
}

/// What a failure before or instead of a commit means: nothing was stored, and either it can be tried again or not.
fn failure(error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::DiskFull,
        // The index of the write-ahead log could not be made larger, which has a code of its own.
        _ if error.sqlite_extended_error_code() == Some(SQLITE_IOERR_SHMSIZE) => StoreError::DiskFull,
        // Another process keeps it locked; or the file is not there, or this process has too many open.
        Some(ErrorCode::DatabaseBusy | ErrorCode::CannotOpen) => StoreError::Away(error.to_string()),
        Some(ErrorCode::NotADatabase) => StoreError::NotOurs("it is not an SQLite database".to_owned()),
        Some(ErrorCode::DatabaseCorrupt) => StoreError::Corrupt(error.to_string()),
        _ => StoreError::Database(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_lock_or_a_missing_file_passes_and_a_statement_that_fails_does_not() {
        let directory = TempDir::new().unwrap();
        let open = |name: &str, access| Sqlite::open(&directory.path().join(name), access);
        let mut one = open("gatekeeper.db", Access::Write).unwrap();
        one.script("create table thing (id bigint not null primary key);").unwrap();
        one.query("insert into thing values (1)", &[]).unwrap();
        for faulty in
            ["insert into thing values (1)", "select name from thing", "select", "delete from other"]
        {
            let failed = one.query(faulty, &[]).map(drop);
            assert!(matches!(failed, Err(StoreError::Database(_))), "{faulty}: {failed:?}");
        }
        let mut other = open("gatekeeper.db", Access::Write).unwrap();
        other.query("pragma busy_timeout = 0", &[]).unwrap();
        one.begin(Access::Write).unwrap();
        let locked = other.begin(Access::Write);
        assert!(matches!(locked, Err(StoreError::Away(_))), "{locked:?}");
        one.rollback().unwrap();
        other.begin(Access::Write).expect("it is free again");
        let missing = open("missing.db", Access::Read).map(drop);
        assert!(matches!(missing, Err(StoreError::Away(_))), "{missing:?}");
    }
}
