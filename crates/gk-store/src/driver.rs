//! The only files that know which database they are talking to.
//!
//! Everything above speaks one SQL text with `$1…` placeholders, and values that are an integer, a text or null. What
//! differs between databases is confined to [`Connection`]: how to open, begin, bind, and which failures mean what.
//! Statements come in two kinds, so that a database across a network can be spoken to in few round trips: `query` asks
//! and waits, `later` only says and may be sent together with the next question.

mod postgres;
mod sqlite;
mod tls;

use std::fmt;
use std::path::{Path, PathBuf};

use gk_model::time::Timestamp;

use crate::StoreConfig;
use crate::database_url::DatabaseUrl;
use crate::driver::postgres::Postgres;
use crate::driver::sqlite::Sqlite;
use crate::error::StoreError;
use crate::rows::Rows;
use crate::value::Value;

/// Where a store keeps its data.
#[derive(Clone, Debug)]
pub(crate) enum Location {
    /// A file of this process alone.
    Sqlite(PathBuf),
    /// A database that several servers may share.
    Postgres(Box<DatabaseUrl>),
}

impl Location {
    /// The database that was named, or else the file inside the data directory.
    pub(crate) fn of(config: &StoreConfig) -> Location {
        match &config.database {
            Some(url) => Location::Postgres(Box::new(url.clone())),
            None => Location::Sqlite(config.directory.join("gatekeeper.db")),
        }
    }

    /// Whether other servers may write to it too.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Location::Postgres(_))
    }

    /// A backup, or the copy of one: an SQLite file whatever database it was made from.
    pub(crate) fn of_file(path: &Path) -> Location {
        Location::Sqlite(path.to_owned())
    }

    /// Whether there is certainly nothing there yet, so that opening would only say "unable to open".
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Location::Sqlite(path) if !path.exists())
    }
}

/// For people.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Sqlite(path) => path.display().fmt(f),
            Location::Postgres(url) => url.fmt(f),
        }
    }
}

/// What a connection may do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// One connection to the database.
pub(crate) struct Connection(Database);

enum Database {
    Sqlite(Sqlite),
    Postgres(Box<Postgres>),
}

/// Calls the method of the same name of whichever database it is.
macro_rules! either {
    ($connection:expr, $method:ident($($argument:expr),*)) => {
        match &mut $connection.0 {
            Database::Sqlite(sqlite) => sqlite.$method($($argument),*),
            Database::Postgres(postgres) => postgres.$method($($argument),*),
        }
    };
}

impl Connection {
    pub(crate) fn open(location: &Location, access: Access) -> Result<Connection, StoreError> {
        let opened = match location {
            Location::Sqlite(path) => Database::Sqlite(Sqlite::open(path, access)?),
            Location::Postgres(url) => Database::Postgres(Box::new(Postgres::open(url, access)?)),
        };
        Ok(Connection(opened))
    }

    /// A database that is gone with the connection: what the migrations make can be looked at in it.
    pub(crate) fn in_memory() -> Result<Connection, StoreError> {
        Sqlite::in_memory().map(|sqlite| Connection(Database::Sqlite(sqlite)))
    }

    /// For work on whole tables (migrations, backups, verifying): no statement takes too long.
    pub(crate) fn take_all_time(&mut self) -> Result<(), StoreError> {
        match &mut self.0 {
            Database::Sqlite(_) => Ok(()),
            Database::Postgres(postgres) => postgres.take_all_time(),
        }
    }

    /// Begins a transaction. One that reads has one view of the whole database from its first statement on.
    pub(crate) fn begin(&mut self, access: Access) -> Result<(), StoreError> {
        either!(self, begin(access))
    }

    /// Makes a transaction durable. [`StoreError::Unknown`] when it is open whether it became so; after any other
    /// failure it did not.
    pub(crate) fn commit(&mut self) -> Result<(), StoreError> {
        either!(self, commit())
    }

    pub(crate) fn rollback(&mut self) -> Result<(), StoreError> {
        either!(self, rollback())
    }

    /// Asks, and waits for the rows.
    pub(crate) fn query(&mut self, sql: &str, values: &[Value]) -> Result<Rows, StoreError> {
        either!(self, query(sql, values))
    }

    /// Says something whose result nobody waits for. A failure may show at a later statement of the transaction.
    pub(crate) fn later(&mut self, sql: &str, values: &[Value]) -> Result<(), StoreError> {
        match &mut self.0 {
            Database::Sqlite(sqlite) => sqlite.query(sql, values).map(drop),
            Database::Postgres(postgres) => postgres.later(sql, values),
        }
    }

    /// Waits until everything that was said is done, so that a failure shows here.
    pub(crate) fn settle(&mut self) -> Result<(), StoreError> {
        match &mut self.0 {
            Database::Sqlite(_) => Ok(()),
            Database::Postgres(postgres) => postgres.settle(),
        }
    }

    /// Marks where [`Connection::undo_to_savepoint`] goes back to. A failure of what was said before shows here.
    pub(crate) fn savepoint(&mut self) -> Result<(), StoreError> {
        self.later("savepoint closure", &[])?;
        self.settle()
    }

    /// Keeps what was done since the savepoint.
    pub(crate) fn release_savepoint(&mut self) -> Result<(), StoreError> {
        self.later("release savepoint closure", &[])
    }

    /// Undoes what was done since the savepoint, failed statements included, and forgets what was only said.
    pub(crate) fn undo_to_savepoint(&mut self) -> Result<(), StoreError> {
        if let Database::Postgres(postgres) = &mut self.0 {
            return postgres.undo_to_savepoint();
        }
        self.later("rollback to savepoint closure", &[])?;
        self.release_savepoint()
    }

    /// Runs a migration: several statements, no values.
    pub(crate) fn script(&mut self, sql: &str) -> Result<(), StoreError> {
        either!(self, script(sql))
    }

    /// Sets what a database of ours keeps from then on. Called once it is known to be ours, because it may change it.
    pub(crate) fn adopt(&mut self) -> Result<(), StoreError> {
        either!(self, adopt())
    }

    /// For a file that is thrown away unless it becomes whole, and that is synced then: no journal, no syncs, and memory
    /// for the indexes, which are filled in no order. A long copy would wait for the disk most of its time otherwise.
    pub(crate) fn write_at_once(&mut self) -> Result<(), StoreError> {
        match &mut self.0 {
            Database::Sqlite(sqlite) => sqlite.write_at_once(),
            Database::Postgres(_) => Ok(()),
        }
    }

    /// What the database itself finds wrong with its pages and indexes, at most so many lines.
    pub(crate) fn list_damage(&mut self, most: usize) -> Result<Vec<String>, StoreError> {
        match &mut self.0 {
            Database::Sqlite(sqlite) => sqlite.list_damage(most),
            // It checks its pages by itself, as it reads them.
            Database::Postgres(_) => Ok(Vec::new()),
        }
    }

    /// The tables there are, in no particular order.
    pub(crate) fn list_tables(&mut self) -> Result<Vec<String>, StoreError> {
        either!(self, list_tables())
    }

    /// The time by the clock that counts for leases: the database's own where several servers share it.
    pub(crate) fn clock(&mut self, ours: Timestamp) -> Result<Timestamp, StoreError> {
        match &mut self.0 {
            Database::Sqlite(_) => Ok(ours),
            Database::Postgres(postgres) => postgres.clock(),
        }
    }
}
