//! The writer: one thread, one connection, whatever waits in one transaction.
//!
//! A batch is: begin; take the row of the event counter; every queued closure; the counter's new value; commit; then
//! all answers. There is no timer: the next batch forms while this one commits, so under load one sync serves many and
//! without load nobody waits. The counter's row is the lock: whoever updated it is the only writer of the whole
//! cluster, so "look, then write" is free of races, and its value tells whether another server wrote meanwhile.
//!
//! Closures run without savepoints at first, because those cost more than the closures. When one fails after it has
//! written, or panics, the batch is rolled back and replayed with a savepoint around each, so that only the guilty one
//! is undone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::Shared;
use crate::beats::BeatChange;
use crate::counts::Counts;
use crate::driver::{Access, Connection, Location};
use crate::error::{Error, StoreError};
use crate::follow::{Seen, follow};
use crate::metrics::Metrics;
use crate::pool_use::UseChange;
use crate::port_map::PortMaps;
use crate::tx::Tx;
use crate::value::values;

/// How many closures may wait; more are answered [`StoreError::QueueFull`].
const QUEUE: usize = 8192;

/// How long a batch is tried again while the database is away; once it was away for so long, each batch is tried once.
const PATIENCE: Duration = Duration::from_secs(8);

/// How long a batch goes on with the next closure: far below the time that other servers wait for their turn.
const TURN: Duration = Duration::from_millis(250);

/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// What the writer has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriterCounters {
    /// Transactions committed; each is one sync of the write-ahead log.
    pub commits: u64,
    /// Closures answered.
    pub answers: u64,
    /// Batches that were rolled back and replayed one closure at a time.
    pub replays: u64,
}

/// The queue's end that the rest of the process holds.
pub(crate) struct Writer {
    queue: RwLock<Option<SyncSender<Box<dyn Job>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    metrics: Arc<Metrics>,
}

impl Writer {
    pub(crate) fn start(
        connection: Connection,
        location: Location,
        shared: Arc<Shared>,
        max_batch: usize,
    ) -> std::io::Result<Writer> {
        let (queue, jobs) = sync_channel(QUEUE);
        let metrics = Arc::new(Metrics::default());
        let worker = Worker {
            location,
            connection: Some(connection),
            shared,
            maps: PortMaps::default(),
            beats: Vec::new(),
            uses: Vec::new(),
            seen: None,
            away_since: None,
            max_batch,
            metrics: Arc::clone(&metrics),
        };
        let thread =
            std::thread::Builder::new().name("store-writer".into()).spawn(move || worker.run(&jobs))?;
        Ok(Writer { queue: RwLock::new(Some(queue)), thread: Mutex::new(Some(thread)), metrics })
    }

