//! The one store: intent, fact and history, behind one writer.
//!
//! [`Store::write`] queues a closure for the only writer of the process and awaits its answer; the writer runs whatever
//! waits in one transaction and syncs once for all of them ([`writer`]). [`Store::read`] runs a closure on a read-only
//! connection with a consistent view. Both speak one SQL text (`driver.rs` knows the dialects). What a closure may do
//! is written down noun by noun as methods of [`Reader`] and [`Tx`].
//!
//! Promises: what was answered is on disk (unchanged heartbeats excepted, see [`Store::contact`]); events are numbered
//! in commit order without a gap; a refusal has written nothing.

mod arms;
mod backup;
mod beats;
mod claims;
mod contacts;
mod copy;
mod counts;
mod database_url;
mod directory;
mod door;
mod drift;
mod driver;
mod edit;
mod ensure;
mod error;
mod events;
mod explain;
mod filler;
mod follow;
mod gaps;
mod history;
mod idempotency;
mod ignores;
mod instances;
mod labelled;
mod leases;
mod limits;
mod listeners;
mod log;
mod members;
mod membership;
mod metrics;
mod migrate;
mod page;
mod pick;
mod pool_cache;
mod pool_use;
mod pools;
mod port_map;
mod ports;
mod presence;
mod private;
mod prune;
mod release;
mod renewals;
mod reservations;
mod reserve;
mod restore;
mod rows;
#[cfg(test)]
mod samples;
mod schema;
mod settle;
mod silent;
mod space;
mod targets;
mod tokens;
mod tx;
mod value;
mod verify;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gk_model::access::Actor;
use gk_model::contact::{Contact, ContactAnswer};
use gk_model::id::InstanceId;
use gk_model::secret::SecretHash;
use gk_model::time::Timestamp;
use tokio::sync::{Semaphore, watch};

pub use crate::backup::{BackupError, backup};
use crate::beats::{BeatChange, Beats};
pub use crate::copy::{Copied, Progress};
pub use crate::database_url::{DatabaseUrl, DatabaseUrlError};
use crate::directory::DirectoryLock;
pub use crate::directory::OpenError;
use crate::door::Door;
use crate::driver::{Access, Connection, Location};
pub use crate::error::{Error, Refusal, StoreError};
pub use crate::events::Logged;
pub use crate::explain::Unexplained;
#[doc(hidden)]
pub use crate::filler::{Filling, fill_history, filled_from};
pub use crate::idempotency::{Keyed, Once};
pub use crate::leases::ExpiryReport;
use crate::metrics::Statements;
pub use crate::metrics::{Distribution, Histogram, StatementCounters, StoreMetrics};
pub use crate::pool_use::PoolFill;
pub use crate::private::Exposed;
pub use crate::prune::{Pruned, Retention};
pub use crate::restore::restore;
pub use crate::tokens::may_see;
pub use crate::tx::{Reader, Tx};
pub use crate::verify::{Checked, Verdict, verify};
use crate::writer::Writer;
pub use crate::writer::WriterCounters;

/// How many reads run at once.
const READERS: usize = 8;

/// Where a store is, and how it works.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The data directory, of this process alone. The SQLite database is in it.
    pub directory: PathBuf,
    /// A PostgreSQL database, which several servers may share, instead of SQLite.
    pub database: Option<DatabaseUrl>,
    /// How many writes one transaction may carry. Fewer than [`StoreConfig::MAX_BATCH`] only make it slower, which a
    /// benchmark may want to see.
    pub max_batch: usize,
    /// Whether leases go by the clock of a shared database, as they should where several servers disagree about the
    /// time, and not by the time that each call brings along.
    pub database_clock: bool,
}

impl StoreConfig {
    /// How many writes one transaction may carry unless told.
    pub const MAX_BATCH: usize = 4096;

