//! `gkctl port watch`: the ports of a machine, or of many, as they change.
//!
//! Kept simple: the log tells what changed, and how that port stands now is asked for again. So the table is right
//! whatever an event meant.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use gk_client::{Client, ClientError};
use gk_model::history::Event;
use gk_model::id::InstanceRef;
use gk_model::port::{Port, PortRange, Protocol};
use gk_model::port_state::{PortState, State};
use gk_model::query::{EventQuery, Limit, PortQuery};
use gk_model::text::InstanceName;
use gk_model::watch::WatchQuery;

use crate::args::WatchPorts;
use crate::context::{Context, collect};
use crate::event;
use crate::follow::follow;
use crate::output::{self, Column, age, exact, is_live, or_dash};
use crate::port::{addresses, listeners, number, service, since, tint};

/// To the upper left corner, with nothing below.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// A row, and whether it is what changed last.
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

/// Shows the ports until it is interrupted: a table on a terminal, elsewhere the events as lines.
pub(crate) fn watch(context: &Context, wanted: &WatchPorts) -> Result<()> {
    let instance = context.instance_or_all(wanted.all_instances)?;
    let client = context.client()?;
    // Before the ports are read, so that nothing happens in between unseen.
    let one = EventQuery { limit: Some(Limit::at_most(1)), ..EventQuery::default() };
    let log = client.list_events(&one)?.log;
    let query = WatchQuery {
        instance: instance.clone(),
        label: wanted.label.clone(),
        port: wanted.range,
        protocol: wanted.protocol,
        after: Some(log.end()),
        ..WatchQuery::default()
    };
    if !is_live(context) {
        return event::tell(context, &client, &query, false);
    }
    let mut board = Board { client: client.clone(), instance, wanted, ports: BTreeMap::new() };
    board.load()?;
    board.draw(context, &BTreeSet::new())?;
    follow(&client, &query, |event| {
        let changed = board.take(event)?;
        board.draw(context, &changed)
    })
}

type Key = (InstanceName, Port, Protocol);

fn key(port: &PortState) -> Key {
    (port.instance.name.clone(), port.port, port.protocol)
}

/// What is shown.
struct Board<'a> {
    client: Client,
    instance: Option<InstanceRef>,
    wanted: &'a WatchPorts,
    ports: BTreeMap<Key, PortState>,
}

impl Board<'_> {
    fn read(
        &self,
        instance: Option<&InstanceRef>,
        range: Option<PortRange>,
    ) -> Result<Vec<PortState>, ClientError> {
        collect(None, |cursor, limit| {
            let (port, protocol) = (range, self.wanted.protocol);
            let query = PortQuery { port, protocol, cursor, limit, ..PortQuery::default() };
            match instance {
                Some(instance) => self.client.list_instance_ports(instance, &query),
                None => self.client.list_ports(&query),
            }
        })
    }

    fn load(&mut self) -> Result<(), ClientError> {
        let found = self.read(self.instance.as_ref(), self.wanted.range)?;
        self.ports = found.into_iter().map(|port| (key(&port), port)).collect();
        Ok(())
    }

    /// Asks again about the ports of an event. Answers which look different now.
    fn take(&mut self, event: &Event) -> Result<BTreeSet<Key>> {
        let before = self.ports.clone();
        let range =
            event.first_port.zip(event.last_port).and_then(|(first, last)| PortRange::new(first, last).ok());
        match (&event.instance, range) {
            // Wider ranges answer no free ports, so that what is gone could not be told.
            (Some(instance), Some(range)) if range.count() <= PortQuery::WIDEST_WITH_FREE => {
                let found = self.read(Some(&instance.id.into()), Some(range))?;
                let is_asked = |port: &Port| self.wanted.range.is_none_or(|asked| asked.contains(*port));
                let shows_free =
                    self.wanted.range.is_some_and(|asked| asked.count() <= PortQuery::WIDEST_WITH_FREE);
                for port in found.into_iter().filter(|port| is_asked(&port.port)) {
                    if port.state == State::Free && !shows_free {
                        self.ports.remove(&key(&port));
                    } else {
                        self.ports.insert(key(&port), port);
                    }
                }
            }
            _ => self.load()?,
        }
        let differs = |(key, port): &(&Key, &PortState)| {
            before.get(*key).is_none_or(|before| {
                (before.state, &before.reservation, &before.listeners)
                    != (port.state, &port.reservation, &port.listeners)
            })
        };
        Ok(self.ports.iter().filter(differs).map(|(key, _)| key.clone()).collect())
    }

    fn draw(&self, context: &Context, changed: &BTreeSet<Key>) -> Result<()> {
        let rows: Vec<Row> = self
            .ports
            .iter()
            .map(|(key, port)| Row { port: port.clone(), is_new: changed.contains(key) })
            .collect();
        let text = output::table(&COLUMNS, &rows, context);
        let height =
            usize::from(rustix::termios::tcgetwinsize(std::io::stdout()).map_or(24, |size| size.ws_row));
        let mut lines: Vec<&str> = text.lines().collect();
        // A line of headings above, one of remarks below.
        if lines.len() + 1 > height {
            lines.truncate(height.saturating_sub(2));
        }
        let hidden = rows.len().saturating_sub(lines.len().saturating_sub(1));
        let more = if hidden > 0 { format!("… and {hidden} more; ") } else { String::new() };
        Ok(output::print(&format!("{CLEAR}{}\n{more}ctrl-c ends", lines.join("\n")))?)
    }
}
