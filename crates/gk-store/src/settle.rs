//! Settling: what a change of intent or of fact makes of ports, written down when it changes.
//!
//! Where reality differs from the plan is a table, `drift`: a row for each port in conflict or unreserved, so that
//! nobody has to look for it among a million listeners. Whatever may change a port's state (a listener, a reservation,
//! an expectation, a rule) calls [`Tx::settle`] before its closure ends; here, and nowhere else, the rows, their
//! counters, the events of conflicts, and `idle_since` are changed.
//!
//! Intent and fact are joined by the model's one function, from what the tables say at that moment. So this owns no
//! opinion of its own, may be called too often, and verifying is doing it again. It never changes who may use a port.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use gk_model::drift::DriftKind;
use gk_model::expect::Fit;
use gk_model::history::EventKind;
use gk_model::id::{InstanceId, ReservationId};
use gk_model::labels::Labels;
use gk_model::listener::{Listener, Netns};
use gk_model::port::{Port, PortRange, Protocol};
use gk_model::port_set::PortSet;
use gk_model::port_state::{Joined, State, join};
use gk_model::reservation::{Reservation, Scope};
use gk_model::text::{IgnoreName, InstanceName};
use gk_model::time::Timestamp;

use crate::error::StoreError;
use crate::instances::name_key;
use crate::leases::server;
use crate::tx::{NewEvent, Reader, Tx};
use crate::value::{Json, values};

/// How many stretches of ports are looked up one by one rather than with all between them.
const FEW: usize = 8;

/// Ports of one instance that may have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    ports: BTreeSet<(Protocol, Port)>,
    /// When the last of those closed that did.
    closed_at: Option<Timestamp>,
}

impl Touched {
    pub(crate) fn range(protocol: Protocol, ports: PortRange) -> Touched {
        ports.ports().map(|port| (protocol, port)).collect::<BTreeSet<_>>().into()
    }

    /// Only the home namespace counts.
    pub(crate) fn add(&mut self, listener: &Listener) {
        if listener.key.netns == Netns::Home {
            self.ports.insert((listener.key.protocol, listener.key.port));
        }
    }

    /// The same of one that is gone since `at`.
    pub(crate) fn close(&mut self, listener: &Listener, at: Timestamp) {
        self.add(listener);
        if listener.key.netns == Netns::Home {
            self.closed_at = self.closed_at.max(Some(at));
        }
    }

    /// What has to be looked up: few stretches, which may have other ports in them.
    pub(crate) fn stretches(&self) -> Vec<(Protocol, PortRange)> {
        let of = |protocol: Protocol| {
            let mut ports = PortSet::default();
            let own = self.ports.iter().filter(|(touched, _)| *touched == protocol);
            own.for_each(|(_, port)| ports.insert_range((*port).into()));
            ports.ranges()
        };
        let within = |ranges: Vec<PortRange>| match (ranges.first(), ranges.last()) {
            (Some(first), Some(last)) if ranges.len() > FEW => {
                PortRange::new(first.first(), last.last()).into_iter().collect()
            }
            _ => ranges,
        };
        let each = |protocol: Protocol| within(of(protocol)).into_iter().map(move |range| (protocol, range));
        Protocol::ALL.iter().copied().flat_map(each).collect()
    }
}

impl From<BTreeSet<(Protocol, Port)>> for Touched {
    fn from(ports: BTreeSet<(Protocol, Port)>) -> Touched {
        Touched { ports, closed_at: None }
    }
}

/// When something changed.
#[derive(Clone, Copy)]
struct Times {
    now: Timestamp,
    /// Since when nobody listens where somebody did.
    idle_from: Timestamp,
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) kind: DriftKind,
    pub(crate) since: Timestamp,
    pub(crate) reservation: Option<ReservationId>,
    pub(crate) ignored_by: Option<IgnoreName>,
}

/// An instance, as far as its rows depend on it.
pub(crate) struct LabelledInstance {
    pub(crate) id: InstanceId,
    pub(crate) name: InstanceName,
    pub(crate) labels: Labels,
}

/// Everything about a stretch of ports of one instance.
pub(crate) struct Stretch {
    pub(crate) held: Vec<Reservation>,
    pub(crate) joined: BTreeMap<(Protocol, Port), Joined>,
}