    /// SQLite in this directory.
    pub fn embedded(directory: impl Into<PathBuf>) -> StoreConfig {
        StoreConfig {
            directory: directory.into(),
            database: None,
            max_batch: StoreConfig::MAX_BATCH,
            database_clock: true,
        }
    }

    /// The database for people: the file, or the address without its password.
    pub fn place(&self) -> String {
        Location::of(self).to_string()
    }
}

/// A handle to the store; clones share it.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    location: Location,
    shared: Arc<Shared>,
    writer: Writer,
    /// How many may read at once; each has a connection, and more of them would only wait for the disk.
    reading: Arc<Semaphore>,
    /// The same for finding out who calls, so that long lists do not keep everybody waiting at the door.
    at_the_door: Arc<Semaphore>,
    idle_readers: Mutex<Vec<Connection>>,
    _lock: DirectoryLock,
}

/// What reading and writing both need to know.
pub(crate) struct Shared {
    pub(crate) started_at: Timestamp,
    pub(crate) beats: Beats,
    pub(crate) door: Door,
    /// Whether leases go by the database's clock.
    pub(crate) database_clock: bool,
    pub(crate) statements: Statements,
    /// The newest event that this process knows to be committed.
    pub(crate) newest: watch::Sender<u64>,
}

impl Shared {
    pub(crate) fn new(config: &StoreConfig, started_at: Timestamp) -> Shared {
        Shared {
            started_at,
            beats: Beats::default(),
            door: Door::default(),
            database_clock: config.database_clock && config.database.is_some(),
            statements: Statements::default(),
            newest: watch::Sender::new(0),
        }
    }
}

impl Shared {
    /// An event of this number is committed, and so is each before it.
    pub(crate) fn note_newest(&self, seq: u64) {
        self.newest.send_if_modified(|newest| std::mem::replace(newest, seq.max(*newest)) < seq);
    }

    /// What a batch changed about instances, once it is committed and before anybody is answered.
    pub(crate) fn take_over(&self, change: BeatChange) {
        match change {
            BeatChange::Ended(instance) => self.door.forget(instance),
            BeatChange::Revoked(token) => self.door.forget_token(token),
            BeatChange::Applied(..) | BeatChange::Silent(_) => {}
        }
        self.beats.apply(change);
    }
}

impl Store {
    /// Opens the store. Its directory is created when missing and then owned by this process alone.
    ///
    /// # Errors
    /// [`OpenError`] when the directory cannot be used, another server owns it, or the database is out of reach, not
    /// ours, damaged or from a newer version. A refused database is left untouched.
    pub async fn open(config: StoreConfig, now: Timestamp) -> Result<Store, OpenError> {
        // Connecting blocks.
        let place = config.place();
        let opened = tokio::task::spawn_blocking(move || Store::open_here(&config, now)).await;
        let store = opened.unwrap_or_else(|fault| Err(OpenError::Fault(fault.to_string())))?;
        // What an older version did not keep, before anybody is shown it.
        loop {
            match store.sweep(now).await {
                Ok(true) => {}
                Ok(false) => return Ok(store),
                Err(Error::Failed(source)) => return Err(OpenError::Database { place, source }),
                Err(error) => return Err(OpenError::Fault(error.to_string())),
            }
        }
    }

    pub(crate) fn open_here(config: &StoreConfig, now: Timestamp) -> Result<Store, OpenError> {
        let lock = DirectoryLock::acquire(&config.directory)?;
        let location = Location::of(config);
        let about = |source| OpenError::Database { place: config.place(), source };
        prepare(&location, now).map_err(about)?;
        let connection = Connection::open(&location, Access::Write).map_err(about)?;
        let shared = Arc::new(Shared::new(config, now));
        let writer = Writer::start(connection, location.clone(), Arc::clone(&shared), config.max_batch)
            .map_err(OpenError::Thread)?;
        Ok(Store(Arc::new(Inner {
            location,
            shared,
            writer,
            reading: Arc::new(Semaphore::new(READERS)),
            at_the_door: Arc::new(Semaphore::new(READERS)),
            idle_readers: Mutex::default(),
            _lock: lock,
        })))
    }

