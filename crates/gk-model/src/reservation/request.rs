//! The request that makes reservations: one form, whatever is asked for.
//!
//! It may ask for much at once. What contradicts itself is found here, by [`ReserveRequest::check`], so that nobody
//! follows one half of it; what depends on which instances there are, only the store can tell.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{PortCount, Protocols, Reservation, ReservationPatch, Scope};
use crate::expect::Expect;
use crate::id::InstanceRef;
use crate::labels::{Labels, Selector};
use crate::lease::LeaseTime;
use crate::port::{Port, PortRange};
use crate::port_set::PortSet;
use crate::text::{Note, PoolName, PortName, ServiceName};

/// Asks for ports: the next free ones of a pool, or by number. All that it asks for is made, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReserveRequest {
    /// The instance to reserve on: id or name. Left out with `on`, and where the scope is `fleet` and the number is to be
    /// held for all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceRef>,
    /// Instead of `instance`: the same numbers on every joined instance with such labels, at most 1000 of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<Selector>,
    /// The protocol, or `both`: the same numbers for each. TCP when left out.
    #[serde(default)]
    pub protocol: Protocols,
    /// The port to reserve, or the lowest of the range. Left out: the next free one of the pool.
    pub port: Option<Port>,
    /// The pool to draw from; `default` when left out. Not together with `port`.
    pub pool: Option<PoolName>,
    /// What it is for.
    pub service: Option<ServiceName>,
    /// Which of the service's ports it is.
    pub name: Option<PortName>,
    /// Instead of `name`: as many ports, or ranges, as there are names. By number, they follow each other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<PortName>,
    /// A remark.
    pub note: Option<Note>,
    /// What each reservation is labelled with.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Who should be listening there; anybody may where nothing is expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
    /// Ports the caller found taken on that machine just now. Not picked this time, and never stored.
    #[serde(default)]
    pub busy: PortSet,
    /// With `port`: whoever listens there now is the rightful one.
    #[serde(default)]
    pub adopt: bool,
    /// Where it excludes others; `instance` when left out.
    #[serde(default, skip_serializing_if = "is_default")]
    pub scope: Scope,
    /// How many contiguous ports, for each name; 1 when left out.
    #[serde(default, skip_serializing_if = "PortCount::is_one")]
    pub count: PortCount,
    /// Make it a lease that ends after so many seconds unless it is renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<LeaseTime>,
    /// With `ttl_seconds`: the server renews the lease while somebody who fits listens there.
    #[serde(default, skip_serializing_if = "is_default")]
    pub renew_while_listening: bool,
    /// Get the same reservation again: the live one of this subject, instance, service, name and protocol, or after its
    /// release the same number while that is free. Needs `service`. Where `note`, `labels` or `expect` are given and
    /// differ from what is held, what is held is edited.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ensure: bool,
    /// Check and pick as for real, write nothing, and answer what would be made. Keeps no idempotency key.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dry_run: bool,
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

/// Whether it is so, then the field, and the sentence about it.
type Rule = (bool, &'static str, &'static str);

impl ReserveRequest {
    /// On how many instances one request may reserve.
    pub const MOST_INSTANCES: u16 = 1000;

    /// How many ports one request may take, counted on every instance and for each protocol: it is one transaction, and
    /// everybody else waits for it.
    pub const MOST_PORTS: usize = 65_536;

    /// The next free TCP port of the default pool on `instance`.
    pub fn next_free(instance: impl Into<InstanceRef>) -> ReserveRequest {
        ReserveRequest { instance: Some(instance.into()), ..ReserveRequest::default() }
    }

    /// The names of its reservations, one for each slot of contiguous ports; a single slot may have none.
    pub fn names(&self) -> Vec<Option<&PortName>> {
        match self.names.as_slice() {
            [] => vec![self.name.as_ref()],
            names => names.iter().map(Some).collect(),
        }
    }

    /// How many ports of one protocol it takes on one instance.
    pub fn total(&self) -> usize {
        usize::from(self.count.get()) * self.names.len().max(1)
    }

    /// How many ports it takes in all, on so many instances.
    pub fn total_on(&self, instances: usize) -> usize {
        self.total().saturating_mul(self.protocol.each().len()).saturating_mul(instances)
    }

