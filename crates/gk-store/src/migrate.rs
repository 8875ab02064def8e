//! Migrations: the schema, one step after the other, each in a transaction of its own.
//!
//! Steps only create, add and rename. A database that somebody else made, or that a newer version wrote, is refused
//! before anything in it changes.

use gk_model::time::Timestamp;

use crate::driver::{Access, Connection};
use crate::error::StoreError;
use crate::value::values;

/// Every step in order; the version of a database is how many of them it has taken.
pub(crate) const STEPS: &[&str] = &[
    include_str!("../migrations/0001_start.sql"),
    include_str!("../migrations/0002_reservations.sql"),
    include_str!("../migrations/0003_idempotency.sql"),
    include_str!("../migrations/0004_log.sql"),
    include_str!("../migrations/0005_cluster.sql"),
    include_str!("../migrations/0006_previous.sql"),
    include_str!("../migrations/0007_tokens.sql"),
    include_str!("../migrations/0008_rotation.sql"),
    include_str!("../migrations/0009_expectations.sql"),
    include_str!("../migrations/0010_pools.sql"),
    include_str!("../migrations/0011_drift.sql"),
    include_str!("../migrations/0012_lists.sql"),
    include_str!("../migrations/0013_watched.sql"),
    include_str!("../migrations/0014_totals.sql"),
    include_str!("../migrations/0015_labels.sql"),
];

/// Where a database remembers the steps it has taken.
const REMEMBERED: &str =
    "create table migration (version bigint not null primary key, applied_at bigint not null)";

/// Brings the database to the newest version.
///
/// Where several servers start at once, each step is taken by the one whose row for it comes first; the others wait for
/// that row, fail on it, and look again.
pub(crate) fn migrate(connection: &mut Connection, now: Timestamp) -> Result<(), StoreError> {
    let mut steps = 0;
    loop {
        let version = find_known_version(connection)?;
        connection.adopt()?;
        let next = usize::try_from(version).ok().and_then(|version| STEPS.get(version));
        let Some(step) = next else {
            if steps > 0 {
                tracing::info!(schema.version = version, steps, "database migrated");
            }
            return Ok(());
        };
        match take_step(connection, version + 1, step, now) {
            Ok(()) => steps += 1,
            Err(error) => {
                connection.rollback()?;
                if find_version(connection)? == version {
                    return Err(error);
                }
            }
        }
    }
}

/// A backup has our tables, and would do as a database, but for the log: that would still be the one that was backed up,
/// and would give its numbers to other events.
pub(crate) fn refuse_backup(connection: &mut Connection) -> Result<(), StoreError> {
    match connection.list_tables()?.iter().any(|table| table == "backup") {
        true => Err(StoreError::NotOurs(
            "it is a backup; make a database of it with: gatekeeper restore --data DIR FILE".to_owned(),
        )),
        false => Ok(()),
    }
}

fn take_step(connection: &mut Connection, number: u64, step: &str, now: Timestamp) -> Result<(), StoreError> {
    connection.begin(Access::Write)?;
    if number == 1 {
        connection.script(REMEMBERED)?;
    }
    take(connection, number, step, now)?;
    connection.commit()
}

/// Makes the schema of this version in an empty database, inside the transaction under way.
pub(crate) fn create(connection: &mut Connection, version: u64, now: Timestamp) -> Result<(), StoreError> {
    connection.script(REMEMBERED)?;
    for (number, step) in (1..=version).zip(STEPS) {
        take(connection, number, step, now)?;
    }
    Ok(())
}

fn take(connection: &mut Connection, number: u64, step: &str, now: Timestamp) -> Result<(), StoreError> {
    // The row first: whoever takes the same step waits for it.
    connection.later("insert into migration (version, applied_at) values ($1, $2)", values![number, now])?;
    connection.script(step)
}

/// How many steps a database has taken; 0 for an empty one. One from a newer version is refused.
pub(crate) fn find_known_version(connection: &mut Connection) -> Result<u64, StoreError> {
    let (found, known) = (find_version(connection)?, STEPS.len() as u64);
    if found > known { Err(StoreError::Newer { found, known }) } else { Ok(found) }
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
    rows.first().map_or(Ok(0), |mut row| row.take())
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::path::Path;

    use tempfile::TempDir;

    use crate::{OpenError, Store, StoreConfig, StoreError};

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_micros(1_700_000_000_000_000)
    }

    async fn open(directory: &Path) -> Result<Store, OpenError> {
        Store::open(StoreConfig::embedded(directory), now()).await
    }

    /// Opening must fail, and leave the file as it was.
    async fn refuses(directory: &Path) -> StoreError {
        let file = directory.join("gatekeeper.db");
        let before = std::fs::read(&file).unwrap();
        let error = open(directory).await.err().expect("must be refused");
        assert!(std::fs::read(&file).unwrap() == before, "the file was touched");
        let OpenError::Database { source, .. } = error else { panic!("{error:?}") };
        source
    }

    fn sqlite_file(directory: &Path, sql: &str) {
        let connection = rusqlite::Connection::open(directory.join("gatekeeper.db")).unwrap();
        connection.execute_batch(sql).unwrap();
        connection.close().unwrap();
    }

    #[tokio::test]
    async fn a_database_from_a_newer_version_is_refused_untouched() {
        let directory = TempDir::new().unwrap();
        open(directory.path()).await.unwrap().close();
        sqlite_file(directory.path(), "insert into migration (version, applied_at) values (99, 0)");
        let refusal = refuses(directory.path()).await;
        assert_eq!(
            refusal.to_string(),
            format!(
                "the database has schema version 99, and this Gatekeeper knows versions up to {}: use the newer one",
                STEPS.len()
            )
        );
    }

    #[tokio::test]
    async fn somebody_elses_database_is_refused_untouched() {
        let directory = TempDir::new().unwrap();
        sqlite_file(directory.path(), "create table recipes (id integer primary key)");
        assert!(matches!(refuses(directory.path()).await, StoreError::NotOurs(_)));
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_refused_untouched() {
        let directory = TempDir::new().unwrap();
        std::fs::write(directory.path().join("gatekeeper.db"), "dear diary, ".repeat(1000)).unwrap();
        let refusal = refuses(directory.path()).await;
        assert_eq!(refusal.to_string(), "this is not a Gatekeeper database: it is not an SQLite database");
    }

    #[tokio::test]
    async fn a_directory_serves_one_store_at_a_time() {
        let directory = TempDir::new().unwrap();
        let first = open(directory.path()).await.unwrap();
        assert!(matches!(open(directory.path()).await, Err(OpenError::Locked(_))));
        first.close();
        drop(first);
        open(directory.path()).await.unwrap().close();
    }

    #[tokio::test]
    async fn a_directory_that_others_may_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = TempDir::new().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = open(directory.path()).await.err().unwrap();
        assert!(error.source().is_none() && error.to_string().contains("chmod go-w"), "{error}");
    }
}
