//! Listeners: applying what an agent saw to what is stored, as events and intervals.
//!
//! This is the only code that opens and closes listeners, and it knows nothing of reservations (rule 1 of the domain).
//! What became of the ports it says to `settle`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use gk_model::contact::{Churn, Closed, Part, Piece};
use gk_model::history::{EventKind, IntervalKind};
use gk_model::id::InstanceId;
use gk_model::listener::{Digest, Listener, ListenerKey, Netns};
use gk_model::port::{Port, PortRange, Protocol};
use gk_model::text::{Observed, Subject};
use gk_model::time::Timestamp;

use crate::error::{Error, StoreError};
use crate::history::NewInterval;
use crate::rows::Row;
use crate::settle::Touched;
use crate::tx::{NewEvent, Reader, Tx};
use crate::value::{Json, Value, values};

/// Whose contact is applied, and how its clock relates to ours.
pub(crate) struct Observation {
    pub(crate) instance: InstanceId,
    /// Who tells it: the actor of its events.
    pub(crate) subject: Subject,
    pub(crate) received_at: Timestamp,
    pub(crate) sent_at: Timestamp,
}

impl Observation {
    /// A time of the agent's clock by ours, never in the future.
    fn correct(&self, at: Timestamp) -> Timestamp {
        let offset = self.received_at.as_micros().saturating_sub(self.sent_at.as_micros());
        Timestamp::from_micros(at.as_micros().saturating_add(offset)).min(self.received_at)
    }
}

/// What a report, or a piece of one, is complete for.
pub(crate) struct Covered<'c> {
    pub(crate) parts: &'c [Part],
    pub(crate) piece: &'c Piece,
    /// Every namespace that there is, if the agent knows them all.
    pub(crate) namespaces: Option<&'c [Netns]>,
    /// When, by the agent's clock; when it was received, if the agent does not say.
    pub(crate) seen_at: Option<Timestamp>,
}

impl Covered<'_> {
    /// Whether the listener is gone when the report does not show it. The home namespace is always there.
    fn covers(&self, key: &ListenerKey) -> bool {
        let is_there = |all: &[Netns]| key.netns == Netns::Home || all.contains(&key.netns);
        let is_covered = self.parts.contains(&key.part()) || !self.namespaces.is_none_or(is_there);
        is_covered && self.piece.holds(key)
    }
}

/// A listener as stored, with the number of the event that began its interval.
struct Stored {
    listener: Listener,
    began_seq: u64,
}

/// How many listeners are looked up one by one rather than by reading all of an instance.
const FEW: usize = 8;

const KEY_COLUMNS: &str = "instance = $1 and netns = $2 and protocol = $3 and port = $4 and address = $5 \
                           and interface = $6 and v6only = $7";

/// The values of the primary key, in the order of [`KEY_COLUMNS`]. No interface is the empty text: null equals nothing.
fn key_values(instance: InstanceId, key: &ListenerKey) -> [Value; 7] {
    let interface = key.interface.as_ref().map_or("", Observed::as_str);
    [
        instance.into(),
        key.netns.into(),
        key.protocol.into(),
        key.port.into(),
        key.address.to_string().into(),
        interface.into(),
        key.v6only.into(),
    ]
}

// The listeners of an instance, each in the order of the primary key, which it therefore follows from where it begins.

const SELECT_IN_WINDOW: &str = "select body from listener where instance = $1 and port between $2 and $3 \
    and (cast($4 as text) is null or protocol = $4) \
    and (protocol, port) > ($5, $6) and (protocol, port) <= ($7, $8) \
    order by protocol, port, netns, address, interface, v6only";

const SELECT_ON_PORTS: &str = "select body from listener where instance = $1 and protocol = $2 \
    and port between $3 and $4 order by port, netns, address, interface, v6only";

const SELECT_NTH_PORT: &str = "select protocol, port from listener where instance = $1 and port between $2 and $3 \
    and (cast($4 as text) is null or protocol = $4) and (protocol, port) > ($5, $6) \
    order by protocol, port limit 1 offset $7";

fn read_stored(mut row: Row) -> Result<Stored, StoreError> {
    let Json(listener) = row.take()?;
    Ok(Stored { listener, began_seq: row.take()? })
}

