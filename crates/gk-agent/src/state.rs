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
//!   other contents than the one the server took, so a repeated opening is followed by one more report. So an opening
//!   tells nothing that may be told once only: it tells what the first scan found, or, when there is history to tell
//!   from before it was made, nothing at all, and covers nothing. Then the history follows in deltas ("catching up"), and
//!   then a report.
//! - A report that is too large for a contact goes in pieces, one after the other. What is gone, and what is counted,
//!   goes with the first.
//! - The digest is that of the last report taken, carried on by every delta taken: exactly what the server holds of the
//!   parts that report covered. Changes in any other part need a report that covers it.
//!
//! No contact names a listener both as there and as gone: where it came back, a report tells that it is there, and of
//! deltas it takes two.
//!
//! Intervals are counted on `elapsed`, the monotonic time since the agent started, so that stepping the clock neither
//! delays nor repeats a contact; timestamps are only written into contacts.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use gk_client::session::{OPENING_SEQUENCE, SavedSession};
use gk_model::contact::{Contact, ContactAnswer, ContactBody, Occupied, PIECE_BYTES, Part, Piece, Session};
use gk_model::id::InstanceId;
use gk_model::instance::HEARTBEAT_EVERY;
use gk_model::listener::{Digest, Listener, Netns};
use gk_model::text::Observed;
use gk_model::time::Timestamp;
use uuid::Uuid;

use crate::backoff::Backoff;
use crate::failure::{Failure, Verdict};
use crate::flaps::Flaps;
use crate::journal::Journal;
use crate::keep::Keep;
use crate::pace::Pace;
use crate::plan::Action;
use crate::step::Step;
use crate::view::{Snapshot, View};

/// A contact on its way.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    pub(crate) contact: Contact,
}

impl Flight {
    fn is_heartbeat(&self) -> bool {
        matches!(self.contact.body, ContactBody::Heartbeat)
    }

    /// Whether it ends a report, which may be its only piece.
    pub(crate) fn ends_report(&self) -> bool {
        matches!(&self.contact.body, ContactBody::Report { piece, .. } if piece.is_last())
    }
}

/// What the agent is set to do.
#[derive(Clone, Debug)]
pub(crate) struct Habits {
    /// How long from one full report to the next.
    pub(crate) report_every: Duration,
    /// What it says its version is.
    pub(crate) version: Observed,
    /// Whose listeners it tells of.
    pub(crate) instance: InstanceId,
}

