//! Reservations: claims on ports, and the requests that make them.
//!
//! A request may ask for much at once; what contradicts itself is found here, by [`ReserveRequest::check`], so that
//! nobody follows one half of it.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::expect::Expect;
use crate::id::{GroupId, InstanceId, InstanceRef, ReservationId};
use crate::instance::InstanceLink;
use crate::labels::Labels;
use crate::lease::LeaseTime;
use crate::port::{Port, PortRange, Protocol};
use crate::port_set::PortSet;
use crate::text::{Note, PoolName, PortName, ServiceName, Subject};
use crate::text_form::words;
use crate::time::Timestamp;

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

/// A claim on a port, or on a contiguous range of ports, of one protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reservation {
    /// Its id.
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
    /// Grows with every change; the `ETag`.
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

/// What a request asks for beyond one reservation. All of it is made, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// One reservation for each of these names, none of them overlapping. Instead of `name`.
    pub names: Vec<PortName>,
    /// The same numbers on these instances too.
    pub also_on: Vec<InstanceRef>,
    /// The same numbers for TCP and UDP.
    pub both_protocols: bool,
    /// Held for every instance instead of for one; the scope is then the fleet.
    pub everywhere: bool,
}

/// Asks for a port or a contiguous range of them: the next free one of a pool, or one by number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReserveRequest {
    /// The instance to reserve on: id or name.
    pub instance: InstanceRef,
    /// The protocol; TCP when left out.
    #[serde(default)]
    pub protocol: Protocol,
    /// The port to reserve, or the lowest of the range. Left out: the next free one of the pool.
    pub port: Option<Port>,
    /// The pool to draw from; `default` when left out. Not together with `port`.
    pub pool: Option<PoolName>,
    /// What it is for.
    pub service: Option<ServiceName>,
    /// Which of the service's ports it is.
    pub name: Option<PortName>,
    /// A remark.
    pub note: Option<Note>,
    /// Ports the caller found taken on that machine just now. Not picked this time, and never stored.
    #[serde(default)]
    pub busy: PortSet,
    /// With `port`: whoever listens there now is the rightful one.
    #[serde(default)]
    pub adopt: bool,
    /// Where it excludes others; `instance` when left out.
    #[serde(default, skip_serializing_if = "is_default")]
    pub scope: Scope,
    /// How many contiguous ports; 1 when left out.
    #[serde(default, skip_serializing_if = "PortCount::is_one")]
    pub count: PortCount,
    /// Make it a lease that ends after so many seconds unless it is renewed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<LeaseTime>,
    /// With `ttl_seconds`: the server renews the lease while somebody who fits listens there.
    #[serde(default, skip_serializing_if = "is_default")]
    pub renew_while_listening: bool,
    /// Get the same reservation again: the live one of this subject, instance, service, name and protocol, or after its
    /// release the same number while that is free. Needs `service`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ensure: bool,
    /// What goes beyond one reservation.
    #[serde(skip)]
    pub group: Group,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A request that contradicts itself: the field, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Contradiction {
    /// The field that does not go with the others.
    pub field: &'static str,
    /// The sentence about it.
    pub what: &'static str,
}

impl ReserveRequest {
    /// The next free TCP port of the default pool on `instance`.
    pub fn next_free(instance: impl Into<InstanceRef>) -> ReserveRequest {
        ReserveRequest {
            instance: instance.into(),
            protocol: Protocol::Tcp,
            port: None,
            pool: None,
            service: None,
            name: None,
            note: None,
            busy: PortSet::default(),
            adopt: false,
            scope: Scope::Instance,
            count: PortCount::ONE,
            ttl_seconds: None,
            renew_while_listening: false,
            ensure: false,
            group: Group::default(),
        }
    }

    /// The names of its reservations, one for each slot of contiguous ports; a single slot may have none.
    pub fn names(&self) -> Vec<Option<&PortName>> {
        match self.group.names.as_slice() {
            [] => vec![self.name.as_ref()],
            names => names.iter().map(Some).collect(),
        }
    }

    /// How many ports of one protocol it takes on one instance.
    pub fn total(&self) -> usize {
        usize::from(self.count.get()) * self.group.names.len().max(1)
    }

    /// Refuses what contradicts itself, rather than following one half of it.
    ///
    /// # Errors
    /// The first [`Contradiction`].
    pub fn check(&self) -> Result<(), Contradiction> {
        let rules = self.contradictions();
        rules
            .into_iter()
            .find(|(broken, ..)| *broken)
            .map_or(Ok(()), |(_, field, what)| Err(Contradiction { field, what }))
    }

    fn contradictions(&self) -> [(bool, &'static str, &'static str); 12] {
        let Group { names, also_on, both_protocols, everywhere } = &self.group;
        let distinct = names.iter().collect::<BTreeSet<_>>().len();
        let by_number = self.port.is_some();
        let is_fleet = self.scope == Scope::Fleet || *everywhere;
        let is_one_port = self.total() == 1 && also_on.is_empty() && !both_protocols && !everywhere;
        let total = u16::try_from(self.total()).unwrap_or(u16::MAX);
        let ends = self.port.is_none_or(|port| PortRange::from_count(port, total).is_some());
        let pool = "a port asked for by number is not drawn from a pool: leave out `port` or `pool`";
        let adopt_what = "adopting needs the number of the port: give `port`";
        let ensure = "`ensure` finds a reservation again by what it is for: give `service`";
        let one_number =
            "a number reserved fleet-wide is exclusive everywhere: reserve it for one instance or for all";
        [
            (by_number && self.pool.is_some(), "pool", pool),
            (!by_number && self.adopt, "adopt", adopt_what),
            (self.adopt && !is_one_port, "adopt", "adopting is for one port of one instance"),
            (self.ensure && self.service.is_none(), "service", ensure),
            (self.name.is_some() && !names.is_empty(), "name", "give `name` or `names`, not both"),
            (distinct < names.len(), "names", "two of the names are the same"),
            (is_fleet && !also_on.is_empty(), "scope", one_number),
            (
                also_on.len() > Self::MOST_INSTANCES,
                "also_on",
                "one request reserves on at most 1000 instances",
            ),
            (
                self.total() > usize::from(PortCount::MAX.get()),
                "count",
                "one request takes at most 4096 ports",
            ),
            (
                self.ports_in_all() > Self::MOST_PORTS,
                "also_on",
                "one request takes at most 65536 ports in all",
            ),
            (
                self.renew_while_listening && self.ttl_seconds.is_none(),
                "renew_while_listening",
                "only a lease is renewed: give `ttl_seconds`",
            ),
            (!ends, "count", "the range would end above 65535, the highest port"),
        ]
    }

