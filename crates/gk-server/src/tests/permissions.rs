//! Who may call what: every route of the document with every authority.

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Method, Request, StatusCode};
use gk_model::access::{Actor, Authority, Permission, Role};
use gk_model::secret::{Secret, SecretKind};
use serde_json::{Value, json};

use super::{Api, LOCAL_UID, request, secret};
use crate::Peer;
use crate::document::permission_name;

const ALL: [Permission; 5] =
    [Permission::Read, Permission::Reserve, Permission::Operate, Permission::Join, Permission::Contact];

/// Method, path and the permission written into the document; none for open routes.
fn routes(api: &Api) -> Vec<(Method, String, Option<Permission>)> {
    let document = serde_json::to_value(&api.document).unwrap();
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let security = operation["security"].as_array().expect("each route says what it demands");
            let name = security.first().map(|scheme| scheme["token"][0].as_str().unwrap().to_owned());
            let permission = name
                .map(|name| ALL.into_iter().find(|permission| permission_name(*permission) == name).unwrap());
            routes.push((method.to_uppercase().parse().unwrap(), path.clone(), permission));
        }
    }
    routes
}

#[tokio::test]
async fn every_route_demands_what_it_should() {
    let expected = [
        "GET / -",
        "GET /healthz -",
        "GET /metrics read",
        "GET /openapi.json -",
        "GET /readyz -",
        "GET /v1/events read",
        "GET /v1/history read",
        "GET /v1/instances read",
        "POST /v1/instances join",
        "GET /v1/instances/{instance} read",
        "DELETE /v1/instances/{instance} reserve",
        "PATCH /v1/instances/{instance} reserve",
        "POST /v1/instances/{instance}/contact contact",
        "GET /v1/instances/{instance}/ports read",
        "GET /v1/instances/{instance}/reserved read",
        "GET /v1/ports read",
        "GET /v1/reservations read",
        "POST /v1/reservations reserve",
        "GET /v1/reservations/{id} read",
        "DELETE /v1/reservations/{id} reserve",
    ];
    let mut found: Vec<String> = routes(&Api::new().await)
        .into_iter()
        .map(|(method, path, permission)| {
            format!("{method} {path} {}", permission.map_or("-", permission_name))
        })
        .collect();
    found.sort_unstable();
    let mut expected = expected.map(str::to_owned);
    expected.sort_unstable();
    assert_eq!(found, expected);
}

async fn call(api: &Api, token: Option<&Secret>, method: &Method, path: &str) -> (StatusCode, Value) {
    let answer = match token {
        Some(token) => api.with_token(token, method.clone(), path, json!({})).await,
        None => {
            let request = request(method.clone(), path, &json!({})).body(Body::from("{}")).unwrap();
            api.send(request).await
        }
    };
    (answer.status, answer.body)
}

#[tokio::test]
async fn every_route_lets_in_exactly_whom_its_permission_names() {
    let api = Api::new().await;
    let (id, credential) = api.join("web-1").await;
    let own = Authority::Instance(id.parse().unwrap(), credential.hash());
    let mut callers = vec![(own, credential)];
    for role in Role::ALL {
        let name = format!("somebody-{role}");
        callers.push((Authority::Role(*role), api.token(SecretKind::Subject, *role, &name).await));
    }
    let join = api.token(SecretKind::Join, Role::Viewer, "joiner").await;
    callers.push((Authority::Join(join.hash()), join));
    for (method, path, permission) in routes(&api) {
        // An instance that does not exist, so that nothing happens and the callers do not disturb each other.
        let path = path.replace("{instance}", "nobody").replace("{id}", &id);
        let (status, body) = call(&api, None, &method, &path).await;
        assert_eq!(status == StatusCode::UNAUTHORIZED, permission.is_some(), "{method} {path}: {body}");
        let Some(permission) = permission else { continue };
        for (authority, token) in &callers {
            let actor = Actor { subject: "x".parse().unwrap(), authority: *authority };
            let (status, body) = call(&api, Some(token), &method, &path).await;
            let stopped = status == StatusCode::FORBIDDEN;
            // A user passes the door of these two, and the handler finds that it is neither operator nor instance.
            let manages = path.ends_with("/nobody") && (method == Method::PATCH || method == Method::DELETE);
            let is_stranger = manages && *authority == Authority::Role(Role::User);
            let expected = !actor.has(permission) || is_stranger;
            assert_eq!(stopped, expected, "{authority:?} {method} {path}: {status} {body}");
            assert_ne!(status, StatusCode::UNAUTHORIZED, "{authority:?} {method} {path}");
        }
    }
}

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
    let path = format!("/v1/reservations/{}", made.body["id"].as_str().unwrap());
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
    assert_eq!(reserve(LOCAL_UID, None).await.refusal().0, 400, "admitted as admin");
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
    assert_eq!(refused.refusal(), (403, "forbidden", None));
    let replaced = api.local(Method::POST, "/v1/instances", body).await;
    assert_eq!((replaced.status, replaced.body["id"].as_str()), (StatusCode::OK, Some(id.as_str())));
}
