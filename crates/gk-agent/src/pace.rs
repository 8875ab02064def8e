//! When changes are told: soon, and not too often.
//!
//! After the first change the agent waits a moment, because few programs open one port only. A few such contacts may
//! follow each other closely; then changes are told in bundles. The wait is counted from the oldest change that is not
//! told yet and not from the newest, so that a storm never puts off its own telling. What was held up for longer than a
//! bundle, because the server was away, goes at once.

use std::time::Duration;

/// How long a change waits for company.
const DEBOUNCE: Duration = Duration::from_millis(300);

/// How far bundles are apart.
const BUNDLE: Duration = Duration::from_millis(750);

/// How many contacts may go without waiting for a bundle, after as many bundles' rest.
const BURST: u32 = 8;

/// Remembers how much was told lately.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// When all that was told would have been told, at one contact a bundle.
    settled_at: Duration,
}

impl Pace {
    /// When a change of that time is to be told.
    pub(crate) fn due(&self, changed_at: Duration) -> Duration {
        let rested_at = self.settled_at.saturating_sub(BUNDLE * (BURST - 1));
        rested_at.clamp(changed_at + DEBOUNCE, changed_at + BUNDLE)
    }

    /// Changes are being told.
    pub(crate) fn tell(&mut self, elapsed: Duration) {
        self.settled_at = self.settled_at.max(elapsed) + BUNDLE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// When contacts go, if something changes this often.
    fn told(every: Duration, until: Duration) -> Vec<Duration> {
        let (mut pace, mut waiting, mut told) = (Pace::default(), None, Vec::new());
        let mut now = Duration::ZERO;
        while now < until {
            if now.as_millis().is_multiple_of(every.as_millis()) {
                waiting.get_or_insert(now);
            }
            if waiting.is_some_and(|changed_at| pace.due(changed_at) <= now) {
                pace.tell(now);
                told.push(now);
                waiting = None;
            }
            now += ms(10);
        }
        told
    }

    #[test]
    fn the_first_change_after_a_quiet_time_goes_after_a_moment() {
        assert_eq!(told(ms(10_000), ms(30_000)), [ms(300), ms(10_300), ms(20_300)]);
    }

    #[test]
    fn a_storm_is_told_in_bundles_and_never_put_off() {
        let told = told(ms(10), ms(60_000));
        let burst = told.iter().filter(|at| **at < ms(2_000)).count();
        assert!((4..=7).contains(&burst), "{burst} contacts at first");
        let gaps: Vec<Duration> = told.windows(2).skip(20).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().all(|gap| (ms(740)..=ms(770)).contains(gap)), "{gaps:?}");
        assert!(*told.last().unwrap() > ms(59_000), "it goes on to the end");
    }

    #[test]
    fn what_was_held_up_goes_at_once() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.tell(ms(10_000));
        }
        assert!(pace.due(ms(8_000)) <= ms(10_000));
    }
}