/// All that [`crate::plan::plan`] decides by.
#[derive(Debug)]
pub(crate) struct SyncState {
    pub(crate) habits: Habits,
    pub(crate) view: View,
    pub(crate) journal: Journal,
    pub(crate) flaps: Flaps,
    pub(crate) keep: Keep,
    pub(crate) pace: Pace,
    pub(crate) backoff: Backoff,
    /// What the contact tells that is on its way or unanswered, and its number if that is its own.
    pub(crate) told: Step,
    pub(crate) told_number: Option<u64>,
    /// Whether the spool has to be written anew.
    pub(crate) is_spool_old: bool,
    /// Whether something happened since the first scan, or before it, that an opening must not tell.
    pub(crate) has_history: bool,
    /// Whether history is told that is older than what the server was told to be complete for.
    catching_up: bool,
    /// When the newest scan was made.
    seen_at: Timestamp,
    /// The rest of a report that goes in pieces, and the parts it covers.
    pieces: VecDeque<(Piece, Vec<Listener>)>,
    /// What all of its pieces say.
    covered_by_pieces: Vec<Part>,
    pieces_seen_at: Timestamp,
    namespaces_of_pieces: Option<Vec<Netns>>,
    /// Changes that could neither be told nor counted.
    pub(crate) lost: usize,
    /// Whether everything is to be told now, since the agent ends.
    pub(crate) is_in_haste: bool,
    pub(crate) session: Session,
    /// The nonce, until a session is open.
    opening: Option<Uuid>,
    /// Whether a report with this nonce may have been taken that was not the one sent now.
    opening_repeated: bool,
    opening_sent: bool,
    pub(crate) acknowledged: u64,
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
    pub(crate) sent_at: Duration,
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
            keep: Keep::new(habits.instance),
            habits,
            view: View::default(),
            journal: Journal::default(),
            flaps: Flaps::default(),
            pace: Pace::default(),
            backoff: Backoff::new(seed),
            told: Step::default(),
            told_number: None,
            is_spool_old: false,
            has_history: false,
            catching_up: false,
            pieces: VecDeque::new(),
            seen_at: Timestamp::from_micros(0),
            covered_by_pieces: Vec::new(),
            pieces_seen_at: Timestamp::from_micros(0),
            namespaces_of_pieces: None,
            lost: 0,
            is_in_haste: false,
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
            sent_at: Duration::ZERO,
            last_contact: Duration::ZERO,
            last_report: Duration::ZERO,
            heartbeat_every: HEARTBEAT_EVERY,
        }
    }

    /// Takes in a scan.
    pub(crate) fn observe(&mut self, snapshot: Snapshot, now: Timestamp, elapsed: Duration) {
        let due = self.flaps.due(elapsed);
        self.push(due, elapsed);
        let is_first = self.view.is_new();
        self.seen_at = now;
        let mut step = self.view.observe(snapshot, now);
        if !is_first {
            step = self.flaps.pass(step, elapsed);
        }
        self.has_history |= !is_first && !step.is_empty();
        self.push(step, elapsed);
        self.doubt_silence(elapsed);
    }

    /// The agent ends: nothing is held back any longer.
    pub(crate) fn make_haste(&mut self, elapsed: Duration) {
        self.is_in_haste = true;
        self.release_held(elapsed);
    }

    fn release_held(&mut self, elapsed: Duration) {
        let held = self.flaps.take_all();
        self.push(held, elapsed);
    }

    /// The session, as it is to be found after a crash.
    pub(crate) fn saved(&self) -> SavedSession {
        SavedSession { session: self.session, opening: self.opening }
    }

    pub(crate) fn is_opening(&self) -> bool {
        self.opening.is_some()
    }

    /// Whether a report was begun and not yet told to its end.
    pub(crate) fn has_pieces(&self) -> bool {
        !self.pieces.is_empty()
    }

    /// Whether the journal is to be told step by step, whatever the server thinks of the sum.
    pub(crate) fn is_catching_up(&self) -> bool {
        self.catching_up
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
            && self.view.parts().any(|part| !self.is_reported(part))
    }

    /// Whether the server knows other occupied ports than the agent.
    pub(crate) fn occupied_differ(&self) -> bool {
        self.told_occupied != self.view.occupied()
    }

    /// Makes the contact that an action asks for. It is on its way until [`SyncState::answered`] or
    /// [`SyncState::failed`] takes it back.
    pub(crate) fn compose(&mut self, action: Action, now: Timestamp, elapsed: Duration) -> Option<Flight> {
        let mut contact = match action {
            Action::Nothing { .. } => return None,
            Action::Again => self.unanswered.take()?.contact,
            Action::Heartbeat => self.contact(self.acknowledged, self.digest, now, ContactBody::Heartbeat),
            Action::Delta { steps } => self.delta(steps, now, elapsed),
            Action::Report { opening: true } if self.must_catch_up() => self.fence(now),
            Action::Report { .. } => self.report(now, elapsed),
            Action::Piece => self.next_piece(now)?,
        };
        // Not part of what is told: the server measures the clock by it, so it is that of this try.
        contact.sent_at = now;
        (self.is_sending, self.sent_at) = (true, elapsed);
        Some(Flight { contact })
    }

    fn contact(&self, sequence: u64, digest: Digest, now: Timestamp, body: ContactBody) -> Contact {
        let (session, opening) = (self.session, self.opening);
        let agent_version = self.habits.version.clone();
        Contact { session, opening, sequence, sent_at: now, digest, agent_version, body }
    }

    fn delta(&mut self, steps: usize, now: Timestamp, elapsed: Duration) -> Contact {
        self.told = self.journal.take(steps);
        if !self.catching_up {
            self.pace.tell(elapsed);
        }
        let mut digest = self.digest;
        self.told.carry(&mut digest);
        let body = ContactBody::Delta {
            base: self.acknowledged,
            listeners: self.told.listeners(),
            closed: self.told.closed(),
            occupied: self.occupied_differ().then(|| self.view.occupied().to_vec()),
            churned: self.told.churned(),
        };
        let sequence = self.take_sequence(steps);
        self.contact(sequence, digest, now, body)
    }

    /// Whether there is history that an opening must not tell.
    fn must_catch_up(&self) -> bool {
        self.has_history || self.catching_up || self.keep.has_doubt()
    }

    /// Opens a session and tells nothing, so that history can follow.
    fn fence(&mut self, now: Timestamp) -> Contact {
        self.catching_up = true;
        self.note_opening();
        let body = ContactBody::Report {
            seen_at: Some(self.seen_at),
            covered: Vec::new(),
            listeners: Vec::new(),
            closed: Vec::new(),
            occupied: self.view.occupied().to_vec(),
            churned: Vec::new(),
            piece: Piece::default(),
            namespaces: None,
        };
        self.contact(OPENING_SEQUENCE, Digest::default(), now, body)
    }

    fn note_opening(&mut self) {
        self.opening_repeated |= self.opening_sent;
        self.opening_sent = true;
    }

    fn report(&mut self, now: Timestamp, elapsed: Duration) -> Contact {
        self.release_held(elapsed);
        self.catching_up = false;
        let steps = self.journal.len();
        self.told = self.journal.take_all();
        self.pieces_seen_at = self.seen_at;
        self.namespaces_of_pieces = self.view.all_namespaces();
        self.pieces = Piece::cut(self.view.listeners().collect(), PIECE_BYTES).into();
        let (piece, listeners) = self.pieces.pop_front().unwrap_or_default();
        let digest = Digest::of(&listeners);
        let body = ContactBody::Report {
            seen_at: Some(self.seen_at),
            covered: self.view.covered().iter().copied().collect(),
            listeners,
            closed: self.told.closed(),
            occupied: self.view.occupied().to_vec(),
            churned: self.told.churned(),
            piece,
            namespaces: self.namespaces_of_pieces.clone(),
        };
        if self.is_opening() {
            self.note_opening();
            return self.contact(OPENING_SEQUENCE, digest, now, body);
        }
        let sequence = self.take_sequence(steps);
        self.contact(sequence, digest, now, body)
    }

    /// The next piece of the report whose first ones the server has.
    fn next_piece(&mut self, now: Timestamp) -> Option<Contact> {
        let (piece, listeners) = self.pieces.pop_front()?;
        let mut digest = self.digest;
        listeners.iter().for_each(|listener| digest.add(listener));
        let body = ContactBody::Report {
            seen_at: Some(self.pieces_seen_at),
            covered: self.covered_by_pieces.clone(),
            listeners,
            closed: Vec::new(),
            occupied: Vec::new(),
            churned: Vec::new(),
            piece: Piece { base: Some(self.acknowledged), ..piece },
            namespaces: self.namespaces_of_pieces.clone(),
        };
        let sequence = self.take_sequence(0);
        Some(self.contact(sequence, digest, now, body))
    }

    /// The next number, for a contact that tells so many steps.
    fn take_sequence(&mut self, steps: usize) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.told_number = Some(sequence);
        self.keep_told(sequence, steps);
        sequence
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
        let presented = self.session;
        self.session = answer.session;
        self.opening = None;
        self.acknowledged = answer.acknowledged;
        self.next_sequence = self.next_sequence.max(answer.acknowledged.saturating_add(1));
        self.heartbeat_every = heartbeat_of(answer);
        self.last_contact = elapsed;
        if !is_sure || answer.want_report {
            self.pieces.clear();
            self.want_report(flight.ends_report() && is_sure, elapsed);
        } else if flight.ends_report() {
            self.report_wanted_at = None;
        }
        if is_taken {
            self.taken(flight, elapsed);
        } else {
            self.tell_anew(elapsed);
        }
        if is_opening {
            self.settle_doubt(presented, answer, elapsed);
            if self.catching_up {
                self.want_report(false, elapsed);
            }
        }
    }

    /// What was told is told again, by other contacts.
    fn tell_anew(&mut self, elapsed: Duration) {
        self.pieces.clear();
        self.told_number = None;
        let told = std::mem::take(&mut self.told);
        self.journal.put_back(told, elapsed);
        self.is_spool_old = true;
    }

    /// A report is wanted: now, but if a report was just taken and did not help, then not before the next heartbeat, so
    /// that two programs that disagree about a digest do not shout at each other.
    fn want_report(&mut self, was_of_no_help: bool, elapsed: Duration) {
        let pause = if was_of_no_help { self.heartbeat_every } else { Duration::ZERO };
        self.report_wanted_at = Some(elapsed + pause);
    }

    fn taken(&mut self, flight: Flight, elapsed: Duration) {
        self.digest = flight.contact.digest;
        self.told = Step::default();
        if self.told_number.take().is_some() {
            self.keep_taken();
        }
        match flight.contact.body {
            ContactBody::Heartbeat => {}
            ContactBody::Delta { occupied, .. } => {
                if let Some(occupied) = occupied {
                    self.told_occupied = occupied;
                }
            }
            ContactBody::Report { covered, occupied, piece, .. } => {
                if piece.base.is_none() {
                    self.told_occupied = occupied;
                }
                // Complete only when it was told to its end.
                self.reported = BTreeSet::new();
                if piece.is_last() {
                    self.reported = covered.into_iter().collect();
                    self.last_report = elapsed;
                } else {
                    self.covered_by_pieces = covered;
                }
            }
        }
    }

    /// Takes back a contact that failed, and tells what that means.
    pub(crate) fn failed(&mut self, flight: Flight, failure: Failure, elapsed: Duration) -> Verdict {
        self.is_sending = false;
        match failure {
            Failure::Ended(ending) => return Verdict::End(ending),
            Failure::Refused => {
                self.tell_anew(elapsed);
                self.catching_up = false;
                self.report_wanted_at = Some(elapsed);
                self.backoff.fail(elapsed);
            }
            Failure::Away => {
                self.say_again(flight);
                self.backoff.fail(elapsed);
            }
            Failure::Unknown => {
                self.say_again(flight);
                self.backoff.fail_slowly(elapsed);
            }
        }
        self.begin_spool();
        Verdict::TryAgain
    }

    fn say_again(&mut self, flight: Flight) {
        if !flight.is_heartbeat() {
            self.unanswered = Some(flight);
        }
    }
}

/// The pause that the server asks for, within reason: a word of it can neither stop the agent nor make it a flood.
fn heartbeat_of(answer: &ContactAnswer) -> Duration {
    Duration::from_secs(u64::from(answer.heartbeat_seconds.clamp(1, 3_600)))
}
