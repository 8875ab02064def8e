//! The rest of a play: what agents and clocks do, and what is compared after every step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gk_model::contact::ContactBody;
use gk_model::history::{Event, EventKind};
use gk_model::id::{InstanceId, ReservationId};
use gk_model::lease::Tick;
use gk_model::listener::ListenerKey;
use gk_model::port::Protocol;
use gk_model::port_state::State;
use gk_model::query::{EventQuery, Limit, PortQuery};

use super::history::Say;
use super::play::{Events, Play, expect};
use super::reference::{Held, Look};
use super::sync::Expected;
use super::{agents, show};

/// How far back history goes when it is pruned.
const RETENTION: u64 = 1500;

/// What one port of one instance must show.
pub(super) type Shown = (String, Option<ReservationId>, BTreeSet<(ListenerKey, Vec<u32>)>);

impl Play {
    pub(super) async fn contact(
        &mut self,
        server: usize,
        machine: usize,
        say: &Say,
    ) -> Result<Events, String> {
        let slot = &self.slots[machine];
        let (Some(id), Some(credential)) = (slot.id, slot.credential) else { return Ok(vec![]) };
        let now = self.now();
        let Some(contact) = agents::contact(say, &self.model.machines[&id], &slot.sent, now) else {
            return Ok(vec![]);
        };
        self.slots[machine].sent.push(contact.clone());
        let expected = self.model.machines.get_mut(&id).unwrap().apply(&contact);
        // A heartbeat that comes again when its sender has gone on. A server may still know it as the newest: a report in
        // which nothing changed is no event, and so nothing that others learn. Nobody waits for the answer.
        let is_heartbeat = contact.body == ContactBody::Heartbeat && contact.opening.is_none();
        let late = (is_heartbeat && self.servers.len() > 1).then_some(contact.sequence);
        let store = &self.world(server).store;
        // What another server took is known here at the latest then, which in life is every other second.
        store.flush_contacts().await.map_err(show)?;
        let answer = store.contact(id, credential, contact, now).await;
        match expected {
            Expected::Superseded => expect(answer, "superseded").map(|_| vec![]),
            Expected::OpensWithoutReport => expect(answer, "opens without report").map(|_| vec![]),
            Expected::Taken { session, acknowledged, want_report, events } => {
                let answer = expect(answer, "")?.ok_or("nothing was answered")?;
                let legal = (answer.session.0, answer.acknowledged) == (session, acknowledged)
                    && want_report.is_none_or(|want| want == answer.want_report);
                let is_late = late.is_some_and(|sequence| sequence < acknowledged);
                let was_legal = is_late
                    && (answer.session.0, Some(answer.acknowledged), answer.want_report)
                        == (session, late, false);
                let should =
                    format!("session {session}, {acknowledged} acknowledged, report {want_report:?}");
                if legal || was_legal { Ok(events) } else { Err(format!("{answer:?} instead of {should}")) }
            }
        }
    }

    /// The wall clock is set; once between two looks.
    pub(super) async fn set(&mut self, step: i64) -> Result<Events, String> {
        let events = if self.step == 0 { vec![] } else { self.tick().await? };
        self.step = step;
        self.wall = self.wall.saturating_add_signed(step);
        self.model.see(self.wall);
        Ok(events)
    }

    /// Every server looks at its leases, one after the other.
    pub(super) async fn tick(&mut self) -> Result<Events, String> {
        let (passed, wall) = (self.passed, self.now());
        let since_start = |play: &Play| play.servers.iter().map(|server| passed - server.started).max();
        let look = Look {
            elapsed: passed - self.last_look,
            step: self.step,
            since_start: since_start(self).unwrap_or(0),
            first: self.servers.iter().any(|server| server.last_look.is_none()),
        };
        self.model.before_look(&look);
        for server in &mut self.servers {
            let elapsed = server.last_look.replace(passed).map(|last| Duration::from_secs(passed - last));
            let since_start = Duration::from_secs(passed - server.started);
            let tick = Tick { now: wall, elapsed, since_start };
            let report = server.world.store.expire_leases(tick).await.map_err(show)?;
            if report.expired > 0 && (elapsed.is_none() || since_start.as_secs() < 60) {
                return Err("a lease ended within a minute of the start".to_owned());
            }
        }
        (self.step, self.last_look) = (0, passed);
        let live = self.servers[0].world.live().await;
        let live: BTreeSet<ReservationId> = live.iter().map(|live| live.id).collect();
        let ended = self.model.expire(&live, &look, passed, self.wall)?;
        Ok(vec![EventKind::Expired; ended])
    }

    pub(super) async fn restart(&mut self, server: usize, away: u64) -> Result<Events, String> {
        self.pass(away);
        let (now, passed) = (self.now(), self.passed);
        let old = self.servers.remove(server);
        let new =
            super::play::Server { world: old.world.reopen(now).await, started: passed, last_look: None };
        self.servers.insert(server, new);
        Ok(vec![])
    }

    pub(super) async fn prune(&mut self, server: usize) -> Result<Events, String> {
        let (now, keep) = (self.now(), Duration::from_secs(RETENTION));
        let pruned = self.world(server).store.write(move |tx| tx.prune(now, keep, 500)).await;
        pruned.map_err(show)?;
        self.model.prune(self.wall.saturating_sub(RETENTION));
        Ok(vec![])
    }

