//! `/metrics`, read as Prometheus reads it, against what the store was seen to do.

use std::collections::{BTreeMap, BTreeSet};

use axum::body::Body;
use axum::http::{Method, StatusCode};
use gk_model::access::Role;
use gk_model::secret::SecretKind;
use serde_json::{Value, json};

use super::{Answer, Api, request};

/// Each sample by its name and labels as written, and the type of each family. Fails where a reader would.
fn parse(text: &str) -> (BTreeMap<String, f64>, BTreeMap<String, String>) {
    let (mut samples, mut types) = (BTreeMap::new(), BTreeMap::new());
    let mut lines = text.lines();
    assert_eq!(lines.next_back(), Some("# EOF"));
    for line in lines {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap();
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
        } else if let Some(help) = line.strip_prefix("# HELP ") {
            assert!(help.ends_with('.') && !help.ends_with(".."), "{help}");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            assert!(name.starts_with("gatekeeper_"), "{name}");
            let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert!(samples.insert(series.to_owned(), value).is_none(), "{series} twice");
        }
    }
    (samples, types)
}

async fn scrape(api: &Api) -> Answer {
    api.local(Method::GET, "/metrics", Value::Null).await
}

#[tokio::test]
async fn the_numbers_are_those_of_the_writes() {
    let api = Api::new().await;
    api.join("web-1").await;
    for _ in 0..5 {
        let made = api.local(Method::POST, "/v1/reservations", json!({"instance": "web-1"})).await;
        assert_eq!(made.status, StatusCode::CREATED);
    }
    let nobody = api.local(Method::POST, "/v1/reservations", json!({"instance": "nobody"})).await;
    assert_eq!(nobody.status, StatusCode::NOT_FOUND);
    let counters = api.store.writer_counters();
    let answer = scrape(&api).await;
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(answer.header("content-type"), content_type);
    let (samples, types) = parse(answer.body.as_str().unwrap());
    // One after another, so that each is a batch of its own.
    let expected = [
        ("gatekeeper_store_answers_total", 7.0),
        ("gatekeeper_store_commits_total", 7.0),
        ("gatekeeper_store_replays_total", 0.0),
        ("gatekeeper_store_queue_length", 0.0),
        ("gatekeeper_store_batch_size_count", 7.0),
        ("gatekeeper_store_batch_size_sum", 7.0),
        ("gatekeeper_store_batch_size_bucket{le=\"1.0\"}", 7.0),
        ("gatekeeper_store_batch_size_bucket{le=\"+Inf\"}", 7.0),
        ("gatekeeper_store_commit_seconds_count", 7.0),
        ("gatekeeper_store_commit_seconds_bucket{le=\"+Inf\"}", 7.0),
        ("gatekeeper_build_info{version=\"0.0.0-test\"}", 1.0),
    ];
    for (series, value) in expected {
        assert_eq!(samples.get(series), Some(&value), "{series} in {samples:#?}");
    }
    assert_eq!((counters.answers, counters.commits), (7, 7));
    assert!(samples["gatekeeper_store_commit_seconds_sum"] > 0.0);
    assert!((0.0..60.0).contains(&samples["gatekeeper_uptime_seconds"]));
    assert_eq!(types["gatekeeper_store_commit_seconds"], "histogram");
    assert_eq!(types["gatekeeper_store_commits"], "counter");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_the_queue_and_then_one_batch() {
    let api = Api::new().await;
    let (go_on, held) = std::sync::mpsc::channel::<()>();
    let (begins, begun) = tokio::sync::oneshot::channel();
    let (store, mut begins) = (api.store.clone(), Some(begins));
    let busy = tokio::spawn(async move {
        let hold = move |_: &mut gk_store::Tx<'_>| {
            begins.take().map(|begins| begins.send(()));
            let _released = held.recv();
            Ok(())
        };
        store.write(hold).await
    });
    begun.await.unwrap();
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let store = api.store.clone();
            tokio::spawn(async move { store.write(|_| Ok(())).await })
        })
        .collect();
    while api.store.metrics().queue_length < 5 {
        tokio::task::yield_now().await;
    }
    let (samples, _) = parse(scrape(&api).await.body.as_str().unwrap());
    assert_eq!(samples["gatekeeper_store_queue_length"], 5.0);
    go_on.send(()).unwrap();
    busy.await.unwrap().unwrap();
    for answer in waiting {
        answer.await.unwrap().unwrap();
    }
    let (samples, _) = parse(scrape(&api).await.body.as_str().unwrap());
    assert_eq!(samples["gatekeeper_store_queue_length"], 0.0);
    assert_eq!(samples["gatekeeper_store_batch_size_count"], 2.0);
    let up_to = |bound| samples[&format!("gatekeeper_store_batch_size_bucket{{le=\"{bound}\"}}")];
    assert_eq!([up_to("1.0"), up_to("4.0"), up_to("16.0"), up_to("+Inf")], [1.0, 1.0, 2.0, 2.0]);
}

#[tokio::test]
async fn metrics_are_for_readers_and_name_nobody() {
    let api = Api::new().await;
    let (id, _) = api.join("web-1").await;
    let stranger = request(Method::GET, "/metrics", &Value::Null).body(Body::empty()).unwrap();
    assert_eq!(api.send(stranger).await.refusal(), (401, "unauthenticated", None));
    let prometheus = api.token(SecretKind::Subject, Role::Viewer, "prometheus").await;
    let answer = api.with_token(&prometheus, Method::GET, "/metrics", Value::Null).await;
    let text = answer.body.as_str().unwrap();
    for name in ["web-1", &id, "prometheus", "local:test"] {
        assert!(!text.contains(name), "{name} in {text}");
    }
    let labels = text.split('{').skip(1).filter_map(|rest| rest.split('=').next());
    assert_eq!(labels.collect::<BTreeSet<_>>(), ["le", "version"].into());
}
