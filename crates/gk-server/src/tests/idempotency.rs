//! `Idempotency-Key` over HTTP: what is replayed, to whom, and what is refused.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use gk_model::access::Role;
use gk_model::secret::{Secret, SecretKind};
use serde_json::{Value, json};

use super::{Answer, Api, request, secret};

const RESERVE: &str = "/v1/reservations";

/// With a token, over TCP, with these keys.
async fn send(
    api: &Api,
    token: &Secret,
    (method, path): (Method, &str),
    keys: &[&str],
    body: &Value,
) -> Answer {
    let bearer = format!("Bearer {}", token.reveal());
    let request = request(method, path, body).header("authorization", bearer);
    let request = keys.iter().fold(request, |request, key| request.header("idempotency-key", *key));
    api.send(request.body(Body::from(body.to_string())).unwrap()).await
}

async fn reserve(api: &Api, token: &Secret, key: &str, body: &Value) -> Answer {
    send(api, token, (Method::POST, RESERVE), &[key], body).await
}

/// What a repetition must have in common with the first answer.
fn essence(answer: &Answer) -> (StatusCode, &Value, &str, &str) {
    (answer.status, &answer.body, answer.header("etag"), answer.header("location"))
}

async fn live(api: &Api) -> usize {
    let list = api.local(Method::GET, RESERVE, Value::Null).await;
    list.body["items"].as_array().unwrap().len()
}

#[tokio::test]
async fn a_reservation_is_answered_again_as_it_was() {
    let api = Api::new().await;
    api.join("web-1").await;
    let ada = api.token(SecretKind::Subject, Role::User, "ada").await;
    let body = json!({"instance": "web-1", "service": "billing"});
    let first = reserve(&api, &ada, "k", &body).await;
    assert_eq!((first.status, first.header("idempotency-replayed")), (StatusCode::CREATED, ""));
    // The same values in another form are the same request, and another token of the same subject the same caller.
    let ada_again = api.token(SecretKind::Subject, Role::User, "ada").await;
    let written_out = json!({"service": "billing", "protocol": "tcp", "port": null, "instance": "web-1"});
    for (token, body) in [(&ada, &body), (&ada_again, &written_out)] {
        let again = reserve(&api, token, "k", body).await;
        assert_eq!(essence(&again), essence(&first));
        assert_eq!(again.header("idempotency-replayed"), "true");
    }
    assert!(first.header("location").starts_with("/v1/reservations/") && first.header("etag") == "\"1\"");
    assert_eq!(live(&api).await, 1);
}

#[tokio::test]
async fn a_join_is_answered_again_as_it_was() {
    let api = Api::new().await;
    let operator = api.token(SecretKind::Subject, Role::Operator, "op").await;
    let hash = secret(SecretKind::Instance).hash();
    let body = json!({"name": "web-1", "credential_hash": hash, "facts": {"host_name": "web-1"}});
    let join = || send(&api, &operator, (Method::POST, "/v1/instances"), &["k"], &body);
    let (first, again) = (join().await, join().await);
    assert_eq!((first.status, first.header("idempotency-replayed")), (StatusCode::CREATED, ""));
    assert_eq!(essence(&again), essence(&first), "201, although the instance is known by now");
    assert_eq!(again.header("idempotency-replayed"), "true");
    let events = api.local(Method::GET, "/v1/events?kind=joined", Value::Null).await;
    assert_eq!(events.body["items"].as_array().unwrap().len(), 1, "joined once");
}

#[tokio::test]
async fn a_key_stands_for_one_request_of_one_subject() {
    let api = Api::new().await;
    api.join("web-1").await;
    let ada = api.token(SecretKind::Subject, Role::Operator, "ada").await;
    let bob = api.token(SecretKind::Subject, Role::User, "bob").await;
    let body = json!({"instance": "web-1"});
    let first = reserve(&api, &ada, "k", &body).await;
    let other = json!({"instance": "web-1", "protocol": "udp"});
    let refused = reserve(&api, &ada, "k", &other).await;
    assert_eq!(refused.refusal(), (422, "idempotency_key_reused", Some("Idempotency-Key")));
    assert!(refused.body["hint"].as_str().unwrap().contains("new key"));
    let join = json!({"credential_hash": secret(SecretKind::Instance).hash(), "facts": {}});
    let elsewhere = send(&api, &ada, (Method::POST, "/v1/instances"), &["k"], &join).await;
    assert_eq!(elsewhere.refusal().1, "idempotency_key_reused");
    let bobs = reserve(&api, &bob, "k", &body).await;
    assert_eq!((bobs.status, bobs.header("idempotency-replayed")), (StatusCode::CREATED, ""));
    assert_ne!(bobs.body["items"][0]["id"], first.body["items"][0]["id"]);
}