impl Reader<'_> {
    /// Joins intent and fact on a stretch of ports of an instance.
    pub(crate) fn join_stretch(
        &mut self,
        instance: InstanceId,
        protocol: Protocol,
        range: PortRange,
    ) -> Result<Stretch, StoreError> {
        let held = self.list_live_on(instance, protocol, range)?;
        let listeners = self.list_listeners_on(instance, protocol, range)?;
        let wanted = |of: Protocol, port: Port| of == protocol && range.contains(port);
        let joined = join(instance, &held, listeners, [], wanted);
        Ok(Stretch { held, joined })
    }

    /// What is kept of a stretch of ports of an instance.
    pub(crate) fn list_kept(
        &mut self,
        instance: InstanceId,
        protocol: Protocol,
        range: PortRange,
    ) -> Result<BTreeMap<(Protocol, Port), Kept>, StoreError> {
        let sql = "select port, kind, since, reservation, ignored_by from drift \
                   where instance = $1 and protocol = $2 and port between $3 and $4";
        let rows = self.query(sql, values![instance, protocol, range.first(), range.last()])?;
        let read = |mut row: crate::rows::Row| {
            let key = (protocol, row.take()?);
            let (kind, since) = (row.take()?, row.take()?);
            Ok((key, Kept { kind, since, reservation: row.take()?, ignored_by: row.take()? }))
        };
        rows.into_iter().map(read).collect()
    }

    /// The instance as its rows depend on it.
    pub(crate) fn get_labelled(&mut self, id: InstanceId) -> Result<LabelledInstance, StoreError> {
        let row = self.query_one("select name, labels from instance where id = $1", values![id])?;
        let mut row = row.ok_or_else(|| StoreError::Corrupt(format!("instance {id} is gone")))?;
        let (name, Json(labels)) = (row.take()?, row.take()?);
        Ok(LabelledInstance { id, name, labels })
    }

    /// Whether anybody listens on any port of a reservation, where that counts.
    pub(crate) fn is_listened(&mut self, held: &Reservation) -> Result<bool, StoreError> {
        let (first, last) = (held.first_port, held.last_port);
        let found = match &held.instance {
            Some(instance) => self.query_one(
                "select port from listener where instance = $1 and netns = 'home' and protocol = $2 \
                 and port between $3 and $4 limit 1",
                values![instance.id, held.protocol, first, last],
            )?,
            None => self.query_one(
                "select port from listener where protocol = $1 and port between $2 and $3 and netns = 'home' limit 1",
                values![held.protocol, first, last],
            )?,
        };
        Ok(found.is_some())
    }

    /// The instances on which somebody listens on one of these ports.
    pub(crate) fn list_listening(
        &mut self,
        protocol: Protocol,
        range: PortRange,
    ) -> Result<Vec<InstanceId>, StoreError> {
        let sql = "select distinct instance from listener \
                   where protocol = $1 and port between $2 and $3 and netns = 'home' order by instance";
        let rows = self.query(sql, values![protocol, range.first(), range.last()])?;
        rows.into_iter().map(|mut row| row.take()).collect()
    }
}

