//! `gkctl doctor`: finds what is wrong between this terminal, the agent and the server, and says how to mend it.
//!
//! It goes on whatever it finds, and works without any server. What it asks is in this file; what it makes of the answers
//! are pure functions in the two files below. It changes nothing.

mod here;
mod server;

use std::time::Duration;

use anyhow::{Error, Result};
use gk_client::login::load_logins;
use gk_client::{Client, ServerAddress, lock};
use gk_model::identity::Identity;
use gk_model::instance::Instance;
use gk_model::time::Timestamp;
use gk_model::token::Whoami;
use serde::Serialize;

use crate::args::Format;
use crate::connect::Connection;
use crate::context::Context;
use crate::error::{Exit, Failure, in_words};
use crate::machine;
use crate::output::{Column, List, Tint, exact};

/// How long each answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Bad,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Bad => "bad",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    verdict: Verdict,
    check: &'static str,
    found: String,
    remedy: Option<String>,
}

impl Check {
    fn ok(check: &'static str, found: impl Into<String>) -> Check {
        Check { verdict: Verdict::Ok, check, found: found.into(), remedy: None }
    }

    fn warn(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { verdict: Verdict::Warn, check, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn bad(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { verdict: Verdict::Bad, check, found: found.into(), remedy: Some(remedy.into()) }
    }

    /// Of a failure that explains itself.
    fn failed(check: &'static str, error: &Error, context: &Context) -> Check {
        let (found, remedy) = in_words(error, context.shown(), context.now);
        Check { verdict: Verdict::Bad, check, found, remedy }
    }
}

/// What programs get comes last; people find the remedy below what was found.
const COLUMNS: [Column<Check>; 4] = [
    Column::new("VERDICT", |check: &Check| check.verdict.word().to_owned()).tinted(|check| {
        match check.verdict {
            Verdict::Ok => Tint::Good,
            Verdict::Warn => Tint::Odd,
            Verdict::Bad => Tint::Bad,
        }
    }),
    Column::new("CHECK", |check: &Check| check.check.to_owned()),
    Column::new("FOUND", |check: &Check| check.found.clone()).shown_as(|check, _| match &check.remedy {
        Some(remedy) => format!("{}\n→ {remedy}", check.found),
        None => check.found.clone(),
    }),
    Column::new("REMEDY", |check: &Check| exact(check.remedy.as_ref())),
];

/// Looks at everything, prints it, and fails when something is not well.
pub(crate) fn doctor(context: &Context) -> Result<()> {
    let checks = examine(context);
    let list = List {
        columns: if context.format() == Format::Csv { &COLUMNS } else { &COLUMNS[..COLUMNS.len() - 1] },
        name: |check| check.check.to_owned(),
        when_empty: "",
    };
    list.print(context, &checks)?;
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    match (count(Verdict::Bad), count(Verdict::Warn)) {
        (0, 0) => Ok(()),
        (bad, warn) => Err(Failure::new(Exit::Error, verdict(checks.len(), bad, warn)).into()),
    }
}

/// `2 of 9 checks are bad, and 1 not quite well`.
fn verdict(all: usize, bad: usize, warn: usize) -> String {
    let is = |count| if count == 1 { "is" } else { "are" };
    match (bad, warn) {
        (0, warn) => format!("{warn} of {all} checks {} not quite well", is(warn)),
        (bad, 0) => format!("{bad} of {all} checks {} bad", is(bad)),
        (bad, warn) => format!("{bad} of {all} checks {} bad, and {warn} not quite well", is(bad)),
    }
}

fn examine(context: &Context) -> Vec<Check> {
    let mut checks = Vec::new();
    let not_asked = |error: Error| {
        let Check { found, remedy, .. } = Check::failed("server", &error, context);
        Check::bad(
            "server",
            found,
            remedy.unwrap_or_else(|| "mend that: so far the server was not asked".to_owned()),
        )
    };
    let connection = context.connect().map_err(|error| checks.push(not_asked(error))).ok();
    let who = connection.as_ref().and_then(|connection| ask_server(context, connection, &mut checks));
    checks.extend(here::proxies(|name| context.has_variable(name), connection.as_ref(), is_reached(&checks)));
    checks.push(here::logins(load_logins(&context.config_dir(), context.account.uid), &context.config_dir()));
    match &context.machine.identity {
        None => checks.push(here::not_joined()),
        Some(identity) => {
            // Whoever is not let in learns nothing of the machine; that was told above.
            let client = connection.as_ref().filter(|_| who.is_some()).map(|connection| &connection.client);
            look_at_machine(context, identity, client, is_reached(&checks), &mut checks);
        }
    }
    checks
}

fn is_reached(checks: &[Check]) -> bool {
    checks.iter().any(|check| check.check == "server" && check.verdict == Verdict::Ok)
}

/// Asks the server what it says of itself and of the caller; answers the latter.
fn ask_server(context: &Context, connection: &Connection, checks: &mut Vec<Check>) -> Option<Whoami> {
    let Connection { client, how, .. } = connection;
    // Somebody waits for a whole list of answers.
    let client = &client.clone().with_timeout(PATIENCE);
    let asked_at = Timestamp::from_clock();
    let (health, date) = match client.ready_at() {
        Ok(answer) => answer,
        Err(error) => {
            checks.push(server::unready(client.server(), *how, error, context));
            return None;
        }
    };
    checks.push(Check::ok("server", format!("{} ({how}), ready", client.server())));
    checks.push(server::versions(machine::VERSION, &health.version));
    checks.extend(health.certificate_ends_at.map(|end| server::certificate(end, context.now)));
    checks.extend(date.map(|date| server::clocks(asked_at, Timestamp::from_clock(), date)));
    match client.whoami() {
        Ok(who) => {
            checks.push(server::who(&who, context.now));
            Some(who)
        }
        Err(error) => {
            checks.push(Check::failed("you", &error.into(), context));
            None
        }
    }
}

/// Of a machine that has joined: as the server knows it, its credential, its agent, and where that keeps its state.
fn look_at_machine(
    context: &Context,
    identity: &Identity,
    client: Option<&Client>,
    is_reached: bool,
    checks: &mut Vec<Check>,
) {
    let state_dir = &context.machine.state_dir;
    // Ids are unique: whoever knows this one is the server that was joined, under whatever address.
    let known = client.map(|client| client.get_instance(&identity.id.into()));
    let elsewhere = client.map(Client::server).filter(|server| !is_joined_to(identity, server));
    checks.push(here::machine(identity, known.as_ref(), elsewhere));
    let instance: Option<Instance> = known.and_then(Result::ok);
    let credential = context.credential();
    let as_itself = match &credential {
        Ok(Some(credential)) if is_reached => context.client_as_instance(credential.clone()).ok(),
        _ => None,
    };
    let accepted = as_itself.map(|client| client.whoami().map(|who| who.instance == Some(identity.id)));
    checks.push(here::credential(identity, state_dir, credential.as_ref(), accepted));
    checks.push(here::agent(lock::is_held(state_dir).ok(), instance.as_ref(), context.now));
    checks.extend(instance.as_ref().and_then(here::sight));
    checks.extend(instance.as_ref().and_then(here::protection));
    checks.push(here::disk(state_dir, machine::room(state_dir)));
}

fn is_joined_to(identity: &Identity, server: &ServerAddress) -> bool {
    let socket = identity.socket.clone().map(ServerAddress::Unix);
    server.to_string() == identity.server || socket.as_ref() == Some(server)
}
