//! What the surface lets in and tells: names, rates, sizes, depth, and headers for browsers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderName, Method, Request};
use gk_model::access::Role;
use gk_model::secret::{Secret, SecretKind};
use gk_model::time::Timestamp;
use serde_json::{Value, json};

use super::{Answer, Api, LOCAL_UID, secret};
use crate::{Config, Hosts, Peer};

const RESERVE: &str = "/v1/reservations";

/// A request over TCP from this address, with a token or without.
async fn from(api: &Api, address: &str, token: Option<&Secret>, path: &str) -> Answer {
    let address: SocketAddr = address.parse().unwrap();
    let mut request = Request::get(path).extension(ConnectInfo(Peer::Tcp(address)));
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {}", token.reveal()));
    }
    api.send(request.body(Body::empty()).unwrap()).await
}

/// An API with a limit, and the clock that its requests are stamped with, in milliseconds.
async fn limited(limit: &str) -> (Api, Arc<AtomicI64>) {
    let now = Arc::new(AtomicI64::new(1_800_000_000_000));
    let clock = Arc::clone(&now);
    let api = Api::with(|config| Config {
        clock: Arc::new(move || Timestamp::from_micros(clock.load(Ordering::Relaxed) * 1000)),
        rate_limit: limit.parse().unwrap(),
        ..config
    });
    (api.await, now)
}

#[tokio::test]
async fn a_token_that_asks_too_often_is_told_when_to_come_back() {
    let (api, now) = limited("1").await;
    let ada = api.token(SecretKind::Subject, Role::Viewer, "ada").await;
    let bob = api.token(SecretKind::Subject, Role::Viewer, "bob").await;
    let ask = |token: &Secret| {
        let token = token.clone();
        let api = &api;
        async move { from(api, "192.0.2.1:9", Some(&token), "/v1/events").await }
    };
    // One makes the token known, ten are its burst.
    for number in 0..11 {
        assert_eq!(ask(&ada).await.status, 200, "{number}");
    }
    let refused = ask(&ada).await;
    assert_eq!(refused.refusal(), (429, "too_often", None));
    assert_eq!(refused.header("retry-after"), "1");
    assert!(refused.body["hint"].as_str().unwrap().contains("--rate-limit"));
    assert_eq!(ask(&bob).await.status, 200, "the same address, another token");
    now.fetch_add(1000, Ordering::Relaxed);
    assert_eq!(ask(&ada).await.status, 200);
    assert_eq!(ask(&ada).await.status, 429);
}

#[tokio::test]
async fn strangers_are_limited_by_their_address_and_health_and_the_socket_are_not() {
    let (api, _) = limited("1").await;
    for _ in 0..10 {
        assert_eq!(from(&api, "192.0.2.1:9", None, "/v1/events").await.status, 401);
    }
    for path in ["/v1/events", "/", "/openapi.json", "/readyz", "/nowhere"] {
        assert_eq!(from(&api, "192.0.2.1:10", None, path).await.status, 429, "{path}");
    }
    assert_eq!(from(&api, "192.0.2.1:10", None, "/healthz").await.status, 200);
    assert_eq!(from(&api, "192.0.2.2:9", None, "/").await.status, 200, "another address");
    for _ in 0..50 {
        assert_eq!(api.local(Method::GET, "/v1/events", Value::Null).await.status, 200);
    }
}

#[tokio::test]
async fn bad_tokens_are_limited_more_strictly_and_not_even_looked_up() {
    let (api, now) = limited("1000").await;
    let (_, agent) = api.join("web-1").await;
    let ask =
        async |token: &Secret| from(&api, "192.0.2.1:9", Some(token), "/v1/events").await.status.as_u16();
    assert_eq!(ask(&agent).await, 200);
    for number in 0..60 {
        assert_eq!(ask(&secret(SecretKind::Subject)).await, 401, "{number}");
    }
    assert_eq!(ask(&secret(SecretKind::Subject)).await, 429);
    assert_eq!(ask(&agent).await, 200, "an agent behind the same address goes on");
    let ada = api.token(SecretKind::Subject, Role::Viewer, "ada").await;
    assert_eq!(ask(&ada).await, 429, "a token that was never seen cannot be told from a guess");
    now.fetch_add(1000, Ordering::Relaxed);
    assert_eq!(ask(&ada).await, 200);
}

