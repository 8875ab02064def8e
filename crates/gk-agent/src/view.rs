//! What the agent has seen: the newest state of every listener. What each scan changed is a [`Step`].
//!
//! A listener counts as gone only when a scan that covered its part did not show it; in a part that was not covered it
//! stays as it was, unless its whole namespace is gone. The first time it was seen is kept as long as it is there. Whatever a scan shows outside the parts
//! it covered is left out: it would be half a truth.

use std::collections::{BTreeMap, BTreeSet};

use gk_model::contact::{Occupied, Part};
use gk_model::listener::{Listener, ListenerKey, Netns};
use gk_model::time::Timestamp;

use crate::step::Step;

/// Listeners by their keys.
pub(crate) type Set = BTreeMap<ListenerKey, Listener>;

/// What one scan showed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// The parts it is complete for.
    pub(crate) covered: Vec<Part>,
    /// Every listener in them. None when they are known to be those of the scan before that showed any, but for the
    /// times at which they were last seen, as in most scans; and so are the parts.
    pub(crate) listeners: Option<Vec<Listener>>,
    /// When the listeners of each namespace were seen, if they do not say so themselves.
    pub(crate) seen_at: BTreeMap<Netns, Timestamp>,
    /// Ports taken by something else; none when it was not looked for.
    pub(crate) occupied: Option<Vec<Occupied>>,
    /// The network namespaces; none when nothing was seen.
    pub(crate) namespaces: Option<Namespaces>,
}

impl Snapshot {
    /// Of an agent that sees nothing.
    pub(crate) fn blind() -> Snapshot {
        Snapshot { listeners: Some(Vec::new()), ..Snapshot::default() }
    }
}

/// The network namespaces of the machine.
#[derive(Clone, Debug)]
pub(crate) struct Namespaces {
    /// Each that is there or may be, of those that were ever shown.
    pub(crate) known: BTreeSet<Netns>,
    /// Whether there can be no others.
    pub(crate) are_all: bool,
}

/// The newest state of everything seen.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// In order of their keys. A map would take twice the memory, and a scan shows all of them in this order anyway.
    seen: Vec<Listener>,
    /// When those of each namespace were seen again, by scans that showed the same. To write that down for each of a thousand
    /// listeners would take as long as half the scan.
    seen_again_at: BTreeMap<Netns, Timestamp>,
    covered: BTreeSet<Part>,
    occupied: Vec<Occupied>,
    namespaces: Option<Namespaces>,
    has_looked: bool,
}

impl View {
    /// Of what an earlier run had seen.
    pub(crate) fn of(set: Set) -> View {
        View { seen: set.into_values().collect(), ..View::default() }
    }

    /// Everything in it, those kept from parts not covered included.
    pub(crate) fn set(&self) -> Set {
        self.seen.iter().map(|seen| (seen.key.clone(), self.date(seen))).collect()
    }

    /// Whether nothing was looked at yet.
    pub(crate) fn is_new(&self) -> bool {
        !self.has_looked
    }

    /// Takes in a scan and tells what it changed.
    pub(crate) fn observe(&mut self, snapshot: Snapshot, now: Timestamp) -> Step {
        self.has_looked = true;
        if snapshot.listeners.is_some() {
            // As long as it is known which of them those times are of.
            self.write_times();
        }
        self.covered = snapshot.covered.into_iter().collect();
        self.namespaces = snapshot.namespaces;
        if let Some(mut occupied) = snapshot.occupied {
            // Sorted, so that the kernel's order makes no difference.
            occupied.sort_unstable();
            occupied.dedup();
            self.occupied = occupied;
        }
        match snapshot.listeners {
            Some(listeners) => self.merge(listeners, &snapshot.seen_at, now),
            None => {
                self.seen_again_at = snapshot.seen_at;
                Step::default()
            }
        }
    }

    /// Says of each listener itself when it was seen last.
    fn write_times(&mut self) {
        let mut seen = std::mem::take(&mut self.seen);
        seen.iter_mut().for_each(|seen| seen.last_seen_at = self.last_seen_at(seen));
        self.seen = seen;
        self.seen_again_at.clear();
    }

    fn last_seen_at(&self, listener: &Listener) -> Timestamp {
        let again = self.seen_again_at.get(&listener.key.netns).copied();
        // One that is kept from a part that is not covered was not seen again.
        let again = again.filter(|_| self.covered.contains(&listener.key.part()));
        again.unwrap_or(listener.last_seen_at)
    }

    /// A listener with the time at which it was seen last.
    fn date(&self, listener: &Listener) -> Listener {
        Listener { last_seen_at: self.last_seen_at(listener), ..listener.clone() }
    }

