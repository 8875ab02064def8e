//! Lost answers: when a connection is cut around a commit, each request still has exactly one effect.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use gk_model::access::Role;
use gk_model::id::InstanceId;
use gk_model::idempotency::Fingerprint;
use gk_model::reservation::ReserveRequest;
use gk_store::{Error, Keyed, Store, StoreError};

use super::proxy::Proxy;
use crate::cluster::{self, Cluster};
use crate::process::crash::rounds;
use crate::store::world::{World, actor, at};

/// What callers do, and what they were told.
#[derive(Default)]
struct Told {
    ports: Mutex<BTreeSet<u16>>,
    /// Requests without a key whose fate nobody knows.
    unknown: AtomicUsize,
    stop: AtomicBool,
}

impl Told {
    fn note(&self, port: u16) {
        assert!(self.ports.lock().unwrap().insert(port), "{port} was answered to two requests");
    }
}

/// Under a key each: sent again until answered, whatever the failure.
async fn insist(store: Store, id: InstanceId, told: Arc<Told>, caller: usize) {
    let ada = actor("ada", Role::User);
    for number in 0.. {
        if told.stop.load(Ordering::Relaxed) {
            return;
        }
        let request = ReserveRequest::next_free(id);
        let fingerprint = Fingerprint::of("POST", "/v1/reservations", &request);
        let keyed = Keyed { key: format!("{caller}-{number}").parse().unwrap(), fingerprint };
        loop {
            let (ada, request, keyed) = (ada.clone(), request.clone(), keyed.clone());
            let work = store
                .write(move |tx| tx.once(&ada, Some(&keyed), at(0), |tx| tx.reserve(&ada, &request, at(0))));
            match work.await {
                Ok(made) => break told.note(made.answer.first_port.get()),
                Err(Error::Failed(StoreError::Unknown(_) | StoreError::Away(_))) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }
}

/// Without a key, once: afterwards it happened, did not, or may have.
async fn ask(store: Store, id: InstanceId, told: Arc<Told>) {
    let bob = actor("bob", Role::User);
    while !told.stop.load(Ordering::Relaxed) {
        let (bob, request) = (bob.clone(), ReserveRequest::next_free(id));
        match store.write(move |tx| tx.reserve(&bob, &request, at(0))).await {
            Ok(made) => told.note(made.first_port.get()),
            Err(Error::Failed(StoreError::Unknown(_))) => {
                told.unknown.fetch_add(1, Ordering::Relaxed);
            }
            Err(Error::Failed(StoreError::Away(_))) => {}
            Err(other) => panic!("{other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_answers_to_commits_are_lost_every_request_takes_effect_once() {
    let cluster = Cluster::start(cluster::in_memory(), &[]);
    for _ in 0..rounds() / 10 {
        lose_answers(&cluster).await;
    }
}

/// Load through a proxy until it has lost some commits either way.
async fn lose_answers(cluster: &Cluster) {
    let proxy = Proxy::start(&cluster.directory().join(".s.PGSQL.5432"));
    let url = cluster.create_url();
    let url =
        url.replace(&cluster.directory().display().to_string(), &proxy.directory().display().to_string());
    let (world, told) = (World::new(Some(url.parse().unwrap())).await, Arc::new(Told::default()));
    let id = world.join("web-1", 1).await;
    proxy.begin_cutting();
    let mut callers = Vec::new();
    for caller in 0..4 {
        callers.push(tokio::spawn(insist(world.store.clone(), id, Arc::clone(&told), caller)));
        callers.push(tokio::spawn(ask(world.store.clone(), id, Arc::clone(&told))));
    }
    let hurt = || {
        let (kept_back, lost, cut) = proxy.counts();
        kept_back >= 5 && lost >= 5 && cut >= 3
    };
    let done = async {
        while !hurt() && callers.iter().all(|caller| !caller.is_finished()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), done).await.unwrap();
    told.stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    check(cluster, &url, &proxy, &told).await;
}

/// Looks at the database itself, past the proxy.
async fn check(cluster: &Cluster, url: &str, proxy: &Proxy, told: &Told) {
    let url =
        url.replace(&proxy.directory().display().to_string(), &cluster.directory().display().to_string());
    let world = World::new(Some(url.parse().unwrap())).await;
    let live = world.live().await;
    let ports = |subject: &str| -> BTreeSet<u16> {
        let of = live.iter().filter(|made| made.holder.as_str() == subject);
        of.map(|made| made.first_port.get()).collect()
    };
    let (told_ports, unknown) = (told.ports.lock().unwrap().clone(), told.unknown.load(Ordering::Relaxed));
    let (ada, bob) = (ports("ada"), ports("bob"));
    assert_eq!(ada.len() + bob.len(), live.len(), "a port is held twice");
    let lost: Vec<_> = told_ports.iter().filter(|port| !ada.contains(port) && !bob.contains(port)).collect();
    assert!(lost.is_empty(), "answered, and not there: {lost:?}");
    let doubled: Vec<_> = ada.difference(&told_ports).collect();
    assert!(doubled.is_empty(), "a request under a key took effect twice: {doubled:?}");
    let more = bob.difference(&told_ports).count();
    assert!(more <= unknown, "{more} effects nobody was told of, and {unknown} unknown answers");
    let numbers: Vec<u64> = world.events().await.iter().map(|event| event.seq).collect();
    assert_eq!(numbers, (1..=1 + live.len() as u64).collect::<Vec<u64>>(), "the log has a gap");
    println!(
        "{:?} cuts, {} requests, {unknown} unknown, {more} of those happened",
        proxy.counts(),
        live.len()
    );
}
