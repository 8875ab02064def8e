//! A set of ports as 65,536 bits, and the search for free ones in several sets at once.

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::port::{Port, PortRange};

/// A set of ports: one bit each, constant-time insert, remove and look-up.
///
/// It ends with the word of the highest port that it ever held, so an empty one is free, and all of them are 8 KiB.
#[derive(Clone, Default)]
pub struct PortSet(Vec<u64>);

impl PortSet {
    /// Adds a port; whether it was missing.
    pub fn insert(&mut self, port: Port) -> bool {
        let was_missing = !self.contains(port);
        let (word, bit) = place(port);
        self.grow_to(word);
        self.0[word] |= bit;
        was_missing
    }

    /// Takes a port out; whether it was there.
    pub fn remove(&mut self, port: Port) -> bool {
        let was_there = self.contains(port);
        let (word, bit) = place(port);
        if was_there {
            self.0[word] &= !bit;
        }
        was_there
    }

    /// Whether it holds the port.
    pub fn contains(&self, port: Port) -> bool {
        let (word, bit) = place(port);
        self.word(word) & bit != 0
    }

    /// Adds every port of a range, 64 at a time.
    pub fn insert_range(&mut self, range: PortRange) {
        self.grow_to(place(range.last()).0);
        for (word, bits) in words_of(range) {
            self.0[word] |= bits;
        }
    }

    /// Takes every port of a range out, 64 at a time.
    pub fn remove_range(&mut self, range: PortRange) {
        for (word, bits) in words_of(range) {
            self.0.get_mut(word).into_iter().for_each(|word| *word &= !bits);
        }
    }

    /// Adds what another set holds.
    pub fn insert_all(&mut self, other: &PortSet) {
        self.grow_to(other.0.len().saturating_sub(1));
        for (ours, theirs) in self.0.iter_mut().zip(other.0.iter()) {
            *ours |= theirs;
        }
    }

    /// Takes out what another set does not hold.
    pub fn keep_only(&mut self, other: &PortSet) {
        for (index, ours) in self.0.iter_mut().enumerate() {
            *ours &= other.word(index);
        }
    }

    /// How many ports it holds.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Takes out what another set holds.
    pub fn remove_all(&mut self, other: &PortSet) {
        for (ours, theirs) in self.0.iter_mut().zip(other.0.iter()) {
            *ours &= !theirs;
        }
    }

    /// The lowest of its ports that lies in `range`.
    pub fn first_in(&self, range: PortRange) -> Option<Port> {
        words_of(range).find_map(|(word, bits)| {
            let lowest = Bits(self.word(word) & bits).next()?;
            as_port(word as u32 * 64 + lowest)
        })
    }

    /// The lowest `count` contiguous ports of this set that are in none of `blocked`; `None` when there are none, or
    /// when `count` is 0.
    ///
    /// Looks at each word once, in as many steps as `count` has binary digits: the cost does not grow with how many
    /// ports are taken, nor with how they are scattered.
    pub fn first_run(&self, count: u16, blocked: &[&PortSet]) -> Option<PortRange> {
        if count == 0 {
            return None;
        }
        let count = u32::from(count);
        // How many ports up to the end of the word before are free without a gap.
        let mut open = 0;
        for (index, allowed) in self.0.iter().enumerate() {
            let free = blocked.iter().fold(*allowed, |free, set| free & !set.word(index));
            let begins = index as u32 * 64;
            let found = match open + free.trailing_ones() {
                reached if reached >= count && open > 0 => Some(begins - open),
                _ => first_run_of_word(free, count).map(|bit| begins + bit),
            };
            if let Some(first) = found {
                return PortRange::new(as_port(first)?, as_port(first + count - 1)?).ok();
            }
            open = if free == u64::MAX { open + 64 } else { free.leading_ones() };
        }
        None
    }

    /// The ports at which `count` contiguous ports of this set begin; none, when `count` is 0.
    ///
    /// In as many steps as `count` has binary digits, each of which looks at every word once.
    #[must_use]
    pub fn starts(&self, count: u16) -> PortSet {
        if count == 0 {
            return PortSet::default();
        }
        // After each step a bit says that `reached` contiguous ports begin there.
        let (mut begins, mut reached) = (self.clone(), 1);
        while reached < count {
            let step = reached.min(count - reached);
            begins.keep_followed(step);
            reached += step;
        }
        begins
    }

