//! What a terminal shows of a watch: as many ports as there is room for, in their order, and of more than that those that
//! changed last.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::stdout;

use gk_model::port::{Port, Protocol};
use gk_model::port_state::PortState;
use gk_model::text::InstanceName;
use rustix::termios::tcgetwinsize;

use crate::context::Context;
use crate::error::OutputError;
use crate::output::{self, Column, age, exact, or_dash};
use crate::port::{addresses, listeners, number, service, since, tint};

/// To the upper left corner, with nothing below.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// How high a terminal is that does not tell.
const USUAL_HEIGHT: u16 = 24;

type Key = (InstanceName, Port, Protocol);

fn key(port: &PortState) -> Key {
    (port.instance.name.clone(), port.port, port.protocol)
}

/// A port, and the number of the event that changed how it looks, if one did.
struct Shown {
    port: PortState,
    changed_by: Option<u64>,
}

impl Shown {
    fn looks_like(&self, port: &PortState) -> bool {
        (self.port.state, &self.port.reservation, &self.port.listeners)
            == (port.state, &port.reservation, &port.listeners)
    }
}

struct Row {
    port: PortState,
    is_new: bool,
}

const COLUMNS: [Column<Row>; 8] = [
    Column::new("", |row: &Row| if row.is_new { "*".to_owned() } else { String::new() }),
    Column::new("INSTANCE", |row: &Row| row.port.instance.name.to_string()),
    Column::new("PORT", |row: &Row| number(&row.port)),
    Column::new("STATE", |row: &Row| row.port.state.to_string()).tinted(|row| tint(&row.port)),
    Column::new("SERVICE", |row: &Row| or_dash(service(&row.port))),
    Column::new("LISTENER", |row: &Row| listeners(&row.port)),
    Column::new("ADDRESS", |row: &Row| addresses(&row.port)),
    Column::new("SINCE", |row: &Row| exact(since(&row.port).map(age::exact))),
];

/// The ports that are watched, as they were last read.
#[derive(Default)]
pub(super) struct Board {
    ports: BTreeMap<Key, Shown>,
    /// The event that was heard last.
    heard: Option<u64>,
}

impl Board {
    /// All of them anew, after an event or at the beginning.
    pub(super) fn replace(&mut self, ports: Vec<PortState>, event: Option<u64>) {
        let mut before = std::mem::take(&mut self.ports);
        for port in ports {
            let shown = before.remove(&key(&port));
            self.show(port, event, shown);
        }
        self.heard = event;
    }

    /// One of them, after an event.
    pub(super) fn put(&mut self, port: PortState, event: u64) {
        let before = self.ports.remove(&key(&port));
        self.show(port, Some(event), before);
        self.heard = Some(event);
    }

    /// One of them, of which there is nothing to tell any more after an event.
    pub(super) fn remove(&mut self, port: &PortState, event: u64) {
        self.ports.remove(&key(port));
        self.heard = Some(event);
    }

    fn show(&mut self, port: PortState, event: Option<u64>, before: Option<Shown>) {
        let unchanged = before.filter(|before| before.looks_like(&port));
        let changed_by = unchanged.map_or(event, |before| before.changed_by);
        self.ports.insert(key(&port), Shown { port, changed_by });
    }

    /// Fills the terminal.
    pub(super) fn draw(&self, context: &Context) -> Result<(), OutputError> {
        let height = tcgetwinsize(stdout()).map_or(USUAL_HEIGHT, |size| size.ws_row);
        // Headings above, a remark below.
        let room = usize::from(height).saturating_sub(2);
        // Of narrow columns a row takes several lines.
        let tables = (0..=room.min(self.ports.len())).rev().map(|count| (count, self.table(count, context)));
        let (count, table) =
            tables.into_iter().find(|(_, table)| table.lines().count() <= room + 1).unwrap_or_default();
        let hidden = self.ports.len() - count;
        let more = if hidden > 0 { format!("… and {hidden} more; ") } else { String::new() };
        output::print(&format!("{CLEAR}{table}{more}ctrl-c ends"))
    }

    /// So many rows: what changed last, else what comes first; all in the order of the ports.
    fn table(&self, count: usize, context: &Context) -> String {
        let mut chosen: Vec<(&Key, &Shown)> = self.ports.iter().collect();
        chosen.sort_by_key(|(_, shown)| Reverse(shown.changed_by));
        chosen.truncate(count);
        chosen.sort_by_key(|(key, _)| *key);
        let is_new = |shown: &Shown| shown.changed_by.is_some() && shown.changed_by == self.heard;
        let rows =
            chosen.into_iter().map(|(_, shown)| Row { port: shown.port.clone(), is_new: is_new(shown) });
        output::table(&COLUMNS, &rows.collect::<Vec<_>>(), context)
    }
}
