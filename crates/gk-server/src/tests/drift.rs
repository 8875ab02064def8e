//! Drift, status and ignore rules through the API.

use axum::http::{Method, StatusCode};
use gk_model::access::Role;
use gk_model::listener::{Digest, Listener};
use gk_model::secret::SecretKind;
use serde_json::{Value, json};

use super::Api;

fn listener(port: u16, process: &str) -> Value {
    json!({
        "netns": "home", "protocol": "tcp", "port": port, "address": "0.0.0.0", "account": "root",
        "owners": [{"pid": 7, "started_ticks": 1, "name": process, "account": "root"}],
        "first_seen_at": "2026-11-22T20:00:00Z", "last_seen_at": "2026-11-22T20:00:00Z",
    })
}

/// A machine on which these listen.
async fn machine(api: &Api, name: &str, listeners: &[Value]) -> String {
    let (id, own) = api.join(name).await;
    let seen: Vec<Listener> =
        listeners.iter().map(|seen| serde_json::from_value(seen.clone()).unwrap()).collect();
    let part =
        |protocol: &str, family: &str| json!({"netns": "home", "protocol": protocol, "family": family});
    let contact = json!({
        "session": 0, "opening": "00000000-0000-0000-0000-000000000001", "sequence": 1,
        "sent_at": "2026-11-22T20:00:00Z", "digest": Digest::of(&seen), "agent_version": "1", "kind": "report",
        "covered": [part("tcp", "v4"), part("tcp", "v6"), part("udp", "v4"), part("udp", "v6")],
        "listeners": listeners, "closed": [], "occupied": [], "churned": [],
    });
    let told = api.with_token(&own, Method::POST, &format!("/v1/instances/{id}/contact"), contact).await;
    assert_eq!(told.status, StatusCode::OK, "{}", told.body);
    id
}

async fn get(api: &Api, path: &str) -> Value {
    let answer = api.local(Method::GET, path, Value::Null).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    answer.body
}

#[tokio::test]
async fn drift_is_told_counted_and_ignored() {
    let api = Api::new().await;
    let holder = machine(&api, "web-1", &[]).await;
    machine(&api, "web-2", &[listener(22, "sshd"), listener(8080, "nc")]).await;
    let request = json!({"instance": holder, "port": 8080, "scope": "fleet", "service": "billing"});
    api.local(Method::POST, "/v1/reservations", request).await;

    let drift = get(&api, "/v1/drift").await;
    let told = |drift: &Value| {
        let items = drift["items"].as_array().unwrap().iter();
        items.map(|it| format!("{} {} {}", it["first_port"], it["kind"], it["fit"])).collect::<Vec<_>>()
    };
    assert_eq!(told(&drift), [r#"22 "unreserved" null"#, r#"8080 "conflict" "differs""#]);
    let conflict = &drift["items"][1];
    assert_eq!((&conflict["instance"]["name"], &conflict["presence"]), (&json!("web-2"), &json!("online")));
    assert_eq!(conflict["reservation"]["service"], "billing");
    assert_eq!(conflict["listeners"][0]["owners"][0]["name"], "nc");
    let one = get(&api, "/v1/drift?limit=1&kind=unreserved").await;
    assert_eq!((told(&one).len(), &one["next"]), (1, &Value::Null));
    assert_eq!(told(&get(&api, "/v1/drift?idle_for_seconds=3600").await).len(), 2, "idle for a moment only");
    let states = get(&api, "/v1/ports?state=conflict").await;
    assert_eq!((&states["items"][0]["fit"], &states["next"]), (&json!("differs"), &Value::Null));

    let made =
        api.local(Method::PUT, "/v1/ignores/sshd", json!({"process": "sshd", "note": "everywhere"})).await;
    assert_eq!((made.status, &made.body["version"]), (StatusCode::OK, &json!(1)));
    assert_eq!(get(&api, "/v1/ignores/sshd").await, made.body);
    assert_eq!(get(&api, "/v1/ignores").await, json!({"items": [made.body], "next": null}));
    assert_eq!(told(&get(&api, "/v1/drift").await).len(), 1);
    let all = get(&api, "/v1/drift?ignored=true").await;
    assert_eq!(all["items"][0]["ignored_by"], "sshd");
    let mut status = get(&api, "/v1/status").await;
    assert!(status["as_of"].take().is_string());
    let expected = json!({
        "instances": {"joined": 2, "online": 2, "offline": 0},
        "reservations": {"live": 1, "leases": 0},
        "drift": {"conflict": 1, "unreserved": 0, "ignored": 1},
        "listeners": 2, "as_of": null,
    });
    assert_eq!(status, expected);
    let gone = api.local(Method::DELETE, "/v1/ignores/sshd", Value::Null).await;
    assert_eq!((gone.status, gone.body), (StatusCode::OK, made.body));
    assert_eq!(told(&get(&api, "/v1/drift").await).len(), 2);
}

#[tokio::test]
async fn a_rule_that_says_too_little_or_comes_from_a_limited_token_is_refused() {
    let api = Api::new().await;
    let set = async |rule: Value| api.local(Method::PUT, "/v1/ignores/all", rule).await;
    let too_wide = set(json!({"instances": "env=prod"})).await;
    assert_eq!(too_wide.refusal(), (422, "impossible", Some("ports")));
    let unknown = set(json!({"port": "22"})).await;
    assert_eq!(unknown.refusal(), (400, "malformed", Some("port")));
    let missing = api.local(Method::DELETE, "/v1/ignores/all", Value::Null).await;
    assert_eq!(missing.refusal(), (404, "no_such_ignore", None));
    let kind = api.local(Method::GET, "/v1/drift?kind=strange", Value::Null).await;
    assert_eq!(kind.refusal(), (400, "malformed", Some("kind")));
    let limited = json!({"kind": "subject", "role": "operator", "limits": {"instances": "env=prod"}});
    let made = api.local(Method::POST, "/v1/tokens", limited).await;
    let token = made.body["secret"].as_str().unwrap().parse().unwrap();
    let refused = api.with_token(&token, Method::PUT, "/v1/ignores/x", json!({"process": "nc"})).await;
    assert_eq!(refused.refusal(), (403, "beyond_limits", None));
    let viewer = api.token(SecretKind::Subject, Role::User, "ada").await;
    let refused = api.with_token(&viewer, Method::PUT, "/v1/ignores/x", json!({"process": "nc"})).await;
    assert_eq!(refused.refusal(), (403, "forbidden", None));
}
