//! Pools over HTTP: what is answered, what is refused and how, and whose change counts.

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Answer, Api, LOCAL_UID, request};
use crate::Peer;

async fn put(api: &Api, name: &str, spec: Value) -> Answer {
    api.local(Method::PUT, &format!("/v1/pools/{name}"), spec).await
}

async fn get(api: &Api, name: &str) -> Answer {
    api.local(Method::GET, &format!("/v1/pools/{name}"), Value::Null).await
}

async fn reserve(api: &Api, body: Value) -> Answer {
    api.local(Method::POST, "/v1/reservations", body).await
}

/// A change by the local admin of this version only.
async fn at_version(api: &Api, method: Method, tag: &str, spec: Value) -> Answer {
    let request = request(method, "/v1/pools/web", &spec)
        .extension(ConnectInfo(Peer::Unix { uid: LOCAL_UID }))
        .header("if-match", tag);
    api.send(request.body(Body::from(spec.to_string())).unwrap()).await
}

#[tokio::test]
async fn a_pool_is_answered_as_it_is_and_how_full_it_is() {
    let api = Api::new().await;
    let (id, _) = api.join("web-1").await;
    let spec = json!({"ranges": ["8500-8509", "8505-8519"], "exclude": ["8510"], "instances": "env!=dev", "note": "n"});
    let made = put(&api, "web", spec).await;
    assert_eq!((made.status, made.header("etag")), (StatusCode::CREATED, "\"1\""));
    let pool = json!({
        "name": "web", "ranges": ["8500-8519"], "exclude": ["8510"], "scope": "instance", "pick": "lowest",
        "quarantine_seconds": 900, "instances": "env!=dev", "ephemeral": false, "note": "n", "version": 1,
    });
    assert_eq!(made.body, json!({"pool": pool, "outside": 0, "first_outside": []}));

    reserve(&api, json!({"instance": "web-1", "pool": "web", "count": 3})).await;
    reserve(&api, json!({"instance": "web-1", "port": 8519, "protocol": "udp", "scope": "fleet"})).await;
    let mut full = pool;
    let fullest = json!({"instance": {"id": id, "name": "web-1"}, "protocol": "tcp", "left": 16});
    full.as_object_mut().unwrap().extend([
        ("size".to_owned(), json!(19)),
        ("reserved".to_owned(), json!(4)),
        ("fullest".to_owned(), fullest),
    ]);
    let found = get(&api, "web").await;
    assert_eq!((found.status, found.header("etag"), &found.body), (StatusCode::OK, "\"1\"", &full));
    let listed = api.local(Method::GET, "/v1/pools?limit=1", Value::Null).await;
    assert_eq!(
        (listed.body["items"][0]["name"].as_str(), listed.body["next"].as_str()),
        (Some("default"), Some("default"))
    );
    let listed = api.local(Method::GET, "/v1/pools?cursor=default", Value::Null).await;
    assert_eq!(listed.body, json!({"items": [full], "next": null}));
}

#[tokio::test]
async fn what_makes_no_pool_is_refused_by_its_field() {
    let api = Api::new().await;
    put(&api, "fleet", json!({"ranges": ["7000-7009"], "scope": "fleet"})).await;
    let table = [
        (json!({}), (400, "malformed", Some("ranges"))),
        (json!({"ranges": ["9-2"]}), (400, "malformed", Some("ranges[0]"))),
        (json!({"ranges": ["1"], "pools": 1}), (400, "malformed", Some("pools"))),
        (json!({"ranges": ["1"], "pick": "highest"}), (400, "malformed", Some("pick"))),
        (json!({"ranges": ["1"], "quarantine_seconds": -1}), (400, "malformed", Some("quarantine_seconds"))),
        (json!({"ranges": ["1"], "instances": "a b"}), (400, "malformed", Some("instances"))),
        (json!({"ranges": []}), (422, "impossible", Some("ranges"))),
        (json!({"ranges": ["1-9"], "exclude": ["1-9"]}), (422, "impossible", Some("exclude"))),
        (json!({"ranges": ["32768"]}), (422, "impossible", Some("ephemeral"))),
        (json!({"ranges": ["7009-7010"]}), (409, "pool_overlaps", Some("ranges"))),
    ];
    for (spec, expected) in table {
        assert_eq!(put(&api, "web", spec.clone()).await.refusal(), expected, "{spec}");
    }
    assert_eq!(
        put(&api, "no%20name", json!({"ranges": ["1"]})).await.refusal(),
        (400, "malformed", Some("name"))
    );
    assert_eq!(get(&api, "web").await.refusal(), (404, "no_such_pool", Some("pool")));
    let nothing = api.local(Method::DELETE, "/v1/pools/web", Value::Null).await;
    assert_eq!(nothing.refusal(), (404, "no_such_pool", Some("pool")));
    let default = api.local(Method::DELETE, "/v1/pools/default", Value::Null).await;
    assert_eq!(default.refusal(), (422, "impossible", Some("name")));
    assert_eq!(default.body["hint"], "change it instead: gkctl pool set default --ports 8000-9999");
}

