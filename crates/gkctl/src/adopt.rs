//! `gkctl port adopt`: reserves a port for whoever listens there now, or every port of a machine.
//!
//! What it is for, and who is expected there from then on, is taken from what the agent observed.

mod choose;
mod onboard;
mod plan;
mod proposal;

use anyhow::Result;
use gk_client::{Client, ClientError};
use gk_model::expect::Expect;
use gk_model::id::InstanceRef;
use gk_model::listener::{Listener, Netns};
use gk_model::port::{Port, Protocol};
use gk_model::port_state::PortState;
use gk_model::query::PortQuery;
use gk_model::reservation::{Reservation, ReserveRequest};
use gk_model::text::{Note, ServiceName};

pub(crate) use self::proposal::Proposal;
use crate::args::{Adopt, Format};
use crate::context::{Context, collect, note};
use crate::error::{Exit, Failure};
use crate::machine;
use crate::output::{print, print_json};
use crate::port::purpose;

/// Adopts one port and prints its number, or goes through all of a machine.
pub(crate) fn adopt(context: &Context, wanted: &Adopt) -> Result<()> {
    let instance = context.instance(None)?;
    match wanted.number {
        Some(port) => adopt_one(context, wanted, &instance, port),
        None => onboard::onboard(context, wanted, &instance),
    }
}

fn adopt_one(context: &Context, wanted: &Adopt, instance: &InstanceRef, port: Port) -> Result<()> {
    let client = context.client()?;
    let mut listened = states(&client, instance, port, wanted.protocol)?;
    let is_held = listened.iter().any(|state| state.reservation.is_some());
    keep_listened(&mut listened);
    let protocol = the_protocol(port, &listened)?.or(wanted.protocol).unwrap_or_default();
    if listened.is_empty() && !is_held {
        // Were it asked for all the same, and heard of just then, it would be adopted without a name.
        return Err(nothing_there(context, instance, protocol, port).into());
    }
    let listeners = listened.first().map_or(&[][..], |state| &state.listeners);
    let proposal = Proposal::of(listeners);
    let adoption = Adoption {
        instance: instance.clone(),
        port,
        protocol,
        service: wanted.service.clone().or(proposal.service),
        note: wanted.note.clone(),
        expect: proposal.expect.filter(|_| !wanted.no_expect),
    };
    let made = adoption.make(&client)?;
    let options = options(context, instance, protocol);
    note(format_args!("{}; release with: gkctl port release {port}{options}", told(&made)));
    if let Some(rule) = proposal::default_rule(protocol, port, listeners) {
        note(format_args!(
            "note: {rule} runs nearly everywhere; to ignore it on all machines instead: gkctl ignore defaults --set"
        ));
    }
    match context.format() {
        Format::Json => Ok(print_json(&made)?),
        Format::Table | Format::Csv | Format::Name => Ok(print(&format!("{port}\n"))?),
    }
}

/// What a command about this port has to say besides its number.
fn options(context: &Context, instance: &InstanceRef, protocol: Protocol) -> String {
    let udp = if protocol == Protocol::Udp { " --protocol udp" } else { "" };
    match context.machine.is(instance) {
        true => udp.to_owned(),
        false => format!("{udp} --instance {instance}"),
    }
}

/// Of this machine, more is known than the server heard of.
fn nothing_there(context: &Context, instance: &InstanceRef, protocol: Protocol, port: Port) -> Failure {
    let is_here = context.machine.is(instance);
    match is_here.then(|| machine::find_listener(protocol, port.into(), context.now)).flatten() {
        Some(listener) => {
            let who = listener.describe();
            Failure::new(
                Exit::Conflict,
                format!("{who} listens on {port}/{protocol}, but the server has not heard of it"),
            )
            .hint("start the agent with `gatekeeper-agent`; without one, `gkctl instance join` tells the server once")
        }
        None => Failure::new(
            Exit::Conflict,
            format!("nobody listens on {port}/{protocol} there, as far as the server has heard"),
        )
        .hint(format!(
            "reserve it for whoever will: gkctl port reserve --port {port}{}",
            options(context, instance, protocol)
        )),
    }
}

