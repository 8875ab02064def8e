//! Port numbers, ranges of them, and the protocol they belong to.
//!
//! Owns the text forms people type (`8080`, `8000-8009`, `8000:8009`, `tcp`) and refuses everything else with a
//! message that says what would be accepted. Port 0 means "any" to the kernel and is never a port here.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::text_form::{text_form, words};

/// A port number, 1 to 65535.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ToSchema)]
#[schema(value_type = u16, minimum = 1, maximum = 65535, example = 8080)]
pub struct Port(NonZeroU16);

/// Why a text or number is not a port or a range of ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Not a number from 1 to 65535.
    #[error("`{0}` is not a port: a port is a number from 1 to 65535")]
    NotAPort(String),
    /// The end lies before the start.
    #[error("`{first}-{last}` runs backwards: write the lower port first, as in {last}-{first}")]
    Reversed {
        /// The first port as given.
        first: Port,
        /// The last port as given.
        last: Port,
    },
}

impl Port {
    /// The highest port.
    pub const MAX: Port = Port(NonZeroU16::MAX);

    /// The port with this number; `None` for 0.
    pub const fn new(number: u16) -> Option<Port> {
        match NonZeroU16::new(number) {
            Some(number) => Some(Port(number)),
            None => None,
        }
    }

    /// Its number.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl TryFrom<i64> for Port {
    type Error = PortError;

    fn try_from(number: i64) -> Result<Port, PortError> {
        u16::try_from(number).ok().and_then(Port::new).ok_or_else(|| PortError::NotAPort(number.to_string()))
    }
}

impl FromStr for Port {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Port, PortError> {
        let digits = text.trim();
        digits
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| digits.parse().ok().and_then(Port::new))
            .flatten()
            .ok_or_else(|| PortError::NotAPort(excerpt(text)))
    }
}

