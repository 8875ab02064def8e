//! `gkctl port list` and `gkctl port show`: who may use a port, and who does.

use std::collections::BTreeMap;

use anyhow::Result;
use gk_model::instance::Presence;
use gk_model::listener::{Listener, Netns};
use gk_model::port_state::{PortState, State};
use gk_model::query::PortQuery;
use gk_model::reservation::Reservation;
use gk_model::time::Timestamp;

use crate::args::{Format, OnePort, PortFilters};
use crate::context::{Context, collect, note};
use crate::output::{Column, List, Tint, age, exact, or_dash, print, print_json};

/// How many absent instances are named before the rest is counted.
const MOST_NOTES: usize = 5;

/// The instance comes first, so that it can be left out where there is only one.
const COLUMNS: [Column<PortState>; 7] = [
    Column::new("INSTANCE", |port: &PortState| port.instance.name.to_string()),
    Column::new("PORT", number),
    Column::new("STATE", |port: &PortState| port.state.to_string()).tinted(tint),
    Column::new("SERVICE", |port: &PortState| exact(service(port)))
        .shown_as(|port, _| or_dash(service(port))),
    Column::new("LISTENER", listeners).shown_as(|port, _| or_dash(some(listeners(port)))),
    Column::new("ADDRESS", addresses).shown_as(|port, _| or_dash(some(addresses(port)))),
    Column::new("SINCE", |port: &PortState| exact(since(port)))
        .shown_as(|port, context| or_dash(since(port).map(|since| age::ago(since, context.now)))),
];

/// Lists the ports of this machine, of another instance, or of the fleet.
pub(crate) fn list(context: &Context, wanted: &PortFilters) -> Result<()> {
    let instance = context.instance_or_all(wanted.all_instances)?;
    let client = context.client()?;
    let ports = collect(wanted.limit, |cursor, limit| {
        let query = PortQuery { cursor, limit, ..query(wanted) };
        match &instance {
            Some(instance) => client.list_instance_ports(instance, &query),
            None => client.list_ports(&query),
        }
    })?;
    stale(&ports, context.now).iter().for_each(note);
    let list = List {
        columns: if wanted.all_instances { &COLUMNS } else { &COLUMNS[1..] },
        name: if wanted.all_instances { number_and_instance } else { number },
        when_empty: when_empty(wanted),
    };
    Ok(list.print(context, &ports)?)
}

/// Shows everything that is known of one port.
pub(crate) fn show(context: &Context, wanted: &OnePort) -> Result<()> {
    let instance = context.instance(None)?;
    let client = context.client()?;
    let ports = collect(None, |cursor, limit| {
        let (port, protocol) = (Some(wanted.number.into()), wanted.protocol);
        client.list_instance_ports(
            &instance,
            &PortQuery { port, protocol, cursor, limit, ..PortQuery::default() },
        )
    })?;
    stale(&ports, context.now).iter().for_each(note);
    let list =
        List { columns: &COLUMNS[1..], name: number, when_empty: "The server knows nothing of that port." };
    match context.format() {
        Format::Table if !ports.is_empty() => {
            Ok(print(&ports.iter().map(|port| describe(port, context.now)).collect::<String>())?)
        }
        Format::Json => Ok(print_json(&ports)?),
        _ => Ok(list.print(context, &ports)?),
    }
}

fn query(wanted: &PortFilters) -> PortQuery {
    PortQuery {
        port: wanted.port,
        protocol: wanted.protocol,
        state: wanted.state,
        service: wanted.service.clone(),
        holder: wanted.holder.clone(),
        process: wanted.process.clone(),
        unit: wanted.unit.clone(),
        container: wanted.container.clone(),
        q: wanted.search.clone(),
        ..PortQuery::default()
    }
}

fn when_empty(wanted: &PortFilters) -> &'static str {
    let unfiltered = query(wanted) == PortQuery::default();
    match (unfiltered, wanted.all_instances) {
        (true, false) => "No port is reserved or listened on here. Reserve one with `gkctl port reserve`.",
        (true, true) => {
            "No port is reserved or listened on anywhere. Bring machines in with `gkctl instance join`."
        }
        (false, _) => "No port matches. Look at all of them with `gkctl port list`.",
    }
}

/// A line for every instance that is not there, so that old data looks old.
fn stale(ports: &[PortState], now: Timestamp) -> Vec<String> {
    let absent: BTreeMap<_, _> = ports
        .iter()
        .filter(|port| port.presence != Presence::Online)
        .map(|port| (port.instance.name.as_str(), (port.presence, port.observed_at)))
        .collect();
    let lines = absent.iter().map(|(name, (presence, observed_at))| {
        let is_away = if *presence == Presence::Left { "has left" } else { "is offline" };
        match observed_at {
            Some(at) => format!("{name} {is_away}; listeners as of {}", age::exact_in_words(*at, now)),
            None => format!("{name} {is_away} and never reported its listeners"),
        }
    });
    let more = absent.len().saturating_sub(MOST_NOTES);
    let rest = (more > 0).then(|| format!("{more} more instances are not online"));
    lines.take(MOST_NOTES).chain(rest).collect()
}

pub(crate) fn number(port: &PortState) -> String {
    format!("{}/{}", port.port, port.protocol)
}

