//! The server on real sockets: who is on the other end, and how it stops.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use axum::middleware::from_fn_with_state;
use axum::{Router, routing};
use gk_model::access::{Actor, Authority, Role};
use gk_model::contact::{Contact, ContactBody, Piece, Session};
use gk_model::facts::Facts;
use gk_model::id::InstanceId;
use gk_model::instance::JoinRequest;
use gk_model::listener::Digest;
use gk_model::problem::Problem;
use gk_model::reservation::ReserveRequest;
use gk_model::secret::{Secret, SecretKind};
use gk_model::text::Subject;
use gk_model::time::Timestamp;
use gk_store::{Error, Store, StoreConfig, StoreError};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower::ServiceExt as _;

use super::{config, secret};
use crate::document;
use crate::metrics::Traffic;
use crate::request::observe;
use crate::serve::run_within;
use crate::{Config, Listeners, ServeError, run};

pub(super) async fn get(stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> String {
    exchange(stream, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")).await
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn the_kernel_says_who_is_at_the_unix_socket_and_the_server_stops_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(StoreConfig::embedded(directory.path()), Timestamp::from_clock()).await.unwrap();
    let config = Config { local_subjects: this_account(directory.path()), ..config(store.clone()) };
    let socket = directory.path().join("gatekeeper.sock");
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let listeners = Listeners { tcp: Some(tcp), unix: Some(UnixListener::bind(&socket).unwrap()) };
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(run(config, listeners, async { drop(stopped.await) }));

    let local = get(UnixStream::connect(&socket).await.unwrap(), "/v1/instances").await;
    assert!(local.starts_with("HTTP/1.1 200 "), "{local}");
    let remote = get(TcpStream::connect(address).await.unwrap(), "/v1/instances").await;
    assert!(remote.starts_with("HTTP/1.1 401 "), "{remote}");
    assert!(
        remote.ends_with('}') && remote.contains(r#""code":"unauthenticated""#),
        "the body arrives: {remote}"
    );

    let mut idle = TcpStream::connect(address).await.unwrap();
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
    assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0, "an idle connection is closed");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    let closed = store.write(|_| Ok(())).await;
    assert!(matches!(closed, Err(Error::Failed(StoreError::Closed))));
}

/// A server on a Unix socket that admits this account, and the means to stop it.
async fn start(directory: &Path) -> (UnixStream, oneshot::Sender<()>, JoinHandle<Result<(), ServeError>>) {
    let store = Store::open(StoreConfig::embedded(directory), Timestamp::from_clock()).await.unwrap();
    let socket = directory.join("gatekeeper.sock");
    let listeners = Listeners { tcp: None, unix: Some(UnixListener::bind(&socket).unwrap()) };
    let (stop, stopped) = oneshot::channel::<()>();
    let config = Config { local_subjects: this_account(directory), ..config(store) };
    let server = tokio::spawn(run(config, listeners, async { drop(stopped.await) }));
    (UnixStream::connect(&socket).await.unwrap(), stop, server)
}

pub(super) fn this_account(directory: &Path) -> HashMap<u32, Subject> {
    let uid = std::fs::metadata(directory).unwrap().uid();
    HashMap::from([(uid, "local:test".parse().unwrap())])
}

fn contact(session: u64, body: ContactBody) -> Contact {
    Contact {
        session: Session(session),
        opening: (session == 0).then(uuid::Uuid::now_v7),
        sequence: 1,
        sent_at: Timestamp::from_clock(),
        digest: Digest::default(),
        agent_version: "1".into(),
        body,
    }
}

/// A joined instance with an open session: its id and its credential.
async fn joined(store: &Store, now: Timestamp) -> (InstanceId, Secret) {
    let credential = secret(SecretKind::Instance);
    let actor = Actor::new("somebody".parse().unwrap(), Authority::Role(Role::Admin));
    let request = JoinRequest {
        name: Some("web-1".parse().unwrap()),
        credential_hash: credential.hash(),
        facts: Facts::default(),
        labels: gk_model::labels::Labels::default(),
        replace: None,
    };
    let (instance, _) = store.write(move |tx| tx.join(&actor, &request, now)).await.unwrap();
    let (covered, listeners, closed, occupied) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (seen_at, churned, piece, namespaces) = (None, Vec::new(), Piece::default(), None);
    let body =
        ContactBody::Report { seen_at, covered, listeners, closed, occupied, churned, piece, namespaces };
    let report = contact(0, body);
    store.contact(instance.id, credential.hash(), report, now).await.unwrap();
    (instance.id, credential)
}

#[tokio::test]
async fn a_refused_client_is_heard_out_before_it_is_answered() {
    let directory = tempfile::tempdir().unwrap();
    let (mut client, stop, server) = start(directory.path()).await;
    // More than the socket holds, so the client is still writing when the head has decided.
    let body = vec![b' '; 4 << 20];
    let head = format!(
        "POST /v1/nowhere HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(&body).await.expect("nobody hangs up in the middle");
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("no_such_route"), "{answer}");
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_last_heartbeats_are_stored_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let joined_at = Timestamp::from_clock();
    let heard_at = joined_at.plus(Duration::from_secs(60));
    let store = Store::open(StoreConfig::embedded(directory.path()), joined_at).await.unwrap();
    let (id, credential) = joined(&store, joined_at).await;
    let socket = directory.path().join("gatekeeper.sock");
    let listeners = Listeners { tcp: None, unix: Some(UnixListener::bind(&socket).unwrap()) };
    let config = Config { clock: Arc::new(move || heard_at), ..config(store) };
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(run(config, listeners, async { drop(stopped.await) }));

    let body = serde_json::to_string(&contact(1, ContactBody::Heartbeat)).unwrap();
    let head = format!(
        "POST /v1/instances/{id}/contact HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         authorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        credential.reveal(),
        body.len()
    );
    let answer = exchange(UnixStream::connect(&socket).await.unwrap(), &(head + &body)).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();

    let store = Store::open(StoreConfig::embedded(directory.path()), heard_at).await.unwrap();
    let instance = store.read(move |reader| reader.get_instance(&id.into(), heard_at)).await.unwrap();
    assert_eq!(instance.last_contact_at, Some(heard_at));
}

/// Time passes as fast as the server waits for it. First the clock steps whenever it is looked at, then it is steady.
#[tokio::test(start_paused = true)]
async fn old_history_is_taken_away_while_the_server_runs_by_a_clock_that_is_steady() {
    const DAY: Duration = Duration::from_secs(86_400);
    let directory = tempfile::tempdir().unwrap();
    let joined_at = Timestamp::from_micros(1_700_000_000_000_000);
    let store = Store::open(StoreConfig::embedded(directory.path()), joined_at).await.unwrap();
    let (id, _) = joined(&store, joined_at).await;
    // More than two batches, and what bears the clock out a day later.
    for (count, reserved_at) in [(1200, joined_at), (1, joined_at.plus(DAY))] {
        let (ada, request) =
            (Actor::new("ada".parse().unwrap(), Authority::Role(Role::User)), ReserveRequest::next_free(id));
        let reserve = move |tx: &mut gk_store::Tx<'_>| {
            (0..count).try_for_each(|_| tx.reserve(&ada, &request, reserved_at).map(drop))
        };
        store.write(reserve).await.unwrap();
    }
    let (begun, steps) = (tokio::time::Instant::now(), Arc::new(AtomicBool::new(true)));
    let clock = {
        let (steps, off) = (Arc::clone(&steps), AtomicU64::new(0));
        move || {
            let step = if steps.load(Ordering::SeqCst) { 3 } else { 0 };
            let off = Duration::from_secs(off.fetch_add(step, Ordering::SeqCst));
            joined_at.plus(2 * DAY + Duration::from_hours(2) + begun.elapsed() + off)
        }
    };
    let config = Config { clock: Arc::new(clock), ..config(store.clone()) };
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(run(config, Listeners::default(), async { drop(stopped.await) }));
    let mut minutes = tokio::time::interval(Duration::from_mins(1));
    for _ in 0..10 {
        minutes.tick().await;
    }
    let log = store.log().await.unwrap();
    assert_eq!((log.oldest_seq, log.newest_seq), (1, 1202), "nothing is old by a clock that steps");
    steps.store(false, Ordering::SeqCst);
    // What the database does takes real time.
    let here = std::time::Instant::now();
    while store.log().await.unwrap().oldest_seq < log.newest_seq {
        assert!(here.elapsed() < Duration::from_secs(60), "the log is pruned by itself");
        minutes.tick().await;
    }
    assert_eq!(store.verify().await.unwrap().problems(), Vec::<String>::new());
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_address_with_countless_idle_connections_keeps_nobody_else_out() {
    const MOST: usize = 20;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(StoreConfig::embedded(directory.path()), Timestamp::from_clock()).await.unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let listeners = Listeners { tcp: Some(tcp), unix: None };
    let server = tokio::spawn(run_within(MOST, config(store), listeners, async { drop(stopped.await) }));
    let mut idle = Vec::new();
    for _ in 0..3 * MOST {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    for _ in 0..3 {
        // All of 127.0.0.0/8 is this machine.
        let honest = TcpSocket::new_v4().unwrap();
        honest.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let answer = get(honest.connect(address).await.unwrap(), "/healthz").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    drop(idle);
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
}

/// A client that never finishes its request. Time is paused and advances when everybody waits, so that a timeout of any
/// length is over at once, and a missing one hangs the test.
#[tokio::test(start_paused = true)]
async fn a_client_that_dawdles_is_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let (mut slow, _stop, _server) = start(directory.path()).await;
    slow.write_all(b"GET /healthz HTTP/1.1\r\nhost: ").await.unwrap();
    let mut answer = Vec::new();
    slow.read_to_end(&mut answer).await.unwrap();
    assert!(!answer.starts_with(b"HTTP/1.1 2"), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_comes_does_not_hold_up_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let (mut slow, stop, server) = start(directory.path()).await;
    let head = "POST /v1/reservations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                content-length: 10\r\nexpect: 100-continue\r\n\r\n";
    slow.write_all(head.as_bytes()).await.unwrap();
    let mut asked_for_more = [0; 12];
    slow.read_exact(&mut asked_for_more).await.unwrap();
    assert_eq!(&asked_for_more, b"HTTP/1.1 100", "a handler waits for the body");
    let stopping_at = tokio::time::Instant::now();
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
    let took = stopping_at.elapsed().as_secs();
    assert!((9..15).contains(&took), "{took} s");
}

#[tokio::test(start_paused = true)]
async fn what_takes_too_long_and_what_panics_is_answered() {
    async fn waits_for_ever() {
        std::future::pending::<()>().await;
    }
    async fn panics() {
        panic!("the secret of the house");
    }
    #[expect(clippy::disallowed_methods, reason = "two routes that exist in this test only")]
    let router =
        Router::new().route("/waits", routing::get(waits_for_ever)).route("/panics", routing::get(panics));
    let router = router.layer(from_fn_with_state(Traffic::of(&document::empty()), observe));
    for (path, status, code) in [("/waits", 503, "unavailable"), ("/panics", 500, "internal")] {
        let asked_at = tokio::time::Instant::now();
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{path}");
        assert!(asked_at.elapsed().as_secs() <= 31, "{path}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let problem: Problem = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem.code.as_str(), code);
        assert!(problem.request_id.is_some() && !problem.detail.contains("secret"));
    }
}
