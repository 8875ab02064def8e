//! A step: what changed between two points in time, at most one change for each listener.
//!
//! Steps can be folded into one, which keeps where each listener came from and where it ended. What happened in between
//! is then not told one by one any more; it is counted, and the counts travel as [`Churn`], so that folding never makes
//! history untrue: every change that was seen is told either by itself or by its number.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use gk_model::contact::{Churn, Closed};
use gk_model::listener::{Digest, Listener, ListenerKey};
use gk_model::time::Timestamp;

use crate::view::Set;

/// What happened to one listener. Both sides are kept, so that steps can be folded and undone, and digests follow.
#[derive(Clone, Debug, PartialEq)]
struct Change {
    before: Option<Listener>,
    after: Option<Listener>,
    at: Timestamp,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Step {
    changes: BTreeMap<ListenerKey, Change>,
    churned: BTreeMap<ListenerKey, Churn>,
}

impl Step {
    /// Adds what happened to a listener that nothing happened to so far.
    pub(crate) fn record(&mut self, before: Option<Listener>, after: Option<Listener>, at: Timestamp) {
        if let Some(listener) = after.as_ref().or(before.as_ref()) {
            self.changes.insert(listener.key.clone(), Change { before, after, at });
        }
    }

    /// What was told or spooled, happening to this set, which is carried on.
    pub(crate) fn of_told(
        set: &mut Set,
        listeners: Vec<Listener>,
        closed: Vec<Closed>,
        churned: Vec<Churn>,
    ) -> Step {
        let mut step = Step::default();
        for Closed { key, at } in closed {
            step.record(set.remove(&key), None, at);
        }
        for listener in listeners {
            let before = set.insert(listener.key.clone(), listener.clone());
            let at = listener.last_seen_at;
            step.record(before, Some(listener), at);
        }
        step.churned = churned.into_iter().map(|churn| (churn.key.clone(), churn)).collect();
        step
    }

    /// Whether it tells nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.churned.is_empty()
    }

    /// How many listeners it changes.
    pub(crate) fn len(&self) -> usize {
        self.changes.len()
    }

    /// The listeners it changes or counts.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &ListenerKey> {
        let only_counted = self.churned.keys().filter(|key| !self.changes.contains_key(key));
        self.changes.keys().chain(only_counted)
    }

    /// Takes out what happened to one listener.
    pub(crate) fn extract(&mut self, key: &ListenerKey) -> Step {
        let changes = self.changes.remove_entry(key).into_iter().collect();
        Step { changes, churned: self.churned.remove_entry(key).into_iter().collect() }
    }

    /// Whether it closes this listener.
    pub(crate) fn closes(&self, key: &ListenerKey) -> bool {
        self.changes.get(key).is_some_and(|change| change.after.is_none())
    }

    /// Makes one step of two. Answers how many changes are told by their number only from now on.
    pub(crate) fn fold(&mut self, later: Step) -> u64 {
        for churn in later.churned.into_values() {
            join(&mut self.churned, churn);
        }
        let mut counted = 0;
        for (key, change) in later.changes {
            let Some(earlier) = self.changes.remove(&key) else {
                self.changes.insert(key, change);
                continue;
            };
            let net = Change { before: earlier.before.clone(), ..change.clone() };
            let churn = count_between(&key, &earlier, &change, &net);
            counted += churn.opened + churn.closed + churn.changed;
            join(&mut self.churned, churn);
            if !net.is_nothing() {
                self.changes.insert(key, net);
            }
        }
        counted
    }

    /// Cuts it so that each part is about that large at most. Parts happen at the same time, to different listeners.
    pub(crate) fn cut(mut self, most_bytes: usize) -> Vec<Step> {
        let mut parts = Vec::new();
        while self.about_bytes() > most_bytes && self.changes.len() > 1 {
            let mut bytes = 0;
            let fits = self.changes.values().take_while(|change| {
                bytes += change.about_bytes();
                bytes <= most_bytes
            });
            let fitting = fits.count().max(1);
            let Some(next) = self.changes.keys().nth(fitting).cloned() else { break };
            let rest = self.changes.split_off(&next);
            let churned = std::mem::take(&mut self.churned);
            parts.push(Step { changes: std::mem::replace(&mut self.changes, rest), churned });
        }
        parts.push(self);
        parts
    }

    /// How large it is in a contact, about.
    pub(crate) fn about_bytes(&self) -> usize {
        self.changes.values().map(Change::about_bytes).sum::<usize>() + self.churned.len() * CHURN_BYTES
    }

    /// Carries the digest of a set over to the set after this step.
    pub(crate) fn carry(&self, digest: &mut Digest) {
        for change in self.changes.values() {
            if let Some(before) = &change.before {
                digest.remove(before);
            }
            if let Some(after) = &change.after {
                digest.add(after);
            }
        }
    }

    /// Makes of the set after this step the one before it.
    pub(crate) fn undo(&self, set: &mut Set) {
        for (key, change) in &self.changes {
            match &change.before {
                Some(before) => drop(set.insert(key.clone(), before.clone())),
                None => drop(set.remove(key)),
            }
        }
    }

    /// The same on another line of time.
    pub(crate) fn moved(mut self, bring: impl Fn(Timestamp) -> Timestamp) -> Step {
        for change in self.changes.values_mut() {
            change.at = bring(change.at);
            for listener in [&mut change.before, &mut change.after].into_iter().flatten() {
                listener.first_seen_at = bring(listener.first_seen_at);
                listener.last_seen_at = bring(listener.last_seen_at);
            }
        }
        for churn in self.churned.values_mut() {
            (churn.from, churn.until) = (bring(churn.from), bring(churn.until));
        }
        self
    }

    /// Listeners that are new or whose owners changed.
    pub(crate) fn listeners(&self) -> Vec<Listener> {
        self.changes.values().filter_map(|change| change.after.clone()).collect()
    }

    /// Listeners that are gone.
    pub(crate) fn closed(&self) -> Vec<Closed> {
        let gone = self.changes.iter().filter(|(_, change)| change.after.is_none());
        gone.map(|(key, change)| Closed { key: key.clone(), at: change.at }).collect()
    }

    /// What is told by its number.
    pub(crate) fn churned(&self) -> Vec<Churn> {
        self.churned.values().cloned().collect()
    }
}

