//! Tables for people: plain columns, as wide as the terminal, colours only where they are wanted.

use std::io::IsTerminal;

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};

use super::Column;
use crate::context::Context;

/// What a colour means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tint {
    /// As it should be.
    Good,
    /// Worth a look.
    Odd,
    /// Wrong.
    Bad,
    /// Nothing to say.
    Plain,
}

/// The items below a line of headings.
pub(super) fn render<T>(columns: &[Column<T>], items: &[T], context: &Context) -> String {
    let colours = wants_colours();
    let mut table = bare();
    table.set_header(columns.iter().map(|column| Cell::new(column.title)));
    for item in items {
        table.add_row(columns.iter().map(|column| {
            let cell = Cell::new(column.shown(item, context));
            let tint = column.tint.filter(|_| colours).map_or(Tint::Plain, |tint| tint(item));
            colour_of(tint).map_or(cell.clone(), |colour| cell.fg(colour))
        }));
    }
    finish(&mut table)
}

/// Names and values, without headings.
pub(super) fn pairs(pairs: &[(&str, String)]) -> String {
    let mut table = bare();
    for (name, value) in pairs {
        table.add_row([Cell::new(name), Cell::new(value)]);
    }
    finish(&mut table)
}

/// A table that fits the terminal, if there is one, and is as wide as its contents otherwise.
fn bare() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table
}

/// The lines of a table, flush left and without blanks at their ends.
fn finish(table: &mut Table) -> String {
    let last = table.column_count().saturating_sub(1);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index == last { 0 } else { 2 }));
    }
    table.trim_fmt() + "\n"
}

/// The dark shades: the bright ones vanish on a light background.
fn colour_of(tint: Tint) -> Option<Color> {
    match tint {
        Tint::Good => Some(Color::DarkGreen),
        Tint::Odd => Some(Color::DarkYellow),
        Tint::Bad => Some(Color::DarkRed),
        Tint::Plain => None,
    }
}

/// Colours are for terminals, and never for those who set `NO_COLOR` (to anything but nothing, as its authors ask).
fn wants_colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let text = pairs(&[("server", "http://127.0.0.1:5000".to_owned()), ("agent", "running".to_owned())]);
        assert_eq!(text, "server  http://127.0.0.1:5000\nagent   running\n");
    }
}
