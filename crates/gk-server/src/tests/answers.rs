//! What answers and refusals look like.

use std::io::Write as _;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Method, Request, StatusCode};
use axum::response::IntoResponse as _;
use flate2::Compression;
use flate2::write::GzEncoder;
use gk_model::access::{Actor, Authority, Role};
use gk_model::problem::{Code, Problem};
use gk_model::secret::SecretKind;
use gk_model::time::Timestamp;
use gk_model::token::TokenRequest;
use serde_json::{Value, json};

use super::{Answer, Api, LOCAL_UID, secret};
use crate::Peer;
use crate::error::ApiError;

const RESERVE: &str = "/v1/reservations";

async fn post(api: &Api, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
    let request = Request::post(path).extension(ConnectInfo(Peer::Unix { uid: LOCAL_UID }));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    api.send(request.body(body.into()).unwrap()).await
}

/// A row that is there already is refused by the database itself, as only a fault of ours makes it say one.
#[tokio::test]
async fn a_statement_that_fails_is_a_fault_that_is_not_worth_repeating() {
    let api = Api::new().await;
    let (hash, now) = (secret(SecretKind::Subject).hash(), Timestamp::from_clock());
    let twice = move |tx: &mut gk_store::Tx<'_>| {
        let root = Actor::new("root".parse().unwrap(), Authority::Role(Role::Admin));
        (0..2).try_for_each(|_| tx.create_token(&root, hash, &TokenRequest::to_join(), now).map(drop))
    };
    let response = ApiError::from(api.store.write(twice).await.unwrap_err()).into_response();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!response.headers().contains_key("retry-after"), "{response:?}");
    let problem = response.extensions().get::<Box<Problem>>().unwrap();
    assert_eq!(problem.code, Code::Internal);
    assert!(problem.detail.contains("nothing was changed, and its log tells more under this request id"));
}

