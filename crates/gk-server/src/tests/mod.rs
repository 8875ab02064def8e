//! Tests of the whole API, called in process on a real store in a directory of its own.

mod answers;
mod crowded;
mod document;
mod drift;
mod forms;
mod idempotency;
mod matrix;
mod metrics;
mod noise;
mod permissions;
mod pools;
mod serving;
mod skew;
mod surface;
mod targets;
mod tls;
mod tokens;
mod watch;
mod wire;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use gk_model::access::{Actor, Authority, Role};
use gk_model::secret::{Secret, SecretHash, SecretKind};
use gk_model::time::Timestamp;
use gk_model::token::TokenRequest;
use gk_store::{Store, StoreConfig};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt as _;
use utoipa::openapi::OpenApi;

use crate::{Config, Hosts, Peer, RateLimit, router};

/// The account that the tests' configuration admits at the Unix socket.
const LOCAL_UID: u32 = 4711;

/// A server without sockets.
struct Api {
    router: Router,
    document: OpenApi,
    store: Store,
    directory: TempDir,
}

/// What came back.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Status, code and field, which every refusal is told apart by.
    fn refusal(&self) -> (u16, &str, Option<&str>) {
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.body);
        assert_eq!(self.body["request_id"], self.header("x-request-id"));
        assert_eq!(self.body["status"], self.status.as_u16());
        (self.status.as_u16(), self.body["code"].as_str().unwrap(), self.body["field"].as_str())
    }
}

fn config(store: Store) -> Config {
    let local_subjects = HashMap::from([(LOCAL_UID, "local:test".parse().unwrap())]);
    Config {
        store,
        clock: Arc::new(Timestamp::from_clock),
        local_subjects,
        version: "0.0.0-test",
        address: None,
        url: None,
        tls: None,
        trusted_proxies: Vec::new(),
        retention: Duration::from_secs(86_400).into(),
        hosts: Hosts::new("web-1", None),
        rate_limit: RateLimit::Off,
    }
}

impl Api {
    async fn new() -> Api {
        Api::with(|config| config).await
    }

    /// The same with another configuration.
    async fn with(change: impl FnOnce(Config) -> Config) -> Api {
        let directory = tempfile::tempdir().unwrap();
        let store =
            Store::open(StoreConfig::embedded(directory.path()), Timestamp::from_clock()).await.unwrap();
        let (router, document) = router(change(config(store.clone())));
        Api { router, document, store, directory }
    }

    /// From now on nothing can be read or written any more.
    fn lose_database(&self) {
        self.store.close();
        std::fs::remove_file(self.directory.path().join("gatekeeper.db")).unwrap();
    }

    /// Sends any request, as it is; to `localhost` unless it says otherwise.
    async fn send(&self, mut request: Request<Body>) -> Answer {
        request.headers_mut().entry("host").or_insert(HeaderValue::from_static("localhost"));
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        // A stream has no end.
        let is_stream = head.headers.get("content-type").is_some_and(|value| value == "text/event-stream");
        let body = if is_stream { Bytes::new() } else { body.collect().await.unwrap().to_bytes() };
        let body = serde_json::from_slice(&body)
            .unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned().into());
        Answer { status: head.status, headers: head.headers, body }
    }

    /// Sends JSON as the local admin.
    async fn local(&self, method: Method, path: &str, body: Value) -> Answer {
        let peer = ConnectInfo(Peer::Unix { uid: LOCAL_UID });
        self.send(request(method, path, &body).extension(peer).body(Body::from(body.to_string())).unwrap())
            .await
    }

    /// Sends JSON with a token, over TCP.
    async fn with_token(&self, token: &Secret, method: Method, path: &str, body: Value) -> Answer {
        let request =
            request(method, path, &body).header("authorization", format!("Bearer {}", token.reveal()));
        self.send(request.body(Body::from(body.to_string())).unwrap()).await
    }

    /// A token for a subject of this name.
    async fn token(&self, kind: SecretKind, role: Role, subject: &str) -> Secret {
        let secret = secret(kind);
        let (hash, subject) = (secret.hash(), subject.parse().unwrap());
        let wanted = match kind {
            SecretKind::Join => TokenRequest::to_join(),
            _ => TokenRequest::for_subject(subject, role),
        };
        create_token(&self.store, hash, wanted).await;
        secret
    }

    /// An instance of this name: its id and its credential.
    async fn join(&self, name: &str) -> (String, Secret) {
        let credential = secret(SecretKind::Instance);
        let body = json!({"name": name, "credential_hash": credential.hash(), "facts": {"host_name": name}});
        let answer = self.local(Method::POST, "/v1/instances", body).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
        (answer.body["id"].as_str().unwrap().to_owned(), credential)
    }
}

async fn create_token(store: &Store, hash: SecretHash, wanted: TokenRequest) {
    let admin = Actor::new("root".parse().unwrap(), Authority::Role(Role::Admin));
    let now = Timestamp::from_clock();
    store.write(move |tx| tx.create_token(&admin, hash, &wanted, now)).await.unwrap();
}

fn request(method: Method, path: &str, body: &Value) -> axum::http::request::Builder {
    let request = Request::builder().method(method).uri(path);
    if body.is_null() { request } else { request.header("content-type", "application/json") }
}

fn secret(kind: SecretKind) -> Secret {
    let (one, other) = (uuid::Uuid::now_v7(), uuid::Uuid::now_v7());
    let mut random = [0; 32];
    random[..16].copy_from_slice(one.as_bytes());
    random[16..].copy_from_slice(other.as_bytes());
    Secret::from_random(kind, &random)
}
