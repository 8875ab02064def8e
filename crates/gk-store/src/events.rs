//! The event log, read.

use gk_model::history::Event;
use gk_model::id::InstanceId;
use gk_model::instance::InstanceLink;
use gk_model::listener::Listener;
use gk_model::port::PortRange;
use gk_model::query::{EventQuery, Page};

use crate::error::{Error, StoreError};
use crate::page::{self, Filters};
use crate::tx::Reader;
use crate::value::{Json, Row, values};

impl Reader<'_> {
    /// Events in the order of their numbers. Without a port, those about no port are listed too.
    ///
    /// # Errors
    /// [`crate::Refusal::NoSuchInstance`], [`crate::Refusal::BadCursor`].
    pub fn list_events(&mut self, query: &EventQuery) -> Result<Page<Event>, Error> {
        let instance = self.resolve(query.instance.as_ref())?;
        let after: i64 = query.cursor.as_deref().map_or(Ok(0), page::part)?;
        let filters = Filters::new("e.seq > $1", values![after])
            .and("e.instance = $?", instance)
            .and("e.first_port <= $?", query.port.map(PortRange::last))
            .and("e.last_port >= $?", query.port.map(PortRange::first))
            .and("e.kind = $?", query.kind)
            .and("e.actor = $?", query.actor.as_ref())
            .and("e.at >= $?", query.since)
            .and("e.at < $?", query.until);
        let (sql, values) = filters.finish(SELECT, "e.seq", query.limit());
        let rows = self.query(&sql, &values)?;
        page::page(rows, query.limit(), read_event, |last| page::cursor(&[&last.seq]))
    }
}

const SELECT: &str = "select e.seq, e.at, e.recorded_at, e.kind, e.instance, n.name, e.protocol, e.first_port, \
                      e.last_port, e.actor, e.reservation, e.listener, e.message \
                      from event e left join instance n on n.id = e.instance";

fn read_event(mut row: Row) -> Result<Event, StoreError> {
    let (seq, at, recorded_at, kind) = (row.take()?, row.take()?, row.take()?, row.take()?);
    let (id, name): (Option<InstanceId>, Option<_>) = (row.take()?, row.take()?);
    Ok(Event {
        seq,
        at,
        recorded_at,
        kind,
        instance: id.zip(name).map(|(id, name)| InstanceLink { id, name }),
        protocol: row.take()?,
        first_port: row.take()?,
        last_port: row.take()?,
        actor: row.take()?,
        reservation: row.take()?,
        listener: row.take::<Option<Json<Listener>>>()?.map(|Json(listener)| listener),
        message: row.take()?,
    })
}
