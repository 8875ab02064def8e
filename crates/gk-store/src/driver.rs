//! The only file that knows which database it is talking to.
//!
//! Everything above speaks one SQL text with `$1…` placeholders, and values that are an integer, a text or null. What
//! differs between databases is confined to [`Connection`]: how to open, begin, bind, and which failures mean what.
//! Statements come in two kinds, so that a database across a network can be spoken to in few round trips: `query` asks
//! and waits, `later` only says and may be sent together with the next question.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::{Null, ValueRef};
use rusqlite::{ErrorCode, OpenFlags};

use crate::error::StoreError;
use crate::value::{Row, Value};

/// Where a store keeps its data. PostgreSQL becomes the second variant.
#[derive(Clone, Debug)]
pub(crate) enum Location {
    /// An SQLite file.
    Sqlite(PathBuf),
}

impl Location {
    /// The database file inside a data directory.
    pub(crate) fn in_directory(directory: &Path) -> Location {
        Location::Sqlite(directory.join("gatekeeper.db"))
    }
}

/// What a connection may do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// One connection to the database.
pub(crate) enum Connection {
    Sqlite(rusqlite::Connection),
}

/// How long a statement waits for another process (a backup, say) to let go of the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);

impl Connection {
    pub(crate) fn open(location: &Location, access: Access) -> Result<Connection, StoreError> {
        let Location::Sqlite(path) = location;
        open_sqlite(path, access).map(Connection::Sqlite).map_err(|error| sqlite_error(&error))
    }

    /// Begins a transaction; one that may write takes the database's write lock at once, never half-way through.
    pub(crate) fn begin(&mut self, access: Access) -> Result<(), StoreError> {
        let Connection::Sqlite(_) = self;
        self.later(if access == Access::Write { "begin immediate" } else { "begin" }, &[])
    }

    /// Makes a transaction durable. Most failures here may have come after the data reached the disk; a full disk is
    /// found before the record that makes the transaction count.
    pub(crate) fn commit(&mut self) -> Result<(), StoreError> {
        self.later("commit", &[]).map_err(|error| match error {
            StoreError::DiskFull => StoreError::DiskFull,
            other => StoreError::Unknown(other.to_string()),
        })
    }

    pub(crate) fn rollback(&mut self) -> Result<(), StoreError> {
        let Connection::Sqlite(connection) = self;
        // SQLite has already rolled back by itself after some failures, such as a full disk.
        if connection.is_autocommit() { Ok(()) } else { self.later("rollback", &[]) }
    }

    /// Asks, and waits for the rows.
    pub(crate) fn query(&mut self, sql: &str, values: &[Value]) -> Result<Vec<Row>, StoreError> {
        let Connection::Sqlite(connection) = self;
        query_sqlite(connection, sql, values).map_err(|error| sqlite_error(&error))
    }

    /// Says something whose result nobody waits for. A failure may show at a later statement of the transaction.
    pub(crate) fn later(&mut self, sql: &str, values: &[Value]) -> Result<(), StoreError> {
        self.query(sql, values).map(|_| ())
    }

    /// Runs a migration: several statements, no values.
    pub(crate) fn script(&mut self, sql: &str) -> Result<(), StoreError> {
        let Connection::Sqlite(connection) = self;
        connection.execute_batch(sql).map_err(|error| sqlite_error(&error))
    }

    /// Sets what a database of ours keeps from then on. Called once it is known to be ours, because it changes the file.
    pub(crate) fn adopt(&mut self) -> Result<(), StoreError> {
        let Connection::Sqlite(connection) = self;
        if connection.is_readonly("main").map_err(|error| sqlite_error(&error))? {
            return Err(StoreError::ReadOnly("this account may not write to the database file"));
        }
        let answer = self.query("pragma journal_mode = wal", &[])?.pop();
        match answer.map(|mut row| row.take::<String>()).transpose()?.as_deref() {
            Some("wal") => Ok(()),
            _ => Err(StoreError::ReadOnly("its file system does not support a write-ahead log")),
        }
    }

    /// The tables there are, in no particular order.
    pub(crate) fn list_tables(&mut self) -> Result<Vec<String>, StoreError> {
        let Connection::Sqlite(_) = self;
        let sql =
            "select name from sqlite_schema where type = 'table' and name not like 'sqlite~_%' escape '~'";
        self.query(sql, &[])?.into_iter().map(|mut row| row.take()).collect()
    }
}

fn open_sqlite(path: &Path, access: Access) -> rusqlite::Result<rusqlite::Connection> {
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
    connection.execute_batch(
        "pragma synchronous = full; pragma cache_size = -32768; pragma temp_store = memory;",
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

fn query_sqlite(
    connection: &rusqlite::Connection,
    sql: &str,
    values: &[Value],
) -> rusqlite::Result<Vec<Row>> {
    let mut statement = connection.prepare_cached(sql)?;
    for (index, value) in values.iter().enumerate() {
        bind(&mut statement, index + 1, value)?;
    }
    let width = statement.column_count();
    let mut found = Vec::new();
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next()? {
        let mut columns = Vec::with_capacity(width);
        for index in 0..width {
            columns.push(match row.get_ref(index)? {
                ValueRef::Null => Value::Null,
                ValueRef::Integer(number) => Value::Integer(number),
                other => Value::Text(other.as_str()?.to_owned()),
            });
        }
        found.push(Row::new(columns));
    }
    Ok(found)
}

/// Binds by name: SQLite numbers `$2` by where it first appears in the text, not by its digit.
fn bind(statement: &mut rusqlite::Statement<'_>, number: usize, value: &Value) -> rusqlite::Result<()> {
    let name = format!("${number}");
    let Some(index) = statement.parameter_index(&name)? else {
        return Err(rusqlite::Error::InvalidParameterName(name));
    };
    match value {
        Value::Null => statement.raw_bind_parameter(index, Null),
        Value::Integer(number) => statement.raw_bind_parameter(index, number),
        Value::Text(text) => statement.raw_bind_parameter(index, text),
    }
}

fn sqlite_error(error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::DiskFull,
        Some(ErrorCode::NotADatabase) => StoreError::NotOurs("it is not an SQLite database".to_owned()),
        Some(ErrorCode::DatabaseCorrupt) => StoreError::Corrupt(error.to_string()),
        _ => StoreError::Database(error.to_string()),
    }
}
