//! `gkctl port release`: by number for people, by id on the wire.

use anyhow::Result;
use gk_client::{Client, ClientError};
use gk_model::history::{Interval, IntervalKind};
use gk_model::id::InstanceRef;
use gk_model::port::{Port, Protocol};
use gk_model::query::{HistoryQuery, Limit, ReservationQuery};
use gk_model::reservation::Reservation;
use gk_model::text::Subject;
use gk_model::time::Timestamp;

use crate::args::{Format, Release};
use crate::context::{Context, collect, note};
use crate::error::{Exit, Failure};
use crate::output::{age, print_json};
use crate::port::purpose;

/// Releases the reservation that holds the port.
pub(crate) fn release(context: &Context, wanted: &Release) -> Result<()> {
    let place = Place {
        instance: context.instance(None)?,
        port: wanted.number.or(wanted.port).expect("the parser demands one of them"),
        protocol: wanted.protocol,
    };
    let client = context.client()?;
    let reservation = match place.live(&client)?.as_slice() {
        [one] => one.id,
        [] => return Err(not_reserved(context, &client, &place)?.into()),
        several => return Err(ambiguous(place.port, several).into()),
    };
    let released = client.release(reservation, wanted.force)?;
    note(told(&released));
    match context.format() {
        Format::Json => Ok(print_json(&released)?),
        Format::Table | Format::Csv | Format::Name => Ok(()),
    }
}

/// The port that is meant, of one protocol or of either.
struct Place {
    instance: InstanceRef,
    port: Port,
    protocol: Option<Protocol>,
}

impl Place {
    /// The reservations that hold it: at most one for each protocol.
    fn live(&self, client: &Client) -> Result<Vec<Reservation>, ClientError> {
        collect(None, |cursor, limit| {
            client.list_reservations(&ReservationQuery {
                instance: Some(self.instance.clone()),
                port: Some(self.port.into()),
                protocol: self.protocol,
                cursor,
                limit,
                ..ReservationQuery::default()
            })
        })
    }

    /// When its last reservation ended, and by whom as far as that is still known.
    fn last_release(&self, client: &Client) -> Result<Option<(Timestamp, Option<Subject>)>, ClientError> {
        let query = HistoryQuery {
            instance: Some(self.instance.clone()),
            port: Some(self.port.into()),
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

fn told(released: &Reservation) -> String {
    let purpose = purpose(released).map(|purpose| format!(" ({purpose})")).unwrap_or_default();
    format!("released {}/{} {}{purpose}", released.ports(), released.protocol, released.place())
}

fn ambiguous(port: Port, several: &[Reservation]) -> Failure {
    let protocols: Vec<String> = several.iter().map(|reservation| reservation.protocol.to_string()).collect();
    Failure::new(Exit::Usage, format!("{port} is reserved for {}", protocols.join(" and ")))
        .hint(format!("say which one, as in: gkctl port release {port} --protocol {}", protocols[0]))
}

/// That nothing is there to release, with what became of the last reservation.
fn not_reserved(context: &Context, client: &Client, place: &Place) -> Result<Failure, ClientError> {
    let Place { instance, port, protocol } = place;
    // Also tells a wrong instance from a wrong port.
    let name = client.get_instance(instance)?.name;
    let what = protocol.map_or_else(|| port.to_string(), |protocol| format!("{port}/{protocol}"));
    let past = place.last_release(client)?.map(|(at, by)| past(at, by, context.now)).unwrap_or_default();
    let option = if context.machine.is(instance) { String::new() } else { format!(" --instance {name}") };
    Ok(Failure::new(Exit::NotFound, format!("{what} is not reserved on {name}{past}"))
        .hint(format!("see who uses it with: gkctl port show {port}{option}")))
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