#[tokio::test]
async fn a_change_of_another_version_is_refused() {
    let api = Api::new().await;
    let spec = |range: &str| json!({"ranges": [range]});
    assert_eq!(
        at_version(&api, Method::PUT, "\"1\"", spec("7000")).await.refusal(),
        (404, "no_such_pool", Some("pool"))
    );
    put(&api, "web", spec("7000")).await;
    let changed = at_version(&api, Method::PUT, "\"1\"", spec("7001")).await;
    assert_eq!((changed.status, changed.header("etag")), (StatusCode::OK, "\"2\""));
    for method in [Method::PUT, Method::DELETE] {
        let stale = at_version(&api, method, "\"1\"", spec("7002")).await;
        assert_eq!(stale.refusal(), (412, "version_mismatch", Some("If-Match")));
    }
    assert_eq!(get(&api, "web").await.body["ranges"], json!(["7001"]));
    let same = put(&api, "web", spec("7001")).await;
    assert_eq!((same.status, same.header("etag")), (StatusCode::OK, "\"2\""), "nothing changed");
    assert_eq!(at_version(&api, Method::DELETE, "\"2\"", Value::Null).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_change_tells_what_is_outside_now_and_leaves_it() {
    let api = Api::new().await;
    api.join("web-1").await;
    put(&api, "web", json!({"ranges": ["7000-7009"]})).await;
    for _ in 0..2 {
        reserve(&api, json!({"instance": "web-1", "pool": "web"})).await;
    }
    let changed = put(&api, "web", json!({"ranges": ["7001-7009"]})).await;
    assert_eq!((changed.status, &changed.body["outside"]), (StatusCode::OK, &json!(1)));
    assert_eq!(changed.body["first_outside"][0]["first_port"], 7000);
    let deleted = api.local(Method::DELETE, "/v1/pools/web", Value::Null).await;
    assert_eq!((&deleted.body["outside"], &deleted.body["pool"]["version"]), (&json!(2), &json!(2)));
    let live = api.local(Method::GET, "/v1/reservations", Value::Null).await;
    assert_eq!(live.body["items"].as_array().unwrap().len(), 2);
    let kinds = ["pool_set", "pool_deleted"];
    let mut told = Vec::new();
    for kind in kinds {
        let events = api.local(Method::GET, &format!("/v1/events?kind={kind}"), Value::Null).await;
        told.push(events.body["items"].as_array().unwrap().len());
        assert_eq!(events.body["items"][0]["actor"], "local:test");
    }
    assert_eq!(told, [2, 1]);
}

#[tokio::test]
async fn a_pool_for_others_and_one_that_is_used_up_say_what_would_do() {
    let api = Api::new().await;
    api.join("web-1").await;
    put(&api, "prod", json!({"ranges": ["7000"], "instances": "env=prod"})).await;
    put(&api, "one", json!({"ranges": ["7100"]})).await;
    let other = reserve(&api, json!({"instance": "web-1", "pool": "prod"})).await;
    assert_eq!(other.refusal(), (409, "pool_not_for_instance", Some("pool")));
    assert_eq!(other.body["detail"], "pool prod is for instances with env=prod, and web-1 has no labels");
    let hint = other.body["hint"].as_str().unwrap();
    assert_eq!(hint, "draw from pool default or one: gkctl port reserve --pool default --instance web-1");
    reserve(&api, json!({"instance": "web-1", "pool": "one"})).await;
    let full = reserve(&api, json!({"instance": "web-1", "pool": "one"})).await;
    assert_eq!(full.refusal(), (409, "pool_exhausted", Some("pool")));
    assert_eq!(full.body["detail"], "pool one of 1 port has no free tcp port left on web-1");
    let hint = full.body["hint"].as_str().unwrap();
    for says in [
        "--state reserved",
        "gkctl port reserve --pool default --instance web-1",
        "gkctl pool set one --ports",
    ] {
        assert!(hint.contains(says), "{hint}");
    }
}
