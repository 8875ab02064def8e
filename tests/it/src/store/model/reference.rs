//! The reference model: what domain.md says, in plain lists and maps, with none of the store's machinery.
//!
//! It decides nothing that the domain leaves open: which of several legal answers the store gives is the store's choice,
//! and the model only says whether it was a legal one (`judge` does so for requests) and goes on from there.
//!
//! Clocks: `now` is what the wall clock says, in seconds, and may step; `passed` is time that really passed.

use std::collections::{BTreeMap, BTreeSet};

use gk_model::id::{InstanceId, ReservationId};
use gk_model::labels::Labels;
use gk_model::listener::{Listener, ListenerKey, Netns};
use gk_model::port::Protocol;
use gk_model::reservation::{Reservation, Scope};

use super::sync::Sync;
use crate::store::world::at;

/// How long a released number rests.
const QUARANTINE: u64 = 900;

/// No lease ends sooner than this after the start of the server.
const GRACE: u64 = 60;

/// How much a tick may be late by rule: clocks may differ by so much before one counts as stepped.
const TOLERANCE: u64 = 2;

/// A machine that joined once.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) joined: bool,
    pub(crate) ephemeral: Option<(u16, u16)>,
    pub(crate) listeners: BTreeMap<ListenerKey, Listener>,
    pub(crate) occupied: BTreeSet<(Protocol, u16)>,
    pub(crate) sync: Sync,
}

/// The promise of a lease: never ends before `until`, and at the latest `slack` after it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    pub(crate) until: u64,
    slack: u64,
    /// Begun or renewed since the last tick: a step that no tick has seen yet moves it too far.
    fresh: bool,
}

/// A live reservation.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// Unknown for the parts of a split until the store has been asked.
    pub(crate) id: Option<ReservationId>,
    /// For whom; none for all.
    pub(crate) place: Option<InstanceId>,
    pub(crate) fleet: bool,
    pub(crate) protocol: Protocol,
    pub(crate) first: u16,
    pub(crate) last: u16,
    pub(crate) name: Option<String>,
    pub(crate) service: Option<String>,
    pub(crate) holder: String,
    pub(crate) created_at: u64,
    pub(crate) lease: Option<Lease>,
}

/// One that was released.
#[derive(Clone, Debug)]
pub(crate) struct Gone {
    pub(crate) held: Held,
    pub(crate) released_at: u64,
    /// It may have been pruned.
    pub(crate) forgotten: bool,
}

/// A number that rests, as sure as that can be said when the clock has stepped back meanwhile.
#[derive(Clone, Debug)]
struct Rest {
    until: u64,
    /// The latest time that was seen since: if it was over once, it may be over for good.
    seen: u64,
    /// The latest end of any rest of this number.
    ever: u64,
    holder: String,
}

/// How to take what is not sure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    Rests,
    IsOver,
}

/// Everything that is so.
#[derive(Default)]
pub(crate) struct Model {
    pub(crate) machines: BTreeMap<InstanceId, Machine>,
    pub(crate) held: Vec<Held>,
    pub(crate) gone: Vec<Gone>,
    /// By space, none for the fleet.
    rests: BTreeMap<(Option<InstanceId>, Protocol, u16), Rest>,
}

impl Held {
    pub(crate) fn of(made: &Reservation) -> Held {
        Held {
            id: Some(made.id),
            place: made.instance.as_ref().map(|link| link.id),
            fleet: made.scope == Scope::Fleet,
            protocol: made.protocol,
            first: made.first_port.get(),
            last: made.last_port.get(),
            name: made.name.as_ref().map(ToString::to_string),
            service: made.service.as_ref().map(ToString::to_string),
            holder: made.holder.to_string(),
            created_at: made.created_at.since(at(0)).as_secs(),
            lease: None,
        }
    }

    /// Everything that a list of live reservations must show, but for ids.
    pub(crate) fn told(&self) -> String {
        let Held { place, fleet, protocol, first, last, name, service, holder, lease, .. } = self;
        let place = place.map_or("all".to_owned(), |id| id.to_string());
        let lease = if lease.is_some() { "lease" } else { "ever" };
        format!("{place} {protocol} {first}-{last} fleet={fleet} {name:?} {service:?} {holder} {lease}")
    }