fn number_and_instance(port: &PortState) -> String {
    format!("{} {}", port.instance.name, number(port))
}

pub(crate) fn tint(port: &PortState) -> Tint {
    match port.state {
        State::InUse => Tint::Good,
        State::Unreserved => Tint::Odd,
        State::Conflict => Tint::Bad,
        State::Free | State::Reserved => Tint::Plain,
    }
}

pub(crate) fn service(port: &PortState) -> Option<String> {
    port.reservation.as_ref().and_then(purpose)
}

/// `billing-api`, or `billing-api:http` for one of its ports.
pub(crate) fn purpose(reservation: &Reservation) -> Option<String> {
    match (&reservation.service, &reservation.name) {
        (Some(service), Some(name)) => Some(format!("{service}:{name}")),
        (Some(service), None) => Some(service.to_string()),
        (None, name) => name.as_ref().map(ToString::to_string),
    }
}

/// Those of the home namespace before the others, and each description once.
pub(crate) fn listeners(port: &PortState) -> String {
    unique(port.listeners.iter().map(Listener::describe)).join("; ")
}

pub(crate) fn addresses(port: &PortState) -> String {
    unique(port.listeners.iter().map(address)).join(", ")
}

/// As `gatekeeper scan` writes it, and `10.0.0.1 (netns 4026532000)` for one that is not in the home namespace.
fn address(listener: &Listener) -> String {
    format!("{}{}", listener.key.bound_to(), listener.key.netns.remark())
}

fn unique(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = Vec::new();
    for text in texts {
        if !seen.contains(&text) {
            seen.push(text);
        }
    }
    seen
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// Since when the port is listened on, or else reserved. As for its state, the home namespace comes first.
pub(crate) fn since(port: &PortState) -> Option<Timestamp> {
    let is_home = |listener: &&Listener| listener.key.netns == Netns::Home;
    let seen = |listener: &Listener| listener.first_seen_at;
    let at_home = port.listeners.iter().filter(is_home).map(seen).min();
    let reserved = || port.reservation.as_ref().map(|reservation| reservation.created_at);
    at_home.or_else(reserved).or_else(|| port.listeners.iter().map(seen).min())
}

fn describe(port: &PortState, now: Timestamp) -> String {
    let mut text = format!("{} on {} is {}\n", number(port), port.instance.name, port.state);
    if let Some(reservation) = &port.reservation {
        text.push_str(&format!("  {}\n", describe_reservation(reservation, now)));
    }
    for listener in &port.listeners {
        text.push_str(&format!(
            "  listened on by {} at {} since {}\n",
            listener.describe(),
            address(listener),
            age::exact_in_words(listener.first_seen_at, now)
        ));
    }
    text
}

fn describe_reservation(reservation: &Reservation, now: Timestamp) -> String {
    let purpose = purpose(reservation).map(|purpose| format!(" for {purpose}")).unwrap_or_default();
    let pool = reservation.pool.as_ref().map(|pool| format!(" from pool {pool}")).unwrap_or_default();
    let note = reservation.note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
    let (holder, since) = (&reservation.holder, age::exact_in_words(reservation.created_at, now));
    format!("reserved{purpose} by {holder}{pool} since {since}{note}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gk_model::id::InstanceId;
    use gk_model::instance::InstanceLink;
    use gk_model::port::{Port, Protocol};

    use super::*;

    fn port(name: &str, presence: Presence, observed_at: Option<Timestamp>) -> PortState {
        let id = InstanceId::generate(Timestamp::from_micros(0));
        PortState {
            instance: InstanceLink { id, name: name.parse().unwrap() },
            protocol: Protocol::Tcp,
            port: Port::new(8080).unwrap(),
            state: State::Free,
            reservation: None,
            listeners: Vec::new(),
            observed_at,
            presence,
        }
    }

    #[test]
    fn old_data_looks_old() {
        let now = Timestamp::from_micros(1_700_000_000_000_000);
        let then = now.minus(Duration::from_hours(3));
        let ports = [
            port("web-1", Presence::Offline, Some(then)),
            port("web-1", Presence::Offline, Some(then)),
            port("web-2", Presence::Online, Some(then)),
            port("web-3", Presence::Offline, None),
        ];
        assert_eq!(
            stale(&ports, now),
            [
                "web-1 is offline; listeners as of 2023-11-14 19:13:20 UTC (3 h ago)",
                "web-3 is offline and never reported its listeners"
            ]
        );
        let many: Vec<PortState> = (0..8).map(|n| port(&format!("w{n}"), Presence::Offline, None)).collect();
        assert_eq!(stale(&many, now).last().unwrap(), "3 more instances are not online");
    }

    #[test]
    fn a_free_port_is_described_in_one_line() {
        let now = Timestamp::from_micros(0);
        assert_eq!(describe(&port("web-1", Presence::Online, None), now), "8080/tcp on web-1 is free\n");
    }

    #[test]
    fn an_empty_list_says_what_to_do() {
        assert!(when_empty(&PortFilters::default()).contains("gkctl port reserve"));
        let filtered = PortFilters { state: Some(State::Conflict), ..PortFilters::default() };
        assert!(when_empty(&filtered).contains("gkctl port list"));
    }
}
