//! The writer's picture of the ports, as sets of bits, so that a pick does not ask the database.
//!
//! There is a map for each space and protocol: one for each instance, one for what is claimed fleet-wide. A pick on an
//! instance looks at both, so a fleet-wide claim changes one map, however many instances are loaded. Fleet-wide picks
//! look at [`AnywhereMap`], which counts the claims on each number over all spaces; it is loaded by the first of them.
//!
//! All of it is a cache: a map is loaded by at most two queries and then follows every change the writer makes, and what
//! other servers wrote (`follow`). It may be dropped at any time, and is dropped whenever a batch fails. Only the writer
//! uses it, under the cluster's write lock, so what it says is true at the moment of the pick; the `claim` table stays the
//! safety net.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use gk_model::contact::Occupied;
use gk_model::facts::Facts;
use gk_model::id::InstanceId;
use gk_model::ignore::Ignore;
use gk_model::listener::Netns;
use gk_model::port::{Port, PortRange, Protocol};
use gk_model::port_set::PortSet;
use gk_model::time::Timestamp;

use crate::error::StoreError;
use crate::members::Members;
use crate::pool_cache::Pools;
use crate::rows::Row;
use crate::space::Space;
use crate::tx::{Reader, Tx};
use crate::value::{Json, values};

/// How many maps are kept; one is 32 KiB at most, and mostly a fraction of that.
const MOST: usize = 1024;

/// A bounded cache of maps.
#[derive(Default)]
pub(crate) struct PortMaps {
    spaces: HashMap<(Space, Protocol), PortMap>,
    anywhere: HashMap<Protocol, AnywhereMap>,
    /// The instances themselves, remembered for as long.
    pub(crate) members: Members,
    /// Every ignore rule; none when nobody has asked for them yet.
    pub(crate) ignores: Option<Arc<Vec<Ignore>>>,
    /// The pools, remembered for as long too.
    pub(crate) pools: Option<Arc<Pools>>,
}

impl PortMaps {
    /// The batch was committed: keeps what the cache has room for.
    pub(crate) fn keep(&mut self) {
        let mut surplus = self.spaces.len().saturating_sub(MOST);
        // Wherever an instance's map is loaded, the fleet's is: so that one stays.
        self.spaces.retain(|(space, _), _| {
            let drop = surplus > 0 && *space != Space::Fleet;
            surplus -= usize::from(drop);
            !drop
        });
        self.members.keep();
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        self.spaces.clear();
        self.anywhere.clear();
        self.members.clear();
        self.ignores = None;
        self.pools = None;
    }

    /// Drops what is known of an instance, because its listeners or facts changed. What is claimed there still counts
    /// for the fleet.
    pub(crate) fn forget(&mut self, instance: InstanceId) {
        for protocol in Protocol::ALL.iter().copied() {
            self.spaces.remove(&(Space::Instance(instance), protocol));
        }
        self.members.forget(instance);
    }

    /// Follows a claim.
    pub(crate) fn claim(&mut self, space: Space, protocol: Protocol, ports: PortRange) {
        if let Some(map) = self.spaces.get_mut(&(space, protocol)) {
            map.claimed.insert_range(ports);
        }
        if let Some(map) = self.anywhere.get_mut(&protocol) {
            ports.ports().for_each(|port| map.claim(port, 1));
        }
    }

    /// Follows the end of a claim; the ports are kept from dynamic picks until `until`.
    pub(crate) fn release(&mut self, space: Space, protocol: Protocol, ports: PortRange, until: Timestamp) {
        if let Some(map) = self.spaces.get_mut(&(space, protocol)) {
            map.claimed.remove_range(ports);
            ports.ports().for_each(|port| map.quarantine.set(port, until));
        }
        if let Some(map) = self.anywhere.get_mut(&protocol) {
            ports.ports().for_each(|port| map.release(port, until));
        }
    }

    fn of(&mut self, space: Space, protocol: Protocol) -> Option<&mut PortMap> {
        self.spaces.get_mut(&(space, protocol))
    }
}

/// Every reason why a port of one space may not be picked. What is observed is empty for the fleet.
#[derive(Default)]
struct PortMap {
    claimed: PortSet,
    /// Listened on in the home namespace, or occupied otherwise, in the newest contact.
    observed: PortSet,
    ephemeral: PortSet,
    quarantine: Quarantine,
}

/// The claims on each number in all spaces together. Counted, so that the end of one tells whether another is left.
struct AnywhereMap {
    counts: Vec<u32>,
    claimed: PortSet,
    /// The latest end of the quarantines in all spaces.
    quarantine: Quarantine,
}

impl AnywhereMap {
    fn new() -> AnywhereMap {
        AnywhereMap {
            counts: vec![0; 1 << 16],
            claimed: PortSet::default(),
            quarantine: Quarantine::default(),
        }
    }

    fn claim(&mut self, port: Port, claims: u32) {
        self.counts[usize::from(port.get())] += claims;
        self.claimed.insert(port);
    }