/// At most 40 characters of what was typed, so that an error never echoes ten megabytes.
fn excerpt(text: &str) -> String {
    let mut short: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    if text.chars().nth(40).is_some() {
        short.push('…');
    }
    short
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Port, D::Error> {
        struct Number;

        impl serde::de::Visitor<'_> for Number {
            type Value = Port;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port, which is a number from 1 to 65535")
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Port, E> {
                Port::try_from(number).map_err(E::custom)
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Port, E> {
                self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
            }
        }

        deserializer.deserialize_i64(Number)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A contiguous range of ports, both ends included. Written `8000-8009`, or `8080` for a single port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: Port,
    last: Port,
}

impl PortRange {
    /// Every port there is.
    pub const ALL: PortRange = PortRange { first: Port(NonZeroU16::MIN), last: Port::MAX };

    /// From `first` to `last`, both included.
    ///
    /// # Errors
    /// [`PortError::Reversed`] when `last` is below `first`.
    pub fn new(first: Port, last: Port) -> Result<PortRange, PortError> {
        if last < first { Err(PortError::Reversed { first, last }) } else { Ok(PortRange { first, last }) }
    }

    /// The lowest port.
    pub fn first(self) -> Port {
        self.first
    }

    /// The highest port.
    pub fn last(self) -> Port {
        self.last
    }

    /// How many ports it holds, 1 to 65535.
    pub fn count(self) -> u16 {
        self.last.get() - self.first.get() + 1
    }

    /// Whether `port` lies inside.
    pub fn contains(self, port: Port) -> bool {
        self.first <= port && port <= self.last
    }

    /// `count` ports from `first` on; `None` when there are not as many, or none are asked for.
    pub fn from_count(first: Port, count: u16) -> Option<PortRange> {
        let last = first.get().checked_add(count.checked_sub(1)?)?;
        Some(PortRange { first, last: Port::new(last)? })
    }

    /// Whether all of `other` lies inside.
    pub fn covers(self, other: PortRange) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// What remains without `part`, lowest first: none, one or two ranges. All of it, when `part` lies outside.
    pub fn without(self, part: PortRange) -> Vec<PortRange> {
        let below = part.first.get().checked_sub(1).and_then(Port::new).map(|last| last.min(self.last));
        let above = part.last.get().checked_add(1).and_then(Port::new).map(|first| first.max(self.first));
        let below = below.and_then(|last| PortRange::new(self.first, last).ok());
        let above = above.and_then(|first| PortRange::new(first, self.last).ok());
        below.into_iter().chain(above).collect()
    }

    /// Its ports, lowest first.
    pub fn ports(self) -> impl Iterator<Item = Port> {
        (self.first.get()..=self.last.get()).filter_map(Port::new)
    }
}

impl From<Port> for PortRange {
    fn from(port: Port) -> PortRange {
        PortRange { first: port, last: port }
    }
}

impl PortRange {
    /// Numbers of up to five digits; that each is a port, and that they do not go backwards, no pattern says shortly.
    const PATTERN: &str = "^[1-9][0-9]{0,4}([-:][1-9][0-9]{0,4})?$";
}

impl FromStr for PortRange {
    type Err = PortError;

    fn from_str(text: &str) -> Result<PortRange, PortError> {
        match text.split_once(['-', ':']) {
            Some((first, last)) if !first.is_empty() => PortRange::new(first.parse()?, last.parse()?),
            _ => text.parse::<Port>().map(PortRange::from),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl fmt::Debug for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

text_form!(PortRange, "8000-8009"; PortRange::PATTERN);

words! {
    /// The transport a port belongs to. TCP 53 and UDP 53 are two different ports.
    Protocol, "a protocol" {
        /// TCP; what a reservation means unless told otherwise.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
    }
}

#[expect(
    clippy::derivable_impls,
    reason = "the macro declares the enum, so there is nowhere to put #[default]"
)]
impl Default for Protocol {
    fn default() -> Protocol {
        Protocol::Tcp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbers_from_1_to_65535() {
        for bad in ["0", "65536", "-1", "+80", "abc", "", "8 0", "99999999999999999999", "８０"] {
            assert!(bad.parse::<Port>().is_err(), "{bad:?} was taken for a port");
        }
        for (good, number) in [("1", 1), (" 8080 ", 8080), ("0080", 80), ("65535", 65535)] {
            assert_eq!(good.parse::<Port>().unwrap().get(), number);
        }
    }

    #[test]
    fn ranges_are_written_with_a_dash_or_a_colon() {
        let range: PortRange = "8000-8009".parse().unwrap();
        assert_eq!((range.count(), range.to_string().as_str()), (10, "8000-8009"));
        assert_eq!("8000:8009".parse::<PortRange>().unwrap(), range);
        assert_eq!("8080".parse::<PortRange>().unwrap().to_string(), "8080");
        assert_eq!(PortRange::ALL.count(), 65535);
        assert_eq!(
            "8000-7000".parse::<PortRange>().unwrap_err().to_string(),
            "`8000-7000` runs backwards: write the lower port first, as in 7000-8000"
        );
        for bad in ["-1", "8000-", "-", "1-2-3", "0-5", "5-65536"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad:?} was taken for a range");
        }
    }

    #[test]
    fn a_range_without_a_part_is_the_rest() {
        // Exhaustive over small ranges, and over those at the highest port.
        for base in [1u16, 65_530] {
            let range = |first: u16, last: u16| {
                PortRange::new(Port::new(base + first).unwrap(), Port::new(base + last).unwrap()).unwrap()
            };
            let ranges: Vec<PortRange> =
                (0..6u16).flat_map(|first| (first..6).map(move |last| range(first, last))).collect();
            for whole in &ranges {
                for part in &ranges {
                    let rest = whole.without(*part);
                    let left: Vec<Port> = rest.iter().flat_map(|rest| rest.ports()).collect();
                    let expected: Vec<Port> = whole.ports().filter(|port| !part.contains(*port)).collect();
                    assert_eq!(left, expected, "{whole} without {part}");
                    assert_eq!(whole.covers(*part), part.ports().all(|port| whole.contains(port)));
                }
            }
        }
        let from = |first, count| PortRange::from_count(Port::new(first).unwrap(), count);
        assert_eq!(from(8000, 10).unwrap().to_string(), "8000-8009");
        assert_eq!(
            (from(65_535, 1).unwrap().to_string().as_str(), from(65_535, 2), from(1, 0)),
            ("65535", None, None)
        );
    }

    #[test]
    fn an_error_never_echoes_a_huge_text() {
        let message = "9".repeat(10_000_000).parse::<Port>().unwrap_err().to_string();
        assert!(message.len() < 200, "{} bytes", message.len());
    }
}