    /// Goes through what was seen and what is found, both by key.
    fn merge(
        &mut self,
        mut found: Vec<Listener>,
        seen_at: &BTreeMap<Netns, Timestamp>,
        now: Timestamp,
    ) -> Step {
        found.retain(|found| self.covered.contains(&found.key.part()));
        // The scanner's are in order, and behind them stands what only container engines tell of.
        found.sort_by(|one, other| one.key.cmp(&other.key));
        found.dedup_by(|later, earlier| later.key == earlier.key);
        let (mut step, mut seen) = (Step::default(), Vec::with_capacity(found.len()));
        let mut before = std::mem::take(&mut self.seen).into_iter().peekable();
        for found in found {
            while let Some(missed) = before.next_if(|before| before.key < found.key) {
                seen.extend(self.miss(missed, now, &mut step));
            }
            let last_seen_at = seen_at.get(&found.key.netns).copied().unwrap_or(found.last_seen_at);
            let same = before.next_if(|before| before.key == found.key);
            seen.push(see(same, found, last_seen_at, now, &mut step));
        }
        for missed in before {
            seen.extend(self.miss(missed, now, &mut step));
        }
        seen.shrink_to_fit();
        self.seen = seen;
        step
    }

    /// One that was not found stays unless it must have been.
    fn miss(&self, listener: Listener, now: Timestamp, step: &mut Step) -> Option<Listener> {
        let lacks = |there: &Namespaces| !there.known.contains(&listener.key.netns);
        let is_gone =
            self.covered.contains(&listener.key.part()) || self.namespaces.as_ref().is_some_and(lacks);
        if is_gone {
            step.record(Some(listener), None, now);
            return None;
        }
        Some(listener)
    }

    /// How many listeners there are, those kept from parts not covered included.
    pub(crate) fn len(&self) -> usize {
        self.seen.len()
    }

    /// The parts that the newest scan covered.
    pub(crate) fn covered(&self) -> &BTreeSet<Part> {
        &self.covered
    }

    /// Every namespace of the machine, if that is known.
    pub(crate) fn all_namespaces(&self) -> Option<Vec<Netns>> {
        let all = self.namespaces.as_ref().filter(|namespaces| namespaces.are_all);
        all.map(|namespaces| namespaces.known.iter().copied().collect())
    }

    /// The occupied ports, sorted, as last looked for.
    pub(crate) fn occupied(&self) -> &[Occupied] {
        &self.occupied
    }

    /// Every listener in the covered parts, by key.
    pub(crate) fn listeners(&self) -> impl Iterator<Item = Listener> {
        let covered = self.seen.iter().filter(|seen| self.covered.contains(&seen.key.part()));
        covered.map(|seen| self.date(seen))
    }

    /// Every part in which listeners are seen.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Part> {
        self.seen.iter().map(|seen| seen.key.part()).filter(|part| self.covered.contains(part))
    }
}

/// A listener as it is now, which may be another one than before.
fn see(
    before: Option<Listener>,
    found: Listener,
    last_seen_at: Timestamp,
    now: Timestamp,
    step: &mut Step,
) -> Listener {
    let first_seen_at =
        before.as_ref().map_or(found.first_seen_at, |before| found.first_seen_at.min(before.first_seen_at));
    let after = Listener { first_seen_at, last_seen_at, ..found };
    if before.as_ref().is_none_or(|before| !before.same_but_times(&after)) {
        step.record(before, Some(after.clone()), now);
    }
    after
}

#[cfg(test)]
mod tests {
    use gk_model::contact::Closed;

    use super::*;
    use crate::samples::{at, listener, parts, snapshot};

    #[test]
    fn a_listener_keeps_the_time_it_was_first_seen() {
        let mut view = View::default();
        view.observe(snapshot([listener(80, 1)], at(1)), at(1));
        let step = view.observe(snapshot([listener(80, 1)], at(5)), at(5));
        assert_eq!(step.len(), 0);
        let seen = view.listeners().next().unwrap();
        assert_eq!((seen.first_seen_at, seen.last_seen_at), (at(1), at(5)));
        let step = view.observe(snapshot([listener(80, 2)], at(6)), at(6));
        assert_eq!(step.listeners()[0].first_seen_at, at(1), "another process on the same socket key");
        view.observe(Snapshot::blind(), at(7));
        assert!(view.observe(snapshot([listener(80, 2)], at(8)), at(8)).is_empty());
        assert_eq!(view.listeners().next().unwrap().first_seen_at, at(1), "nobody looked in between");
    }

