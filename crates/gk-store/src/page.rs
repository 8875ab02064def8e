//! Keyset paging: a cursor holds the sort key of the last item, so the last page costs what the first one does.

use gk_model::query::Page;

use crate::error::{Error, Refusal, StoreError};
use crate::labelled::Chosen;
use crate::value::Value;

/// Separates the parts of a cursor; no part contains it.
const SEPARATOR: char = '~';

/// A cursor from the parts of a sort key.
pub(crate) fn cursor(parts: &[&dyn std::fmt::Display]) -> String {
    let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
    parts.join(&SEPARATOR.to_string())
}

/// The parts of a cursor that this list made.
pub(crate) fn parts<const N: usize>(cursor: &str) -> Result<[&str; N], Refusal> {
    let parts: Vec<&str> = cursor.split(SEPARATOR).collect();
    parts.try_into().map_err(|_| Refusal::BadCursor)
}

/// One part, as what it was.
pub(crate) fn part<T: std::str::FromStr>(text: &str) -> Result<T, Refusal> {
    text.parse().map_err(|_| Refusal::BadCursor)
}

/// Reads `limit + 1` rows into items, and keeps the last one back as the sign that there is more.
pub(crate) fn page<R, T>(
    rows: impl IntoIterator<Item = R, IntoIter: ExactSizeIterator>,
    limit: u32,
    mut read: impl FnMut(R) -> Result<T, StoreError>,
    cursor_of: impl Fn(&T) -> String,
) -> Result<Page<T>, Error> {
    let (rows, limit) = (rows.into_iter(), limit as usize);
    let more = rows.len() > limit;
    let mut items = Vec::with_capacity(rows.len().min(limit));
    for row in rows.take(limit) {
        items.push(read(row)?);
    }
    let next = if more { items.last().map(cursor_of) } else { None };
    Ok(Page { items, next })
}

/// How much to read in the next round when the filters let too little of the last one through: sixteen times as much, so
/// that a page of few that are far apart takes few rounds, and a thousand at most.
pub(crate) fn wider(read: usize) -> usize {
    read.max((read * 16).min(1000))
}

/// A `like` pattern (escape character `~`) for texts that contain this one, to be compared in lower case.
pub(crate) fn contains(text: &str) -> String {
    let mut pattern = String::from("%");
    for character in text.to_lowercase().chars() {
        if matches!(character, '%' | '_' | '~') {
            pattern.push('~');
        }
        pattern.push(character);
    }
    pattern.push('%');
    pattern
}

/// The conditions of a list: those that were asked for, and no others, so that the database can choose an index.
pub(crate) struct Filters {
    text: String,
    values: Vec<Value>,
}

impl Filters {
    /// Beginning with a condition that always holds for the list, whose values are `$1`, `$2`, ….
    pub(crate) fn new(condition: &str, values: &[Value]) -> Filters {
        Filters { text: condition.to_owned(), values: values.to_vec() }
    }

    /// One more condition, if there is a value for it; `$?` in it stands for that value.
    #[must_use]
    pub(crate) fn and<T: Into<Value>>(mut self, condition: &str, value: Option<T>) -> Filters {
        if let Some(value) = value {
            self.values.push(value.into());
            let number = format!("${}", self.values.len());
            self.text.push_str(" and ");
            self.text.push_str(&condition.replace("$?", &number));
        }
        self
    }

    /// One more condition: that a column is one of these.
    #[must_use]
    pub(crate) fn among<T: Into<Value> + Clone>(mut self, column: &str, values: &[T]) -> Filters {
        let first = self.values.len();
        self.values.extend(values.iter().cloned().map(Into::into));
        let numbers = (first..self.values.len()).map(|number| format!("${}", number + 1));
        match values.is_empty() {
            true => self.text.push_str(" and 1 = 0"),
            false => {
                let numbers = numbers.collect::<Vec<_>>().join(", ");
                self.text.push_str(&format!(" and {column} in ({numbers})"));
            }
        }
        self
    }

    /// Only instances that are chosen, whose columns are prefixed like this.
    #[must_use]
    pub(crate) fn and_chosen(mut self, prefix: &str, chosen: Option<&Chosen>) -> Filters {
        if let Some(chosen) = chosen {
            self.text.push_str(&chosen.conditions(prefix, &mut self.values));
        }
        self
    }

    /// The same, where they are found by something else.
    #[must_use]
    pub(crate) fn and_tested(mut self, prefix: &str, chosen: Option<&Chosen>) -> Filters {
        if let Some(chosen) = chosen {
            self.text.push_str(&chosen.tests(prefix, &mut self.values));
        }
        self
    }

    /// Only where a column names an instance that is chosen.
    #[must_use]
    pub(crate) fn and_labelled(mut self, column: &str, chosen: &Chosen) -> Filters {
        let ids = chosen.ids(&mut self.values);
        self.text.push_str(&format!(" and {column} in ({ids})"));
        self
    }

    /// The whole statement: `select … from …`, the conditions, the order, and one row more than the page holds.
    pub(crate) fn finish(mut self, select: &str, order: &str, limit: u32) -> (String, Vec<Value>) {
        self.values.push(Value::from(limit + 1));
        let text = format!("{select} where {} order by {order} limit ${}", self.text, self.values.len());
        (text, self.values)
    }
}
