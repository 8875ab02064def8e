//! A set of ports as 65,536 bits, and the search for free ones in several sets at once.

use std::fmt;

use crate::port::{Port, PortRange};

const WORDS: usize = 1024;

/// A set of ports: 8 KiB whatever it holds, constant-time insert, remove and look-up.
#[derive(Clone, PartialEq, Eq)]
pub struct PortSet(Box<[u64; WORDS]>);

impl Default for PortSet {
    fn default() -> PortSet {
        PortSet(Box::new([0; WORDS]))
    }
}

impl PortSet {
    /// Adds a port; whether it was missing.
    pub fn insert(&mut self, port: Port) -> bool {
        let (word, bit) = place(port);
        let was_missing = self.0[word] & bit == 0;
        self.0[word] |= bit;
        was_missing
    }

    /// Takes a port out; whether it was there.
    pub fn remove(&mut self, port: Port) -> bool {
        let (word, bit) = place(port);
        let was_there = self.0[word] & bit != 0;
        self.0[word] &= !bit;
        was_there
    }

    /// Whether it holds the port.
    pub fn contains(&self, port: Port) -> bool {
        let (word, bit) = place(port);
        self.0[word] & bit != 0
    }

    /// Adds every port of a range.
    pub fn insert_range(&mut self, range: PortRange) {
        for port in range.ports() {
            self.insert(port);
        }
    }

    /// The ports of this set that are in none of `blocked`, lowest first.
    ///
    /// Looks at 64 ports at a time, so the cost of the next one does not grow with how many are taken.
    pub fn without<'a>(&'a self, blocked: &'a [&'a PortSet]) -> impl Iterator<Item = Port> + 'a {
        self.0.iter().enumerate().flat_map(move |(index, allowed)| {
            let free = blocked.iter().fold(*allowed, |free, set| free & !set.0[index]);
            Bits(free).map(move |bit| index as u32 * 64 + bit).filter_map(as_port)
        })
    }

    /// Its ports, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = Port> + '_ {
        self.without(&[])
    }
}

fn place(port: Port) -> (usize, u64) {
    (usize::from(port.get()) / 64, 1 << (port.get() % 64))
}

fn as_port(number: u32) -> Option<Port> {
    u16::try_from(number).ok().and_then(Port::new)
}

/// The positions of the bits that are set in a word, lowest first.
struct Bits(u64);

impl Iterator for Bits {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let lowest = (self.0 != 0).then(|| self.0.trailing_zeros())?;
        self.0 &= self.0 - 1;
        Some(lowest)
    }
}

impl FromIterator<Port> for PortSet {
    fn from_iter<I: IntoIterator<Item = Port>>(ports: I) -> PortSet {
        let mut set = PortSet::default();
        for port in ports {
            set.insert(port);
        }
        set
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ports() -> impl Strategy<Value = BTreeSet<u16>> {
        // Few distinct numbers around word borders, so that sets overlap.
        proptest::collection::btree_set(prop_oneof![1u16..200, 65_400u16..=65_535], 0..150)
    }

    fn set(numbers: &BTreeSet<u16>) -> PortSet {
        numbers.iter().filter_map(|number| Port::new(*number)).collect()
    }

    proptest! {
        #[test]
        fn without_is_set_difference_in_order(allowed in ports(), a in ports(), b in ports()) {
            let (one, two) = (set(&a), set(&b));
            let free: Vec<u16> = set(&allowed).without(&[&one, &two]).map(Port::get).collect();
            let expected: Vec<u16> = allowed.iter().copied().filter(|p| !a.contains(p) && !b.contains(p)).collect();
            prop_assert_eq!(free, expected);
        }

        #[test]
        fn insert_and_remove_behave_like_a_set(steps in proptest::collection::vec((any::<bool>(), 1u16..), 0..300)) {
            let (mut ours, mut model) = (PortSet::default(), BTreeSet::new());
            for (insert, number) in steps {
                let port = Port::new(number).unwrap();
                if insert {
                    prop_assert_eq!(ours.insert(port), model.insert(number));
                } else {
                    prop_assert_eq!(ours.remove(port), model.remove(&number));
                }
                prop_assert_eq!(ours.contains(port), model.contains(&number));
            }
            prop_assert_eq!(ours.iter().map(Port::get).collect::<Vec<_>>(), model.into_iter().collect::<Vec<_>>());
        }
    }
}
