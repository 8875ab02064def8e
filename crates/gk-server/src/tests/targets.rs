//! Service discovery through the API: its form, its permission, and when it refuses.

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use super::drift::{listener, machine};
use super::{Answer, Api};

const SD: &str = "/v1/sd/prometheus";

async fn discover(api: &Api, query: &str) -> Answer {
    api.local(Method::GET, &format!("{SD}{query}"), Value::Null).await
}

#[tokio::test]
async fn targets_have_the_form_that_is_asked_for_and_say_what_is_known() {
    let api = Api::new().await;
    let nothing = discover(&api, "").await;
    assert_eq!((nothing.status, nothing.body.clone()), (StatusCode::OK, json!([])));
    assert_eq!(nothing.header("content-type"), "application/json");
    let id = machine(&api, "web-1", &[listener(8080, "nginx")]).await;
    api.local(Method::PATCH, &format!("/v1/instances/{id}"), json!({"labels": {"env": "prod"}})).await;
    let request = json!({
        "instance": id, "port": 8080, "adopt": true, "service": "web", "labels": {"team": "shop"}, "names": ["http"],
    });
    let made = api.local(Method::POST, "/v1/reservations", request).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    let expected = json!([{
        "targets": ["web-1:8080"],
        "labels": {
            "__meta_gatekeeper_holder": "local:test",
            "__meta_gatekeeper_instance": "web-1",
            "__meta_gatekeeper_instance_id": id,
            "__meta_gatekeeper_label_env": "prod",
            "__meta_gatekeeper_name": "http",
            "__meta_gatekeeper_port": "8080",
            "__meta_gatekeeper_presence": "online",
            "__meta_gatekeeper_protocol": "tcp",
            "__meta_gatekeeper_reservation_label_team": "shop",
            "__meta_gatekeeper_service": "web",
            "__meta_gatekeeper_state": "in_use",
        },
    }]);
    assert_eq!(discover(&api, "?service=web&label=env%3Dprod").await.body, expected);
}

#[tokio::test]
async fn what_could_only_find_nothing_or_too_much_is_refused() {
    let api = Api::new().await;
    for (query, expected) in [
        ("?protocol=udp", (422, "impossible", Some("protocol"))),
        ("?state=free", (422, "impossible", Some("state"))),
        ("?servce=web", (400, "malformed", Some("servce"))),
        ("?limit=10", (400, "malformed", Some("limit"))),
    ] {
        assert_eq!(discover(&api, query).await.refusal(), expected, "{query}");
    }
    api.join("web-1").await;
    for first in [10_000, 15_000, 20_000] {
        let request = json!({"instance": "web-1", "port": first, "count": 4096, "service": "many"});
        let made = api.local(Method::POST, "/v1/reservations", request).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    }
    let too_many = discover(&api, "").await;
    assert_eq!(too_many.refusal(), (422, "impossible", None));
    assert!(too_many.body["hint"].as_str().unwrap().contains("service="), "{}", too_many.body);
}

#[tokio::test]
async fn targets_take_the_filters_of_port_states() {
    let document = serde_json::to_value(&Api::new().await.document).unwrap();
    let names = |path: &str| {
        let parameters = document["paths"][path]["get"]["parameters"].as_array().unwrap().iter();
        let names = parameters.map(|parameter| parameter["name"].as_str().unwrap().to_owned());
        names.filter(|name| name != "cursor" && name != "limit").collect::<Vec<_>>()
    };
    assert_eq!(names(SD), names("/v1/ports"));
}

/// Prometheus keeps the targets that it has when it is refused, and drops them all for an empty list.
#[tokio::test]
async fn without_its_database_no_empty_list_is_answered() {
    let api = Api::new().await;
    api.lose_database();
    assert_eq!(discover(&api, "").await.refusal(), (503, "unavailable", None));
}
