//! What the server does without being asked.
//!
//! A job ticks until the server stops and then returns. It reports when it begins to fail and when it works again,
//! not at every tick in between.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use gk_model::id::InstanceId;
use gk_model::instance::OFFLINE_AFTER;
use gk_model::lease::{ClockVerdict, Tick, judge};
use gk_model::time::Timestamp;
use gk_store::{Error, ExpiryReport, Pruned, Retention, Store, Tx};
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};

use crate::app::Clock;
use crate::error::chain;
use crate::serve::stopped;

/// How long an unchanged heartbeat may stay in memory only. A crash loses no more than this of "last contact".
const FLUSH_CONTACTS_EVERY: Duration = Duration::from_secs(2);

/// How often old history is looked for. What is left over then is a minute older than it has to be.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// How many rows of each table one batch of pruning takes: a few milliseconds of the writer's time.
const PRUNE_AT_ONCE: u32 = 500;

/// How far apart these batches are: several times what one takes, so that a backlog never fills the writer.
const PRUNE_TURNS: Duration = Duration::from_millis(25);

/// How often leases are looked at. One ends at most this much later than it could.
const EXPIRE_LEASES_EVERY: Duration = Duration::from_secs(1);

/// How often it is looked whether changed ignore rules are to be applied.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// How often it is looked for who is offline: by this much later it is told.
const MARK_OFFLINE_EVERY: Duration = Duration::from_secs(5);

/// The rhythm of a job, and whether it does what it should.
struct Job {
    ticks: Interval,
    stop: watch::Receiver<bool>,
    /// What it means when it fails.
    trouble: &'static str,
    failing: bool,
}

impl Job {
    fn new(every: Duration, trouble: &'static str, stop: watch::Receiver<bool>) -> Job {
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Job { ticks, stop, trouble, failing: false }
    }

    /// Waits for the next tick; false when the server stops instead.
    async fn is_due(&mut self) -> bool {
        tokio::select! {
            _ = self.ticks.tick() => true,
            () = stopped(&mut self.stop) => false,
        }
    }

    /// What was done, unless it failed.
    fn report<T>(&mut self, outcome: Result<T, Error>) -> Option<T> {
        match outcome {
            Ok(done) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!("no longer: {}", self.trouble);
                }
                Some(done)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(error = chain(&error), "{} for now", self.trouble);
                }
                None
            }
        }
    }
}

/// How often silent instances are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// For how long an instance must have been found silent without a break before it is forgotten: by a clock that never
/// steps, and long enough for every agent to come back after a start of the server.
const FORGET_GRACE: Duration = Duration::from_mins(10);

/// Writes the heartbeats that are kept in memory to the database. The last flush, at shutdown, is
/// [`run`](crate::run)'s, after the last connection has ended.
pub(crate) async fn flush_contacts(store: Store, stop: watch::Receiver<bool>) {
    let mut job = Job::new(FLUSH_CONTACTS_EVERY, "heartbeats are not stored", stop);
    while job.is_due().await {
        job.report(store.flush_contacts().await);
    }
}

/// Takes away what is more than the retention; what is too old only by a clock that has been steady, and that the log
/// bears out.
pub(crate) async fn prune(store: Store, clock: Clock, retention: Retention, stop: watch::Receiver<bool>) {
    let mut job = Job::new(PRUNE_EVERY, "old history is not taken away", stop);
    let mut calm = Calm::default();
    while job.is_due().await {
        // Monotonic time first, as for leases.
        let (here, now) = (tokio::time::Instant::now().into_std(), clock());
        let now = calm.look(now, here).then_some(now);
        let pruned = tokio::select! {
            pruned = prune_all(&store, now, retention) => pruned,
            () = stopped(&mut job.stop) => return,
        };
        if let Some(events @ 1..) = job.report(pruned) {
            tracing::info!(events.count = events, "old history was taken away");
        }
    }
}

/// Batch after batch until nothing old is left, with pauses in which others write. Answers the number of events. All of
/// them go by one time: the clock may step in between.
async fn prune_all(store: &Store, now: Option<Timestamp>, retention: Retention) -> Result<u64, Error> {
    let mut events = 0;
    let mut turns = tokio::time::interval(PRUNE_TURNS);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        let batch = move |tx: &mut Tx<'_>| {
            let now = now.map_or(Ok(None), |now| tx.believe(now))?;
            tx.prune(now, retention, PRUNE_AT_ONCE)
        };
        let pruned: Pruned = store.write(batch).await?;
        events += pruned.events;
        if !pruned.is_partial {
            return Ok(events);
        }
    }
}

/// Lets instances leave that their join token said to forget.
pub(crate) async fn forget_silent(store: Store, clock: Clock, stop: watch::Receiver<bool>) {
    let mut job = Job::new(FORGET_EVERY, "silent instances are not forgotten", stop);
    let mut silence = Silence::default();
    while job.is_due().await {
        let forgotten = forget_due(&store, clock(), &mut silence).await;
        if let Some(count @ 1..) = job.report(forgotten) {
            tracing::info!(instances.count = count, "silent instances were forgotten");
        }
    }
}

async fn forget_due(store: &Store, now: Timestamp, silence: &mut Silence) -> Result<u64, Error> {
    let silent = store.read(move |reader| reader.list_silent(now)).await?;
    let due = silence.look(&silent, Instant::now());
    if due.is_empty() { Ok(0) } else { store.forget_silent(due, now).await }
}

/// Since when instances have been found silent, look after look.
#[derive(Default)]
struct Silence(HashMap<InstanceId, Instant>);

