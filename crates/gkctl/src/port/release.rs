//! `gkctl port release`: by number, service, idleness, group or id; on the wire always by id, and only as it was seen.

use std::io::{self, BufRead as _, Write as _};

use anyhow::Result;
use gk_client::{Client, ClientError};
use gk_model::history::{Interval, IntervalKind};
use gk_model::id::InstanceRef;
use gk_model::port::{PortRange, Protocol};
use gk_model::query::{HistoryQuery, Limit, ReservationQuery};
use gk_model::reservation::Reservation;
use gk_model::text::Subject;
use gk_model::time::Timestamp;

use crate::args::{Format, Release};
use crate::context::{Context, collect, note};
use crate::error::{Exit, Failure};
use crate::output::{age, print_json};
use crate::port::purpose;
use crate::secret_input::can_ask;

/// How many reservations are listed before the rest is counted.
const MOST_LINES: usize = 40;

/// Releases what is meant, once that is beyond doubt.
pub(crate) fn release(context: &Context, wanted: &Release) -> Result<()> {
    let chosen = choose(context, wanted)?;
    let is_sure = chosen.len() == 1 && wanted.idle.is_none();
    if !wanted.yes && !is_sure {
        ask(context, &chosen)?;
    }
    let client = context.client()?;
    let mut released = Vec::new();
    for (held, part) in &chosen {
        // One that was changed since it was listed is another one than was agreed to.
        let answer = client.release_part(held.id, *part, wanted.force, Some(held.version));
        released.push(answer.inspect_err(|_| stopped(released.len(), chosen.len()))?);
        note(told(held, *part));
    }
    match context.format() {
        Format::Json => Ok(print_json(&released)?),
        Format::Table | Format::Csv | Format::Name => Ok(()),
    }
}

/// What is to be released, each with the part of it that is meant where it is not the whole.
type Chosen = Vec<(Reservation, Option<PortRange>)>;

fn choose(context: &Context, wanted: &Release) -> Result<Chosen> {
    let whole = |held: Vec<Reservation>| held.into_iter().map(|held| (held, None)).collect();
    if let Some(ports) = wanted.number.or(wanted.port) {
        let place = Place { instance: context.instance(None)?, ports, protocol: wanted.protocol };
        let client = context.client()?;
        let found = place.live(&client)?;
        return match found.iter().find(|held| held.protocol != found[0].protocol) {
            Some(_) => Err(ambiguous(ports, "gkctl port release").into()),
            None if found.is_empty() => Err(not_reserved(context, &client, &place)?.into()),
            None => Ok(found
                .into_iter()
                .map(|held| (part(&held, ports), held))
                .map(|(part, held)| (held, part))
                .collect()),
        };
    }
    if let Some(id) = wanted.id {
        return Ok(whole(vec![context.client()?.get_reservation(id)?]));
    }
    let query = ReservationQuery {
        instance: if wanted.group.is_some() {
            None
        } else {
            context.instance_or_all(wanted.all_instances)?
        },
        group: wanted.group,
        service: wanted.service.clone(),
        protocol: wanted.protocol,
        idle_for_seconds: wanted.idle,
        ..ReservationQuery::default()
    };
    let client = context.client()?;
    let holder = if wanted.force { None } else { Some(client.whoami()?.subject) };
    let query = ReservationQuery { holder: holder.clone(), ..query };
    let found = collect(None, |cursor, limit| {
        client.list_reservations(&ReservationQuery { cursor, limit, ..query.clone() })
    })?;
    if found.is_empty() {
        let whose = holder.map(|holder| format!(" by {holder}")).unwrap_or_default();
        return Err(Failure::new(Exit::NotFound, format!("nothing like that is reserved{whose}"))
            .hint("see what is with: gkctl reservation list")
            .into());
    }
    Ok(whole(found))
}

/// The part of a reservation that lies in a range; none for the whole of it.
fn part(held: &Reservation, ports: PortRange) -> Option<PortRange> {
    let (first, last) = (held.first_port.max(ports.first()), held.last_port.min(ports.last()));
    PortRange::new(first, last).ok().filter(|part| *part != held.ports())
}

/// Lists what is meant, and goes on when somebody says so.
fn ask(context: &Context, chosen: &Chosen) -> Result<()> {
    for (held, part) in chosen.iter().take(MOST_LINES) {
        note(format_args!("  {}", listed(held, *part, context.now)));
    }
    if chosen.len() > MOST_LINES {
        note(format_args!("  and {} more", chosen.len() - MOST_LINES));
    }
    let what = match chosen.len() {
        1 => "this reservation".to_owned(),
        several => format!("these {several} reservations"),
    };
    if !can_ask() {
        let message = format!("{what} would be released, and there is nobody to ask; nothing was released");
        return Err(Failure::new(Exit::Usage, message)
            .hint("to release without being asked, add --yes")
            .into());
    }
    let mut answer = String::new();
    write!(io::stderr(), "release {what}? [y/N] ")?;
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::new(Exit::Error, "nothing was released").into()),
    }
}

