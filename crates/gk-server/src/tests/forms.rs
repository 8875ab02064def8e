//! Every form of one request for ports, and what is done with them then.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use gk_model::access::Role;
use gk_model::secret::{Secret, SecretKind};
use serde_json::{Value, json};

use super::{Answer, Api, request};

const RESERVE: &str = "/v1/reservations";

/// Two instances of production, one of test, and a user.
async fn fleet() -> (Api, Secret) {
    let api = Api::new().await;
    for (name, env) in [("web-1", "prod"), ("web-2", "prod"), ("test-1", "test")] {
        api.join(name).await;
        let path = format!("/v1/instances/{name}");
        let labelled = api.local(Method::PATCH, &path, json!({"labels": {"env": env}})).await;
        assert_eq!(labelled.status, StatusCode::OK, "{}", labelled.body);
    }
    let ada = api.token(SecretKind::Subject, Role::User, "ada").await;
    (api, ada)
}

/// `8000/tcp web-1 http` of each.
fn told(answer: &Answer) -> Vec<String> {
    let items = answer.body["items"].as_array().unwrap_or_else(|| panic!("{}", answer.body));
    let word = |item: &Value, field: &str| item[field].as_str().map(|text| format!(" {text}"));
    let one = |item: &Value| {
        let (first, last) = (&item["first_port"], &item["last_port"]);
        let ports = if first == last { first.to_string() } else { format!("{first}-{last}") };
        let place = word(&item["instance"], "name").unwrap_or_else(|| " everywhere".to_owned());
        let name = word(item, "name").unwrap_or_default();
        format!("{ports}/{}{place}{name}", item["protocol"].as_str().unwrap())
    };
    items.iter().map(one).collect()
}

async fn count(api: &Api, path: &str) -> usize {
    let list = api.local(Method::GET, path, Value::Null).await;
    list.body["items"].as_array().unwrap_or_else(|| panic!("{}", list.body)).len()
}

/// What there is: reservations, events, and the number of the newest one.
async fn state(api: &Api) -> (usize, usize, u64) {
    let newest = api.store.log().await.unwrap().newest_seq;
    (count(api, &format!("{RESERVE}?limit=1000")).await, count(api, "/v1/events?limit=1000").await, newest)
}

async fn if_match(
    api: &Api,
    token: &Secret,
    (method, path): (Method, &str),
    tag: &str,
    body: &Value,
) -> Answer {
    let request = request(method, path, body)
        .header("authorization", format!("Bearer {}", token.reveal()))
        .header("if-match", tag);
    api.send(request.body(Body::from(body.to_string())).unwrap()).await
}

fn forms() -> Vec<(Value, Vec<&'static str>)> {
    vec![
        (json!({"instance": "web-1"}), vec!["8000/tcp web-1"]),
        (json!({"instance": "web-1", "port": 9000}), vec!["9000/tcp web-1"]),
        (json!({"instance": "web-1", "count": 10}), vec!["8000-8009/tcp web-1"]),
        (
            json!({"instance": "web-1", "names": ["http", "grpc"]}),
            vec!["8000/tcp web-1 http", "8001/tcp web-1 grpc"],
        ),
        (
            json!({"instance": "web-1", "port": 9000, "count": 2, "names": ["a", "b"]}),
            vec!["9000-9001/tcp web-1 a", "9002-9003/tcp web-1 b"],
        ),
        (json!({"instance": "web-1", "protocol": "both"}), vec!["8000/tcp web-1", "8000/udp web-1"]),
        (json!({"on": "env=prod"}), vec!["8000/tcp web-1", "8000/tcp web-2"]),
        (json!({"on": "env in (test,prod),env!=prod", "port": 9000}), vec!["9000/tcp test-1"]),
        (json!({"instance": "web-1", "scope": "fleet"}), vec!["8000/tcp web-1"]),
        (json!({"scope": "fleet"}), vec!["8000/tcp everywhere"]),
        (
            json!({"on": "env", "names": ["x", "y"], "protocol": "both"}),
            vec![
                "8000/tcp test-1 x",
                "8000/udp test-1 x",
                "8000/tcp web-1 x",
                "8000/udp web-1 x",
                "8000/tcp web-2 x",
                "8000/udp web-2 x",
                "8001/tcp test-1 y",
                "8001/udp test-1 y",
                "8001/tcp web-1 y",
                "8001/udp web-1 y",
                "8001/tcp web-2 y",
                "8001/udp web-2 y",
            ],
        ),
    ]
}

