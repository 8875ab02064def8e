//! The pools as the writer knows them: they are looked at in every reserve and every release, and change seldom.
//!
//! They live with the maps of ports: dropped when a batch fails, and when another server has changed a pool.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gk_model::pool::{Pool, Quarantine};
use gk_model::port::PortRange;
use gk_model::port_set::PortSet;
use gk_model::reservation::Scope;
use gk_model::text::PoolName;

use crate::error::{Refusal, StoreError};
use crate::tx::Tx;

/// A pool, with all the ports that it gives.
pub(crate) struct Source {
    pub(crate) pool: Pool,
    pub(crate) ports: PortSet,
}

impl From<Pool> for Source {
    fn from(pool: Pool) -> Source {
        Source { ports: pool.ports(), pool }
    }
}

/// Every pool, by name.
pub(crate) struct Pools(BTreeMap<PoolName, Arc<Source>>);

impl Pools {
    pub(crate) fn new(pools: Vec<Pool>) -> Pools {
        Pools(pools.into_iter().map(|pool| (pool.name.clone(), Arc::new(pool.into()))).collect())
    }

    pub(crate) fn find(&self, name: &PoolName) -> Option<&Arc<Source>> {
        self.0.get(name)
    }

    /// The pool of this name, or without one the default.
    ///
    /// # Errors
    /// [`Refusal::NoSuchPool`].
    pub(crate) fn get(&self, name: Option<&PoolName>) -> Result<Arc<Source>, Refusal> {
        let name = name.cloned().unwrap_or_else(default_name);
        self.find(&name).cloned().ok_or(Refusal::NoSuchPool(name))
    }

    /// By name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Source>> {
        self.0.values()
    }

    /// The first pool of another scope that has some of these numbers, and which. `except` is the pool that asks.
    pub(crate) fn find_overlap(
        &self,
        ports: &PortSet,
        scope: Scope,
        except: &PoolName,
    ) -> Option<(&Arc<Source>, PortSet)> {
        let others = self.iter().filter(|other| other.pool.name != *except && other.pool.scope != scope);
        others.map(|other| (other, both(ports, &other.ports))).find(|(_, both)| !both.is_empty())
    }

    /// How long these ports rest after their release: as the pool says that they were drawn from; without it as the one
    /// does that keeps its numbers longest of those they are in. A range rests as a whole.
    pub(crate) fn quarantine(&self, drawn_from: Option<&PoolName>, ports: PortRange) -> Duration {
        if let Some(source) = drawn_from.and_then(|name| self.find(name)) {
            return source.pool.quarantine();
        }
        let holding = self.iter().filter(|source| source.ports.first_in(ports).is_some());
        let longest = holding.map(|source| source.pool.quarantine()).max();
        longest.unwrap_or_else(|| Quarantine::DEFAULT.duration())
    }
}

pub(crate) fn default_name() -> PoolName {
    Pool::DEFAULT.parse().expect("a valid name")
}

fn both(one: &PortSet, other: &PortSet) -> PortSet {
    let mut both = one.clone();
    both.keep_only(other);
    both
}

impl Tx<'_> {
    /// The pools as they are in this batch.
    pub(crate) fn pools(&mut self) -> Result<Arc<Pools>, StoreError> {
        if let Some(known) = &self.maps.pools {
            return Ok(Arc::clone(known));
        }
        let found = Arc::new(Pools::new(self.list_all_pools()?));
        self.maps.pools = Some(Arc::clone(&found));
        Ok(found)
    }
}
