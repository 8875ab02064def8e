//! `gkctl port reserve`: ports that are free for the server *and* can be bound on this machine.
//!
//! For this machine the request carries what is taken here just now, and the answer is tried out by binding every number
//! of it. When that fails, all that was made is given back and others are asked for. The server cannot know what
//! happened on this machine since the agent last spoke; this closes the gap. For another instance, and for several at
//! once, the server decides alone.

use anyhow::{Context as _, Error, Result};
use gk_client::{Client, ClientError};
use gk_model::port::{Port, PortRange, Protocol};
use gk_model::port_set::PortSet;
use gk_model::problem::Code;
use gk_model::reservation::{PortCount, Protocols, Reservation, ReserveRequest, Reserved, Scope, quoted};

use crate::args::{Format, Reserve};
use crate::context::{Context, note};
use crate::error::{Advised, Exit, Failure};
use crate::machine;
use crate::output::{print, print_json};

/// How often numbers that cannot be bound are given back for others.
const MOST_TRIES: usize = 3;

/// How many instances a line names before it counts the rest.
const MOST_NAMES: usize = 3;

/// Reserves ports and prints their numbers, and nothing else, on stdout.
pub(crate) fn reserve(context: &Context, wanted: &Reserve) -> Result<()> {
    let request = request(context, wanted)?;
    let usage = |error: gk_model::reservation::Contradiction| Failure::new(Exit::Usage, error.what);
    request.check().map_err(usage)?;
    let here = request.instance.as_ref().is_some_and(|instance| context.machine.is(instance));
    let client = context.client()?;
    let ask = |request: &ReserveRequest| {
        client.reserve(request).map_err(|error| advise(error, context, request, here))
    };
    let reserved = match here && !request.adopt {
        false => ask(&request)?,
        true if request.port.is_some() => {
            let reserved = ask(&request)?;
            refuse_squatters(context, &client, &reserved)?;
            reserved
        }
        true => reserve_bindable(&client, request, ask)?,
    };
    told(&reserved, here).iter().for_each(note);
    let is_privileged = |item: &&Reservation| item.first_port.get() < machine::first_unprivileged_port();
    if let Some(item) = reserved.items.iter().find(is_privileged).filter(|_| here) {
        note(format_args!("note: only privileged programs can bind {} here", item.ports()));
    }
    match context.format() {
        Format::Json => Ok(print_json(&reserved)?),
        Format::Table | Format::Csv | Format::Name => Ok(print(&numbers(&reserved))?),
    }
}

fn request(context: &Context, wanted: &Reserve) -> Result<ReserveRequest> {
    let usage = |text: &str| Failure::new(Exit::Usage, text);
    let count = match wanted.port.map(PortRange::count) {
        None | Some(1) => wanted.count.unwrap_or(PortCount::ONE),
        Some(_) if wanted.count.is_some() => {
            return Err(usage("--port names a range, which has a count: leave out --count").into());
        }
        Some(ports) => PortCount::try_from(i64::from(ports)).map_err(|error| usage(&error.to_string()))?,
    };
    if wanted.on.is_some() && context.global.instance.is_some() {
        return Err(usage("--on chooses instances, and --instance names one: give one of them").into());
    }
    let for_many = wanted.on.is_some() || wanted.all_instances;
    let (name, names) = match wanted.names.as_slice() {
        [one] => (Some(one.clone()), Vec::new()),
        names => (None, names.to_vec()),
    };
    Ok(ReserveRequest {
        instance: if for_many { None } else { Some(context.instance(None)?) },
        on: wanted.on.clone(),
        protocol: wanted.protocol,
        port: wanted.port.map(PortRange::first),
        pool: wanted.pool.clone(),
        service: wanted.service.clone(),
        name,
        names,
        note: wanted.note.clone(),
        labels: wanted.labels.clone().try_into().map_err(|error| usage(&format!("{error}")))?,
        expect: wanted.expect.clone(),
        busy: PortSet::default(),
        adopt: wanted.adopt,
        scope: if wanted.fleet { Scope::Fleet } else { Scope::Instance },
        count,
        ttl_seconds: wanted.ttl,
        renew_while_listening: wanted.renew_while_listening,
        ensure: wanted.ensure,
        dry_run: wanted.dry_run,
    })
}

