//! Killed at any moment, everything that was answered is there afterwards, and nothing twice.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use gk_client::{Client, ClientError};
use gk_model::facts::Facts;
use gk_model::id::{InstanceId, ReservationId};
use gk_model::instance::JoinRequest;
use gk_model::problem::Code;
use gk_model::reservation::ReserveRequest;
use gk_model::secret::{Secret, SecretKind};

use super::harness::{Place, Server, reserve, wait_for};

/// Kills in `make test`; `make soak` does two hundred.
pub(crate) fn rounds() -> u64 {
    if std::env::var_os("GATEKEEPER_SOAK").is_some() { 200 } else { 10 }
}

const CALLERS: usize = 8;

/// Callers at work, and what they were answered: a ledger that is the test's own.
#[derive(Default)]
pub(super) struct Load {
    held: Mutex<BTreeMap<ReservationId, u16>>,
    released: Mutex<BTreeSet<ReservationId>>,
    /// Reservations that were answered.
    answered: AtomicUsize,
    /// Requests that were answered 503; whether they took effect is open.
    pub(super) put_off: AtomicUsize,
    stop: AtomicBool,
}

pub(super) fn join(client: &Client, name: &str, seed: u8) -> InstanceId {
    let request = JoinRequest {
        name: Some(name.parse().unwrap()),
        credential_hash: Secret::from_random(SecretKind::Instance, &[seed; 32]).hash(),
        facts: Facts::default(),
        labels: gk_model::labels::Labels::default(),
        replace: None,
    };
    client.join(&request).unwrap().instance.id
}

impl Load {
    /// Puts callers to work at each of these servers for as long as `harm` takes, or until their server is gone.
    pub(super) fn during(&self, servers: &[&Server], instance: InstanceId, harm: impl FnOnce()) {
        self.stop.store(false, Ordering::Relaxed);
        let client = |number: usize| servers[number % servers.len()].admin().with_patience(Duration::ZERO);
        let clients: Vec<Client> = (0..CALLERS).map(client).collect();
        std::thread::scope(|scope| {
            for client in &clients {
                scope.spawn(|| self.hammer(client, instance));
            }
            // Also when the test fails in the middle.
            let _stop = Stop(&self.stop);
            harm();
        });
    }

    /// Waits until so many more reservations were answered.
    pub(super) fn wait_for_more(&self, more: usize) {
        let enough = self.answered.load(Ordering::Relaxed) + more;
        wait_for("the load", || (self.answered.load(Ordering::Relaxed) >= enough).then_some(()));
    }

    /// Reserves and, every third time, releases again, until the server is gone.
    fn hammer(&self, client: &Client, instance: InstanceId) {
        let mut number = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let made = match reserve(client, &ReserveRequest::next_free(instance)) {
                Ok(made) => made,
                Err(error) if self.goes_on(&error) => continue,
                Err(_gone) => return,
            };
            assert!(self.held.lock().unwrap().insert(made.id, made.first_port.get()).is_none());
            self.answered.fetch_add(1, Ordering::Relaxed);
            number += 1;
            if number % 3 == 0 {
                // Unanswered, it is open whether the release happened: then either is right.
                self.held.lock().unwrap().remove(&made.id);
                match client.release(made.id, false) {
                    Ok(_) => assert!(self.released.lock().unwrap().insert(made.id)),
                    Err(error) if self.goes_on(&error) => {}
                    Err(_gone) => return,
                }
            }
        }
    }

    /// Whether a server answered, and will answer again.
    fn goes_on(&self, error: &ClientError) -> bool {
        let ClientError::Refused(problem) = error else { return false };
        assert_eq!(problem.code, Code::Unavailable, "refused: {}", problem.detail);
        self.put_off.fetch_add(1, Ordering::Relaxed);
        std::thread::park_timeout(Duration::from_millis(10));
        true
    }

    /// Everything answered is there, nothing twice, the log has no gap, and the whole database is sound.
    pub(super) fn check(&self, server: &Server, round: u64) {
        let live = server.live();
        let stored: BTreeMap<ReservationId, u16> =
            live.iter().map(|made| (made.id, made.first_port.get())).collect();
        for id in self.released.lock().unwrap().iter() {
            assert!(!stored.contains_key(id), "round {round}: an answered release was undone");
        }
        for (id, port) in self.held.lock().unwrap().iter() {
            assert_eq!(stored.get(id), Some(port), "round {round}: {port} was answered, and is not there");
        }
        let ports: BTreeSet<u16> = stored.values().copied().collect();
        assert_eq!(ports.len(), live.len(), "round {round}: a port is held twice");
        let numbers = server.event_numbers();
        assert_eq!(
            numbers,
            (1..=numbers.len() as u64).collect::<Vec<_>>(),
            "round {round}: the log has a gap"
        );
        server.verify();
    }

    /// Releases what is there, so that the pool never ends the test early.
    pub(super) fn clear(&self, server: &Server) {
        for made in server.live() {
            server.admin().release(made.id, true).unwrap();
        }
        self.held.lock().unwrap().clear();
        self.released.lock().unwrap().clear();
    }
}

/// Ends the load.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Load from all sides, and SIGKILL once so many requests were answered. No request is put off meanwhile.
fn load_and_kill(server: &mut Server, instance: InstanceId, load: &Load, kill_after: usize) {
    let pid = server.process.id();
    load.during(&[server], instance, || {
        load.wait_for_more(kill_after);
        kill(pid);
    });
    server.process.kill();
    assert_eq!(load.put_off.load(Ordering::Relaxed), 0);
}

/// SIGKILL, to what others still talk to.
pub(super) fn kill(pid: u32) {
    let kill = format!("kill -9 {pid}");
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

#[test]
fn acknowledged_is_durable() {
    let place = Place::new();
    let mut server = Server::start(&place.join("data"));
    let load = Load::default();
    for round in 0..rounds() {
        // A fresh instance each round, so that quarantine never empties the pool.
        let instance = join(&server.admin(), &format!("node-{round}"), round as u8);
        load_and_kill(&mut server, instance, &load, 3 + (round as usize * 37) % 150);
        server.restart();
        load.check(&server, round);
        load.clear(&server);
    }
}

/// Compiles the shim that remembers only what was synced.
pub(crate) fn shim(place: &Path) -> PathBuf {
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
    let load = Load::default();
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
        load_and_kill(&mut server, instance, &load, 3 + (round as usize * 53) % 150);
        // The power is back: all there is is what was synced.
        let server = Server::start(&synced);
        load.check(&server, round);
        load.clear(&server);
        drop(server);
        data = synced;
    }
}
