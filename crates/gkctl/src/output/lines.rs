//! A list that never ends: a line for each item as it comes. For people as wide as they need to be, for programs as
//! JSON lines.

use std::io::IsTerminal as _;

use serde::Serialize;

use super::{Column, List, csv, print};
use crate::args::Format;
use crate::context::Context;
use crate::error::OutputError;

/// Whether people read along: a table was asked for, and stdout is a terminal.
pub(crate) fn is_live(context: &Context) -> bool {
    context.format() == Format::Table && std::io::stdout().is_terminal()
}

/// Prints items one by one.
pub(crate) struct Lines<'a, T> {
    list: List<'a, T>,
    /// Of each column, as wide as the widest so far.
    widths: Vec<usize>,
    has_begun: bool,
}

impl<'a, T: Serialize> Lines<'a, T> {
    pub(crate) fn new(list: List<'a, T>) -> Lines<'a, T> {
        let widths = list.columns.iter().map(|column| column.title.len()).collect();
        Lines { list, widths, has_begun: false }
    }

    /// Prints one more, in the format that was asked for; where that is a table and nobody looks, as JSON.
    pub(crate) fn print(&mut self, context: &Context, item: &T) -> Result<(), OutputError> {
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        let text = match context.format() {
            Format::Name => (self.list.name)(item) + "\n",
            Format::Csv if is_first => csv::render(self.list.columns, std::slice::from_ref(item)),
            Format::Csv => csv::render_line(self.list.columns, item),
            Format::Table if is_live(context) => {
                let heading = self.line(|column| column.title.to_owned());
                let line = self.line(|column| (column.exact)(item));
                if is_first { heading + &line } else { line }
            }
            Format::Table | Format::Json => {
                let json = serde_json::to_string(item);
                json.expect("wire types have string keys and no failing serializers") + "\n"
            }
        };
        print(&text)
    }

    fn line(&mut self, cell: impl Fn(&Column<T>) -> String) -> String {
        let mut line = String::new();
        for (column, width) in self.list.columns.iter().zip(&mut self.widths) {
            let cell = cell(column);
            *width = cell.chars().count().max(*width);
            line.push_str(&format!("{cell:<width$}  "));
        }
        line.trim_end().to_owned() + "\n"
    }
}
