//! Everything that strangers write into a request by hand: paths, tokens, cursors, filters, headers, bodies.
//!
//! The noise is the same in each run: what is right, with a few bytes changed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::body::{Body, Bytes};
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Method, Request};
use gk_model::access::Role;
use gk_model::secret::SecretKind;
use serde_json::Value;

use super::{Api, LOCAL_UID};
use crate::Peer;
use crate::proxy::forwarded_for;

/// Not random at all, and good enough to stir.
struct Noise(u64);

impl Noise {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    /// A text with up to three bytes changed, taken away, doubled or put in.
    fn stir(&mut self, text: &str) -> Vec<u8> {
        let mut bytes = text.as_bytes().to_vec();
        for _ in 0..self.below(4) {
            let at = self.below(bytes.len().max(1));
            match self.below(4) {
                _ if bytes.is_empty() => bytes.push(b'x'),
                0 => bytes[at] = self.below(256) as u8,
                1 => drop(bytes.remove(at)),
                2 => bytes.extend_from_within(at..),
                _ => bytes.insert(at, b"%,;:-=/.\"'*&\xff\x80 0"[self.below(16)]),
            }
        }
        bytes
    }
}

const QUERIES: [&str; 8] = [
    "/v1/ports?port=8000-8009&protocol=tcp&state=in_use&label=env%3Dprod&q=a&limit=10",
    "/v1/instances/web-1/ports?port=80&unit=nginx.service&netns=home",
    "/v1/reservations?holder=ada&pool=default&instance=web-1&label=a%3Db",
    "/v1/events?kind=reserved&actor=ada&instance=web-1&limit=1",
    "/v1/history?port=8000&protocol=udp&at=2026-01-01T00:00:00Z",
    "/v1/instances?presence=online&label=env%3Dprod&q=web&limit=1",
    "/v1/tokens?subject=ada&kind=join&limit=1",
    "/v1/reservations/01a20717-90df-7000-8000-000000000000",
];

const HEADERS: [(&str, &str); 8] = [
    ("host", "[2001:db8::1]:5000"),
    ("if-match", "\"3\", W/\"4\""),
    ("idempotency-key", "0198f9a1-7d3c-7e52-9b1a-3d5e7f901234"),
    ("forwarded", "for=\"[2001:db8::1]:80\";proto=http, for=10.0.0.1"),
    ("x-forwarded-for", "10.0.0.1, 2001:db8::1"),
    ("content-type", "application/json; charset=utf-8"),
    ("content-encoding", "gzip"),
    ("accept-encoding", "gzip;q=0.5, *;q=0"),
];

const BODY: &str = r#"{"port": 8000, "service": "a", "labels": {"a": "b"}, "ttl": "1h", "names": ["http"]}"#;

impl Noise {
    /// None where the address is none: hyper refuses that.
    fn request(&mut self, path: &str, bearer: &str) -> Option<Request<Body>> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = self.stir(path).as_slice().try_into().ok()?;
        let peers = [Peer::Unix { uid: LOCAL_UID }, Peer::Tcp(STRANGER), Peer::Tcp(STRANGER)];
        request.extensions_mut().insert(ConnectInfo(peers[self.below(3)]));
        let good = self.below(4) > 0;
        let token = if good { bearer.as_bytes().to_vec() } else { self.stir(bearer) };
        let token = HeaderValue::from_bytes(&token).ok()?;
        request.headers_mut().insert("authorization", token);
        for _ in 0..self.below(3) {
            let (name, value) = HEADERS[self.below(HEADERS.len())];
            if let Ok(value) = HeaderValue::from_bytes(&self.stir(value)) {
                request.headers_mut().append(name, value);
            }
        }
        if self.below(5) == 0 {
            *request.method_mut() = [Method::POST, Method::PATCH, Method::DELETE][self.below(3)].clone();
            *request.body_mut() = Body::from(self.stir(BODY));
        }
        Some(request)
    }
}

