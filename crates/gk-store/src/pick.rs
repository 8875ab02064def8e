//! Which numbers: a run of free ports that fits everywhere it is wanted, and whether one asked for is free.
//!
//! What is free is computed as one set of bits from the maps of every space concerned, and searched word by word, so the
//! cost does not grow with how much is taken. A pool gives the lowest run, or any, each as likely as the others.

use std::collections::BTreeSet;
use std::sync::Arc;

use gk_model::id::ReservationId;
use gk_model::instance::InstanceLink;
use gk_model::labels::Labels;
use gk_model::listener::{Listener, Netns, owner_groups};
use gk_model::pool::Pick;
use gk_model::port::{Port, PortRange, Protocol};
use gk_model::port_set::PortSet;
use gk_model::reservation::Scope;
use gk_model::text::PoolName;
use gk_model::time::Timestamp;
use uuid::Uuid;

use crate::error::{Error, Refusal, StoreError};
use crate::explain::Unexplained;
use crate::limits::check_pool;
use crate::pool_cache::Source;
use crate::port_map::Resting;
use crate::reserve::{Cell, Slot, Wanted};
use crate::tx::{Reader, Tx};
use crate::value::{Json, values};

/// How many free numbers a refusal offers.
const ALTERNATIVES: usize = 3;

/// How many pools with room a refusal offers.
const OTHERS: usize = 3;

/// Among how many they are looked for: the writer looks, and everybody waits.
const LOOKED_AT: usize = 20;

/// How many numbers at least are looked up at once among the listeners of all instances.
const WINDOW: u16 = 512;

/// A search for free runs.
struct Search {
    free: PortSet,
    /// Of these, listeners of all instances have been taken out.
    seen: PortSet,
    pick: Pick,
}

