//! Which part of the state is kept in the spool, and what an earlier run kept. Pure: writes are collected here and done
//! by `run`, always before the contact leaves that they are about.

use std::time::Duration;

use gk_model::contact::{ContactAnswer, PIECE_BYTES, Session};
use gk_model::id::InstanceId;

use crate::clock::Mark;
use crate::spool::{self, MOST_BYTES, Owner, Place, Spooled, Untold, Write};
use crate::state::SyncState;
use crate::step::Step;
use crate::view::View;

/// How long a contact may be under way before what it and others have to tell is kept.
const PATIENCE: Duration = Duration::from_secs(2);

/// The spool as the state knows it.
#[derive(Debug)]
pub(crate) struct Keep {
    instance: InstanceId,
    is_on: bool,
    /// What is in the file beside the base.
    bytes: usize,
    writes: Vec<Write>,
    /// What an earlier run told and did not hear of, until the server says whether it arrived.
    doubt: Option<Doubt>,
}

#[derive(Debug)]
struct Doubt {
    place: Place,
    told: Option<(u64, Step)>,
}

impl Keep {
    /// Of this instance, with nothing kept.
    pub(crate) fn new(instance: InstanceId) -> Keep {
        Keep { instance, is_on: false, bytes: 0, writes: Vec::new(), doubt: None }
    }

    fn append(&mut self, line: Vec<u8>) {
        if self.is_on {
            self.bytes += line.len();
            self.writes.push(Write::Append(line));
        }
    }

    /// Whether anything is to be told first that an earlier run had to tell.
    pub(crate) fn has_doubt(&self) -> bool {
        self.doubt.is_some()
    }
}

impl SyncState {
    /// Goes on with what an earlier run has spooled; another instance's is none of ours.
    pub(crate) fn resume(&mut self, spooled: Spooled) {
        debug_assert_eq!(spooled.instance, self.keep.instance);
        self.view = View::of(spooled.set);
        self.has_history = true;
        self.keep.doubt = Some(Doubt { place: spooled.place, told: spooled.told });
        self.keep.is_on = true;
        self.is_spool_old = true;
        for step in spooled.steps {
            self.journal.push(step, Duration::ZERO);
        }
    }

    /// Takes a step into the journal, and into the spool if there is one.
    pub(crate) fn push(&mut self, step: Step, elapsed: Duration) {
        let mut folded = false;
        for part in step.cut(PIECE_BYTES).into_iter().filter(|part| !part.is_empty()) {
            if self.keep.is_on {
                self.keep.append(spool::step_line(&part));
            }
            folded |= self.journal.push(part, elapsed);
        }
        if self.keep.is_on && (folded || self.keep.bytes > MOST_BYTES) {
            self.is_spool_old = true;
        }
    }

    /// The spool begins, if it has not yet: the server is away.
    pub(crate) fn begin_spool(&mut self) {
        if !self.keep.is_on {
            self.keep.is_on = true;
            self.is_spool_old = true;
        }
    }

    /// The spool begins when a contact takes long.
    pub(crate) fn doubt_silence(&mut self, elapsed: Duration) {
        if self.is_sending && self.sent_at + PATIENCE <= elapsed {
            self.begin_spool();
        }
    }

    /// A contact with a number of its own is about to leave, which tells so many steps.
    pub(crate) fn keep_told(&mut self, sequence: u64, steps: usize) {
        let place = self.place();
        self.keep.append(spool::told_line(place, sequence, steps));
    }

    /// It arrived.
    pub(crate) fn keep_taken(&mut self) {
        self.keep.append(spool::taken_line());
    }

    /// What is to be written, and with what mark of the time; called after everything that happens.
    pub(crate) fn take_writes(&mut self, mark: impl FnOnce() -> Mark) -> Vec<Write> {
        if self.keep.is_on && self.is_all_told() {
            self.keep = Keep::new(self.keep.instance);
            self.is_spool_old = false;
            return vec![Write::Remove];
        }
        if std::mem::take(&mut self.is_spool_old) && self.keep.is_on {
            let owner = Owner { instance: self.keep.instance, mark: mark() };
            let (mut whole, mut bytes) = self.write_anew(owner);
            while bytes > MOST_BYTES / 2 && self.journal.fold_half() {
                (whole, bytes) = self.write_anew(owner);
            }
            self.keep.bytes = bytes;
            self.keep.writes = vec![Write::Replace(whole)];
        }
        std::mem::take(&mut self.keep.writes)
    }

    /// Whether the server answers, and knows everything.
    fn is_all_told(&self) -> bool {
        let is_in_contact = !self.is_sending && !self.is_opening() && self.backoff.until().is_zero();
        let is_complete = !self.is_catching_up() && !self.has_pieces();
        is_in_contact && is_complete && self.journal.is_empty() && self.told.is_empty()
    }

    /// The whole spool, and how much of it is not the base.
    fn write_anew(&self, owner: Owner) -> (Vec<u8>, usize) {
        let whole = self.untold().write(owner);
        let base = whole.iter().position(|byte| *byte == b'\n').unwrap_or_default();
        let rest = whole.len() - base;
        (whole, rest)
    }

    fn untold(&self) -> Untold<'_> {
        let mut base = self.view.set();
        self.flaps.held().for_each(|step| step.undo(&mut base));
        self.journal.steps().rev().for_each(|step| step.undo(&mut base));
        self.told.undo(&mut base);
        let mut steps: Vec<&Step> = self.journal.steps().collect();
        if let Some(doubt) = &self.keep.doubt {
            let told = doubt.told.as_ref().map(|(sequence, step)| (*sequence, step));
            told.inspect(|(_, step)| step.undo(&mut base));
            return Untold { place: doubt.place, base, told, steps };
        }
        let told = self.told_number.map(|sequence| (sequence, &self.told));
        // An opening is never in doubt: what it tells can be told again, see `state`.
        if told.is_none() && !self.told.is_empty() {
            steps.insert(0, &self.told);
        }
        Untold { place: self.place(), base, told, steps }
    }

    /// Where the talk with the server is.
    fn place(&self) -> Place {
        let acknowledged = if self.is_opening() { u64::MAX } else { self.acknowledged };
        Place { session: self.session, acknowledged }
    }

    /// The session is open; now it is known what arrived of what an earlier run told.
    pub(crate) fn settle_doubt(&mut self, presented: Session, answer: &ContactAnswer, elapsed: Duration) {
        self.is_spool_old = self.keep.is_on;
        let Some(Doubt { place, told }) = self.keep.doubt.take() else { return };
        let stored = match place.session {
            // The earlier run had opened the session that this one asks for again.
            session if session == answer.session && session != presented => Some(answer.acknowledged),
            session if session == presented => answer.previous,
            _ => None,
        };
        match (stored, told) {
            (Some(stored), Some((sequence, _))) if stored == sequence => {}
            (Some(stored), told) if stored <= place.acknowledged => {
                self.journal.put_back(told.map(|(_, step)| step).unwrap_or_default(), elapsed);
            }
            (_, told) => {
                // What of it the server has is unknown, and nothing is to be told twice.
                self.lost += told.map_or(0, |(_, step)| step.len()) + self.journal.take_all().len();
            }
        }
    }
}
