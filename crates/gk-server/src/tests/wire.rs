//! Bytes on a real connection: what is broken, hostile or slow.
//!
//! Time is paused where something is slow, and advances when everybody waits.

use std::time::Duration;

use gk_model::access::Role;
use gk_model::problem::Problem;
use gk_model::secret::SecretKind;
use gk_model::time::Timestamp;
use gk_model::token::TokenRequest;
use gk_store::{Store, StoreConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{config, create_token, secret};
use crate::pace::Patient;
use crate::{Listeners, run};

/// A server on TCP, for as long as it is held.
struct Wire {
    address: std::net::SocketAddr,
    /// A header with an admin's token.
    token: String,
    _stop: oneshot::Sender<()>,
    _directory: TempDir,
}

impl Wire {
    async fn new() -> Wire {
        let directory = tempfile::tempdir().unwrap();
        let store =
            Store::open(StoreConfig::embedded(directory.path()), Timestamp::from_clock()).await.unwrap();
        let token = secret(SecretKind::Subject);
        create_token(&store, token.hash(), TokenRequest::for_subject("ada".parse().unwrap(), Role::Admin))
            .await;
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let listeners = Listeners { tcp: Some(tcp), unix: None };
        tokio::spawn(run(config(store), listeners, async { drop(stopped.await) }));
        let token = format!("Authorization: Bearer {}", token.reveal());
        Wire { address, token, _stop: stop, _directory: directory }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Everything that comes back for these bytes until the server hangs up.
    async fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        // A server that has seen enough may hang up in the middle.
        let _sent = stream.write_all(bytes).await;
        // Whoever closes its half has gone, for hyper, and what it asked for is dropped unless it is done already.
        if !bytes.windows(CLOSE.len()).any(|window| window == CLOSE.as_bytes()) {
            let _ended = stream.shutdown().await;
        }
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// The statuses of all answers in it.
fn statuses(answer: &str) -> Vec<u16> {
    let lines = answer.split("HTTP/1.").skip(1);
    lines.filter_map(|line| line.get(2..5)?.parse().ok()).collect()
}

/// A request with these headers and this body.
fn request(line: &str, headers: &[&str], body: &str) -> Vec<u8> {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    format!("{line}\r\n{headers}\r\n{body}").into_bytes()
}

const GET: &str = "GET /healthz HTTP/1.1";
const POST: &str = "POST /v1/reservations HTTP/1.1";
const HOST: &str = "Host: localhost";
const JSON: &str = "Content-Type: application/json";
const CLOSE: &str = "Connection: close";
const CHUNKED: &str = "Transfer-Encoding: chunked";

#[tokio::test]
async fn bytes_that_are_no_request_are_refused_and_do_no_harm() {
    let wire = Wire::new().await;
    let many = vec!["X-A: a"; 100];
    let table: Vec<(&str, Vec<u8>, &[u16])> = vec![
        ("nothing", Vec::new(), &[]),
        ("noise", b"\x00\xff\x00 noise\r\n\r\n".to_vec(), &[400]),
        ("TLS", b"\x16\x03\x01\x00\xf8\x01\x00\x00\xf4\x03\x03\r\n\r\n".to_vec(), &[400]),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), &[]),
        ("HTTP/1.0", b"GET /healthz HTTP/1.0\r\n\r\n".to_vec(), &[200]),
        ("NUL in the path", request("GET /\0 HTTP/1.1", &[HOST], ""), &[400]),
        ("NUL in a header", request(GET, &[HOST, "X-A: a\0b"], ""), &[400]),
        ("a folded header", request(GET, &[HOST, "X-A: a", " b"], ""), &[400]),
        ("a space before the colon", request(GET, &["Host : localhost"], ""), &[400]),
        ("no Host", request(GET, &[], ""), &[400]),
        ("two Hosts", request(GET, &[HOST, HOST], ""), &[400]),
        ("another Host", request(GET, &["Host: evil.example"], ""), &[421]),
        ("another address", request("GET http://evil.example/healthz HTTP/1.1", &[HOST], ""), &[421]),
        (
            "a proxy's request",
            request("CONNECT evil.example:80 HTTP/1.1", &["Host: evil.example:80"], ""),
            &[421],
        ),
        ("an upgrade", request(GET, &[HOST, "Connection: Upgrade", "Upgrade: h2c"], ""), &[200]),
        ("a long address", request(&format!("GET /?{} HTTP/1.1", "a".repeat(9000)), &[HOST], ""), &[414]),
        ("a huge address", request(&format!("GET /?{} HTTP/1.1", "a".repeat(70_000)), &[HOST], ""), &[431]),
        ("a large header", request(GET, &[HOST, &format!("X-A: {}", "a".repeat(33_000))], ""), &[431]),
        ("a huge header", request(GET, &[HOST, &format!("X-A: {}", "a".repeat(200_000))], ""), &[431]),
        ("many headers", request(GET, &[&[HOST], &many[..]].concat(), ""), &[431]),
        ("no such length", request(POST, &[HOST, JSON, "Content-Length: -1"], "{}"), &[400]),
        (
            "a length beyond numbers",
            request(POST, &[HOST, JSON, "Content-Length: 99999999999999999999"], "{}"),
            &[400],
        ),
        (
            "a coding that is none",
            request(POST, &[HOST, JSON, "Transfer-Encoding: xchunked"], "0\r\n\r\n"),
            &[400],
        ),
        ("two requests", [request(GET, &[HOST], ""), request(GET, &[HOST], "")].concat(), &[200, 200]),
    ];
    for (what, bytes, expected) in table {
        let answer = wire.exchange(&bytes).await;
        assert_eq!(statuses(&answer), expected, "{what}: {answer}");
    }
    assert_eq!(statuses(&wire.exchange(&request(GET, &[HOST], "")).await), [200], "it is as well as before");
}

/// Whatever a proxy in front of us makes of them, we never find a second request in the body of the first.
#[tokio::test]
async fn no_request_is_smuggled_behind_another() {
    let wire = Wire::new().await;
    let hidden = String::from_utf8(request(GET, &[HOST], "")).unwrap();
    let ends = format!("0\r\n\r\n{hidden}");
    let length = format!("Content-Length: {}", ends.len());
    let table = [
        ("length, then chunks", request(POST, &[HOST, JSON, &length, CHUNKED], &ends), 401),
        ("chunks, then length", request(POST, &[HOST, JSON, CHUNKED, &length], &ends), 401),
        (
            "a short length, then chunks",
            request(POST, &[HOST, JSON, "Content-Length: 4", CHUNKED], &ends),
            401,
        ),
        ("two lengths", request(POST, &[HOST, JSON, "Content-Length: 2", "Content-Length: 3"], &hidden), 400),
        ("a list of lengths", request(POST, &[HOST, JSON, "Content-Length: 2, 3"], &hidden), 400),
        ("chunks in HTTP/1.0", request("POST /v1/reservations HTTP/1.0", &[HOST, JSON, CHUNKED], &ends), 400),
        (
            "chunks that are not last",
            request(POST, &[HOST, JSON, "Transfer-Encoding: chunked, gzip"], &ends),
            400,
        ),
        ("chunks of no size", request(POST, &[HOST, JSON, CHUNKED], &format!("zz\r\n{hidden}")), 401),
        (
            "a chunk beyond numbers",
            request(POST, &[HOST, JSON, CHUNKED], &format!("{:f<17}\r\n{hidden}", "f")),
            401,
        ),
    ];
    for (what, bytes, status) in table {
        let answer = wire.exchange(&bytes).await;
        assert_eq!(statuses(&answer), [status], "{what}: {answer}");
    }
}

/// A body in ten pieces of so many bytes, so many seconds apart: the code of the answer, and after how many seconds.
async fn send_in_pieces(wire: &Wire, bytes: usize, seconds: u64) -> (String, u64) {
    let (mut reader, mut writer) = wire.connect().await.into_split();
    let length = format!("Content-Length: {}", bytes * 10);
    writer.write_all(&request(POST, &[HOST, JSON, &wire.token, &length], "")).await.unwrap();
    let asked_at = Instant::now();
    let answer = tokio::spawn(async move {
        let mut answer = [0; 4096];
        let read = reader.read(&mut answer).await.unwrap();
        (String::from_utf8_lossy(&answer[..read]).into_owned(), asked_at.elapsed().as_secs())
    });
    let mut ticks = tokio::time::interval(Duration::from_secs(seconds));
    for _ in 0..10 {
        ticks.tick().await;
        if answer.is_finished() {
            break;
        }
        writer.write_all(&vec![b' '; bytes]).await.unwrap();
    }
    let (answer, took) = answer.await.unwrap();
    let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    let problem: Problem = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
    (problem.code.to_string(), took)
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stands_still_or_crawls_is_given_up_and_one_that_is_slow_is_not() {
    let wire = Wire::new().await;
    let (code, took) = send_in_pieces(&wire, 1, 60).await;
    assert!(code == "too_slow" && (9..=12).contains(&took), "standing still: {code} after {took} s");
    let (code, took) = send_in_pieces(&wire, 10, 4).await;
    assert!(code == "too_slow" && (9..=12).contains(&took), "crawling: {code} after {took} s");
    let (code, took) = send_in_pieces(&wire, 4096, 2).await;
    assert!(code == "malformed" && (17..=20).contains(&took), "slow: {code} after {took} s");
    let (code, took) = send_in_pieces(&wire, 20_000, 9).await;
    assert!(code == "unavailable" && (29..=32).contains(&took), "too long in all: {code} after {took} s");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_says_nothing_is_closed_before_and_between_requests() {
    let wire = Wire::new().await;
    for first in [Vec::new(), request(GET, &[HOST], "")] {
        let mut stream = wire.connect().await;
        stream.write_all(&first).await.unwrap();
        let since = Instant::now();
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(120), stream.read_to_end(&mut answer));
        closed.await.expect("it is closed").unwrap();
        let took = since.elapsed().as_secs();
        assert!((40..=50).contains(&took), "{took} s");
        assert_eq!(answer.is_empty(), first.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_its_answers_is_cut_off() {
    let wire = Wire::new().await;
    let mut stream = wire.connect().await;
    let ask = request("GET /openapi.json HTTP/1.1", &[HOST], "");
    let since = Instant::now();
    // Both directions fill up; then the server waits for us, and we for it. Of paused time, two minutes are soon over.
    let asking = async { while stream.write_all(&ask).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(120), asking).await.expect("the server hangs up");
    let took = since.elapsed().as_secs();
    assert!((29..=62).contains(&took), "{took} s");
}

/// Each byte taken is not yet progress, or one client could hold an answer for days.
#[tokio::test(start_paused = true)]
async fn a_client_that_nibbles_at_its_answers_is_cut_off() {
    let (mut client, server) = tokio::io::duplex(1024);
    let answering = tokio::spawn(async move {
        let mut server = Patient::new(server);
        server.write_all(&vec![b'x'; 1 << 20]).await
    });
    let since = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    while !answering.is_finished() && since.elapsed() < Duration::from_secs(120) {
        ticks.tick().await;
        let _bytes = client.read(&mut [0; 100]).await.unwrap();
    }
    let ended = tokio::time::timeout(Duration::from_secs(1), answering).await.expect("it is given up");
    let ended = ended.unwrap().expect_err("it is given up before its end");
    assert_eq!(ended.kind(), std::io::ErrorKind::TimedOut);
    let took = since.elapsed().as_secs();
    assert!((29..=35).contains(&took), "{took} s");
}

#[tokio::test]
async fn bodies_that_are_no_requests_are_refused_by_name() {
    let wire = Wire::new().await;
    let huge_name = format!(r#"{{"instance":"a","service":"{}"}}"#, "x".repeat(900_000));
    let huge_body = format!(r#"{{"instance":"{}"}}"#, "x".repeat(10 << 20));
    let table: &[(&str, &[u8], &str)] = &[
        ("nothing", b"", "malformed"),
        ("half", b"{\"instance\":", "malformed"),
        ("two values", b"{}{}", "malformed"),
        ("another type", b"7", "malformed"),
        ("NUL", b"{\"instance\":\"a\0b\"}", "malformed"),
        ("NUL, escaped", br#"{"instance":"a\u0000b"}"#, "malformed"),
        ("half a surrogate", br#"{"instance":"\ud800"}"#, "malformed"),
        ("no UTF-8", b"{\"instance\":\"\xff\"}", "malformed"),
        ("a byte order mark", b"\xef\xbb\xbf{}", "malformed"),
        ("a number beyond numbers", br#"{"instance":"a","port":1e999}"#, "malformed"),
        ("port 0", br#"{"instance":"a","port":0}"#, "malformed"),
        ("port 65536", br#"{"instance":"a","port":65536}"#, "malformed"),
        ("port -1", br#"{"instance":"a","port":-1}"#, "malformed"),
        ("port 80.5", br#"{"instance":"a","port":80.5}"#, "malformed"),
        ("a field twice", br#"{"instance":"a","instance":"b"}"#, "malformed"),
        ("a name of 900 kB", huge_name.as_bytes(), "malformed"),
        ("a name of 10 MB", huge_body.as_bytes(), "too_large"),
    ];
    for (what, body, code) in table {
        let length = format!("Content-Length: {}", body.len());
        let head = request(POST, &[HOST, JSON, CLOSE, &wire.token, &length], "");
        let answer = wire.exchange(&[&head, *body].concat()).await;
        // Whoever sends more than we hear out gets the reason or a reset, and nothing else.
        let is_refused = answer.contains(&format!(r#""code":"{code}""#));
        assert!(is_refused || (body.len() > 9 << 20 && answer.is_empty()), "{what}: {answer}");
        assert!(answer.len() < 2000, "{what}: it comes back");
    }
    let cut = request(POST, &[HOST, JSON, &wire.token, "Content-Length: 100"], "{}");
    assert_eq!(statuses(&wire.exchange(&cut).await), [400], "a body that ends early");
    let gzip =
        request(POST, &[HOST, JSON, CLOSE, &wire.token, "Content-Encoding: gzip", "Content-Length: 2"], "{}");
    assert_eq!(statuses(&wire.exchange(&gzip).await), [415]);
    assert_eq!(statuses(&wire.exchange(&request(GET, &[HOST], "")).await), [200], "it is as well as before");
}