impl Tx<'_> {
    /// Picks the numbers of every slot that has none yet. The lowest run for each is the best for all of them, because
    /// all are equally long; so where runs picked at random leave no room for the next, the lowest are taken.
    pub(crate) fn pick_slots(&mut self, wanted: &Wanted<'_>, slots: &mut [Slot<'_>]) -> Result<(), Error> {
        let pick = wanted.source.pool.pick;
        let mut runs = self.pick_runs(wanted, slots, pick)?;
        if runs.is_none() && pick != Pick::Lowest {
            runs = self.pick_runs(wanted, slots, Pick::Lowest)?;
        }
        let Some(runs) = runs else { return Err(self.exhausted(wanted)?.into()) };
        for (slot, run) in slots.iter_mut().filter(|slot| slot.ports.is_none()).zip(runs) {
            slot.ports = Some(run);
            slot.pool = Some(wanted.source.pool.name.clone());
        }
        Ok(())
    }

    /// A run for every slot that has none yet; none when there is not room for all of them.
    fn pick_runs(
        &mut self,
        wanted: &Wanted<'_>,
        slots: &[Slot<'_>],
        pick: Pick,
    ) -> Result<Option<Vec<PortRange>>, StoreError> {
        let mut search = self.search(wanted, pick)?;
        slots.iter().filter_map(|slot| slot.ports).for_each(|ports| search.free.remove_range(ports));
        let mut runs = Vec::new();
        for _ in slots.iter().filter(|slot| slot.ports.is_none()) {
            let Some(run) = self.next_run(wanted, &mut search, wanted.count())? else { return Ok(None) };
            search.free.remove_range(run);
            runs.push(run);
        }
        Ok(Some(runs))
    }

    /// Starting points that would do for the whole request.
    fn list_alternatives(&mut self, wanted: &Wanted<'_>) -> Result<Vec<Port>, StoreError> {
        let mut search = self.search(wanted, Pick::Lowest)?;
        let mut found = Vec::new();
        while found.len() < ALTERNATIVES {
            let Some(run) = self.next_run(wanted, &mut search, wanted.total())? else { break };
            search.free.remove_range(run);
            found.push(run.first());
        }
        Ok(found)
    }

    fn search(&mut self, wanted: &Wanted<'_>, pick: Pick) -> Result<Search, StoreError> {
        let free = self.list_free(wanted, &wanted.source, Resting::Taken)?;
        Ok(Search { free, seen: PortSet::default(), pick })
    }

    /// The ports of a pool that are free in every cell, but for listeners where it is held for all instances.
    fn list_free(
        &mut self,
        wanted: &Wanted<'_>,
        source: &Source,
        resting: Resting,
    ) -> Result<PortSet, StoreError> {
        let mut free = source.ports.clone();
        free.remove_all(&wanted.request.busy);
        for Cell { instance, protocol } in &wanted.cells {
            if let Some(instance) = instance {
                self.remove_taken_on(&mut free, instance.id, *protocol, resting, wanted.now)?;
                if !source.pool.ephemeral {
                    self.remove_ephemeral(&mut free, instance.id, *protocol, wanted.now)?;
                }
            }
            if wanted.scope == Scope::Fleet {
                self.remove_claimed_anywhere(&mut free, *protocol, resting, wanted.now)?;
            }
        }
        Ok(free)
    }

    fn next_run(
        &mut self,
        wanted: &Wanted<'_>,
        search: &mut Search,
        count: u16,
    ) -> Result<Option<PortRange>, StoreError> {
        loop {
            let Some(run) = choose(&search.free, count, search.pick, wanted.now) else { return Ok(None) };
            let everywhere = wanted.cells.iter().filter(|cell| cell.instance.is_none());
            let protocols: Vec<Protocol> = everywhere.map(|cell| cell.protocol).collect();
            if protocols.is_empty() || search.seen.covers(run) {
                return Ok(Some(run));
            }
            let window = PortRange::from_count(run.first(), WINDOW)
                .unwrap_or_else(|| PortRange::new(run.first(), Port::MAX).unwrap_or(run));
            let last = run.last().max(window.last());
            let window = PortRange::new(run.first(), last).unwrap_or(run);
            for protocol in protocols {
                for port in self.list_listened_anywhere(protocol, window)? {
                    search.free.remove(port);
                }
            }
            search.seen.insert_range(window);
            // Not drawn anew: what was looked at once would then be more likely than the rest.
            if search.free.covers(run) {
                return Ok(Some(run));
            }
        }
    }

    fn exhausted(&mut self, wanted: &Wanted<'_>) -> Result<Refusal, StoreError> {
        let source = &wanted.source;
        let free = self.list_free(wanted, source, Resting::Taken)?;
        let rested = self.list_free(wanted, source, Resting::Free)?;
        let mut instances: Vec<InstanceLink> = Vec::new();
        for instance in wanted.cells.iter().filter_map(|cell| cell.instance.as_ref()) {
            if !instances.contains(instance) {
                instances.push(instance.clone());
            }
        }
        let protocols: BTreeSet<Protocol> = wanted.cells.iter().map(|cell| cell.protocol).collect();
        Ok(Refusal::PoolExhausted {
            pool: source.pool.name.clone(),
            size: source.ports.len(),
            protocols: protocols.into_iter().collect(),
            instances,
            count: wanted.request.count,
            runs: wanted.request.names().len(),
            resting: rested.without(&[&free]).count(),
            others: self.list_roomy(wanted)?,
        })
    }

    /// Other pools that would do, and have room for all of the request.
    fn list_roomy(&mut self, wanted: &Wanted<'_>) -> Result<Vec<PoolName>, StoreError> {
        let mut found = Vec::new();
        for source in self.list_suitable(wanted, &wanted.source)?.into_iter().take(LOOKED_AT) {
            let free = self.list_free(wanted, &source, Resting::Taken)?;
            if free.first_run(wanted.total(), &[]).is_some() {
                found.push(source.pool.name.clone());
            }
            if found.len() == OTHERS {
                break;
            }
        }
        Ok(found)
    }

    /// Pools but this one, of its scope, that this actor may draw from, for all the instances of the request.
    fn list_suitable(
        &mut self,
        wanted: &Wanted<'_>,
        except: &Source,
    ) -> Result<Vec<Arc<Source>>, StoreError> {
        let (pools, mut found) = (self.pools()?, Vec::new());
        for source in pools.iter() {
            let differs = source.pool.name != except.pool.name;
            let same_scope = source.pool.scope == except.pool.scope;
            if differs
                && same_scope
                && check_pool(wanted.actor, &source.pool.name).is_ok()
                && self.find_unlike(source, &wanted.cells)?.is_none()
            {
                found.push(Arc::clone(source));
            }
        }
        Ok(found)
    }

    /// Refuses to draw from a pool that is for other instances.
    pub(crate) fn check_source(&mut self, wanted: &Wanted<'_>) -> Result<(), Error> {
        self.check_for(wanted, &wanted.source, &wanted.cells)
    }

    /// Refuses numbers of a pool in cells of instances that it is not for.
    pub(crate) fn check_for<'c>(
        &mut self,
        wanted: &Wanted<'_>,
        source: &Source,
        cells: impl IntoIterator<Item = &'c Cell>,
    ) -> Result<(), Error> {
        let unlike = self.find_unlike(source, cells)?;
        let (Some(selector), Some(place)) = (&source.pool.instances, unlike) else { return Ok(()) };
        let others =
            self.list_suitable(wanted, source)?.iter().map(|source| source.pool.name.clone()).collect();
        let (pool, selector) = (source.pool.name.clone(), selector.clone());
        let place = place.map(Box::new);
        Err(Refusal::PoolNotForInstance { pool, selector, place, others }.into())
    }

    /// The first instance among these that a pool is not for, if there is one.
    fn find_unlike<'c>(
        &mut self,
        source: &Source,
        cells: impl IntoIterator<Item = &'c Cell>,
    ) -> Result<Option<Option<(InstanceLink, Labels)>>, StoreError> {
        let Some(selector) = &source.pool.instances else { return Ok(None) };
        for cell in cells {
            let Some(instance) = &cell.instance else { return Ok(Some(None)) };
            let labels = self.find_labels(instance.id)?.unwrap_or_default();
            if !selector.matches(&labels) {
                return Ok(Some(Some((instance.clone(), labels))));
            }
        }
        Ok(None)
    }

    /// Whether a range may be taken by number in these cells: not reserved, and not listened on by anybody but the
    /// rightful one.
    pub(crate) fn check_range(
        &mut self,
        wanted: &Wanted<'_>,
        range: PortRange,
        cells: &[&Cell],
    ) -> Result<(), Error> {
        let mut claimed = Vec::new();
        for cell in cells {
            let port = self.find_claimed(cell.space(wanted.scope), cell.protocol, range, wanted.now)?;
            claimed.extend(port.map(|port| (port, *cell)));
        }
        if let Some((port, cell)) = claimed.into_iter().min_by_key(|(port, _)| *port) {
            return Err(self.reserved(wanted, cell, port)?);
        }
        for cell in cells {
            self.check_listeners(wanted, cell, range)?;
        }
        Ok(())
    }

    /// The refusal of a port that is reserved, all but by whom.
    fn reserved(&mut self, wanted: &Wanted<'_>, cell: &Cell, port: Port) -> Result<Error, StoreError> {
        let protocol = cell.protocol;
        let observed_on = match &cell.instance {
            Some(instance) => {
                self.is_observed(instance.id, protocol, port.into(), wanted.now)?.then_some(instance.id)
            }
            None => None,
        };
        let alternatives = self.list_alternatives(wanted)?;
        let space = cell.space(wanted.scope);
        Ok(Unexplained { space, protocol, port, observed_on, wanted: wanted.total(), alternatives }.into())
    }

    fn check_listeners(&mut self, wanted: &Wanted<'_>, cell: &Cell, range: PortRange) -> Result<(), Error> {
        let protocol = cell.protocol;
        let found = self.find_listeners(wanted, cell, range)?;
        match (found, &cell.instance) {
            (None, Some(instance)) if wanted.request.adopt => {
                let (port, instance) = (range.first(), instance.clone());
                Err(Refusal::NothingToAdopt { port, protocol, instance }.into())
            }
            (None, _) => Ok(()),
            (Some((_, listeners)), _) if wanted.request.adopt => {
                match Vec::from_iter(owner_groups(&listeners)) {
                    owners if owners.len() > 1 => {
                        Err(Refusal::SeveralOwners { port: range.first(), protocol, owners }.into())
                    }
                    _ => Ok(()),
                }
            }
            (Some((instance, listeners)), _) => {
                let port = listeners.first().map_or(range.first(), |listener| listener.key.port);
                let alternatives = self.list_alternatives(wanted)?;
                let wanted = wanted.total();
                Err(Refusal::PortInUse { port, protocol, instance, listeners, wanted, alternatives }.into())
            }
        }
    }

    /// The home listeners on the lowest port of a range that has any, and whose they are.
    fn find_listeners(
        &mut self,
        wanted: &Wanted<'_>,
        cell: &Cell,
        range: PortRange,
    ) -> Result<Option<(InstanceLink, Vec<Listener>)>, StoreError> {
        let Some(instance) = &cell.instance else {
            return self.find_listeners_anywhere(cell.protocol, range);
        };
        if !self.is_observed(instance.id, cell.protocol, range, wanted.now)? {
            return Ok(None);
        }
        let mut listeners = self.list_listeners_on(instance.id, cell.protocol, range)?;
        listeners.retain(|listener| listener.key.netns == Netns::Home);
        let lowest = listeners.first().map(|listener| listener.key.port);
        listeners.retain(|listener| Some(listener.key.port) == lowest);
        Ok(lowest.map(|_| (instance.clone(), listeners)))
    }
}