    fn covers(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    fn space(&self) -> Option<InstanceId> {
        self.place.filter(|_| !self.fleet)
    }

    /// Whether it keeps others from this number, there or fleet-wide (rule 2).
    pub(crate) fn excludes(
        &self,
        place: Option<InstanceId>,
        fleet: bool,
        protocol: Protocol,
        port: u16,
    ) -> bool {
        let meets = self.fleet || fleet || self.place == place;
        self.protocol == protocol && self.covers(port) && meets
    }
}

impl Lease {
    pub(crate) fn new(passed: u64, seconds: u32) -> Lease {
        Lease { until: passed + u64::from(seconds), slack: 0, fresh: true }
    }

    /// Goes on for at least so long.
    pub(crate) fn extended(self, passed: u64, seconds: u32) -> Lease {
        Lease { until: self.until.max(passed + u64::from(seconds)), fresh: true, ..self }
    }
}

impl Machine {
    pub(crate) fn new(name: &str) -> Machine {
        Machine {
            name: name.to_owned(),
            labels: Labels::default(),
            joined: true,
            ephemeral: None,
            listeners: BTreeMap::new(),
            occupied: BTreeSet::new(),
            sync: Sync::default(),
        }
    }

    /// Who listens on a port of its own namespace.
    pub(crate) fn home(&self, protocol: Protocol, port: u16) -> impl Iterator<Item = &Listener> {
        self.listeners.values().filter(move |listener| {
            let key = &listener.key;
            key.netns == Netns::Home && key.protocol == protocol && key.port.get() == port
        })
    }

    pub(crate) fn listens(&self, protocol: Protocol, port: u16) -> bool {
        self.home(protocol, port).next().is_some()
    }
}

/// A tick, as far as the model must know of it.
pub(crate) struct Look {
    /// How long ago the last one was.
    pub(crate) elapsed: u64,
    /// By how much the wall clock was set since.
    pub(crate) step: i64,
    /// How long the server runs that runs longest.
    pub(crate) since_start: u64,
    /// Whether some server looks for the first time since its start, and so cannot tell a step from time.
    pub(crate) first: bool,
}

impl Model {
    pub(crate) fn find(&self, id: ReservationId) -> Option<&Held> {
        self.held.iter().find(|held| held.id == Some(id))
    }

    /// The wall clock was seen to say this.
    pub(crate) fn see(&mut self, now: u64) {
        self.rests.values_mut().for_each(|rest| rest.seen = rest.seen.max(now));
    }

    /// Whether a number rests in a space; from others than `holder`, if one is given.
    pub(crate) fn rests(
        &self,
        space: Option<InstanceId>,
        (protocol, port): (Protocol, u16),
        now: u64,
        doubt: Doubt,
        holder: Option<&str>,
    ) -> bool {
        let rest = self.rests.get(&(space, protocol, port));
        rest.is_some_and(|rest| rest.lasts(now, doubt) && holder.is_none_or(|holder| holder != rest.holder))
    }

    /// The same in any space.
    pub(crate) fn rests_anywhere(
        &self,
        (protocol, port): (Protocol, u16),
        now: u64,
        doubt: Doubt,
        holder: Option<&str>,
    ) -> bool {
        let spaces = self.machines.keys().copied().map(Some).chain([None]);
        let mut spaces = spaces.collect::<Vec<_>>().into_iter();
        spaces.any(|space| self.rests(space, (protocol, port), now, doubt, holder))
    }

    fn rest(&mut self, held: &Held, (first, last): (u16, u16), now: u64) {
        for port in first..=last {
            let key = (held.space(), held.protocol, port);
            let until = now + QUARANTINE;
            let ever = self.rests.get(&key).map_or(until, |before| before.ever.max(until));
            self.rests.insert(key, Rest { until, seen: now, ever, holder: held.holder.clone() });
        }
    }

