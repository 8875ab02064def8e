//! Tokens through the API: made, shown once, listed, limited, revoked.

use axum::http::{Method, StatusCode};
use gk_model::access::Role;
use gk_model::secret::{Secret, SecretKind};
use serde_json::{Value, json};

use super::{Answer, Api, secret};

async fn create(api: &Api, by: Option<&Secret>, body: Value) -> Answer {
    match by {
        Some(token) => api.with_token(token, Method::POST, "/v1/tokens", body).await,
        None => api.local(Method::POST, "/v1/tokens", body).await,
    }
}

fn secret_in(answer: &Answer) -> Secret {
    answer.body["secret"].as_str().unwrap().parse().unwrap()
}

fn id_in(answer: &Answer) -> String {
    answer.body["token"]["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_token_works_until_it_is_revoked_and_not_once_more() {
    let api = Api::new().await;
    let made =
        create(&api, None, json!({"kind": "subject", "subject": "ci", "role": "user", "note": "builds"}))
            .await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    let token = secret_in(&made);
    assert_eq!(token.kind(), SecretKind::Subject);
    let whoami = api.with_token(&token, Method::GET, "/v1/whoami", Value::Null).await;
    assert_eq!(
        (&whoami.body["subject"], &whoami.body["role"], &whoami.body["by"], &whoami.body["token"]),
        (&json!("ci"), &json!("user"), &json!("token"), &made.body["token"]["id"])
    );
    let listed = api.local(Method::GET, "/v1/tokens", Value::Null).await;
    assert_eq!(listed.body["items"][0]["note"], "builds");
    assert!(listed.body["items"][0]["last_used_at"].is_string(), "{}", listed.body);
    assert!(!listed.body.to_string().contains(token.reveal()), "a secret is not listed");
    let path = format!("/v1/tokens/{}", id_in(&made));
    let revoked = api.local(Method::DELETE, &path, Value::Null).await;
    assert!(revoked.body["revoked_at"].is_string(), "{}", revoked.body);
    let refused = api.with_token(&token, Method::GET, "/v1/whoami", Value::Null).await;
    assert_eq!(refused.refusal(), (401, "unauthenticated", None));
    assert_eq!(api.local(Method::DELETE, &path, Value::Null).await.refusal(), (409, "token_ended", None));
    let live = api.local(Method::GET, "/v1/tokens", Value::Null).await;
    let all = api.local(Method::GET, "/v1/tokens?ended=true", Value::Null).await;
    assert_eq!(
        (live.body["items"].as_array().unwrap().len(), all.body["items"].as_array().unwrap().len()),
        (0, 1)
    );
}

#[tokio::test]
async fn a_secret_is_shown_once() {
    let api = Api::new().await;
    let admin = api.token(SecretKind::Subject, Role::Admin, "ada").await;
    let body = json!({"kind": "join"});
    let send = |body: Value, key: &'static str| {
        let request = super::request(Method::POST, "/v1/tokens", &body)
            .header("authorization", format!("Bearer {}", admin.reveal()))
            .header("idempotency-key", key);
        api.send(request.body(axum::body::Body::from(body.to_string())).unwrap())
    };
    let first = send(body.clone(), "k").await;
    assert_eq!(first.status, StatusCode::CREATED, "{}", first.body);
    let again = send(body, "k").await;
    assert_eq!(again.refusal(), (409, "secret_shown_once", None));
    assert!(again.body.to_string().contains(&id_in(&first)), "it says which token to end: {}", again.body);
    // With a secret of the client's own there is none to show, and so nothing against asking again.
    let own = secret(SecretKind::Subject);
    let body = json!({"kind": "subject", "subject": "eve", "role": "viewer", "hash": own.hash()});
    let (first, again) = (send(body.clone(), "l").await, send(body.clone(), "l").await);
    assert_eq!((first.status, again.status), (StatusCode::CREATED, StatusCode::CREATED), "{}", again.body);
    assert_eq!(first.body, again.body);
    assert!(first.body.get("secret").is_none());
    assert_eq!(send(body, "m").await.refusal(), (409, "secret_taken", Some("hash")), "another request");
    assert_eq!(api.with_token(&own, Method::GET, "/v1/whoami", Value::Null).await.body["subject"], "eve");
}

