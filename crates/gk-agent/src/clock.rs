//! The agent's own time: a line that nobody steps.
//!
//! Everything that the agent tells is stamped on this line. It begins at what the wall clock said when the agent
//! started, and from there goes by the time since boot, sleep included (`CLOCK_BOOTTIME`). So when somebody sets the wall
//! clock by hours, neither the order of what was seen nor the spans between change, and contacts are neither delayed nor
//! repeated; and after a suspend, everything that is due is due at once. Whether the line is *right* matters little: each
//! contact is stamped on it too, so the server measures how far it is off and corrects every time by that.
//!
//! What was spooled by an earlier run is on the line of that run. In the same boot this run goes on with that line. After
//! a reboot nothing connects the two but the wall clock, which the machine keeps: then earlier times are taken as that
//! clock last told them, and never later than this boot.

use std::time::Duration;

use gk_model::time::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A point on the line, and the time since boot and the wall clock there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) boot_id: Option<Uuid>,
    /// On the line.
    pub(crate) at: Timestamp,
    /// The wall clock there.
    pub(crate) wall: Timestamp,
    pub(crate) since_boot_micros: u64,
}

/// How the times of an earlier run become ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Earlier {
    /// They are on this line.
    Same,
    /// They have to be moved, and not beyond the end.
    Moved { by_micros: i64, end: Timestamp },
}

impl Earlier {
    /// A time of the earlier run on our line.
    pub(crate) fn bring(self, at: Timestamp) -> Timestamp {
        match self {
            Earlier::Same => at,
            Earlier::Moved { by_micros, end } => {
                Timestamp::from_micros(at.as_micros().saturating_add(by_micros)).min(end)
            }
        }
    }
}

/// The line, and where on it the agent started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Mark,
}

impl Clock {
    /// For a run that begins at `now`, a mark whose place on the line is the wall clock, after one that left a mark.
    pub(crate) fn start(now: Mark, earlier: Option<Mark>) -> (Clock, Earlier) {
        let Some(earlier) = earlier else { return (Clock { start: now }, Earlier::Same) };
        if earlier.boot_id.is_some() && earlier.boot_id == now.boot_id {
            let passed = now.since_boot_micros.saturating_sub(earlier.since_boot_micros);
            let at = earlier.at.plus(Duration::from_micros(passed));
            return (Clock { start: Mark { at, ..now } }, Earlier::Same);
        }
        let by_micros = earlier.wall.as_micros().saturating_sub(earlier.at.as_micros());
        let end = now.at.minus(Duration::from_micros(now.since_boot_micros));
        (Clock { start: now }, Earlier::Moved { by_micros, end })
    }

    /// How long the agent runs, by the time since boot.
    pub(crate) fn elapsed(&self, since_boot: Duration) -> Duration {
        since_boot.saturating_sub(Duration::from_micros(self.start.since_boot_micros))
    }

    /// Where on the line it is after that long.
    pub(crate) fn at(&self, elapsed: Duration) -> Timestamp {
        self.start.at.plus(elapsed)
    }

    /// The same with all that a later run needs.
    pub(crate) fn mark(&self, elapsed: Duration, wall: Timestamp) -> Mark {
        let since_boot = self.start.since_boot_micros.saturating_add(micros(elapsed));
        Mark { at: self.at(elapsed), wall, since_boot_micros: since_boot, ..self.start }
    }
}

/// The present, as the kernel tells it.
pub(crate) fn read_mark(boot_id: Option<Uuid>) -> Mark {
    let wall = Timestamp::from_clock();
    Mark { boot_id, at: wall, wall, since_boot_micros: micros(read_since_boot()) }
}

/// The time since boot, sleep included.
pub(crate) fn read_since_boot() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::at;

    const HOUR: u64 = 3_600;

    fn mark(boot: u128, on_line: i64, wall: i64, since_boot: u64) -> Mark {
        Mark {
            boot_id: Some(Uuid::from_u128(boot)),
            at: at(on_line),
            wall: at(wall),
            since_boot_micros: since_boot * 1_000_000,
        }
    }

    #[test]
    fn time_goes_on_whatever_the_wall_clock_says() {
        let (clock, _) = Clock::start(mark(1, 5_000, 5_000, 100), None);
        let elapsed = clock.elapsed(Duration::from_secs(100 + HOUR));
        assert_eq!(clock.at(elapsed), at(5_000 + 3_600), "also while the machine slept");
        assert_eq!(clock.elapsed(Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn a_run_in_the_same_boot_goes_on_with_the_line_of_the_one_before() {
        // Meanwhile the wall clock was set back by two hours.
        let (clock, earlier) = Clock::start(mark(1, 800, 800, 700), Some(mark(1, 8_000, 8_000, 600)));
        assert_eq!(clock.at(Duration::ZERO), at(8_100));
        assert_eq!(earlier.bring(at(7_999)), at(7_999));
        let (clock, _) = Clock::start(mark(1, 800, 800, 700), Some(clock.mark(Duration::ZERO, at(800))));
        assert_eq!(clock.at(Duration::from_secs(1)), at(8_101), "and the one after that, too");
    }

    #[test]
    fn after_a_reboot_the_wall_clock_connects_and_nothing_is_later_than_the_boot() {
        // The earlier line was an hour behind the wall clock, which had been set right meanwhile.
        let (clock, earlier) = Clock::start(mark(2, 9_000, 9_000, 50), Some(mark(1, 5_000, 8_600, 4_000)));
        assert_eq!(clock.at(Duration::ZERO), at(9_000));
        assert_eq!(earlier.bring(at(4_900)), at(8_500));
        assert_eq!(
            earlier.bring(at(5_500)),
            at(8_950),
            "the clock of the new boot began before the old one ended"
        );
        let unknown = Mark { boot_id: None, ..mark(1, 5_000, 5_000, 10) };
        let (_, earlier) = Clock::start(Mark { boot_id: None, ..mark(1, 9_000, 9_000, 50) }, Some(unknown));
        assert!(matches!(earlier, Earlier::Moved { .. }), "an unknown boot is another one");
    }

    #[test]
    fn the_kernels_time_since_boot_goes_on() {
        let first = read_since_boot();
        assert!(first > Duration::ZERO && read_since_boot() >= first);
    }
}
