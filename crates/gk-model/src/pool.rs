//! Pools: named sets of numbers that dynamic reservations are drawn from.
//!
//! What contradicts itself in a pool is found here, by [`PoolSpec::check`]; what other pools have against it, the store
//! knows.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::instance::InstanceLink;
use crate::labels::Selector;
use crate::port::{PortRange, Protocol};
use crate::port_set::PortSet;
use crate::reservation::{Contradiction, Reservation, Scope};
use crate::text::{Note, PoolName};
use crate::text_form::words;
use crate::time::span_in_words;
use crate::token::span;

words! {
    /// Which of its free numbers a pool gives next.
    Pick, "a way to pick" {
        /// The lowest.
        Lowest = "lowest",
        /// Any, each as likely as the others.
        Random = "random",
    }
}

#[expect(
    clippy::derivable_impls,
    reason = "the macro declares the enum, so there is nowhere to put #[default]"
)]
impl Default for Pick {
    fn default() -> Pick {
        Pick::Lowest
    }
}

span! {
    /// How long a released number is kept from dynamic picks: not at all to thirty days.
    Quarantine, QuarantineError, 0..=2_592_000,
    "a number rests 0 s to thirty days after its release; {0} s is outside"
}

impl Default for Quarantine {
    fn default() -> Quarantine {
        Quarantine::DEFAULT
    }
}

impl Quarantine {
    /// Unless told, and for numbers outside of every pool: a quarter of an hour.
    pub const DEFAULT: Quarantine = Quarantine(900);
}

/// `15m`.
impl fmt::Display for Quarantine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&span_in_words(self.duration()))
    }
}

/// What a pool is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolSpec {
    /// Its numbers.
    pub ranges: PortSet,
    /// Those among them that it never gives.
    #[serde(default)]
    pub exclude: PortSet,
    /// Where what is drawn from it excludes others; `instance` when left out.
    #[serde(default)]
    pub scope: Scope,
    /// Which number it gives next; `lowest` when left out.
    #[serde(default)]
    pub pick: Pick,
    /// How long a released number is kept from dynamic picks; 900 when left out.
    #[serde(default)]
    pub quarantine_seconds: Quarantine,
    /// Only instances with these labels draw from it; left out, all do.
    #[serde(default)]
    pub instances: Option<Selector>,
    /// It may hold ports that Linux gives to outgoing connections, and gives them too.
    #[serde(default)]
    pub ephemeral: bool,
    /// A remark.
    #[serde(default)]
    pub note: Option<Note>,
}

/// A named set of numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pool {
    /// Its name.
    pub name: PoolName,
    /// Its numbers.
    pub ranges: PortSet,
    /// Those among them that it never gives.
    pub exclude: PortSet,
    /// Where what is drawn from it excludes others.
    pub scope: Scope,
    /// Which number it gives next.
    pub pick: Pick,
    /// How long a released number is kept from dynamic picks.
    pub quarantine_seconds: Quarantine,
    /// Only instances with these labels draw from it; none for all of them.
    pub instances: Option<Selector>,
    /// It may hold ports that Linux gives to outgoing connections, and gives them too.
    pub ephemeral: bool,
    /// A remark.
    pub note: Option<Note>,
    /// Grows with every change; the `ETag`.
    pub version: u64,
}

impl PoolSpec {
    /// How many separate ranges may be given, and as many be left out.
    const MOST_RANGES: usize = 1000;

    /// These numbers, and everything else as it is unless told.
    pub fn of(ranges: PortSet) -> PoolSpec {
        PoolSpec {
            ranges,
            exclude: PortSet::default(),
            scope: Scope::Instance,
            pick: Pick::Lowest,
            quarantine_seconds: Quarantine::DEFAULT,
            instances: None,
            ephemeral: false,
            note: None,
        }
    }

    /// Every port that it gives.
    pub fn ports(&self) -> PortSet {
        let mut ports = self.ranges.clone();
        ports.remove_all(&self.exclude);
        ports
    }

