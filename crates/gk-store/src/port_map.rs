//! The writer's picture of one instance's ports, as sets of bits, so that a pick does not ask the database.
//!
//! A map is loaded by three queries and then follows every change the writer makes. It is a cache: it may be dropped at
//! any time, and is dropped whenever a batch fails or another server wrote. Only the writer uses it, under the
//! cluster's write lock, so what it says is true at the moment of the pick; the `claim` table stays the safety net.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use gk_model::contact::Occupied;
use gk_model::facts::Facts;
use gk_model::id::InstanceId;
use gk_model::listener::Netns;
use gk_model::port::{Port, PortRange, Protocol};
use gk_model::port_set::PortSet;
use gk_model::time::Timestamp;

use crate::error::StoreError;
use crate::tx::{Reader, Tx};
use crate::value::{Json, values};

/// How many maps are kept; one is 32 KiB.
const MOST: usize = 1024;

type Key = (InstanceId, Protocol);

/// A bounded cache of [`PortMap`]s.
#[derive(Default)]
pub(crate) struct PortMaps {
    maps: HashMap<Key, PortMap>,
}

impl PortMaps {
    /// The batch was committed.
    pub(crate) fn keep(&mut self) {
        while self.maps.len() > MOST {
            let any = self.maps.keys().next().copied();
            any.map(|key| self.maps.remove(&key));
        }
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        self.maps.clear();
    }

    /// Drops what is known of an instance, because its listeners or facts changed.
    pub(crate) fn forget(&mut self, instance: InstanceId) {
        for protocol in Protocol::ALL.iter().copied() {
            self.maps.remove(&(instance, protocol));
        }
    }

    /// The map, if it is loaded: the way to keep it in step with a change.
    pub(crate) fn loaded(&mut self, instance: InstanceId, protocol: Protocol) -> Option<&mut PortMap> {
        self.maps.get_mut(&(instance, protocol))
    }
}

/// Every reason why a port of one instance may not be picked.
#[derive(Default)]
pub(crate) struct PortMap {
    claimed: PortSet,
    /// Listened on in the home namespace, or occupied otherwise, in the newest contact.
    observed: PortSet,
    ephemeral: PortSet,
    quarantined: PortSet,
    quarantine_until: BTreeMap<Port, Timestamp>,
    quarantine_ends: BTreeSet<(Timestamp, Port)>,
}

impl PortMap {
    pub(crate) fn claim(&mut self, ports: PortRange) {
        for port in ports.ports() {
            self.claimed.insert(port);
        }
    }

    /// Gives ports back, keeping them from dynamic picks until `until`.
    pub(crate) fn release(&mut self, ports: PortRange, until: Timestamp) {
        for port in ports.ports() {
            self.claimed.remove(port);
            self.quarantine(port, until);
        }
    }

    fn quarantine(&mut self, port: Port, until: Timestamp) {
        if let Some(before) = self.quarantine_until.insert(port, until) {
            self.quarantine_ends.remove(&(before, port));
        }
        self.quarantine_ends.insert((until, port));
        self.quarantined.insert(port);
    }

    pub(crate) fn is_claimed(&self, port: Port) -> bool {
        self.claimed.contains(port)
    }

    /// How many ports of `pool` nothing but the quarantine keeps from being picked.
    pub(crate) fn count_resting(&self, pool: &PortSet, busy: &PortSet) -> usize {
        let blocked = [&self.claimed, &self.observed, &self.ephemeral, busy];
        pool.without(&blocked).count()
    }

    /// The ports of `pool` that nothing blocks at `now`, lowest first; `busy` is the caller's own dump.
    pub(crate) fn list_free(
        &mut self,
        pool: &PortSet,
        busy: &PortSet,
        now: Timestamp,
        most: usize,
    ) -> Vec<Port> {
        while let Some(&(until, port)) = self.quarantine_ends.first() {
            if until > now {
                break;
            }
            self.quarantine_ends.pop_first();
            self.quarantine_until.remove(&port);
            self.quarantined.remove(port);
        }
        let blocked = [&self.claimed, &self.observed, &self.ephemeral, &self.quarantined, busy];
        pool.without(&blocked).take(most).collect()
    }
}

impl Tx<'_> {
    /// The map of an instance, loaded when it is not there.
    pub(crate) fn port_map(
        &mut self,
        instance: InstanceId,
        protocol: Protocol,
        now: Timestamp,
    ) -> Result<&mut PortMap, StoreError> {
        if self.maps.loaded(instance, protocol).is_none() {
            let map = self.load_port_map(instance, protocol, now)?;
            self.maps.maps.insert((instance, protocol), map);
        }
        Ok(self.maps.maps.get_mut(&(instance, protocol)).expect("inserted above when it was missing"))
    }
}

impl Reader<'_> {
    fn load_port_map(
        &mut self,
        instance: InstanceId,
        protocol: Protocol,
        now: Timestamp,
    ) -> Result<PortMap, StoreError> {
        let mut map = PortMap::default();
        let claims = "select port from claim where space in ($1, 'fleet') and protocol = $2";
        for mut row in self.query(claims, values![instance, protocol])? {
            map.claimed.insert(row.take()?);
        }
        let listeners = "select port from listener where instance = $1 and netns = $2 and protocol = $3";
        for mut row in self.query(listeners, values![instance, Netns::Home, protocol])? {
            map.observed.insert(row.take()?);
        }
        let released = "select until_at, port from quarantine where space in ($1, 'fleet') and protocol = $2 and until_at > $3";
        for mut row in self.query(released, values![instance, protocol, now])? {
            let (until, port) = (row.take()?, row.take()?);
            map.quarantine(port, until);
        }
        if let Some(mut row) =
            self.query_one("select facts, occupied from instance where id = $1", values![instance])?
        {
            let (Json(facts), Json(occupied)) =
                (row.take::<Json<Facts>>()?, row.take::<Json<Vec<Occupied>>>()?);
            facts.ephemeral_ports.into_iter().for_each(|range| map.ephemeral.insert_range(range));
            for occupied in occupied.into_iter().filter(|occupied| occupied.protocol == protocol) {
                map.observed.insert(occupied.port);
            }
        }
        Ok(map)
    }
}