    /// Takes ports out of a live reservation; what remains goes on, its lowest part under the same id (rule 8).
    pub(crate) fn release(&mut self, id: ReservationId, part: Option<(u16, u16)>, now: u64) -> usize {
        let index = self.held.iter().position(|held| held.id == Some(id)).unwrap();
        let whole = self.held.remove(index);
        let (first, last) = part.unwrap_or((whole.first, whole.last));
        self.rest(&whole, (first, last), now);
        let below = (whole.first < first).then(|| (whole.first, first - 1));
        let above = (last < whole.last).then(|| (last + 1, whole.last));
        let rests: Vec<(u16, u16)> = below.into_iter().chain(above).collect();
        for (index, (first, last)) in rests.iter().copied().enumerate() {
            let id = whole.id.filter(|_| index == 0);
            self.held.push(Held { id, first, last, ..whole.clone() });
        }
        if rests.is_empty() {
            let released_at = now.max(whole.created_at);
            self.gone.push(Gone { held: whole, released_at, forgotten: false });
        }
        rests.len()
    }

    /// A machine leaves; what was held for it ends with that (rule 14).
    pub(crate) fn leave(&mut self, id: InstanceId, now: u64) -> usize {
        let held = self.held.iter().filter(|held| held.place == Some(id)).filter_map(|held| held.id);
        let held: Vec<ReservationId> = held.collect();
        for held in &held {
            self.release(*held, None, now);
        }
        let machine = self.machines.get_mut(&id).unwrap();
        machine.joined = false;
        machine.listeners.clear();
        machine.occupied.clear();
        held.len()
    }

    /// History older than this may be forgotten, and what is gone with it.
    pub(crate) fn prune(&mut self, cutoff: u64) {
        self.gone.iter_mut().filter(|gone| gone.released_at < cutoff).for_each(|gone| gone.forgotten = true);
    }

    /// Prepares for what a tick may do: a step that it sees may move deadlines by one interval too far, never by too
    /// little; one that nobody can see counts as time (rule 13).
    pub(crate) fn before_look(&mut self, look: &Look) {
        let step = look.step.unsigned_abs();
        for lease in self.held.iter_mut().filter_map(|held| held.lease.as_mut()) {
            let is_seen = !look.first && (look.step > 0 || step > look.elapsed + TOLERANCE);
            lease.slack += match is_seen {
                true if lease.fresh => step + look.elapsed + TOLERANCE,
                true => look.elapsed + TOLERANCE,
                false => step + look.elapsed + TOLERANCE,
            };
            if !is_seen && look.step > 0 {
                lease.until = lease.until.saturating_sub(step);
                lease.slack += step;
            }
            lease.fresh = false;
        }
    }

    /// Judges which leases a tick ended, and lets them end.
    pub(crate) fn expire(
        &mut self,
        live: &BTreeSet<ReservationId>,
        look: &Look,
        passed: u64,
        now: u64,
    ) -> Result<usize, String> {
        let is_ended = |held: &&Held| held.lease.is_some() && held.id.is_some_and(|id| !live.contains(&id));
        let ended: Vec<Held> = self.held.iter().filter(is_ended).cloned().collect();
        for held in &ended {
            let until = held.lease.map_or(0, |lease| lease.until);
            if passed < until || look.since_start < GRACE {
                return Err(format!("a lease ended early, after {passed} s of {until}: {}", held.told()));
            }
            if let Some(id) = held.id {
                self.release(id, None, now);
            }
        }
        // A look that sees a step ends nothing; by the next one, what is over must end.
        if look.step == 0 && !look.first && look.since_start >= GRACE {
            let overdue = |held: &&Held| held.lease.is_some_and(|it| passed > it.until + it.slack);
            if let Some(held) = self.held.iter().find(overdue) {
                return Err(format!("a lease goes on too long, after {passed} s: {held:?}"));
            }
        }
        Ok(ended.len())
    }
}

impl Rest {
    fn lasts(&self, now: u64, doubt: Doubt) -> bool {
        match doubt {
            Doubt::Rests => self.ever > now,
            Doubt::IsOver => self.until > now.max(self.seen),
        }
    }
}