    /// Whether that makes a pool.
    ///
    /// # Errors
    /// [`Contradiction`] with the field that does not fit the others.
    pub fn check(&self) -> Result<(), Contradiction> {
        let fault = |field, what| Err(Contradiction { field, what });
        let ports = self.ports();
        if self.ranges.is_empty() {
            return fault("ranges", "a pool needs ports: give at least one range, such as 8000-8999");
        }
        if ports.is_empty() {
            return fault("exclude", "that leaves no port: exclude less, or give more ranges");
        }
        let is_long = |set: &PortSet| set.ranges().len() > PoolSpec::MOST_RANGES;
        if is_long(&self.ranges) {
            return fault("ranges", "a pool has at most 1000 separate ranges: make two pools of it");
        }
        if is_long(&self.exclude) {
            return fault("exclude", "a pool leaves out at most 1000 separate ranges: make two pools of it");
        }
        if !self.ephemeral && ports.first_in(ephemeral()).is_some() {
            return fault(
                "ephemeral",
                "it has ports of 32768-60999, which Linux gives to outgoing connections, so that a service may find \
                 them taken: keep out of those, or set `ephemeral` where the machines use others",
            );
        }
        Ok(())
    }

    /// A pool of this name that is so.
    pub fn named(self, name: PoolName, version: u64) -> Pool {
        let PoolSpec { ranges, exclude, scope, pick, quarantine_seconds, instances, ephemeral, note } = self;
        Pool { name, ranges, exclude, scope, pick, quarantine_seconds, instances, ephemeral, note, version }
    }
}

/// The ports that Linux gives to outgoing connections unless told otherwise.
fn ephemeral() -> PortRange {
    "32768-60999".parse().expect("a valid range")
}

impl Pool {
    /// The name of the pool that is always there, and that whoever names none draws from.
    pub const DEFAULT: &str = "default";

    /// What it is, without its name.
    pub fn spec(&self) -> PoolSpec {
        let Pool { ranges, exclude, scope, pick, quarantine_seconds, instances, ephemeral, note, .. } =
            self.clone();
        PoolSpec { ranges, exclude, scope, pick, quarantine_seconds, instances, ephemeral, note }
    }

    /// Every port that it gives.
    pub fn ports(&self) -> PortSet {
        self.spec().ports()
    }

    /// How long a released number is kept from dynamic picks.
    pub fn quarantine(&self) -> Duration {
        self.quarantine_seconds.duration()
    }

    /// Its numbers, as people write them: `8000-8999,9100 without 8080`.
    pub fn numbers(&self) -> String {
        match self.exclude.is_empty() {
            true => list(&self.ranges),
            false => format!("{} without {}", list(&self.ranges), list(&self.exclude)),
        }
    }

    /// What it is, in words, for history.
    pub fn describe(&self) -> String {
        let whom = self.instances.as_ref().map(|selector| format!(", for instances with {selector}"));
        let ephemeral = if self.ephemeral { ", ephemeral ports too" } else { "" };
        format!(
            "{}, scope {}, pick {}, quarantine {}{}{ephemeral}",
            self.numbers(),
            self.scope,
            self.pick,
            self.quarantine_seconds,
            whom.unwrap_or_default()
        )
    }
}

/// How many ranges a sentence lists.
const LISTED: usize = 20;

/// `8000-8999,9100`; cut where it would become too long for a sentence.
pub fn list(ports: &PortSet) -> String {
    let ranges = ports.ranges();
    let shown: Vec<String> = ranges.iter().take(LISTED).map(ToString::to_string).collect();
    let more = if ranges.len() > LISTED { ",…" } else { "" };
    format!("{}{more}", shown.join(","))
}

/// A pool, and how full it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolStatus {
    /// The pool.
    #[serde(flatten)]
    pub pool: Pool,
    /// How many ports it has.
    pub size: u32,
    /// How many of its numbers are reserved on all instances together, TCP and UDP, whoever reserved them and however.
    /// What is fleet-wide counts once.
    pub reserved: u64,
    /// Where the fewest are left; none while nothing is reserved.
    pub fullest: Option<Fullest>,
}

