//! The permission matrix, written by hand: which route lets whom in. It repeats on purpose what `routes.rs` and the model
//! say, because that is what makes a slip there show.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use gk_model::access::{Actor, Authority, Role};
use gk_model::secret::{Secret, SecretKind};
use gk_model::time::Timestamp;
use gk_model::token::TokenRequest;
use serde_json::{Value, json};

use super::{Api, request, secret};

/// Who calls, in the order of the columns below.
const CALLERS: [&str; 7] =
    ["viewer", "user", "operator", "admin", "own instance", "other instance", "join token"];

/// `y` is let in, `n` is refused with 403; `-` marks a route that is open to everybody.
const MATRIX: [(&str, &str); 38] = [
    ("GET /", "-"),
    ("GET /docs", "-"),
    ("GET /healthz", "-"),
    ("GET /metrics", "yyyyyyn"),
    ("GET /openapi.json", "-"),
    ("GET /readyz", "-"),
    ("GET /v1/drift", "yyyyyyn"),
    ("GET /v1/events", "yyyyyyn"),
    ("GET /v1/events/stream", "yyyyyyn"),
    ("GET /v1/history", "yyyyyyn"),
    ("GET /v1/ignores", "yyyyyyn"),
    ("GET /v1/ignores/{name}", "yyyyyyn"),
    ("PUT /v1/ignores/{name}", "nnyynnn"),
    ("DELETE /v1/ignores/{name}", "nnyynnn"),
    ("GET /v1/instances", "yyyyyyn"),
    ("POST /v1/instances", "nnyyyyy"),
    ("GET /v1/instances/{instance}", "yyyyyyn"),
    ("DELETE /v1/instances/{instance}", "nnyyynn"),
    ("PATCH /v1/instances/{instance}", "nnyyynn"),
    ("POST /v1/instances/{instance}/contact", "nnnnynn"),
    ("GET /v1/instances/{instance}/ports", "yyyyyyn"),
    ("GET /v1/instances/{instance}/reserved", "yyyyyyn"),
    ("GET /v1/pools", "yyyyyyn"),
    ("GET /v1/pools/{name}", "yyyyyyn"),
    ("PUT /v1/pools/{name}", "nnnynnn"),
    ("DELETE /v1/pools/{name}", "nnnynnn"),
    ("GET /v1/ports", "yyyyyyn"),
    ("GET /v1/reservations", "yyyyyyn"),
    ("POST /v1/reservations", "nyyyynn"),
    ("GET /v1/reservations/{id}", "yyyyyyn"),
    ("DELETE /v1/reservations/{id}", "nnnnnnn"), // somebody else's, without force
    ("PATCH /v1/reservations/{id}", "nnnnnnn"),
    ("POST /v1/reservations/{id}/renew", "nnnnnnn"),
    ("GET /v1/status", "yyyyyyn"),
    ("GET /v1/tokens", "nnyynnn"),
    ("POST /v1/tokens", "nnnynnn"), // of a subject
    ("DELETE /v1/tokens/{token}", "nnyynnn"),
    ("GET /v1/whoami", "yyyyyyy"),
];

/// A server with two instances, a reservation and a token, all of them strangers to the callers but for the instances.
struct World {
    api: Api,
    instance: String,
    own: Secret,
    other: Secret,
    reservation: String,
    token: String,
}

impl World {
    async fn new() -> World {
        let api = Api::new().await;
        let (instance, own) = api.join("web-1").await;
        let (_, other) = api.join("web-2").await;
        let made = api.local(Method::POST, "/v1/reservations", json!({"instance": instance})).await;
        let token = api.local(Method::POST, "/v1/tokens", json!({"kind": "join"})).await;
        let reservation = made.body["items"][0]["id"].as_str().unwrap().to_owned();
        let token = token.body["token"]["id"].as_str().unwrap().to_owned();
        World { api, instance, own, other, reservation, token }
    }

    async fn secret_of(&self, caller: &str) -> Secret {
        match caller {
            "own instance" => self.own.clone(),
            "other instance" => self.other.clone(),
            "join token" => self.api.token(SecretKind::Join, Role::Viewer, "x").await,
            role => self.api.token(SecretKind::Subject, role.parse().unwrap(), "somebody").await,
        }
    }

    fn path(&self, route: &str) -> String {
        let pool = "default".to_owned();
        let ids = [
            ("{instance}", &self.instance),
            ("{id}", &self.reservation),
            ("{token}", &self.token),
            ("{name}", &pool),
        ];
        ids.iter().fold(route.to_owned(), |path, (name, id)| path.replace(name, id))
    }