    /// Keeps the ports for which the one that is `distance` higher is there too.
    fn keep_followed(&mut self, distance: u16) {
        let (words, bits) = (usize::from(distance / 64), u32::from(distance % 64));
        for index in 0..self.0.len() {
            // Of the words above, none has been changed yet.
            let low = self.word(index + words) >> bits;
            let high = self.word(index + words + 1).checked_shl(64 - bits).unwrap_or_default();
            self.0[index] &= low | high;
        }
    }

    /// The port that `below` others of this set are lower than.
    pub fn nth(&self, below: u32) -> Option<Port> {
        let mut left = below;
        for (index, word) in self.0.iter().enumerate() {
            let ones = word.count_ones();
            if left < ones {
                let bit = Bits(*word).nth(left as usize)?;
                return as_port(index as u32 * 64 + bit);
            }
            left -= ones;
        }
        None
    }

    /// How many ports of a range it holds.
    pub fn count_in(&self, range: PortRange) -> u32 {
        words_of(range).map(|(word, bits)| (self.word(word) & bits).count_ones()).sum()
    }

    /// Whether it holds every port of a range.
    pub fn covers(&self, range: PortRange) -> bool {
        words_of(range).all(|(word, bits)| self.word(word) & bits == bits)
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
            let free = blocked.iter().fold(*allowed, |free, set| free & !set.word(index));
            Bits(free).map(move |bit| index as u32 * 64 + bit).filter_map(as_port)
        })
    }

    /// Its ports, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = Port> + '_ {
        self.without(&[])
    }
}

impl PortSet {
    fn word(&self, index: usize) -> u64 {
        self.0.get(index).copied().unwrap_or_default()
    }

    fn grow_to(&mut self, word: usize) {
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
    }
}

/// The same ports, however far the words reach that hold them.
impl PartialEq for PortSet {
    fn eq(&self, other: &PortSet) -> bool {
        (0..self.0.len().max(other.0.len())).all(|index| self.word(index) == other.word(index))
    }
}

impl Eq for PortSet {}

fn place(port: Port) -> (usize, u64) {
    (usize::from(port.get()) / 64, 1 << (port.get() % 64))
}

/// The words that a range touches, each with the bits of the range in it.
fn words_of(range: PortRange) -> impl Iterator<Item = (usize, u64)> {
    let ((first_word, first_bit), (last_word, last_bit)) = (place(range.first()), place(range.last()));
    (first_word..=last_word).map(move |word| {
        // From the first bit upwards, and up to the last bit with everything below it.
        let from = if word == first_word { !(first_bit - 1) } else { u64::MAX };
        let to = if word == last_word { last_bit | (last_bit - 1) } else { u64::MAX };
        (word, from & to)
    })
}

