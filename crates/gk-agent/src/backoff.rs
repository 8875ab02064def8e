//! How long to wait after failures: longer each time, and never all agents at once.
//!
//! A server that comes back meets its whole fleet. So every wait is drawn anew between one second and a ceiling that
//! doubles with every failure ("full jitter"), up to half a minute.

use std::time::Duration;

const LEAST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(30);
/// For what only people can mend.
const SLOW: Duration = Duration::from_secs(60);

/// Waits after failures.
#[derive(Debug)]
pub(crate) struct Backoff {
    failures: u32,
    until: Duration,
    random: u64,
}

impl Backoff {
    /// `seed` makes this agent's waits differ from those of others.
    pub(crate) fn new(seed: u64) -> Backoff {
        // Zero is the one state a xorshift generator never leaves.
        Backoff { failures: 0, until: Duration::ZERO, random: seed.max(1) }
    }

    /// Nothing is to be sent before this time since the start.
    pub(crate) fn until(&self) -> Duration {
        self.until
    }

    /// The server answered.
    pub(crate) fn succeed(&mut self) {
        self.failures = 0;
        self.until = Duration::ZERO;
    }

    /// The server did not answer, or not usefully.
    pub(crate) fn fail(&mut self, elapsed: Duration) {
        self.failures = self.failures.saturating_add(1);
        let ceiling = LEAST.saturating_mul(1 << self.failures.min(5)).min(MOST);
        self.until = elapsed + self.between(LEAST, ceiling);
    }

    /// The server answered that it does not know this agent.
    pub(crate) fn fail_slowly(&mut self, elapsed: Duration) {
        self.until = elapsed + self.between(SLOW / 2, SLOW);
    }

    /// A duration drawn evenly between two.
    pub(crate) fn between(&mut self, least: Duration, most: Duration) -> Duration {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let share = f64::from((self.random >> 32) as u32) / f64::from(u32::MAX);
        least + most.saturating_sub(least).mul_f64(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_stay_within_bounds_and_end_with_success() {
        let mut backoff = Backoff::new(7);
        let now = Duration::from_secs(100);
        for failure in 1..40 {
            backoff.fail(now);
            let wait = backoff.until() - now;
            let ceiling = Duration::from_secs(if failure < 5 { 1 << failure } else { 30 });
            assert!((LEAST..=ceiling).contains(&wait), "{wait:?} after {failure}");
        }
        backoff.fail_slowly(now);
        assert!((SLOW / 2..=SLOW).contains(&(backoff.until() - now)));
        backoff.succeed();
        assert_eq!(backoff.until(), Duration::ZERO);
    }

    #[test]
    fn agents_draw_different_waits() {
        let draw = |seed| Backoff::new(seed).between(Duration::ZERO, Duration::from_secs(3_600));
        let draws: Vec<Duration> =
            (0..50_u64).map(|seed| draw(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
        let early = draws.iter().filter(|wait| **wait < Duration::from_secs(1_800)).count();
        assert!((10..40).contains(&early), "{early} of 50 in the first half");
    }
}
