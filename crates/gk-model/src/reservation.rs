//! Reservations: claims on ports, what changes them, and the requests that make them.

mod command;
mod patch;
mod request;

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::expect::Expect;
use crate::id::{GroupId, InstanceId, ReservationId};
use crate::instance::InstanceLink;
use crate::labels::Labels;
use crate::lease::LeaseTime;
use crate::port::{Port, PortRange, Protocol};
use crate::text::{Note, PoolName, PortName, ServiceName, Subject};
use crate::text_form::words;
use crate::time::Timestamp;

pub use self::command::quoted;
pub use self::patch::ReservationPatch;
pub use self::request::{Contradiction, ReserveRequest};

words! {
    /// Where a reservation excludes others.
    Scope, "a scope" {
        /// On its instance.
        Instance = "instance",
        /// Everywhere.
        Fleet = "fleet",
    }
}

#[expect(
    clippy::derivable_impls,
    reason = "the macro declares the enum, so there is nowhere to put #[default]"
)]
impl Default for Scope {
    fn default() -> Scope {
        Scope::Instance
    }
}

words! {
    /// The protocols that a request is for.
    Protocols, "a protocol" {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
        /// The same numbers for TCP and UDP: two reservations each.
        Both = "both",
    }
}

#[expect(
    clippy::derivable_impls,
    reason = "the macro declares the enum, so there is nowhere to put #[default]"
)]
impl Default for Protocols {
    fn default() -> Protocols {
        Protocols::Tcp
    }
}

impl From<Protocol> for Protocols {
    fn from(protocol: Protocol) -> Protocols {
        match protocol {
            Protocol::Tcp => Protocols::Tcp,
            Protocol::Udp => Protocols::Udp,
        }
    }
}

impl Protocols {
    /// Each of them.
    pub fn each(self) -> &'static [Protocol] {
        match self {
            Protocols::Tcp => &[Protocol::Tcp],
            Protocols::Udp => &[Protocol::Udp],
            Protocols::Both => Protocol::ALL,
        }
    }
}

/// A claim on a port, or on a contiguous range of ports, of one protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reservation {
    /// Its id. In the answer to a dry run, all zeros for what would be made.
    pub id: ReservationId,
    /// The instance it is held for; none when it is held for all of them.
    pub instance: Option<InstanceLink>,
    /// Where it excludes others.
    pub scope: Scope,
    /// The protocol.
    pub protocol: Protocol,
    /// The lowest port.
    pub first_port: Port,
    /// The highest port; equal to `first_port` for a single one.
    pub last_port: Port,
    /// Which of the service's ports this is.
    pub name: Option<PortName>,
    /// What it is for.
    pub service: Option<ServiceName>,
    /// The subject that made it, and may release it.
    pub holder: Subject,
    /// A remark.
    pub note: Option<Note>,
    /// What it is labelled with.
    #[serde(default)]
    pub labels: Labels,
    /// Who should be listening there; anybody may where nothing is expected.
    #[serde(default)]
    pub expect: Option<Expect>,
    /// The pool it was drawn from; none when the port was asked for by number.
    pub pool: Option<PoolName>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its lease ends unless it is renewed; none when it is held until it is released. It is live until its end is
    /// written down, which is never before this.
    pub expires_at: Option<Timestamp>,
    /// How long the lease is, from the last time that it was made or renewed.
    #[serde(default)]
    pub ttl_seconds: Option<LeaseTime>,
    /// Whether the server renews the lease by as long while somebody who fits listens there.
    #[serde(default)]
    pub renew_while_listening: bool,
    /// What the reservations made by one request have in common, where it made several.
    pub group: Option<GroupId>,
    /// The reservation that this was a part of, until another part of it was released.
    pub split_from: Option<ReservationId>,
    /// Since when nobody listens on any of its ports, where they count; none while somebody does.
    #[serde(default)]
    pub idle_since: Option<Timestamp>,
    /// When it was released, or expired; the list shows live ones only.
    pub released_at: Option<Timestamp>,
    /// Who released it.
    pub released_by: Option<Subject>,
    /// Grows with every change; the `ETag`. 0 for what a dry run would make.
    pub version: u64,
}

impl Reservation {
    /// Its ports as a range.
    pub fn ports(&self) -> PortRange {
        PortRange::new(self.first_port, self.last_port).unwrap_or_else(|_| self.first_port.into())
    }

    /// Whether it is held for this very instance.
    pub fn is_held_for(&self, instance: InstanceId) -> bool {
        self.instance.as_ref().is_some_and(|link| link.id == instance)
    }

    /// Where it holds, in words that follow its ports: `on web-1`, `fleet-wide for web-1`, `fleet-wide`.
    pub fn place(&self) -> String {
        match (self.scope, &self.instance) {
            (Scope::Instance, Some(instance)) => format!("on {}", instance.name),
            (Scope::Fleet, Some(instance)) => format!("fleet-wide for {}", instance.name),
            (_, None) => "fleet-wide".to_owned(),
        }
    }
}

/// How many contiguous ports: 1 to 4096.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "i64", into = "i64")]
#[schema(value_type = u16, minimum = 1, maximum = 4096, example = 1)]
pub struct PortCount(u16);

/// A number of ports that no reservation has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a reservation has 1 to 4096 contiguous ports; {0} is outside")]
pub struct PortCountError(i64);

impl PortCount {
    /// A single port.
    pub const ONE: PortCount = PortCount(1);
    /// The most that one reservation has.
    pub const MAX: PortCount = PortCount(4096);

    /// As a number.
    pub fn get(self) -> u16 {
        self.0
    }

    fn is_one(&self) -> bool {
        *self == PortCount::ONE
    }
}

impl Default for PortCount {
    fn default() -> PortCount {
        PortCount::ONE
    }
}

impl TryFrom<i64> for PortCount {
    type Error = PortCountError;

    fn try_from(count: i64) -> Result<PortCount, PortCountError> {
        match u16::try_from(count) {
            Ok(valid @ 1..=4096) => Ok(PortCount(valid)),
            _ => Err(PortCountError(count)),
        }
    }
}

impl From<PortCount> for i64 {
    fn from(count: PortCount) -> i64 {
        i64::from(count.0)
    }
}

impl fmt::Display for PortCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a request for reservations was answered: one shape, whatever was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reserved {
    /// What was made, or with `ensure` found: by name, then by instance, then by protocol. Never empty.
    pub items: Vec<Reservation>,
    /// Those of them that `ensure` found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<ReservationId>,
    /// Whether nothing was made, because the request was a dry run: then this is what would have been.
    pub dry_run: bool,
}

impl Reserved {
    /// Those that were not there before.
    pub fn made(&self) -> impl Iterator<Item = &Reservation> {
        self.items.iter().filter(|item| !self.kept.contains(&item.id))
    }

    /// The only one, where it is one.
    pub fn only(&self) -> Option<&Reservation> {
        match self.items.as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }
}

/// Asks for another end of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// In how many seconds from now it ends; also when that is sooner than it would have.
    pub ttl_seconds: LeaseTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_1_to_4096() {
        for bad in [i64::MIN, -1, 0, 4097, 65_537, i64::MAX] {
            assert!(PortCount::try_from(bad).unwrap_err().to_string().contains("1 to 4096"), "{bad}");
        }
        let count = |count| PortCount::try_from(count).unwrap();
        assert_eq!((count(1), count(4096)), (PortCount::ONE, PortCount::MAX));
    }
}