fn listed(held: &Reservation, part: Option<PortRange>, now: Timestamp) -> String {
    let purpose = purpose(held).map(|purpose| format!(" for {purpose}")).unwrap_or_default();
    let idle = held.idle_since.map(|since| format!(", idle since {}", age::exact_in_words(since, now)));
    let (ports, protocol, place) = (part.unwrap_or(held.ports()), held.protocol, held.place());
    format!("{ports}/{protocol} {place}{purpose}, held by {}{}", held.holder, idle.unwrap_or_default())
}

fn stopped(done: usize, all: usize) {
    if done > 0 {
        note(format_args!("stopped after {done} of {all}; the others stay reserved"));
    }
}

/// The ports that are meant, of one protocol or of either.
pub(crate) struct Place {
    pub(crate) instance: InstanceRef,
    pub(crate) ports: PortRange,
    pub(crate) protocol: Option<Protocol>,
}

impl Place {
    /// The reservations that hold some of them there: for that instance, or where it holds none of them, for all.
    pub(crate) fn live(&self, client: &Client) -> Result<Vec<Reservation>, ClientError> {
        let list = |instance: Option<InstanceRef>| {
            collect(None, |cursor, limit| {
                client.list_reservations(&ReservationQuery {
                    instance: instance.clone(),
                    port: Some(self.ports),
                    protocol: self.protocol,
                    cursor,
                    limit,
                    ..ReservationQuery::default()
                })
            })
        };
        let mut found = list(Some(self.instance.clone()))?;
        if found.is_empty() {
            found = list(None)?;
            found.retain(|held| held.instance.is_none());
        }
        Ok(found)
    }

    /// The one that holds them.
    pub(crate) fn one(&self, context: &Context, client: &Client, verb: &str) -> Result<Reservation> {
        match self.live(client)?.as_slice() {
            [one] => Ok(one.clone()),
            [] => Err(not_reserved(context, client, self)?.into()),
            _ => Err(ambiguous(self.ports, verb).into()),
        }
    }

    /// When their last reservation ended, and by whom as far as that is still known.
    fn last_release(&self, client: &Client) -> Result<Option<(Timestamp, Option<Subject>)>, ClientError> {
        let query = HistoryQuery {
            instance: Some(self.instance.clone()),
            port: Some(self.ports),
            protocol: self.protocol,
            kind: Some(IntervalKind::Held),
            limit: Some(Limit::at_most(1)),
            ..HistoryQuery::default()
        };
        let newest = client.list_history(&query)?.items.into_iter().next();
        let Some(Interval { ended_at: Some(at), reservation, .. }) = newest else { return Ok(None) };
        let Some(id) = reservation else { return Ok(Some((at, None))) };
        match client.get_reservation(id) {
            Ok(reservation) => Ok(Some((at, reservation.released_by))),
            // History may outlive the reservation; then there is simply less to tell.
            Err(ClientError::Refused(_)) => Ok(Some((at, None))),
            Err(error) => Err(error),
        }
    }
}

fn told(held: &Reservation, part: Option<PortRange>) -> String {
    let purpose = purpose(held).map(|purpose| format!(" ({purpose})")).unwrap_or_default();
    let rest = part.map(|part| held.ports().without(part)).unwrap_or_default();
    let rest: Vec<String> = rest.iter().map(ToString::to_string).collect();
    let rest =
        if rest.is_empty() { String::new() } else { format!("; {} stays reserved", rest.join(" and ")) };
    let (ports, protocol) = (part.unwrap_or(held.ports()), held.protocol);
    format!("released {ports}/{protocol} {}{purpose}{rest}", held.place())
}

fn ambiguous(ports: PortRange, verb: &str) -> Failure {
    Failure::new(Exit::Usage, format!("{ports} is reserved for tcp and udp"))
        .hint(format!("say which one, as in: {verb} {ports} --protocol tcp"))
}

/// That nothing is there to release, with what became of the last reservation.
fn not_reserved(context: &Context, client: &Client, place: &Place) -> Result<Failure, ClientError> {
    let Place { instance, ports, protocol } = place;
    // Also tells a wrong instance from a wrong port.
    let name = client.get_instance(instance)?.name;
    let what = protocol.map_or_else(|| ports.to_string(), |protocol| format!("{ports}/{protocol}"));
    let past = place.last_release(client)?.map(|(at, by)| past(at, by, context.now)).unwrap_or_default();
    let option = if context.machine.is(instance) { String::new() } else { format!(" --instance {name}") };
    Ok(Failure::new(Exit::NotFound, format!("{what} is not reserved on {name}{past}"))
        .hint(format!("see who uses it with: gkctl port list --port {ports}{option}")))
}

fn past(at: Timestamp, by: Option<Subject>, now: Timestamp) -> String {
    let by = by.map(|subject| format!(" by {subject}")).unwrap_or_default();
    format!("; it was released{by} at {}", age::exact_in_words(at, now))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_past_says_when_and_by_whom() {
        let now = Timestamp::from_micros(1_700_000_000_000_000);
        let at = now.minus(Duration::from_mins(5));
        assert_eq!(
            past(at, "ada".parse().ok(), now),
            "; it was released by ada at 2023-11-14 22:08:20 UTC (5 m ago)"
        );
        assert_eq!(past(at, None, now), "; it was released at 2023-11-14 22:08:20 UTC (5 m ago)");
    }
}