/// About what a listener takes that is gone or counted.
const CHURN_BYTES: usize = 250;

impl Change {
    fn is_nothing(&self) -> bool {
        match (&self.before, &self.after) {
            (None, None) => true,
            (Some(before), Some(after)) => before.same_but_times(after),
            _ => false,
        }
    }

    fn about_bytes(&self) -> usize {
        self.after.as_ref().map_or(CHURN_BYTES, Listener::about_bytes)
    }

    /// How often it is an opening, a closing, and a change of owners.
    fn count(&self) -> [u64; 3] {
        match (&self.before, &self.after) {
            _ if self.is_nothing() => [0, 0, 0],
            (None, _) => [1, 0, 0],
            (_, None) => [0, 1, 0],
            _ => [0, 0, 1],
        }
    }
}

/// What is not told by itself when only `net` is.
fn count_between(key: &ListenerKey, earlier: &Change, later: &Change, net: &Change) -> Churn {
    let (one, other, told) = (earlier.count(), later.count(), net.count());
    let [opened, closed, changed] =
        std::array::from_fn(|kind| (one[kind] + other[kind]).saturating_sub(told[kind]));
    Churn { key: key.clone(), from: earlier.at, until: later.at, opened, closed, changed }
}

/// Adds counts to those of the same listener.
fn join(churned: &mut BTreeMap<ListenerKey, Churn>, later: Churn) {
    match churned.entry(later.key.clone()) {
        Entry::Vacant(place) => drop(place.insert(later)),
        Entry::Occupied(mut place) => {
            let churn = place.get_mut();
            (churn.from, churn.until) = (churn.from.min(later.from), churn.until.max(later.until));
            churn.opened += later.opened;
            churn.closed += later.closed;
            churn.changed += later.changed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{at, listener, snapshot};
    use crate::view::View;

    /// What one listener does, scan by scan: its pid, or none.
    fn steps(scans: &[Option<u32>]) -> (Vec<Step>, View) {
        let mut view = View::default();
        let scan = |(second, pid): (i64, &Option<u32>)| {
            view.observe(snapshot(pid.map(|pid| listener(80, pid)), at(second)), at(second))
        };
        ((1..).zip(scans).map(scan).collect(), view)
    }

    #[test]
    fn folding_keeps_both_ends_and_counts_the_rest() {
        // (pids scan by scan, listeners changed, openings, closings and changes that are counted)
        type Row = (&'static [Option<u32>], usize, Option<[u64; 3]>);
        let table: [Row; 6] = [
            (&[Some(1)], 1, None),
            (&[Some(1), None], 0, Some([1, 1, 0])),
            (&[Some(1), None, Some(1)], 1, Some([1, 1, 0])),
            (&[Some(1), Some(2)], 1, Some([0, 0, 1])),
            (&[Some(1), Some(2), None], 0, Some([1, 1, 1])),
            (&[Some(1), None, Some(1), None, Some(2)], 1, Some([2, 2, 0])),
        ];
        for (scans, changes, counts) in table {
            let (steps, view) = steps(scans);
            let mut sum = Step::default();
            let counted: u64 = steps.into_iter().map(|step| sum.fold(step)).sum();
            let churned = sum.churned();
            let found = churned.first().map(|churn| [churn.opened, churn.closed, churn.changed]);
            assert_eq!((sum.len(), found), (changes, counts), "{scans:?}");
            assert_eq!(counted, counts.iter().flatten().sum::<u64>(), "{scans:?}");
            let mut digest = Digest::default();
            sum.carry(&mut digest);
            let seen: Vec<Listener> = view.listeners().collect();
            assert_eq!(digest, Digest::of(&seen), "{scans:?}");
            let mut set = view.set();
            sum.undo(&mut set);
            assert_eq!(set, Set::new(), "{scans:?}");
        }
    }

    #[test]
    fn the_counts_of_two_folds_add_up() {
        let (steps, _) = steps(&[Some(1), None, Some(1), None, Some(1), None]);
        let halves: Vec<Step> = steps
            .chunks(3)
            .map(|half| {
                let mut sum = Step::default();
                for step in half {
                    sum.fold(step.clone());
                }
                sum
            })
            .collect();
        let mut sum = halves[0].clone();
        sum.fold(halves[1].clone());
        let churn = &sum.churned()[0];
        assert_eq!((churn.opened, churn.closed, sum.len()), (3, 3, 0));
        assert_eq!((churn.from, churn.until), (at(1), at(6)));
    }

    #[test]
    fn a_large_step_is_cut_into_parts_that_make_the_same_whole() {
        let mut view = View::default();
        let whole = view.observe(snapshot((1..=500).map(|port| listener(port, 1)), at(1)), at(1));
        let parts = whole.clone().cut(10_000);
        assert!(parts.len() > 5 && parts.iter().all(|part| !part.is_empty() && part.about_bytes() <= 10_000));
        let mut sum = Step::default();
        for part in parts {
            sum.fold(part);
        }
        assert_eq!(sum, whole);
        assert_eq!(whole.clone().cut(1).len(), 500, "never less than one listener");
    }
}