const STRANGER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9);

#[tokio::test]
async fn noise_in_paths_filters_cursors_tokens_and_headers_does_no_harm() {
    let api = Api::new().await;
    api.join("web-1").await;
    api.join("web-2").await;
    let token = api.token(SecretKind::Subject, Role::Admin, "ada").await;
    let page = api.local(Method::GET, "/v1/instances?limit=1", Value::Null).await;
    let paged = format!("/v1/instances?limit=1&cursor={}", page.body["next"].as_str().unwrap());
    let bearer = format!("Bearer {}", token.reveal());
    let everybody = ["0.0.0.0/0".parse().unwrap()];
    let mut noise = Noise(1);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..4_000 {
        let path = QUERIES.iter().copied().chain([paged.as_str()]).nth(noise.below(9)).unwrap();
        let Some(request) = noise.request(path, &bearer) else { continue };
        // As a trusted proxy might say it; whom it names does not matter here.
        let _client = forwarded_for(&everybody, STRANGER, request.headers());
        let asked = format!("{request:?}");
        let answer = api.send(request).await;
        assert!(answer.status.as_u16() < 500, "{asked}\n{}", answer.body);
        if answer.status.is_success() {
            accepted += 1;
        } else {
            answer.refusal();
            refused += 1;
        }
    }
    assert!(accepted > 200 && refused > 1_000, "all alike: {accepted} accepted, {refused} refused");
}

/// `..`, doubled slashes, encoded ones and what is no UTF-8: each is the name of nothing.
#[tokio::test]
async fn tricks_with_paths_lead_nowhere() {
    let api = Api::new().await;
    for path in [
        "/v1/../healthz",
        "/v1/%2e%2e/healthz",
        "//healthz",
        "/v1//instances",
        "/V1/instances",
        "/v1/instances/",
        "/docs/../../etc/passwd",
        "/v1/instances/..%2f..%2fetc",
        "/v1/instances/%00",
        "/v1/instances/%ff%fe",
        "/v1/instances/a%0d%0ax-injected:%20y",
        "/v1/instances/;admin=true",
    ] {
        let answer = api.local(Method::GET, path, Value::Null).await;
        let (status, code, _) = answer.refusal();
        assert!(
            matches!((status, code), (404, "no_such_route") | (400, "malformed")),
            "{path}: {status} {code}"
        );
        assert!(answer.headers.get("x-injected").is_none());
    }
}

/// Nobody says how long it will be, and it does not end; less is read than one may send.
#[tokio::test]
async fn a_body_without_an_end_is_not_read_to_its_end() {
    let api = Api::new().await;
    let (counter, counted) = (std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0)), 64 << 10);
    let given = std::sync::Arc::clone(&counter);
    let endless = futures_util::stream::repeat_with(move || {
        given.fetch_add(counted, std::sync::atomic::Ordering::Relaxed);
        Ok::<_, std::convert::Infallible>(Bytes::from(vec![b' '; counted]))
    });
    let request = Request::post("/v1/reservations").header("content-type", "application/json");
    let request = request.extension(ConnectInfo(Peer::Unix { uid: LOCAL_UID }));
    let answer = api.send(request.body(Body::from_stream(endless)).unwrap()).await;
    assert_eq!(answer.refusal(), (413, "too_large", None));
    let read = counter.load(std::sync::atomic::Ordering::Relaxed);
    assert!(read <= 32 << 20, "{read} bytes were read");
    let request = Request::post("/v1/reservations").header("content-type", "application/json");
    let request = request.extension(ConnectInfo(Peer::Unix { uid: LOCAL_UID }));
    let answer = api.send(request.body(Body::from(&b"{\"note\": \"\xff\xfe\"}"[..])).unwrap()).await;
    assert_eq!(answer.refusal().0, 400, "bad UTF-8: {}", answer.body);
}
