//! What the agent knows about its talk with the server, and how answers change it. Pure.
//!
//! The rule that keeps both sides equal: **one contact at a time, and an unanswered one is sent again unchanged** until
//! it is answered or refused. So a sequence number never stands for two different contents, and it makes no difference
//! whether the request or its answer was lost: the server takes the number once and acknowledges it twice.
//! What happens meanwhile waits in the journal and goes into the next contacts, in order.
//!
//! - An answer that acknowledges exactly the number sent means: taken. Any other number means that the server is not
//!   where the agent left it (restored from a backup, say): the agent goes above both numbers, with a full report.
//! - What a refused contact would have told goes back into the journal, and a report with a higher number follows.
//! - A heartbeat tells nothing, so a lost one is forgotten.
//! - The opening report has the number one and repeats its nonce, also in the next run of the agent. That may have
//!   other contents than the one the server took, so a repeated opening is followed by one more report.
//! - The digest is that of the last report taken, carried on by every delta taken: exactly what the server holds of the
//!   parts that report covered. Changes in any other part need a report that covers it.
//!
//! No contact names a listener both as there and as gone: where it came back, a report tells that it is there, and of
//! deltas it takes two.
//!
//! Intervals are counted on `elapsed`, the monotonic time since the agent started, so that stepping the clock neither
//! delays nor repeats a contact; timestamps are only written into contacts.

use std::collections::BTreeSet;
use std::time::Duration;

use gk_client::session::{OPENING_SEQUENCE, SavedSession};
use gk_model::contact::{Contact, ContactAnswer, ContactBody, Occupied, Part, Session};
use gk_model::instance::HEARTBEAT_EVERY;
use gk_model::listener::Digest;
use gk_model::text::Observed;
use gk_model::time::Timestamp;
use uuid::Uuid;

use crate::backoff::Backoff;
use crate::failure::{Failure, Verdict};
use crate::journal::Journal;
use crate::plan::Action;
use crate::view::{Snapshot, Step, View};

/// A contact on its way, and the changes it tells.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    pub(crate) contact: Contact,
    step: Step,
}

impl Flight {
    fn is_heartbeat(&self) -> bool {
        matches!(self.contact.body, ContactBody::Heartbeat)
    }

    fn is_report(&self) -> bool {
        matches!(self.contact.body, ContactBody::Report { .. })
    }
}

/// What the agent is set to do.
#[derive(Clone, Debug)]
pub(crate) struct Habits {
    /// How long from one full report to the next.
    pub(crate) report_every: Duration,
    /// What it says its version is.
    pub(crate) version: Observed,
}

/// All that [`crate::plan::plan`] decides by.
#[derive(Debug)]
pub(crate) struct SyncState {
    pub(crate) habits: Habits,
    pub(crate) view: View,
    pub(crate) journal: Journal,
    pub(crate) backoff: Backoff,
    session: Session,
    /// The nonce, until a session is open.
    opening: Option<Uuid>,
    /// Whether a report with this nonce may have been taken that was not the one sent now.
    opening_repeated: bool,
    opening_sent: bool,
    acknowledged: u64,
    next_sequence: u64,
    digest: Digest,
    reported: BTreeSet<Part>,
    told_occupied: Vec<Occupied>,
    /// From when on a report is wanted.
    pub(crate) report_wanted_at: Option<Duration>,
    /// An unanswered contact that is to be sent again.
    unanswered: Option<Flight>,
    /// Whether a contact is on its way.
    pub(crate) is_sending: bool,
    pub(crate) last_contact: Duration,
    pub(crate) last_report: Duration,
    pub(crate) heartbeat_every: Duration,
}