    /// A body with which the request is about what belongs to the first instance.
    fn body(&self, route: &str) -> Value {
        match route {
            "POST /v1/reservations" => json!({"instance": self.instance}),
            "POST /v1/instances" => {
                json!({"credential_hash": secret(SecretKind::Instance).hash(), "facts": {}})
            }
            "POST /v1/tokens" => json!({"kind": "subject", "role": "viewer"}),
            "POST /v1/instances/{instance}/contact" => json!({
                "session": 0, "sequence": 0, "sent_at": "2026-11-22T20:00:00Z", "digest": "0".repeat(32),
                "agent_version": "1", "kind": "heartbeat",
            }),
            "PUT /v1/ignores/{name}" => json!({"process": "sshd"}),
            "PUT /v1/pools/{name}" => json!({"ranges": ["8000-8999"]}),
            "PATCH /v1/instances/{instance}" => json!({"name": "web-9"}),
            "PATCH /v1/reservations/{id}" => json!({"note": "mine"}),
            "POST /v1/reservations/{id}/renew" => json!({"ttl_seconds": 60}),
            _ => json!({}),
        }
    }

    async fn call(&self, route: &str, authorization: Option<&str>) -> (StatusCode, Value) {
        let (method, path) = route.split_once(' ').unwrap();
        let body = self.body(route);
        let mut request = request(method.parse().unwrap(), &self.path(path), &body);
        if let Some(text) = authorization {
            request = request.header("authorization", text);
        }
        let answer = self.api.send(request.body(Body::from(body.to_string())).unwrap()).await;
        (answer.status, answer.body)
    }
}

fn bearer(secret: &Secret) -> String {
    format!("Bearer {}", secret.reveal())
}

#[tokio::test]
async fn every_route_of_the_document_is_in_the_matrix() {
    let document = serde_json::to_value(&Api::new().await.document).unwrap();
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let methods = item.as_object().unwrap().keys();
        found.extend(methods.map(|method| format!("{} {path}", method.to_uppercase())));
    }
    found.sort_unstable();
    let mut expected = MATRIX.map(|(route, _)| route.to_owned());
    expected.sort_unstable();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn every_route_lets_in_whom_the_matrix_says_and_nobody_else() {
    for (route, columns) in MATRIX {
        if columns == "-" {
            let (status, body) = World::new().await.call(route, None).await;
            assert_eq!(status, StatusCode::OK, "{route}: {body}");
            continue;
        }
        assert_eq!(columns.len(), CALLERS.len(), "{route}");
        for (caller, expected) in CALLERS.into_iter().zip(columns.chars()) {
            // Anew for each, because some are let in and change what there is.
            let world = World::new().await;
            let secret = world.secret_of(caller).await;
            let (status, body) = world.call(route, Some(&bearer(&secret))).await;
            let found = if status == StatusCode::FORBIDDEN { 'n' } else { 'y' };
            assert_eq!(found, expected, "{route} by {caller}: {status} {body}");
            assert_ne!(status, StatusCode::UNAUTHORIZED, "{route} by {caller}: {body}");
            assert!(!status.is_server_error(), "{route} by {caller}: {body}");
        }
    }
}

#[tokio::test]
async fn no_guarded_route_lets_in_what_has_ended_or_never_was() {
    let world = World::new().await;
    let ended = |ttl: Option<i64>| {
        let secret = secret(SecretKind::Subject);
        let admin = Actor::new("root".parse().unwrap(), Authority::Role(Role::Admin));
        let mut wanted = TokenRequest::for_subject("ada".parse().unwrap(), Role::Admin);
        wanted.ttl_seconds = ttl.map(|seconds| seconds.try_into().unwrap());
        let (hash, long_ago) = (secret.hash(), Timestamp::from_micros(1_700_000_000_000_000));
        let store = world.api.store.clone();
        async move {
            let made = store.write(move |tx| tx.create_token(&admin, hash, &wanted, long_ago)).await;
            (secret, made.unwrap().id)
        }
    };
    let (expired, _) = ended(Some(3600)).await;
    let (revoked, id) = ended(None).await;
    assert_eq!(world.call("GET /v1/whoami", Some(&bearer(&revoked))).await.0, StatusCode::OK, "until now");
    world.api.local(Method::DELETE, &format!("/v1/tokens/{id}"), Value::Null).await;
    let strangers = [
        ("none", None),
        ("expired", Some(bearer(&expired))),
        ("revoked", Some(bearer(&revoked))),
        ("unknown", Some(bearer(&secret(SecretKind::Subject)))),
        ("garbage", Some("Bearer gkt_zz".to_owned())),
        ("another scheme", Some("Basic YTpi".to_owned())),
    ];
    for (route, _) in MATRIX.iter().filter(|(_, columns)| *columns != "-") {
        for (who, authorization) in &strangers {
            let (status, body) = world.call(route, authorization.as_deref()).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{route} by {who}: {body}");
            assert_eq!(body["code"], "unauthenticated", "{route} by {who}");
        }
    }
}
