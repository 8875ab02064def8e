//! Small values for tests.

use std::time::Duration;

use gk_model::contact::{Family, Part};
use gk_model::id::InstanceId;
use gk_model::listener::{Listener, ListenerKey, Netns, Owner};
use gk_model::port::{Port, Protocol};
use gk_model::problem::{Code, Problem};
use gk_model::time::Timestamp;

use crate::state::Habits;
use crate::view::Snapshot;

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(second * 1_000_000)
}

/// Port below 1000: IPv4; above: IPv6.
pub(crate) fn listener(port: u16, pid: u32) -> Listener {
    let owner = Owner { pid, started_ticks: 7, name: "web".into(), exe: None, account: "www-data".into() };
    Listener {
        key: ListenerKey {
            netns: Netns::Home,
            protocol: Protocol::Tcp,
            port: Port::new(port).unwrap(),
            address: if port < 1_000 { "0.0.0.0" } else { "::" }.parse().unwrap(),
            interface: None,
            v6only: false,
        },
        account: None,
        owners: vec![owner].into(),
        more_owners: 0,
        unit: None,
        container: None,
        first_seen_at: at(0),
        last_seen_at: at(0),
    }
}

pub(crate) fn parts() -> [Part; 2] {
    [Family::V4, Family::V6].map(|family| Part { netns: Netns::Home, protocol: Protocol::Tcp, family })
}

/// A scan of every part at this time.
pub(crate) fn snapshot(listeners: impl IntoIterator<Item = Listener>, now: Timestamp) -> Snapshot {
    let listeners =
        listeners.into_iter().map(|listener| Listener { first_seen_at: now, last_seen_at: now, ..listener });
    Snapshot { covered: parts().to_vec(), listeners: Some(listeners.collect()), ..Snapshot::default() }
}

pub(crate) fn problem(status: u16, code: Code) -> Problem {
    Problem {
        kind: format!("/docs#{code}"),
        title: String::new(),
        status,
        code,
        detail: "no".to_owned(),
        field: None,
        holder: None,
        alternatives: Vec::new(),
        hint: None,
        request_id: None,
    }
}

pub(crate) fn habits(report_every: Duration) -> Habits {
    let instance = InstanceId::generate(at(0));
    Habits { report_every, version: "0.1.0".into(), instance }
}
