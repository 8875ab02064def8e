//! The one reader of the log for all watchers of this process.
//!
//! It runs while somebody watches. With several servers on one database it also looks, a few times a second, whether
//! another one has written.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gk_model::watch::{EventCursor, Log};
use gk_store::{Error, Logged, Refusal, Store};
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::{Interval, MissedTickBehavior};

use super::ring::{Entry, Following, Ring};
use crate::error::chain;

/// How many events one look into the database brings.
const PAGE: u32 = 256;

/// How many watchers that are behind may read at once: few of the readers that the store has, so that any number of
/// them leaves room for everybody else.
const CATCHING_UP: usize = 2;

/// How often other servers' events are looked for, which are to be told within a second, and a database that failed is
/// asked again.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What the process knows about its watchers, for `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WatchMetrics {
    pub(crate) watchers: usize,
    pub(crate) sent: u64,
    pub(crate) lag: u64,
    pub(crate) stalled: u64,
    pub(crate) overtaken: u64,
}

/// What has happened since the server started.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) sent: AtomicU64,
    pub(crate) stalled: AtomicU64,
    pub(crate) overtaken: AtomicU64,
}

/// The reader, and what it has read.
pub(crate) struct Feed {
    store: Store,
    state: Mutex<State>,
    /// How far the ring reaches, to wake watchers by.
    reached: watch::Sender<u64>,
    catching_up: Semaphore,
    pub(crate) counters: Counters,
}

struct State {
    ring: Ring,
    /// How far each watcher has come.
    seats: HashMap<u64, Arc<AtomicU64>>,
    next_seat: u64,
    task: Option<AbortHandle>,
}

impl Feed {
    pub(crate) fn new(store: Store) -> Arc<Feed> {
        let state = State { ring: Ring::behind(0), seats: HashMap::new(), next_seat: 0, task: None };
        Arc::new(Feed {
            store,
            state: Mutex::new(state),
            reached: watch::Sender::new(0),
            catching_up: Semaphore::new(CATCHING_UP),
            counters: Counters::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more watcher, of a log that was just read, at this place. The first one starts the reader.
    pub(crate) fn enter(self: &Arc<Feed>, log: Log, at: EventCursor) -> Seat {
        let mut state = self.state();
        if state.task.as_ref().is_none_or(AbortHandle::is_finished) {
            state.ring = Ring::behind(log.newest_seq);
            state.task = Some(tokio::spawn(Arc::clone(self).run(log)).abort_handle());
        }
        let (id, seq) = (state.next_seat, Arc::new(AtomicU64::new(at.seq)));
        state.next_seat += 1;
        state.seats.insert(id, Arc::clone(&seq));
        Seat { feed: Arc::clone(self), id, seq }
    }

    pub(crate) fn metrics(&self) -> WatchMetrics {
        let state = self.state();
        let newest = state.ring.reached().max(*self.store.newest_seq().borrow());
        let slowest = state.seats.values().map(|seq| seq.load(Ordering::Relaxed)).min();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        WatchMetrics {
            watchers: state.seats.len(),
            sent: count(&self.counters.sent),
            lag: slowest.map_or(0, |slowest| newest.saturating_sub(slowest)),
            stalled: count(&self.counters.stalled),
            overtaken: count(&self.counters.overtaken),
        }
    }

    async fn run(self: Arc<Feed>, log: Log) {
        // Before the first look, so that nothing happens between the two unnoticed.
        let mut newest = self.store.newest_seq();
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            newest.mark_unchanged();
            match self.read_on(log).await {
                Ok(more) => {
                    failing = false;
                    if more {
                        continue;
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(error = chain(&error), "watchers hear nothing for now");
                    }
                    looks.tick().await;
                    continue;
                }
            }
            self.wait_for_news(&mut newest, &mut looks).await;
        }
    }

    async fn wait_for_news(&self, newest: &mut watch::Receiver<u64>, looks: &mut Interval) {
        loop {
            tokio::select! {
                _ = newest.changed() => return,
                _ = looks.tick() => {
                    // What is wrong with the database shows when events are read.
                    let _told_later = self.store.look_for_events().await;
                }
            }
        }
    }

    /// Reads what follows into the ring; whether there may be more.
    async fn read_on(&self, log: Log) -> Result<bool, Error> {
        let after = log.cursor(self.state().ring.reached());
        let logged = match self.store.read(move |reader| reader.list_logged(after, PAGE)).await {
            Ok((_, logged)) => logged,
            // Pruned that far while nobody could read: watchers find out by themselves.
            Err(Error::Refused(refusal)) if let Refusal::StaleCursor { log, .. } = *refusal => {
                self.state().ring = Ring::behind(log.newest_seq);
                self.reached.send_replace(log.newest_seq);
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let more = logged.len() == PAGE as usize;
        let entries: Vec<Entry> = logged.into_iter().map(|logged| Entry::new(log.log_id, logged)).collect();
        if !entries.is_empty() {
            let mut state = self.state();
            entries.into_iter().for_each(|entry| state.ring.push(entry));
            let reached = state.ring.reached();
            drop(state);
            self.reached.send_replace(reached);
        }
        Ok(more)
    }
}

/// A watcher's place at the feed; the last one to leave stops the reader.
pub(crate) struct Seat {
    feed: Arc<Feed>,
    id: u64,
    seq: Arc<AtomicU64>,
}

impl Seat {
    pub(crate) fn counters(&self) -> &Counters {
        &self.feed.counters
    }

    /// Whether somebody reads for it; after a fault of the reader nobody does, and it must not wait for ever.
    pub(crate) fn is_fed(&self) -> bool {
        self.feed.state().task.as_ref().is_some_and(|task| !task.is_finished())
    }

    /// Wakes whenever the ring has grown.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.feed.reached.subscribe()
    }

    /// What follows in memory.
    pub(crate) fn after(&self, seq: u64, most: usize) -> Following {
        self.feed.state().ring.after(seq, most)
    }

    /// What follows in the database, in turn with others who are as far behind.
    pub(crate) async fn read_after(&self, cursor: EventCursor) -> Result<Vec<Logged>, Error> {
        let _turn = self.feed.catching_up.acquire().await.expect("it is never closed");
        let (_, logged) = self.feed.store.read(move |reader| reader.list_logged(cursor, PAGE)).await?;
        Ok(logged)
    }

    /// The watcher has come so far.
    pub(crate) fn note(&self, seq: u64) {
        self.seq.store(seq, Ordering::Relaxed);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.feed.state();
        state.seats.remove(&self.id);
        if state.seats.is_empty() {
            if let Some(task) = state.task.take() {
                task.abort();
            }
            state.ring = Ring::behind(0);
        }
    }
}