    /// Runs `work` in the next batch, and gives it back with its outcome.
    ///
    /// # Errors
    /// When it did not run, or the batch came to nothing.
    pub(crate) async fn run<T, W>(&self, work: W) -> Outcome<T, W>
    where
        T: Send + 'static,
        W: FnMut(&mut Tx<'_>) -> Result<T, Error> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.enqueue(Box::new(Typed { work, outcome: None, reply }))?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    fn enqueue(&self, job: Box<dyn Job>) -> Result<(), StoreError> {
        match &*self.queue.read().unwrap_or_else(PoisonError::into_inner) {
            None => Err(StoreError::Closed),
            Some(queue) => {
                // Before it is there: the writer counts it out as soon as it is.
                self.metrics.queue_length.fetch_add(1, Ordering::Relaxed);
                queue.try_send(job).map_err(|refused| {
                    self.metrics.queue_length.fetch_sub(1, Ordering::Relaxed);
                    match refused {
                        TrySendError::Full(_) => StoreError::QueueFull,
                        TrySendError::Disconnected(_) => StoreError::Closed,
                    }
                })
            }
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn is_running(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    pub(crate) fn close(&self) {
        self.queue.write().unwrap_or_else(PoisonError::into_inner).take();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the store's writer had panicked");
        }
    }
}

/// The directory's lock must outlive the last commit.
impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

/// What a closure answered, with the closure; or why it did not run, or its batch came to nothing.
type Outcome<T, W> = Result<(Result<T, Error>, W), StoreError>;

/// A queued closure, whatever its type.
trait Job: Send {
    /// Runs it and keeps the outcome; whether what it wrote may stay.
    fn run(&mut self, tx: &mut Tx<'_>) -> Ran;
    /// Sends the outcome, or `failure` when the batch came to nothing.
    fn answer(self: Box<Self>, failure: Option<&StoreError>);
}

#[derive(PartialEq, Eq)]
enum Ran {
    Keep,
    Undo,
}

struct Typed<T, W> {
    work: W,
    outcome: Option<Result<T, Error>>,
    reply: oneshot::Sender<Outcome<T, W>>,
}

impl<T, W> Job for Typed<T, W>
where
    T: Send,
    W: FnMut(&mut Tx<'_>) -> Result<T, Error> + Send,
{
    fn run(&mut self, tx: &mut Tx<'_>) -> Ran {
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.work)(tx)));
        let panicked = outcome.is_err();
        let outcome = outcome.unwrap_or_else(|panic| Err(StoreError::Panicked(describe(&*panic)).into()));
        // A closure that swallowed a failed statement must not commit the rest of what it did.
        let outcome = match (outcome, tx.failure()) {
            (Ok(_), Some(failure)) => Err(failure.into()),
            (outcome, _) => outcome,
        };
        let outcome = match outcome {
            Ok(answer) => tx.settle_alone().map(|()| answer).map_err(Error::from),
            refused => refused,
        };
        let undo = outcome.is_err() && (tx.is_dirty() || panicked);
        self.outcome = Some(outcome);
        if undo { Ran::Undo } else { Ran::Keep }
    }

    fn answer(self: Box<Self>, failure: Option<&StoreError>) {
        let Typed { work, outcome, reply } = *self;
        let answer = match failure {
            Some(failure) => Err(failure.clone()),
            None => outcome.map(|outcome| (outcome, work)).ok_or(StoreError::Closed),
        };
        // Whoever asked may have gone away; what was committed stays committed.
        let _gone = reply.send(answer);
    }
}

fn describe(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without words").to_owned()
}

/// The thread's own state.
struct Worker {
    location: Location,
    connection: Option<Connection>,
    shared: Arc<Shared>,
    maps: PortMaps,
    /// What the batch under way changes about heartbeats.
    beats: Vec<BeatChange>,
    /// What it changes about how full pools are.
    uses: Vec<UseChange>,
    /// How far the maps have followed; `None` when nothing is known to be true.
    seen: Option<Seen>,
    /// Since when the database has been away.
    away_since: Option<Instant>,
    max_batch: usize,
    metrics: Arc<Metrics>,
}

/// Why an attempt at a batch came to nothing.
enum Failed {
    /// A closure has to be undone: replay with savepoints.
    Closure,
    /// The database failed.
    Database(StoreError),
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Failed {
        Failed::Database(error)
    }
}

impl Worker {
    fn run(mut self, jobs: &Receiver<Box<dyn Job>>) {
        let mut batch: Vec<Box<dyn Job>> = Vec::new();
        loop {
            let carried = batch.len();
            if batch.is_empty() {
                let Ok(first) = jobs.recv() else { return };
                batch.push(first);
            }
            batch.extend(jobs.try_iter().take(self.max_batch - batch.len()));
            self.metrics.queue_length.fetch_sub((batch.len() - carried) as u64, Ordering::Relaxed);
            let committed = self.commit(&mut batch);
            // What did not fit any more is the beginning of the next batch.
            let left = batch.split_off(committed.as_ref().map_or(batch.len(), |count| *count));
            let failure = committed.err();
            self.metrics.batch_size.observe(batch.len() as f64);
            if let Some(error) = &failure {
                tracing::error!(error = %error, batch.size = batch.len(), "a batch was not committed");
            }
            self.metrics.answers.fetch_add(batch.len() as u64, Ordering::Relaxed);
            for job in std::mem::replace(&mut batch, left) {
                job.answer(failure.as_ref());
            }
        }
    }

