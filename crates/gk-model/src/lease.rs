//! Leases: how long one may be, and what a server makes of its clock before it ends any.
//!
//! Leases end late, never early (rule 13 of the domain). Deadlines are wall-clock times, because they outlive processes
//! and are shown to people; a wall clock may step, so nothing ends by it before [`judge`] has compared it with time that
//! really passed.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::time::Timestamp;

/// How long a lease lasts unless it is renewed: 1 second to 400 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "i64", into = "i64")]
#[schema(value_type = u32, minimum = 1, maximum = 34_560_000, example = 3600)]
pub struct LeaseTime(u32);

/// A number of seconds that no lease lasts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a lease lasts 1 second to 400 days, which is 34560000 seconds; {0} is outside")]
pub struct LeaseTimeError(i64);

impl LeaseTime {
    /// The longest: 400 days, as long as history is kept.
    pub const MAX: LeaseTime = LeaseTime(400 * 86_400);

    /// As a span of time.
    pub fn duration(self) -> Duration {
        Duration::from_secs(u64::from(self.0))
    }

    /// When the end of a lease of this length is announced: a tenth of it before, at least a minute, at most an hour.
    pub fn warns_at(self, deadline: Timestamp) -> Timestamp {
        deadline.minus((self.duration() / 10).clamp(Duration::from_mins(1), Duration::from_hours(1)))
    }

    /// When a lease that begins at `now` ends.
    pub fn deadline(self, now: Timestamp) -> Timestamp {
        now.plus(self.duration())
    }
}

impl TryFrom<i64> for LeaseTime {
    type Error = LeaseTimeError;

    fn try_from(seconds: i64) -> Result<LeaseTime, LeaseTimeError> {
        match u32::try_from(seconds) {
            Ok(valid @ 1..) if valid <= LeaseTime::MAX.0 => Ok(LeaseTime(valid)),
            _ => Err(LeaseTimeError(seconds)),
        }
    }
}

impl From<LeaseTime> for i64 {
    fn from(time: LeaseTime) -> i64 {
        i64::from(time.0)
    }
}

impl fmt::Display for LeaseTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0)
    }
}

/// How long after a server's start it ends no lease: holders must be able to reach it first.
pub const GRACE: Duration = Duration::from_mins(1);

/// By how much wall clock and passed time may differ before the clock counts as stepped.
const TOLERANCE: Duration = Duration::from_secs(2);

/// One look of a server at its leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// What the wall clock says.
    pub now: Timestamp,
    /// How much time has passed since this server's last tick, by a clock that never steps; none at its first.
    pub elapsed: Option<Duration>,
    /// How long this server has been running, by the same clock.
    pub since_start: Duration,
}

/// What a tick may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockVerdict {
    /// End what is due.
    Expire,
    /// Take note of the time, and end nothing yet.
    Wait,
    /// The wall clock stepped by this many microseconds: move every deadline by as much, and end nothing this time.
    Stepped(i64),
}

/// Judges the wall clock at a tick. `last_at` is what it said at the last tick of *any* server that found a lease, or
/// when the first lease since then was made.
///
/// Since then at least nothing and at most `elapsed` has passed, whoever ticked last. A step is answered by the whole
/// difference, without taking off what passed: that is not known with several servers, and this way a deadline moves
/// at most one tick too far, never too little. At a server's first tick nothing tells a step from the time that it was
/// away.
pub fn judge(last_at: Option<Timestamp>, tick: &Tick) -> ClockVerdict {
    let (Some(last_at), Some(elapsed)) = (last_at, tick.elapsed) else { return ClockVerdict::Wait };
    let latest = last_at.plus(elapsed.saturating_add(TOLERANCE));
    if tick.now > latest || tick.now < last_at.minus(TOLERANCE) {
        return ClockVerdict::Stepped(tick.now.as_micros().saturating_sub(last_at.as_micros()));
    }
    if tick.since_start < GRACE { ClockVerdict::Wait } else { ClockVerdict::Expire }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lasts_a_second_to_400_days() {
        for good in [1, 3600, 34_560_000] {
            assert_eq!(i64::from(LeaseTime::try_from(good).unwrap()), good);
        }
        for bad in [i64::MIN, -1, 0, 34_560_001, i64::MAX] {
            assert!(LeaseTime::try_from(bad).unwrap_err().to_string().contains(&bad.to_string()));
        }
        assert!(serde_json::from_str::<LeaseTime>("0").unwrap_err().to_string().contains("400 days"));
        assert_eq!(serde_json::to_string(&LeaseTime::MAX).unwrap(), "34560000");
    }

    #[test]
    fn a_clock_that_steps_ends_nothing() {
        use ClockVerdict::{Expire, Stepped, Wait};
        const SECOND: i64 = 1_000_000;
        // Milliseconds: last_at, now, elapsed; seconds since the start; the verdict.
        let table = [
            (None, 1_000, Some(1_000), 100, Wait),      // nobody has ticked before
            (Some(0), 9_000_000, None, 0, Wait),        // the first tick of this server
            (Some(0), 1_000, Some(1_000), 59, Wait),    // grace after the start
            (Some(0), 1_000, Some(1_000), 60, Expire),  // grace is over
            (Some(0), 3_000, Some(1_000), 100, Expire), // just within the tolerance
            (Some(0), 3_001, Some(1_000), 100, Stepped(3 * SECOND + 1_000)),
            (Some(0), 3_600_000, Some(1_000), 100, Stepped(3600 * SECOND)),
            (Some(0), 3_600_000, Some(1_000), 10, Stepped(3600 * SECOND)), // also within the grace
            (Some(0), 600_000, Some(600_000), 100, Expire),                // a long pause that really passed
            (Some(5_000), 3_000, Some(1_000), 100, Expire), // another server's clock is a little ahead
            (Some(5_000), 2_999, Some(1_000), 100, Stepped(-2 * SECOND - 1_000)),
            (Some(3_600_000), 0, Some(1_000), 100, Stepped(-3600 * SECOND)),
            (Some(900), 1_000, Some(1_000), 100, Expire), // another server ticked just before
        ];
        let at = |millis: i64| Timestamp::from_micros(1_700_000_000_000_000 + millis * 1_000);
        for (row, (last_at, now, elapsed, since_start, expected)) in table.into_iter().enumerate() {
            let tick = Tick {
                now: at(now),
                elapsed: elapsed.map(Duration::from_millis),
                since_start: Duration::from_secs(since_start),
            };
            assert_eq!(judge(last_at.map(at), &tick), expected, "row {row}");
        }
    }
}