impl Silence {
    /// One look; answers whom to forget.
    fn look(&mut self, silent: &[InstanceId], here: Instant) -> Vec<InstanceId> {
        self.0.retain(|instance, _| silent.contains(instance));
        for instance in silent {
            self.0.entry(*instance).or_insert(here);
        }
        let is_due = |since: &Instant| here.duration_since(*since) >= FORGET_GRACE;
        self.0.iter().filter(|(_, since)| is_due(since)).map(|(instance, _)| *instance).collect()
    }
}

/// Writes down which instances have become offline.
pub(crate) async fn mark_offline(store: Store, clock: Clock, stop: watch::Receiver<bool>) {
    let mut job = Job::new(MARK_OFFLINE_EVERY, "it is not written down who is offline", stop);
    let mut calm = Calm::default();
    while job.is_due().await {
        // Monotonic time first, as for leases.
        let (here, now) = (Instant::now(), clock());
        if !calm.look(now, here) {
            continue;
        }
        let marked = store.mark_offline(now).await;
        if let Some(count @ 1..) = job.report(marked) {
            tracing::info!(instances.count = count, "instances are offline");
        }
    }
}

/// Since when the wall clock has gone on without a step, look after look. After one, and after a start, everybody seems
/// silent: nobody is called offline until every agent has had the time to be heard of. And all that is kept may seem old.
#[derive(Default)]
struct Calm {
    since: Option<Instant>,
    last: Option<(Timestamp, Instant)>,
}

impl Calm {
    /// One look; answers whether silence, and age, mean something by now.
    fn look(&mut self, now: Timestamp, here: Instant) -> bool {
        let since = *self.since.get_or_insert(here);
        let elapsed = self.last.map(|(_, last)| here.duration_since(last));
        let tick = Tick { now, elapsed, since_start: here.duration_since(since) };
        let verdict = judge(self.last.map(|(last_at, _)| last_at), &tick);
        self.last = Some((now, here));
        if matches!(verdict, ClockVerdict::Stepped(_)) {
            self.since = Some(here);
            return false;
        }
        tick.since_start >= OFFLINE_AFTER
    }
}

/// Ends leases whose time is over. While there are none, this only reads.
pub(crate) async fn expire_leases(store: Store, clock: Clock, stop: watch::Receiver<bool>) {
    let mut job = Job::new(EXPIRE_LEASES_EVERY, "leases are not ended", stop);
    let mut time = LeaseClock { started: Instant::now(), last: None };
    while job.is_due().await {
        let looked = expire_all(&store, &clock, &mut time).await;
        if job.report(looked).is_none() {
            // Nobody could renew either: the holders get the same grace as after a start.
            time.started = Instant::now();
        }
    }
}

/// Applies changed ignore rules to what they have not reached yet. While there is nothing to do, this only reads.
pub(crate) async fn sweep(store: Store, clock: Clock, stop: watch::Receiver<bool>) {
    let mut job = Job::new(SWEEP_EVERY, "ignore rules are not applied", stop);
    while job.is_due().await {
        while job.report(store.sweep(clock()).await) == Some(true) && !*job.stop.borrow() {}
    }
}

/// A clock that never steps: since when the server has been answering, and when it last looked at the leases with success.
struct LeaseClock {
    started: Instant,
    last: Option<Instant>,
}

/// One look, in as many batches as it takes.
async fn expire_all(store: &Store, clock: &Clock, time: &mut LeaseClock) -> Result<(), Error> {
    loop {
        // Monotonic time first: what passes between the two readings then counts as not passed, which is the safe side.
        let here = Instant::now();
        let tick = Tick {
            now: clock(),
            elapsed: time.last.map(|last| here.duration_since(last)),
            since_start: here.duration_since(time.started),
        };
        let ExpiryReport { expired, renewed, shifted_micros, more } = store.expire_leases(tick).await?;
        time.last = Some(here);
        if let Some(shifted) = shifted_micros {
            tracing::warn!(clock.step_us = shifted, "the clock stepped: every lease was moved by as much");
        }
        if expired + renewed > 0 {
            tracing::debug!(leases.expired = expired, leases.renewed = renewed, "leases ended");
        }
        if !more {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_means_nothing_after_a_start_or_a_step_of_the_clock() {
        let (mut calm, start) = (Calm::default(), Instant::now());
        let noon = Timestamp::from_micros(1_700_000_000_000_000);
        // Seconds of a clock that never steps; what the wall clock is off by; whether silence means something.
        let table = [
            (0, 0, false),
            (89, 0, false),
            (90, 0, true),
            (95, 0, true),
            (100, 7200, false),
            (189, 7200, false),
            (190, 7200, true),
            (195, -60, false),
            (290, -60, true),
        ];
        for (row, (seconds, off, means)) in table.into_iter().enumerate() {
            let now = Timestamp::from_micros(noon.as_micros() + (seconds as i64 + off) * 1_000_000);
            assert_eq!(calm.look(now, start + Duration::from_secs(seconds)), means, "row {row}");
        }
    }

    #[test]
    fn only_who_stays_silent_is_forgotten() {
        let [one, other] = [1000, 2000].map(|micros| InstanceId::generate(Timestamp::from_micros(micros)));
        let (mut silence, start) = (Silence::default(), Instant::now());
        let mut look = |minutes: u64, silent: &[InstanceId]| {
            let mut due = silence.look(silent, start + Duration::from_mins(minutes));
            due.sort_unstable();
            due
        };
        assert_eq!(look(0, &[one, other]), []);
        assert_eq!(look(9, &[one, other]), [], "as after a step of the clock, or a start");
        assert_eq!(look(10, &[one, other]), [one, other]);
        assert_eq!(look(11, &[one]), [one]);
        assert_eq!(look(12, &[one, other]), [one], "the other one was heard of in between");
        assert_eq!(look(22, &[one, other]), [one, other]);
    }
}
