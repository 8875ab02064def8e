//! A store in a throw-away directory, and short words for what tests do with it.

use std::path::PathBuf;
use std::time::Duration;

use gk_model::access::{Actor, Authority, Role};
use gk_model::contact::{Closed, Contact, ContactAnswer, ContactBody, Family, Part, Piece, Session};
use gk_model::facts::Facts;
use gk_model::history::{Event, Interval};
use gk_model::id::InstanceId;
use gk_model::instance::{InstancePatch, JoinRequest};
use gk_model::labels::{Label, Labels};
use gk_model::listener::{Digest, Listener, ListenerKey, Netns, Owner};
use gk_model::pool::{Pool, PoolSpec};
use gk_model::port::{Port, Protocol};
use gk_model::port_set::PortSet;
use gk_model::query::{EventQuery, HistoryQuery, Limit, ReservationQuery};
use gk_model::reservation::{PortCount, Reservation, ReserveRequest};
use gk_model::secret::{Secret, SecretHash, SecretKind};
use gk_model::time::Timestamp;
use gk_store::{DatabaseUrl, Error, Refusal, Store, StoreConfig, Tx};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use uuid::Uuid;

pub(crate) struct World {
    pub(crate) directory: TempDir,
    pub(crate) config: StoreConfig,
    pub(crate) store: Store,
}

/// When every test begins: 2023-11-14T22:13:20Z, and so many seconds later.
pub(crate) fn at(seconds: u64) -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000).plus(Duration::from_secs(seconds))
}

pub(crate) fn actor(subject: &str, role: Role) -> Actor {
    Actor::new(subject.parse().unwrap(), Authority::Role(role))
}

pub(crate) fn port(number: u16) -> Port {
    Port::new(number).unwrap()
}

/// The hash of the credential that the instance joined with this seed has.
pub(crate) fn credential(seed: u8) -> SecretHash {
    Secret::from_random(SecretKind::Instance, &[seed; 32]).hash()
}

pub(crate) fn join_request(name: &str, seed: u8) -> JoinRequest {
    JoinRequest {
        name: Some(name.parse().unwrap()),
        credential_hash: credential(seed),
        facts: Facts { host_name: name.into(), ..Facts::default() },
        labels: Labels::default(),
        replace: None,
    }
}

pub(crate) fn listener(
    protocol: Protocol,
    address: &str,
    number: u16,
    pid: u32,
    first_seen_at: Timestamp,
) -> Listener {
    let owner = Owner {
        pid,
        started_ticks: 1,
        name: format!("worker-{pid}").as_str().into(),
        exe: Some("/usr/bin/worker".into()),
        account: "ada".into(),
    };
    Listener {
        key: ListenerKey {
            netns: Netns::Home,
            protocol,
            port: port(number),
            address: address.parse().unwrap(),
            interface: None,
            v6only: false,
        },
        account: Some("ada".into()),
        owners: vec![owner].into(),
        more_owners: 0,
        unit: None,
        container: None,
        first_seen_at,
        last_seen_at: first_seen_at,
    }
}

pub(crate) fn everything_covered() -> Vec<Part> {
    let parts = Protocol::ALL.iter().flat_map(|protocol| {
        Family::ALL.iter().map(|family| Part { netns: Netns::Home, protocol: *protocol, family: *family })
    });
    parts.collect()
}

/// What an agent would send: it keeps the session and counts.
#[derive(Clone, Copy)]
pub(crate) struct FakeAgent {
    pub(crate) id: InstanceId,
    pub(crate) credential: SecretHash,
    pub(crate) session: Session,
    pub(crate) sequence: u64,
}

impl FakeAgent {
    fn contact(&self, body: ContactBody, digest: Digest, now: Timestamp) -> Contact {
        Contact {
            session: self.session,
            opening: None,
            sequence: self.sequence,
            sent_at: now,
            digest,
            agent_version: "test".into(),
            body,
        }
    }

    pub(crate) fn heartbeat(&self, listeners: &[Listener], now: Timestamp) -> Contact {
        self.contact(ContactBody::Heartbeat, Digest::of(listeners), now)
    }

    pub(crate) fn report(&mut self, listeners: &[Listener], now: Timestamp) -> Contact {
        self.report_of(everything_covered(), listeners, now)
    }

    pub(crate) fn report_of(
        &mut self,
        covered: Vec<Part>,
        listeners: &[Listener],
        now: Timestamp,
    ) -> Contact {
        self.sequence += 1;
        let body = ContactBody::Report {
            seen_at: None,
            covered,
            listeners: listeners.to_vec(),
            closed: vec![],
            occupied: vec![],
            churned: vec![],
            piece: Piece::default(),
            namespaces: None,
        };
        self.contact(body, Digest::of(listeners), now)
    }

