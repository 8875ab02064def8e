//! `gkctl status`: is everything running?
//!
//! It prints what it could find out before it fails, so that a server that is away still shows which one was meant.

use anyhow::{Error, Result};
use gk_client::{Client, ClientError, lock};
use gk_model::health::Health;
use gk_model::instance::{Instance, Presence};
use gk_model::pin::Pin;
use gk_model::port_state::State;
use gk_model::query::{InstanceQuery, PortQuery};
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
    instances: Option<Presences>,
    ports: Option<States>,
}

#[derive(Serialize)]
struct Server {
    address: String,
    found_as: String,
    answers: bool,
    ready: bool,
    /// Where other machines reach it, and the pin that they join with.
    url: Option<String>,
    ca_pin: Option<Pin>,
}

#[derive(Default, Serialize)]
struct Presences {
    online: usize,
    offline: usize,
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
        instances: None,
        ports: None,
    }
}

fn ask(context: &Context, client: &Client, status: &mut Status) -> Result<()> {
    status.instances = Some(count_instances(client)?);
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

fn count_instances(client: &Client) -> Result<Presences, ClientError> {
    let instances = collect(None, |cursor, limit| {
        client.list_instances(&InstanceQuery { cursor, limit, ..InstanceQuery::default() })
    })?;
    let online = instances.iter().filter(|instance| instance.presence == Presence::Online).count();
    Ok(Presences { online, offline: instances.len() - online })
}

fn describe(status: &Status, now: Timestamp) -> Vec<(&'static str, String)> {
    let Server { address, found_as, answers, ready, url, ca_pin } = &status.server;
    let well = match (ready, answers) {
        (true, _) => "ready",
        (false, true) => "not ready",
        (false, false) => "does not answer",
    };
    let known = [
        ("server", Some(format!("{address} ({found_as}), {well}"))),
        ("for others", url.clone().filter(|_| ca_pin.is_some())),
        ("CA pin", ca_pin.map(|pin| pin.to_string())),
        ("this machine", Some(describe_machine(status, now))),
        ("agent", Some(describe_agent(status.agent_running, *ready).to_owned())),
        ("instances", status.instances.as_ref().map(describe_presences)),
        ("ports here", status.ports.as_ref().map(describe_states)),
    ];
    known.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
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

fn describe_presences(count: &Presences) -> String {
    format!("{} online, {} offline", count.online, count.offline)
}

fn describe_states(count: &States) -> String {
    let States { reserved, in_use, conflict, unreserved } = count;
    let conflict = if *conflict == 0 { String::new() } else { format!(", {conflict} conflict") };
    format!("{reserved} reserved, {in_use} in_use{conflict}, {unreserved} unreserved")
}
