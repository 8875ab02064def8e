//! The journal: what changed since the contact made last, step by step, with the times at which it happened.
//!
//! While the server is away the journal grows, and afterwards it is delivered in order, so that a listener that came
//! and went meanwhile is told of, too. It is bounded: beyond [`Journal::MOST_CHANGES`] the two oldest steps are folded
//! into one, which keeps what the set became and forgets how; what was forgotten is counted.
//!
//! It lives in memory. A spool on disk would take the place of `steps` and keep every method here as it is.

use std::collections::{BTreeSet, VecDeque};

use gk_model::contact::Part;

use crate::view::Step;

/// Steps that were not yet told, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    steps: VecDeque<Step>,
    changes: usize,
    forgotten: usize,
}

impl Journal {
    /// How many changes are kept in detail.
    pub(crate) const MOST_CHANGES: usize = 10_000;

    /// Adds the newest step, and folds the oldest if there are too many changes.
    pub(crate) fn push(&mut self, step: Step) {
        if step.len() > 0 {
            self.changes += step.len();
            self.steps.push_back(step);
            self.shrink();
        }
    }

    /// Puts back the oldest step, whose contact was not taken.
    pub(crate) fn put_back(&mut self, step: Step) {
        if step.len() > 0 {
            self.changes += step.len();
            self.steps.push_front(step);
            self.shrink();
        }
    }

    /// A single step may be larger than the bound: it is no larger than the machine's set of listeners.
    fn shrink(&mut self) {
        while self.changes > Self::MOST_CHANGES && self.steps.len() > 1 {
            let step = self.take(2);
            self.changes += step.len();
            self.steps.push_front(step);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// How many of the oldest steps fit into one delta: together at most `limit` changes, no listener twice, and all
    /// in parts that `is_reported` knows.
    pub(crate) fn ready(&self, limit: usize, is_reported: impl Fn(Part) -> bool) -> usize {
        let mut touched = BTreeSet::new();
        for (index, step) in self.steps.iter().enumerate() {
            let is_small = touched.len() + step.len() <= limit;
            if !is_small || !step.keys().all(|key| is_reported(key.part()) && touched.insert(key)) {
                return index;
            }
        }
        self.steps.len()
    }

    /// Takes the oldest steps out as one.
    pub(crate) fn take(&mut self, steps: usize) -> Step {
        let mut oldest = self.steps.drain(..steps.min(self.steps.len()));
        let mut sum = oldest.next().unwrap_or_default();
        let mut taken = sum.len();
        for step in oldest {
            taken += step.len();
            sum.fold(step);
        }
        self.changes -= taken;
        self.forgotten += taken - sum.len();
        sum
    }

    /// Takes everything out as one step.
    pub(crate) fn take_all(&mut self) -> Step {
        self.take(self.steps.len())
    }

    /// How many changes were folded away since this was last asked.
    pub(crate) fn take_forgotten(&mut self) -> usize {
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
            journal.push(view.observe(snapshot(ports.iter().map(|port| listener(*port, 1)), now), now));
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
        let kept = journal.changes;
        assert_eq!(journal.take_forgotten(), 2 * Journal::MOST_CHANGES - kept);
        let last = journal.steps.back().unwrap().closed();
        assert_eq!(last[0].at, at(2 * Journal::MOST_CHANGES as i64), "the newest detail is whole");
        assert_eq!((journal.take_all().len(), view.len()), (0, 0));
    }
}
