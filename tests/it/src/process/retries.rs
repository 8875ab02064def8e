//! Whatever is lost on the way, the connection, the answer or the server, each request takes effect exactly once.
//!
//! The ledger is the test's own: what the clients were answered. What the server holds must equal it, no reservation
//! less and none more.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gk_client::{Client, ClientError, ServerAddress};
use gk_model::facts::Facts;
use gk_model::id::{InstanceId, ReservationId};
use gk_model::instance::JoinRequest;
use gk_model::reservation::ReserveRequest;
use gk_model::secret::{Secret, SecretKind};

use super::harness::{Place, Server, reserve, wait_for};

/// As long as the harness waits for anything: no retry of these tests ends for lack of patience.
const PATIENCE: Duration = Duration::from_secs(30);

const CALLERS: usize = 8;

type Ledger = Mutex<BTreeMap<ReservationId, u16>>;

fn join(client: &Client, name: &str, seed: u8) -> InstanceId {
    let request = JoinRequest {
        name: Some(name.parse().unwrap()),
        credential_hash: Secret::from_random(SecretKind::Instance, &[seed; 32]).hash(),
        facts: Facts::default(),
        labels: gk_model::labels::Labels::default(),
        replace: None,
    };
    client.join(&request).unwrap().instance.id
}

fn stored(server: &Server) -> BTreeMap<ReservationId, u16> {
    server.live().iter().map(|made| (made.id, made.first_port.get())).collect()
}

/// Between clients and a server: passes every request on, and loses the first answer to each key.
struct Lossy {
    socket: PathBuf,
    lost: Arc<Mutex<BTreeSet<String>>>,
    repeated: Arc<AtomicUsize>,
}

impl Lossy {
    fn start(socket: PathBuf, server: PathBuf) -> Lossy {
        let listener = UnixListener::bind(&socket).unwrap();
        let (lost, repeated) = (Arc::default(), Arc::default());
        let (losing, counting) = (Arc::clone(&lost), Arc::clone(&repeated));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (server, losing, counting) = (server.clone(), Arc::clone(&losing), Arc::clone(&counting));
                std::thread::spawn(move || relay(client.unwrap(), &server, &losing, &counting));
            }
        });
        Lossy { socket, lost, repeated }
    }

    fn client(&self) -> Client {
        Client::new(ServerAddress::Unix(self.socket.clone()), None).with_patience(PATIENCE)
    }
}

fn relay(mut client: UnixStream, server: &Path, lost: &Mutex<BTreeSet<String>>, repeated: &AtomicUsize) {
    let mut server = UnixStream::connect(server).unwrap();
    while let Some((head, request)) = read_message(&mut client) {
        server.write_all(&request).unwrap();
        let Some((_, answer)) = read_message(&mut server) else { return };
        let key = head.lines().find_map(|line| line.strip_prefix("idempotency-key: "));
        if let Some(key) = key {
            // Read to its end and thrown away: the request has taken effect, and its client hears nothing of it.
            if lost.lock().unwrap().insert(key.to_owned()) {
                return;
            }
            repeated.fetch_add(1, Ordering::Relaxed);
        }
        if client.write_all(&answer).is_err() {
            return;
        }
    }
}

/// The head of one HTTP message as text, and all of its bytes.
fn read_message(stream: &mut UnixStream) -> Option<(String, Vec<u8>)> {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.map_or(0, |length| length.parse().unwrap());
            if bytes.len() >= end + 4 + length {
                return Some((head, bytes));
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

#[test]
fn when_every_answer_is_lost_once_every_request_takes_effect_once() {
    const EACH: usize = 15;
    let place = Place::new();
    let server = Server::start(&place.join("data"));
    let lossy = Lossy::start(place.join("lossy.sock"), server.data.join("gatekeeper.sock"));
    let instance = join(&lossy.client(), "web-1", 1);
    let ledger = Ledger::default();
    std::thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                let client = lossy.client();
                for _ in 0..EACH {
                    let made = reserve(&client, &ReserveRequest::next_free(instance)).unwrap();
                    ledger.lock().unwrap().insert(made.id, made.first_port.get());
                }
            });
        }
    });
    let ledger = ledger.into_inner().unwrap();
    assert_eq!(ledger.len(), CALLERS * EACH, "each call has a reservation of its own");
    assert_eq!(stored(&server), ledger);
    assert_eq!(server.event_numbers().len(), 1 + ledger.len(), "joined once, and each reserved once");
    assert_eq!(lossy.lost.lock().unwrap().len(), 1 + ledger.len());
    assert_eq!(lossy.repeated.load(Ordering::Relaxed), 1 + ledger.len(), "each was repeated once, and heard");
}

/// Kills in `make test`; `make soak` does a hundred.
fn rounds() -> usize {
    if std::env::var_os("GATEKEEPER_SOAK").is_some() { 100 } else { 6 }
}

/// Reserves without end. Somebody who begins while nobody is there is told so at once, and nothing was sent; whoever has
/// begun is answered, whatever happens to the server meanwhile.
fn hammer(client: &Client, instance: InstanceId, ledger: &Ledger, answered: &AtomicUsize, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match reserve(client, &ReserveRequest::next_free(instance)) {
            Ok(made) => {
                ledger.lock().unwrap().insert(made.id, made.first_port.get());
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(ClientError::Unreachable { source, .. })
                if matches!(
                    source.kind(),
                    std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::NotFound
                ) =>
            {
                std::thread::park_timeout(Duration::from_millis(10));
            }
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// Ends the load also when the test fails in the middle.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_server_killed_under_load_does_each_repeated_request_once() {
    let place = Place::new();
    let mut server = Server::start(&place.join("data"));
    for round in 0..rounds() {
        let instance = join(&server.admin(), &format!("node-{round}"), round as u8 + 1);
        let (ledger, answered, stop) = (Ledger::default(), AtomicUsize::new(0), AtomicBool::new(false));
        let clients: Vec<Client> = (0..CALLERS).map(|_| server.admin().with_patience(PATIENCE)).collect();
        std::thread::scope(|scope| {
            for client in &clients {
                scope.spawn(|| hammer(client, instance, &ledger, &answered, &stop));
            }
            let _stop = Stop(&stop);
            let wait_for_more = |more: usize| {
                let enough = answered.load(Ordering::Relaxed) + more;
                wait_for("the load", || (answered.load(Ordering::Relaxed) >= enough).then_some(()));
            };
            wait_for_more(3 + (round * 37) % 100);
            server.process.kill();
            server.restart();
            wait_for_more(20);
        });
        let ledger = ledger.into_inner().unwrap();
        assert_eq!(stored(&server), ledger, "round {round}");
        server.verify();
        let ports: BTreeSet<u16> = ledger.values().copied().collect();
        assert_eq!(ports.len(), ledger.len(), "round {round}: a port was given twice");
        for id in ledger.keys() {
            server.admin().release(*id, true).unwrap();
        }
    }
}
