//! A database that goes away, is not fit to be used, or is somebody else's.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use gk_model::id::InstanceId;
use gk_model::reservation::ReserveRequest;
use gk_store::{DatabaseUrl, Error, OpenError, Store, StoreConfig, StoreError};
use tempfile::TempDir;

use super::Server;
use crate::cluster::{self, Cluster};
use crate::store::world::{World, at};

async fn refusal(url: &DatabaseUrl) -> StoreError {
    let directory = TempDir::new().unwrap();
    let config = StoreConfig { database: Some(url.clone()), ..StoreConfig::embedded(directory.path()) };
    match Store::open(config, at(0)).await.err().expect("must be refused") {
        OpenError::Database { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

/// What was answered, and how much of it is waited for.
#[derive(Default)]
struct Ledger {
    given: BTreeSet<u16>,
    aim: usize,
}

impl Ledger {
    fn is_far_ahead(&self) -> bool {
        self.given.len() >= self.aim + 100
    }
}

/// Callers that reserve until told to stop. What was answered goes into the ledger; what was put off is tried again, and
/// what is unknown may be there or not.
async fn hammer(store: Store, id: InstanceId, ledger: Arc<Mutex<Ledger>>, stop: Arc<AtomicBool>) -> usize {
    let mut unknown = 0;
    while !stop.load(Ordering::Relaxed) {
        // A machine that is slow to do harm must not see the pool run out meanwhile.
        if ledger.lock().unwrap().is_far_ahead() {
            tokio::task::yield_now().await;
            continue;
        }
        let ada = crate::store::world::actor("ada", gk_model::access::Role::User);
        let request = ReserveRequest { busy: Default::default(), ..ReserveRequest::next_free(id) };
        match store.write(move |tx| tx.reserve(&ada, &request, at(0))).await {
            Ok(made) => {
                assert!(
                    ledger.lock().unwrap().given.insert(made.first_port.get()),
                    "a port was answered twice"
                );
            }
            Err(Error::Failed(StoreError::Away(_))) => {}
            Err(Error::Failed(StoreError::Unknown(_))) => unknown += 1,
            Err(other) => panic!("{other}"),
        }
    }
    unknown
}

/// Load from several callers while `harm` is done, then a look at what is there.
async fn under_load(world: &World, harm: impl AsyncFnOnce(&Mutex<Ledger>)) {
    let id = world.join("web-1", 1).await;
    let (ledger, stop) = (Arc::new(Mutex::new(Ledger::default())), Arc::new(AtomicBool::new(false)));
    let callers: Vec<_> = (0..8)
        .map(|_| tokio::spawn(hammer(world.store.clone(), id, Arc::clone(&ledger), Arc::clone(&stop))))
        .collect();
    harm(&ledger).await;
    stop.store(true, Ordering::Relaxed);
    let mut unknown = 0;
    for caller in callers {
        unknown += caller.await.unwrap();
    }
    let live: Vec<u16> = world.live().await.iter().map(|made| made.first_port.get()).collect();
    let stored: BTreeSet<u16> = live.iter().copied().collect();
    assert_eq!(live.len(), stored.len(), "a port is held twice");
    let ledger = ledger.lock().unwrap().given.clone();
    assert!(ledger.is_subset(&stored), "answered, and not there: {:?}", ledger.difference(&stored));
    let more = stored.difference(&ledger).count();
    assert!(more <= unknown, "{more} reservations nobody was told of, and {unknown} unknown answers");
    let numbers: Vec<u64> = world.events().await.iter().map(|event| event.seq).collect();
    assert_eq!(numbers, (1..=1 + stored.len() as u64).collect::<Vec<u64>>(), "the log has a gap");
}

/// Waits until this many more were answered.
async fn progress(ledger: &Mutex<Ledger>, more: usize) {
    let count = || ledger.lock().unwrap().given.len();
    let aim = count() + more;
    ledger.lock().unwrap().aim = aim;
    let reached = async {
        while count() < aim {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), reached).await.expect("no progress");
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_connections_lose_and_double_nothing() {
    let (cluster, name) = (cluster::shared(), format!("cut-{}", std::process::id()));
    let url = format!("{}&application_name={name}", cluster.create_url());
    let world = World::new(Some(url.parse().unwrap())).await;
    under_load(&world, async |ledger| {
        for _ in 0..10 {
            progress(ledger, 20).await;
            let cut = format!(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = '{name}'"
            );
            assert!(cluster.psql(&cut).status.success());
        }
        progress(ledger, 20).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_crashes_keeps_what_was_answered() {
    // On the disk, where a missing sync would show.
    let cluster = Cluster::start(std::env::temp_dir(), &[]);
    let world = World::new(Some(cluster.create_database())).await;
    under_load(&world, async |ledger| {
        for _ in 0..3 {
            progress(ledger, 50).await;
            cluster.crash();
            cluster.resume();
        }
        progress(ledger, 50).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_gone_for_a_while_is_told_so_and_used_again() {
    let cluster = Cluster::start(std::env::temp_dir(), &[]);
    let world = World::new(Some(cluster.create_database())).await;
    let id = world.join("web-1", 1).await;
    cluster.stop();
    let server = Server { store: world.store.clone(), _directory: TempDir::new().unwrap() };
    for _ in 0..3 {
        let answer = server.reserve(&ReserveRequest::next_free(id)).await;
        assert!(matches!(answer, Err(Error::Failed(StoreError::Away(_)))), "{answer:?}");
    }
    let read = world.store.read(move |reader| reader.get_instance(&id.into(), at(0))).await;
    assert!(matches!(read, Err(Error::Failed(StoreError::Away(_)))), "{read:?}");
    cluster.resume();
    assert_eq!(world.live().await, []);
    assert_eq!(server.next_free(id).await, 8000);
}

#[tokio::test]
async fn a_server_that_may_lose_what_it_acknowledged_is_refused() {
    for setting in ["fsync=off", "synchronous_commit=off", "full_page_writes=off"] {
        let cluster = Cluster::start(std::env::temp_dir(), &[setting]);
        let refusal = refusal(&cluster.create_database()).await.to_string();
        let (name, _) = setting.split_once('=').unwrap();
        assert_eq!(
            refusal,
            format!(
                "PostgreSQL has {name} = off, and would lose acknowledged changes in a crash: switch it on"
            )
        );
    }
}

#[tokio::test]
async fn a_database_of_somebody_else_or_of_a_newer_version_is_refused_untouched() {
    let cluster = cluster::shared();
    let url = cluster.create_url();
    let schema = url.rsplit("%3D").next().unwrap().to_owned();
    assert!(cluster.psql(&format!("create table {schema}.recipes (id bigint)")).status.success());
    assert!(matches!(refusal(&url.parse().unwrap()).await, StoreError::NotOurs(_)));
    let tables =
        cluster.psql(&format!("select tablename from pg_tables where schemaname = '{schema}'")).stdout;
    assert_eq!(String::from_utf8(tables).unwrap().trim(), "recipes");

    let newer = cluster.create_url();
    let schema = newer.rsplit("%3D").next().unwrap().to_owned();
    drop(World::new(Some(newer.parse().unwrap())).await);
    assert!(cluster.psql(&format!("insert into {schema}.migration values (99, 0)")).status.success());
    let StoreError::Newer { found, .. } = refusal(&newer.parse().unwrap()).await else { panic!() };
    assert_eq!(found, 99);
}

#[tokio::test]
async fn a_database_that_does_not_exist_is_named_without_its_password() {
    let url: DatabaseUrl = "postgres://ada:sesame@127.0.0.1:1/gatekeeper".parse().unwrap();
    let directory = TempDir::new().unwrap();
    let config = StoreConfig { database: Some(url), ..StoreConfig::embedded(directory.path()) };
    let error = Store::open(config, at(0)).await.err().unwrap();
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(text.contains("postgres://ada@127.0.0.1:1/gatekeeper") && !text.contains("sesame"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_is_sent_as_it_is_read_and_not_kept_in_memory() {
    let source = World::new(None).await;
    let id = source.join("web-1", 1).await;
    // One row for each port, which is more than a page of the copy.
    let ada = crate::store::world::actor("ada", gk_model::access::Role::User);
    let many = ReserveRequest { count: crate::store::world::count(1200), ..ReserveRequest::next_free(id) };
    source.reserve(&ada, &many, at(0)).await.unwrap();
    let (place, cluster) = (TempDir::new().unwrap(), cluster::shared());
    let file = place.path().join("backup");
    let (from, to) = (source.config.clone(), StoreConfig::embedded(place.path().join("data")));
    let url = cluster.create_url();
    let schema = url.rsplit("%3D").next().unwrap().to_owned();
    let to = StoreConfig { database: Some(url.parse().unwrap()), ..to };
    let restore = move || {
        gk_store::backup(&from, &file, at(0), &mut |_| {}).unwrap();
        // The pages of a table grow before the commit.
        let size = format!(
            "select sum(pg_relation_size(oid)) from pg_class where relnamespace = '{schema}'::regnamespace"
        );
        let mut arrived = Vec::new();
        let mut look = |rows: u64| {
            if rows > 0 {
                arrived.push(cluster.ask(&size).parse::<u64>().unwrap());
            }
        };
        gk_store::restore(&to, &file, at(0), &mut look).unwrap();
        arrived
    };
    let arrived = tokio::task::spawn_blocking(restore).await.unwrap();
    assert!(arrived.last() > arrived.first(), "{arrived:?}");
}

#[tokio::test]
async fn a_listener_without_a_server_behind_it_is_given_up_on() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://ada@{}/gatekeeper", silent.local_addr().unwrap());
    let refused = refusal(&url.parse().unwrap()).await;
    assert!(matches!(refused, StoreError::Away(_)), "{refused:?}");
}
