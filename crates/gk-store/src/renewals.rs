//! What becomes of a lease when its time is over: it ends, or the server renews it because somebody listens there
//! (`renew_while_listening`, rule 13 of the domain); and the word before that it is about to end.
//!
//! Fact decides nothing by itself: the holder asked for it. Who is there is what the newest report says. Of an instance
//! that is offline nobody knows, so its lease waits for its next contact, for a week at most; and once that has come, for
//! a minute more, because an agent starts before the services of its machine.

use std::time::Duration;

use gk_model::history::EventKind;
use gk_model::id::InstanceId;
use gk_model::instance::Presence;
use gk_model::lease::LeaseTime;
use gk_model::port_state::State;
use gk_model::reservation::Reservation;
use gk_model::time::Timestamp;

use crate::error::{Error, StoreError};
use crate::leases::{ExpiryReport, server};
use crate::space::Space;
use crate::tx::{NewEvent, Reader, Tx};
use crate::value::values;

/// How long a lease waits for an instance that is offline.
const WAIT_AT_MOST: Duration = Duration::from_hours(7 * 24);

/// How long services may take to come up after the first contact.
const COMING_UP: Duration = Duration::from_mins(1);

/// What is to be done with a lease whose time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    End,
    Renew(LeaseTime),
    Wait,
}

impl Reader<'_> {
    fn judge_lease(&mut self, held: &Reservation, now: Timestamp) -> Result<Fate, Error> {
        let Some(ttl) = held.ttl_seconds.filter(|_| held.renew_while_listening) else { return Ok(Fate::End) };
        let places = match &held.instance {
            Some(instance) => {
                if self.get_instance(&instance.id.into(), now)?.presence == Presence::Offline {
                    return Ok(Fate::Wait);
                }
                vec![instance.id]
            }
            None => self.list_listening(held.protocol, held.ports())?,
        };
        for place in places.into_iter().filter(|_| held.idle_since.is_none()) {
            if self.is_used_rightly(place, held)? {
                return Ok(Fate::Renew(ttl));
            }
        }
        Ok(Fate::End)
    }

    fn is_awaited(&mut self, held: &Reservation) -> Result<bool, StoreError> {
        let sql = "select id from reservation where id = $1 and awaited_since is not null";
        Ok(self.query_one(sql, values![held.id])?.is_some())
    }

    /// Whether anybody listens on a port of it who is not known to be the wrong one.
    fn is_used_rightly(&mut self, instance: InstanceId, held: &Reservation) -> Result<bool, StoreError> {
        let joined = self.join_stretch(instance, held.protocol, held.ports())?.joined;
        Ok(joined.values().any(|found| found.state == State::InUse))
    }
}

impl Tx<'_> {
    /// Ends what is due and is not renewed, and announces what will be.
    pub(crate) fn end_due(&mut self, now: Timestamp, most: u32) -> Result<ExpiryReport, Error> {
        let due = self.list_due(now, most)?;
        let mut report = ExpiryReport { more: due.len() == most as usize, ..ExpiryReport::default() };
        for held in due {
            let fate = match self.judge_lease(&held, now)? {
                // It has waited long enough.
                Fate::Wait if self.is_awaited(&held)? => Fate::End,
                fate => fate,
            };
            match fate {
                Fate::End => {
                    self.end_reservation(EventKind::Expired, (&server()).into(), &held, now)?;
                    report.expired += 1;
                }
                Fate::Renew(ttl) => {
                    let renewed = (ttl, ttl.deadline(now));
                    self.set_deadline(EventKind::Renewed, (&server()).into(), held, renewed, now)?;
                    report.renewed += 1;
                }
                Fate::Wait => self.await_contact(&held, now)?,
            }
        }
        self.end_waiting(now, most)?;
        self.announce(now, most)?;
        Ok(report)
    }

    fn await_contact(&mut self, held: &Reservation, now: Timestamp) -> Result<(), StoreError> {
        let until = now.plus(WAIT_AT_MOST);
        self.postpone(held, until, Some(now))?;
        let message = format!(
            "{}/{} waits for the next contact of its instance, until {until} at most",
            held.ports(),
            held.protocol
        );
        self.record_lease(EventKind::Renewed, held, message, now)
    }

    /// Those that wait for an instance which was heard of since.
    fn end_waiting(&mut self, now: Timestamp, most: u32) -> Result<(), StoreError> {
        for held in self.list_awaited(most)? {
            let spare = held.ttl_seconds.map_or(COMING_UP, LeaseTime::duration).min(COMING_UP);
            let until = now.plus(spare);
            self.postpone(&held, until, None)?;
            let message =
                format!("{}/{} goes on until {until}: its instance is back", held.ports(), held.protocol);
            self.record_lease(EventKind::Renewed, &held, message, now)?;
        }
        Ok(())
    }

    fn postpone(
        &mut self,
        held: &Reservation,
        until: Timestamp,
        awaited_since: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        self.later(
            "update reservation set expires_at = $2, awaited_since = $3, warn_at = null, version = version + 1 \
             where id = $1",
            values![held.id, until, awaited_since],
        )
    }

    /// Tells, once for each deadline, what is about to end. What would be renewed is not.
    fn announce(&mut self, now: Timestamp, most: u32) -> Result<(), Error> {
        for held in self.list_unannounced(now, most)? {
            self.later("update reservation set warn_at = null where id = $1", values![held.id])?;
            if let (Fate::End, Some(end)) = (self.judge_lease(&held, now)?, held.expires_at) {
                let message =
                    format!("{}/{} expires at {end}, held by {}", held.ports(), held.protocol, held.holder);
                self.record_lease(EventKind::Expiring, &held, message, now)?;
            }
        }
        Ok(())
    }

    fn record_lease(
        &mut self,
        kind: EventKind,
        held: &Reservation,
        message: String,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.record(NewEvent {
            instance: Some(Space::held_for(held.instance.as_ref())),
            ports: Some((held.protocol, held.ports())),
            reservation: Some(held.id),
            ..NewEvent::of(kind, (&server()).into(), message, now)
        })?;
        Ok(())
    }
}
