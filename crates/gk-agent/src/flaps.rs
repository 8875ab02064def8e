//! Ports that flap (rule 11 of the domain): more than 60 changes a minute of one port become one counted event.
//!
//! The agent counts, and not the server: it sees every change, so the counts are right, and neither its spool nor the
//! network nor the log carries what nobody will read. From the sixty-first change on, what happens to the port's
//! listeners is held back and folded, and told once a minute, or as soon as the port has been quiet for a few seconds:
//! the counts, and where each listener ended.
//!
//! Holding back begins while a listener is told to be gone, so no interval ever spans a time in which it came and went.
//! (Only where it stays and its owners change, the last of them that was told by itself keeps the interval.) A port that
//! goes on flapping is held from the first change of the next minute.

use std::collections::BTreeMap;
use std::time::Duration;

use gk_model::listener::{ListenerKey, Netns};
use gk_model::port::{Port, Protocol};

use crate::step::Step;

const MINUTE: Duration = Duration::from_secs(60);

/// How many changes of one port in a minute are told one by one.
const MOST_CHANGES: u32 = 60;

/// A port that was quiet for that long has stopped flapping.
const QUIET: Duration = Duration::from_secs(5);

type Place = (Netns, Protocol, Port);

/// The changes of one port in a minute.
#[derive(Debug)]
struct Minute {
    began_at: Duration,
    changed_at: Duration,
    changes: u32,
    flaps: bool,
}

/// Ports that changed lately, and what is held back of them.
#[derive(Debug, Default)]
pub(crate) struct Flaps {
    minutes: BTreeMap<Place, Minute>,
    held: BTreeMap<ListenerKey, Step>,
}

impl Flaps {
    /// Holds back what is to be counted, and answers the rest.
    pub(crate) fn pass(&mut self, mut step: Step, elapsed: Duration) -> Step {
        let keys: Vec<ListenerKey> = step.keys().cloned().collect();
        for key in keys {
            let minute = self.minutes.entry(place(&key)).or_insert_with(|| Minute::new(elapsed));
            minute.count(elapsed);
            if let Some(held) = self.held.get_mut(&key) {
                held.fold(step.extract(&key));
            } else if minute.flaps && !step.closes(&key) {
                self.held.insert(key.clone(), step.extract(&key));
            }
        }
        step
    }

    /// What was held back long enough. To be asked before the next step passes, which may begin another minute.
    pub(crate) fn due(&mut self, elapsed: Duration) -> Step {
        let minutes = &self.minutes;
        let is_due =
            |key: &ListenerKey| minutes.get(&place(key)).is_none_or(|minute| minute.is_over(elapsed));
        let due = self.held.extract_if(.., |key, _| is_due(key));
        let step = sum(due.map(|(_, held)| held));
        let held = &self.held;
        self.minutes.retain(|place, minute| {
            !minute.is_past(elapsed) || held.keys().any(|key| self::place(key) == *place)
        });
        step
    }

    /// Everything that is held back.
    pub(crate) fn take_all(&mut self) -> Step {
        sum(std::mem::take(&mut self.held).into_values())
    }

    /// Everything that is held back, which stays.
    pub(crate) fn held(&self) -> impl Iterator<Item = &Step> {
        self.held.values()
    }
}

/// Of steps about different listeners.
fn sum(steps: impl Iterator<Item = Step>) -> Step {
    let mut sum = Step::default();
    for step in steps {
        sum.fold(step);
    }
    sum
}

fn place(key: &ListenerKey) -> Place {
    (key.netns, key.protocol, key.port)
}

impl Minute {
    fn new(elapsed: Duration) -> Minute {
        Minute { began_at: elapsed, changed_at: elapsed, changes: 0, flaps: false }
    }

    fn count(&mut self, elapsed: Duration) {
        if self.began_at + MINUTE <= elapsed {
            let goes_on = self.changes > MOST_CHANGES && self.changed_at + QUIET > elapsed;
            *self = Minute { flaps: goes_on, ..Minute::new(elapsed) };
        }
        self.changes += 1;
        self.changed_at = elapsed;
        self.flaps |= self.changes > MOST_CHANGES;
    }