/// By number, there is no other one to ask for. A listener that the server has not heard of yet is refused as the server
/// would refuse it; whatever else holds a port (a connection that is closing, a client) goes away by itself.
fn refuse_squatters(context: &Context, client: &Client, reserved: &Reserved) -> Result<()> {
    let seen =
        reserved.made().find_map(|item| machine::find_listener(item.protocol, item.ports(), context.now));
    let Some(listener) = seen else { return Ok(()) };
    let (port, protocol) = (listener.key.port, listener.key.protocol);
    let what = match reserved.dry_run {
        true => String::new(),
        false => {
            give_back(reserved, |item| client.release(item.id, false).map(drop))?;
            ", so it was given back".to_owned()
        }
    };
    let message = format!("{port}/{protocol} is in use by {}{what}", listener.describe());
    Err(Failure::new(Exit::Conflict, message)
        .hint("if that process is the rightful one, add --adopt once `gkctl port list` shows it")
        .into())
}

/// Where numbers are taken, the command that would work, with what the caller typed. The server cannot know that, so
/// this replaces its hint.
fn advise(error: ClientError, context: &Context, asked: &ReserveRequest, here: bool) -> Error {
    let ClientError::Refused(problem) = error else { return error.into() };
    if !matches!(problem.code, Code::PortReserved | Code::PortInUse) {
        return ClientError::Refused(problem).into();
    }
    let typed = here && context.global.instance.is_none();
    let server =
        context.global.server.as_ref().map(|server| format!(" --server {}", quoted(&server.to_string())));
    let command = |port| asked.command(port, typed) + server.as_deref().unwrap_or_default();
    let other = problem.alternatives.first().map(|port| command(Some(*port)));
    let may_adopt = problem.code == Code::PortInUse && asked.is_one_port();
    let adopt =
        may_adopt.then(|| format!("if that process is the rightful one: {} --adopt", command(asked.port)));
    Advised { problem, hints: other.into_iter().chain(adopt).collect() }.into()
}

fn reserve_bindable(
    client: &Client,
    mut request: ReserveRequest,
    ask: impl Fn(&ReserveRequest) -> Result<Reserved>,
) -> Result<Reserved> {
    let mut busy = PortSet::default();
    request.protocol.each().iter().for_each(|protocol| busy.insert_all(&busy_ports(*protocol)));
    let ask = |busy| {
        request.busy = busy;
        ask(&request)
    };
    let release = |item: &Reservation| client.release(item.id, false).map(drop);
    first_bindable(busy, ask, release, |protocol, port| machine::test_bind(protocol, port).is_ok())
}

/// The loop of rule 3: ask, try, and give back what cannot be bound. What was held before is not tried: it may be in
/// use by the very service that asks again.
fn first_bindable(
    mut busy: PortSet,
    mut ask: impl FnMut(PortSet) -> Result<Reserved>,
    mut release: impl FnMut(&Reservation) -> Result<(), ClientError>,
    can_bind: impl Fn(Protocol, Port) -> bool,
) -> Result<Reserved> {
    let mut tried = PortSet::default();
    for _ in 0..MOST_TRIES {
        let reserved = ask(busy.clone())?;
        let all = reserved.made().flat_map(|item| item.ports().ports().map(|port| (item.protocol, port)));
        let failed: PortSet =
            all.filter(|(protocol, port)| !can_bind(*protocol, *port)).map(|(_, port)| port).collect();
        if failed.is_empty() {
            return Ok(reserved);
        }
        if !reserved.dry_run {
            give_back(&reserved, &mut release)?;
        }
        busy.insert_all(&failed);
        tried.insert_all(&failed);
    }
    Err(nothing_bindable(&tried).into())
}