#[tokio::test]
async fn an_operator_deals_with_join_tokens_only() {
    let api = Api::new().await;
    let operator = api.token(SecretKind::Subject, Role::Operator, "op").await;
    let refused = create(&api, Some(&operator), json!({"kind": "subject", "role": "viewer"})).await;
    assert_eq!(refused.refusal(), (403, "forbidden", None));
    let made = create(&api, Some(&operator), json!({"kind": "join"})).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    let listed = api.with_token(&operator, Method::GET, "/v1/tokens", Value::Null).await;
    assert_eq!(
        listed.body["items"].as_array().unwrap().len(),
        1,
        "its own token is not shown: {}",
        listed.body
    );
    let all = api.local(Method::GET, "/v1/tokens?kind=subject", Value::Null).await;
    let own = all.body["items"][0]["id"].as_str().unwrap();
    let revoke = |id: String| {
        let path = format!("/v1/tokens/{id}");
        let (api, operator) = (&api, &operator);
        async move { api.with_token(operator, Method::DELETE, &path, Value::Null).await }
    };
    assert_eq!(revoke(own.to_owned()).await.refusal(), (404, "no_such_token", None));
    assert_eq!(revoke(id_in(&made)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_reusable_join_token_labels_every_machine_and_ends_when_revoked() {
    let api = Api::new().await;
    let terms = json!({"reusable": true, "labels": {"env": "prod"}, "forget_after_seconds": 604_800});
    let made = create(&api, None, json!({"kind": "join", "join": terms})).await;
    let token = secret_in(&made);
    let join = |name: &'static str, labels: Value| {
        let hash = secret(SecretKind::Instance).hash();
        let body = json!({"name": name, "credential_hash": hash, "facts": {}, "labels": labels});
        api.with_token(&token, Method::POST, "/v1/instances", body)
    };
    for name in ["web-1", "web-2"] {
        let joined = join(name, json!({})).await;
        assert_eq!(joined.status, StatusCode::CREATED, "{}", joined.body);
        assert_eq!(joined.body["labels"], json!({"env": "prod"}));
        assert_eq!(joined.body["forget_after_seconds"], 604_800);
    }
    let own = join("web-3", json!({"env": "dev"})).await;
    assert_eq!(own.refusal(), (403, "forbidden", Some("labels")), "no machine says its own");
    api.local(Method::DELETE, &format!("/v1/tokens/{}", id_in(&made)), Value::Null).await;
    assert_eq!(join("web-3", json!({})).await.refusal(), (401, "unauthenticated", None));
}

#[tokio::test]
async fn a_limited_token_reaches_no_further() {
    let api = Api::new().await;
    for (name, env) in [("web-1", "dev"), ("web-2", "prod")] {
        let body = json!({"name": name, "credential_hash": secret(SecretKind::Instance).hash(), "facts": {},
            "labels": {"env": env}});
        api.local(Method::POST, "/v1/instances", body).await;
    }
    let limited = |role: &str, limits: Value| {
        let body = json!({"kind": "subject", "subject": role, "role": role, "limits": limits});
        let api = &api;
        async move { secret_in(&create(api, None, body).await) }
    };
    let user = limited("user", json!({"instances": "env=dev"})).await;
    let operator = limited("operator", json!({"instances": "env in (dev,test)"})).await;
    let reserve = |token: &Secret, body: Value| {
        let (api, token) = (&api, token.clone());
        async move { api.with_token(&token, Method::POST, "/v1/reservations", body).await }
    };
    for token in [&user, &operator] {
        assert_eq!(reserve(token, json!({"instance": "web-1"})).await.status, StatusCode::CREATED);
        for body in [json!({"instance": "web-2"}), json!({"instance": "web-1", "scope": "fleet"})] {
            assert_eq!(reserve(token, body.clone()).await.refusal(), (403, "beyond_limits", None), "{body}");
        }
    }
    let held = api.local(Method::POST, "/v1/reservations", json!({"instance": "web-2"})).await;
    let path = format!("/v1/reservations/{}?force=true", held.body["items"][0]["id"].as_str().unwrap());
    let token = format!("/v1/tokens/{}", id_in(&create(&api, None, json!({"kind": "join"})).await));
    let join = |more: Value| {
        let mut body = json!({"credential_hash": secret(SecretKind::Instance).hash(), "facts": {}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let changes = [
        (Method::POST, "/v1/instances", join(json!({"replace": "web-2"}))),
        (Method::POST, "/v1/instances", join(json!({"name": "web-3", "labels": {"env": "prod"}}))),
        (Method::PATCH, "/v1/instances/web-1", json!({"labels": {"env": "prod"}})),
        (Method::DELETE, token.as_str(), Value::Null),
        (Method::DELETE, path.as_str(), Value::Null),
        (Method::PATCH, "/v1/instances/web-2", json!({"labels": {"env": "dev"}})),
        (Method::PATCH, "/v1/instances/web-2", json!({"name": "web-9"})),
        (Method::DELETE, "/v1/instances/web-2?release=true", Value::Null),
    ];
    for (method, path, body) in changes {
        let refused = api.with_token(&operator, method.clone(), path, body).await;
        assert_eq!(refused.refusal(), (403, "beyond_limits", None), "{method} {path}");
    }
    let seen = api.with_token(&user, Method::GET, "/v1/instances/web-2", Value::Null).await;
    assert_eq!(seen.status, StatusCode::OK, "reading is not limited");
    let more = create(&api, Some(&operator), json!({"kind": "join"})).await;
    assert_eq!(more.refusal(), (403, "beyond_limits", None), "nor does it make tokens without limits");
}

#[tokio::test]
async fn a_token_for_pools_takes_their_numbers_only() {
    let api = Api::new().await;
    api.join("web-1").await;
    let body = json!({"kind": "subject", "subject": "ci", "role": "user", "limits": {"pools": ["default"]}});
    let token = secret_in(&create(&api, None, body).await);
    let reserve = |port: Option<u16>| {
        let body = json!({"instance": "web-1", "port": port});
        api.with_token(&token, Method::POST, "/v1/reservations", body)
    };
    assert_eq!(reserve(None).await.body["items"][0]["first_port"], 8000);
    assert_eq!(reserve(Some(9000)).await.status, StatusCode::CREATED);
    assert_eq!(reserve(Some(7000)).await.refusal(), (403, "beyond_limits", None));
    let body = json!({"kind": "subject", "subject": "ci", "role": "user", "limits": {"pools": ["other"]}});
    let token = secret_in(&create(&api, None, body).await);
    let other = api.with_token(
        &token,
        Method::POST,
        "/v1/reservations",
        json!({"instance": "web-1", "pool": "default"}),
    );
    assert_eq!(other.await.refusal(), (403, "beyond_limits", None));
}

#[tokio::test]
async fn a_change_says_who_asked_for_it_from_where() {
    let api = Api::new().await;
    api.join("web-1").await;
    let ada = create(&api, None, json!({"kind": "subject", "subject": "ada", "role": "user"})).await;
    let peer = axum::extract::ConnectInfo(crate::Peer::Tcp("192.0.2.7:4711".parse().unwrap()));
    let body = json!({"instance": "web-1"});
    let request = super::request(Method::POST, "/v1/reservations", &body)
        .extension(peer)
        .header("authorization", format!("Bearer {}", secret_in(&ada).reveal()))
        .header("x-request-id", "req-42");
    let made = api.send(request.body(axum::body::Body::from(body.to_string())).unwrap()).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    let events = api.local(Method::GET, "/v1/events?actor=ada", Value::Null).await;
    let expected = json!({"token": id_in(&ada), "address": "192.0.2.7", "request": "req-42"});
    assert_eq!(events.body["items"][0]["origin"], expected, "{}", events.body);
    let created = api.local(Method::GET, "/v1/events?kind=token_created", Value::Null).await;
    assert_eq!(created.body["items"].as_array().unwrap().len(), 1);
    assert!(
        created.body["items"][0]["message"].as_str().unwrap().contains("of ada (user)"),
        "{}",
        created.body
    );
}
