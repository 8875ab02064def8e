//! The ends of reservations: released in whole or in part, and expired.
//!
//! History stays true when a range is split: the interval of the whole ends with the release, and each remaining range
//! begins one of its own at that moment, with the `split` event that tells of it. So an interval never changes its ports.

use gk_model::access::Actor;
use gk_model::history::{EventKind, IntervalKind};
use gk_model::id::ReservationId;
use gk_model::port::PortRange;
use gk_model::reservation::Reservation;
use gk_model::time::Timestamp;

use crate::error::{Error, Refusal, StoreError};
use crate::history::NewInterval;
use crate::membership::check_version;
use crate::space::Space;
use crate::tx::{By, NewEvent, Tx};
use crate::value::values;

impl Tx<'_> {
    /// Ends a reservation, or a part of it. Only the holder may; an operator may for others with `force`. Answers what
    /// the reservation is then: after a part was released, the lowest remaining range, which keeps the id.
    ///
    /// # Errors
    /// [`Refusal::NoSuchReservation`], [`Refusal::AlreadyReleased`], [`Refusal::NotTheHolder`],
    /// [`Refusal::VersionMismatch`], [`Refusal::NotInReservation`].
    pub fn release(
        &mut self,
        actor: &Actor,
        id: ReservationId,
        part: Option<PortRange>,
        force: bool,
        if_version: Option<u64>,
        now: Timestamp,
    ) -> Result<Reservation, Error> {
        let held = self.get_changeable(actor, id, force, if_version)?;
        let part = part.unwrap_or(held.ports());
        if !held.ports().covers(part) {
            return Err(Refusal::NotInReservation { part, held: Box::new(held) }.into());
        }
        match held.ports().without(part).as_slice() {
            [] => self.end_reservation(EventKind::Released, actor.into(), &held, now),
            [lowest, others @ ..] => self.split(actor, &held, part, *lowest, others, now),
        }
    }

    /// A live reservation that this actor may change.
    pub(crate) fn get_changeable(
        &mut self,
        actor: &Actor,
        id: ReservationId,
        force: bool,
        if_version: Option<u64>,
    ) -> Result<Reservation, Error> {
        self.check_credential(actor)?;
        let reservation = self.get_reservation(id)?;
        if reservation.released_at.is_some() {
            return Err(Refusal::AlreadyReleased(Box::new(reservation)).into());
        }
        if reservation.holder != actor.subject && !(force && actor.is_operator()) {
            return Err(Refusal::NotTheHolder(Box::new(reservation)).into());
        }
        self.check_held(actor, &reservation)?;
        check_version(if_version, reservation.version)?;
        Ok(reservation)
    }

    /// Ends a live reservation, whoever holds it, and answers it as it is then.
    pub(crate) fn end_reservation(
        &mut self,
        kind: EventKind,
        by: By<'_>,
        held: &Reservation,
        now: Timestamp,
    ) -> Result<Reservation, Error> {
        let rest = self.pools()?.quarantine(held.pool.as_ref(), held.ports());
        self.record_end(kind, by, held, held.ports(), now)?;
        // Nothing ends before it began, even if the clock stepped back in between.
        let released_at = now.max(held.created_at);
        self.end_held(held.id, released_at)?;
        self.later(
            "update reservation set released_at = $2, released_by = $3, version = version + 1 where id = $1",
            values![held.id, released_at, by.subject],
        )?;
        self.unclaim(held, held.ports(), now.plus(rest))?;
        self.counts().add_reservation(held, -1);
        self.settle_reservation(held, held.ports(), now)?;
        Ok(Reservation {
            released_at: Some(released_at),
            released_by: Some(by.subject.clone()),
            version: held.version + 1,
            ..held.clone()
        })
    }

    fn split(
        &mut self,
        actor: &Actor,
        held: &Reservation,
        part: PortRange,
        lowest: PortRange,
        others: &[PortRange],
        now: Timestamp,
    ) -> Result<Reservation, Error> {
        let rest = self.pools()?.quarantine(held.pool.as_ref(), part);
        self.record_end(EventKind::Released, actor.into(), held, part, now)?;
        self.end_held(held.id, now)?;
        self.unclaim(held, part, now.plus(rest))?;
        let kept = Reservation {
            first_port: lowest.first(),
            last_port: lowest.last(),
            version: held.version + 1,
            ..held.clone()
        };
        let seq = self.begin_part(actor, held, &kept, now)?;
        self.later(
            "update reservation set first_port = $2, last_port = $3, version = version + 1, began_seq = $4 \
             where id = $1",
            values![kept.id, kept.first_port, kept.last_port, seq],
        )?;
        for range in others {
            let other = Reservation {
                id: ReservationId::generate(now),
                first_port: range.first(),
                last_port: range.last(),
                split_from: Some(held.id),
                version: 1,
                ..held.clone()
            };
            let seq = self.begin_part(actor, held, &other, now)?;
            self.insert_reservation(&other, seq)?;
            self.pass_on_claims(&other)?;
        }
        self.settle_reservation(held, held.ports(), now)?;
        // Who listened on the whole may not listen on this part.
        if kept.idle_since.is_some() { Ok(kept) } else { self.get_reservation(kept.id) }
    }

    /// Tells that a remaining part goes on, and begins its interval. Answers the number of the event.
    fn begin_part(
        &mut self,
        actor: &Actor,
        whole: &Reservation,
        part: &Reservation,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let (ports, protocol) = (part.ports(), part.protocol);
        let seq = self.record(NewEvent {
            at: now,
            recorded_at: now,
            kind: EventKind::Split,
            instance: Some(Space::held_for(part.instance.as_ref())),
            ports: Some((protocol, ports)),
            by: actor.into(),
            reservation: Some(part.id),
            listener: None,
            message: format!("{ports}/{protocol} goes on after {} was split", whole.ports()),
        })?;
        self.begin_interval(NewInterval {
            seq,
            kind: IntervalKind::Held,
            instance: Space::held_for(part.instance.as_ref()),
            protocol,
            ports,
            began_at: now.max(part.created_at),
            reservation: Some(part),
            listener: None,
        })?;
        Ok(seq)
    }

    fn record_end(
        &mut self,
        kind: EventKind,
        by: By<'_>,
        held: &Reservation,
        ports: PortRange,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let By { subject, .. } = by;
        let whose =
            if *subject == held.holder { String::new() } else { format!(", held by {}", held.holder) };
        let message = match kind {
            EventKind::Expired => format!("{ports}/{} expired{whose}", held.protocol),
            _ => format!("{ports}/{} released by {subject}{whose}", held.protocol),
        };
        self.record(NewEvent {
            at: now,
            recorded_at: now,
            kind,
            instance: Some(Space::held_for(held.instance.as_ref())),
            ports: Some((held.protocol, ports)),
            by,
            reservation: Some(held.id),
            listener: None,
            message,
        })
    }

    /// Ends the interval that a reservation has open.
    pub(crate) fn end_held(&mut self, id: ReservationId, ended_at: Timestamp) -> Result<(), StoreError> {
        self.end_intervals("seq = (select began_seq from reservation where id = $2)", id, ended_at)
    }
}