/// What is known of this port: one state for each protocol.
fn states(
    client: &Client,
    instance: &InstanceRef,
    port: Port,
    protocol: Option<Protocol>,
) -> Result<Vec<PortState>, ClientError> {
    collect(None, |cursor, limit| {
        let port = Some(port.into());
        client.list_instance_ports(
            instance,
            &PortQuery { port, protocol, cursor, limit, ..PortQuery::default() },
        )
    })
}

/// Those on which somebody listens in the home namespace. Where one of them is reserved already, the other one is meant.
fn keep_listened(states: &mut Vec<PortState>) {
    states.retain(|state| state.listeners.iter().any(is_home));
    if states.iter().any(|state| state.reservation.is_none()) {
        states.retain(|state| state.reservation.is_none());
    }
}

fn is_home(listener: &Listener) -> bool {
    listener.key.netns == Netns::Home
}

fn the_protocol(port: Port, listened: &[PortState]) -> Result<Option<Protocol>, Failure> {
    match listened {
        [] => Ok(None),
        [one] => Ok(Some(one.protocol)),
        _ => Err(Failure::new(Exit::Usage, format!("{port} is listened on over tcp and over udp"))
            .hint(format!("say which one, as in: gkctl port adopt {port} --protocol tcp"))),
    }
}

/// A port and what is made of it.
struct Adoption {
    instance: InstanceRef,
    port: Port,
    protocol: Protocol,
    service: Option<ServiceName>,
    note: Option<Note>,
    expect: Option<Expect>,
}

impl Adoption {
    fn make(self, client: &Client) -> Result<Reservation, ClientError> {
        let request = ReserveRequest {
            protocol: self.protocol.into(),
            port: Some(self.port),
            service: self.service,
            note: self.note,
            expect: self.expect,
            adopt: true,
            ..ReserveRequest::next_free(self.instance)
        };
        let made = client.reserve(&request)?.items.into_iter().next();
        Ok(made.expect("what was asked for was made: one port of one protocol"))
    }
}

/// `adopted 8080/tcp on web-1 for web, expecting unit=web.service`.
fn told(made: &Reservation) -> String {
    let purpose = purpose(made).map(|purpose| format!(" for {purpose}")).unwrap_or_default();
    let expect = made.expect.as_ref().map(|expect| format!(", expecting {expect}")).unwrap_or_default();
    format!("adopted {}/{} {}{purpose}{expect}", made.ports(), made.protocol, made.place())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn the_answer_tells_for_what_and_whom_it_expects() {
        let here = samples::instance("web-1");
        let plain = samples::reservation(&here, 8080);
        assert_eq!(told(&plain), "adopted 8080/tcp on web-1 for web");
        let expecting = Reservation { expect: "unit=web.service".parse().ok(), service: None, ..plain };
        assert_eq!(told(&expecting), "adopted 8080/tcp on web-1, expecting unit=web.service");
    }

    #[test]
    fn one_of_two_protocols_must_be_named() {
        let here = samples::instance("web-1");
        let tcp = samples::state(&here, 53, None, vec![samples::listener(53, "/usr/sbin/named", "bind")]);
        let udp = PortState { protocol: Protocol::Udp, ..tcp.clone() };
        let port = Port::new(53).unwrap();
        assert_eq!(the_protocol(port, &[]).unwrap(), None);
        assert_eq!(the_protocol(port, std::slice::from_ref(&udp)).unwrap(), Some(Protocol::Udp));
        let several = the_protocol(port, &[tcp, udp]).unwrap_err();
        assert_eq!(several.exit, Exit::Usage);
        assert!(several.hint.unwrap().ends_with("gkctl port adopt 53 --protocol tcp"));
    }
}
