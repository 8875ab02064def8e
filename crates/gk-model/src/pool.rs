//! Pools: where dynamic reservations are drawn from.

use std::time::Duration;

use crate::port::PortRange;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Port;

    #[test]
    fn the_built_in_pool_is_what_the_domain_says() {
        let pool = Pool::built_in();
        assert_eq!(
            (pool.name.as_str(), pool.quarantine.as_secs(), pool.scope),
            ("default", 900, Scope::Instance)
        );
        assert_eq!(pool.ports().iter().map(Port::get).collect::<Vec<_>>(), (8000..=9999).collect::<Vec<_>>());
    }
}
