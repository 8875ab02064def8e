//! `gkctl port list` and `gkctl port show`: who may use a port, and who does.

pub(crate) mod check;
pub(crate) mod history;
pub(crate) mod release;
pub(crate) mod reserve;
pub(crate) mod watch;

use anyhow::Result;
use gk_model::expect::Fit;
use gk_model::id::{InstanceId, InstanceRef};
use gk_model::listener::{Listener, Netns};
use gk_model::port_state::{PortState, State};
use gk_model::query::PortQuery;
use gk_model::reservation::Reservation;
use gk_model::time::Timestamp;

use crate::absence;
use crate::args::{Format, OnePort, PortFilters};
use crate::context::{Context, collect, note};
use crate::output::{Column, List, Tint, age, exact, or_dash, print, print_json};

/// The instance comes first, so that it can be left out where there is only one; what is expected last, so that it can be
/// where nothing is.
const COLUMNS: [Column<PortState>; 9] = [
    Column::new("INSTANCE", |port: &PortState| port.instance.name.to_string()),
    Column::new("PORT", number),
    Column::new("STATE", |port: &PortState| port.state.to_string()).tinted(tint),
    Column::new("SERVICE", |port: &PortState| exact(service(port)))
        .shown_as(|port, _| or_dash(service(port))),
    Column::new("LISTENER", listeners).shown_as(|port, _| or_dash(some(listeners(port)))),
    Column::new("ADDRESS", addresses).shown_as(|port, _| or_dash(some(addresses(port)))),
    Column::new("SINCE", |port: &PortState| exact(since(port)))
        .shown_as(|port, context| or_dash(since(port).map(|since| age::ago(since, context.now)))),
    Column::new("EXPECTED", |port: &PortState| exact(expectation(port)))
        .shown_as(|port, _| or_dash(expectation(port))),
    Column::new("FIT", |port: &PortState| exact(port.fit)).shown_as(|port, _| or_dash(port.fit)),
];

/// Without what is expected.
const SHORT: usize = COLUMNS.len() - 2;

/// Lists the ports of this machine, of another instance, or of the fleet.
pub(crate) fn list(context: &Context, wanted: &PortFilters) -> Result<()> {
    let instance = whose(context, wanted)?;
    let client = context.client()?;
    let mut ports = collect(wanted.limit, |cursor, limit| {
        let query = PortQuery { cursor, limit, ..query(wanted) };
        match &instance {
            Some(instance) => client.list_instance_ports(instance, &query),
            None => client.list_ports(&query),
        }
    })?;
    // The server goes by id, people by name.
    ports.sort_by(|one, other| one.instance.name.cmp(&other.instance.name));
    absence::notes(ports.iter().map(seen), context.now).iter().for_each(note);
    let is_fleet = instance.is_none();
    let list = List {
        columns: columns(is_fleet, context.format() == Format::Csv || ports.iter().any(is_expected)),
        name: if is_fleet { number_and_instance } else { number },
        when_empty: when_empty(wanted, is_fleet),
    };
    Ok(list.print(context, &ports)?)
}

fn columns(is_fleet: bool, with_expected: bool) -> &'static [Column<PortState>] {
    &COLUMNS[usize::from(!is_fleet)..if with_expected { COLUMNS.len() } else { SHORT }]
}

/// The instance that is asked about, none for the fleet: whoever asks where a service is, or chooses machines by their
/// labels, does not mean this machine.
fn whose(context: &Context, wanted: &PortFilters) -> Result<Option<InstanceRef>> {
    let is_fleet = (wanted.service.is_some() || wanted.label.is_some()) && context.global.instance.is_none();
    context.instance_or_all(wanted.all_instances || is_fleet)
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
    absence::notes(ports.iter().map(seen), context.now).iter().for_each(note);
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
        label: wanted.label.clone(),
        ..PortQuery::default()
    }
}

fn when_empty(wanted: &PortFilters, is_fleet: bool) -> &'static str {
    let unfiltered = query(wanted) == PortQuery::default();
    match (unfiltered, is_fleet) {
        (true, false) => "No port is reserved or listened on here. Reserve one with `gkctl port reserve`.",
        (true, true) => {
            "No port is reserved or listened on anywhere. Bring machines in with `gkctl instance join`."
        }
        (false, false) => "No port matches. Look at all of them with `gkctl port list`.",
        (false, true) => "No port of the fleet matches. Look at all of them with `gkctl port list -A`.",
    }
}