impl SyncState {
    /// Of an agent that has just started and goes on from `saved`, which already holds the nonce to open with.
    ///
    /// `repeats` tells that the nonce is from an earlier run, whose opening may have been taken.
    pub(crate) fn new(saved: SavedSession, repeats: bool, habits: Habits) -> SyncState {
        let seed = saved.opening.map_or(0, |nonce| nonce.as_u64_pair().1);
        SyncState {
            habits,
            view: View::default(),
            journal: Journal::default(),
            backoff: Backoff::new(seed),
            session: saved.session,
            opening: saved.opening,
            opening_repeated: false,
            opening_sent: repeats,
            acknowledged: 0,
            next_sequence: OPENING_SEQUENCE + 1,
            digest: Digest::default(),
            reported: BTreeSet::new(),
            told_occupied: Vec::new(),
            report_wanted_at: None,
            unanswered: None,
            is_sending: false,
            last_contact: Duration::ZERO,
            last_report: Duration::ZERO,
            heartbeat_every: HEARTBEAT_EVERY,
        }
    }

    /// Takes in a scan.
    pub(crate) fn observe(&mut self, snapshot: Snapshot, now: Timestamp) {
        let step = self.view.observe(snapshot, now);
        self.journal.push(step);
    }

    /// The session, as it is to be found after a crash.
    pub(crate) fn saved(&self) -> SavedSession {
        SavedSession { session: self.session, opening: self.opening }
    }

    pub(crate) fn is_opening(&self) -> bool {
        self.opening.is_some()
    }

    pub(crate) fn has_unanswered(&self) -> bool {
        self.unanswered.is_some()
    }

    pub(crate) fn is_reported(&self, part: Part) -> bool {
        self.reported.contains(&part)
    }

    /// Whether listeners are seen in a part that the last report did not cover.
    pub(crate) fn sees_unreported(&self) -> bool {
        !self.view.covered().is_subset(&self.reported)
            && self.view.listeners().any(|listener| !self.is_reported(listener.key.part()))
    }

    /// Whether the server knows other occupied ports than the agent.
    pub(crate) fn occupied_differ(&self) -> bool {
        self.told_occupied != self.view.occupied()
    }

    /// Makes the contact that an action asks for. It is on its way until [`SyncState::answered`] or
    /// [`SyncState::failed`] takes it back.
    pub(crate) fn compose(&mut self, action: Action, now: Timestamp) -> Option<Flight> {
        let mut flight = match action {
            Action::Nothing { .. } => None,
            Action::Again => self.unanswered.take(),
            Action::Heartbeat => Some(self.heartbeat(now)),
            Action::Delta { steps } => Some(self.delta(steps, now)),
            Action::Report { .. } => Some(self.report(now)),
        };
        if let Some(flight) = &mut flight {
            // Not part of what is told: the server measures the clock by it, so it is that of this try.
            flight.contact.sent_at = now;
        }
        self.is_sending = flight.is_some();
        flight
    }

    fn contact(&self, sequence: u64, digest: Digest, now: Timestamp, body: ContactBody) -> Contact {
        let (session, opening) = (self.session, self.opening);
        let agent_version = self.habits.version.clone();
        Contact { session, opening, sequence, sent_at: now, digest, agent_version, body }
    }

    fn heartbeat(&self, now: Timestamp) -> Flight {
        let contact = self.contact(self.acknowledged, self.digest, now, ContactBody::Heartbeat);
        Flight { contact, step: Step::default() }
    }

    fn delta(&mut self, steps: usize, now: Timestamp) -> Flight {
        let step = self.journal.take(steps);
        let mut digest = self.digest;
        step.carry(&mut digest);
        let body = ContactBody::Delta {
            base: self.acknowledged,
            listeners: step.listeners(),
            closed: step.closed(),
            occupied: self.occupied_differ().then(|| self.view.occupied().to_vec()),
        };
        let sequence = self.take_sequence();
        Flight { contact: self.contact(sequence, digest, now, body), step }
    }