    /// Runs `work` in the writer's next batch; the answer comes after its commit.
    ///
    /// `work` may run more than once: when a neighbour in the batch fails, the batch is rolled back and replayed. So it
    /// must be pure but for `tx`, with `now` captured. A refusal must come before its first write.
    ///
    /// # Errors
    /// What `work` answers, or [`Error::Failed`] when the batch could not be committed.
    pub async fn write<T, W>(&self, work: W) -> Result<T, Error>
    where
        T: Send + 'static,
        W: FnMut(&mut Tx<'_>) -> Result<T, Error> + Send + 'static,
    {
        self.write_explained(work).await
    }

    /// Runs `work` on a read-only connection, in one consistent view, on a thread that may block.
    ///
    /// `work` may run twice, when a connection that was kept turns out to have been cut meanwhile.
    ///
    /// # Errors
    /// What `work` answers, or [`Error::Failed`] when the database cannot be read.
    pub async fn read<T, W>(&self, work: W) -> Result<T, Error>
    where
        T: Send + 'static,
        W: FnMut(&mut Reader<'_>) -> Result<T, Error> + Send + 'static,
    {
        self.read_in_turn(&self.0.reading, work).await
    }

    /// Who comes with the secret of this hash: an instance that has not left, or a token that is neither revoked nor
    /// expired at `now`. Who came before is remembered for as long as that is sure to be true, or, where other servers
    /// write to the same database, for a second.
    ///
    /// # Errors
    /// [`Error::Failed`] when the database cannot be read.
    pub async fn find_actor(&self, hash: SecretHash, now: Timestamp) -> Result<Option<Actor>, Error> {
        let door = &self.0.shared.door;
        let found = match door.find(hash, self.0.location.is_shared(), now) {
            Ok(known) => known,
            Err(endings) => {
                let look_up = move |reader: &mut Reader<'_>| Ok(reader.find_known(hash, now)?);
                let known = self.read_in_turn(&self.0.at_the_door, look_up).await?;
                let actor = known.as_ref().map(|known| known.actor.clone());
                known.into_iter().for_each(|known| door.remember(hash, known, endings));
                actor
            }
        };
        if let Some(token) = found.as_ref().and_then(|actor| actor.token) {
            door.note_use(token, now);
        }
        Ok(found)
    }

    async fn read_in_turn<T, W>(&self, turns: &Arc<Semaphore>, work: W) -> Result<T, Error>
    where
        T: Send + 'static,
        W: FnMut(&mut Reader<'_>) -> Result<T, Error> + Send + 'static,
    {
        let turn = Arc::clone(turns).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let store = self.clone();
        let run = move || {
            // Held by the work itself: whoever asked may give up waiting, and the connection is busy all the same.
            let _turn = turn;
            store.read_here(work)
        };
        tokio::task::spawn_blocking(run).await.map_err(|fault| StoreError::Panicked(fault.to_string()))?
    }

    fn read_here<T>(&self, mut work: impl FnMut(&mut Reader<'_>) -> Result<T, Error>) -> Result<T, Error> {
        // Named, so that the list is not locked while the connection is used.
        let kept = self.idle_readers().pop();
        if let Some(kept) = kept {
            match self.read_on(kept, &mut work) {
                Err(Error::Failed(StoreError::Away(_))) => self.idle_readers().clear(),
                answer => return answer,
            }
        }
        self.read_on(Connection::open(&self.0.location, Access::Read)?, &mut work)
    }

    fn read_on<T>(
        &self,
        mut connection: Connection,
        work: &mut impl FnMut(&mut Reader<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        connection.begin(Access::Read)?;
        let answer = work(&mut Reader::new(&mut connection, &self.0.shared));
        // A connection that cannot be given back clean is not given back; what was read stays read.
        if connection.rollback().is_ok() {
            self.idle_readers().push(connection);
        }
        answer
    }

    fn idle_readers(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.0.idle_readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the contact of an instance that came with this credential.
    ///
    /// A heartbeat that confirms what is known changes memory only and is written down by [`Store::flush_contacts`];
    /// everything else is durable when answered.
    ///
    /// # Errors
    /// [`Refusal::IdentitySuperseded`] and the other refusals of [`Tx::apply_contact`].
    pub async fn contact(
        &self,
        instance: InstanceId,
        credential: SecretHash,
        contact: Contact,
        received_at: Timestamp,
    ) -> Result<ContactAnswer, Error> {
        if let Some(answer) = self.0.shared.beats.confirm(instance, credential, &contact, received_at) {
            return Ok(answer);
        }
        self.write(move |tx| tx.apply_contact(instance, credential, &contact, received_at)).await
    }

    /// Writes down the contacts, and the uses of tokens, that so far are only in memory.
    ///
    /// # Errors
    /// [`Error::Failed`]; the contacts stay in memory for the next time.
    pub async fn flush_contacts(&self) -> Result<(), Error> {
        let (beats, uses) = (self.0.shared.beats.list_unwritten(), self.0.shared.door.list_unwritten());
        // Where other servers write too, even an empty batch brings news of them.
        if beats.is_empty() && uses.is_empty() && !self.0.location.is_shared() {
            return Ok(());
        }
        let written = (beats.clone(), uses.clone());
        let flush = move |tx: &mut Tx<'_>| {
            tx.update_contact_times(&beats)?;
            tx.update_last_uses(&uses)
        };
        self.write(flush).await?;
        self.0.shared.beats.mark_written(&written.0);
        self.0.shared.door.mark_written(&written.1);
        Ok(())
    }

    /// Wakes whoever waits for events: it changes, after the commit, with each batch of this process that has any. Its
    /// value is a number that has been committed, not always the newest: other servers are heard of late, and by
    /// [`Store::look_for_events`] at once.
    pub fn newest_seq(&self) -> watch::Receiver<u64> {
        self.0.shared.newest.subscribe()
    }

    /// Asks whether another server has written events meanwhile, where there may be others; cheap.
    ///
    /// # Errors
    /// Only when the database fails.
    #[expect(clippy::redundant_closure_for_method_calls, reason = "the method itself is not general enough")]
    pub async fn look_for_events(&self) -> Result<(), Error> {
        if self.0.location.is_shared() {
            let seq = self.read(|reader| reader.newest_seq()).await?;
            self.0.shared.note_newest(seq);
        }
        Ok(())
    }

    /// Whether changes are still taken: the writer runs.
    pub fn takes_changes(&self) -> bool {
        self.0.writer.is_running()
    }

    /// How much the writer has done since it started.
    pub fn writer_counters(&self) -> WriterCounters {
        self.0.writer.metrics().counters()
    }

    /// The same, and how it does: its queue, its batches, its commits.
    pub fn metrics(&self) -> StoreMetrics {
        self.0.writer.metrics().snapshot(&self.0.shared.statements)
    }

    /// Finishes everything that was accepted, then stops. Later calls answer [`StoreError::Closed`]. Blocks.
    pub fn close(&self) {
        // The writer's connection is to be the last: then the write-ahead log is folded into the database.
        self.idle_readers().clear();
        self.0.writer.close();
    }
}

/// Brings a database to the newest version, on a connection that has all the time that takes.
fn prepare(location: &Location, now: Timestamp) -> Result<(), StoreError> {
    let mut connection = Connection::open(location, Access::Write)?;
    connection.take_all_time()?;
    migrate::refuse_backup(&mut connection)?;
    migrate::migrate(&mut connection, now)?;
    history::search_old(&mut connection)?;
    log::ensure_log(&mut connection, now)
}