    /// On how many instances besides the first one request may reserve.
    const MOST_INSTANCES: usize = 999;

    /// How many ports one request may take, counted on every instance and for each protocol: it is one transaction, and
    /// everybody else waits for it.
    const MOST_PORTS: usize = 65_536;

    fn ports_in_all(&self) -> usize {
        let protocols = if self.group.both_protocols { 2 } else { 1 };
        self.total().saturating_mul(self.group.also_on.len() + 1).saturating_mul(protocols)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next() -> ReserveRequest {
        ReserveRequest::next_free(InstanceId::generate(Timestamp::from_micros(0)))
    }

    fn names(names: &[&str]) -> Group {
        Group { names: names.iter().filter_map(|name| name.parse().ok()).collect(), ..Group::default() }
    }

    fn count(count: i64) -> PortCount {
        PortCount::try_from(count).unwrap()
    }

    #[test]
    fn what_contradicts_itself_is_named() {
        let port = Port::new(65_530);
        let other = InstanceRef::Id(InstanceId::generate(Timestamp::from_micros(0)));
        let also_on = |many| Group { also_on: vec![other.clone(); many], ..Group::default() };
        let everywhere = Group { everywhere: true, ..Group::default() };
        let both = Group { both_protocols: true, ..Group::default() };
        let service = "billing".parse().ok();
        let table = [
            (next(), None),
            (ReserveRequest { port, pool: "default".parse().ok(), ..next() }, Some("pool")),
            (ReserveRequest { adopt: true, ..next() }, Some("adopt")),
            (ReserveRequest { adopt: true, port, ..next() }, None),
            (ReserveRequest { adopt: true, port, count: count(2), ..next() }, Some("adopt")),
            (ReserveRequest { adopt: true, port, group: both, ..next() }, Some("adopt")),
            (ReserveRequest { adopt: true, port, group: everywhere.clone(), ..next() }, Some("adopt")),
            (ReserveRequest { ensure: true, ..next() }, Some("service")),
            (ReserveRequest { ensure: true, service, ..next() }, None),
            (ReserveRequest { name: "a".parse().ok(), group: names(&["b"]), ..next() }, Some("name")),
            (ReserveRequest { group: names(&["a", "b", "a"]), ..next() }, Some("names")),
            (ReserveRequest { group: names(&["a", "b"]), ..next() }, None),
            (ReserveRequest { scope: Scope::Fleet, group: also_on(1), ..next() }, Some("scope")),
            (ReserveRequest { group: Group { everywhere: true, ..also_on(1) }, ..next() }, Some("scope")),
            (ReserveRequest { scope: Scope::Fleet, group: everywhere, ..next() }, None),
            (ReserveRequest { group: also_on(999), ..next() }, None),
            (ReserveRequest { group: also_on(1000), ..next() }, Some("also_on")),
            (ReserveRequest { count: count(2048), group: names(&["a", "b"]), ..next() }, None),
            (ReserveRequest { count: count(2049), group: names(&["a", "b"]), ..next() }, Some("count")),
            (ReserveRequest { count: count(4096), group: also_on(15), ..next() }, None),
            (ReserveRequest { count: count(4096), group: also_on(16), ..next() }, Some("also_on")),
            (ReserveRequest { port, count: count(6), ..next() }, None),
            (ReserveRequest { port, count: count(7), ..next() }, Some("count")),
            (
                ReserveRequest { port, count: count(3), group: names(&["a", "b", "c"]), ..next() },
                Some("count"),
            ),
        ];
        for (row, (request, field)) in table.into_iter().enumerate() {
            assert_eq!(request.check().err().map(|found| found.field), field, "row {row}");
        }
    }

    #[test]
    fn counts_are_1_to_4096() {
        for bad in [i64::MIN, -1, 0, 4097, 65_537, i64::MAX] {
            assert!(PortCount::try_from(bad).unwrap_err().to_string().contains("1 to 4096"), "{bad}");
        }
        assert_eq!((count(1), count(4096)), (PortCount::ONE, PortCount::MAX));
    }

    #[test]
    fn what_is_left_out_is_not_written() {
        let json = serde_json::to_value(next()).unwrap();
        for field in ["scope", "count", "ttl_seconds", "ensure", "group"] {
            assert!(json.get(field).is_none(), "{field}: an older server would refuse it");
        }
        assert_eq!(serde_json::from_value::<ReserveRequest>(json).unwrap().count, PortCount::ONE);
        let all = r#"{"instance":"a","scope":"fleet","count":4096,"ttl_seconds":60,"ensure":true}"#;
        let read: ReserveRequest = serde_json::from_str(all).unwrap();
        assert_eq!((read.scope, read.count, read.ensure), (Scope::Fleet, PortCount::MAX, true));
    }
}