    fn report(&mut self, now: Timestamp) -> Flight {
        let step = self.journal.take_all();
        let listeners: Vec<_> = self.view.listeners().cloned().collect();
        let digest = Digest::of(&listeners);
        let body = ContactBody::Report {
            covered: self.view.covered().iter().copied().collect(),
            listeners,
            closed: step.closed(),
            occupied: self.view.occupied().to_vec(),
        };
        let sequence = if self.is_opening() { OPENING_SEQUENCE } else { self.take_sequence() };
        if self.is_opening() {
            self.opening_repeated |= self.opening_sent;
            self.opening_sent = true;
        }
        Flight { contact: self.contact(sequence, digest, now, body), step }
    }

    fn take_sequence(&mut self) -> u64 {
        self.next_sequence += 1;
        self.next_sequence - 1
    }

    /// Takes back a contact that was answered.
    pub(crate) fn answered(&mut self, flight: Flight, answer: &ContactAnswer, elapsed: Duration) {
        let is_opening = flight.contact.opening.is_some();
        let same_session = is_opening || answer.session == flight.contact.session;
        let is_taken = same_session && answer.acknowledged == flight.contact.sequence;
        let was_repeated = is_opening && std::mem::take(&mut self.opening_repeated);
        let is_sure = is_taken && !was_repeated;
        self.is_sending = false;
        self.backoff.succeed();
        self.session = answer.session;
        self.opening = None;
        self.acknowledged = answer.acknowledged;
        self.next_sequence = self.next_sequence.max(answer.acknowledged.saturating_add(1));
        self.heartbeat_every = heartbeat_of(answer);
        self.last_contact = elapsed;
        if !is_sure || answer.want_report {
            self.want_report(flight.is_report() && is_sure, elapsed);
        } else if flight.is_report() {
            self.report_wanted_at = None;
        }
        if is_taken {
            self.taken(flight, elapsed);
        } else {
            self.journal.put_back(flight.step);
        }
    }

    /// A report is wanted: now, but if a report was just taken and did not help, then not before the next heartbeat, so
    /// that two programs that disagree about a digest do not shout at each other.
    fn want_report(&mut self, was_of_no_help: bool, elapsed: Duration) {
        let pause = if was_of_no_help { self.heartbeat_every } else { Duration::ZERO };
        self.report_wanted_at = Some(elapsed + pause);
    }

    fn taken(&mut self, flight: Flight, elapsed: Duration) {
        self.digest = flight.contact.digest;
        match flight.contact.body {
            ContactBody::Heartbeat => {}
            ContactBody::Delta { occupied, .. } => {
                if let Some(occupied) = occupied {
                    self.told_occupied = occupied;
                }
            }
            ContactBody::Report { covered, occupied, .. } => {
                self.reported = covered.into_iter().collect();
                self.told_occupied = occupied;
                self.last_report = elapsed;
            }
        }
    }

    /// Takes back a contact that failed, and tells what that means.
    pub(crate) fn failed(&mut self, flight: Flight, failure: Failure, elapsed: Duration) -> Verdict {
        self.is_sending = false;
        match failure {
            Failure::Ended(ending) => return Verdict::End(ending),
            Failure::Refused => {
                self.journal.put_back(flight.step);
                self.report_wanted_at = Some(elapsed);
                self.backoff.fail(elapsed);
            }
            Failure::Away => {
                self.keep(flight);
                self.backoff.fail(elapsed);
            }
            Failure::Unknown => {
                self.keep(flight);
                self.backoff.fail_slowly(elapsed);
            }
        }
        Verdict::TryAgain
    }

    fn keep(&mut self, flight: Flight) {
        if !flight.is_heartbeat() {
            self.unanswered = Some(flight);
        }
    }
}

/// The pause that the server asks for, within reason: a word of it can neither stop the agent nor make it a flood.
fn heartbeat_of(answer: &ContactAnswer) -> Duration {
    Duration::from_secs(u64::from(answer.heartbeat_seconds.clamp(1, 3_600)))
}