    /// Whether it is held for every instance instead of for some.
    pub fn is_for_all(&self) -> bool {
        self.instance.is_none() && self.on.is_none()
    }

    /// Whether it can make no more than one reservation of one port of one instance.
    pub fn is_one_port(&self) -> bool {
        self.instance.is_some() && self.total_on(1) == 1
    }

    /// What `ensure` changes of a reservation that it found: what was given, and is another thing there.
    pub fn edit_of(&self, held: &Reservation) -> ReservationPatch {
        let differs = |expect: &&Expect| held.expect.as_ref().unwrap_or(&Expect::default()) != *expect;
        ReservationPatch {
            note: self.note.clone().filter(|note| held.note.as_ref() != Some(note)).map(Some),
            labels: Some(&self.labels).filter(|it| !it.is_empty() && **it != held.labels).cloned().map(Some),
            expect: self.expect.as_ref().filter(differs).cloned().map(Some),
            ..ReservationPatch::default()
        }
    }

    /// Refuses what contradicts itself, rather than following one half of it.
    ///
    /// # Errors
    /// The first [`Contradiction`].
    pub fn check(&self) -> Result<(), Contradiction> {
        let rules = self.of_places().into_iter().chain(self.of_numbers()).chain(self.of_purpose());
        let mut broken = rules.filter(|(broken, ..)| *broken);
        broken.next().map_or(Ok(()), |(_, field, what)| Err(Contradiction { field, what }))
    }

    fn of_places(&self) -> [Rule; 3] {
        let is_fleet = self.scope == Scope::Fleet;
        let nowhere = "say where: give `instance`, or `on`, or the scope `fleet` for a number that is held for all instances";
        let twice = "give `instance` or `on`, not both";
        let one_number =
            "a number reserved fleet-wide is exclusive everywhere: reserve it for one instance or for all";
        [
            (self.is_for_all() && !is_fleet, "instance", nowhere),
            (self.instance.is_some() && self.on.is_some(), "on", twice),
            (is_fleet && self.on.is_some(), "scope", one_number),
        ]
    }

    fn of_numbers(&self) -> [Rule; 5] {
        let by_number = self.port.is_some();
        let total = u16::try_from(self.total()).unwrap_or(u16::MAX);
        let ends = self.port.is_none_or(|port| PortRange::from_count(port, total).is_some());
        let pool = "a port asked for by number is not drawn from a pool: leave out `port` or `pool`";
        let adopt_what = "adopting needs the number of the port: give `port`";
        [
            (by_number && self.pool.is_some(), "pool", pool),
            (!by_number && self.adopt, "adopt", adopt_what),
            (self.adopt && !self.is_one_port(), "adopt", "adopting is for one port of one instance"),
            (
                self.total() > usize::from(PortCount::MAX.get()),
                "count",
                "one request takes at most 4096 ports",
            ),
            (!ends, "count", "the range would end above 65535, the highest port"),
        ]
    }