    fn is_over(&self, elapsed: Duration) -> bool {
        self.began_at + MINUTE <= elapsed || self.changed_at + QUIET <= elapsed
    }

    /// Whether nothing of it matters any more.
    fn is_past(&self, elapsed: Duration) -> bool {
        self.began_at + MINUTE + QUIET <= elapsed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{at, listener, snapshot};
    use crate::view::View;

    const SCAN: Duration = Duration::from_millis(500);

    /// What is told of port 80, which is open at every scan that `is_open` says, in order.
    fn told(scans: u32, is_open: impl Fn(u32) -> bool) -> Vec<Step> {
        let (mut view, mut flaps, mut told) = (View::default(), Flaps::default(), Vec::new());
        for scan in 0..scans {
            let (elapsed, now) = (SCAN * scan, at(0).plus(SCAN * scan));
            let listeners = is_open(scan).then(|| listener(80, 1));
            told.push(flaps.due(elapsed));
            told.push(flaps.pass(view.observe(snapshot(listeners, now), now), elapsed));
        }
        assert!(flaps.held.is_empty() && flaps.minutes.is_empty(), "nothing stays");
        told.retain(|step| !step.is_empty());
        told
    }

    /// How often it opened and closed: told one by one, and by number.
    fn counts(told: &[Step]) -> [u64; 4] {
        let churned = || told.iter().flat_map(Step::churned);
        [
            told.iter().map(|step| step.listeners().len() as u64).sum(),
            told.iter().map(|step| step.closed().len() as u64).sum(),
            churned().map(|churn| churn.opened).sum(),
            churned().map(|churn| churn.closed).sum(),
        ]
    }

    #[test]
    fn a_port_that_flaps_a_thousand_times_is_told_in_few_events_and_true() {
        for ends_open in [false, true] {
            // Opened and closed a thousand times, and then quiet.
            let told = told(2_400, |scan| if scan < 2_000 { scan % 2 == 0 } else { ends_open });
            let [opened, closed, opened_counted, closed_counted] = counts(&told);
            assert_eq!(opened + opened_counted, 1_000 + u64::from(ends_open));
            assert_eq!(closed + closed_counted, 1_000);
            assert!(opened + closed < 120, "{opened} + {closed} one by one");
            let churns: usize = told.iter().map(|step| step.churned().len()).sum();
            assert!((15..=18).contains(&churns), "{churns}: one for each minute");
            let last = told.last().unwrap();
            assert_eq!(last.listeners().len(), usize::from(ends_open), "where it ended");
        }
    }

    #[test]
    fn no_interval_spans_what_was_counted() {
        // Whether the sixty-first change opens or closes it.
        for was_open in [false, true] {
            let told = told(1_200, |scan| match scan {
                0..200 => was_open,
                200..1_000 => (scan % 2 == 0) != was_open,
                _ => false,
            });
            let (mut is_open, mut churns) = (false, 0);
            for step in &told {
                churns += step.churned().len();
                assert!(!is_open || step.churned().is_empty(), "it counts as open while it is counted");
                is_open = (is_open || !step.listeners().is_empty()) && step.closed().is_empty();
            }
            assert!(churns > 3, "{churns}");
        }
    }

    #[test]
    fn up_to_sixty_changes_a_minute_are_told_one_by_one() {
        // A change each second.
        let told = told(1_300, |scan| scan < 1_000 && scan / 2 % 2 == 0);
        assert_eq!(counts(&told)[2..], [0, 0]);
        let total: u64 = counts(&told).iter().sum();
        assert_eq!(total, 500);
    }

    #[test]
    fn each_minute_that_is_counted_begins_and_ends_within_itself() {
        let told = told(2_400, |scan| scan < 2_000 && scan % 2 == 0);
        let churned: Vec<_> = told.iter().flat_map(Step::churned).collect();
        assert!(churned.iter().all(|churn| churn.until.since(churn.from) <= MINUTE), "{churned:?}");
        assert!(churned.windows(2).all(|pair| pair[0].until < pair[1].from));
    }
}
