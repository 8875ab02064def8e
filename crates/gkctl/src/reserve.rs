//! `gkctl port reserve`: a port that is free for the server *and* can be bound on this machine.
//!
//! For this machine the request carries what is taken here just now, and the answer is tried out by binding it. When
//! that fails, the number is given back and another one asked for. The server cannot know what happened on this
//! machine since the agent last spoke; this closes the gap. For another instance the server decides alone.

use std::fmt::Display;

use anyhow::{Context as _, Error, Result};
use gk_client::{Client, ClientError};
use gk_model::id::{InstanceRef, ReservationId};
use gk_model::port::{Port, Protocol};
use gk_model::port_set::PortSet;
use gk_model::problem::Code;
use gk_model::reservation::{Reservation, ReserveRequest};

use crate::args::{Format, Global, Reserve};
use crate::context::{Context, note};
use crate::error::{Advised, Exit, Failure};
use crate::machine;
use crate::output::{print, print_json};

/// How often a number that cannot be bound is given back for another one.
const MOST_TRIES: usize = 3;

/// Reserves a port and prints its number, and nothing else, on stdout.
pub(crate) fn reserve(context: &Context, wanted: &Reserve) -> Result<()> {
    let instance = context.instance(None)?;
    let here = context.machine.is(&instance);
    let client = context.client()?;
    let request = request(instance, wanted);
    let reservation = match (here, wanted.adopt, wanted.port) {
        (false, _, _) | (true, true, _) => {
            client.reserve(&request).map_err(|error| advise(error, context, wanted))?
        }
        (true, false, Some(_)) => reserve_this_very_port(context, &client, &request, wanted)?,
        (true, false, None) => reserve_bindable(&client, request)?,
    };
    note(told(&reservation, here));
    if here && reservation.first_port.get() < machine::first_unprivileged_port() {
        note(format_args!("note: only privileged programs can bind {} here", reservation.ports()));
    }
    match context.format() {
        Format::Json => Ok(print_json(&reservation)?),
        Format::Table | Format::Csv | Format::Name => Ok(print(&format!("{}\n", reservation.ports()))?),
    }
}

fn request(instance: InstanceRef, wanted: &Reserve) -> ReserveRequest {
    ReserveRequest {
        protocol: wanted.protocol,
        port: wanted.port,
        pool: wanted.pool.clone(),
        service: wanted.service.clone(),
        name: wanted.name.clone(),
        note: wanted.note.clone(),
        adopt: wanted.adopt,
        ..ReserveRequest::next_free(instance)
    }
}

/// There is no other number to ask for. A listener that the server has not heard of yet is refused as the server would
/// refuse it; whatever else holds the port (a connection that is closing, a client) goes away by itself.
fn reserve_this_very_port(
    context: &Context,
    client: &Client,
    request: &ReserveRequest,
    wanted: &Reserve,
) -> Result<Reservation> {
    let reservation = client.reserve(request).map_err(|error| advise(error, context, wanted))?;
    let (port, protocol) = (reservation.first_port, reservation.protocol);
    let Some(listener) = machine::find_listener(protocol, port, context.now) else { return Ok(reservation) };
    client.release(reservation.id, false).with_context(|| stays_reserved(&reservation))?;
    let message = format!("{port}/{protocol} is in use by {}, so it was given back", listener.describe());
    Err(Failure::new(Exit::Conflict, message)
        .hint("if that process is the rightful one, add --adopt once `gkctl port list` shows it")
        .into())
}

/// Where the port is taken, the commands that would work, with what the caller typed. The server cannot know that, so
/// these replace its hint.
fn advise(error: ClientError, context: &Context, wanted: &Reserve) -> Error {
    let ClientError::Refused(problem) = error else { return error.into() };
    if !matches!(problem.code, Code::PortReserved | Code::PortInUse) {
        return ClientError::Refused(problem).into();
    }
    let command = |port| command(port, context.global, wanted);
    let other = problem.alternatives.first().map(|port| command(*port));
    let same = wanted.port.filter(|_| problem.code == Code::PortInUse).map(command);
    let adopt = same.map(|same| format!("if that process is the rightful one: {same} --adopt"));
    Advised { problem, hints: other.into_iter().chain(adopt).collect() }.into()
}