    fn release(&mut self, port: Port, until: Timestamp) {
        let count = &mut self.counts[usize::from(port.get())];
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.claimed.remove(port);
        }
        let latest = self.quarantine.until.get(&port).map_or(until, |before| until.max(*before));
        self.quarantine.set(port, latest);
    }
}

/// Released numbers, and until when they rest.
#[derive(Default)]
struct Quarantine {
    ports: PortSet,
    until: BTreeMap<Port, Timestamp>,
    ends: BTreeSet<(Timestamp, Port)>,
}

impl Quarantine {
    fn set(&mut self, port: Port, until: Timestamp) {
        if let Some(before) = self.until.insert(port, until) {
            self.ends.remove(&(before, port));
        }
        self.ends.insert((until, port));
        self.ports.insert(port);
    }

    /// What rests at `now`. What has rested enough is dropped for good.
    fn at(&mut self, now: Timestamp) -> &PortSet {
        while let Some(&(until, port)) = self.ends.first() {
            if until > now {
                break;
            }
            self.ends.pop_first();
            self.until.remove(&port);
            self.ports.remove(port);
        }
        &self.ports
    }
}

/// Whether ports in quarantine count as taken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resting {
    Taken,
    Free,
}

impl Tx<'_> {
    /// Takes out of `free` what may not be picked on an instance by reason of its own map or of the fleet's.
    pub(crate) fn remove_taken_on(
        &mut self,
        free: &mut PortSet,
        instance: InstanceId,
        protocol: Protocol,
        resting: Resting,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.load_map(instance, protocol, now)?;
        for space in [Space::Instance(instance), Space::Fleet] {
            let Some(map) = self.maps.of(space, protocol) else { continue };
            [&map.claimed, &map.observed].into_iter().for_each(|taken| free.remove_all(taken));
            if resting == Resting::Taken {
                free.remove_all(map.quarantine.at(now));
            }
        }
        Ok(())
    }

    /// Takes out of `free` what an instance gives to outgoing connections.
    pub(crate) fn remove_ephemeral(
        &mut self,
        free: &mut PortSet,
        instance: InstanceId,
        protocol: Protocol,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.load_map(instance, protocol, now)?;
        let map = self.maps.of(Space::Instance(instance), protocol);
        map.into_iter().for_each(|map| free.remove_all(&map.ephemeral));
        Ok(())
    }

    /// Takes out of `free` what is claimed in any space.
    pub(crate) fn remove_claimed_anywhere(
        &mut self,
        free: &mut PortSet,
        protocol: Protocol,
        resting: Resting,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if !self.maps.anywhere.contains_key(&protocol) {
            let map = self.load_anywhere(protocol, now)?;
            self.maps.anywhere.insert(protocol, map);
        }
        if let Some(map) = self.maps.anywhere.get_mut(&protocol) {
            free.remove_all(&map.claimed);
            if resting == Resting::Taken {
                free.remove_all(map.quarantine.at(now));
            }
        }
        Ok(())
    }

    /// The lowest port of a range that is claimed where a reservation in `space` would claim it too.
    pub(crate) fn find_claimed(
        &mut self,
        space: Space,
        protocol: Protocol,
        range: PortRange,
        now: Timestamp,
    ) -> Result<Option<Port>, StoreError> {
        match space {
            Space::Instance(instance) => {
                self.load_map(instance, protocol, now)?;
                let spaces = [space, Space::Fleet].into_iter();
                Ok(spaces.filter_map(|it| self.maps.of(it, protocol)?.claimed.first_in(range)).min())
            }
            Space::Fleet => {
                let sql = "select port from claim where protocol = $1 and port between $2 and $3 \
                           order by port limit 1";
                let row = self.query_one(sql, values![protocol, range.first(), range.last()])?;
                row.map(|mut row| row.take()).transpose()
            }
        }
    }

    /// Whether any port of a range is in use on an instance, as far as it was observed.
    pub(crate) fn is_observed(
        &mut self,
        instance: InstanceId,
        protocol: Protocol,
        range: PortRange,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.load_map(instance, protocol, now)?;
        let map = self.maps.of(Space::Instance(instance), protocol);
        Ok(map.is_some_and(|map| map.observed.first_in(range).is_some()))
    }

    fn load_map(
        &mut self,
        instance: InstanceId,
        protocol: Protocol,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let own = (Space::Instance(instance), protocol);
        if self.maps.spaces.contains_key(&own) {
            return Ok(());
        }
        let fleet = (Space::Fleet, protocol);
        // The fleet's own comes with the first one of its protocol.
        let with_fleet = !self.maps.spaces.contains_key(&fleet);
        let loaded = self.load_port_maps(instance, protocol, with_fleet, now)?;
        self.maps.spaces.insert(own, loaded.own);
        if let Some(map) = loaded.fleet {
            self.maps.spaces.insert(fleet, map);
        }
        Ok(())
    }
}

/// A map of an instance, with that of the fleet if it was asked for.
struct Loaded {
    own: PortMap,
    fleet: Option<PortMap>,
}

