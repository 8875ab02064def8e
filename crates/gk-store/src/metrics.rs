//! What the store counts about itself.
//!
//! Plain numbers without a format: whoever shows them decides what that looks like. Counting takes no lock and is
//! always on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::writer::WriterCounters;

/// Upper bounds of batch sizes: powers of four up to the largest batch.
const BATCH_SIZES: [f64; 7] = [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0];

/// Upper bounds of the time that a commit takes, in seconds: from a fast disk's sync to a hung one's.
const COMMIT_SECONDS: [f64; 12] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0];

/// What the store has done so far.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreMetrics {
    /// What the writer has done.
    pub writer: WriterCounters,
    /// Changes that wait for the writer just now.
    pub queue_length: u64,
    /// Changes in each batch.
    pub batch_size: Distribution,
    /// How long each commit took, in seconds, its sync included.
    pub commit_seconds: Distribution,
    /// What the changes said to the database.
    pub statements: StatementCounters,
}

/// Statements of changes, other than those around each batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatementCounters {
    /// Those whose answer was waited for. Each is a round trip to a database across a network, and everybody waits.
    pub asked: u64,
    /// Those that were only said, and travel together.
    pub said: u64,
}

/// The same as they are counted.
#[derive(Debug, Default)]
pub(crate) struct Statements {
    pub(crate) asked: AtomicU64,
    pub(crate) said: AtomicU64,
}

impl Statements {
    fn counters(&self) -> StatementCounters {
        StatementCounters {
            asked: self.asked.load(Ordering::Relaxed),
            said: self.said.load(Ordering::Relaxed),
        }
    }
}

/// How often values fell between bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// Upper bound and how many values are at most it, and above the bound before. The last bound is infinity.
    pub buckets: Vec<(f64, u64)>,
    /// How many values there were.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
}

/// The numbers as they are counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) commits: AtomicU64,
    pub(crate) answers: AtomicU64,
    pub(crate) replays: AtomicU64,
    pub(crate) queue_length: AtomicU64,
    pub(crate) batch_size: Histogram,
    pub(crate) commit_seconds: Histogram,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            commits: AtomicU64::new(0),
            answers: AtomicU64::new(0),
            replays: AtomicU64::new(0),
            queue_length: AtomicU64::new(0),
            batch_size: Histogram::new(&BATCH_SIZES),
            commit_seconds: Histogram::new(&COMMIT_SECONDS),
        }
    }
}

impl Metrics {
    pub(crate) fn counters(&self) -> WriterCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        WriterCounters {
            commits: read(&self.commits),
            answers: read(&self.answers),
            replays: read(&self.replays),
        }
    }

    pub(crate) fn snapshot(&self, statements: &Statements) -> StoreMetrics {
        StoreMetrics {
            writer: self.counters(),
            queue_length: self.queue_length.load(Ordering::Relaxed),
            batch_size: self.batch_size.snapshot(),
            commit_seconds: self.commit_seconds.snapshot(),
            statements: statements.counters(),
        }
    }
}

/// Counts values between fixed bounds. Any number of threads observe and look; none waits for another.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One more than bounds: the last is for what exceeds them all.
    counts: Vec<AtomicU64>,
    /// The bits of an `f64`, because there is no atomic one.
    sum: AtomicU64,
}

impl Histogram {
    /// With these upper bounds, which ascend.
    pub fn new(bounds: &'static [f64]) -> Histogram {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds, counts, sum: AtomicU64::new(0.0_f64.to_bits()) }
    }

    /// Counts one value.
    pub fn observe(&self, value: f64) {
        let index = self.bounds.partition_point(|bound| *bound < value);
        self.counts[index].fetch_add(1, Ordering::Relaxed);
        let add = |sum: u64| Some((f64::from_bits(sum) + value).to_bits());
        let _always_added = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Counts a time, in seconds.
    pub fn observe_seconds(&self, duration: Duration) {
        self.observe(duration.as_secs_f64());
    }

    /// What was counted so far.
    pub fn snapshot(&self) -> Distribution {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        // Counted here rather than beside them, so that count and buckets agree whatever happens in between.
        let count = buckets.iter().map(|(_, count)| count).sum();
        Distribution { buckets, count, sum: f64::from_bits(self.sum.load(Ordering::Relaxed)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_counted_at_its_bound_and_below() {
        let histogram = Histogram::new(&[1.0, 4.0]);
        [0.5, 1.0, 1.5, 4.0, 4.5, 100.0].iter().for_each(|value| histogram.observe(*value));
        let expected =
            Distribution { buckets: vec![(1.0, 2), (4.0, 2), (f64::INFINITY, 2)], count: 6, sum: 111.5 };
        assert_eq!(histogram.snapshot(), expected);
    }

    #[test]
    fn bounds_ascend() {
        assert!(BATCH_SIZES.is_sorted() && COMMIT_SECONDS.is_sorted());
    }
}