    #[test]
    fn what_is_known_to_be_the_same_is_seen_again_and_kept_by_what_is_seen_after() {
        let mut view = View::default();
        let both = || [listener(80, 1), listener(81, 1)];
        view.observe(snapshot(both(), at(1)), at(1));
        let seen_at = |seconds| BTreeMap::from([(Netns::Home, at(seconds))]);
        // As the agent takes it in then: only the namespace says when.
        let same = |seconds| Snapshot { listeners: None, seen_at: seen_at(seconds), ..snapshot([], at(0)) };
        assert!(view.observe(same(2), at(2)).is_empty());
        assert!(view.listeners().chain(view.set().into_values()).all(|seen| seen.last_seen_at == at(2)));
        let step =
            view.observe(Snapshot { seen_at: seen_at(3), ..snapshot([listener(80, 1)], at(1)) }, at(3));
        assert_eq!((step.len(), view.len()), (1, 1));
        assert_eq!(view.listeners().next().unwrap().last_seen_at, at(3));
        // What is kept while nothing is seen was not seen again, and is when the same is.
        view.observe(same(4), at(4));
        view.observe(Snapshot { seen_at: seen_at(5), ..Snapshot::blind() }, at(5));
        let kept = |view: &View| view.set().into_values().map(|kept| kept.last_seen_at).collect::<Vec<_>>();
        assert_eq!((kept(&view), view.listeners().count()), (vec![at(4)], 0));
        assert!(view.observe(same(6), at(6)).is_empty());
        assert_eq!((kept(&view), view.listeners().count()), (vec![at(6)], 1));
        // Of a part that is not covered any more, while another one is.
        let covered = parts()[1..].to_vec();
        view.observe(Snapshot { covered: covered.clone(), ..snapshot([listener(2_000, 1)], at(7)) }, at(7));
        view.observe(Snapshot { covered, ..same(8) }, at(8));
        assert_eq!(kept(&view), [at(6), at(8)]);
    }

    #[test]
    fn what_is_new_or_another_was_seen_when_its_namespace_was() {
        let mut view = View::default();
        for (pid, seconds) in [(1, 2), (2, 3)] {
            let seen_at = BTreeMap::from([(Netns::Home, at(seconds))]);
            let scan = Snapshot { seen_at, ..snapshot([listener(80, pid)], at(1)) };
            let step = view.observe(scan, at(seconds));
            assert_eq!(step.listeners()[0].last_seen_at, at(seconds));
        }
    }

    #[test]
    fn only_a_covered_part_closes() {
        let mut view = View::default();
        view.observe(snapshot([listener(80, 1)], at(1)), at(1));
        let blind = view.observe(Snapshot::blind(), at(2));
        assert_eq!((blind.len(), view.len(), view.listeners().count()), (0, 1, 0), "kept, and not told");
        let step = view.observe(snapshot([], at(3)), at(3));
        assert_eq!(step.closed(), [Closed { key: listener(80, 1).key, at: at(3) }]);
        assert_eq!(view.len(), 0);
    }

    #[test]
    fn a_namespace_that_is_gone_closes_what_was_in_it_and_one_that_may_be_there_does_not() {
        let mut elsewhere = listener(80, 1);
        elsewhere.key.netns = Netns::Other(7);
        let there =
            |known: &[Netns], are_all| Some(Namespaces { known: known.iter().copied().collect(), are_all });
        let both = [Netns::Home, Netns::Other(7)];
        let mut view = View::default();
        let mut all = snapshot([listener(80, 1), elsewhere.clone()], at(1));
        all.covered.push(elsewhere.key.part());
        view.observe(Snapshot { namespaces: there(&both, true), ..all }, at(1));
        assert_eq!((view.len(), view.all_namespaces()), (2, Some(both.to_vec())));
        for (namespaces, second) in [(there(&both, true), 2), (there(&both, false), 3), (None, 4)] {
            let step =
                view.observe(Snapshot { namespaces, ..snapshot([listener(80, 1)], at(second)) }, at(second));
            assert_eq!((step.len(), view.len()), (0, 2), "not covered, and perhaps there");
        }
        assert_eq!(view.all_namespaces(), None);
        let step = view.observe(
            Snapshot { namespaces: there(&both[..1], false), ..snapshot([listener(80, 1)], at(5)) },
            at(5),
        );
        assert_eq!(step.closed(), [Closed { key: elsewhere.key, at: at(5) }]);
        assert_eq!((view.len(), view.all_namespaces()), (1, None));
    }

    #[test]
    fn what_is_shown_outside_the_covered_parts_is_left_out() {
        let mut view = View::default();
        let step = view.observe(
            Snapshot { covered: parts()[1..].to_vec(), ..snapshot([listener(80, 1)], at(1)) },
            at(1),
        );
        assert_eq!((step.len(), view.len()), (0, 0));
    }
}
