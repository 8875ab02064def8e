//! `gkctl port watch`: the ports of a machine, or of many, as they change.
//!
//! Kept simple: the log tells what changed, and how that port stands now is asked for again. So the table is right
//! whatever an event meant.

mod board;

use anyhow::Result;
use gk_client::{Client, ClientError};
use gk_model::history::Event;
use gk_model::id::InstanceRef;
use gk_model::port::PortRange;
use gk_model::port_state::{PortState, State};
use gk_model::query::{EventQuery, Limit, PortQuery};
use gk_model::watch::WatchQuery;

use self::board::Board;
use crate::args::WatchPorts;
use crate::context::{Context, collect};
use crate::event;
use crate::follow::follow;
use crate::output::is_live;

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
    let watched = Watched { client: client.clone(), instance, wanted };
    let mut board = Board::default();
    board.replace(watched.read_all()?, None);
    board.draw(context)?;
    follow(&client, &query, |event| {
        watched.take(event, &mut board)?;
        Ok(board.draw(context)?)
    })
}

/// Which ports are watched, and who is asked about them.
struct Watched<'a> {
    client: Client,
    instance: Option<InstanceRef>,
    wanted: &'a WatchPorts,
}

impl Watched<'_> {
    fn read_all(&self) -> Result<Vec<PortState>, ClientError> {
        self.read(self.instance.as_ref(), self.wanted.range)
    }

    fn read(
        &self,
        instance: Option<&InstanceRef>,
        range: Option<PortRange>,
    ) -> Result<Vec<PortState>, ClientError> {
        collect(None, |cursor, limit| {
            let (port, protocol, label) = (range, self.wanted.protocol, self.wanted.label.clone());
            let query = PortQuery { port, protocol, label, cursor, limit, ..PortQuery::default() };
            match instance {
                Some(instance) => self.client.list_instance_ports(instance, &query),
                None => self.client.list_ports(&query),
            }
        })
    }

    /// Asks again about the ports of an event.
    fn take(&self, event: &Event, board: &mut Board) -> Result<()> {
        let range =
            event.first_port.zip(event.last_port).and_then(|(first, last)| PortRange::new(first, last).ok());
        let (Some(instance), Some(range)) = (&event.instance, range.filter(tells_free)) else {
            return Ok(board.replace(self.read_all()?, Some(event.seq)));
        };
        for port in self.read(Some(&instance.id.into()), Some(range))? {
            let is_asked = self.wanted.range.is_none_or(|asked| asked.contains(port.port));
            // A free port may have a listener in another namespace.
            let is_unused = port.state == State::Free && port.listeners.is_empty();
            if is_unused && !self.wanted.range.as_ref().is_some_and(tells_free) {
                board.remove(&port, event.seq);
            } else if is_asked {
                board.put(port, event.seq);
            }
        }
        Ok(())
    }
}

/// Of wider ranges the server tells no free ports, so that what is gone could not be told.
fn tells_free(range: &PortRange) -> bool {
    range.count() <= PortQuery::WIDEST_WITH_FREE
}
