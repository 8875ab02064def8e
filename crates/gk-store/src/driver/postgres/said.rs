//! What was said and not yet sent: statements, and rows of one table that travel as one statement.

use crate::value::Value;

/// Something that was said and not yet sent.
pub(super) enum Said {
    /// Rows for one table, each of this many values.
    Rows {
        sql: String,
        width: usize,
        values: Vec<Value>,
    },
    Statement {
        sql: String,
        values: Vec<Value>,
    },
}

impl Said {
    pub(super) fn new(sql: &str, values: &[Value]) -> Said {
        let (sql, width, values) = (sql.to_owned(), values.len(), values.to_vec());
        if is_plain_insert(&sql) {
            Said::Rows { sql, width, values }
        } else {
            Said::Statement { sql, values }
        }
    }
}

/// Whether rows of several such statements may become one statement: on a conflict they would not be the same.
pub(super) fn is_plain_insert(sql: &str) -> bool {
    sql.starts_with("insert into ")
        && sql.contains(" values (")
        && sql.ends_with(')')
        && !sql.contains("on conflict")
}

/// The same insert for several rows: `values ($1, $2)` becomes `values ($1, $2), ($3, $4)`.
pub(super) fn with_rows(sql: &str, rows: usize, width: usize) -> String {
    let (head, row) = sql.split_once(" values ").expect("looked at by is_plain_insert");
    let mut text = format!("{head} values {row}");
    for number in 1..rows {
        text.push_str(", ");
        let mut parts = row.split('$');
        text.push_str(parts.next().unwrap_or_default());
        for part in parts {
            let digits = part.find(|character: char| !character.is_ascii_digit()).unwrap_or(part.len());
            let (place, after) = part.split_at(digits);
            let place: usize = place.parse().expect("a placeholder is a number");
            text.push_str(&format!("${}{after}", place + number * width));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_table_travel_together() {
        let sql = "insert into claim (space, port, kind) values ($1, $2, 'x')";
        assert!(is_plain_insert(sql));
        assert_eq!(with_rows(sql, 1, 2), sql);
        assert_eq!(
            with_rows(sql, 3, 2),
            "insert into claim (space, port, kind) values ($1, $2, 'x'), ($3, $4, 'x'), ($5, $6, 'x')"
        );
        assert_eq!(
            with_rows("insert into t (a) values ($10, $1)", 2, 12),
            "insert into t (a) values ($10, $1), ($22, $13)"
        );
        for other in [
            "insert into t (a) values ($1) on conflict (a) do nothing",
            "update t set a = $1",
            "insert into t select 1",
        ] {
            assert!(!is_plain_insert(other), "{other}");
        }
    }
}
