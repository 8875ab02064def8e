//! The tables that the migrations make, as whoever copies all of them needs to know them.
//!
//! They are read from an empty database that the migrations were run on, so there is no list that could be forgotten
//! when a table or a column is added.

use crate::driver::Connection;
use crate::error::StoreError;
use crate::migrate::STEPS;
use crate::value::values;

/// A table of ours.
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) columns: Vec<String>,
    /// The statement that adds a row; kept, because a copy runs it for each.
    pub(crate) insert: String,
    /// Where in `columns` the parts of the primary key are, in its order.
    pub(crate) key: Vec<usize>,
    /// Whether the migrations leave it empty; some have a row from the beginning.
    pub(crate) begins_empty: bool,
}

/// Every table of a schema version, by name. What a database says about its own schema is not among them.
pub(crate) fn list_tables(version: u64) -> Result<Vec<Table>, StoreError> {
    let mut memory = Connection::in_memory()?;
    for (_, step) in (1..=version).zip(STEPS) {
        memory.script(step)?;
    }
    let mut names = memory.list_tables()?;
    names.sort();
    names.into_iter().map(|name| read_table(&mut memory, name)).collect()
}

fn read_table(memory: &mut Connection, name: String) -> Result<Table, StoreError> {
    let rows =
        memory.query("select name, pk from pragma_table_info($1) order by cid", values![name.as_str()])?;
    let mut columns = Vec::new();
    let mut key = Vec::new();
    for (index, mut row) in rows.into_iter().enumerate() {
        columns.push(row.take::<String>()?);
        let place: u64 = row.take()?;
        if place > 0 {
            key.push((place, index));
        }
    }
    key.sort_unstable();
    let begins_empty = memory.query(&format!("select 1 from {name} limit 1"), &[])?.is_empty();
    let values = placeholders(columns.len());
    let insert = format!("insert into {name} ({}) values ({values})", columns.join(", "));
    Ok(Table { name, columns, insert, key: key.into_iter().map(|(_, index)| index).collect(), begins_empty })
}

impl Table {
    /// Reads the first page in the order of the primary key, or the one after the key whose parts are `$1`, `$2`, ….
    pub(crate) fn select(&self, after: bool, most: usize) -> String {
        let columns = self.columns.join(", ");
        let key = self.key.iter().map(|index| self.columns[*index].as_str()).collect::<Vec<_>>().join(", ");
        let beyond = match after {
            true => format!(" where ({key}) > ({})", placeholders(self.key.len())),
            false => String::new(),
        };
        format!("select {columns} from {}{beyond} order by {key} limit {most}", self.name)
    }
}

fn placeholders(count: usize) -> String {
    (1..=count).map(|number| format!("${number}")).collect::<Vec<_>>().join(", ")
}

/// How the database would run a statement, in its own words.
#[cfg(test)]
pub(crate) fn plan(sql: &str, values: &[crate::value::Value]) -> String {
    let mut memory = Connection::in_memory().unwrap();
    STEPS.iter().for_each(|step| memory.script(step).unwrap());
    let rows = memory.query(&format!("explain query plan {sql}"), values).unwrap();
    let details = rows.into_iter().map(|mut row| {
        // Its number, its parent's, and one that is not used.
        let _: (i64, i64, i64) = (row.take().unwrap(), row.take().unwrap(), row.take().unwrap());
        row.take::<String>().unwrap()
    });
    details.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_can_be_paged_by_a_key() {
        let tables = list_tables(STEPS.len() as u64).unwrap();
        let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
        for expected in ["claim", "event", "event_seq", "instance", "listener", "reservation", "token"] {
            assert!(names.contains(&expected), "{expected} is not among {names:?}");
        }
        for table in &tables {
            assert!(!table.key.is_empty(), "{} has no primary key", table.name);
        }
        let claim = tables.iter().find(|table| table.name == "claim").unwrap();
        assert_eq!(
            claim.select(true, 10),
            "select space, protocol, port, reservation from claim \
             where (protocol, port, space) > ($1, $2, $3) order by protocol, port, space limit 10"
        );
        assert!(
            claim.begins_empty && !tables.iter().any(|table| table.name == "event_seq" && table.begins_empty)
        );
    }
}
