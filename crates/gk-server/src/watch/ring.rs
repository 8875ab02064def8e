//! The newest events, in memory, each ready to be sent.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::Bytes;
use gk_model::id::LogId;
use gk_model::watch::EventCursor;
use gk_store::Logged;

use super::frame;

/// How many events are kept. Whoever is further behind asks the database.
const MOST_EVENTS: usize = 4096;

/// How much text they may have together.
const MOST_BYTES: usize = 16 << 20;

/// An event and its text.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) logged: Logged,
    pub(crate) frame: Bytes,
}

impl Entry {
    pub(crate) fn new(log_id: LogId, logged: Logged) -> Entry {
        let frame = frame::event(EventCursor { log_id, seq: logged.event.seq }, &logged);
        Entry { logged, frame }
    }

    pub(crate) fn seq(&self) -> u64 {
        self.logged.event.seq
    }
}

/// What follows a place.
#[derive(Debug)]
pub(crate) enum Following {
    /// These events, and perhaps more behind them.
    Entries(Vec<Arc<Entry>>),
    /// Nothing yet.
    Nothing,
    /// Events that are not here any more.
    Elsewhere,
}

/// Consecutive events up to the newest that was read.
#[derive(Debug)]
pub(crate) struct Ring {
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    reached: u64,
    most: usize,
}

impl Ring {
    /// An empty one that begins behind this event.
    pub(crate) fn behind(seq: u64) -> Ring {
        Ring { entries: VecDeque::new(), bytes: 0, reached: seq, most: MOST_EVENTS }
    }

    /// Number of the newest event it has, or had.
    pub(crate) fn reached(&self) -> u64 {
        self.reached
    }

    /// Takes the next event. One that does not follow the last begins the ring anew: it has no holes.
    pub(crate) fn push(&mut self, entry: Entry) {
        if entry.seq() != self.reached + 1 {
            *self = Ring { most: self.most, ..Ring::behind(entry.seq() - 1) };
        }
        self.reached = entry.seq();
        self.bytes += entry.frame.len();
        self.entries.push_back(Arc::new(entry));
        while self.entries.len() > self.most || (self.bytes > MOST_BYTES && self.entries.len() > 1) {
            let oldest = self.entries.pop_front();
            self.bytes -= oldest.map_or(0, |oldest| oldest.frame.len());
        }
    }

    /// What follows the event of this number, at most so many events.
    pub(crate) fn after(&self, seq: u64, most: usize) -> Following {
        if seq >= self.reached {
            return Following::Nothing;
        }
        let first = self.reached + 1 - self.entries.len() as u64;
        match (seq + 1).checked_sub(first) {
            Some(skipped) => {
                let skipped = usize::try_from(skipped).expect("fewer than there are in memory");
                Following::Entries(self.entries.iter().skip(skipped).take(most).cloned().collect())
            }
            None => Following::Elsewhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use gk_model::history::{Event, EventKind};
    use gk_model::time::Timestamp;

    use super::*;

    fn entry(seq: u64) -> Entry {
        let at = Timestamp::from_micros(0);
        let event = Event {
            seq,
            at,
            recorded_at: at,
            kind: EventKind::Opened,
            instance: None,
            protocol: None,
            first_port: None,
            last_port: None,
            actor: "ada".parse().unwrap(),
            origin: None,
            reservation: None,
            listener: None,
            message: "x".to_owned(),
        };
        Entry::new(LogId::generate(at), Logged { event, labels: None })
    }

    /// What follows, as numbers; none for what is elsewhere.
    fn after(ring: &Ring, seq: u64) -> Option<Vec<u64>> {
        match ring.after(seq, 3) {
            Following::Entries(entries) => Some(entries.iter().map(|entry| entry.seq()).collect()),
            Following::Nothing => Some(Vec::new()),
            Following::Elsewhere => None,
        }
    }

    #[test]
    fn what_follows_is_exactly_what_follows_or_is_elsewhere() {
        let mut ring = Ring { most: 4, ..Ring::behind(10) };
        assert_eq!((after(&ring, 9), after(&ring, 10), after(&ring, 11)), (None, Some(vec![]), Some(vec![])));
        (11..=16).for_each(|seq| ring.push(entry(seq)));
        let table = [
            (11, None),
            (12, Some(vec![13, 14, 15])),
            (13, Some(vec![14, 15, 16])),
            (15, Some(vec![16])),
            (16, Some(vec![])),
            (99, Some(vec![])),
        ];
        for (seq, expected) in table {
            assert_eq!(after(&ring, seq), expected, "after {seq}");
        }
    }

    #[test]
    fn a_ring_has_no_hole_and_a_bound() {
        let mut ring = Ring { most: 4, ..Ring::behind(0) };
        [1, 2, 7].into_iter().for_each(|seq| ring.push(entry(seq)));
        assert_eq!((after(&ring, 2), after(&ring, 6)), (None, Some(vec![7])));
        (8..=100).for_each(|seq| ring.push(entry(seq)));
        assert_eq!(ring.entries.len(), 4);
        assert_eq!(ring.bytes, ring.entries.iter().map(|entry| entry.frame.len()).sum::<usize>());
    }
}