/// Gives back what was made, all of it.
fn give_back(
    reserved: &Reserved,
    mut release: impl FnMut(&Reservation) -> Result<(), ClientError>,
) -> Result<()> {
    let mut given_back = Ok(());
    for item in reserved.made() {
        // The others are given back although one could not be.
        given_back = given_back.and(release(item).with_context(|| stays_reserved(item)));
    }
    given_back
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

fn nothing_bindable(tried: &PortSet) -> Failure {
    let tried: Vec<String> = tried.ranges().iter().map(ToString::to_string).collect();
    let message = format!(
        "the ports offered cannot be bound on this machine: {}; they were given back",
        tried.join(", ")
    );
    Failure::new(Exit::Conflict, message)
        .hint("see who uses them with `gkctl port list`, or try another --pool")
}

/// A line for each number or range, however many instances and protocols have it; with its name where there are several.
fn numbers(reserved: &Reserved) -> String {
    let is_named = reserved.items.iter().any(|item| item.name != reserved.items[0].name);
    let mut lines: Vec<String> = Vec::new();
    for item in &reserved.items {
        let line = match item.name.as_ref().filter(|_| is_named) {
            Some(name) => format!("{name}={}\n", item.ports()),
            None => format!("{}\n", item.ports()),
        };
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.concat()
}

/// What was reserved, a line for each range of numbers, and the command that gives it back.
fn told(reserved: &Reserved, here: bool) -> Vec<String> {
    let same =
        |one: &Reservation, other: &Reservation| (&one.name, one.ports()) == (&other.name, other.ports());
    let ranges = reserved.items.chunk_by(same);
    let mut lines: Vec<String> = ranges.map(|items| of_range(reserved, items)).collect();
    let release = match (reserved.dry_run, reserved.only(), reserved.items.first()) {
        (true, ..) | (_, None, None) => return lines,
        (_, Some(only), _) => release(only, here),
        (_, None, Some(first)) => match first.group {
            Some(group) => format!("gkctl port release --group {group} --yes"),
            None => return lines,
        },
    };
    if let Some(last) = lines.last_mut() {
        last.push_str(&format!("; release with: {release}"));
    }
    lines
}

fn of_range(reserved: &Reserved, items: &[Reservation]) -> String {
    let item = &items[0];
    let is_kept = items.iter().all(|item| reserved.kept.contains(&item.id));
    let what = match (reserved.dry_run, is_kept) {
        (false, false) => "reserved",
        (false, true) => "kept",
        (true, false) => "would reserve",
        (true, true) => "would keep",
    };
    let both = items.iter().any(|other| other.protocol != item.protocol);
    let protocols = if both { Protocols::Both } else { item.protocol.into() };
    let protocols: Vec<&str> = protocols.each().iter().map(|protocol| protocol.as_str()).collect();
    let mut places: Vec<String> = Vec::new();
    for item in items.iter().filter(|other| other.protocol == item.protocol) {
        let is_first = places.is_empty();
        places.extend(match &item.instance {
            Some(instance) if !is_first => Some(instance.name.to_string()),
            _ => Some(item.place()),
        });
    }
    let more = places.len().saturating_sub(MOST_NAMES);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    places.truncate(MOST_NAMES);
    let name = item.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let from = item.pool.as_ref().map(|pool| format!(" from pool {pool}")).unwrap_or_default();
    let until = item.expires_at.map(|end| format!(" until {end}")).unwrap_or_default();
    let (ports, places) = (item.ports(), places.join(", "));
    format!("{what} {ports}/{}{name} {places}{rest}{from}{until}", protocols.join("+"))
}

fn release(only: &Reservation, here: bool) -> String {
    let elsewhere = only.instance.as_ref().filter(|_| !here);
    let protocol = if only.protocol == Protocol::Udp { " --protocol udp" } else { "" };
    let instance = elsewhere.map(|instance| format!(" --instance {}", instance.name)).unwrap_or_default();
    format!("gkctl port release {}{protocol}{instance}", only.ports())
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
            instance: Some(link()),
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

    fn link() -> InstanceLink {
        let at = Timestamp::from_micros(0);
        InstanceLink { id: InstanceId::generate(at), name: "web-1".parse().unwrap() }
    }

    fn reserved(items: Vec<Reservation>) -> Reserved {
        Reserved { items, kept: Vec::new(), dry_run: false }
    }

    /// A server that offers the lowest two ports from 8000 that are not busy, and a machine that can bind from `bindable`
    /// on.
    fn offered(busy: &[u16], bindable: u16) -> (Result<Reserved>, Vec<String>, usize) {
        let busy = busy.iter().filter_map(|number| Port::new(*number)).collect();
        let (mut asked, mut given_back) = (Vec::new(), 0);
        let ask = |busy: PortSet| {
            asked.push(busy.ranges().iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
            let free: PortSet = (8000..9000).filter_map(Port::new).collect();
            let run = free.first_run(2, &[&busy]).unwrap();
            let held = reservation(Protocol::Tcp, None);
            Ok(reserved(vec![Reservation { first_port: run.first(), last_port: run.last(), ..held }]))
        };
        let give_back = |_: &Reservation| {
            given_back += 1;
            Ok(())
        };
        let found = first_bindable(busy, ask, give_back, |_, port| port.get() >= bindable);
        (found, asked, given_back)
    }

    #[test]
    fn what_cannot_be_bound_is_given_back_and_not_offered_again() {
        let (found, asked, given_back) = offered(&[8000], 8004);
        assert_eq!(found.unwrap().items[0].ports().to_string(), "8004-8005");
        assert_eq!((asked, given_back), (vec!["8000".into(), "8000-8002".into(), "8000-8003".into()], 2));
    }

    #[test]
    fn after_three_numbers_it_gives_up_and_holds_none() {
        let (found, asked, given_back) = offered(&[], 9000);
        let error = found.unwrap_err();
        assert!(error.to_string().contains("8000-8005"), "{error}");
        assert_eq!(error.downcast_ref::<Failure>().unwrap().exit, Exit::Conflict);
        assert_eq!((asked.len(), given_back), (3, 3));
    }

    #[test]
    fn what_was_held_before_is_neither_tried_nor_given_back() {
        let (old, new) = (reservation(Protocol::Tcp, None), reservation(Protocol::Udp, None));
        let mut released = Vec::new();
        let answer = Reserved { kept: vec![old.id], ..reserved(vec![old.clone(), new.clone()]) };
        let again = |answer: &Reserved| {
            let answer = answer.clone();
            move |_| Ok(answer.clone())
        };
        let release = |item: &Reservation| {
            released.push(item.id);
            Ok(())
        };
        let found = first_bindable(PortSet::default(), again(&answer), release, |protocol, _| {
            protocol == Protocol::Udp
        });
        assert_eq!(found.unwrap(), answer);
        assert_eq!(released, []);
        let release = |item: &Reservation| {
            released.push(item.id);
            Ok(())
        };
        first_bindable(PortSet::default(), again(&answer), release, |_, _| false).unwrap_err();
        assert_eq!(released, [new.id, new.id, new.id]);
    }

    #[test]
    fn a_number_that_cannot_be_given_back_is_named() {
        let ask = |_| Ok(reserved(vec![reservation(Protocol::Udp, None)]));
        let fault = || ClientError::InsecureHttp { server: "https://away:1".parse().unwrap() };
        let error = first_bindable(PortSet::default(), ask, |_| Err(fault()), |_, _| false).unwrap_err();
        assert!(error.to_string().contains("gkctl port release 8000 --protocol udp"), "{error}");
    }

    #[test]
    fn numbers_are_printed_once_and_with_their_names_where_there_are_several() {
        let named = |name: &str, port: u16, protocol| Reservation {
            name: name.parse().ok(),
            first_port: Port::new(port).unwrap(),
            last_port: Port::new(port + 1).unwrap(),
            ..reservation(protocol, None)
        };
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        let table = [
            (vec![named("", 8000, tcp)], "8000-8001\n"),
            (vec![named("http", 8000, tcp)], "8000-8001\n"),
            (vec![named("http", 8000, tcp), named("http", 8000, udp)], "8000-8001\n"),
            (
                vec![named("http", 8000, tcp), named("http", 8000, udp), named("grpc", 8002, tcp)],
                "http=8000-8001\ngrpc=8002-8003\n",
            ),
        ];
        for (items, expected) in table {
            assert_eq!(numbers(&reserved(items)), expected);
        }
    }

    #[test]
    fn several_are_told_in_a_line_for_each_number() {
        let on = |name: &str, protocol| Reservation {
            instance: Some(InstanceLink { name: name.parse().unwrap(), ..link() }),
            group: "0190163d-8694-739b-aea5-966c26f8ad91".parse().ok(),
            ..reservation(protocol, Some("web"))
        };
        let many = ["web-1", "web-2", "web-3", "web-4", "web-5"].map(|name| on(name, Protocol::Tcp));
        assert_eq!(
            told(&reserved(many.into()), false),
            [
                "reserved 8000/tcp on web-1, web-2, web-3 and 2 more from pool web; release with: gkctl port release \
              --group 0190163d-8694-739b-aea5-966c26f8ad91 --yes"
            ]
        );
        let both = vec![on("web-1", Protocol::Tcp), on("web-1", Protocol::Udp)];
        let planned = Reserved { dry_run: true, ..reserved(both) };
        assert_eq!(told(&planned, true), ["would reserve 8000/tcp+udp on web-1 from pool web"]);
    }

    #[test]
    fn the_answer_tells_how_to_give_it_back() {
        assert_eq!(
            told(&reserved(vec![reservation(Protocol::Tcp, Some("default"))]), true),
            ["reserved 8000/tcp on web-1 from pool default; release with: gkctl port release 8000"]
        );
        assert_eq!(
            told(&reserved(vec![reservation(Protocol::Udp, None)]), false),
            [
                "reserved 8000/udp on web-1; release with: gkctl port release 8000 --protocol udp --instance web-1"
            ]
        );
    }
}
