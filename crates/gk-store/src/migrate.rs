//! Migrations: the schema, one step after the other, each in a transaction of its own.
//!
//! Steps only create, add and rename. A database that somebody else made, or that a newer version wrote, is refused
//! before anything in it changes.

use gk_model::time::Timestamp;

use crate::driver::{Access, Connection};
use crate::error::StoreError;
use crate::value::values;

/// Every step in order; the version of a database is how many of them it has taken.
const STEPS: &[&str] = &[include_str!("../migrations/0001_start.sql")];

/// Brings the database to the newest version.
pub(crate) fn migrate(connection: &mut Connection, now: Timestamp) -> Result<(), StoreError> {
    let version = find_version(connection)?;
    let known = STEPS.len() as u64;
    if version > known {
        return Err(StoreError::Newer { found: version, known });
    }
    connection.adopt()?;
    for (number, step) in (1..).zip(STEPS).skip_while(|(number, _)| *number <= version) {
        connection.begin(Access::Write)?;
        if number == 1 {
            connection.script(
                "create table migration (version bigint not null primary key, applied_at bigint not null)",
            )?;
        }
        connection.script(step)?;
        connection
            .later("insert into migration (version, applied_at) values ($1, $2)", values![number, now])?;
        connection.commit()?;
        tracing::info!(schema.version = number, "database migrated");
    }
    Ok(())
}

/// 0 for an empty database.
fn find_version(connection: &mut Connection) -> Result<u64, StoreError> {
    let tables = connection.list_tables()?;
    if tables.is_empty() {
        return Ok(0);
    }
    if !tables.iter().any(|table| table == "migration") {
        return Err(StoreError::NotOurs(format!(
            "it has a table named {}, and none named migration",
            tables[0]
        )));
    }
    let rows = connection.query("select coalesce(max(version), 0) from migration", &[])?;
    rows.into_iter().next().map_or(Ok(0), |mut row| row.take())
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::path::Path;

    use tempfile::TempDir;

    use crate::{OpenError, Store, StoreError};

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_micros(1_700_000_000_000_000)
    }

    /// Opening must fail, and leave the file as it was.
    fn refuses(directory: &Path) -> StoreError {
        let file = directory.join("gatekeeper.db");
        let before = std::fs::read(&file).unwrap();
        let error = Store::open(directory, now()).err().expect("must be refused");
        assert!(std::fs::read(&file).unwrap() == before, "the file was touched");
        let OpenError::Database { source, .. } = error else { panic!("{error:?}") };
        source
    }

    fn sqlite_file(directory: &Path, sql: &str) {
        let connection = rusqlite::Connection::open(directory.join("gatekeeper.db")).unwrap();
        connection.execute_batch(sql).unwrap();
        connection.close().unwrap();
    }

    #[test]
    fn a_database_from_a_newer_version_is_refused_untouched() {
        let directory = TempDir::new().unwrap();
        Store::open(directory.path(), now()).unwrap().close();
        sqlite_file(directory.path(), "insert into migration (version, applied_at) values (99, 0)");
        let refusal = refuses(directory.path());
        assert_eq!(
            refusal.to_string(),
            "the database has schema version 99, and this Gatekeeper knows versions up to 1: use the newer one"
        );
    }

    #[test]
    fn somebody_elses_database_is_refused_untouched() {
        let directory = TempDir::new().unwrap();
        sqlite_file(directory.path(), "create table recipes (id integer primary key)");
        assert!(matches!(refuses(directory.path()), StoreError::NotOurs(_)));
    }

    #[test]
    fn a_file_that_is_no_database_is_refused_untouched() {
        let directory = TempDir::new().unwrap();
        std::fs::write(directory.path().join("gatekeeper.db"), "dear diary, ".repeat(1000)).unwrap();
        let refusal = refuses(directory.path());
        assert_eq!(refusal.to_string(), "this is not a Gatekeeper database: it is not an SQLite database");
    }

    #[test]
    fn a_directory_serves_one_store_at_a_time() {
        let directory = TempDir::new().unwrap();
        let first = Store::open(directory.path(), now()).unwrap();
        assert!(matches!(Store::open(directory.path(), now()), Err(OpenError::Locked(_))));
        first.close();
        drop(first);
        Store::open(directory.path(), now()).unwrap().close();
    }

    #[test]
    fn a_directory_that_others_may_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = TempDir::new().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = Store::open(directory.path(), now()).err().unwrap();
        assert!(error.source().is_none() && error.to_string().contains("chmod go-w"), "{error}");
    }
}
