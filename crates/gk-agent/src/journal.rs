//! The journal: what changed since the contact made last, step by step, with the times at which it happened.
//!
//! While the server is away the journal grows, and afterwards it is delivered in order, so that a listener that came
//! and went meanwhile is told of, too. It is bounded: beyond [`Journal::MOST_CHANGES`] the older half of it is folded
//! into one step, which keeps what the set became and counts what happened. Half at once, and not step by step: whoever
//! keeps a copy on disk has to write that anew.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use gk_model::contact::{PIECE_BYTES, Part};

use crate::step::Step;

/// Steps that were not yet told, oldest first, and when each was taken in.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    steps: VecDeque<(Duration, Step)>,
    changes: usize,
    forgotten: u64,
}

impl Journal {
    /// How many changes are kept in detail.
    pub(crate) const MOST_CHANGES: usize = 10_000;

    /// Adds the newest step, in parts that fit into a contact. Answers whether older ones were folded.
    pub(crate) fn push(&mut self, step: Step, elapsed: Duration) -> bool {
        if step.is_empty() {
            return false;
        }
        for part in step.cut(PIECE_BYTES) {
            self.changes += part.len();
            self.steps.push_back((elapsed, part));
        }
        self.shrink()
    }

    /// Puts back the oldest step, whose contact was not taken.
    pub(crate) fn put_back(&mut self, step: Step, elapsed: Duration) {
        if !step.is_empty() {
            self.changes += step.len();
            self.steps.push_front((elapsed, step));
            self.shrink();
        }
    }

    /// A single step may be larger than the bound: it is no larger than the machine's set of listeners.
    fn shrink(&mut self) -> bool {
        let mut folded = false;
        while self.changes > Self::MOST_CHANGES && self.fold_half() {
            folded = true;
        }
        folded
    }

    /// Makes one step of the older half. Answers whether there was more than one.
    pub(crate) fn fold_half(&mut self) -> bool {
        if self.steps.len() < 2 {
            return false;
        }
        let elapsed = self.since().unwrap_or_default();
        let half = self.take(self.steps.len().div_ceil(2).max(2));
        self.changes += half.len();
        self.steps.push_front((elapsed, half));
        true
    }

    /// When the oldest step was taken in.
    pub(crate) fn since(&self) -> Option<Duration> {
        self.steps.front().map(|(elapsed, _)| *elapsed)
    }

    /// How many steps there are.
    pub(crate) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Every step, oldest first.
    pub(crate) fn steps(&self) -> impl DoubleEndedIterator<Item = &Step> {
        self.steps.iter().map(|(_, step)| step)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// How many of the oldest steps fit into one delta: together at most `limit` changes and a contact's size, no
    /// listener twice, and all in parts that `is_reported` knows.
    pub(crate) fn ready(&self, limit: usize, is_reported: impl Fn(Part) -> bool) -> usize {
        let (mut touched, mut bytes) = (BTreeSet::new(), 0);
        for (index, step) in self.steps().enumerate() {
            bytes += step.about_bytes();
            let is_small = touched.len() + step.len() <= limit && (bytes <= PIECE_BYTES || index == 0);
            if !is_small || !step.keys().all(|key| is_reported(key.part()) && touched.insert(key)) {
                return index;
            }
        }
        self.steps.len()
    }

    /// Takes the oldest steps out as one.
    pub(crate) fn take(&mut self, steps: usize) -> Step {
        let mut oldest = self.steps.drain(..steps.min(self.steps.len())).map(|(_, step)| step);
        let mut sum = oldest.next().unwrap_or_default();
        let mut taken = sum.len();
        for step in oldest {
            taken += step.len();
            self.forgotten += sum.fold(step);
        }
        self.changes -= taken;
        sum
    }

    /// Takes everything out as one step.
    pub(crate) fn take_all(&mut self) -> Step {
        self.take(self.steps.len())
    }

    /// How many changes are told by their number only, since this was last asked.
    pub(crate) fn take_forgotten(&mut self) -> u64 {
        std::mem::take(&mut self.forgotten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{at, listener, snapshot};
    use crate::view::View;

    fn journal(scans: &[&[u16]]) -> (Journal, View) {
        let (mut journal, mut view) = (Journal::default(), View::default());
        for (second, ports) in (1..).zip(scans) {
            let now = at(second);
            let step = view.observe(snapshot(ports.iter().map(|port| listener(*port, 1)), now), now);
            journal.push(step, Duration::from_secs(second.unsigned_abs()));
        }
        (journal, view)
    }

    #[test]
    fn one_delta_takes_what_it_can_say_without_loss() {
        let everywhere = |_: Part| true;
        let (mut one, _) = journal(&[&[80], &[80], &[80, 81], &[80, 81, 82]]);
        assert_eq!(one.ready(64, everywhere), 3, "an unchanged scan is no step");
        assert_eq!(one.ready(2, everywhere), 2);
        assert_eq!(one.ready(64, |_| false), 0);
        let (came_and_went, _) = journal(&[&[80], &[], &[81]]);
        assert_eq!(came_and_went.ready(64, everywhere), 1, "closing 80 must wait for the next delta");
        assert_eq!(one.take(3).listeners().len(), 3);
        assert!(one.is_empty() && one.take_forgotten() == 0);
    }

    #[test]
    fn beyond_its_bound_the_oldest_detail_goes_and_is_counted() {
        let scans: Vec<&[u16]> = [&[80][..], &[]].repeat(Journal::MOST_CHANGES);
        let (mut journal, view) = journal(&scans);
        assert!(journal.changes <= Journal::MOST_CHANGES, "{}", journal.changes);
        let last = journal.steps().next_back().unwrap().closed();
        assert_eq!(last[0].at, at(2 * Journal::MOST_CHANGES as i64), "the newest detail is whole");
        let kept = journal.changes as u64;
        let counted = journal.take_forgotten();
        assert_eq!(counted + kept, 2 * Journal::MOST_CHANGES as u64, "each is told or counted");
        let oldest = journal.take(1).churned();
        assert_eq!(oldest[0].opened + oldest[0].closed, counted, "and the server is told how many");
        assert_eq!(view.len(), 0);
    }
}
