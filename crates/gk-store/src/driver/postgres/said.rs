//! What was said and not yet sent: statements, and rows of one table that travel as one statement.

use tokio_postgres::Statement;
use tokio_postgres::types::Type;

use crate::driver::postgres::values::Column;
use crate::value::Value;

/// Something that was said and not yet sent.
pub(super) enum Said {
    Inserts(Inserts),
    Statement(Statement, Vec<Value>),
}

impl Said {
    /// The values have to be ones that the statement takes, and the statement made of this text.
    pub(super) fn new(sql: &str, statement: Statement, values: &[Value]) -> Said {
        if values.is_empty() || !is_plain_insert(sql) {
            return Said::Statement(statement, values.to_vec());
        }
        let columns = values.iter().map(|_| Column::default()).collect();
        let mut rows = Inserts { sql: sql.to_owned(), statement, columns };
        rows.push(values);
        Said::Inserts(rows)
    }
}

/// Rows for one table, kept by column.
pub(super) struct Inserts {
    /// The insert of a single row, and the same as a prepared statement.
    pub(super) sql: String,
    pub(super) statement: Statement,
    /// What stands for `$1`, `$2`, … in each row.
    pub(super) columns: Vec<Column>,
}

impl Inserts {
    /// The values have to be ones that the statement takes.
    pub(super) fn push(&mut self, values: &[Value]) {
        for (column, value) in self.columns.iter_mut().zip(values) {
            column.push(value);
        }
    }

    /// Whether there is only the first one.
    pub(super) fn is_single(&self) -> bool {
        self.columns.iter().all(Column::is_single)
    }
}

/// Whether rows of several such statements may become one statement: on a conflict they would not be the same.
fn is_plain_insert(sql: &str) -> bool {
    sql.starts_with("insert into ")
        && sql.contains(" values (")
        && sql.ends_with(')')
        && !sql.contains("), (")
        && !sql.contains("on conflict")
}

/// The same insert for any number of rows, from one array for each placeholder: `values ($1, 'x')` becomes
/// `select p1, 'x' from (select unnest($1::int8[]) as p1) as said`. Not `from unnest($1::int8[], …)`, which first fills
/// one temporary store for each array: for fewer than a hundred rows that takes longer than inserting them.
pub(super) fn of_arrays(sql: &str, types: &[Type]) -> String {
    let (head, row) = sql.split_once(" values (").expect("looked at by is_plain_insert");
    let row = row.strip_suffix(')').expect("looked at by is_plain_insert").replace('$', "p");
    let column =
        |(kind, number): (&Type, usize)| format!("unnest(${number}::{}[]) as p{number}", kind.name());
    let columns: Vec<_> = types.iter().zip(1..).map(column).collect();
    format!("{head} select {row} from (select {}) as said", columns.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_table_travel_together() {
        let sql = "insert into claim (space, port, kind) values ($1, $2, 'x')";
        assert!(is_plain_insert(sql));
        assert_eq!(
            of_arrays(sql, &[Type::TEXT, Type::INT8]),
            "insert into claim (space, port, kind) select p1, p2, 'x' \
             from (select unnest($1::text[]) as p1, unnest($2::int8[]) as p2) as said"
        );
        let swapped = "insert into t (a, b, c) values (lower($2), 0, $1)";
        assert!(is_plain_insert(swapped));
        assert_eq!(
            of_arrays(swapped, &[Type::INT8, Type::TEXT]),
            "insert into t (a, b, c) select lower(p2), 0, p1 \
             from (select unnest($1::int8[]) as p1, unnest($2::text[]) as p2) as said"
        );
        for other in [
            "insert into t (a) values ($1) on conflict (a) do nothing",
            "insert into t (a) values ($1), ($2)",
            "update t set a = $1",
            "insert into t select 1",
        ] {
            assert!(!is_plain_insert(other), "{other}");
        }
    }
}
