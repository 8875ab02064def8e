//! Killed at any moment, everything that was answered is there afterwards, and nothing twice.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use gk_client::{Client, ClientError};
use gk_model::facts::Facts;
use gk_model::id::{InstanceId, ReservationId};
use gk_model::instance::JoinRequest;
use gk_model::reservation::ReserveRequest;
use gk_model::secret::{Secret, SecretKind};

use super::harness::{Place, Server, wait_for};

/// Kills in `make test`; `make soak` does two hundred.
fn rounds() -> u64 {
    if std::env::var_os("GATEKEEPER_SOAK").is_some() { 200 } else { 10 }
}

const CALLERS: usize = 8;

/// What was answered, kept by the test itself.
#[derive(Default)]
struct Ledger {
    held: Mutex<BTreeMap<ReservationId, u16>>,
    released: Mutex<BTreeSet<ReservationId>>,
}

fn join(client: &Client, name: &str, seed: u8) -> InstanceId {
    let request = JoinRequest {
        name: Some(name.parse().unwrap()),
        credential_hash: Secret::from_random(SecretKind::Instance, &[seed; 32]).hash(),
        facts: Facts::default(),
        replace: None,
    };
    client.join(&request).unwrap().instance.id
}

/// Reserves and, every third time, releases again, until the server is gone.
fn hammer(client: &Client, instance: InstanceId, ledger: &Ledger, answered: &AtomicUsize) {
    for number in 0.. {
        let made = match client.reserve(&ReserveRequest::next_free(instance)) {
            Ok(made) => made,
            Err(ClientError::Refused(problem)) => panic!("refused: {}", problem.detail),
            Err(_gone) => return,
        };
        ledger.held.lock().unwrap().insert(made.id, made.first_port.get());
        answered.fetch_add(1, Ordering::Relaxed);
        if number % 3 == 2 {
            // Unanswered, it is open whether the release happened: then either is right.
            ledger.held.lock().unwrap().remove(&made.id);
            if client.release(made.id, false).is_err() {
                return;
            }
            ledger.released.lock().unwrap().insert(made.id);
        }
    }
}

/// Load from all sides, and SIGKILL once `kill_after` requests were answered.
fn load_and_kill(server: &mut Server, instance: InstanceId, ledger: &Ledger, kill_after: usize) {
    let answered = AtomicUsize::new(0);
    let clients: Vec<Client> = (0..CALLERS).map(|_| server.admin().with_patience(Duration::ZERO)).collect();
    std::thread::scope(|scope| {
        for client in &clients {
            scope.spawn(|| hammer(client, instance, ledger, &answered));
        }
        wait_for("the load", || (answered.load(Ordering::Relaxed) >= kill_after).then_some(()));
        server.process.kill();
    });
}

fn check(server: &Server, ledger: &Ledger, round: u64) {
    let live = server.live();
    let stored: BTreeMap<ReservationId, u16> =
        live.iter().map(|made| (made.id, made.first_port.get())).collect();
    for id in ledger.released.lock().unwrap().iter() {
        assert!(!stored.contains_key(id), "round {round}: an answered release was undone");
    }
    for (id, port) in ledger.held.lock().unwrap().iter() {
        assert_eq!(stored.get(id), Some(port), "round {round}: {port} was answered, and is not there");
    }
    let ports: BTreeSet<u16> = stored.values().copied().collect();
    assert_eq!(ports.len(), stored.len(), "round {round}: a port is held twice");
    let numbers = server.event_numbers();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "round {round}: the log has a gap");
}

/// Releases what is there, so that the pool never ends the test early.
fn clear(server: &Server, ledger: &Ledger) {
    for made in server.live() {
        server.admin().release(made.id, true).unwrap();
    }
    ledger.held.lock().unwrap().clear();
    ledger.released.lock().unwrap().clear();
}

#[test]
fn acknowledged_is_durable() {
    let place = Place::new();
    let mut server = Server::start(&place.join("data"));
    let ledger = Ledger::default();
    for round in 0..rounds() {
        // A fresh instance each round, so that quarantine never empties the pool.
        let instance = join(&server.admin(), &format!("node-{round}"), round as u8);
        load_and_kill(&mut server, instance, &ledger, 3 + (round as usize * 37) % 150);
        server.restart();
        check(&server, &ledger, round);
        clear(&server, &ledger);
    }
}

/// Compiles the shim that remembers only what was synced.
fn shim(place: &Path) -> PathBuf {
    let (source, library) =
        (concat!(env!("CARGO_MANIFEST_DIR"), "/shim/unsynced.c"), place.join("unsynced.so"));
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-o"])
        .arg(&library)
        .arg(source)
        .output();
    let compiled = compiled.unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    library
}

#[test]
fn what_was_answered_survives_the_loss_of_everything_unsynced() {
    let place = Place::new();
    let shim = shim(place.path());
    let mut data = place.join("data-0");
    let ledger = Ledger::default();
    for round in 0..rounds() {
        let synced = place.join(&format!("data-{}", round + 1));
        std::fs::create_dir(&synced).unwrap();
        std::fs::set_permissions(&synced, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        if round > 0 {
            // What was on disk before counts as synced: it was, in the round before.
            for file in ["gatekeeper.db", "gatekeeper.db-wal"].iter().filter(|file| data.join(file).exists())
            {
                std::fs::copy(data.join(file), synced.join(file)).unwrap();
            }
        }
        let mut server = Server::start_with(&data, "127.0.0.1:0", |command| {
            command.env("LD_PRELOAD", &shim).env("UNSYNCED_FROM", &data).env("UNSYNCED_TO", &synced);
        });
        let instance = join(&server.admin(), &format!("node-{round}"), round as u8);
        load_and_kill(&mut server, instance, &ledger, 3 + (round as usize * 53) % 150);
        // The power is back: all there is is what was synced.
        let server = Server::start(&synced);
        check(&server, &ledger, round);
        clear(&server, &ledger);
        drop(server);
        data = synced;
    }
}