impl Reader<'_> {
    fn list_stored(&mut self, instance: InstanceId) -> Result<BTreeMap<ListenerKey, Stored>, StoreError> {
        let rows =
            self.query("select body, began_seq from listener where instance = $1", values![instance])?;
        let stored = rows.into_iter().map(read_stored);
        stored.map(|stored| stored.map(|stored| (stored.listener.key.clone(), stored))).collect()
    }

    /// At least those that a delta is about: one by one when they are few, since an instance may have thousands.
    fn list_stored_of(
        &mut self,
        instance: InstanceId,
        seen: &[Listener],
        closed: &[Closed],
    ) -> Result<BTreeMap<ListenerKey, Stored>, StoreError> {
        if seen.len() + closed.len() > FEW {
            return self.list_stored(instance);
        }
        let keys = seen.iter().map(|listener| &listener.key).chain(closed.iter().map(|closed| &closed.key));
        let mut found = BTreeMap::new();
        for key in keys {
            if let Some(stored) = self.find_stored(instance, key)? {
                found.insert(key.clone(), stored);
            }
        }
        Ok(found)
    }

    fn find_stored(&mut self, instance: InstanceId, key: &ListenerKey) -> Result<Option<Stored>, StoreError> {
        let row = self.query_one(
            &format!("select body, began_seq from listener where {KEY_COLUMNS}"),
            &key_values(instance, key),
        )?;
        row.map(read_stored).transpose()
    }

    /// Every listener of an instance, by protocol and port.
    pub(crate) fn list_listeners(&mut self, instance: InstanceId) -> Result<Vec<Listener>, StoreError> {
        self.list_listeners_in(instance, None, None, &Window { after: None, until: None })
    }

    /// Those of them that are in a range of ports, and in a window.
    pub(crate) fn list_listeners_in(
        &mut self,
        instance: InstanceId,
        range: Option<PortRange>,
        protocol: Option<Protocol>,
        window: &Window,
    ) -> Result<Vec<Listener>, StoreError> {
        let range = range.unwrap_or(PortRange::ALL);
        let (after, until) = (window.after.map_or(Window::BEFORE_ALL, Window::numbers), window.last());
        let rows = self.query(
            SELECT_IN_WINDOW,
            values![instance, range.first(), range.last(), protocol, after.0, after.1, until.0, until.1],
        )?;
        rows.into_iter().map(|mut row| row.take().map(|Json(listener)| listener)).collect()
    }

    /// Every listener of an instance on these ports.
    pub(crate) fn list_listeners_on(
        &mut self,
        instance: InstanceId,
        protocol: Protocol,
        range: PortRange,
    ) -> Result<Vec<Listener>, StoreError> {
        let rows = self.query(SELECT_ON_PORTS, values![instance, protocol, range.first(), range.last()])?;
        rows.into_iter().map(|mut row| row.take().map(|Json(listener)| listener)).collect()
    }

    /// The port of the listener with so many before it, of those that `list_listeners_in` would list after a port; `None`
    /// when there are no more than that. Read from the index alone.
    pub(crate) fn find_listened_port(
        &mut self,
        instance: InstanceId,
        range: Option<PortRange>,
        protocol: Option<Protocol>,
        after: Option<(Protocol, Port)>,
        before_it: usize,
    ) -> Result<Option<(Protocol, Port)>, StoreError> {
        let range = range.unwrap_or(PortRange::ALL);
        let after = after.map_or(Window::BEFORE_ALL, Window::numbers);
        let before_it = i64::try_from(before_it).unwrap_or(i64::MAX);
        let values = values![instance, range.first(), range.last(), protocol, after.0, after.1, before_it];
        self.query_one(SELECT_NTH_PORT, values)?.map(|mut row| Ok((row.take()?, row.take()?))).transpose()
    }
}

/// Ports of both protocols in their order: those after one, up to and with another.
pub(crate) struct Window {
    /// None for the beginning.
    pub(crate) after: Option<(Protocol, Port)>,
    /// None for the end.
    pub(crate) until: Option<(Protocol, Port)>,
}

impl Window {
    /// As the database sorts: port 0 is none.
    const BEFORE_ALL: (Protocol, i64) = (Protocol::Tcp, 0);

    pub(crate) fn contains(&self, port: (Protocol, Port)) -> bool {
        self.after.is_none_or(|after| port > after) && self.until.is_none_or(|until| port <= until)
    }

    fn last(&self) -> (Protocol, i64) {
        Window::numbers(self.until.unwrap_or((Protocol::Udp, Port::MAX)))
    }

    fn numbers((protocol, port): (Protocol, Port)) -> (Protocol, i64) {
        (protocol, i64::from(port.get()))
    }
}