#[tokio::test]
async fn every_form_has_one_shape_of_answer_and_a_dry_run_makes_nothing_of_it() {
    for (body, expected) in forms() {
        let (api, ada) = fleet().await;
        let before = state(&api).await;
        let mut dry = body.clone();
        dry["dry_run"] = true.into();
        for _ in 0..2 {
            let planned = api.with_token(&ada, Method::POST, RESERVE, dry.clone()).await;
            assert_eq!(
                (planned.status, told(&planned)),
                (StatusCode::OK, expected.iter().map(|text| (*text).to_owned()).collect()),
                "{body}"
            );
            assert_eq!(planned.body["dry_run"], true);
            assert!((planned.header("location"), planned.header("etag")) == ("", ""));
            for item in planned.body["items"].as_array().unwrap() {
                assert_eq!(
                    (&item["id"], &item["version"]),
                    (&json!("00000000-0000-0000-0000-000000000000"), &json!(0))
                );
                assert_eq!((&item["holder"], &item["group"]), (&json!("ada"), &Value::Null));
            }
        }
        assert_eq!(state(&api).await, before, "{body}");

        let made = api.with_token(&ada, Method::POST, RESERVE, body.clone()).await;
        assert_eq!(
            (made.status, told(&made)),
            (StatusCode::CREATED, expected.iter().map(|text| (*text).to_owned()).collect()),
            "{body}"
        );
        assert_eq!(made.body["dry_run"], false);
        let is_one = expected.len() == 1;
        let path = format!("{RESERVE}/{}", made.body["items"][0]["id"].as_str().unwrap());
        assert_eq!(made.header("location"), if is_one { path.as_str() } else { "" });
        assert_eq!(made.header("etag"), if is_one { "\"1\"" } else { "" });
        let groups: std::collections::BTreeSet<String> =
            made.body["items"].as_array().unwrap().iter().map(|item| item["group"].to_string()).collect();
        assert!(groups.len() == 1 && groups.contains("null") == is_one, "{groups:?}");
        let (reservations, events, _) = state(&api).await;
        assert_eq!((reservations, events), (expected.len(), before.1 + expected.len()));
    }
}

#[tokio::test]
async fn all_of_a_request_or_nothing() {
    let (api, ada) = fleet().await;
    for (instance, protocol, port) in [("web-2", "tcp", 8000), ("web-1", "udp", 8105), ("web-1", "tcp", 8201)]
    {
        let body = json!({"instance": instance, "protocol": protocol, "port": port, "service": "billing"});
        assert_eq!(api.local(Method::POST, RESERVE, body).await.status, StatusCode::CREATED);
    }
    let before = state(&api).await;
    // What stands in the way, three numbers that would do for all of it, and the command for the first.
    let table = [
        (
            json!({"on": "env=prod", "port": 8000}),
            json!([8001, 8002, 8003]),
            "gkctl port reserve --port 8001 --on env=prod",
        ),
        (
            json!({"instance": "web-1", "port": 8100, "count": 10, "protocol": "both"}),
            json!([8000, 8010, 8020]),
            "gkctl port reserve --port 8000 --count 10 --protocol both --instance web-1",
        ),
        (
            json!({"instance": "web-1", "port": 8200, "names": ["a", "b"], "note": "two words", "ttl_seconds": 60}),
            json!([8000, 8002, 8004]),
            "gkctl port reserve --port 8000 --name a --name b --note 'two words' --ttl 60s --instance web-1",
        ),
        (
            json!({"scope": "fleet", "port": 8000, "labels": {"team": "web"}}),
            json!([8001, 8002, 8003]),
            "gkctl port reserve --port 8001 --label team=web --fleet --all-instances",
        ),
    ];
    for (body, free, hint) in table {
        for dry_run in [false, true] {
            let mut body = body.clone();
            body["dry_run"] = dry_run.into();
            let refused = api.with_token(&ada, Method::POST, RESERVE, body.clone()).await;
            assert_eq!(refused.refusal(), (409, "port_reserved", Some("port")), "{body}");
            assert_eq!(refused.body["alternatives"], free, "{body}");
            let hint = if dry_run { format!("{hint} --dry-run") } else { hint.to_owned() };
            assert_eq!(refused.body["hint"], hint);
            let holder = &refused.body["holder"];
            assert_eq!((&holder["service"], &holder["subject"]), (&json!("billing"), &json!("local:test")));
            assert!(holder["since"].is_string());
        }
        let mut free = body.clone();
        free["port"] = refused_first(&api, &ada, body).await;
        free["dry_run"] = true.into();
        assert_eq!(
            api.with_token(&ada, Method::POST, RESERVE, free).await.status,
            StatusCode::OK,
            "it would do"
        );
    }
    assert_eq!(state(&api).await, before);
    let nobody = api.with_token(&ada, Method::POST, RESERVE, json!({"on": "env=dev"})).await;
    assert_eq!(nobody.refusal(), (404, "no_such_instance", Some("on")));
    let both = api.with_token(&ada, Method::POST, RESERVE, json!({"on": "env", "instance": "web-1"})).await;
    assert_eq!(both.refusal(), (422, "impossible", Some("on")));
    let nowhere = api.with_token(&ada, Method::POST, RESERVE, json!({})).await;
    assert_eq!(nowhere.refusal(), (422, "impossible", Some("instance")));
    let range = json!({"on": "env", "count": 4096, "names": ["a", "b"]});
    assert_eq!(api.with_token(&ada, Method::POST, RESERVE, range).await.refusal().2, Some("count"));
}

