//! Maps by numbers of the kernel: cookies and inodes, which it counts up and nobody chooses.
//!
//! The hash of std withstands keys that somebody picked so that all of them collide. That took a quarter of a first scan.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map by such numbers, or by structures of them.
pub(crate) type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<Mix>>;

/// Multiplies, which spreads what differs in the low bits over the high ones, and folds these back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mix(u64);

/// 2⁶⁴ divided by the golden ratio, and odd.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        let product = (self.0 ^ number).wrapping_mul(FACTOR);
        self.0 = product ^ product >> 32;
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    use gk_model::listener::Netns;

    use super::*;
    use crate::owners::SocketId;
    use crate::parse::Cookie;

    #[test]
    fn neighbours_are_spread_over_the_whole_table() {
        let hasher = BuildHasherDefault::<Mix>::default();
        let sockets = (0..1_024).flat_map(|number| {
            [Netns::Home, Netns::Other(4_026_531_840)]
                .map(|netns| SocketId { netns, cookie: Cookie(number * 4_096) })
        });
        let hashes: Vec<u64> = sockets.map(|socket| hasher.hash_one(socket)).collect();
        // A table takes the place from the low bits, and seven high ones to tell neighbours apart.
        for bits in [|hash: &u64| hash & 0x7ff, |hash: &u64| hash >> 53] {
            let places: HashSet<u64> = hashes.iter().map(bits).collect();
            assert!(places.len() > 1_024, "{} of 2,048", places.len());
        }
    }
}
