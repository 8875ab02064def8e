//! Things as servers answer them, for tables of tests.

use gk_model::drift::{Drift, DriftKind};
use gk_model::id::{InstanceId, ReservationId};
use gk_model::instance::{InstanceLink, Presence};
use gk_model::listener::{Container, Listener, Owners};
use gk_model::port::{Port, Protocol};
use gk_model::port_state::{Joined, PortState};
use gk_model::reservation::Reservation;
use gk_model::time::Timestamp;
use serde_json::json;

/// The moment of everything here.
pub(crate) const AT: i64 = 1_700_000_000_000_000;

/// An instance of this name.
pub(crate) fn instance(name: &str) -> InstanceLink {
    InstanceLink { id: InstanceId::generate(Timestamp::from_micros(AT)), name: name.parse().unwrap() }
}

/// A TCP port reserved there, by `ci` for `web`.
pub(crate) fn reservation(on: &InstanceLink, port: u16) -> Reservation {
    let at = Timestamp::from_micros(AT);
    let held = json!({
        "id": ReservationId::generate(at), "instance": on, "scope": "instance", "protocol": "tcp",
        "first_port": port, "last_port": port, "service": "web", "holder": "ci", "created_at": at, "version": 1,
    });
    serde_json::from_value(held).unwrap()
}

/// A process that listens on a TCP port of every address, with pid 77.
pub(crate) fn listener(port: u16, exe: &str, account: &str) -> Listener {
    let (at, name) = (Timestamp::from_micros(AT), exe.rsplit('/').next());
    let owner = json!({"pid": 77, "started_ticks": 1, "name": name, "exe": exe, "account": account});
    let seen = json!({
        "netns": "home", "protocol": "tcp", "port": port, "address": "0.0.0.0", "account": account,
        "owners": [owner], "first_seen_at": at, "last_seen_at": at,
    });
    serde_json::from_value(seen).unwrap()
}

/// The same in a systemd unit.
pub(crate) fn in_unit(listener: Listener, unit: &str) -> Listener {
    Listener { unit: Some(unit.into()), ..listener }
}

/// The same in a Docker container; without a name when that is empty.
pub(crate) fn in_container(listener: Listener, name: &str) -> Listener {
    let name = (!name.is_empty()).then(|| name.into());
    let container = Container { id: "3f2a91c04d5e6f708192".into(), name, engine: "docker".into(), pod: None };
    Listener { container: Some(Box::new(container)), ..listener }
}

/// The same, by an agent that may not see processes.
pub(crate) fn hidden(listener: Listener) -> Listener {
    Listener { owners: Owners::default(), ..listener }
}

/// What intent and fact say of a port together.
pub(crate) fn state(
    on: &InstanceLink,
    port: u16,
    held: Option<Reservation>,
    listeners: Vec<Listener>,
) -> PortState {
    let Joined { reservation, listeners, state, fit } = Joined::new(on.id, held, listeners);
    PortState {
        instance: on.clone(),
        protocol: listeners.first().map_or(Protocol::Tcp, |listener| listener.key.protocol),
        port: Port::new(port).unwrap(),
        state,
        fit,
        reservation,
        listeners,
        observed_at: Some(Timestamp::from_micros(AT)),
        presence: Presence::Online,
    }
}

/// The same port as drift; it must be some.
pub(crate) fn drift(state: PortState) -> Drift {
    Drift {
        kind: DriftKind::of(state.state).unwrap(),
        instance: Some(state.instance),
        protocol: state.protocol,
        first_port: state.port,
        last_port: state.port,
        since: Timestamp::from_micros(AT),
        reservation: state.reservation,
        listeners: state.listeners,
        fit: state.fit,
        ignored_by: None,
        observed_at: state.observed_at,
        presence: Some(state.presence),
    }
}