/// Where a pool has the fewest ports left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fullest {
    /// The instance; none when all that is reserved is fleet-wide, so that it is the same everywhere.
    pub instance: Option<InstanceLink>,
    /// The protocol.
    pub protocol: Protocol,
    /// How many of the pool's ports nobody has reserved there.
    pub left: u32,
}

/// What became of a pool that was set or deleted, and of what was drawn from it before: that stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolChange {
    /// The pool as it is now; a deleted one as it was.
    pub pool: Pool,
    /// How many live reservations that were drawn from it have ports outside of it now.
    pub outside: u64,
    /// The first of them, at most [`PoolChange::SHOWN`].
    pub first_outside: Vec<Reservation>,
}

impl PoolChange {
    /// How many reservations are shown.
    pub const SHOWN: usize = 20;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Port;

    fn ports(text: &str) -> PortSet {
        let mut set = PortSet::default();
        let ranges = text.split(',').filter(|part| !part.is_empty());
        ranges.for_each(|range| set.insert_range(range.parse().unwrap()));
        set
    }

    #[test]
    fn what_makes_no_pool_is_refused_with_the_reason() {
        let of = |ranges: &str| PoolSpec::of(ports(ranges));
        let without = |ranges: &str, exclude: &str| PoolSpec { exclude: ports(exclude), ..of(ranges) };
        let scattered: String = (0..1001).map(|number| format!("{},", 2 * number + 1)).collect();
        let table = [
            (of("8000"), None),
            (without("8000-8999,9100", "8080"), None),
            (of(""), Some("ranges")),
            (without("8000-8001", "7000-9000"), Some("exclude")),
            (of("32000-32767"), None),
            (of("32000-32768"), Some("ephemeral")),
            (of("60999-61000"), Some("ephemeral")),
            (of("61000-65535"), None),
            (without("32000-61000", "32768-60999"), None),
            (PoolSpec { ephemeral: true, ..of("40000-50000") }, None),
            (of(&scattered), Some("ranges")),
            (without("1-30000", &scattered), Some("exclude")),
        ];
        for (row, (spec, field)) in table.into_iter().enumerate() {
            assert_eq!(spec.check().err().map(|fault| fault.field), field, "row {row}");
        }
    }

    #[test]
    fn what_is_left_out_is_what_it_is_unless_told() {
        let read: PoolSpec = serde_json::from_str(r#"{"ranges":["8000-8009","8005-8020"]}"#).unwrap();
        assert_eq!(read, PoolSpec::of(ports("8000-8020")));
        let none = read.named("web".parse().unwrap(), 3);
        assert_eq!(none.describe(), "8000-8020, scope instance, pick lowest, quarantine 15m");
        assert_eq!(none.spec().named(none.name.clone(), 3), none);
        for bad in [
            r"{}",
            r#"{"ranges":["8000"],"name":"web"}"#,
            r#"{"ranges":["8000"],"quarantine_seconds":-1}"#,
            r#"{"ranges":["8000"],"quarantine_seconds":2592001}"#,
            r#"{"ranges":["8000"],"pick":"highest"}"#,
            r#"{"ranges":["9-2"]}"#,
        ] {
            assert!(serde_json::from_str::<PoolSpec>(bad).is_err(), "{bad} was taken");
        }
        let all = r#"{"ranges":["8000-8999"],"exclude":["8080"],"scope":"fleet","pick":"random",
            "quarantine_seconds":0,"instances":"env=prod","ephemeral":true,"note":"x"}"#;
        let read = serde_json::from_str::<PoolSpec>(all).unwrap().named("web".parse().unwrap(), 1);
        assert_eq!(
            read.describe(),
            "8000-8999 without 8080, scope fleet, pick random, quarantine 0s, for instances with env=prod, ephemeral \
             ports too"
        );
        assert_eq!((read.ports().len(), read.quarantine().as_secs()), (999, 0));
    }

    #[test]
    fn a_sentence_lists_so_many_ranges_and_no_more() {
        let scattered: PortSet = (1..=100).filter_map(|number| Port::new(2 * number)).collect();
        assert!(list(&scattered).ends_with("38,40,…"), "{}", list(&scattered));
        assert_eq!(list(&ports("80,443-444")), "80,443-444");
    }
}
