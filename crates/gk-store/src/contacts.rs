//! Contacts: the server's side of the sync with an agent (rule 9 of the domain).
//!
//! The protocol is written down in `gk_model::contact`. State only moves forward: a session is issued once, a sequence
//! number is applied once, and whatever does not fit is answered with what would.

use gk_model::contact::{Contact, ContactBody, Session};
use gk_model::id::{InstanceId, InstanceRef};
use gk_model::listener::Digest;
use gk_model::time::Timestamp;
use uuid::Uuid;

use crate::beats::{Applied, ContactTimes};
use crate::error::{Error, Refusal};
use crate::listeners::Observation;
use crate::tx::{Reader, Tx};
use crate::value::{Json, values};

/// What the database holds about the sync with one agent.
struct SyncState {
    session: Session,
    opening: Option<Uuid>,
    sequence: u64,
    digest: Digest,
}

impl Reader<'_> {
    fn get_sync_state(&mut self, instance: InstanceId) -> Result<SyncState, Error> {
        let sql = "select session, opening, sequence, digest from instance where id = $1 and left_at is null";
        let row = self.query_one(sql, values![instance])?;
        let mut row = row.ok_or(Refusal::NoSuchInstance(InstanceRef::Id(instance)))?;
        Ok(SyncState {
            session: row.take()?,
            opening: row.take()?,
            sequence: row.take()?,
            digest: row.take()?,
        })
    }
}

impl Tx<'_> {
    /// Applies a contact: at most once, in order, and only from whoever holds the newest session.
    ///
    /// # Errors
    /// [`Refusal::NoSuchInstance`]; [`Refusal::IdentitySuperseded`] for an older session;
    /// [`Refusal::OpensWithoutReport`].
    pub(crate) fn apply_contact(
        &mut self,
        instance: InstanceId,
        contact: &Contact,
        received_at: Timestamp,
    ) -> Result<Applied, Error> {
        let state = admit(self.get_sync_state(instance)?, contact)?;
        let repeated = contact.sequence <= state.sequence;
        let observation = Observation { instance, received_at, sent_at: contact.sent_at };
        let applied = match &contact.body {
            ContactBody::Heartbeat => None,
            _ if repeated => None,
            ContactBody::Delta { base, .. } if *base != state.sequence => None,
            ContactBody::Delta { listeners, closed, occupied, .. } => {
                let digest = self.apply_delta(&observation, state.digest, listeners, closed)?;
                Some((digest, occupied.as_ref()))
            }
            ContactBody::Report { covered, listeners, closed, occupied } => {
                let digest = self.apply_report(&observation, covered, listeners, closed)?;
                Some((digest, Some(occupied)))
            }
        };
        let (digest, sequence) =
            applied.map_or((state.digest, state.sequence), |(digest, _)| (digest, contact.sequence));
        let occupied = applied.and_then(|(_, occupied)| occupied);
        let confirmed = digest == contact.digest && sequence == contact.sequence;
        self.later(
            "update instance set session = $2, opening = $3, sequence = $4, digest = $5, last_contact_at = $6, \
             observed_at = coalesce(cast($7 as bigint), observed_at), occupied = coalesce($8, occupied) where id = $1",
            values![
                instance,
                state.session,
                state.opening,
                sequence,
                digest,
                received_at,
                confirmed.then_some(received_at),
                occupied.map(Json),
            ],
        )?;
        if occupied.is_some() {
            self.maps.forget(instance);
        }
        Ok(Applied { session: state.session, sequence, digest, confirmed })
    }

    /// Writes down contacts that were only in memory; never moves a time back.
    pub(crate) fn update_contact_times(&mut self, times: &[(InstanceId, ContactTimes)]) -> Result<(), Error> {
        for (instance, times) in times {
            self.later(
                "update instance set last_contact_at = $2, observed_at = coalesce(cast($3 as bigint), observed_at) \
                 where id = $1 and left_at is null and coalesce(last_contact_at, 0) <= $2",
                values![*instance, times.last_contact_at, times.observed_at],
            )?;
        }
        Ok(())
    }
}

/// The state a contact may build on: the session it belongs to, or the new one it opens.
///
/// A session *newer* than ours means that the server was restored from an older backup. The agent is the one that kept
/// on moving forward, so its number is taken over, and nothing known about the set is trusted.
fn admit(state: SyncState, contact: &Contact) -> Result<SyncState, Refusal> {
    let presented = contact.session;
    let repeats_opening = contact.opening.is_some()
        && contact.opening == state.opening
        && state.session == Session(presented.0.saturating_add(1));
    if repeats_opening {
        return Ok(state);
    }
    if presented < state.session {
        return Err(Refusal::IdentitySuperseded { presented, current: state.session });
    }
    if contact.opening.is_some() {
        if !matches!(contact.body, ContactBody::Report { .. }) {
            return Err(Refusal::OpensWithoutReport(kind(&contact.body)));
        }
        let session = Session(presented.0.saturating_add(1));
        return Ok(SyncState { session, opening: contact.opening, sequence: 0, digest: Digest::default() });
    }
    if presented > state.session {
        return Ok(SyncState { session: presented, opening: None, sequence: 0, digest: Digest::default() });
    }
    Ok(state)
}

fn kind(body: &ContactBody) -> &'static str {
    match body {
        ContactBody::Heartbeat => "heartbeat",
        ContactBody::Delta { .. } => "delta",
        ContactBody::Report { .. } => "report",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(session: u64, opening: Option<Uuid>) -> SyncState {
        SyncState { session: Session(session), opening, sequence: 5, digest: Digest::default() }
    }

    fn contact(session: u64, opening: Option<Uuid>, body: ContactBody) -> Contact {
        Contact {
            session: Session(session),
            opening,
            sequence: 1,
            sent_at: Timestamp::from_micros(0),
            digest: Digest::default(),
            agent_version: "test".into(),
            body,
        }
    }

    fn report() -> ContactBody {
        ContactBody::Report { covered: vec![], listeners: vec![], closed: vec![], occupied: vec![] }
    }

    #[test]
    fn only_the_holder_of_the_newest_session_goes_on() {
        let (nonce, other) = (Some(Uuid::from_u128(1)), Some(Uuid::from_u128(2)));
        let heartbeat = || ContactBody::Heartbeat;
        // (state, contact, expected session and sequence, or refused)
        let table = [
            (state(0, None), contact(0, nonce, report()), Some((1, 0))),
            (state(3, nonce), contact(3, None, heartbeat()), Some((3, 5))),
            (state(3, nonce), contact(3, other, report()), Some((4, 0))),
            (state(3, nonce), contact(2, nonce, report()), Some((3, 5))), // the answer was lost
            (state(3, nonce), contact(2, other, report()), None),         // a clone opens
            (state(3, nonce), contact(2, None, heartbeat()), None),       // a clone goes on
            (state(3, nonce), contact(1, nonce, report()), None),
            (state(3, None), contact(3, other, heartbeat()), None), // opening needs a report
            (state(3, nonce), contact(7, None, heartbeat()), Some((7, 0))), // the server was restored
            (state(3, nonce), contact(7, other, report()), Some((8, 0))),
        ];
        for (number, (state, contact, expected)) in table.into_iter().enumerate() {
            let admitted = admit(state, &contact).ok().map(|state| (state.session.0, state.sequence));
            assert_eq!(admitted, expected, "row {number}");
        }
    }
}