    /// One batch: optimistic first, with savepoints when a closure has to be undone, and again when the database went
    /// away before the commit.
    /// Answers how many closures it had room for.
    fn commit(&mut self, batch: &mut [Box<dyn Job>]) -> Result<usize, StoreError> {
        let mut savepoints = false;
        loop {
            let failed = match self.attempt(batch, savepoints) {
                Ok(count) => {
                    self.maps.keep();
                    self.beats.drain(..).for_each(|change| self.shared.take_over(change));
                    self.metrics.commits.fetch_add(1, Ordering::Relaxed);
                    self.away_since = None;
                    return Ok(count);
                }
                Err(failed) => failed,
            };
            self.undo();
            match failed {
                Failed::Closure | Failed::Database(StoreError::Database(_)) if !savepoints => {
                    savepoints = true;
                    self.metrics.replays.fetch_add(1, Ordering::Relaxed);
                }
                Failed::Database(error @ StoreError::Away(_)) => self.pause(error)?,
                Failed::Database(error) => return Err(error),
                Failed::Closure => {
                    return Err(StoreError::Database("a closure could not be undone".to_owned()));
                }
            }
        }
    }

    /// Waits a little for a database that is away, or gives up.
    fn pause(&mut self, error: StoreError) -> Result<(), StoreError> {
        self.connection = None;
        let away_since = *self.away_since.get_or_insert_with(Instant::now);
        if away_since.elapsed() > PATIENCE {
            return Err(error);
        }
        std::thread::park_timeout(PAUSE);
        Ok(())
    }

    /// Forgets everything a batch did. After a failure nothing cached about ports or numbers is trusted.
    fn undo(&mut self) {
        self.maps.clear();
        self.beats.clear();
        self.uses.clear();
        self.shared.door.doubt();
        self.seen = None;
        if self.connection.as_mut().is_some_and(|connection| connection.rollback().is_err()) {
            self.connection = None;
        }
    }

    fn attempt(&mut self, batch: &mut [Box<dyn Job>], savepoints: bool) -> Result<usize, Failed> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            missing => missing.insert(Connection::open(&self.location, Access::Write)?),
        };
        connection.begin(Access::Write)?;
        let found = take_turn(connection)?;
        match self.seen {
            Some(seen) if seen == found => {}
            Some(seen) => follow(connection, seen, found, &mut self.maps, &self.shared)?,
            None => {
                self.maps.clear();
                self.shared.beats.doubt();
            }
        }
        let mut next = found.next();
        let (begun, mut count) = (Instant::now(), 0);
        for job in batch {
            // Other servers wait meanwhile.
            if count > 0 && begun.elapsed() > TURN {
                break;
            }
            count += 1;
            if savepoints {
                connection.savepoint()?;
            }
            let before = (next, self.beats.len(), self.uses.len());
            let (maps, uses) = (&mut self.maps, &mut self.uses);
            let mut tx = Tx::new(connection, &self.shared, maps, &mut self.beats, uses, &mut next);
            tx.alone = savepoints;
            if job.run(&mut tx) == Ran::Undo {
                if !savepoints {
                    return Err(Failed::Closure);
                }
                next = before.0;
                self.beats.truncate(before.1);
                self.uses.truncate(before.2);
                self.maps.clear();
                connection.undo_to_savepoint()?;
            } else if savepoints {
                connection.release_savepoint()?;
            }
        }
        let (maps, uses) = (&mut self.maps, &mut self.uses);
        Tx::new(connection, &self.shared, maps, &mut self.beats, uses, &mut next).count_uses()?;
        let seen = next.last();
        if seen != found || next.counts != Counts::default() {
            let values = [&values![seen.seq, seen.changes][..], &next.counts.values()].concat();
            connection.later(ADVANCE, &values)?;
        }
        let begun = Instant::now();
        connection.commit()?;
        self.metrics.commit_seconds.observe_seconds(begun.elapsed());
        self.seen = Some(seen);
        self.shared.note_newest(seen.seq);
        Ok(count)
    }
}

/// The end of a batch: the newest numbers, and how many more there are of everything.
const ADVANCE: &str = "update event_seq set seq = $1, changes = $2, instances = instances + $3, \
                       reservations = reservations + $4, leases = leases + $5, listeners = listeners + $6, \
                       conflicts = conflicts + $7, unreserved = unreserved + $8, ignored = ignored + $9 where id = 0";

/// Takes the row of the counters, which makes this writer the only one of the whole cluster until the commit.
fn take_turn(connection: &mut Connection) -> Result<Seen, StoreError> {
    let taken =
        connection.query("update event_seq set seq = seq where id = 0 returning seq, changes", &[])?;
    let mut row = taken.first().ok_or_else(|| StoreError::Corrupt("no event counter".to_owned()))?;
    Ok(Seen { seq: row.take()?, changes: row.take()? })
}
