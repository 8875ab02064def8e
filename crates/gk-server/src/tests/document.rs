//! The OpenAPI document: complete, consistent, and the same as the snapshot in the repository.

use std::collections::BTreeSet;
use std::path::Path;

use axum::http::Method;
use gk_model::id::{InstanceId, InstanceRef, ReservationId};
use gk_model::paths;
use gk_model::problem::Code;
use gk_model::time::Timestamp;
use serde_json::Value;

use super::Api;
use crate::error::status;

async fn document() -> Value {
    serde_json::to_value(Api::new().await.document).unwrap()
}

fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get("$ref") {
                found.insert(reference.clone());
            }
            fields.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn every_reference_resolves_and_every_schema_is_used() {
    let document = document().await;
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    for reference in &found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    for schema in document["components"]["schemas"].as_object().unwrap().keys() {
        let reference = format!("#/components/schemas/{schema}");
        assert!(found.contains(&reference), "{schema} is not used");
    }
}

/// Whoever says a thing twice is understood.
#[tokio::test]
async fn no_list_is_said_to_refuse_what_is_in_it_twice() {
    assert!(!document().await.to_string().contains("uniqueItems"));
}

#[tokio::test]
async fn every_operation_has_its_own_name_a_tag_and_a_description() {
    let document = document().await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut names = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap();
            assert!(names.insert(name.to_owned()), "{name} twice");
            assert!(operation["tags"][0].as_str().is_some_and(|tag| !tag.is_empty()), "{method} {path}");
            assert!(operation["summary"].is_string(), "{method} {path}");
            for (status, response) in operation["responses"].as_object().unwrap() {
                assert_ne!(response["description"], "", "{method} {path} {status}");
            }
        }
    }
}

#[tokio::test]
async fn the_paths_of_the_model_are_routes() {
    let document = document().await;
    let id = ReservationId::generate(Timestamp::from_micros(0));
    let instance = InstanceRef::Id(InstanceId::generate(Timestamp::from_micros(0)));
    let concrete = [
        paths::INSTANCES.to_owned(),
        paths::PORTS.to_owned(),
        paths::RESERVATIONS.to_owned(),
        paths::HISTORY.to_owned(),
        paths::EVENTS.to_owned(),
        paths::READY.to_owned(),
        paths::instance(&instance),
        paths::contact(&instance),
        paths::instance_ports(&instance),
        paths::reservation(id),
    ];
    for path in concrete {
        let template = path.replace(&instance.to_string(), "{instance}").replace(&id.to_string(), "{id}");
        assert!(document["paths"].get(&template).is_some(), "{template} is no route");
    }
}

#[tokio::test]
async fn the_snapshot_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let now = serde_json::to_string_pretty(&document().await).unwrap() + "\n";
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &now).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == now, "docs/openapi.json is out of date: UPDATE=1 cargo test -p gk-server");
}

#[tokio::test]
async fn the_served_document_is_the_generated_one() {
    let api = Api::new().await;
    let served = api.local(Method::GET, "/openapi.json", Value::Null).await;
    assert_eq!(served.header("content-type"), "application/json");
    assert_eq!(served.body, serde_json::to_value(&api.document).unwrap());
}

/// Works offline, shows everything, and each link within it leads somewhere.
#[tokio::test]
async fn the_document_can_be_read_and_searched_as_a_page() {
    let api = Api::new().await;
    let document = serde_json::to_value(&api.document).unwrap();
    let page = api.local(Method::GET, "/docs", Value::Null).await.body.as_str().unwrap().to_owned();
    for (path, item) in document["paths"].as_object().unwrap() {
        assert!(page.contains(path.as_str()), "{path}");
        for operation in item.as_object().unwrap().values() {
            let anchor = format!("<section id={}", operation["operationId"]);
            assert!(page.contains(&anchor), "{anchor}");
        }
    }
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        assert!(page.contains(&format!("<section id=\"schema-{name}\"")), "{name}");
    }
    for link in page.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        match link.strip_prefix('#') {
            Some(anchor) => assert!(page.contains(&format!("id=\"{anchor}\"")), "{link} leads nowhere"),
            None => assert!(["/docs", "/openapi.json"].contains(&link), "{link} leads away"),
        }
    }
    let loads = ["<script", "<link", "<iframe", "src=", "url(", "@import"];
    assert!(!loads.iter().any(|loads| page.contains(loads)), "nothing from elsewhere");

    let found = api.local(Method::GET, "/docs?q=Renames+INSTANCE", Value::Null).await.body;
    let found = found.as_str().unwrap();
    assert!(found.contains("<section id=\"update_instance\"") && !found.contains("<section id=\"reserve\""));
    let none = api.local(Method::GET, "/docs?q=%3Cb%3Enowhere", Value::Null).await.body;
    let none = none.as_str().unwrap();
    assert!(
        none.contains("Nothing holds all")
            && none.contains("&lt;b&gt;nowhere")
            && !none.contains("<b>nowhere")
    );
    assert_eq!(api.local(Method::GET, "/docs?query=x", Value::Null).await.refusal().2, Some("query"));
}

/// What a client must be ready for is written at each route, and nowhere by a catch-all.
#[tokio::test]
async fn every_route_names_every_refusal() {
    let document = document().await;
    let mut named = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let responses = operation["responses"].as_object().unwrap();
            let has = |status: &str| responses.contains_key(status);
            let about = format!("{method} {path}");
            for status in ["400", "414", "421", "429", "431", "500", "503"] {
                assert!(has(status), "{about}: {status}");
            }
            let is_guarded = operation["security"].as_array().is_some_and(|demands| !demands.is_empty());
            assert_eq!((has("401"), has("403"), has("422")), (is_guarded, is_guarded, is_guarded), "{about}");
            let has_body = operation.get("requestBody").is_some();
            assert_eq!((has("408"), has("413"), has("415")), (has_body, has_body, has_body), "{about}");
            assert_eq!(has("409"), method != "get", "{about}");
            assert!(!has("default") && (has("404") || !path.contains('{')), "{about}");
            named.extend(responses.keys().cloned());
        }
    }
    // No other route is there, and no other method: that cannot be written at a route that is.
    for code in Code::ALL.iter().filter(|code| **code != Code::MethodNotAllowed) {
        assert!(named.contains(status(*code).as_str()), "{code} is answered by none");
    }
}