    /// `after` is the whole set that the agent has once the delta is applied.
    pub(crate) fn delta(
        &mut self,
        seen: &[Listener],
        closed: &[(ListenerKey, Timestamp)],
        after: &[Listener],
        now: Timestamp,
    ) -> Contact {
        let base = self.sequence;
        self.sequence += 1;
        let closed = closed.iter().map(|(key, at)| Closed { key: key.clone(), at: *at }).collect();
        let body =
            ContactBody::Delta { base, listeners: seen.to_vec(), closed, occupied: None, churned: vec![] };
        self.contact(body, Digest::of(after), now)
    }
}

/// Leases go by the times that the tests bring along, whichever database it is.
fn config(directory: &TempDir, database: Option<DatabaseUrl>) -> StoreConfig {
    StoreConfig { database, database_clock: false, ..StoreConfig::embedded(directory.path()) }
}

/// A writer that is kept busy.
pub(crate) struct Busy {
    store: Store,
    free: std::sync::mpsc::Sender<()>,
    wait: JoinHandle<Result<(), Error>>,
}

impl Busy {
    /// Lets it go on once so many changes are queued.
    pub(crate) async fn free_when(self, queued: u64) {
        while self.store.metrics().queue_length < queued {
            tokio::task::yield_now().await;
        }
        self.free.send(()).unwrap();
        self.wait.await.unwrap().unwrap();
    }
}

impl World {
    /// On SQLite, or in a PostgreSQL database of its own.
    pub(crate) async fn new(database: Option<DatabaseUrl>) -> World {
        let directory = TempDir::new().unwrap();
        let config = config(&directory, database);
        World::open(directory, config, at(0)).await
    }

    /// What a backup holds, in an empty database.
    pub(crate) async fn from_backup(database: Option<DatabaseUrl>, file: PathBuf, now: Timestamp) -> World {
        let directory = TempDir::new().unwrap();
        let config = config(&directory, database);
        let to = config.clone();
        let restore = move || gk_store::restore(&to, &file, now, &mut |_| {}).unwrap();
        tokio::task::spawn_blocking(restore).await.unwrap();
        World::open(directory, config, now).await
    }

    async fn open(directory: TempDir, config: StoreConfig, now: Timestamp) -> World {
        let store = Store::open(config.clone(), now).await.unwrap();
        World { directory, config, store }
    }

    /// Closes the store as a clean shutdown does, and opens it again.
    pub(crate) async fn reopen(self, now: Timestamp) -> World {
        self.store.close();
        let World { directory, config, store } = self;
        drop(store);
        World::open(directory, config, now).await
    }

    pub(crate) async fn join(&self, name: &str, seed: u8) -> InstanceId {
        let (request, admin) = (join_request(name, seed), actor("root", Role::Admin));
        self.store.write(move |tx| tx.join(&admin, &request, at(0))).await.unwrap().0.id
    }

    /// Joins an instance and opens its agent's first session with these listeners.
    pub(crate) async fn join_with_agent(&self, name: &str, seed: u8, listeners: &[Listener]) -> FakeAgent {
        let id = self.join(name, seed).await;
        let mut agent = FakeAgent { id, credential: credential(seed), session: Session(0), sequence: 0 };
        let mut opening = agent.report(listeners, at(0));
        opening.opening = Some(Uuid::from_u128(u128::from(seed)));
        agent.session = self.contact(&agent, opening, at(0)).await.unwrap().session;
        agent
    }

    pub(crate) async fn contact(
        &self,
        agent: &FakeAgent,
        contact: Contact,
        received_at: Timestamp,
    ) -> Result<ContactAnswer, Error> {
        self.store.contact(agent.id, agent.credential, contact, received_at).await
    }

    pub(crate) async fn reserve(
        &self,
        actor: &Actor,
        request: &ReserveRequest,
        now: Timestamp,
    ) -> Result<Reservation, Error> {
        let (actor, request) = (actor.clone(), request.clone());
        self.store.write(move |tx| tx.reserve(&actor, &request, now)).await
    }

    pub(crate) async fn reserve_port(
        &self,
        actor: &Actor,
        id: InstanceId,
        number: u16,
    ) -> Result<Reservation, Error> {
        let request = ReserveRequest { port: Some(port(number)), ..ReserveRequest::next_free(id) };
        self.reserve(actor, &request, at(0)).await
    }

    pub(crate) async fn release(
        &self,
        actor: &Actor,
        made: &Reservation,
        now: Timestamp,
    ) -> Result<Reservation, Error> {
        let (actor, id) = (actor.clone(), made.id);
        self.store.write(move |tx| tx.release(&actor, id, None, false, None, now)).await
    }

    pub(crate) async fn next_free(&self, id: InstanceId) -> u16 {
        let ada = actor("ada", Role::User);
        self.reserve(&ada, &ReserveRequest::next_free(id), at(0)).await.unwrap().first_port.get()
    }

