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