    /// Reads what is live and what happened, and compares both with the model. Answers the new events.
    pub(super) async fn look(&mut self, server: usize) -> Result<Vec<Event>, String> {
        let mut live = self.world(server).live().await;
        live.sort_by_key(|made| Held::of(made).told());
        let lease = |made: &gk_model::reservation::Reservation| {
            let told = Held::of(made).told();
            if made.expires_at.is_some() { told.replace(" ever", " lease") } else { told }
        };
        let mut stored: Vec<(String, ReservationId)> =
            live.iter().map(|made| (lease(made), made.id)).collect();
        stored.sort();
        self.model.held.sort_by_key(Held::told);
        let expected: Vec<String> = self.model.held.iter().map(Held::told).collect();
        let found: Vec<&String> = stored.iter().map(|(told, _)| told).collect();
        if found != expected.iter().collect::<Vec<_>>() {
            return Err(format!("stored:\n  {}\nshould be:\n  {}", joined(&found), joined(&expected)));
        }
        for (held, (told, id)) in self.model.held.iter_mut().zip(&stored) {
            if *held.id.get_or_insert(*id) != *id {
                return Err(format!("has another id than before: {told}"));
            }
            if !self.known.contains(id) {
                self.known.push(*id);
            }
        }
        self.live = live;
        self.new_events(server).await
    }

    /// Those since the last look, which must be numbered without a gap.
    async fn new_events(&mut self, server: usize) -> Result<Vec<Event>, String> {
        let store = self.world(server).store.clone();
        let after = store.log().await.map_err(show)?.cursor(self.last_seq).to_string();
        let query = EventQuery { cursor: Some(after), limit: Some(Limit::MAX), ..Default::default() };
        let events = store.read(move |reader| reader.list_events(&query)).await.map_err(show)?.items;
        for event in &events {
            self.last_seq += 1;
            if event.seq != self.last_seq {
                return Err(format!("event {} instead of {}", event.seq, self.last_seq));
            }
        }
        Ok(events)
    }

    /// Compares the state of every port of every machine (rules 1 and 2, and the table of port states).
    pub(super) async fn compare_ports(&self, server: usize) -> Result<(), String> {
        let (query, now) = (PortQuery { limit: Some(Limit::MAX), ..Default::default() }, self.now());
        let page = self.world(server).store.read(move |reader| reader.list_ports(None, &query, now)).await;
        let mut found: BTreeMap<(InstanceId, Protocol, u16), Shown> = BTreeMap::new();
        for state in page.map_err(show)?.items {
            let pids = |listener: &gk_model::listener::Listener| {
                listener.owners.iter().map(|owner| owner.pid).collect()
            };
            let listeners = state.listeners.iter().map(|listener| (listener.key.clone(), pids(listener)));
            let shown = (state.state.to_string(), state.reservation.map(|held| held.id), listeners.collect());
            found.insert((state.instance.id, state.protocol, state.port.get()), shown);
        }
        let expected = self.expected_ports();
        match found == expected {
            true => Ok(()),
            false => {
                let differ = |key: &&(InstanceId, Protocol, u16)| found.get(key) != expected.get(key);
                let key = found.keys().chain(expected.keys()).find(differ).unwrap();
                Err(format!("{key:?} shows {:?} instead of {:?}", found.get(key), expected.get(key)))
            }
        }
    }

    pub(super) fn expected_ports(&self) -> BTreeMap<(InstanceId, Protocol, u16), Shown> {
        let mut expected = BTreeMap::new();
        for (id, machine) in self.model.machines.iter().filter(|(_, machine)| machine.joined) {
            let mut ports: BTreeSet<(Protocol, u16)> =
                machine.listeners.keys().map(|key| (key.protocol, key.port.get())).collect();
            let here = self.model.held.iter().filter(|held| held.place == Some(*id) || held.place.is_none());
            ports.extend(here.flat_map(|held| (held.first..=held.last).map(|port| (held.protocol, port))));
            for (protocol, port) in ports {
                let held =
                    self.model.held.iter().find(|held| held.excludes(Some(*id), false, protocol, port));
                let elsewhere = held.is_some_and(|held| held.place.is_some_and(|place| place != *id));
                let state = match (held.is_some(), machine.listens(protocol, port)) {
                    (false, false) => State::Free,
                    (false, true) => State::Unreserved,
                    (true, false) => State::Reserved,
                    (true, true) if elsewhere => State::Conflict,
                    (true, true) => State::InUse,
                };
                let on_port = |key: &&ListenerKey| key.protocol == protocol && key.port.get() == port;
                let listeners = machine.listeners.iter().filter(|(key, _)| on_port(key));
                let listeners = listeners
                    .map(|(key, seen)| (key.clone(), seen.owners.iter().map(|owner| owner.pid).collect()));
                let shown = (state.to_string(), held.and_then(|held| held.id), listeners.collect());
                expected.insert((*id, protocol, port), shown);
            }
        }
        expected
    }
}

fn joined<T: AsRef<str>>(lines: &[T]) -> String {
    lines.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join("\n  ")
}