impl Tx<'_> {
    /// These ports of this instance may have changed: brings everything that is kept about them up to date.
    pub(crate) fn settle(
        &mut self,
        instance: InstanceId,
        touched: &Touched,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let is_touched = |key: &(Protocol, Port)| touched.ports.contains(key);
        let times = Times { now, idle_from: touched.closed_at.unwrap_or(now) };
        touched.stretches().into_iter().try_for_each(|(protocol, range)| {
            self.settle_stretch(instance, protocol, range, &is_touched, times).map(drop)
        })
    }

    /// The same for every port of an instance. Answers how many there are to look at.
    pub(crate) fn settle_all(&mut self, instance: InstanceId, now: Timestamp) -> Result<usize, StoreError> {
        let mut looked_at = 0;
        let times = Times { now, idle_from: now };
        for protocol in Protocol::ALL.iter().copied() {
            looked_at += self.settle_stretch(instance, protocol, PortRange::ALL, &|_| true, times)?;
        }
        Ok(looked_at)
    }

    /// The same wherever a reservation counts that began, changed or ended: on its instance, and where its number is
    /// everybody's, on every instance where somebody listens. Costs nothing where nobody did and it is nobody else's.
    pub(crate) fn settle_reservation(
        &mut self,
        held: &Reservation,
        ports: PortRange,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let places = match (held.scope, &held.instance) {
            (Scope::Instance, _) if held.idle_since.is_some() => Vec::new(),
            (Scope::Instance, instance) => instance.iter().map(|instance| instance.id).collect(),
            (Scope::Fleet, _) => self.list_listening(held.protocol, ports)?,
        };
        let touched = Touched::range(held.protocol, ports);
        places.into_iter().try_for_each(|place| self.settle(place, &touched, now))
    }

    /// The labels of an instance changed, and with them which rules concern it.
    pub(crate) fn settle_labels(&mut self, instance: InstanceId, now: Timestamp) -> Result<(), StoreError> {
        match self.is_any_rule_by_labels()? {
            true => self.settle_all(instance, now).map(drop),
            false => Ok(()),
        }
    }

    /// Drift is listed by the names of instances.
    pub(crate) fn rename_drift(
        &mut self,
        instance: InstanceId,
        name: &InstanceName,
    ) -> Result<(), StoreError> {
        self.later("update drift set name_key = $2 where instance = $1", values![instance, name_key(name)])
    }

    fn settle_stretch(
        &mut self,
        instance: InstanceId,
        protocol: Protocol,
        range: PortRange,
        is_touched: &dyn Fn(&(Protocol, Port)) -> bool,
        times: Times,
    ) -> Result<usize, StoreError> {
        let now = times.now;
        let mut kept = self.list_kept(instance, protocol, range)?;
        let Stretch { held, mut joined } = self.join_stretch(instance, protocol, range)?;
        joined.retain(|key, _| is_touched(key));
        kept.retain(|key, _| is_touched(key));
        let mut place = None;
        for (key, found) in &joined {
            let before = kept.remove(key);
            let Some(kind) = DriftKind::of(found.state) else {
                before.map_or(Ok(()), |before| self.end_drift(instance, *key, &before, Some(found), now))?;
                continue;
            };
            let place = match &mut place {
                Some(place) => place,
                none => none.insert(self.get_labelled(instance)?),
            };
            self.keep_drift(place, *key, kind, before, found, now)?;
        }
        for (key, before) in kept {
            self.end_drift(instance, key, &before, None, now)?;
        }
        for held in &held {
            self.settle_idle(instance, held, &joined, is_touched, times.idle_from)?;
        }
        Ok(joined.len())
    }

    fn keep_drift(
        &mut self,
        place: &LabelledInstance,
        key: (Protocol, Port),
        kind: DriftKind,
        before: Option<Kept>,
        found: &Joined,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let ignored_by = self.find_ignore(&place.labels, key, &found.listeners)?;
        let since = before.as_ref().filter(|before| before.kind == kind).map_or(now, |before| before.since);
        let reservation = found.reservation.as_ref().map(|held| held.id);
        let after = Kept { kind, since, reservation, ignored_by };
        if before.as_ref() == Some(&after) {
            return Ok(());
        }
        self.save_drift(place, key, &after)?;
        let was = before.as_ref().map(|before| before.kind);
        if let Some(before) = before {
            self.counts().add_drift(before.kind, before.ignored_by.is_some(), -1);
            if before.kind == DriftKind::Conflict && kind != DriftKind::Conflict {
                self.record_conflict(place.id, key, before.reservation, Some(found), now)?;
            }
        }
        self.counts().add_drift(kind, after.ignored_by.is_some(), 1);
        if kind == DriftKind::Conflict && was != Some(DriftKind::Conflict) {
            self.record_conflict(place.id, key, after.reservation, Some(found), now)?;
        }
        Ok(())
    }

    fn save_drift(
        &mut self,
        place: &LabelledInstance,
        (protocol, port): (Protocol, Port),
        kept: &Kept,
    ) -> Result<(), StoreError> {
        self.later(
            "insert into drift (instance, protocol, port, kind, since, reservation, ignored, ignored_by, name_key) \
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
             on conflict (instance, protocol, port) do update set kind = excluded.kind, since = excluded.since, \
             reservation = excluded.reservation, ignored = excluded.ignored, ignored_by = excluded.ignored_by, \
             name_key = excluded.name_key",
            values![
                place.id,
                protocol,
                port,
                kept.kind,
                kept.since,
                kept.reservation,
                kept.ignored_by.is_some(),
                kept.ignored_by.as_ref(),
                name_key(&place.name),
            ],
        )
    }

    fn end_drift(
        &mut self,
        instance: InstanceId,
        key: (Protocol, Port),
        before: &Kept,
        found: Option<&Joined>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.later(
            "delete from drift where instance = $1 and protocol = $2 and port = $3",
            values![instance, key.0, key.1],
        )?;
        self.counts().add_drift(before.kind, before.ignored_by.is_some(), -1);
        match before.kind {
            DriftKind::Conflict => self.record_conflict(instance, key, before.reservation, found, now),
            DriftKind::Unreserved | DriftKind::Idle => Ok(()),
        }
    }

    /// A port entered the state of conflict, or left it.
    fn record_conflict(
        &mut self,
        instance: InstanceId,
        (protocol, port): (Protocol, Port),
        reservation: Option<ReservationId>,
        found: Option<&Joined>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let stranger = found.filter(|found| found.state == State::Conflict).and_then(find_stranger);
        let kind = if stranger.is_some() { EventKind::ConflictBegan } else { EventKind::ConflictEnded };
        let message = describe(protocol, port, found, stranger);
        self.record(NewEvent {
            instance: Some(instance.into()),
            ports: Some((protocol, port.into())),
            reservation,
            listener: stranger,
            ..NewEvent::of(kind, (&server()).into(), message, now)
        })?;
        Ok(())
    }

    /// Since when nobody listens on any port of a reservation: none while somebody does.
    fn settle_idle(
        &mut self,
        instance: InstanceId,
        held: &Reservation,
        joined: &BTreeMap<(Protocol, Port), Joined>,
        is_touched: &dyn Fn(&(Protocol, Port)) -> bool,
        idle_from: Timestamp,
    ) -> Result<(), StoreError> {
        if held.instance.as_ref().is_some_and(|holder| holder.id != instance) {
            return Ok(());
        }
        let keys = || held.ports().ports().map(|port| (held.protocol, port));
        let is_listened = keys().any(|key| joined.get(&key).is_some_and(|found| found.fit.is_some()));
        let idle_since = match held.idle_since {
            since @ Some(_) if !is_listened => since,
            None if !is_listened => {
                // What was not looked at may be listened on.
                let is_whole = held.instance.is_some() && keys().all(|key| is_touched(&key));
                let is_elsewhere = !is_whole && self.is_listened(held)?;
                (!is_elsewhere).then_some(idle_from.max(held.created_at))
            }
            _ => None,
        };
        if idle_since == held.idle_since {
            return Ok(());
        }
        self.later("update reservation set idle_since = $2 where id = $1", values![held.id, idle_since])
    }
}