impl Reader<'_> {
    fn load_port_maps(
        &mut self,
        instance: InstanceId,
        protocol: Protocol,
        with_fleet: bool,
        now: Timestamp,
    ) -> Result<Loaded, StoreError> {
        let sql = "select instance, first_port, last_port, cast(0 as bigint), cast(0 as bigint) from reservation \
                   where instance = $1 and scope = 'instance' and protocol = $3 and released_at is null \
                   union all select scope, first_port, last_port, cast(0 as bigint), cast(0 as bigint) from reservation \
                   where scope = 'fleet' and $2 = 'fleet' and protocol = $3 and released_at is null \
                   union all select space, port, port, cast(1 as bigint), until_at from quarantine \
                   where space in ($1, $2) and protocol = $3 and until_at > $4 \
                   union all select instance, port, port, cast(2 as bigint), cast(0 as bigint) from listener \
                   where instance = $1 and netns = $5 and protocol = $3";
        let own = Space::Instance(instance);
        let second = if with_fleet { Space::Fleet } else { own };
        let mut loaded = Loaded { own: PortMap::default(), fleet: with_fleet.then(PortMap::default) };
        for mut row in self.query(sql, values![own, second, protocol, now, Netns::Home])? {
            let space: Space = row.take()?;
            let map = if space == own { Some(&mut loaded.own) } else { loaded.fleet.as_mut() };
            map.map_or(Ok(()), |map| fill(map, row))?;
        }
        let sql = "select facts, occupied from instance where id = $1";
        if let Some(mut row) = self.query_one(sql, values![instance])? {
            let (Json(facts), Json(occupied)) =
                (row.take::<Json<Facts>>()?, row.take::<Json<Vec<Occupied>>>()?);
            facts.ephemeral_ports.into_iter().for_each(|range| loaded.own.ephemeral.insert_range(range));
            for occupied in occupied.into_iter().filter(|occupied| occupied.protocol == protocol) {
                loaded.own.observed.insert(occupied.port);
            }
        }
        Ok(loaded)
    }

    fn load_anywhere(&mut self, protocol: Protocol, now: Timestamp) -> Result<AnywhereMap, StoreError> {
        let sql = "select port, cast(count(*) as bigint), cast(0 as bigint) from claim where protocol = $1 \
                   group by port \
                   union all select port, cast(0 as bigint), max(until_at) from quarantine \
                   where protocol = $1 and until_at > $2 group by port";
        let mut map = AnywhereMap::new();
        for mut row in self.query(sql, values![protocol, now])? {
            let (port, claims): (Port, u64) = (row.take()?, row.take()?);
            match u32::try_from(claims).unwrap_or(u32::MAX) {
                0 => map.quarantine.set(port, row.take()?),
                claims => map.claim(port, claims),
            }
        }
        Ok(map)
    }
}

/// Enters a row of ports, kind and time: what is reserved is 0, quarantine is 1, listeners are 2.
fn fill(map: &mut PortMap, mut row: Row) -> Result<(), StoreError> {
    let (port, last, kind, until): (Port, Port, i64, Timestamp) =
        (row.take()?, row.take()?, row.take()?, row.take()?);
    match kind {
        0 => PortRange::new(port, last).into_iter().for_each(|range| map.claimed.insert_range(range)),
        1 => map.quarantine.set(port, until),
        _ => drop(map.observed.insert(port)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(first: u16, count: u16) -> PortRange {
        PortRange::from_count(Port::new(first).unwrap(), count).unwrap()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_the_fleet() {
        let mut maps = PortMaps::default();
        maps.spaces.insert((Space::Fleet, Protocol::Tcp), PortMap::default());
        for _ in 0..MOST + 50 {
            let instance = Space::Instance(InstanceId::generate(at(1)));
            maps.spaces.insert((instance, Protocol::Tcp), PortMap::default());
        }
        maps.keep();
        assert_eq!(maps.spaces.len(), MOST);
        assert!(maps.of(Space::Fleet, Protocol::Tcp).is_some());
    }

    proptest! {
        /// Claims of many spaces on few numbers, against a list of them.
        #[test]
        fn the_map_of_the_fleet_counts_exactly(steps in proptest::collection::vec((0u8..4, 1u16..6, 1u16..4), 0..60)) {
            let ids: Vec<Space> = (0..3).map(|_| InstanceId::generate(at(1)).into()).collect();
            let mut maps = PortMaps::default();
            maps.anywhere.insert(Protocol::Tcp, AnywhereMap::new());
            let mut model: Vec<(u8, PortRange)> = Vec::new();
            for (which, first, count) in steps {
                let ports = range(first, count);
                let space = |which: u8| ids.get(usize::from(which)).copied().unwrap_or(Space::Fleet);
                match model.iter().position(|held| *held == (which, ports)) {
                    Some(held) => {
                        model.remove(held);
                        maps.release(space(which), Protocol::Tcp, ports, at(9));
                    }
                    None => {
                        model.push((which, ports));
                        maps.claim(space(which), Protocol::Tcp, ports);
                    }
                }
                let expected: PortSet = model.iter().flat_map(|(_, ports)| ports.ports()).collect();
                prop_assert_eq!(&maps.anywhere[&Protocol::Tcp].claimed, &expected);
            }
        }
    }
}
