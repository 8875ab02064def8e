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
    let in_order = is_in_order(sql);
    for (index, value) in values.iter().enumerate() {
        bind(&mut statement, index + 1, in_order, value)?;
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

/// Whether `$1`, `$2`, … first appear in this order, as they do in nearly every statement. SQLite numbers them by where
/// they appear, not by their digits.
fn is_in_order(sql: &str) -> bool {
    let mut seen = 0;
    sql.split('$').skip(1).all(|rest| {
        let digits = rest.bytes().take_while(u8::is_ascii_digit);
        let number = digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
        seen += usize::from(number == seen + 1);
        (1..=seen).contains(&number)
    })
}

fn bind(
    statement: &mut rusqlite::Statement<'_>,
    number: usize,
    in_order: bool,
    value: &Value,
) -> rusqlite::Result<()> {
    let index = if in_order {
        number
    } else {
        let name = format!("${number}");
        let found = statement.parameter_index(&name)?;
        found.ok_or(rusqlite::Error::InvalidParameterName(name))?
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
    fn each_value_is_bound_to_its_own_number_wherever_that_stands() {
        let values: Vec<Value> = (1..=10).map(|number: i64| Value::from(number * 10)).collect();
        let table: [(&str, bool, &[i64]); 6] = [
            ("select $1, $2", true, &[10, 20]),
            ("select $1, $2, $1, $2 * 2, $3", true, &[10, 20, 10, 40, 30]),
            (
                "select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10",
                true,
                &[10, 20, 30, 40, 50, 60, 70, 80, 90, 100],
            ),
            ("select $2, $1", false, &[20, 10]),
            ("select $1, $3, $2", false, &[10, 30, 20]),
            ("select length('$'), $1", false, &[1, 10]),
        ];
        let mut sqlite = Sqlite::in_memory().unwrap();
        for (sql, in_order, expected) in table {
            assert_eq!(is_in_order(sql), in_order, "{sql}");
            let count = (1..=10).filter(|number| sql.contains(&format!("${number}"))).count();
            let row = sqlite.query(sql, &values[..count]).unwrap().first();
            let mut row = row.expect("a row");
            let found: Vec<i64> = expected.iter().map(|_| row.take().unwrap()).collect();
            assert_eq!(found, expected, "{sql}");
        }
    }

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
