//! Copying a database: every row of every table, a page at a time, with a sum over all of it.

use crate::driver::Connection;
use crate::error::StoreError;
use crate::rows::Cell;
use crate::schema::Table;
use crate::value::{Column, Value, values};

/// Rows in memory at once. A row may hold a listener with many owners, so this stays well below what a batch carries.
/// Tests have few rows, and pages all the same.
const PAGE: usize = if cfg!(test) { 3 } else { 500 };

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Rows of any kind.
    pub rows: u64,
    /// Events.
    pub events: u64,
    /// Live reservations.
    pub reservations: u64,
    /// Joined instances.
    pub instances: u64,
}

/// Told now and then how many rows were handled so far.
pub type Progress<'a> = &'a mut dyn FnMut(u64);

/// A column taken as it is.
impl Column for Value {
    fn from_cell(cell: Cell<'_>) -> Result<Value, StoreError> {
        Ok(match cell {
            Cell::Null => Value::Null,
            Cell::Integer(number) => number.into(),
            Cell::Text(text) => text.into(),
        })
    }
}

/// A sum over rows in their order (FNV-1a). It tells a file that was damaged on its way, not one that was forged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sum(u64);

impl Sum {
    pub(crate) fn new() -> Sum {
        Sum(0xcbf2_9ce4_8422_2325)
    }

    fn add_bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn add(&mut self, value: &Value) {
        match value {
            Value::Null => self.add_bytes(&[0]),
            Value::Integer(number) => {
                self.add_bytes(&[1]);
                self.add_bytes(&number.to_le_bytes());
            }
            Value::Text(text) => {
                self.add_bytes(&[2]);
                self.add_bytes(&text.len().to_le_bytes());
                self.add_bytes(text.as_bytes());
            }
        }
    }
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Hands every row of these tables to `each`, by table and primary key. Answers how many there were, and their sum.
pub(crate) fn walk(
    connection: &mut Connection,
    tables: &[Table],
    progress: Progress<'_>,
    mut each: impl FnMut(&Table, &[Value]) -> Result<(), StoreError>,
) -> Result<(u64, Sum), StoreError> {
    let (mut rows, mut sum) = (0, Sum::new());
    for table in tables {
        sum.add_bytes(table.name.as_bytes());
        let mut after: Vec<Value> = Vec::new();
        loop {
            let page = connection.query(&table.select(!after.is_empty(), PAGE), &after)?;
            let (is_last, mut last) = (page.len() < PAGE, Vec::new());
            for mut row in page {
                let row =
                    table.columns.iter().map(|_| row.take()).collect::<Result<Vec<Value>, StoreError>>()?;
                row.iter().for_each(|value| sum.add(value));
                each(table, &row)?;
                rows += 1;
                last = row;
            }
            progress(rows);
            if is_last {
                break;
            }
            after = table.key.iter().map(|index| last[*index].clone()).collect();
        }
    }
    Ok((rows, sum))
}

/// Copies every row of these tables, in place of those that `to` has from its migrations.
pub(crate) fn copy(
    from: &mut Connection,
    to: &mut Connection,
    tables: &[Table],
    progress: Progress<'_>,
) -> Result<(Copied, Sum), StoreError> {
    for table in tables.iter().filter(|table| !table.begins_empty) {
        to.later(&format!("delete from {}", table.name), &[])?;
    }
    let mut said = 0;
    let (rows, sum) = walk(from, tables, progress, |table, row| {
        to.later(&table.insert, row)?;
        said += 1;
        // Sent now and then: a whole database fits neither into memory nor into the time that one answer may take.
        if said % PAGE == 0 { to.settle() } else { Ok(()) }
    })?;
    Ok((count(to, rows)?, sum))
}

fn count(connection: &mut Connection, rows: u64) -> Result<Copied, StoreError> {
    let sql = "select (select count(*) from event), \
               (select count(*) from reservation where released_at is null), \
               (select count(*) from instance where left_at is null)";
    let row = connection.query(sql, values![])?.first();
    let mut row = row.ok_or_else(|| StoreError::Corrupt("a count has no answer".to_owned()))?;
    Ok(Copied { rows, events: row.take()?, reservations: row.take()?, instances: row.take()? })
}
