//! The event log, read.

use std::collections::HashMap;

use gk_model::history::{Event, EventKind};
use gk_model::id::{InstanceId, InstanceRef};
use gk_model::labels::Labels;
use gk_model::port::PortRange;
use gk_model::query::EventQuery;
use gk_model::watch::{EventCursor, EventPage, Log};

use crate::error::{Error, StoreError};
use crate::log::check;
use crate::page::{self, Filters};
use crate::rows::Row;
use crate::space::Names;
use crate::tx::Reader;
use crate::value::{Json, Value, values};

/// How often a page goes on reading where few instances have the labels that it is about. After that it ends, with a
/// cursor, however little it has: nobody waits for a walk through a whole long log.
const MOST_ROUNDS: usize = 16;

/// An event, and what is known besides of its instance.
#[derive(Clone, Debug)]
pub struct Logged {
    /// The event.
    pub event: Event,
    /// What the instance was labelled with when this was read; none for what is about no instance.
    pub labels: Option<Labels>,
}

impl Reader<'_> {
    /// Events in the order of their numbers, or against it. Without a port, those about no port are listed too.
    ///
    /// # Errors
    /// [`crate::Refusal::NoSuchInstance`], [`crate::Refusal::BadCursor`], [`crate::Refusal::StaleCursor`].
    pub fn list_events(&mut self, query: &EventQuery) -> Result<EventPage, Error> {
        let log = self.log()?;
        let begin = query.cursor.as_deref().map(page::part::<EventCursor>).transpose()?;
        let mut place = begin.map(|cursor| check(log, reachable(cursor, query, log))).transpose()?;
        let instance = self.resolve(query.instance.as_ref())?;
        let limit = query.limit() as usize;
        let (mut items, mut more) = (Vec::new(), true);
        for _ in 0..MOST_ROUNDS {
            let read = self.read_events(query, place, instance)?;
            let chosen = self.list_labelled(query, &read)?;
            more = read.len() > limit;
            let some = read.len().min(limit);
            for event in read.into_iter().take(some) {
                if items.len() == limit {
                    more = true;
                    break;
                }
                place = Some(if is_newest_first(query) { event.seq - 1 } else { event.seq });
                if chosen.as_ref().is_none_or(|chosen| is_about(&event, chosen)) {
                    items.push(event);
                }
            }
            if !more || items.len() == limit {
                break;
            }
        }
        let next = place.filter(|_| more).map(|seq| log.cursor(seq).to_string());
        Ok(EventPage { items, next, log })
    }

    /// Where a watch begins: the log, the place (behind its newest event unless told), and the instance it is about.
    ///
    /// # Errors
    /// [`crate::Refusal::NoSuchInstance`], [`crate::Refusal::StaleCursor`].
    pub fn begin_watch(
        &mut self,
        after: Option<EventCursor>,
        instance: Option<&InstanceRef>,
    ) -> Result<(Log, EventCursor, Option<InstanceId>), Error> {
        let log = self.log()?;
        let seq = after.map_or(Ok(log.newest_seq), |after| check(log, after))?;
        Ok((log, log.cursor(seq), self.resolve(instance)?))
    }

    /// What follows a place in the log, whatever it is about, at most so many events; and the log.
    ///
    /// # Errors
    /// [`crate::Refusal::StaleCursor`].
    pub fn list_logged(&mut self, after: EventCursor, most: u32) -> Result<(Log, Vec<Logged>), Error> {
        let log = self.log()?;
        let after = check(log, after)?;
        let filters = Filters::new("e.seq > $1", values![after]);
        let (sql, values) = filters.finish(SELECT, "e.seq", most.saturating_sub(1));
        let events = self.select_events(&sql, &values)?;
        let labels = self.list_labels(&events)?;
        let logged = events.into_iter().map(|event| {
            let labels = event.instance.as_ref().and_then(|instance| labels.get(&instance.id)).cloned();
            Logged { event, labels }
        });
        Ok((log, logged.collect()))
    }

    /// One event more than a page has, by all filters but labels.
    fn read_events(
        &mut self,
        query: &EventQuery,
        place: Option<u64>,
        instance: Option<InstanceId>,
    ) -> Result<Vec<Event>, StoreError> {
        let Some(kinds) = &query.kind else {
            let (sql, values) = select(query, place, None, instance);
            return self.select_events(&sql, &values);
        };
        // Each kind by itself, in its own index: of several at once a database would have to sort all there are.
        let mut events = Vec::new();
        for kind in kinds.iter() {
            let (sql, values) = select(query, place, Some(kind), instance);
            events.extend(self.select_events(&sql, &values)?);
        }
        events.sort_unstable_by_key(|event| event.seq);
        if is_newest_first(query) {
            events.reverse();
        }
        events.truncate(query.limit() as usize + 1);
        Ok(events)
    }

    fn select_events(&mut self, sql: &str, values: &[Value]) -> Result<Vec<Event>, StoreError> {
        let rows = self.query(sql, values)?;
        let names = self.list_names(&rows, INSTANCE)?;
        rows.into_iter().map(|row| read_event(row, &names)).collect()
    }

    fn list_labels(&mut self, events: &[Event]) -> Result<HashMap<InstanceId, Labels>, StoreError> {
        let ids = events.iter().filter_map(|event| event.instance.as_ref()).map(|instance| instance.id);
        let found = self.look_up::<Json<Labels>>(ids.collect(), "labels")?;
        Ok(found.into_iter().map(|(id, Json(labels))| (id, labels)).collect())
    }

    /// Which of the instances that these events are about have the labels asked for; none where all do.
    fn list_labelled(
        &mut self,
        query: &EventQuery,
        events: &[Event],
    ) -> Result<Option<Vec<InstanceId>>, StoreError> {
        let Some(selector) = &query.label else { return Ok(None) };
        let labels = self.list_labels(events)?;
        let chosen = labels.into_iter().filter(|(_, labels)| selector.matches(labels)).map(|(id, _)| id);
        Ok(Some(chosen.collect()))
    }
}

