//! Pools: where dynamic reservations are drawn from, and the pick itself.

use std::time::Duration;

use crate::port::{Port, PortRange};
use crate::port_set::PortSet;
use crate::reservation::Scope;
use crate::text::PoolName;

/// A named set of port ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: PoolName,
    /// The ranges it holds.
    pub ranges: Vec<PortRange>,
    /// What reservations from it exclude: the same number on one instance, or everywhere.
    pub scope: Scope,
    /// How long a released number is kept from dynamic picks.
    pub quarantine: Duration,
}

impl Pool {
    /// The pool every installation starts with: `default`, 8000–9999, instance scope, quarantine of 15 minutes.
    pub fn built_in() -> Pool {
        Pool {
            name: "default".parse().expect("a valid name"),
            ranges: vec!["8000-9999".parse().expect("a valid range")],
            scope: Scope::Instance,
            quarantine: Duration::from_mins(15),
        }
    }

    /// Every port of the pool.
    pub fn ports(&self) -> PortSet {
        let mut ports = PortSet::default();
        for range in &self.ranges {
            ports.insert_range(*range);
        }
        ports
    }
}

/// The lowest port of `pool` that nothing blocks.
///
/// `blocked` holds, each as a set of its own, every reason a port may not be picked (rule 3 of the domain): claimed,
/// listened on or occupied, in quarantine, in the ephemeral range, busy by the caller's own dump.
pub fn pick(pool: &PortSet, blocked: &[&PortSet]) -> Option<Port> {
    pool.without(blocked).next()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_built_in_pool_is_what_the_domain_says() {
        let pool = Pool::built_in();
        assert_eq!(
            (pool.name.as_str(), pool.quarantine.as_secs(), pool.scope),
            ("default", 900, Scope::Instance)
        );
        assert_eq!(pool.ports().iter().map(Port::get).collect::<Vec<_>>(), (8000..=9999).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn pick_never_hands_out_a_taken_port(
            claimed in proptest::collection::btree_set(8000u16..8100, 0..100),
            listened in proptest::collection::btree_set(8000u16..8100, 0..100),
        ) {
            let set = |numbers: &std::collections::BTreeSet<u16>| numbers.iter().filter_map(|n| Port::new(*n)).collect::<PortSet>();
            let pool = set(&(8000..8100).collect());
            let expected = (8000..8100).find(|n| !claimed.contains(n) && !listened.contains(n));
            prop_assert_eq!(pick(&pool, &[&set(&claimed), &set(&listened)]).map(Port::get), expected);
        }
    }
}
