//! Contacts: the server's side of the sync with an agent (rule 9 of the domain).
//!
//! The protocol is written down in `gk_model::contact`. State only moves forward: a session is issued once, a sequence
//! number is applied once, and whatever does not fit is answered with what would.

use gk_model::contact::{Contact, ContactAnswer, ContactBody, Family, Occupied, Part, Piece, Session};
use gk_model::id::{InstanceId, InstanceRef};
use gk_model::listener::{Digest, Netns};
use gk_model::port::Protocol;
use gk_model::secret::SecretHash;
use gk_model::text::Subject;
use gk_model::time::Timestamp;
use uuid::Uuid;

use crate::beats::{Applied, BeatChange, ContactTimes};
use crate::error::{Error, Refusal};
use crate::listeners::{Covered, Observation};
use crate::tx::{Reader, Tx};
use crate::value::{Json, Value, values};

/// What the database holds about the sync with one agent.
struct SyncState {
    session: Session,
    opening: Option<Uuid>,
    sequence: u64,
    digest: Digest,
    /// Whether the last report covered the whole home namespace: only then is silence about a port an observation.
    complete: bool,
    /// How far the session before had come.
    previous: Option<u64>,
}

impl SyncState {
    /// At the beginning of a session, when nothing is known of the agent's set.
    fn new(session: Session, opening: Option<Uuid>, previous: Option<u64>) -> SyncState {
        SyncState { session, opening, sequence: 0, digest: Digest::default(), complete: false, previous }
    }
}

/// Everything about an instance that a contact may build on.
struct Known {
    state: SyncState,
    /// Since when it has its credential.
    credential_at: Timestamp,
    subject: Subject,
    /// The ports it occupies without a listener, as they are stored.
    occupied: String,
    /// Since when it is offline, if that was written down.
    offline_since: Option<Timestamp>,
    /// When its listeners were last confirmed; where they never were, when it was last heard of, or joined.
    watched_at: Timestamp,
}

impl Reader<'_> {
    /// The credential is looked at once more, because it may have been replaced since the door let the caller in.
    fn get_known(&mut self, instance: InstanceId, credential: SecretHash) -> Result<Known, Error> {
        let sql = "select credential, previous_credential, coalesce(credential_at, joined_at), session, opening, \
                   sequence, digest, complete, previous_sequence, subject, occupied, \
                   offline_since, coalesce(observed_at, last_contact_at, joined_at) \
                   from instance where id = $1 and left_at is null";
        let row = self.query_one(sql, values![instance])?;
        let mut row = row.ok_or(Refusal::NoSuchInstance(InstanceRef::Id(instance)))?;
        let valid: [Option<SecretHash>; 2] = [row.take()?, row.take()?];
        if !valid.contains(&Some(credential)) {
            return Err(Refusal::CredentialReplaced.into());
        }
        let credential_at = row.take()?;
        let state = SyncState {
            session: row.take()?,
            opening: row.take()?,
            sequence: row.take()?,
            digest: row.take()?,
            complete: row.take()?,
            previous: row.take()?,
        };
        let (subject, occupied, offline_since) = (row.take()?, row.take()?, row.take()?);
        let stored: Timestamp = row.take()?;
        let observed_at = self.shared.beats.times(instance).and_then(|times| times.observed_at);
        let watched_at = stored.max(observed_at.unwrap_or(stored));
        Ok(Known { state, credential_at, subject, occupied, offline_since, watched_at })
    }
}