#[tokio::test]
async fn a_bad_request_is_told_what_is_wrong() {
    let api = Api::new().await;
    let json = [("content-type", "application/json")];
    let table = [
        (RESERVE, &json[..], r#"{"prot":1}"#, (400, "malformed", Some("prot"))),
        (RESERVE, &json, "{", (400, "malformed", None)),
        (RESERVE, &[("content-type", "text/plain")], "{}", (415, "unsupported_media_type", None)),
        (RESERVE, &[], "{}", (415, "unsupported_media_type", None)),
        (RESERVE, &[json[0], ("content-encoding", "gzip")], "{}", (415, "unsupported_media_type", None)),
        (RESERVE, &json, r#"{"instance":"nobody"}"#, (404, "no_such_instance", Some("instance"))),
        (RESERVE, &json, r#"{"instance":"a","port":1,"pool":"default"}"#, (422, "impossible", Some("pool"))),
        (RESERVE, &json, r#"{"instance":"a","adopt":true}"#, (422, "impossible", Some("adopt"))),
        ("/v1/reservation", &json, "{}", (404, "no_such_route", None)),
        ("/v1/ports", &json, "{}", (405, "method_not_allowed", None)),
    ];
    for (path, headers, body, expected) in table {
        assert_eq!(post(&api, path, headers, body).await.refusal(), expected, "{path} {headers:?} {body}");
    }
    let large = post(&api, RESERVE, &json, vec![b' '; (1 << 20) + 1]).await;
    assert_eq!(large.refusal(), (413, "too_large", None));
}

#[tokio::test]
async fn a_bad_address_is_told_what_is_wrong() {
    let api = Api::new().await;
    let table = [
        ("/v1/ports?prot=80", (400, "malformed", Some("prot"))),
        ("/v1/instances/no%20spaces", (400, "malformed", Some("instance"))),
        ("/v1/reservations/7", (400, "malformed", Some("id"))),
        ("/v1/instances/nobody", (404, "no_such_instance", Some("instance"))),
        ("/v1/events?cursor=nonsense", (400, "malformed", Some("cursor"))),
        ("/v1/reservations/0190163d-8694-739b-aea5-966c26f8ad91", (404, "no_such_reservation", None)),
    ];
    for (path, expected) in table {
        assert_eq!(api.local(Method::GET, path, Value::Null).await.refusal(), expected, "{path}");
    }
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let api = Api::new().await;
    let answer = api.local(Method::PUT, "/v1/instances", Value::Null).await;
    assert_eq!(answer.refusal(), (405, "method_not_allowed", None));
    let mut allowed: Vec<&str> = answer.header("allow").split(',').collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["GET", "HEAD", "POST"]);
}

#[tokio::test]
async fn a_taken_port_names_its_holder_and_the_way_out() {
    let api = Api::new().await;
    api.join("web-1").await;
    let body = json!({"instance": "web-1", "port": 8080, "service": "billing"});
    let made = api.local(Method::POST, RESERVE, body.clone()).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    assert_eq!(made.header("etag"), "\"1\"");
    let refused = api.local(Method::POST, RESERVE, body).await;
    assert_eq!(refused.refusal(), (409, "port_reserved", Some("port")));
    assert_eq!(refused.body["holder"]["service"], "billing");
    let free = refused.body["alternatives"].as_array().unwrap();
    assert_eq!(free.len(), 3);
    let hint = format!("gkctl port reserve --port {} --service billing --instance web-1", free[0]);
    assert_eq!(refused.body["hint"], hint);
    let live = api.local(Method::DELETE, "/v1/instances/web-1", Value::Null).await;
    assert_eq!(live.refusal(), (409, "reservations_live", None));
    assert_eq!(live.body["hint"], "gkctl instance leave web-1 --release");
}

#[tokio::test]
async fn a_range_is_reserved_and_released_in_parts() {
    let api = Api::new().await;
    let (_, credential) = api.join("web-1").await;
    let body =
        json!({"instance": "web-1", "count": 5, "ttl_seconds": 3600, "service": "shop", "ensure": true});
    let made = api.local(Method::POST, RESERVE, body.clone()).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    let made = made.body["items"][0].clone();
    assert_eq!((&made["first_port"], &made["last_port"]), (&json!(8000), &json!(8004)));
    assert!(made["expires_at"].is_string() && made["group"].is_null());
    let again = api.local(Method::POST, RESERVE, body).await;
    assert_eq!(again.body["items"][0]["id"], made["id"]);

    let path = format!("{RESERVE}/{}", made["id"].as_str().unwrap());
    let outside = api.local(Method::DELETE, &format!("{path}?ports=8004-8005"), Value::Null).await;
    assert_eq!(outside.refusal(), (422, "impossible", Some("ports")));
    let part = api.local(Method::DELETE, &format!("{path}?ports=8002"), Value::Null).await;
    assert_eq!((&part.body["last_port"], &part.body["released_at"]), (&json!(8001), &Value::Null));
    let live = api.local(Method::GET, RESERVE, Value::Null).await;
    assert_eq!(live.body["items"][1]["split_from"], made["id"]);
    let whole = api.local(Method::DELETE, &path, Value::Null).await;
    assert!(whole.body["released_at"].is_string());

    let table = [
        (json!({"instance": "web-1", "count": 0}), (400, "malformed", Some("count"))),
        (json!({"instance": "web-1", "ttl_seconds": 0}), (400, "malformed", Some("ttl_seconds"))),
        (json!({"instance": "web-1", "group": {}}), (400, "malformed", Some("group"))),
        (json!({"instance": "web-1", "ensure": true}), (422, "impossible", Some("service"))),
        (json!({"instance": "web-1", "port": 65535, "count": 2}), (422, "impossible", Some("count"))),
        (
            json!({"instance": "web-1", "ensure": true, "service": "shop", "count": 4}),
            (409, "ensure_differs", Some("count")),
        ),
    ];
    for (body, expected) in table {
        assert_eq!(api.local(Method::POST, RESERVE, body.clone()).await.refusal(), expected, "{body}");
    }
    let fleet = json!({"instance": "web-1", "scope": "fleet"});
    let beyond = api.with_token(&credential, Method::POST, RESERVE, fleet.clone()).await;
    assert_eq!(beyond.refusal(), (403, "forbidden", Some("instance")));
    assert_eq!(api.local(Method::POST, RESERVE, fleet).await.body["items"][0]["scope"], "fleet");
}

#[tokio::test]
async fn joining_again_refreshes_and_versions_are_honoured() {
    let api = Api::new().await;
    let (id, credential) = api.join("web-1").await;
    let body = json!({"credential_hash": credential.hash(), "facts": {"os": "Debian"}, "from_the_future": 1});
    let refreshed = api.with_token(&credential, Method::POST, "/v1/instances", body).await;
    assert_eq!((refreshed.status, refreshed.body["id"].as_str()), (StatusCode::OK, Some(id.as_str())));
    let path = format!("/v1/instances/{id}");
    let shown = api.local(Method::GET, &path, Value::Null).await;
    assert_eq!(shown.header("etag"), format!("\"{}\"", shown.body["version"]));
    let rename = |tag: &str| {
        let request = Request::patch(&path).extension(ConnectInfo(Peer::Unix { uid: LOCAL_UID }));
        let request = request.header("content-type", "application/json").header("if-match", tag);
        api.send(request.body(Body::from(r#"{"name":"web-2"}"#)).unwrap())
    };
    assert_eq!(rename("\"99\"").await.refusal(), (412, "version_mismatch", Some("If-Match")));
    assert_eq!(rename("99").await.refusal(), (400, "malformed", Some("If-Match")));
    let renamed = rename(shown.header("etag")).await;
    assert_eq!((renamed.status, renamed.body["name"].as_str()), (StatusCode::OK, Some("web-2")));
    let leave = |tag: &str| {
        let request = Request::delete(&path).extension(ConnectInfo(Peer::Unix { uid: LOCAL_UID }));
        api.send(request.header("if-match", tag).body(Body::empty()).unwrap())
    };
    assert_eq!(leave(shown.header("etag")).await.refusal(), (412, "version_mismatch", Some("If-Match")));
    assert_eq!(leave(renamed.header("etag")).await.status, StatusCode::NO_CONTENT);
}

fn report(listeners: usize) -> Vec<u8> {
    let at = "2026-11-22T20:00:00Z";
    let listener = json!({
        "netns": "home", "protocol": "tcp", "port": 80, "address": "0.0.0.0",
        "first_seen_at": at, "last_seen_at": at, "from_the_future": "x".repeat(100),
    });
    json!({
        "session": 0, "opening": "0190163d-8694-739b-aea5-966c26f8ad91", "sequence": 1, "sent_at": at,
        "digest": "0".repeat(32), "agent_version": "1", "kind": "report", "covered": [],
        "listeners": vec![listener; listeners], "from_the_future": true,
    })
    .to_string()
    .into_bytes()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn a_contact_may_be_compressed_and_is_bounded_after_decompression() {
    let api = Api::new().await;
    let (id, credential) = api.join("web-1").await;
    let path = format!("/v1/instances/{id}/contact");
    let bearer = format!("Bearer {}", credential.reveal());
    let send = |encoding: &'static str, body: Vec<u8>| {
        let headers = [
            ("content-type", "application/json"),
            ("authorization", &bearer),
            ("content-encoding", encoding),
        ];
        let request =
            headers.iter().fold(Request::post(&path), |request, (name, value)| request.header(*name, *value));
        api.send(request.body(Body::from(body)).unwrap())
    };
    let taken = send("gzip", gzip(&report(1))).await;
    assert_eq!((taken.status, &taken.body["session"]), (StatusCode::OK, &json!(1)), "{}", taken.body);
    let plain = send("identity", report(1)).await;
    assert_eq!(plain.status, StatusCode::OK, "{}", plain.body);
    assert_eq!(send("br", report(1)).await.refusal(), (415, "unsupported_media_type", None));
    assert_eq!(send("gzip", b"no gzip".to_vec()).await.refusal(), (400, "malformed", None));
    let bomb = gzip(&report(60_000));
    assert!(bomb.len() < 1 << 20, "small on the wire");
    assert_eq!(send("gzip", bomb).await.refusal(), (413, "too_large", None));
}

#[tokio::test]
async fn people_find_their_way() {
    let api = Api::new().await;
    let page = api.local(Method::GET, "/", Value::Null).await;
    let text = page.body.as_str().unwrap();
    assert!(text.contains("gkctl instance join") && text.contains("/docs"));
    assert!(!text.contains("http://") && !text.contains("https://"), "nothing from elsewhere");
    let health = api.local(Method::GET, "/healthz", Value::Null).await;
    assert_eq!(health.body, json!({"status": "ok", "version": "0.0.0-test", "address": null}));
    assert_eq!(api.local(Method::GET, "/readyz", Value::Null).await.status, StatusCode::OK);
}

#[tokio::test]
async fn every_list_answers() {
    let api = Api::new().await;
    api.join("web-1").await;
    api.local(Method::POST, RESERVE, json!({"instance": "web-1", "port": 8080})).await;
    let lists = [
        ("/v1/instances", 1),
        ("/v1/instances/web-1/ports", 1),
        ("/v1/ports?port=8080&protocol=tcp", 1),
        (RESERVE, 1),
        ("/v1/history", 1),
        ("/v1/events", 2),
    ];
    for (path, count) in lists {
        let answer = api.local(Method::GET, path, Value::Null).await;
        assert_eq!(answer.body["items"].as_array().map(Vec::len), Some(count), "{path}: {}", answer.body);
    }
}

#[tokio::test]
async fn a_closed_store_is_unavailable_and_says_when_to_come_back() {
    let api = Api::new().await;
    let token = api.token(SecretKind::Subject, Role::Operator, "ada").await;
    let store = api.store.clone();
    tokio::task::spawn_blocking(move || store.close()).await.unwrap();
    let hash = secret(SecretKind::Instance).hash();
    let body = json!({"credential_hash": hash, "facts": {}});
    let answer = api.with_token(&token, Method::POST, "/v1/instances", body).await;
    assert_eq!(answer.refusal(), (503, "unavailable", None));
    assert_eq!(answer.header("retry-after"), "5");
}

#[tokio::test]
async fn a_request_id_is_kept_or_made() {
    let api = Api::new().await;
    let given = Request::get("/healthz").header("x-request-id", "abc-1").body(Body::empty()).unwrap();
    assert_eq!(api.send(given).await.header("x-request-id"), "abc-1");
    let made = api.send(Request::get("/healthz").body(Body::empty()).unwrap()).await;
    assert!(uuid::Uuid::try_parse(made.header("x-request-id")).is_ok());
}
