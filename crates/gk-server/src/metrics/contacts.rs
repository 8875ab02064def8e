//! Contacts: how many of each kind came, what became of them, and how late they told what they tell.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gk_model::contact::{ContactAnswer, ContactKind};
use gk_store::{Distribution, Error, Histogram};

/// Upper bounds in seconds: an agent tells within about a second, and spools for days.
const LAG_SECONDS: [f64; 8] = [0.5, 1.0, 2.5, 10.0, 60.0, 600.0, 3600.0, 86_400.0];

/// What became of a contact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Agent and server mean the same now.
    Accepted,
    /// It was heard, and the server wants everything told.
    ReportWanted,
    /// It was not let in: another agent has taken over, or its credential or its instance has ended.
    Refused,
    /// The store could not take it.
    Failed,
}

impl Outcome {
    const ALL: [Outcome; 4] = [Outcome::Accepted, Outcome::ReportWanted, Outcome::Refused, Outcome::Failed];

    fn of(answer: &Result<ContactAnswer, Error>) -> Outcome {
        match answer {
            Ok(answer) if answer.want_report => Outcome::ReportWanted,
            Ok(_) => Outcome::Accepted,
            Err(Error::Refused(_)) => Outcome::Refused,
            Err(Error::Failed(_) | Error::Unexplained(_)) => Outcome::Failed,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Outcome::Accepted => "accepted",
            Outcome::ReportWanted => "report_wanted",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
        }
    }
}

/// The counters.
#[derive(Debug)]
pub(crate) struct Contacts {
    counts: [[AtomicU64; Outcome::ALL.len()]; ContactKind::ALL.len()],
    lag: Histogram,
}

impl Contacts {
    pub(crate) fn new() -> Contacts {
        Contacts { counts: Default::default(), lag: Histogram::new(&LAG_SECONDS) }
    }

    /// Counts a contact with its answer: its kind, and how long the agent had known what it tells.
    pub(crate) fn count(
        &self,
        (kind, lag): (ContactKind, Option<Duration>),
        answer: &Result<ContactAnswer, Error>,
    ) {
        let outcome = Outcome::of(answer);
        self.counts[kind as usize][outcome as usize].fetch_add(1, Ordering::Relaxed);
        if let (Some(lag), Ok(_)) = (lag, answer) {
            self.lag.observe_seconds(lag);
        }
    }

    /// How many there were of each kind and outcome, by their names.
    pub(crate) fn counts(&self) -> impl Iterator<Item = ([&'static str; 2], u64)> {
        ContactKind::ALL.iter().flat_map(move |kind| {
            Outcome::ALL.into_iter().map(move |outcome| {
                let count = self.counts[*kind as usize][outcome as usize].load(Ordering::Relaxed);
                ([kind.as_str(), outcome.as_str()], count)
            })
        })
    }

    /// How late what was told came.
    pub(crate) fn lag(&self) -> Distribution {
        self.lag.snapshot()
    }
}