impl Tx<'_> {
    /// Applies a contact: at most once, in order, and only from whoever holds the newest session.
    ///
    /// # Errors
    /// [`Refusal::NoSuchInstance`]; [`Refusal::CredentialReplaced`]; [`Refusal::IdentitySuperseded`] for an older session;
    /// [`Refusal::OpensWithoutReport`].
    pub(crate) fn apply_contact(
        &mut self,
        instance: InstanceId,
        credential: SecretHash,
        contact: &Contact,
        received_at: Timestamp,
    ) -> Result<ContactAnswer, Error> {
        let known = self.get_known(instance, credential)?;
        let Known { state, credential_at, subject, occupied: occupied_before, offline_since, watched_at } =
            known;
        let session_before = state.session;
        let before = admit(state, contact)?;
        if let Some(since) = offline_since {
            self.record_online(instance, &subject, since, received_at)?;
        }
        if begins_anew(session_before, &before, contact) {
            self.record_gap(instance, watched_at, received_at)?;
        }
        let observation = Observation { instance, subject, received_at, sent_at: contact.sent_at };
        let (after, occupied) = self.apply_body(&observation, before, contact)?;
        let applied = Applied {
            credential,
            credential_at,
            session: after.session,
            sequence: after.sequence,
            digest: after.digest,
            complete: after.complete,
            confirmed: after.digest == contact.digest && after.sequence == contact.sequence,
        };
        let occupied = occupied.map(|occupied| Value::from(Json(occupied)));
        let occupied = occupied.filter(|now| *now != Value::from(occupied_before));
        let is_occupied_otherwise = occupied.is_some();
        self.later(
            "update instance set session = $2, opening = $3, sequence = $4, digest = $5, complete = $6, \
             last_contact_at = $7, observed_at = coalesce(cast($8 as bigint), observed_at), \
             occupied = coalesce(cast($9 as text), occupied), previous_sequence = cast($10 as bigint), \
             offline_since = null where id = $1",
            values![
                instance,
                after.session,
                after.opening,
                after.sequence,
                after.digest,
                after.complete,
                received_at,
                applied.is_observation().then_some(received_at),
                occupied,
                after.previous,
            ],
        )?;
        if is_occupied_otherwise {
            self.maps.forget(instance);
        }
        // Other servers may have the ports in a map, or answer heartbeats of the older session from memory.
        if is_occupied_otherwise || after.session != session_before {
            self.note_change(instance)?;
        }
        self.beats.push(BeatChange::Applied(instance, applied, received_at));
        Ok(ContactAnswer {
            previous: after.previous.filter(|_| contact.opening.is_some()),
            ..applied.answer(received_at)
        })
    }

    /// Applies what a contact tells, if it is next in line; otherwise nothing changes. Also answers the occupied ports,
    /// if it told them.
    fn apply_body<'c>(
        &mut self,
        observation: &Observation,
        before: SyncState,
        contact: &'c Contact,
    ) -> Result<(SyncState, Option<&'c Vec<Occupied>>), Error> {
        let is_repeat = contact.sequence <= before.sequence;
        let (digest, complete, occupied) = match &contact.body {
            ContactBody::Heartbeat => return Ok((before, None)),
            _ if is_repeat => return Ok((before, None)),
            ContactBody::Delta { base, .. } if *base != before.sequence => return Ok((before, None)),
            ContactBody::Delta { listeners, closed, occupied, churned, .. } => {
                self.record_churn(observation, churned)?;
                let digest = self.apply_delta(observation, before.digest, listeners, closed)?;
                (digest, before.complete, occupied.as_ref())
            }
            ContactBody::Report { piece: Piece { base: Some(base), .. }, .. } if *base != before.sequence => {
                return Ok((before, None));
            }
            ContactBody::Report {
                seen_at,
                covered,
                listeners,
                closed,
                occupied,
                churned,
                piece,
                namespaces,
            } => {
                self.record_churn(observation, churned)?;
                let is_first = piece.base.is_none();
                let digest = if is_first { Digest::default() } else { before.digest };
                let namespaces = namespaces.as_deref();
                let covered = Covered { parts: covered, piece, namespaces, seen_at: *seen_at };
                let digest = self.apply_report(observation, digest, &covered, listeners, closed)?;
                let complete = piece.is_last() && covers_home(covered.parts);
                (digest, complete, is_first.then_some(occupied))
            }
        };
        Ok((SyncState { sequence: contact.sequence, digest, complete, ..before }, occupied))
    }

    /// Writes down contacts that were only in memory; never moves a time back.
    pub(crate) fn update_contact_times(&mut self, times: &[(InstanceId, ContactTimes)]) -> Result<(), Error> {
        for (instance, times) in times {
            self.later(
                "update instance set last_contact_at = $2, \
                 observed_at = case when coalesce(observed_at, 0) > coalesce(cast($3 as bigint), 0) then observed_at \
                 else cast($3 as bigint) end \
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
            return Err(Refusal::OpensWithoutReport(contact.body.kind()));
        }
        let session = Session(presented.0.saturating_add(1));
        // Of a session that this database never had, nothing is stored.
        let previous = if presented == state.session { state.sequence } else { 0 };
        return Ok(SyncState::new(session, contact.opening, Some(previous)));
    }
    if presented == Session(0) {
        return Err(Refusal::OpensWithoutReport(contact.body.kind()));
    }
    if presented > state.session {
        return Ok(SyncState::new(presented, None, None));
    }
    Ok(state)
}

/// Whether nobody can say what was between the contact before and this one, which says what is: it opens a session, or what
/// came in between never came here. An opening that is repeated may be that of an agent that was killed at once.
fn begins_anew(session_before: Session, before: &SyncState, contact: &Contact) -> bool {
    let is_whole = matches!(&contact.body, ContactBody::Report { piece: Piece { base: None, .. }, .. });
    let opens = contact.opening.is_some() && contact.sequence >= before.sequence;
    let follows = before.session == session_before && contact.sequence == before.sequence.saturating_add(1);
    is_whole && (opens || contact.sequence > before.sequence && !follows)
}

/// Whether every protocol and family of the home namespace is there.
fn covers_home(covered: &[Part]) -> bool {
    let families = |protocol: &Protocol| {
        let part = |family: &Family| Part { netns: Netns::Home, protocol: *protocol, family: *family };
        Family::ALL.iter().map(part).collect::<Vec<Part>>()
    };
    Protocol::ALL.iter().flat_map(families).all(|part| covered.contains(&part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(session: u64, opening: Option<Uuid>) -> SyncState {
        SyncState { sequence: 5, complete: true, ..SyncState::new(Session(session), opening, None) }
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
        ContactBody::Report {
            seen_at: None,
            covered: vec![],
            listeners: vec![],
            closed: vec![],
            occupied: vec![],
            churned: vec![],
            piece: Piece::default(),
            namespaces: None,
        }
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
            (state(0, None), contact(0, None, heartbeat()), None),        // nothing was opened
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