    fn of_purpose(&self) -> [Rule; 4] {
        let distinct = self.names.iter().collect::<BTreeSet<_>>().len();
        let ensure = "`ensure` finds a reservation again by what it is for: give `service`";
        [
            (self.ensure && self.service.is_none(), "service", ensure),
            (self.name.is_some() && !self.names.is_empty(), "name", "give `name` or `names`, not both"),
            (distinct < self.names.len(), "names", "two of the names are the same"),
            (
                self.renew_while_listening && self.ttl_seconds.is_none(),
                "renew_while_listening",
                "only a lease is renewed: give `ttl_seconds`",
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::InstanceId;
    use crate::time::Timestamp;

    fn next() -> ReserveRequest {
        ReserveRequest::next_free(InstanceId::generate(Timestamp::from_micros(0)))
    }

    fn names(names: &[&str]) -> Vec<PortName> {
        names.iter().filter_map(|name| name.parse().ok()).collect()
    }

    fn count(count: i64) -> PortCount {
        PortCount::try_from(count).unwrap()
    }

    #[test]
    fn what_contradicts_itself_is_named() {
        let port = Port::new(65_530);
        let on = ReserveRequest { on: "env=prod".parse().ok(), ..ReserveRequest::default() };
        let for_all = ReserveRequest { scope: Scope::Fleet, ..ReserveRequest::default() };
        let both = Protocols::Both;
        let service: Option<ServiceName> = "billing".parse().ok();
        let table = [
            (next(), None),
            (ReserveRequest::default(), Some("instance")),
            (on.clone(), None),
            (for_all.clone(), None),
            (ReserveRequest { on: "env=prod".parse().ok(), ..next() }, Some("on")),
            (ReserveRequest { scope: Scope::Fleet, ..on.clone() }, Some("scope")),
            (ReserveRequest { scope: Scope::Fleet, ..next() }, None),
            (ReserveRequest { port, pool: "default".parse().ok(), ..next() }, Some("pool")),
            (ReserveRequest { adopt: true, ..next() }, Some("adopt")),
            (ReserveRequest { adopt: true, port, ..next() }, None),
            (ReserveRequest { adopt: true, port, count: count(2), ..next() }, Some("adopt")),
            (ReserveRequest { adopt: true, port, protocol: both, ..next() }, Some("adopt")),
            (ReserveRequest { adopt: true, port, names: names(&["a", "b"]), ..next() }, Some("adopt")),
            (ReserveRequest { adopt: true, port, ..for_all }, Some("adopt")),
            (ReserveRequest { adopt: true, port, ..on }, Some("adopt")),
            (ReserveRequest { ensure: true, ..next() }, Some("service")),
            (ReserveRequest { ensure: true, service, ..next() }, None),
            (ReserveRequest { renew_while_listening: true, ..next() }, Some("renew_while_listening")),
            (ReserveRequest { renew_while_listening: true, ttl_seconds: 60.try_into().ok(), ..next() }, None),
            (ReserveRequest { name: "a".parse().ok(), names: names(&["b"]), ..next() }, Some("name")),
            (ReserveRequest { names: names(&["a", "b", "a"]), ..next() }, Some("names")),
            (ReserveRequest { names: names(&["a", "b"]), ..next() }, None),
            (ReserveRequest { count: count(2048), names: names(&["a", "b"]), ..next() }, None),
            (ReserveRequest { count: count(2049), names: names(&["a", "b"]), ..next() }, Some("count")),
            (ReserveRequest { port, count: count(6), protocol: both, ..next() }, None),
            (ReserveRequest { port, count: count(7), ..next() }, Some("count")),
            (
                ReserveRequest { port, count: count(3), names: names(&["a", "b", "c"]), ..next() },
                Some("count"),
            ),
        ];
        for (row, (request, field)) in table.into_iter().enumerate() {
            assert_eq!(request.check().err().map(|found| found.field), field, "row {row}");
        }
    }

    #[test]
    fn what_is_left_out_is_not_written() {
        let json = serde_json::to_value(next()).unwrap();
        let newer = ["on", "names", "labels", "expect", "scope", "count", "ttl_seconds", "ensure", "dry_run"];
        for field in newer {
            assert!(json.get(field).is_none(), "{field}: an older server would refuse it");
        }
        assert_eq!(serde_json::from_value::<ReserveRequest>(json).unwrap().count, PortCount::ONE);
    }

    #[test]
    fn every_form_has_its_field() {
        let all = r#"{"on":"env in (prod,test)","protocol":"both","port":8000,"pool":null,"service":"s","name":null,
            "names":["http","grpc"],"note":"n","labels":{"team":"web"},"expect":{"process":"nginx"},"busy":[],
            "adopt":false,"scope":"fleet","count":4096,"ttl_seconds":60,"ensure":true,"dry_run":true}"#;
        let read: ReserveRequest = serde_json::from_str(all).unwrap();
        assert_eq!((read.scope, read.count, read.protocol), (Scope::Fleet, PortCount::MAX, Protocols::Both));
        assert_eq!(read.names, names(&["http", "grpc"]));
        assert!(read.ensure && read.dry_run && read.instance.is_none());
        let written = serde_json::to_value(&read).unwrap();
        let given: serde_json::Value = serde_json::from_str(all).unwrap();
        assert_eq!(written, given);
        assert!(serde_json::from_str::<ReserveRequest>(r#"{"group":{}}"#).is_err());
    }
}