#[tokio::test]
async fn a_page_whose_name_was_pointed_here_reads_nothing() {
    let api = Api::with(|config| Config {
        hosts: Hosts::new("web-1", ["gate.example.org".parse().unwrap()]),
        ..config
    });
    let api = api.await;
    let ask = async |host: &str, peer: Option<Peer>| {
        let mut request = Request::get("/").header("host", host);
        if let Some(peer) = peer {
            request = request.extension(ConnectInfo(peer));
        }
        api.send(request.body(Body::empty()).unwrap()).await
    };
    let loopback = Some(Peer::Tcp("127.0.0.1:9".parse().unwrap()));
    for host in ["127.0.0.1:5000", "localhost:5000", "web-1", "gate.example.org"] {
        assert_eq!(ask(host, loopback).await.status, 200, "{host}");
    }
    for peer in [loopback, None] {
        let refused = ask("evil.example:5000", peer).await;
        assert_eq!(refused.refusal(), (421, "unknown_host", None));
        assert!(
            refused.body["hint"].as_str().unwrap().contains("--allow-host evil.example "),
            "{}",
            refused.body
        );
    }
    assert_eq!(ask("no host", loopback).await.refusal(), (400, "malformed", Some("Host")));
    let local = Some(Peer::Unix { uid: LOCAL_UID });
    assert_eq!(ask("whatever.example", local).await.status, 200, "no browser speaks to a Unix socket");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let api = Api::new().await;
    let long = format!("/v1/ports?q={}", "a".repeat(8 << 10));
    assert_eq!(api.local(Method::GET, &long, Value::Null).await.refusal(), (414, "address_too_long", None));
    let enough = format!("/v1/ports?q={}", "a".repeat(8000));
    assert_ne!(api.local(Method::GET, &enough, Value::Null).await.status, 414);
    let heavy =
        Request::get("/healthz").header("x-anything", "a".repeat(32 << 10)).body(Body::empty()).unwrap();
    assert_eq!(api.send(heavy).await.refusal(), (431, "headers_too_large", None));
}

#[tokio::test]
async fn json_that_is_too_deep_is_refused_for_people_and_for_agents() {
    let api = Api::new().await;
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    // Ignored or not, it must not be read to its end.
    let bodies = [
        (RESERVE, format!(r#"{{"instance":{}}}"#, deep(100_000))),
        ("/v1/instances", format!(r#"{{"from_the_future":{}}}"#, deep(100_000))),
        ("/v1/instances", format!(r#"{{"facts":{}}}"#, deep(129))),
    ];
    for (path, body) in bodies {
        let request = Request::post(path).extension(ConnectInfo(Peer::Unix { uid: LOCAL_UID }));
        let request = request.header("content-type", "application/json");
        let refused = api.send(request.body(Body::from(body)).unwrap()).await;
        assert_eq!(refused.refusal().0, 400, "{path}: {}", refused.body);
    }
}

#[tokio::test]
async fn unknown_fields_are_named_to_people_and_ignored_from_agents() {
    let api = Api::new().await;
    let typo = api.local(Method::POST, RESERVE, json!({"instance": "web-1", "servise": "shop"})).await;
    assert_eq!(typo.refusal(), (400, "malformed", Some("servise")));
    assert!(typo.body["detail"].as_str().unwrap().contains("did you mean `service`?"), "{}", typo.body);
    let hash = secret(SecretKind::Instance).hash();
    let body =
        json!({"name": "web-1", "credential_hash": hash, "facts": {"from_the_future": 1}, "more": [{}]});
    assert_eq!(api.local(Method::POST, "/v1/instances", body).await.status, 201);
}

#[tokio::test]
async fn browsers_are_told_to_do_little_with_any_answer() {
    let api = Api::new().await;
    for path in ["/", "/docs", "/healthz", "/openapi.json", "/v1/instances", "/nowhere", "/v1/ports?limit=0"]
    {
        for local in [true, false] {
            let request = Request::get(path).header("origin", "https://evil.example");
            let request = match local {
                true => request.extension(ConnectInfo(Peer::Unix { uid: LOCAL_UID })),
                false => request,
            };
            let answer = api.send(request.body(Body::empty()).unwrap()).await;
            let about = format!("{path}: {:?}", answer.headers);
            assert_eq!(answer.header("x-content-type-options"), "nosniff", "{about}");
            assert_eq!(answer.header("x-frame-options"), "DENY", "{about}");
            assert_eq!(answer.header("referrer-policy"), "no-referrer", "{about}");
            assert_eq!(answer.header("cache-control"), "no-store", "{about}");
            let policy = answer.header("content-security-policy");
            assert!(
                policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
                "{about}"
            );
            assert!(!policy.contains("script-src"), "{about}");
            let names = answer.headers.keys().map(HeaderName::as_str);
            assert_eq!(names.filter(|name| name.starts_with("access-control")).count(), 0, "{about}");
        }
    }
}

#[tokio::test]
async fn a_preflight_is_refused_everywhere() {
    let api = Api::new().await;
    for path in ["/", "/v1/instances", RESERVE, "/nowhere"] {
        let request = Request::options(path)
            .header("origin", "https://evil.example")
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization, content-type");
        let answer = api.send(request.body(Body::empty()).unwrap()).await;
        assert!(answer.status == 405 || answer.status == 404, "{path}: {}", answer.status);
        assert!(answer.headers.keys().all(|name| !name.as_str().starts_with("access-control")), "{path}");
    }
}