/// `gkctl port reserve` of this port, with the options that were given; one that holds its default is left out.
fn command(port: Port, global: &Global, wanted: &Reserve) -> String {
    let text = |value: Option<&dyn Display>| value.map(ToString::to_string);
    let udp = (wanted.protocol == Protocol::Udp).then_some(&wanted.protocol);
    let options = [
        ("protocol", text(udp.map(|it| it as _))),
        ("service", text(wanted.service.as_ref().map(|it| it as _))),
        ("name", text(wanted.name.as_ref().map(|it| it as _))),
        ("note", text(wanted.note.as_ref().map(|it| it as _))),
        ("instance", text(global.instance.as_ref().map(|it| it as _))),
        ("server", text(global.server.as_ref().map(|it| it as _))),
    ];
    let given =
        options.into_iter().filter_map(|(name, value)| Some(format!(" --{name} {}", quoted(&value?))));
    format!("gkctl port reserve --port {port}{}", given.collect::<String>())
}

/// As a shell reads it back.
fn quoted(text: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-_.:/@+%,=".contains(character);
    match text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

fn reserve_bindable(client: &Client, mut request: ReserveRequest) -> Result<Reservation> {
    let busy = busy_ports(request.protocol);
    let ask = |busy| {
        request.busy = busy;
        client.reserve(&request)
    };
    let give_back = |id| client.release(id, false).map(drop);
    first_bindable(busy, ask, give_back, |protocol, port| machine::test_bind(protocol, port).is_ok())
}

/// The loop of rule 3: ask, try, and give back what cannot be bound.
fn first_bindable(
    mut busy: PortSet,
    mut ask: impl FnMut(PortSet) -> Result<Reservation, ClientError>,
    mut give_back: impl FnMut(ReservationId) -> Result<(), ClientError>,
    can_bind: impl Fn(Protocol, Port) -> bool,
) -> Result<Reservation> {
    let mut tried = Vec::new();
    while tried.len() < MOST_TRIES {
        let reservation = ask(busy.clone())?;
        let port = reservation.first_port;
        if can_bind(reservation.protocol, port) {
            return Ok(reservation);
        }
        give_back(reservation.id).with_context(|| stays_reserved(&reservation))?;
        busy.insert(port);
        tried.push(port);
    }
    Err(nothing_bindable(&tried).into())
}

/// For the one case in which a port is held that nobody was told of.
fn stays_reserved(reservation: &Reservation) -> String {
    let (ports, protocol) = (reservation.ports(), reservation.protocol);
    format!(
        "{ports}/{protocol} cannot be used here and could not be given back: it stays reserved until \
         `gkctl port release {ports} --protocol {protocol}`"
    )
}

/// Without a list of its own, the request relies on the agent's newest report and on the test that follows.
fn busy_ports(protocol: Protocol) -> PortSet {
    machine::busy_ports(protocol).unwrap_or_else(|error| {
        note(format_args!("note: {error:#}; going by what the server knows"));
        PortSet::default()
    })
}

fn nothing_bindable(tried: &[Port]) -> Failure {
    let tried: Vec<String> = tried.iter().map(ToString::to_string).collect();
    let message = format!(
        "the ports offered cannot be bound on this machine: {}; they were given back",
        tried.join(", ")
    );
    Failure::new(Exit::Conflict, message)
        .hint("see who uses them with `gkctl port list`, or try another --pool")
}

/// What was reserved, and the command that gives it back.
fn told(reservation: &Reservation, here: bool) -> String {
    let Reservation { instance, protocol, pool, .. } = reservation;
    let elsewhere = instance.as_ref().filter(|_| !here);
    let ports = reservation.ports();
    let from = pool.as_ref().map(|pool| format!(" from pool {pool}")).unwrap_or_default();
    let protocol_option = match protocol {
        Protocol::Tcp => "",
        Protocol::Udp => " --protocol udp",
    };
    let instance_option =
        elsewhere.map(|instance| format!(" --instance {}", instance.name)).unwrap_or_default();
    format!(
        "reserved {ports}/{protocol} {}{from}; release with: gkctl port release {ports}{protocol_option}{instance_option}",
        reservation.place()
    )
}

#[cfg(test)]
mod tests {
    use gk_model::id::{InstanceId, ReservationId};
    use gk_model::instance::InstanceLink;
    use gk_model::reservation::Scope;
    use gk_model::time::Timestamp;

    use super::*;

    fn reservation(protocol: Protocol, pool: Option<&str>) -> Reservation {
        let at = Timestamp::from_micros(0);
        let port = Port::new(8000).unwrap();
        Reservation {
            id: ReservationId::generate(at),
            instance: Some(InstanceLink { id: InstanceId::generate(at), name: "web-1".parse().unwrap() }),
            scope: Scope::Instance,
            protocol,
            first_port: port,
            last_port: port,
            name: None,
            service: None,
            holder: "local:root".parse().unwrap(),
            note: None,
            labels: gk_model::labels::Labels::default(),
            expect: None,
            pool: pool.map(|pool| pool.parse().unwrap()),
            expires_at: None,
            ttl_seconds: None,
            renew_while_listening: false,
            group: None,
            split_from: None,
            idle_since: None,
            created_at: at,
            released_at: None,
            released_by: None,
            version: 1,
        }
    }

    /// A server that offers the lowest port from 8000 that is not busy, and a machine that can bind from `bindable` on.
    fn offered(busy: &[u16], bindable: u16) -> (Result<Reservation>, Vec<String>, usize) {
        let busy = busy.iter().filter_map(|number| Port::new(*number)).collect();
        let (mut asked, mut given_back) = (Vec::new(), 0);
        let ask = |busy: PortSet| {
            asked.push(busy.ranges().iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
            let free = |port: &Port| !busy.contains(*port);
            let port = (8000..).filter_map(Port::new).find(free).unwrap();
            Ok(Reservation { first_port: port, last_port: port, ..reservation(Protocol::Tcp, None) })
        };
        let give_back = |_| {
            given_back += 1;
            Ok(())
        };
        let found = first_bindable(busy, ask, give_back, |_, port| port.get() >= bindable);
        (found, asked, given_back)
    }

    #[test]
    fn what_cannot_be_bound_is_given_back_and_not_offered_again() {
        let (found, asked, given_back) = offered(&[8000], 8003);
        assert_eq!(found.unwrap().first_port.get(), 8003);
        assert_eq!((asked, given_back), (vec!["8000".into(), "8000-8001".into(), "8000-8002".into()], 2));
    }

    #[test]
    fn after_three_numbers_it_gives_up_and_holds_none() {
        let (found, asked, given_back) = offered(&[], 9000);
        let error = found.unwrap_err();
        assert!(error.to_string().contains("8000, 8001, 8002"), "{error}");
        assert_eq!(error.downcast_ref::<Failure>().unwrap().exit, Exit::Conflict);
        assert_eq!((asked.len(), given_back), (3, 3));
    }

    #[test]
    fn a_command_keeps_what_the_caller_typed() {
        let port = Port::new(8003).unwrap();
        assert_eq!(command(port, &Global::default(), &Reserve::default()), "gkctl port reserve --port 8003");
        let global = Global { instance: "web-1".parse().ok(), ..Global::default() };
        let wanted = Reserve {
            protocol: Protocol::Udp,
            service: "dns".parse().ok(),
            name: "main".parse().ok(),
            note: "ada's".parse().ok(),
            ..Reserve::default()
        };
        assert_eq!(
            command(port, &global, &wanted),
            "gkctl port reserve --port 8003 --protocol udp --service dns --name main --note 'ada'\\''s' --instance web-1"
        );
    }

    #[test]
    fn a_number_that_cannot_be_given_back_is_named() {
        let ask = |_| Ok(reservation(Protocol::Udp, None));
        let fault = || ClientError::InsecureHttp { server: "https://away:1".parse().unwrap() };
        let error = first_bindable(PortSet::default(), ask, |_| Err(fault()), |_, _| false).unwrap_err();
        assert!(error.to_string().contains("gkctl port release 8000 --protocol udp"), "{error}");
    }

    #[test]
    fn the_answer_tells_how_to_give_it_back() {
        assert_eq!(
            told(&reservation(Protocol::Tcp, Some("default")), true),
            "reserved 8000/tcp on web-1 from pool default; release with: gkctl port release 8000"
        );
        assert_eq!(
            told(&reservation(Protocol::Udp, None), false),
            "reserved 8000/udp on web-1; release with: gkctl port release 8000 --protocol udp --instance web-1"
        );
    }
}
