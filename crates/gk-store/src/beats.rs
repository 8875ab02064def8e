//! Heartbeats in memory: an unchanged one costs no transaction.
//!
//! For every instance heard of since the start this holds what the last contact confirmed. A heartbeat that confirms
//! the same again only moves two times here; they reach the database in bulk, every other second. After a crash the
//! times are a little old, and the next heartbeat mends them. Nothing else is kept only here.
//!
//! With several servers, one may take a heartbeat for the newest that comes again after its agent has gone on with another
//! server, by a report in which nothing changed. No agent waits for that answer any more.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use gk_model::contact::{Contact, ContactAnswer, ContactBody, Session};
use gk_model::id::{InstanceId, TokenId};
use gk_model::instance::{HEARTBEAT_EVERY, RENEW_CREDENTIAL_AFTER};
use gk_model::listener::Digest;
use gk_model::secret::SecretHash;
use gk_model::time::Timestamp;

/// What the database holds about the sync with an agent, after a contact was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Whose contact it was: another credential has to show itself to the database.
    pub(crate) credential: SecretHash,
    /// Since when it is the instance's.
    pub(crate) credential_at: Timestamp,
    pub(crate) session: Session,
    pub(crate) sequence: u64,
    pub(crate) digest: Digest,
    /// Whether the agent sees the whole home namespace.
    pub(crate) complete: bool,
    /// Whether agent and server mean the same set.
    pub(crate) confirmed: bool,
}

impl Applied {
    /// Whether what is stored was seen to be true as of this contact.
    pub(crate) fn is_observation(&self) -> bool {
        self.confirmed && self.complete
    }

    /// What the agent is told.
    pub(crate) fn answer(&self, now: Timestamp) -> ContactAnswer {
        ContactAnswer {
            session: self.session,
            acknowledged: self.sequence,
            want_report: !self.confirmed,
            heartbeat_seconds: u32::try_from(HEARTBEAT_EVERY.as_secs()).unwrap_or(u32::MAX),
            previous: None,
            renew_credential: now.since(self.credential_at) >= RENEW_CREDENTIAL_AFTER,
        }
    }
}

/// When an instance was last heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ContactTimes {
    pub(crate) last_contact_at: Timestamp,
    pub(crate) observed_at: Option<Timestamp>,
}

/// What a batch changes about heartbeats, to be applied once it is committed.
#[derive(Clone, Copy)]
pub(crate) enum BeatChange {
    /// A contact went through the database.
    Applied(InstanceId, Applied, Timestamp),
    /// The identity of the instance ended or began anew.
    Ended(InstanceId),
    /// The instance was found offline: its next contact is to go through the database.
    Silent(InstanceId),
    /// A token ended.
    Revoked(TokenId),
}

struct Beat {
    applied: Applied,
    times: ContactTimes,
    unwritten: bool,
}

#[derive(Default)]
pub(crate) struct Beats(Mutex<HashMap<InstanceId, Beat>>);

impl Beats {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<InstanceId, Beat>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a heartbeat that says what is known already; `None` when the database has to be asked.
    pub(crate) fn confirm(
        &self,
        instance: InstanceId,
        credential: SecretHash,
        contact: &Contact,
        now: Timestamp,
    ) -> Option<ContactAnswer> {
        let mut beats = self.lock();
        let beat = beats.get_mut(&instance)?;
        let known = (beat.applied.session, beat.applied.sequence, beat.applied.digest);
        let same = beat.applied.confirmed
            && beat.applied.credential == credential
            && known == (contact.session, contact.sequence, contact.digest);
        if !same || contact.body != ContactBody::Heartbeat || contact.opening.is_some() {
            return None;
        }
        beat.times.last_contact_at = beat.times.last_contact_at.max(now);
        if beat.applied.is_observation() {
            beat.times.observed_at = beat.times.observed_at.max(Some(now));
        }
        beat.unwritten = true;
        Some(beat.applied.answer(now))
    }

    /// What a batch has changed, once it is committed. Only the writer's thread calls this, in the order of commits, so
    /// nothing older ever takes the place of what other servers made known.
    pub(crate) fn apply(&self, change: BeatChange) {
        match change {
            BeatChange::Applied(instance, applied, at) => self.note(instance, applied, at),
            BeatChange::Ended(instance) | BeatChange::Silent(instance) => self.forget(instance),
            BeatChange::Revoked(_) => {}
        }
    }

    fn note(&self, instance: InstanceId, applied: Applied, now: Timestamp) {
        let mut beats = self.lock();
        let before = beats.get(&instance).and_then(|known| known.times.observed_at);
        let observed_at = if applied.is_observation() { Some(now) } else { before };
        let times = ContactTimes { last_contact_at: now, observed_at };
        beats.insert(instance, Beat { applied, times, unwritten: true });
    }

    /// Drops what is known of an instance: its identity starts anew.
    pub(crate) fn forget(&self, instance: InstanceId) {
        self.lock().remove(&instance);
    }

    /// What is known may not be true any more: every next heartbeat goes through the database. The times stay, since they
    /// may not be written down yet.
    pub(crate) fn doubt(&self) {
        self.lock().values_mut().for_each(|beat| beat.applied.confirmed = false);
    }

    /// The newest times, if newer ones than the database's are known.
    pub(crate) fn times(&self, instance: InstanceId) -> Option<ContactTimes> {
        self.lock().get(&instance).map(|beat| beat.times)
    }

    pub(crate) fn list_unwritten(&self) -> Vec<(InstanceId, ContactTimes)> {
        let beats = self.lock();
        beats.iter().filter(|(_, beat)| beat.unwritten).map(|(id, beat)| (*id, beat.times)).collect()
    }

    /// Marks what was written, unless it moved on meanwhile.
    pub(crate) fn mark_written(&self, written: &[(InstanceId, ContactTimes)]) {
        let mut beats = self.lock();
        for (instance, times) in written {
            if let Some(beat) = beats.get_mut(instance) {
                beat.unwritten = beat.times != *times;
            }
        }
    }
}
