//! `gkctl status`: server, fleet and this machine on one screen.
//!
//! It prints what it could find out before it fails, so that a server that is away still shows which one was meant. Drift is
//! told and is no failure here: `gkctl drift` is for that.

use anyhow::{Error, Result};
use gk_client::{Client, ClientError, lock};
use gk_model::health::Health;
use gk_model::instance::{Instance, Presence};
use gk_model::pin::Pin;
use gk_model::pool::{Fullest, PoolStatus};
use gk_model::port_state::State;
use gk_model::query::{PoolQuery, PortQuery};
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
    pools: Option<Vec<PoolStatus>>,
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
        pools: None,
    }
}

fn ask(context: &Context, client: &Client, status: &mut Status) -> Result<()> {
    status.fleet = Some(client.get_status()?);
    status.pools = Some(collect(None, |cursor, limit| client.list_pools(&PoolQuery { cursor, limit }))?);
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
        ("pools", status.pools.as_deref().filter(|pools| !pools.is_empty()).map(describe_pools)),
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
        Some(false) if server_is_ready => "not running; start it with: gatekeeper-agent",
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

/// How many pools are told of.
const MOST_POOLS: usize = 3;

/// The fullest first: `web 5 of 100 left at web-1/tcp; default 1990 of 2000 left at web-2/udp`.
fn describe_pools(pools: &[PoolStatus]) -> String {
    let left = |it: &PoolStatus| it.fullest.as_ref().map_or(it.size, |fullest| fullest.left);
    let told = |it: &&PoolStatus| {
        let place = |it: &Fullest| {
            let instance = it.instance.as_ref().map_or("all instances", |link| link.name.as_str());
            format!(" at {instance}/{}", it.protocol)
        };
        let place = it.fullest.as_ref().map(place).unwrap_or_default();
        format!("{} {} of {} left{place}", it.pool.name, left(it), it.size)
    };
    let mut fullest: Vec<&PoolStatus> = pools.iter().collect();
    fullest.sort_by_key(|it| u64::from(left(it)) * 1000 / u64::from(it.size.max(1)));
    let mut texts: Vec<String> = fullest.iter().take(MOST_POOLS).map(told).collect();
    if fullest.len() > MOST_POOLS {
        texts.push(format!("{} more: gkctl pool list", fullest.len() - MOST_POOLS));
    }
    texts.join("; ")
}

fn describe_states(count: &States) -> String {
    let States { reserved, in_use, conflict, unreserved } = count;
    let conflict = if *conflict == 0 { String::new() } else { format!(", {conflict} conflict") };
    format!("{reserved} reserved, {in_use} in_use{conflict}, {unreserved} unreserved")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
            pools: Some(Vec::new()),
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
            pools: None,
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
    fn the_fullest_pools_are_told_of_first() {
        let here = crate::samples::instance("web-1");
        let pool = |name: &str, size: u32, left: Option<u32>| {
            let fullest = left.map(|left| json!({"instance": here, "protocol": "tcp", "left": left}));
            let status = json!({
                "name": name, "ranges": ["8000"], "exclude": [], "scope": "instance", "pick": "lowest", "quarantine_seconds": 0,
                "ephemeral": false, "version": 1, "size": size, "reserved": 0, "fullest": fullest,
            });
            serde_json::from_value(status).unwrap()
        };
        let three = vec![pool("big", 2000, Some(1000)), pool("new", 10, None), pool("web", 100, Some(5))];
        let told = "web 5 of 100 left at web-1/tcp; big 1000 of 2000 left at web-1/tcp; new 10 of 10 left";
        assert_eq!(describe_pools(&three), told);
        let four = [vec![pool("full", 1, Some(0))], three].concat();
        assert!(describe_pools(&four).starts_with("full 0 of 1 left at web-1/tcp; web"));
        assert!(describe_pools(&four).ends_with("; 1 more: gkctl pool list"), "{}", describe_pools(&four));
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