fn is_about(event: &Event, chosen: &[InstanceId]) -> bool {
    event.instance.as_ref().is_some_and(|instance| chosen.contains(&instance.id))
}

const SELECT: &str = "select e.seq, e.at, e.recorded_at, e.kind, e.instance, e.protocol, e.first_port, \
                      e.last_port, e.actor, e.reservation, e.listener, e.message, e.origin from event e";

/// The place of the instance in it.
const INSTANCE: usize = 4;

const BEHIND_TIME: &str = "e.seq >= (select min(o.seq + 0) from event o where o.at >= $?)";

fn is_newest_first(query: &EventQuery) -> bool {
    query.newest == Some(true)
}

/// Whoever goes back comes to the end where the log was pruned to meanwhile, and has missed nothing.
fn reachable(cursor: EventCursor, query: &EventQuery, log: Log) -> EventCursor {
    let end = log.oldest_seq.saturating_sub(1);
    if is_newest_first(query) { EventCursor { seq: cursor.seq.max(end), ..cursor } } else { cursor }
}

/// The statement for one page: of what is behind a place or, where the newest come first, of what is not. An index gives
/// the order whatever the filters are, so no page sorts.
fn select(
    query: &EventQuery,
    place: Option<u64>,
    kind: Option<EventKind>,
    instance: Option<InstanceId>,
) -> (String, Vec<Value>) {
    // What happened lately is at the end of a long log: the first page begins there, not at the beginning. Later pages
    // have their cursor; of two lower bounds the database would use the first and read on to the second. Additions of 0
    // keep it from an index: from looking for the lowest number in the order of numbers, and from reading a page in the
    // order of times, which it would have to sort.
    let beginning = match (place, query.since) {
        (Some(place), since) if is_newest_first(query) => {
            Filters::new("e.seq <= $1", values![place]).and(BEHIND_TIME, since)
        }
        (Some(place), _) => Filters::new("e.seq > $1", values![place]),
        (None, Some(since)) => Filters::new(&BEHIND_TIME.replace("$?", "$1"), values![since]),
        (None, None) => Filters::new("e.seq > 0", &[]),
    };
    let filters = beginning
        .and("e.instance = $?", instance)
        .and("e.first_port <= $?", query.port.map(PortRange::last))
        .and("e.last_port >= $?", query.port.map(PortRange::first))
        .and("e.protocol = $?", query.protocol)
        .and("e.kind = $?", kind)
        .and("e.actor = $?", query.actor.as_ref())
        .and("e.at + 0 >= $?", query.since)
        .and("e.at + 0 < $?", query.until);
    let order = if is_newest_first(query) { "e.seq desc" } else { "e.seq" };
    filters.finish(SELECT, order, query.limit())
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
    use gk_model::port::Protocol;
    use gk_model::time::Timestamp;

    use super::*;
    use crate::schema::plan;

    #[test]
    fn no_page_of_the_log_sorts_or_reads_from_the_beginning() {
        let now = Timestamp::from_micros(0);
        let id = InstanceId::generate(now);
        for filters in 0..256 {
            let on = |bit: u32| (filters >> bit & 1 == 1).then_some(());
            let query = EventQuery {
                port: on(1).map(|()| "8000-8010".parse().unwrap()),
                actor: on(3).map(|()| "ada".parse().unwrap()),
                since: on(4).map(|()| now),
                until: on(5).map(|()| now),
                protocol: on(6).map(|()| Protocol::Tcp),
                newest: on(7).map(|()| true),
                ..Default::default()
            };
            for place in [Some(7), None] {
                let kind = on(2).map(|()| EventKind::Joined);
                let (sql, values) = select(&query, place, kind, on(0).map(|()| id));
                let plan = plan(&sql, &values);
                assert!(!plan.contains("TEMP B-TREE") && !plan.contains("SCAN"), "{query:?}: {plan}");
            }
        }
    }

    #[test]
    fn each_filter_that_few_events_pass_has_an_index() {
        let now = Timestamp::from_micros(0);
        let by = |query: &EventQuery, kind, instance| {
            let (sql, values) = select(query, None, kind, instance);
            plan(&sql, &values)
        };
        let none = EventQuery::default;
        let table = [
            ("event_instance", by(&none(), None, Some(InstanceId::generate(now)))),
            ("event_kind", by(&none(), Some(EventKind::Joined), None)),
            ("event_actor", by(&EventQuery { actor: "ada".parse().ok(), ..none() }, None, None)),
            ("event_at", by(&EventQuery { since: Some(now), ..none() }, None, None)),
        ];
        for (index, plan) in table {
            assert!(plan.contains(index), "{index}: {plan}");
        }
    }
}
