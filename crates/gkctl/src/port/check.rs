//! `gkctl port check`: may I use this port, and if not, why?
//!
//! The answer is that of a dry run: what would a request for this very port be told? On this machine the port is bound
//! for a moment, too, since the server may not know yet what happened here.

use anyhow::Result;
use gk_client::{Client, ClientError};
use gk_model::id::InstanceRef;
use gk_model::instance::InstanceLink;
use gk_model::port::{Port, Protocol};
use gk_model::problem::{Code, Problem};
use gk_model::reservation::{Reservation, ReserveRequest};
use gk_model::time::Timestamp;
use serde::Serialize;

use crate::args::{Check, Format};
use crate::context::Context;
use crate::error::{Exit, Silent, describe_holder};
use crate::machine;
use crate::output::{age, print, print_json};
use crate::port::purpose;
use crate::port::release::Place;

/// What is answered.
#[derive(Serialize)]
struct Verdict {
    port: Port,
    protocol: Protocol,
    instance: InstanceLink,
    /// Whether whoever asks may use it.
    may_use: bool,
    /// The reservation that says so, where there is one.
    yours: Option<Reservation>,
    /// Why not, or why.
    reason: String,
    /// Ports that are free instead.
    alternatives: Vec<Port>,
}

/// Answers on stdout, and by the exit code.
pub(crate) fn check(context: &Context, wanted: &Check) -> Result<()> {
    let instance = context.instance(None)?;
    let client = context.client()?;
    let verdict = judge(context, &client, &instance, wanted)?;
    match context.format() {
        Format::Json => print_json(&verdict)?,
        Format::Table | Format::Csv | Format::Name => print(&format!("{}\n", in_words(&verdict)))?,
    }
    if verdict.may_use { Ok(()) } else { Err(Silent(Exit::Conflict).into()) }
}

fn judge(context: &Context, client: &Client, instance: &InstanceRef, wanted: &Check) -> Result<Verdict> {
    let known = client.get_instance(instance)?;
    let verdict = |may_use, reason| Verdict {
        port: wanted.number,
        protocol: wanted.protocol,
        instance: InstanceLink { id: known.id, name: known.name.clone() },
        may_use,
        yours: None,
        reason,
        alternatives: Vec::new(),
    };
    let (ports, protocol) = (wanted.number.into(), Some(wanted.protocol));
    let held = Place { instance: known.id.into(), ports, protocol }.live(client)?.into_iter().next();
    let own = match held {
        Some(held) if held.holder == client.whoami()?.subject => Some(held),
        _ => None,
    };
    if let Some(held) = own {
        let reason = reserved_by_you(&held, context.now);
        return Ok(Verdict { yours: Some(held), ..verdict(true, reason) });
    }
    let request = ReserveRequest {
        port: Some(wanted.number),
        protocol: wanted.protocol.into(),
        dry_run: true,
        ..ReserveRequest::next_free(known.id)
    };
    match client.reserve(&request) {
        Ok(_) if context.machine.is(instance) => {
            Ok(match machine::test_bind(wanted.protocol, wanted.number) {
                Ok(()) => verdict(true, "it is free".to_owned()),
                Err(error) => verdict(false, squatter(context, wanted, &error)),
            })
        }
        Ok(_) => Ok(verdict(true, "it is free".to_owned())),
        Err(ClientError::Refused(problem)) if is_verdict(problem.code) => {
            let reason = refused(&problem, context.now);
            Ok(Verdict { alternatives: problem.alternatives, ..verdict(false, reason) })
        }
        Err(error) => Err(error.into()),
    }
}

/// What stands in the way of this port, and not of asking.
fn is_verdict(code: Code) -> bool {
    matches!(code, Code::PortReserved | Code::PortInUse | Code::BeyondLimits)
}

fn reserved_by_you(held: &Reservation, now: Timestamp) -> String {
    let purpose = purpose(held).map(|purpose| format!(" for {purpose}")).unwrap_or_default();
    format!("reserved{purpose} since {}", age::exact_in_words(held.created_at, now))
}

/// The server knows nobody there, and the kernel does.
fn squatter(context: &Context, wanted: &Check, error: &std::io::Error) -> String {
    match machine::find_listener(wanted.protocol, wanted.number.into(), context.now) {
        Some(listener) => format!("it is in use by {}", listener.describe()),
        None => format!("it cannot be bound on this machine just now: {error}"),
    }
}

fn refused(problem: &Problem, now: Timestamp) -> String {
    let Some(holder) = &problem.holder else { return problem.detail.clone() };
    let since = holder.since.map(|since| format!(" since {}", age::exact_in_words(since, now)));
    match (&holder.subject, &holder.listener) {
        (None, Some(listener)) => format!("in use by {listener}{}", since.unwrap_or_default()),
        _ => describe_holder(holder, now).unwrap_or_else(|| problem.detail.clone()),
    }
}

fn in_words(verdict: &Verdict) -> String {
    let Verdict { port, protocol, instance, reason, .. } = verdict;
    let subject = format!("{port}/{protocol} on {}", instance.name);
    let free: Vec<String> = verdict.alternatives.iter().map(ToString::to_string).collect();
    let free = if free.is_empty() { String::new() } else { format!("; free instead: {}", free.join(", ")) };
    match (verdict.may_use, &verdict.yours) {
        (true, Some(_)) => format!("yours: {subject}, {reason}"),
        (true, None) => format!("yes: {subject}, {reason}"),
        (false, _) => format!("no: {subject}, {reason}{free}"),
    }
}
