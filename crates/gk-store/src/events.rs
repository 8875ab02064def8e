//! The event log, read.

use gk_model::history::Event;
use gk_model::id::InstanceId;
use gk_model::port::PortRange;
use gk_model::query::{EventQuery, Page};

use crate::error::{Error, Refusal, StoreError};
use crate::page::{self, Filters};
use crate::rows::Row;
use crate::space::Names;
use crate::tx::Reader;
use crate::value::{Json, Value, values};

impl Reader<'_> {
    /// Events in the order of their numbers. Without a port, those about no port are listed too.
    ///
    /// # Errors
    /// [`crate::Refusal::NoSuchInstance`], [`crate::Refusal::BadCursor`].
    pub fn list_events(&mut self, query: &EventQuery) -> Result<Page<Event>, Error> {
        let instance = self.resolve(query.instance.as_ref())?;
        let (sql, values) = select(query, instance)?;
        let rows = self.query(&sql, &values)?;
        let names = self.list_names(&rows, INSTANCE)?;
        let read = |row| read_event(row, &names);
        page::page(rows, query.limit(), read, |last| page::cursor(&[&last.seq]))
    }
}

const SELECT: &str = "select e.seq, e.at, e.recorded_at, e.kind, e.instance, e.protocol, e.first_port, \
                      e.last_port, e.actor, e.reservation, e.listener, e.message, e.origin from event e";

/// The place of the instance in it.
const INSTANCE: usize = 4;

/// The statement for one page. An index gives the order whatever the filters are, so no page sorts.
fn select(query: &EventQuery, instance: Option<InstanceId>) -> Result<(String, Vec<Value>), Refusal> {
    // What happened lately is at the end of a long log: the first page begins there, not at the beginning. Later pages
    // have their cursor; of two lower bounds the database would use the first and read on to the second. Additions of 0
    // keep it from an index: from looking for the lowest number in the order of numbers, and from reading a page in the
    // order of times, which it would have to sort.
    let beginning = match (&query.cursor, query.since) {
        (Some(cursor), _) => Filters::new("e.seq > $1", values![page::part::<i64>(cursor)?]),
        (None, Some(since)) => {
            Filters::new("e.seq >= (select min(o.seq + 0) from event o where o.at >= $1)", values![since])
        }
        (None, None) => Filters::new("e.seq > 0", &[]),
    };
    let filters = beginning
        .and("e.instance = $?", instance)
        .and("e.first_port <= $?", query.port.map(PortRange::last))
        .and("e.last_port >= $?", query.port.map(PortRange::first))
        .and("e.kind = $?", query.kind)
        .and("e.actor = $?", query.actor.as_ref())
        .and("e.at + 0 >= $?", query.since)
        .and("e.at + 0 < $?", query.until);
    Ok(filters.finish(SELECT, "e.seq", query.limit()))
}

fn read_event(mut row: Row, names: &Names) -> Result<Event, StoreError> {
    let (seq, at, recorded_at, kind) = (row.take()?, row.take()?, row.take()?, row.take()?);
    Ok(Event {
        seq,
        at,
        recorded_at,
        kind,
        instance: names.take_link(&mut row)?,
        protocol: row.take()?,
        first_port: row.take()?,
        last_port: row.take()?,
        actor: row.take()?,
        reservation: row.take()?,
        listener: row.take::<Option<Json<_>>>()?.map(|Json(listener)| listener),
        message: row.take()?,
        origin: row.take::<Option<Json<_>>>()?.map(|Json(origin)| origin),
    })
}

#[cfg(test)]
mod tests {
    use gk_model::history::EventKind;
    use gk_model::time::Timestamp;

    use super::*;
    use crate::schema::plan;

    #[test]
    fn no_page_of_the_log_sorts_or_reads_from_the_beginning() {
        let now = Timestamp::from_micros(0);
        let id = InstanceId::generate(now);
        for filters in 0..64 {
            let on = |bit: u32| (filters >> bit & 1 == 1).then_some(());
            let query = EventQuery {
                port: on(1).map(|()| "8000-8010".parse().unwrap()),
                kind: on(2).map(|()| EventKind::Joined),
                actor: on(3).map(|()| "ada".parse().unwrap()),
                since: on(4).map(|()| now),
                until: on(5).map(|()| now),
                cursor: Some("7".to_owned()),
                ..Default::default()
            };
            for query in [query.clone(), EventQuery { cursor: None, ..query }] {
                let (sql, values) = select(&query, on(0).map(|()| id)).unwrap();
                let plan = plan(&sql, &values);
                assert!(!plan.contains("TEMP B-TREE") && !plan.contains("SCAN"), "{query:?}: {plan}");
            }
        }
    }

    #[test]
    fn each_filter_that_few_events_pass_has_an_index() {
        let now = Timestamp::from_micros(0);
        let by = |query: &EventQuery, instance| {
            let (sql, values) = select(query, instance).unwrap();
            plan(&sql, &values)
        };
        let none = EventQuery::default;
        let table = [
            ("event_instance", by(&none(), Some(InstanceId::generate(now)))),
            ("event_kind", by(&EventQuery { kind: Some(EventKind::Joined), ..none() }, None)),
            ("event_actor", by(&EventQuery { actor: "ada".parse().ok(), ..none() }, None)),
            ("event_at", by(&EventQuery { since: Some(now), ..none() }, None)),
        ];
        for (index, plan) in table {
            assert!(plan.contains(index), "{index}: {plan}");
        }
    }
}