impl Tx<'_> {
    /// What changed since the last contact. Answers the digest of the set after it.
    pub(crate) fn apply_delta(
        &mut self,
        observation: &Observation,
        mut digest: Digest,
        seen: &[Listener],
        closed: &[Closed],
    ) -> Result<Digest, Error> {
        let mut stored = self.list_stored_of(observation.instance, seen, closed)?;
        let mut touched = Touched::default();
        for closed in closed {
            if let Some(stored) = stored.remove(&closed.key) {
                digest.remove(&stored.listener);
                let at = observation.correct(closed.at);
                touched.close(&stored.listener, at);
                self.close(observation, &stored, at)?;
            }
        }
        for listener in by_key(seen).into_values() {
            let stored = stored.get(&listener.key);
            if let Some(stored) = stored {
                digest.remove(&stored.listener);
            }
            digest.add(listener);
            if self.see(observation, stored, listener)? {
                touched.add(listener);
            }
        }
        self.settle(observation.instance, &touched, observation.received_at)?;
        Ok(digest)
    }

    /// Everything in what is covered. What is missing there is closed; what is missing elsewhere is left alone. Answers
    /// the digest before with that of this report added.
    pub(crate) fn apply_report(
        &mut self,
        observation: &Observation,
        mut digest: Digest,
        covered: &Covered<'_>,
        seen: &[Listener],
        closed: &[Closed],
    ) -> Result<Digest, Error> {
        let mut stored = self.list_stored(observation.instance)?;
        let mut touched = Touched::default();
        let closed_at: BTreeMap<&ListenerKey, Timestamp> =
            closed.iter().map(|closed| (&closed.key, closed.at)).collect();
        let seen = by_key(seen);
        let gone: Vec<ListenerKey> = stored
            .keys()
            .filter(|key| !seen.contains_key(key) && (covered.covers(key) || closed_at.contains_key(key)))
            .cloned()
            .collect();
        for key in gone {
            let at = closed_at.get(&key).copied().or(covered.seen_at);
            let at = at.map_or(observation.received_at, |at| observation.correct(at));
            if let Some(stored) = stored.remove(&key) {
                touched.close(&stored.listener, at);
                self.close(observation, &stored, at)?;
            }
        }
        for (key, listener) in &seen {
            if self.see(observation, stored.get(key), listener)? {
                touched.add(listener);
            }
            digest.add(listener);
        }
        self.settle(observation.instance, &touched, observation.received_at)?;
        Ok(digest)
    }

    /// Takes every listener of an instance that leaves away; their intervals are ended already.
    pub(crate) fn end_listeners(&mut self, instance: InstanceId, now: Timestamp) -> Result<(), StoreError> {
        let listeners = self.list_listeners(instance)?;
        self.later("delete from listener where instance = $1", values![instance])?;
        self.counts().listeners -= i64::try_from(listeners.len()).unwrap_or(i64::MAX);
        let mut touched = Touched::default();
        listeners.iter().for_each(|listener| touched.add(listener));
        self.settle(instance, &touched, now)
    }

    /// What is told by its number: one event for each listener, and none of the intervals in between.
    pub(crate) fn record_churn(&mut self, observation: &Observation, churned: &[Churn]) -> Result<(), Error> {
        for churn in churned {
            let (from, until) = (observation.correct(churn.from), observation.correct(churn.until));
            self.record(NewEvent {
                at: until,
                recorded_at: observation.received_at,
                kind: EventKind::Churn,
                instance: Some(observation.instance.into()),
                ports: Some((churn.key.protocol, churn.key.port.into())),
                by: (&observation.subject).into(),
                reservation: None,
                listener: None,
                message: format!(
                    "{} opened {} times, closed {} times and changed hands {} times from {from} to {until}, beside what \
                     is told one by one",
                    place(&churn.key),
                    churn.opened,
                    churn.closed,
                    churn.changed,
                ),
            })?;
        }
        Ok(())
    }

    /// Whether anything about it is new.
    fn see(
        &mut self,
        observation: &Observation,
        stored: Option<&Stored>,
        seen: &Listener,
    ) -> Result<bool, Error> {
        let received_at = observation.received_at;
        let first_seen_at = observation.correct(seen.first_seen_at);
        match stored {
            Some(stored) if stored.listener.same_but_times(seen) => return Ok(false),
            Some(stored) if stored.listener.has_same_holder(seen) => {
                let Stored { listener: Listener { first_seen_at, .. }, began_seq } = *stored;
                let now = Listener { first_seen_at, last_seen_at: received_at, ..seen.clone() };
                self.learn(observation.instance, &now, began_seq)?;
            }
            Some(stored) => {
                let changed_at = observation.correct(seen.last_seen_at).max(stored.listener.first_seen_at);
                let first_seen_at = stored.listener.first_seen_at;
                let now = Listener { first_seen_at, last_seen_at: received_at, ..seen.clone() };
                let message = format!(
                    "{} changed hands: {} before, {} now",
                    place(&now.key),
                    stored.listener.describe(),
                    now.describe()
                );
                self.end_interval(stored.began_seq, changed_at)?;
                self.begin_listened(observation, EventKind::OwnerChanged, &now, changed_at, message)?;
            }
            None => {
                let now = Listener { first_seen_at, last_seen_at: received_at, ..seen.clone() };
                let message = format!("{} opened by {}", place(&now.key), now.describe());
                self.begin_listened(observation, EventKind::Opened, &now, first_seen_at, message)?;
                self.counts().listeners += 1;
            }
        }
        Ok(true)
    }

    /// What became known of a listener that nobody took over, as the name of its container: it was so all the time, so
    /// nothing has happened and what is stored is put right.
    fn learn(&mut self, instance: InstanceId, listener: &Listener, began_seq: u64) -> Result<(), StoreError> {
        self.save_listener(instance, listener, began_seq)?;
        self.update_interval_listener(began_seq, listener)
    }

    fn begin_listened(
        &mut self,
        observation: &Observation,
        kind: EventKind,
        listener: &Listener,
        at: Timestamp,
        message: String,
    ) -> Result<(), Error> {
        let seq = self.record_listener(observation, kind, listener, at, message)?;
        self.begin_interval(NewInterval {
            seq,
            kind: IntervalKind::Listened,
            instance: observation.instance.into(),
            protocol: listener.key.protocol,
            ports: listener.key.port.into(),
            began_at: at,
            reservation: None,
            listener: Some(listener),
        })?;
        self.save_listener(observation.instance, listener, seq)?;
        self.maps.forget(observation.instance);
        Ok(())
    }

    fn save_listener(
        &mut self,
        instance: InstanceId,
        listener: &Listener,
        seq: u64,
    ) -> Result<(), StoreError> {
        let key = &listener.key;
        self.later(
            "insert into listener (instance, netns, protocol, port, address, interface, v6only, first_seen_at, \
             began_seq, body) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
             on conflict (instance, netns, protocol, port, address, interface, v6only) do update set \
             first_seen_at = excluded.first_seen_at, began_seq = excluded.began_seq, body = excluded.body",
            &[&key_values(instance, key)[..], values![listener.first_seen_at, seq, Json(listener)]].concat(),
        )
    }

    fn close(&mut self, observation: &Observation, stored: &Stored, at: Timestamp) -> Result<(), Error> {
        let listener = &stored.listener;
        let (key, at) = (&listener.key, at.max(listener.first_seen_at));
        let message = format!("{} closed; it was held open by {}", place(key), listener.describe());
        self.record_listener(observation, EventKind::Closed, listener, at, message)?;
        self.end_interval(stored.began_seq, at)?;
        self.later(
            &format!("delete from listener where {KEY_COLUMNS}"),
            &key_values(observation.instance, key),
        )?;
        self.counts().listeners -= 1;
        self.maps.forget(observation.instance);
        Ok(())
    }

    fn record_listener(
        &mut self,
        observation: &Observation,
        kind: EventKind,
        listener: &Listener,
        at: Timestamp,
        message: String,
    ) -> Result<u64, StoreError> {
        self.record(NewEvent {
            at,
            recorded_at: observation.received_at,
            kind,
            instance: Some(observation.instance.into()),
            ports: Some((listener.key.protocol, listener.key.port.into())),
            by: (&observation.subject).into(),
            reservation: None,
            listener: Some(listener),
            message,
        })
    }
}

