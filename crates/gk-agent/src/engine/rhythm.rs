//! When a container engine is to be asked next. Pure.
//!
//! A container shows itself to the kernel before its engine tells of it, and the moment in between depends on the engine.
//! So a hint has it asked at once and again in growing pauses, which end in the slow round that finds what gave no hint.

use std::time::Duration;

/// The shortest pause: however much happens, the engine is asked no more often.
const LEAST: Duration = Duration::from_millis(500);

/// The longest pause after an answer.
const ROUND: Duration = Duration::from_secs(30);

/// The longest pause where asking costs work: that of an engine in trouble, or that of starting one.
const LONG_ROUND: Duration = Duration::from_secs(300);

/// What came of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// An answer, of an engine that runs; or it cost nothing to find that there is none.
    Cheap,
    /// An answer, of an engine that systemd starts for each question and that ends after a few seconds: Podman. Its
    /// hints are good, since it holds a socket for each port that it publishes, and `podman.service` in the journal every
    /// half a minute would be a nuisance.
    OnDemand,
    /// No answer, at a cost.
    Trouble,
}

/// The rhythm of one engine. Times are spans since the start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rhythm {
    asked_at: Option<Duration>,
    pause: Duration,
    is_troubled: bool,
}

impl Default for Rhythm {
    /// Of an engine to be asked at once.
    fn default() -> Rhythm {
        Rhythm { asked_at: None, pause: LEAST, is_troubled: false }
    }
}

impl Rhythm {
    /// When it is to be asked.
    pub(super) fn due(&self) -> Duration {
        self.asked_at.map_or(Duration::ZERO, |asked_at| asked_at + self.pause)
    }

    /// It was asked.
    pub(super) fn asked(&mut self, elapsed: Duration, came: Came) {
        self.asked_at = Some(elapsed);
        self.pause = (self.pause * 2).min(if came == Came::Cheap { ROUND } else { LONG_ROUND });
        self.is_troubled = came == Came::Trouble;
    }

    /// It may have news. One that is in trouble is left alone.
    pub(super) fn hurry(&mut self) {
        if !self.is_troubled {
            self.pause = LEAST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(rhythm: &mut Rhythm, came: Came, count: usize) -> Vec<u64> {
        let ask = |_| {
            let due = rhythm.due();
            rhythm.asked(due, came);
            (rhythm.due() - due).as_secs()
        };
        (0..count).map(ask).collect()
    }

    #[test]
    fn pauses_grow_to_half_a_minute_and_a_hint_makes_them_short_again() {
        let mut rhythm = Rhythm::default();
        assert_eq!(rhythm.due(), Duration::ZERO);
        assert_eq!(pauses(&mut rhythm, Came::Cheap, 7), [1, 2, 4, 8, 16, 30, 30]);
        let asked_at = rhythm.due() - ROUND;
        rhythm.hurry();
        assert_eq!(rhythm.due(), asked_at + LEAST, "never more often");
        assert_eq!(pauses(&mut rhythm, Came::Cheap, 2), [1, 2]);
    }

    #[test]
    fn an_engine_that_is_started_for_each_question_is_asked_seldom_but_for_hints() {
        let mut rhythm = Rhythm::default();
        assert_eq!(pauses(&mut rhythm, Came::OnDemand, 10), [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        rhythm.hurry();
        assert_eq!(pauses(&mut rhythm, Came::OnDemand, 2), [1, 2]);
    }

    #[test]
    fn an_engine_in_trouble_is_left_alone_until_it_answers() {
        let mut rhythm = Rhythm::default();
        assert_eq!(pauses(&mut rhythm, Came::Trouble, 10), [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        let due = rhythm.due();
        rhythm.hurry();
        assert_eq!(rhythm.due(), due);
        assert_eq!(pauses(&mut rhythm, Came::Cheap, 1), [30]);
        rhythm.hurry();
        assert_eq!(pauses(&mut rhythm, Came::Cheap, 1), [1]);
    }
}
