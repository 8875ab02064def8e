//! How results reach stdout: as a table, JSON, CSV or names, from one description of the columns.

pub(crate) mod age;
mod csv;
mod lines;
mod table;

use std::io::{self, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

pub(crate) use self::lines::{Lines, is_live};
pub(crate) use self::table::Tint;
use crate::args::Format;
use crate::context::{Context, note};
use crate::error::OutputError;

/// One column of a list: the same for the table and for CSV, except that the table may say it shorter.
pub(crate) struct Column<T> {
    /// The heading of the table; in CSV lower-case, with `_` for spaces.
    title: &'static str,
    exact: fn(&T) -> String,
    short: Option<fn(&T, &Context) -> String>,
    tint: Option<fn(&T) -> Tint>,
}

impl<T> Column<T> {
    /// A column that says the same everywhere.
    pub(crate) const fn new(title: &'static str, exact: fn(&T) -> String) -> Column<T> {
        Column { title, exact, short: None, tint: None }
    }

    /// Shown differently in a table: times as ages.
    pub(crate) const fn shown_as(self, short: fn(&T, &Context) -> String) -> Column<T> {
        Column { short: Some(short), ..self }
    }

    /// Coloured, where colours are wanted.
    pub(crate) const fn tinted(self, tint: fn(&T) -> Tint) -> Column<T> {
        Column { tint: Some(tint), ..self }
    }

    fn shown(&self, item: &T, context: &Context) -> String {
        self.short.map_or_else(|| (self.exact)(item), |short| short(item, context))
    }
}

/// A kind of list: its columns, what names an item, and what to say when there is none.
pub(crate) struct List<'a, T> {
    pub(crate) columns: &'a [Column<T>],
    pub(crate) name: fn(&T) -> String,
    pub(crate) when_empty: &'a str,
}

impl<T: Serialize> List<'_, T> {
    /// The items as a table, whatever was asked for: for a conversation on stderr.
    pub(crate) fn table(&self, context: &Context, items: &[T]) -> String {
        table::render(self.columns, items, context)
    }

    /// Prints the items in the format that was asked for.
    pub(crate) fn print(&self, context: &Context, items: &[T]) -> Result<(), OutputError> {
        if items.is_empty() {
            note(self.when_empty);
        }
        match context.format() {
            Format::Table if items.is_empty() => Ok(()),
            Format::Table => print(&self.table(context, items)),
            Format::Json => print_json(items),
            Format::Csv => print(&csv::render(self.columns, items)),
            Format::Name => print(&items.iter().map(|item| (self.name)(item) + "\n").collect::<String>()),
        }
    }
}

/// A table of these items, however stdout looks.
pub(crate) fn table<T>(columns: &[Column<T>], items: &[T], context: &Context) -> String {
    table::render(columns, items, context)
}

/// Whether anybody still reads stdout; who only waits would not find out.
pub(crate) fn check_reader() -> Result<(), OutputError> {
    let stdout = io::stdout();
    let mut ends = [PollFd::new(&stdout, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let is_closed = poll(&mut ends, Some(&now)).is_ok()
        && ends[0].revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
    if is_closed { Err(io::Error::from(io::ErrorKind::BrokenPipe).into()) } else { Ok(()) }
}

/// Prints a value as JSON.
pub(crate) fn print_json<T: Serialize + ?Sized>(value: &T) -> Result<(), OutputError> {
    let text =
        serde_json::to_string_pretty(value).expect("wire types have string keys and no failing serializers");
    print(&(text + "\n"))
}

/// Prints names and values of one thing, the values in a column.
pub(crate) fn print_pairs(pairs: &[(&str, String)]) -> Result<(), OutputError> {
    print(&table::pairs(pairs))
}

/// Prints text as it is.
pub(crate) fn print(text: &str) -> Result<(), OutputError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// What is shown where there is nothing.
pub(crate) fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| text.to_string())
}

/// The exact text of something that may be missing; empty then.
pub(crate) fn exact(text: Option<impl ToString>) -> String {
    text.map_or_else(String::new, |text| text.to_string())
}