/// Each listener once: of several with one key, the last counts.
fn by_key(seen: &[Listener]) -> BTreeMap<&ListenerKey, &Listener> {
    seen.iter().map(|listener| (&listener.key, listener)).collect()
}

/// `0.0.0.0:8080/tcp`, `[::1]:53/udp`, `0.0.0.0:80/tcp (netns 4026532000)`.
fn place(key: &ListenerKey) -> String {
    let address = SocketAddr::new(key.address, key.port.get());
    format!("{address}/{}{}", key.protocol, key.netns.remark())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::plan;

    #[test]
    fn listeners_are_read_from_where_they_are_asked_for_and_in_their_order() {
        let instance = InstanceId::generate(Timestamp::from_micros(0));
        let (first, last) = (Port::try_from(1).unwrap(), Port::MAX);
        let protocol: Option<Protocol> = None;
        let window = values![instance, first, last, protocol, Protocol::Tcp, 0i64, Protocol::Udp, last];
        let on_ports = values![instance, Protocol::Tcp, first, last];
        let nth = values![instance, first, last, protocol, Protocol::Tcp, 0i64, 100i64];
        let table = [
            (
                SELECT_IN_WINDOW,
                &window[..],
                "(instance=? AND (protocol,port)>(?,?) AND (protocol,port)<(?,?))",
            ),
            (SELECT_ON_PORTS, &on_ports[..], "(instance=? AND protocol=? AND port>? AND port<?)"),
            (SELECT_NTH_PORT, &nth[..], "(instance=? AND (protocol,port)>(?,?))"),
        ];
        for (sql, values, searched) in table {
            let plan = plan(sql, values);
            assert!(plan.contains(searched) && !plan.contains("TEMP B-TREE"), "{sql}: {plan}");
        }
    }
}
