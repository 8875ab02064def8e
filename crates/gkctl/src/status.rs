//! `gkctl status`: server, fleet and this machine on one screen.
//!
//! It prints what it could find out before it fails, so that a server that is away still shows which one was meant. Drift is
//! told and is no failure here: `gkctl drift` is for that.

use anyhow::{Error, Result};
use gk_client::{Client, ClientError, lock};
use gk_model::health::Health;
use gk_model::instance::{Instance, Presence};
use gk_model::pin::Pin;
use gk_model::port_state::State;
use gk_model::query::PortQuery;
use gk_model::status::{DriftCounts, InstanceCounts, ReservationCounts, Status as Fleet};
use gk_model::text::InstanceName;
use gk_model::time::Timestamp;
use serde::Serialize;

use crate::args::Format;
use crate::connect::Connection;
use crate::context::{Context, collect};
use crate::instance::ago_or;
use crate::output::{print, print_json, print_pairs};

/// Everything that was found out; what could not be is missing.
#[derive(Serialize)]
struct Status {
    server: Server,
    instance: Option<InstanceName>,
    presence: Option<Presence>,
    last_contact_at: Option<Timestamp>,
    agent_running: Option<bool>,
    ports: Option<States>,
    #[serde(flatten)]
    fleet: Option<Fleet>,
}

#[derive(Serialize)]
struct Server {
    address: String,
    found_as: String,
    answers: bool,
    ready: bool,
    version: Option<String>,
    /// Where other machines reach it, and the pin that they join with.
    url: Option<String>,
    ca_pin: Option<Pin>,
}

#[derive(Default, Serialize)]
struct States {
    reserved: usize,
    in_use: usize,
    conflict: usize,
    unreserved: usize,
}

/// Prints whether server, agent and this machine are in order; fails when the server does not answer.
pub(crate) fn status(context: &Context) -> Result<()> {
    let connection = context.connect()?;
    let ready = connection.client.ready();
    let mut status = without_server(context, &connection, &ready);
    let asked = ready.map_err(Error::from).and_then(|_| ask(context, &connection.client, &mut status));
    match context.format() {
        Format::Json => print_json(&status)?,
        Format::Name => print(&format!("{}\n", status.server.address))?,
        Format::Table | Format::Csv => print_pairs(&describe(&status, context.now))?,
    }
    asked
}

fn without_server(context: &Context, connection: &Connection, ready: &Result<Health, ClientError>) -> Status {
    let server = Server {
        address: connection.client.server().to_string(),
        found_as: connection.how.to_string(),
        answers: !matches!(ready, Err(ClientError::Unreachable { .. } | ClientError::Untrusted { .. })),
        ready: ready.is_ok(),
        version: ready.as_ref().ok().map(|health| health.version.clone()),
        url: ready.as_ref().ok().and_then(|health| health.url.clone()),
        ca_pin: ready.as_ref().ok().and_then(|health| health.pins.first().copied()),
    };
    let machine = &context.machine;
    Status {
        server,
        instance: machine.identity.as_ref().map(|identity| identity.name.clone()),
        presence: None,
        last_contact_at: None,
        agent_running: lock::is_held(&machine.state_dir).ok(),
        ports: None,
        fleet: None,
    }
}

fn ask(context: &Context, client: &Client, status: &mut Status) -> Result<()> {
    status.fleet = Some(client.get_status()?);
    let Some(identity) = &context.machine.identity else { return Ok(()) };
    let id = identity.id.into();
    let Instance { name, presence, last_contact_at, .. } = client.get_instance(&id)?;
    (status.instance, status.presence, status.last_contact_at) =
        (Some(name), Some(presence), last_contact_at);
    let ports = collect(None, |cursor, limit| {
        client.list_instance_ports(&id, &PortQuery { cursor, limit, ..PortQuery::default() })
    })?;
    let count = |state| ports.iter().filter(|port| port.state == state).count();
    status.ports = Some(States {
        reserved: count(State::Reserved),
        in_use: count(State::InUse),
        conflict: count(State::Conflict),
        unreserved: count(State::Unreserved),
    });
    Ok(())
}

// `GET /v1/pools` comes with pools of one's own; their fill levels belong between reservations and this machine.
fn describe(status: &Status, now: Timestamp) -> Vec<(&'static str, String)> {
    let Server { url, ca_pin, ready, .. } = &status.server;
    let fleet = status.fleet.as_ref();
    let known = [
        ("server", Some(describe_server(&status.server))),
        ("for others", url.clone().filter(|_| ca_pin.is_some())),
        ("CA pin", ca_pin.map(|pin| pin.to_string())),
        ("instances", fleet.map(|fleet| describe_instances(&fleet.instances))),
        ("drift", fleet.map(|fleet| describe_drift(&fleet.drift))),
        ("reservations", fleet.map(|fleet| describe_reservations(&fleet.reservations))),
        ("listeners", fleet.map(|fleet| fleet.listeners.to_string())),
        ("this machine", Some(describe_machine(status, now))),
        ("agent", Some(describe_agent(status.agent_running, *ready).to_owned())),
        ("ports here", status.ports.as_ref().map(describe_states)),
    ];
    known.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

fn describe_server(server: &Server) -> String {
    let Server { address, found_as, answers, ready, version, .. } = server;
    let well = match (ready, answers) {
        (true, _) => "ready",
        (false, true) => "not ready",
        (false, false) => "does not answer",
    };
    let version = version.as_ref().map(|version| format!(", version {version}")).unwrap_or_default();
    format!("{address} ({found_as}), {well}{version}")
}

fn describe_machine(status: &Status, now: Timestamp) -> String {
    match (&status.instance, status.presence) {
        (None, _) if !status.server.ready => "not joined".to_owned(),
        (None, _) => "not joined; bring it in with: gkctl instance join".to_owned(),
        (Some(name), None) => format!("{name}, as it last knew"),
        (Some(name), Some(presence)) => {
            format!("{name}, {presence}, last contact {}", ago_or(status.last_contact_at, now, "never"))
        }
    }
}

/// Whether the agent runs, and the command that starts it where that would help.
pub(crate) fn describe_agent(running: Option<bool>, server_is_ready: bool) -> &'static str {
    match running {
        Some(true) => "running",
        Some(false) if server_is_ready => "not running; start it with: gatekeeper agent",
        Some(false) => "not running",
        None => "unknown; this account may not look",
    }
}