#[tokio::test]
async fn a_replay_passes_the_same_doors() {
    let api = Api::new().await;
    let (id, own) = api.join("web-1").await;
    let body = json!({"instance": "web-1"});
    assert_eq!(reserve(&api, &own, "k", &body).await.status, StatusCode::CREATED);
    let leave = format!("/v1/instances/{id}?release=true");
    assert_eq!(api.local(Method::DELETE, &leave, Value::Null).await.status, StatusCode::NO_CONTENT);
    let gone = reserve(&api, &own, "k", &body).await;
    assert_eq!(gone.refusal(), (401, "unauthenticated", None), "the credential ended with the instance");

    api.join("web-2").await;
    let body = json!({"instance": "web-2"});
    let user = api.token(SecretKind::Subject, Role::User, "ada").await;
    assert_eq!(reserve(&api, &user, "k", &body).await.status, StatusCode::CREATED);
    let viewer = api.token(SecretKind::Subject, Role::Viewer, "ada").await;
    assert_eq!(reserve(&api, &viewer, "k", &body).await.refusal().1, "forbidden", "the same subject");
}

#[tokio::test]
async fn what_is_no_key_is_told_what_is_one() {
    let api = Api::new().await;
    let (id, own) = api.join("web-1").await;
    let body = json!({"instance": "web-1"});
    let (long, longest) = ("k".repeat(201), "k".repeat(200));
    let post = |path| (Method::POST, path);
    let contact = format!("/v1/instances/{id}/contact");
    let bad = (400, "malformed", Some("Idempotency-Key"));
    let impossible = (422, "impossible", Some("Idempotency-Key"));
    let instance = format!("/v1/instances/{id}");
    let table: [(_, &[&str], _); 9] = [
        (post(RESERVE), &[""], bad),
        (post(RESERVE), &["two words"], bad),
        (post(RESERVE), &["käse"], bad),
        (post(RESERVE), &[&long], bad),
        (post(RESERVE), &["a", "a"], bad),
        (post(&contact), &["two words"], bad),
        ((Method::GET, RESERVE), &["k"], impossible),
        ((Method::PATCH, &instance), &["k"], impossible),
        ((Method::DELETE, &instance), &["k"], impossible),
    ];
    for (route, keys, expected) in table {
        let answer = send(&api, &own, route.clone(), keys, &body).await;
        assert_eq!(answer.refusal(), expected, "{route:?} {keys:?}");
        assert!(!answer.body["detail"].as_str().unwrap().contains("kkkk"), "{}", answer.body);
    }
    assert_eq!(live(&api).await, 0);
    assert_eq!(reserve(&api, &own, &longest, &body).await.status, StatusCode::CREATED);
}

/// And when the first caller has hung up, its request is done all the same, and its answer kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_repetition_while_the_first_is_under_way_is_put_off() {
    let api = Api::new().await;
    api.join("web-1").await;
    let ada = api.token(SecretKind::Subject, Role::User, "ada").await;
    let body = json!({"instance": "web-1"});
    // The writer is kept busy, so that the first request waits behind.
    let (go_on, held) = std::sync::mpsc::channel::<()>();
    let (store, begun) = (api.store.clone(), tokio::sync::oneshot::channel());
    let mut begins = Some(begun.0);
    let busy = tokio::spawn(async move {
        let hold = move |_: &mut gk_store::Tx<'_>| {
            begins.take().map(|begins| begins.send(()));
            let _released = held.recv();
            Ok(())
        };
        store.write(hold).await
    });
    begun.1.await.unwrap();
    let mut both = [Box::pin(reserve(&api, &ada, "k", &body)), Box::pin(reserve(&api, &ada, "k", &body))];
    let [one, other] = &mut both;
    let put_off = tokio::select! {
        answer = one => answer,
        answer = other => answer,
    };
    assert_eq!(put_off.refusal(), (409, "idempotency_in_flight", None));
    assert_eq!(put_off.header("retry-after"), "1");
    drop(both);
    go_on.send(()).unwrap();
    busy.await.unwrap().unwrap();
    let again = reserve(&api, &ada, "k", &body).await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (StatusCode::CREATED, "true"));
    assert_eq!(live(&api).await, 1);
}

/// Who adds a POST adds it here, having seen that it keeps rule 6.
#[tokio::test]
async fn every_post_takes_a_key() {
    let api = Api::new().await;
    let document = serde_json::to_value(&api.document).unwrap();
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let Some(post) = item.get("post") else { continue };
        let parameters = post["parameters"].as_array().unwrap();
        assert!(parameters.iter().any(|parameter| parameter["name"] == "Idempotency-Key"), "{path}");
        found.push(path.as_str());
    }
    assert_eq!(
        found,
        [
            "/v1/instances",
            "/v1/instances/{instance}/contact",
            "/v1/reservations",
            "/v1/reservations/{id}/renew",
            "/v1/tokens"
        ]
    );
    let request = Request::get("/healthz").header("idempotency-key", "k").body(Body::empty()).unwrap();
    assert_eq!(api.send(request).await.status, StatusCode::OK, "what is open to all asks for nothing");
}