impl Reader<'_> {
    /// The ports of a range that anybody listens on, on any joined instance. One look-up for each number, because there
    /// may be a million listeners.
    pub(crate) fn list_listened_anywhere(
        &mut self,
        protocol: Protocol,
        range: PortRange,
    ) -> Result<Vec<Port>, StoreError> {
        let sql = "with recursive numbers (port) as (\
                   select cast($2 as bigint) union all select port + 1 from numbers where port < cast($3 as bigint)) \
                   select n.port from numbers n where exists (\
                   select 1 from listener l where l.protocol = $1 and l.port = n.port and l.netns = 'home') \
                   order by n.port";
        let rows = self.query(sql, values![protocol, range.first(), range.last()])?;
        rows.into_iter().map(|mut row| row.take()).collect()
    }

    fn find_listeners_anywhere(
        &mut self,
        protocol: Protocol,
        range: PortRange,
    ) -> Result<Option<(InstanceLink, Vec<Listener>)>, StoreError> {
        let sql = "select l.instance, n.name, l.body from listener l join instance n on n.id = l.instance \
                   where l.protocol = $1 and l.port between $2 and $3 and l.netns = 'home' \
                   order by l.port, l.instance limit 1";
        let row = self.query_one(sql, values![protocol, range.first(), range.last()])?;
        let Some(mut row) = row else { return Ok(None) };
        let instance = InstanceLink { id: row.take()?, name: row.take()? };
        let Json(listener) = row.take()?;
        Ok(Some((instance, vec![listener])))
    }
}

/// The lowest run, or any: each of those that begin somewhere in `free` is as likely as the others.
fn choose(free: &PortSet, count: u16, pick: Pick, now: Timestamp) -> Option<PortRange> {
    match pick {
        Pick::Lowest => free.first_run(count, &[]),
        Pick::Random => {
            let starts = free.starts(count);
            let first = starts.nth(below(starts.len(), luck(now)))?;
            PortRange::from_count(first, count)
        }
    }
}

/// A number below `end`, by a random one; each as likely as the others but for what 2^62 is no multiple of.
fn below(end: u32, luck: u64) -> u32 {
    let scaled = (u128::from(luck) * u128::from(end)) >> 64;
    u32::try_from(scaled).unwrap_or_default()
}

/// Random bits: those at the end of an id that nobody gets, after the two that are the same in every id.
fn luck(now: Timestamp) -> u64 {
    let (_, bits) = Uuid::from(ReservationId::generate(now)).as_u64_pair();
    bits << 2
}