async fn refused_first(api: &Api, ada: &Secret, body: Value) -> Value {
    api.with_token(ada, Method::POST, RESERVE, body).await.body["alternatives"][0].clone()
}

#[tokio::test]
async fn an_instances_credential_reserves_where_a_selector_chooses_nobody_else() {
    let (api, _) = fleet().await;
    let (_, own) = api.join("db-1").await;
    let labelled = api.local(Method::PATCH, "/v1/instances/db-1", json!({"labels": {"env": "db"}})).await;
    assert_eq!(labelled.status, StatusCode::OK);
    let reserve = |body| api.with_token(&own, Method::POST, RESERVE, body);
    assert_eq!(told(&reserve(json!({"on": "env=db"})).await), ["8000/tcp db-1"]);
    for body in
        [json!({"on": "env"}), json!({"scope": "fleet"}), json!({"instance": "db-1", "scope": "fleet"})]
    {
        assert_eq!(reserve(body.clone()).await.status, StatusCode::FORBIDDEN, "{body}");
    }
}

#[tokio::test]
async fn a_dry_run_keeps_no_key_and_tells_what_ensure_would_keep() {
    let (api, ada) = fleet().await;
    let body = json!({"instance": "web-1", "service": "shop", "ensure": true});
    let made = api.with_token(&ada, Method::POST, RESERVE, body.clone()).await;
    let before = state(&api).await;
    let mut again = body.clone();
    again["dry_run"] = true.into();
    again["note"] = "new".into();
    let keyed = request(Method::POST, RESERVE, &again)
        .header("authorization", format!("Bearer {}", ada.reveal()))
        .header("idempotency-key", "k");
    let planned = api.send(keyed.body(Body::from(again.to_string())).unwrap()).await;
    let item = &planned.body["items"][0];
    assert_eq!((&item["id"], &item["note"]), (&made.body["items"][0]["id"], &json!("new")));
    assert_eq!(state(&api).await, before);
    let real = request(Method::POST, RESERVE, &body)
        .header("authorization", format!("Bearer {}", ada.reveal()))
        .header("idempotency-key", "k");
    let real = api.send(real.body(Body::from(body.to_string())).unwrap()).await;
    assert_eq!((real.status, real.header("idempotency-replayed")), (StatusCode::CREATED, ""));
}