/// The lowest bit of a word at which `count` ones in a row begin.
fn first_run_of_word(word: u64, count: u32) -> Option<u32> {
    if count > 64 {
        return None;
    }
    // After each step a bit says that `reached` ones begin there.
    let (mut begins, mut reached) = (word, 1);
    while reached < count {
        let step = reached.min(count - reached);
        begins &= begins >> step;
        reached += step;
    }
    Bits(begins).next()
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

/// However many ranges a caller writes, and however they overlap, what is kept is 8 KiB at most.
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
        fn removing_a_range_or_a_set_leaves_the_rest(held in ports(), gone in ports(), a in 1u16..200, b in 1u16..200) {
            let range = PortRange::new(Port::new(a.min(b)).unwrap(), Port::new(a.max(b)).unwrap()).unwrap();
            let mut ours = set(&held);
            prop_assert_eq!(ours.count_in(range) as usize, held.iter().filter(|p| Port::new(**p).is_some_and(|p| range.contains(p))).count());
            prop_assert_eq!(ours.first_in(range), held.iter().filter_map(|p| Port::new(*p)).find(|p| range.contains(*p)));
            ours.remove_range(range);
            ours.remove_all(&set(&gone));
            let model = held.into_iter().filter(|p| !gone.contains(p) && Port::new(*p).is_some_and(|p| !range.contains(p)));
            prop_assert_eq!(ours.iter().map(Port::get).collect::<Vec<_>>(), model.collect::<Vec<_>>());
        }

        #[test]
        fn sets_are_joined_and_met(one in ports(), other in ports()) {
            let (mut joined, mut met) = (set(&one), set(&one));
            joined.insert_all(&set(&other));
            met.keep_only(&set(&other));
            let numbers = |set: &PortSet| set.iter().map(Port::get).collect::<Vec<_>>();
            prop_assert_eq!(numbers(&joined), set(&one.union(&other).copied().collect()).iter().map(Port::get).collect::<Vec<_>>());
            prop_assert_eq!(numbers(&met), set(&one.intersection(&other).copied().collect()).iter().map(Port::get).collect::<Vec<_>>());
            prop_assert_eq!((joined.len() as usize, joined.is_empty()), (numbers(&joined).len(), numbers(&joined).is_empty()));
        }

        #[test]
        fn the_first_run_is_the_lowest_that_fits(
            pool in proptest::collection::vec((1u16..=900, 0u16..300), 1..4),
            top in any::<bool>(),
            one in proptest::collection::btree_set(1u16..=1200, 0..40),
            two in proptest::collection::btree_set(1u16..=1200, 0..40),
            count in prop_oneof![0u16..6, 60u16..70, 120u16..320],
        ) {
            // At either end of the numbers there are.
            let place = |number: u16| if top { u16::MAX - number + 1 } else { number };
            let (one, two): (BTreeSet<u16>, BTreeSet<u16>) =
                (one.into_iter().map(place).collect(), two.into_iter().map(place).collect());
            let pool: BTreeSet<u16> =
                pool.into_iter().flat_map(|(first, more)| first..=first + more).map(place).collect();
            let is_free = |p: u32| u16::try_from(p).is_ok_and(|p| pool.contains(&p) && !one.contains(&p) && !two.contains(&p));
            let fits = |first: &u32| count > 0 && (*first..*first + u32::from(count)).all(is_free);
            let expected = (1u32..=65_535).filter(|p| is_free(*p)).find(fits);
            let found = set(&pool).first_run(count, &[&set(&one), &set(&two)]);
            prop_assert_eq!(found.map(|run| (u32::from(run.first().get()), run.count())), expected.map(|first| (first, count)));
        }

        #[test]
        fn every_start_of_a_run_is_found_and_counted(
            pool in proptest::collection::vec((1u16..=900, 0u16..300), 0..4),
            top in any::<bool>(),
            gone in proptest::collection::btree_set(1u16..=1200, 0..20),
            count in prop_oneof![0u16..6, 60u16..70, 120u16..320],
        ) {
            let place = |number: u16| if top { u16::MAX - number + 1 } else { number };
            let pool: BTreeSet<u16> = pool.into_iter().flat_map(|(first, more)| first..=first + more)
                .filter(|p| !gone.contains(p)).map(place).collect();
            let ours = set(&pool);
            let fits = |first: &u16| count > 0 && (u32::from(*first)..u32::from(*first) + u32::from(count))
                .all(|p| u16::try_from(p).is_ok_and(|p| pool.contains(&p)));
            let expected: Vec<u16> = pool.iter().copied().filter(fits).collect();
            let starts = ours.starts(count);
            let found = |n: usize| starts.nth(n as u32).map(Port::get);
            prop_assert_eq!((0..expected.len()).filter_map(found).collect::<Vec<_>>(), expected.clone());
            prop_assert_eq!((starts.len() as usize, found(expected.len())), (expected.len(), None));
            for range in starts.iter().filter_map(|first| PortRange::from_count(first, count)).take(3) {
                prop_assert!(ours.covers(range));
            }
            for first in pool.iter().take(3).filter(|first| !fits(first)) {
                let range = PortRange::from_count(Port::new(*first).unwrap(), count);
                prop_assert!(range.is_none_or(|range| !ours.covers(range)));
            }
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
            prop_assert_eq!(ours.iter().map(Port::get).collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            // Equal whatever else was in it before, and unequal by any one port.
            prop_assert_eq!(&ours, &set(&model));
            ours.insert(Port::MAX);
            prop_assert_eq!(ours == set(&model), model.contains(&u16::MAX));
            prop_assert_eq!(set(&model) == ours, model.contains(&u16::MAX));
        }
    }
}
