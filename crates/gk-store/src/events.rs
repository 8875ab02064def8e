//! The event log, read.

use gk_model::history::Event;
use gk_model::id::InstanceId;
use gk_model::instance::InstanceLink;
use gk_model::listener::Listener;
use gk_model::port::PortRange;
use gk_model::query::{EventQuery, Page};

use crate::error::{Error, StoreError};
use crate::page;
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
        let rows = self.query(
            "select e.seq, e.at, e.recorded_at, e.kind, e.instance, n.name, e.protocol, e.first_port, e.last_port, \
             e.actor, e.reservation, e.listener, e.message \
             from event e left join instance n on n.id = e.instance \
             where e.seq > $1 and (cast($2 as text) is null or e.instance = $2) \
             and (cast($3 as bigint) is null or (e.first_port <= $4 and e.last_port >= $3)) \
             and (cast($5 as text) is null or e.kind = $5) and (cast($6 as text) is null or e.actor = $6) \
             and (cast($7 as bigint) is null or e.at >= $7) and (cast($8 as bigint) is null or e.at < $8) \
             order by e.seq limit $9",
            values![
                after,
                instance,
                query.port.map(PortRange::first),
                query.port.map(PortRange::last),
                query.kind,
                query.actor.as_ref(),
                query.since,
                query.until,
                query.limit() + 1,
            ],
        )?;
        page::page(rows, query.limit(), read_event, |last| page::cursor(&[&last.seq]))
    }
}

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