fn seen(port: &PortState) -> absence::Seen<'_> {
    (&port.instance.name, port.presence, port.observed_at)
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

/// `web:http (ada)`: what it is for, and who holds it.
pub(crate) fn held_by(held: &Reservation) -> String {
    match purpose(held) {
        Some(purpose) => format!("{purpose} ({})", held.holder),
        None => held.holder.to_string(),
    }
}

/// Who should be listening on what is reserved, on this instance: `process=nginx`, or nobody where it is held for another
/// one. None where anybody may.
pub(crate) fn expected(held: &Reservation, here: InstanceId) -> Option<String> {
    match &held.instance {
        Some(holder) if holder.id != here => Some(format!("nobody but {}", holder.name)),
        _ => held.expect.as_ref().filter(|expect| !expect.is_none()).map(ToString::to_string),
    }
}

fn expectation(port: &PortState) -> Option<String> {
    expected(port.reservation.as_ref()?, port.instance.id)
}

fn is_expected(port: &PortState) -> bool {
    expectation(port).is_some()
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

pub(crate) fn unique(texts: impl Iterator<Item = impl ToString>) -> Vec<String> {
    let mut seen = Vec::new();
    for text in texts.map(|text| text.to_string()) {
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
    if let Some(expected) = expectation(port) {
        let fit = port.fit.map(|fit| format!(": {}", in_words(fit))).unwrap_or_default();
        text.push_str(&format!("  expects {expected}{fit}\n"));
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

fn in_words(fit: Fit) -> &'static str {
    match fit {
        Fit::Fits => "whoever listens is",
        Fit::Unknown => "the agent does not see whether whoever listens is",
        Fit::Differs => "somebody else listens",
    }
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
    use gk_model::instance::{InstanceLink, Presence};
    use gk_model::port::{Port, Protocol};

    use super::*;
    use crate::samples;

    fn port(name: &str, presence: Presence, observed_at: Option<Timestamp>) -> PortState {
        let id = InstanceId::generate(Timestamp::from_micros(0));
        PortState {
            instance: InstanceLink { id, name: name.parse().unwrap() },
            protocol: Protocol::Tcp,
            port: Port::new(8080).unwrap(),
            state: State::Free,
            fit: None,
            reservation: None,
            listeners: Vec::new(),
            observed_at,
            presence,
        }
    }

    #[test]
    fn a_free_port_is_described_in_one_line() {
        let now = Timestamp::from_micros(0);
        assert_eq!(describe(&port("web-1", Presence::Online, None), now), "8080/tcp on web-1 is free\n");
    }

    #[test]
    fn what_is_expected_is_shown_where_anything_is() {
        let titles = |is_fleet, with_expected| columns(is_fleet, with_expected).len();
        assert_eq!((titles(false, false), titles(true, false), titles(true, true)), (6, 7, 9));
        let mut seen = port("web-1", Presence::Online, None);
        assert!(!is_expected(&seen), "a port that nobody reserved");
        let mut held = samples::reservation(&seen.instance, 8080);
        seen.reservation = Some(held.clone());
        assert!(!is_expected(&seen), "anybody may listen there");
        held.expect = "process=nginx".parse().ok();
        (seen.reservation, seen.fit) = (Some(held.clone()), Some(Fit::Differs));
        let told = describe(&seen, held.created_at);
        assert!(told.ends_with("\n  expects process=nginx: somebody else listens\n"), "{told}");
        let other = InstanceId::generate(Timestamp::from_micros(0));
        held.instance = Some(InstanceLink { id: other, name: "web-2".parse().unwrap() });
        seen.reservation = Some(held);
        assert_eq!(expectation(&seen).unwrap(), "nobody but web-2");
    }

    #[test]
    fn an_empty_list_says_what_to_do() {
        assert!(when_empty(&PortFilters::default(), false).contains("gkctl port reserve"));
        let filtered = PortFilters { state: Some(State::Conflict), ..PortFilters::default() };
        assert!(when_empty(&filtered, false).ends_with("gkctl port list`."));
        assert!(when_empty(&filtered, true).ends_with("gkctl port list -A`."));
    }
}