    /// Everything that a request makes.
    pub(crate) async fn reserve_group(
        &self,
        actor: &Actor,
        request: &ReserveRequest,
        now: Timestamp,
    ) -> Result<Vec<Reservation>, Error> {
        let (actor, request) = (actor.clone(), request.clone());
        self.store.write(move |tx| tx.reserve_group(&actor, &request, now).map(|made| made.items)).await
    }

    pub(crate) async fn release_part(
        &self,
        actor: &Actor,
        made: &Reservation,
        part: &str,
        now: Timestamp,
    ) -> Result<Reservation, Error> {
        let (actor, id, part) = (actor.clone(), made.id, part.parse().unwrap());
        self.store.write(move |tx| tx.release(&actor, id, Some(part), false, None, now)).await
    }

    /// Gives an instance these labels, and no others.
    pub(crate) async fn label(&self, id: InstanceId, label: &str) {
        let labels = Labels::try_from(vec![label.parse::<Label>().unwrap()]).unwrap();
        let patch = InstancePatch { labels: Some(labels), ..InstancePatch::default() };
        let admin = actor("root", Role::Admin);
        let label = move |tx: &mut gk_store::Tx<'_>| {
            tx.update_instance(&admin, &id.into(), &patch, None, at(0)).map(drop)
        };
        self.store.write(label).await.unwrap();
    }

    pub(crate) async fn leave(&self, id: InstanceId, release: bool, now: Timestamp) -> Result<(), Error> {
        let admin = actor("root", Role::Admin);
        self.store.write(move |tx| tx.leave(&admin, &id.into(), release, None, now)).await
    }

    pub(crate) async fn set_pool(
        &self,
        name: &str,
        spec: PoolSpec,
        version: Option<u64>,
    ) -> Result<(Pool, bool), Error> {
        let (root, name) = (actor("root", Role::Admin), name.parse().unwrap());
        self.store.write(move |tx| tx.set_pool(&root, &name, &spec, version, at(0))).await
    }

    /// Keeps the writer busy, so that what is queued meanwhile becomes one batch.
    pub(crate) async fn occupy(&self) -> Busy {
        let (busy, is_busy) = tokio::sync::oneshot::channel();
        let (free, is_free) = std::sync::mpsc::channel::<()>();
        let (store, mut busy) = (self.store.clone(), Some(busy));
        let wait = tokio::spawn(async move {
            let wait = move |_: &mut Tx<'_>| {
                busy.take().into_iter().for_each(|busy| busy.send(()).unwrap());
                is_free.recv().unwrap();
                Ok(())
            };
            store.write(wait).await
        });
        is_busy.await.unwrap();
        Busy { store: self.store.clone(), free, wait }
    }

    /// Every interval, oldest first.
    pub(crate) async fn history(&self) -> Vec<Interval> {
        let query = HistoryQuery { limit: Some(Limit::MAX), ..Default::default() };
        let mut found = self.store.read(move |reader| reader.list_history(&query)).await.unwrap().items;
        found.reverse();
        found
    }

    /// Every live reservation, page by page.
    pub(crate) async fn live(&self) -> Vec<Reservation> {
        let mut live = Vec::new();
        let mut query = ReservationQuery { limit: Some(Limit::MAX), ..Default::default() };
        loop {
            let asked = query.clone();
            let page = self.store.read(move |reader| reader.list_reservations(&asked, at(0))).await.unwrap();
            live.extend(page.items);
            match page.next {
                None => return live,
                next => query.cursor = next,
            }
        }
    }

    /// `8000-8004/tcp` of every live reservation, by instance, protocol and port.
    pub(crate) async fn live_ports(&self) -> Vec<String> {
        self.live().await.iter().map(told).collect()
    }

    /// The whole event log, page by page.
    pub(crate) async fn events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut query = EventQuery { limit: Some(Limit::at_most(7)), ..Default::default() };
        loop {
            let asked = query.clone();
            let page = self.store.read(move |reader| reader.list_events(&asked)).await.unwrap();
            events.extend(page.items);
            match page.next {
                None => return events,
                next => query.cursor = next,
            }
        }
    }
}

/// `8000-8004/tcp`.
pub(crate) fn told(made: &Reservation) -> String {
    format!("{}/{}", made.ports(), made.protocol)
}

/// A pool of `8000-8009,9100`, and everything else as it is unless told.
pub(crate) fn pool_spec(ranges: &str) -> PoolSpec {
    let mut ports = PortSet::default();
    ranges.split(',').for_each(|range| ports.insert_range(range.parse().unwrap()));
    PoolSpec::of(ports)
}

/// This many contiguous ports.
pub(crate) fn count(count: i64) -> PortCount {
    PortCount::try_from(count).unwrap()
}

/// The refusal inside an answer that must be one.
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<T, Error>) -> Refusal {
    match answer {
        Err(Error::Refused(refusal)) => *refusal,
        other => panic!("expected a refusal, got {other:?}"),
    }
}
