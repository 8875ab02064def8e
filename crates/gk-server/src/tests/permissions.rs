//! Who may act on what, beyond what a permission alone says. Which route lets whom in is in `matrix`.

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Method, Request, StatusCode};
use gk_model::access::Role;
use gk_model::secret::SecretKind;
use serde_json::{Value, json};

use super::{Api, LOCAL_UID, secret};
use crate::Peer;

#[tokio::test]
async fn a_credential_acts_only_for_its_instance() {
    let api = Api::new().await;
    let (own_id, own) = api.join("web-1").await;
    let (other_id, _) = api.join("web-2").await;
    let heartbeat = json!({
        "session": 0, "sequence": 0, "sent_at": "2026-11-22T20:00:00Z", "digest": "0".repeat(32),
        "agent_version": "1", "kind": "heartbeat",
    });
    for other in [other_id.as_str(), "web-2", "WEB-2"] {
        let path = format!("/v1/instances/{other}");
        let contact = api.with_token(&own, Method::POST, &format!("{path}/contact"), heartbeat.clone()).await;
        let rename = api.with_token(&own, Method::PATCH, &path, json!({"name": "mine"})).await;
        let leave = api.with_token(&own, Method::DELETE, &path, Value::Null).await;
        let reserve =
            api.with_token(&own, Method::POST, "/v1/reservations", json!({"instance": other})).await;
        for answer in [contact, rename, leave, reserve] {
            assert_eq!(answer.refusal(), (403, "forbidden", None));
        }
    }
    let reserve = api.with_token(&own, Method::POST, "/v1/reservations", json!({"instance": "web-1"})).await;
    assert_eq!(reserve.status, StatusCode::CREATED, "{}", reserve.body);
    let path = format!("/v1/instances/{own_id}?release=true");
    let leave = api.with_token(&own, Method::DELETE, &path, Value::Null).await;
    assert_eq!(leave.status, StatusCode::NO_CONTENT, "{}", leave.body);
    let gone = api.with_token(&own, Method::GET, "/v1/instances", Value::Null).await;
    assert_eq!(gone.refusal(), (401, "unauthenticated", None), "the credential ends with the instance");
}

#[tokio::test]
async fn reserved_ports_are_told_to_the_instance_and_to_whoever_may_read() {
    let api = Api::new().await;
    let (id, own) = api.join("web-1").await;
    for (port, protocol) in [(8000, "tcp"), (8001, "udp"), (9100, "tcp"), (9100, "udp")] {
        let body = json!({"instance": "web-1", "port": port, "protocol": protocol});
        let made = api.local(Method::POST, "/v1/reservations", body).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    }
    let eve = api.token(SecretKind::Subject, Role::Viewer, "eve").await;
    for token in [&own, &eve] {
        let path = format!("/v1/instances/{id}/reserved");
        let told = api.with_token(token, Method::GET, &path, Value::Null).await;
        assert_eq!((told.status, told.body), (StatusCode::OK, json!({"ports": ["8000-8001", "9100"]})));
    }
}

#[tokio::test]
async fn only_the_holder_releases_and_an_operator_by_force() {
    let api = Api::new().await;
    api.join("web-1").await;
    let ada = api.token(SecretKind::Subject, Role::User, "ada").await;
    let eve = api.token(SecretKind::Subject, Role::User, "eve").await;
    let body = json!({"instance": "web-1", "port": 8080, "service": "billing"});
    let made = api.with_token(&ada, Method::POST, "/v1/reservations", body).await;
    let path = format!("/v1/reservations/{}", made.body["items"][0]["id"].as_str().unwrap());
    assert_eq!(made.header("location"), path);
    for forced in [path.clone(), format!("{path}?force=true")] {
        let refused = api.with_token(&eve, Method::DELETE, &forced, Value::Null).await;
        assert_eq!(refused.refusal(), (403, "not_the_holder", None));
        assert_eq!(refused.body["holder"]["subject"], "ada");
    }
    let released = api.local(Method::DELETE, &format!("{path}?force=true"), Value::Null).await;
    assert_eq!(released.body["released_by"], "local:test");
    let again = api.with_token(&ada, Method::DELETE, &path, Value::Null).await;
    assert_eq!(again.refusal(), (409, "already_released", None));
}

#[tokio::test]
async fn the_socket_admits_named_accounts_and_a_token_counts_there_too() {
    let api = Api::new().await;
    let viewer = api.token(SecretKind::Subject, Role::Viewer, "eve").await;
    let bearer = format!("bearer {}", viewer.reveal());
    let reserve = |uid: u32, authorization: Option<&str>| {
        let mut request = Request::post("/v1/reservations").extension(ConnectInfo(Peer::Unix { uid }));
        if let Some(text) = authorization {
            request = request.header("authorization", text);
        }
        api.send(request.header("content-type", "application/json").body(Body::from("{}")).unwrap())
    };
    assert_eq!(reserve(LOCAL_UID, None).await.refusal().0, 422, "admitted as admin");
    assert_eq!(reserve(LOCAL_UID, Some(&bearer)).await.refusal().0, 403, "the token is a viewer's");
    assert_eq!(reserve(LOCAL_UID + 1, None).await.refusal().0, 401);
    let unknown = secret(SecretKind::Subject);
    for bad in [format!("Bearer {}", unknown.reveal()), "Bearer gkt_short".into(), "Basic YTpi".into()] {
        let answer = reserve(LOCAL_UID, Some(&bad)).await;
        assert_eq!(answer.refusal(), (401, "unauthenticated", None), "{bad}");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
        let said = answer.body.to_string();
        assert!(!said.contains("gkt_short") && !said.contains(unknown.reveal()), "{said}");
    }
}

#[tokio::test]
async fn only_an_operator_replaces() {
    let api = Api::new().await;
    let (id, _) = api.join("web-1").await;
    let join = api.token(SecretKind::Join, Role::Viewer, "joiner").await;
    let hash = secret(SecretKind::Instance).hash();
    let body = json!({"credential_hash": hash, "facts": {}, "replace": "web-1"});
    let refused = api.with_token(&join, Method::POST, "/v1/instances", body.clone()).await;
    assert_eq!(refused.refusal(), (403, "forbidden", Some("replace")));
    let replaced = api.local(Method::POST, "/v1/instances", body).await;
    assert_eq!((replaced.status, replaced.body["id"].as_str()), (StatusCode::OK, Some(id.as_str())));
}
