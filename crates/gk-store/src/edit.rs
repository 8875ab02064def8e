//! Editing: what a reservation says of itself, never what it holds.
//!
//! History stays true: when service or name change, the interval of what it was for ends, and the next one begins with
//! the `edited` event.

use gk_model::access::Actor;
use gk_model::history::{EventKind, IntervalKind};
use gk_model::id::ReservationId;
use gk_model::reservation::{Reservation, ReservationPatch};
use gk_model::time::Timestamp;

use crate::error::{Error, StoreError};
use crate::history::NewInterval;
use crate::space::Space;
use crate::tx::{NewEvent, Tx};
use crate::value::{Json, values};

impl Tx<'_> {
    /// Changes what a reservation says. For its holder; an operator may for others with `force`. What changes nothing
    /// is no event, and no new version.
    ///
    /// # Errors
    /// [`Refusal::NoSuchReservation`](crate::Refusal::NoSuchReservation),
    /// [`Refusal::AlreadyReleased`](crate::Refusal::AlreadyReleased),
    /// [`Refusal::NotTheHolder`](crate::Refusal::NotTheHolder),
    /// [`Refusal::VersionMismatch`](crate::Refusal::VersionMismatch).
    pub fn update_reservation(
        &mut self,
        actor: &Actor,
        id: ReservationId,
        patch: &ReservationPatch,
        force: bool,
        if_version: Option<u64>,
        now: Timestamp,
    ) -> Result<Reservation, Error> {
        let held = self.get_changeable(actor, id, force, if_version)?;
        let edited = patch.apply(&held);
        Ok(self.set_words(actor, &held, edited, now)?)
    }

    /// Writes down what a live reservation says from now on, if that is anything new.
    pub(crate) fn set_words(
        &mut self,
        actor: &Actor,
        held: &Reservation,
        edited: Reservation,
        now: Timestamp,
    ) -> Result<Reservation, StoreError> {
        if edited == *held {
            return Ok(edited);
        }
        let edited = Reservation { version: held.version + 1, ..edited };
        let instance = Space::held_for(held.instance.as_ref());
        let seq = self.record(NewEvent {
            at: now,
            recorded_at: now,
            kind: EventKind::Edited,
            instance: Some(instance),
            ports: Some((held.protocol, held.ports())),
            by: actor.into(),
            reservation: Some(held.id),
            listener: None,
            message: describe(actor, held, &edited),
        })?;
        if (&held.service, &held.name) != (&edited.service, &edited.name) {
            self.end_held(held.id, now)?;
            self.begin_interval(NewInterval {
                seq,
                kind: IntervalKind::Held,
                instance,
                protocol: held.protocol,
                ports: held.ports(),
                began_at: now.max(held.created_at),
                reservation: Some(&edited),
                listener: None,
            })?;
            self.later("update reservation set began_seq = $2 where id = $1", values![held.id, seq])?;
        }
        self.later(
            "update reservation set service = $2, name = $3, note = $4, labels = $5, expect = $6, \
             version = version + 1 where id = $1",
            values![
                held.id,
                edited.service.as_ref(),
                edited.name.as_ref(),
                edited.note.as_ref(),
                Some(&edited.labels).filter(|labels| !labels.is_empty()).map(Json),
                edited.expect.as_ref().map(Json),
            ],
        )?;
        if held.expect != edited.expect {
            self.settle_reservation(&edited, edited.ports(), now)?;
        }
        Ok(edited)
    }
}

/// `8080/tcp edited by ada: service web instead of billing, note`.
fn describe(actor: &Actor, held: &Reservation, edited: &Reservation) -> String {
    let changes = [
        told("service", held.service.as_ref(), edited.service.as_ref()),
        told("name", held.name.as_ref(), edited.name.as_ref()),
        (held.note != edited.note).then(|| "note".to_owned()),
        (held.labels != edited.labels).then(|| "labels".to_owned()),
        (held.expect != edited.expect).then(|| "expectation".to_owned()),
    ];
    let changes: Vec<String> = changes.into_iter().flatten().collect();
    let whose =
        if actor.subject == held.holder { String::new() } else { format!(", held by {}", held.holder) };
    let (ports, protocol) = (held.ports(), held.protocol);
    format!("{ports}/{protocol} edited by {}{whose}: {}", actor.subject, changes.join(", "))
}

fn told<T: PartialEq + ToString>(what: &str, before: Option<&T>, after: Option<&T>) -> Option<String> {
    let or_none = |text: Option<&T>| text.map_or_else(|| "none".to_owned(), ToString::to_string);
    (before != after).then(|| format!("{what} {} instead of {}", or_none(after), or_none(before)))
}
