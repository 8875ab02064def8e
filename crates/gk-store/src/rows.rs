//! The answer of the database, on its way out: its rows, and the columns of each in the order of the `select`.
//!
//! A page has tens of thousands of cells, and most are parsed and gone. So an answer keeps all its text in one piece and
//! its cells in another; a row is a place in it, and a column is read where it lies.

use std::rc::Rc;

use crate::error::StoreError;
use crate::value::Column;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cell<'a> {
    Null,
    Integer(i64),
    Text(&'a str),
}

/// Where a cell's value is. No larger than it must be, because an answer has many.
#[derive(Clone, Copy)]
enum Kept {
    Null,
    Integer(i64),
    Text { begin: usize, length: u32 },
}

/// Every row of an answer.
#[derive(Default)]
pub(crate) struct Rows(Answer);

#[derive(Default)]
struct Answer {
    width: usize,
    cells: Vec<Kept>,
    text: String,
}

impl Rows {
    /// None yet, of so many columns each.
    pub(crate) fn new(width: usize) -> Rows {
        Rows(Answer { width, ..Answer::default() })
    }

    /// The next cell of the last row, or the first of a new one.
    pub(crate) fn push(&mut self, cell: Cell<'_>) {
        let Answer { cells, text, .. } = &mut self.0;
        cells.push(match cell {
            Cell::Null => Kept::Null,
            Cell::Integer(number) => Kept::Integer(number),
            Cell::Text(new) => {
                let length = u32::try_from(new.len()).expect("no database has a text of 4 GiB");
                text.push_str(new);
                Kept::Text { begin: text.len() - new.len(), length }
            }
        });
    }

    pub(crate) fn len(&self) -> usize {
        self.0.cells.len().checked_div(self.0.width).unwrap_or(0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first row, if there is one.
    pub(crate) fn first(self) -> Option<Row> {
        self.into_iter().next()
    }

    /// One column of every row.
    pub(crate) fn column<T: Column>(&self, index: usize) -> impl Iterator<Item = Result<T, StoreError>> {
        let cells = self.0.cells.iter().skip(index).step_by(self.0.width.max(1));
        cells.map(|kept| T::from_cell(self.0.show(*kept)))
    }
}

impl Answer {
    fn show(&self, kept: Kept) -> Cell<'_> {
        match kept {
            Kept::Null => Cell::Null,
            Kept::Integer(number) => Cell::Integer(number),
            Kept::Text { begin, length } => Cell::Text(&self.text[begin..begin + length as usize]),
        }
    }
}

impl IntoIterator for Rows {
    type Item = Row;
    type IntoIter = IntoRows;

    fn into_iter(self) -> IntoRows {
        IntoRows { rest: 0..self.len(), answer: Rc::new(self.0) }
    }
}

/// The rows of an answer, one after the other.
pub(crate) struct IntoRows {
    answer: Rc<Answer>,
    rest: std::ops::Range<usize>,
}

impl Iterator for IntoRows {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        let begin = self.rest.next()? * self.answer.width;
        let rest = begin..begin + self.answer.width;
        Some(Row { answer: Rc::clone(&self.answer), rest })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.rest.size_hint()
    }
}

impl ExactSizeIterator for IntoRows {}

/// One row of an answer, taken column by column in the order of the `select`.
pub(crate) struct Row {
    answer: Rc<Answer>,
    rest: std::ops::Range<usize>,
}

impl Row {
    /// The next column. A value that is not what the schema promises means a damaged database.
    pub(crate) fn take<T: Column>(&mut self) -> Result<T, StoreError> {
        let kept = self.rest.next().and_then(|index| self.answer.cells.get(index));
        let kept = kept.ok_or_else(|| StoreError::Corrupt("a row has too few columns".to_owned()))?;
        T::from_cell(self.answer.show(*kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(width: usize, cells: &[Cell<'_>]) -> Rows {
        let mut rows = Rows::new(width);
        cells.iter().for_each(|cell| rows.push(*cell));
        rows
    }

    #[test]
    fn rows_come_back_as_they_were_pushed() {
        let cells = [Cell::Integer(7), Cell::Text("Grüße"), Cell::Null, Cell::Text("")];
        let found = rows(2, &cells);
        assert_eq!((found.len(), found.is_empty()), (2, false));
        let second: Vec<Option<String>> = found.column(1).collect::<Result<_, _>>().unwrap();
        assert_eq!(second, [Some("Grüße".to_owned()), Some(String::new())]);
        let mut found = found.into_iter();
        let (mut first, mut second) = (found.next().unwrap(), found.next().unwrap());
        assert!(found.next().is_none());
        drop(found);
        assert_eq!(second.take::<Option<i64>>().unwrap(), None);
        assert_eq!((first.take::<i64>().unwrap(), first.take::<String>().unwrap().as_str()), (7, "Grüße"));
        assert!(matches!(first.take::<i64>(), Err(StoreError::Corrupt(_))), "the row behind it is another's");
        assert_eq!(second.take::<String>().unwrap(), "");
    }

    #[test]
    fn a_statement_without_columns_answers_no_rows() {
        for found in [Rows::default(), rows(3, &[])] {
            assert!(found.is_empty() && found.first().is_none());
        }
    }
}