/// One who listens and should not.
fn find_stranger(found: &Joined) -> Option<&Listener> {
    let held = found.reservation.as_ref()?;
    let differs = |listener: &&Listener| match &held.expect {
        Some(expect) => expect.fit(std::slice::from_ref(*listener)) == Some(Fit::Differs),
        None => true,
    };
    let mut home = found.listeners.iter().filter(|listener| listener.key.netns == Netns::Home);
    home.clone().find(differs).or_else(|| home.next())
}

/// `8080/tcp is reserved for billing by ada, and nc (pid 7) listens there`.
fn describe(protocol: Protocol, port: Port, found: Option<&Joined>, stranger: Option<&Listener>) -> String {
    let held = found.and_then(|found| found.reservation.as_ref());
    match (held, stranger) {
        (Some(held), Some(stranger)) => {
            let service = held.service.as_ref().map(|service| format!(" for {service}")).unwrap_or_default();
            let expect = held.expect.as_ref().filter(|expect| !expect.is_none());
            let expect = expect.map(|expect| format!(" expecting {expect}")).unwrap_or_default();
            let place = held.place();
            let who = stranger.describe();
            format!(
                "{port}/{protocol} is reserved {place}{service} by {}{expect}, and {who} listens there",
                held.holder
            )
        }
        _ => {
            let why = match found.map(|found| found.state) {
                None | Some(State::Free | State::Reserved) => "nobody listens there any more",
                Some(State::Unreserved) => "it is not reserved any more",
                Some(State::InUse | State::Conflict) => "who listens there fits",
            };
            format!("{port}/{protocol} is no longer in conflict: {why}")
        }
    }
}
