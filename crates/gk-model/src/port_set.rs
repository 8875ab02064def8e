//! A set of ports as 65,536 bits, and the search for free ones in several sets at once.

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

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

    /// Adds every port of a range, 64 at a time.
    pub fn insert_range(&mut self, range: PortRange) {
        let ((first_word, first_bit), (last_word, last_bit)) = (place(range.first()), place(range.last()));
        for word in first_word..=last_word {
            // From the first bit upwards, and up to the last bit with everything below it.
            let from = if word == first_word { !(first_bit - 1) } else { u64::MAX };
            let to = if word == last_word { last_bit | (last_bit - 1) } else { u64::MAX };
            self.0[word] |= from & to;
        }
    }

    /// The same ports as few ranges as possible, lowest first.
    pub fn ranges(&self) -> Vec<PortRange> {
        let mut ranges: Vec<PortRange> = Vec::new();
        for port in self.iter() {
            let grown = ranges.last().filter(|range| range.last().get() + 1 == port.get());
            match grown.and_then(|range| PortRange::new(range.first(), port).ok()) {
                Some(grown) => {
                    ranges.pop();
                    ranges.push(grown);
                }
                None => ranges.push(port.into()),
            }
        }
        ranges
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
        f.debug_set().entries(self.ranges()).finish()
    }
}

/// On the wire, a list of ranges: `["8000-8009", "9100"]`.
impl Serialize for PortSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.ranges())
    }
}

/// However many ranges a caller writes, and however they overlap, what is kept is 8 KiB.
impl<'de> Deserialize<'de> for PortSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PortSet, D::Error> {
        struct Ranges;

        impl<'de> Visitor<'de> for Ranges {
            type Value = PortSet;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of ports and ranges of ports")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<PortSet, A::Error> {
                let mut ports = PortSet::default();
                while let Some(range) = list.next_element()? {
                    ports.insert_range(range);
                }
                Ok(ports)
            }
        }

        deserializer.deserialize_seq(Ranges)
    }
}

impl PartialSchema for PortSet {
    fn schema() -> RefOr<Schema> {
        ArrayBuilder::new().items(PortRange::schema()).into()
    }
}

impl ToSchema for PortSet {}

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

    #[test]
    fn ports_are_written_as_few_ranges_as_possible() {
        let set: PortSet =
            [8002, 8000, 8001, 8001, 9000, 65535, 1].into_iter().filter_map(Port::new).collect();
        let json = r#"["1","8000-8002","9000","65535"]"#;
        assert_eq!(serde_json::to_string(&set).unwrap(), json);
        assert_eq!(serde_json::from_str::<PortSet>(json).unwrap(), set);
        assert_eq!(serde_json::from_str::<PortSet>(r#"["1-65535"]"#).unwrap().ranges(), [PortRange::ALL]);
        assert!(serde_json::from_str::<PortSet>(r#"["9-2"]"#).is_err());
    }

    proptest! {
        #[test]
        fn a_range_is_all_its_ports(first in 1u16.., last in 1u16..) {
            let range = PortRange::new(Port::new(first.min(last)).unwrap(), Port::new(first.max(last)).unwrap()).unwrap();
            let mut set = PortSet::default();
            set.insert_range(range);
            prop_assert!(set.iter().eq(range.ports()));
        }

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
