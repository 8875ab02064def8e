//! What is kept of drift, compared after every step with what the model's lists say.

use std::collections::BTreeSet;

use gk_model::drift::DriftKind;
use gk_model::history::EventKind;
use gk_model::id::{InstanceId, ReservationId};
use gk_model::port::Protocol;
use gk_model::port_state::State;
use gk_model::query::{DriftQuery, Limit, PortQuery};
use gk_model::status::{DriftCounts, ReservationCounts};

use super::play::{Events, Play};
use super::reference::Held;
use super::show;

type Key = (InstanceId, Protocol, u16);

impl Play {
    /// The ports that are in conflict.
    pub(super) fn conflicts(&self) -> BTreeSet<Key> {
        self.drifting(State::Conflict).into_iter().map(|(key, _)| key).collect()
    }

    fn drifting(&self, state: State) -> Vec<(Key, Option<ReservationId>)> {
        let ports = self.expected_ports().into_iter();
        let found = ports.filter(|(_, (shown, ..))| shown == state.as_str());
        found.map(|(key, (_, held, _))| (key, held)).collect()
    }

    /// The events of what came into conflict since, and of what is no more.
    pub(super) fn conflict_events(&self, before: &BTreeSet<Key>) -> Events {
        let after = self.conflicts();
        let began = after.difference(before).map(|_| EventKind::ConflictBegan);
        began.chain(before.difference(&after).map(|_| EventKind::ConflictEnded)).collect()
    }

    /// Drift, port states by state, the numbers of the status, and what is idle.
    pub(super) async fn compare_drift(&self, server: usize) -> Result<(), String> {
        let mut counts = DriftCounts::default();
        for (kind, state) in
            [(DriftKind::Conflict, State::Conflict), (DriftKind::Unreserved, State::Unreserved)]
        {
            let mut expected = self.drifting(state);
            expected.sort_unstable();
            *if kind == DriftKind::Conflict { &mut counts.conflict } else { &mut counts.unreserved } =
                expected.len() as u64;
            same("drift", &self.list_drift(server, kind).await?, &expected)?;
            same("port states", &self.list_state(server, state).await?, &expected)?;
        }
        let now = self.now();
        let status =
            self.world(server).store.read(move |reader| reader.get_status(now)).await.map_err(show)?;
        let joined = self.model.machines.values().filter(|machine| machine.joined);
        let listeners: usize = joined.clone().map(|machine| machine.listeners.len()).sum();
        let leases = self.model.held.iter().filter(|held| held.lease.is_some()).count() as u64;
        let reservations = ReservationCounts { live: self.model.held.len() as u64, leases };
        same("drift counted", &status.drift, &counts)?;
        same("reservations counted", &status.reservations, &reservations)?;
        same("listeners counted", &status.listeners, &(listeners as u64))?;
        same("instances counted", &status.instances.joined, &(joined.count() as u64))?;
        for live in &self.live {
            let held = self.model.held.iter().find(|held| held.id == Some(live.id)).ok_or("not held")?;
            let told = format!("whether {} is idle", held.told());
            same(&told, &live.idle_since.is_some(), &!self.is_listened(held))?;
        }
        Ok(())
    }

    async fn list_drift(
        &self,
        server: usize,
        kind: DriftKind,
    ) -> Result<Vec<(Key, Option<ReservationId>)>, String> {
        let now = self.now();
        let mut query = DriftQuery { kind: Some(kind), limit: Some(Limit::at_most(3)), ..Default::default() };
        let mut found = Vec::new();
        loop {
            let asked = query.clone();
            let page = self.world(server).store.read(move |reader| reader.list_drift(&asked, now)).await;
            let page = page.map_err(show)?;
            for drift in page.items {
                let id = drift.instance.ok_or("drift without an instance")?.id;
                let key = (id, drift.protocol, drift.first_port.get());
                found.push((key, drift.reservation.map(|held| held.id)));
            }
            match page.next {
                None => break,
                next => query.cursor = next,
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    async fn list_state(
        &self,
        server: usize,
        state: State,
    ) -> Result<Vec<(Key, Option<ReservationId>)>, String> {
        let now = self.now();
        let query = PortQuery { state: Some(state), limit: Some(Limit::MAX), ..Default::default() };
        let page = self.world(server).store.read(move |reader| reader.list_ports(None, &query, now)).await;
        let items = page.map_err(show)?.items.into_iter();
        let mut found: Vec<_> = items
            .map(|found| {
                let key = (found.instance.id, found.protocol, found.port.get());
                (key, found.reservation.map(|held| held.id))
            })
            .collect();
        found.sort_unstable();
        Ok(found)
    }

    fn is_listened(&self, held: &Held) -> bool {
        let joined = self.model.machines.iter().filter(|(_, machine)| machine.joined);
        let mut here = joined.filter(|(id, _)| held.place.is_none_or(|place| place == **id));
        here.any(|(_, machine)| (held.first..=held.last).any(|port| machine.listens(held.protocol, port)))
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, expected: &T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found:?} instead of {expected:?}")) }
}