#[tokio::test]
async fn a_reservation_is_edited_by_its_holder_and_found_again() {
    let (api, ada) = fleet().await;
    let body =
        json!({"instance": "web-1", "service": "shop", "ensure": true, "note": "old", "labels": {"a": "b"}});
    let made = api.with_token(&ada, Method::POST, RESERVE, body).await;
    let path = format!("{RESERVE}/{}", made.body["items"][0]["id"].as_str().unwrap());
    let edit = |tag: &'static str, body: Value| {
        let (api, ada, path) = (&api, &ada, &path);
        async move { if_match(api, ada, (Method::PATCH, path), tag, &body).await }
    };
    let edited = edit(
        "\"1\"",
        json!({"service": "store", "name": "http", "note": null, "expect": {"process": "nginx"}}),
    )
    .await;
    assert_eq!((edited.status, edited.header("etag")), (StatusCode::OK, "\"2\""), "{}", edited.body);
    assert_eq!(
        (&edited.body["service"], &edited.body["name"], &edited.body["note"]),
        (&json!("store"), &json!("http"), &Value::Null)
    );
    assert_eq!(
        (&edited.body["labels"], &edited.body["expect"]),
        (&json!({"a": "b"}), &json!({"process": "nginx"}))
    );
    assert_eq!(
        edit("\"1\"", json!({"note": "late"})).await.refusal(),
        (412, "version_mismatch", Some("If-Match"))
    );
    assert_eq!(edit("*", json!({})).await.refusal(), (422, "impossible", Some("service")));
    assert_eq!(edit("*", json!({"port": 1})).await.refusal(), (400, "malformed", Some("port")));
    let same = edit("*", json!({"name": "http"})).await;
    assert_eq!(same.header("etag"), "\"2\"", "nothing changed, so it is no event");
    assert_eq!(api.local(Method::GET, &path, Value::Null).await.body, edited.body);
    let events = api.local(Method::GET, "/v1/events?kind=edited", Value::Null).await;
    let message =
        "8000/tcp edited by ada: service store instead of shop, name http instead of none, note, expectation";
    assert_eq!(events.body["items"].as_array().unwrap().len(), 1);
    assert_eq!(events.body["items"][0]["message"], message);
    let history = api.local(Method::GET, "/v1/history?port=8000", Value::Null).await;
    let services: Vec<&Value> =
        history.body["items"].as_array().unwrap().iter().map(|it| &it["service"]).collect();
    assert_eq!(services, [&json!("store"), &json!("shop")], "history tells when it was for what");

    let again = json!({"instance": "web-1", "service": "store", "name": "http", "ensure": true});
    let found = api.with_token(&ada, Method::POST, RESERVE, again).await;
    assert_eq!(found.body["items"][0], edited.body);
    assert_eq!(found.body["kept"], json!([edited.body["id"]]));
    assert!(edit("*", json!({"labels": null, "expect": null})).await.body["expect"].is_null());

    let bob = api.token(SecretKind::Subject, Role::User, "bob").await;
    let op = api.token(SecretKind::Subject, Role::Operator, "op").await;
    let note = json!({"note": "mine"});
    let forced = format!("{path}?force=true");
    for (who, path, status) in
        [(&bob, &path, 403), (&bob, &forced, 403), (&op, &path, 403), (&op, &forced, 200)]
    {
        assert_eq!(api.with_token(who, Method::PATCH, path, note.clone()).await.status, status);
    }
    let problems = api.store.verify().await.unwrap();
    assert_eq!(problems.problems(), Vec::<String>::new());
}