/// `40 joined: 39 online, 1 offline`.
fn describe_instances(count: &InstanceCounts) -> String {
    let InstanceCounts { joined, online, offline } = count;
    match joined {
        0 => "none has joined yet; bring this one in with: gkctl instance join".to_owned(),
        _ => format!("{joined} joined: {online} online, {offline} offline"),
    }
}

/// `1 conflict, 2 unreserved (3 ignored); see: gkctl drift`.
fn describe_drift(count: &DriftCounts) -> String {
    let DriftCounts { conflict, unreserved, ignored } = count;
    let ignored = if *ignored == 0 { String::new() } else { format!(" ({ignored} ignored)") };
    match conflict + unreserved {
        0 => format!("none{ignored}"),
        _ => format!("{conflict} conflict, {unreserved} unreserved{ignored}; see: gkctl drift"),
    }
}

/// `120 live, 3 of them leases`.
fn describe_reservations(count: &ReservationCounts) -> String {
    match count.leases {
        0 => format!("{} live", count.live),
        1 => format!("{} live, 1 of them a lease", count.live),
        leases => format!("{} live, {leases} of them leases", count.live),
    }
}

fn describe_states(count: &States) -> String {
    let States { reserved, in_use, conflict, unreserved } = count;
    let conflict = if *conflict == 0 { String::new() } else { format!(", {conflict} conflict") };
    format!("{reserved} reserved, {in_use} in_use{conflict}, {unreserved} unreserved")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(drift: DriftCounts) -> Fleet {
        Fleet {
            instances: InstanceCounts { joined: 40, online: 39, offline: 1 },
            reservations: ReservationCounts { live: 120, leases: 3 },
            drift,
            listeners: 512,
            as_of: Timestamp::from_micros(0),
        }
    }

    fn server(ready: bool) -> Server {
        Server {
            address: "http://127.0.0.1:5000".to_owned(),
            found_as: "the default".to_owned(),
            answers: ready,
            ready,
            version: ready.then(|| "0.1.0".to_owned()),
            url: None,
            ca_pin: None,
        }
    }

    fn shown(status: &Status) -> Vec<String> {
        let pairs = describe(status, Timestamp::from_micros(0));
        pairs.into_iter().map(|(name, value)| format!("{name}: {value}")).collect()
    }

    #[test]
    fn one_screen_tells_of_server_fleet_and_machine() {
        let status = Status {
            server: server(true),
            instance: "web-1".parse().ok(),
            presence: Some(Presence::Online),
            last_contact_at: Some(Timestamp::from_micros(0)),
            agent_running: Some(true),
            ports: Some(States { reserved: 1, in_use: 2, conflict: 0, unreserved: 3 }),
            fleet: Some(fleet(DriftCounts { conflict: 1, unreserved: 2, ignored: 3 })),
        };
        assert_eq!(
            shown(&status),
            [
                "server: http://127.0.0.1:5000 (the default), ready, version 0.1.0",
                "instances: 40 joined: 39 online, 1 offline",
                "drift: 1 conflict, 2 unreserved (3 ignored); see: gkctl drift",
                "reservations: 120 live, 3 of them leases",
                "listeners: 512",
                "this machine: web-1, online, last contact just now",
                "agent: running",
                "ports here: 1 reserved, 2 in_use, 3 unreserved",
            ]
        );
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["instances"]["joined"], 40);
        assert_eq!(json["drift"]["ignored"], 3);
    }

    #[test]
    fn what_is_not_known_is_not_shown() {
        let away = Status {
            server: server(false),
            instance: None,
            presence: None,
            last_contact_at: None,
            agent_running: Some(false),
            ports: None,
            fleet: None,
        };
        assert_eq!(
            shown(&away),
            [
                "server: http://127.0.0.1:5000 (the default), does not answer",
                "this machine: not joined",
                "agent: not running",
            ]
        );
    }

    #[test]
    fn drift_is_counted_without_what_is_ignored() {
        let table = [
            ((0, 0, 0), "none"),
            ((0, 0, 4), "none (4 ignored)"),
            ((1, 0, 0), "1 conflict, 0 unreserved; see: gkctl drift"),
        ];
        for ((conflict, unreserved, ignored), said) in table {
            assert_eq!(describe_drift(&DriftCounts { conflict, unreserved, ignored }), said);
        }
    }
}