#[tokio::test]
async fn ensure_edits_what_it_says_otherwise_and_leaves_the_rest() {
    let (api, ada) = fleet().await;
    let ask = |more: Value| {
        let mut body = json!({"on": "env=prod", "service": "shop", "ensure": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (api, ada) = (&api, &ada);
        async move { api.with_token(ada, Method::POST, RESERVE, body).await.body["items"].clone() }
    };
    let first = ask(json!({"note": "n", "expect": {"process": "nginx"}})).await;
    assert_eq!(ask(json!({})).await, first, "what it leaves out stays");
    assert_eq!(ask(json!({"note": "n"})).await, first);
    let edited = ask(json!({"labels": {"team": "web"}, "note": "m"})).await;
    for (before, after) in first.as_array().unwrap().iter().zip(edited.as_array().unwrap()) {
        assert_eq!((&after["id"], &after["version"]), (&before["id"], &json!(2)));
        assert_eq!(
            (&after["note"], &after["labels"], &after["expect"]),
            (&json!("m"), &json!({"team": "web"}), &before["expect"])
        );
    }
    assert_eq!(count(&api, "/v1/events?kind=edited").await, 2);
}

#[tokio::test]
async fn a_lease_is_renewed_by_its_holder_once_per_key() {
    let (api, ada) = fleet().await;
    let made =
        api.with_token(&ada, Method::POST, RESERVE, json!({"instance": "web-1", "ttl_seconds": 60})).await;
    let path = format!("{RESERVE}/{}/renew", made.body["items"][0]["id"].as_str().unwrap());
    let body = json!({"ttl_seconds": 3600});
    let keyed = |key: &'static str| {
        let request = request(Method::POST, &path, &body)
            .header("authorization", format!("Bearer {}", ada.reveal()))
            .header("idempotency-key", key);
        api.send(request.body(Body::from(body.to_string())).unwrap())
    };
    let renewed = keyed("k").await;
    assert_eq!((renewed.status, renewed.header("etag")), (StatusCode::OK, "\"2\""), "{}", renewed.body);
    assert!(renewed.body["expires_at"].as_str() > made.body["items"][0]["expires_at"].as_str());
    let replayed = keyed("k").await;
    assert_eq!((&replayed.body, replayed.header("idempotency-replayed")), (&renewed.body, "true"));
    assert_eq!(count(&api, "/v1/events?kind=renewed").await, 1);
    let post = |path| (Method::POST, path);
    let stale = if_match(&api, &ada, post(path.as_str()), "\"1\"", &body).await;
    assert_eq!(stale.refusal(), (412, "version_mismatch", Some("If-Match")));
    let bob = api.token(SecretKind::Subject, Role::User, "bob").await;
    let others = api.with_token(&bob, Method::POST, &path, body.clone()).await;
    assert_eq!(others.refusal().1, "not_the_holder");
    let operator = "an operator may, with --force: gkctl reservation renew ";
    assert!(others.body["hint"].as_str().unwrap().starts_with(operator), "{}", others.body);
    let forced = api.local(Method::POST, &format!("{path}?force=true"), body.clone()).await;
    assert_eq!(forced.status, StatusCode::OK);
    let forever = api.with_token(&ada, Method::POST, RESERVE, json!({"instance": "web-1"})).await;
    let path = format!("{RESERVE}/{}/renew", forever.body["items"][0]["id"].as_str().unwrap());
    assert_eq!(
        api.with_token(&ada, Method::POST, &path, body).await.refusal(),
        (422, "impossible", Some("ttl_seconds"))
    );
}

#[tokio::test]
async fn the_list_is_filtered_by_all_that_matters() {
    let (api, ada) = fleet().await;
    let mut groups = Vec::new();
    for body in [
        json!({"on": "env=prod", "service": "shop", "names": ["http", "grpc"], "ttl_seconds": 600}),
        json!({"instance": "test-1", "service": "mail", "port": 25, "ttl_seconds": 60}),
        json!({"scope": "fleet", "service": "mail"}),
    ] {
        let made = api.with_token(&ada, Method::POST, RESERVE, body).await;
        groups.push(made.body["items"][0]["group"].as_str().unwrap_or_default().to_owned());
    }
    let soon = gk_model::time::Timestamp::from_clock().plus(std::time::Duration::from_secs(300));
    let table = [
        ("name=http".to_owned(), 2),
        ("pool=default".to_owned(), 5),
        ("label=env%3Dprod".to_owned(), 4),
        ("label=env".to_owned(), 5),
        ("label=env%21%3Dprod".to_owned(), 1),
        ("label=env%20in%20(test,dev)".to_owned(), 1),
        (format!("group={}", groups[0]), 4),
        (format!("expires_before={soon}"), 1),
        ("idle_for_seconds=0".to_owned(), 6),
        ("idle_for_seconds=60".to_owned(), 0),
        ("service=shop&name=grpc&label=env%3Dprod".to_owned(), 2),
    ];
    for (query, expected) in table {
        assert_eq!(count(&api, &format!("{RESERVE}?{query}")).await, expected, "{query}");
    }
    let bad = api.local(Method::GET, &format!("{RESERVE}?label=a%20b"), Value::Null).await;
    assert_eq!(bad.refusal(), (400, "malformed", Some("label")));
    // Page by page, nothing twice and nothing left out.
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = api.local(Method::GET, &format!("{RESERVE}?label=env&limit=2{cursor}"), Value::Null).await;
        seen.extend(page.body["items"].as_array().unwrap().iter().map(|item| item["id"].to_string()));
        let Some(next) = page.body["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!((seen.len(), seen.iter().collect::<std::collections::BTreeSet<_>>().len()), (5, 5));
}
