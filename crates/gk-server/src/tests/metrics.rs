//! `/metrics`, read as Prometheus reads it, against what the store was seen to do.

use std::collections::{BTreeMap, BTreeSet};

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Method, StatusCode};
use gk_model::access::Role;
use gk_model::listener::Digest;
use gk_model::secret::SecretKind;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::drift::{listener, machine};
use super::{Answer, Api, LOCAL_UID, request};
use crate::Peer;

/// Each sample by its name and labels as written, and the type of each family. Fails where a reader would.
fn parse(text: &str) -> (BTreeMap<String, f64>, BTreeMap<String, String>) {
    let (mut samples, mut types) = (BTreeMap::new(), BTreeMap::new());
    for line in text.lines().filter(|line| *line != "# EOF") {
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
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
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
    assert_eq!(types["gatekeeper_store_commits_total"], "counter");
}

#[tokio::test]
async fn whoever_reads_open_metrics_gets_the_same_in_that_form() {
    let api = Api::new().await;
    let peer = ConnectInfo(Peer::Unix { uid: LOCAL_UID });
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    let asked = request(Method::GET, "/metrics", &Value::Null).header("accept", accept).extension(peer);
    let open = api.send(asked.body(Body::empty()).unwrap()).await;
    let plain = scrape(&api).await;
    assert_eq!(open.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert_eq!((open.header("vary"), plain.header("vary")), ("Accept", "Accept"));
    let open = open.body.as_str().unwrap().to_owned();
    assert!(open.ends_with("\n# EOF\n"), "{open}");
    let (of_open, types) = parse(&open);
    let (of_plain, _) = parse(plain.body.as_str().unwrap());
    // The first of the two was a request more when the second was asked for.
    let names = |samples: &BTreeMap<String, f64>| {
        samples.keys().filter(|series| !series.contains("/metrics")).cloned().collect::<BTreeSet<_>>()
    };
    assert_eq!(names(&of_open), names(&of_plain));
    assert_eq!(types["gatekeeper_store_commits"], "counter");
}

/// The counts of a histogram of requests: route, method and code, and how many.
fn counted(samples: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let prefix = "gatekeeper_http_request_duration_seconds_count{";
    let counts = samples.iter().filter_map(|(series, count)| {
        let labels = series.strip_prefix(prefix)?.strip_suffix('}')?;
        let values: Vec<&str> = labels.split('"').skip(1).step_by(2).collect();
        Some((values.join(" "), *count))
    });
    counts.collect()
}

#[tokio::test]
async fn requests_are_counted_by_route_and_nothing_that_clients_send_makes_a_series() {
    let api = Api::new().await;
    api.join("web-1").await;
    let mut expected = BTreeMap::from([("/v1/instances POST 201".to_owned(), 1.0)]);
    for (method, path, series) in [
        ("GET", "/v1/instances/web-1", "/v1/instances/{instance} GET 200"),
        ("GET", "/v1/instances/web-2", "/v1/instances/{instance} GET 404"),
        ("GET", "/v1/instances/web-3", "/v1/instances/{instance} GET 404"),
        ("GET", "/v1/instances/web-3?x=y", "/v1/instances/{instance} GET 400"),
        ("HEAD", "/v1/instances/web-1", "/v1/instances/{instance} HEAD 200"),
        ("POST", "/v1/instances/web-1", "/v1/instances/{instance} POST 405"),
        ("BREW", "/v1/instances/web-1", "/v1/instances/{instance} other 405"),
        ("STEEP", "/healthz", "/healthz other 405"),
        ("GET", "/healthz", "/healthz GET 200"),
        ("GET", "/v1/nowhere", "other GET 404"),
        ("GET", "/v1/instances/web-1/nowhere", "other GET 404"),
        ("STEEP", "/nowhere", "other other 404"),
        ("GET", "/v1/events/stream", "/v1/events/stream GET 200"),
    ] {
        api.local(method.parse().unwrap(), path, Value::Null).await;
        *expected.entry(series.to_owned()).or_default() += 1.0;
    }
    let stranger = request(Method::GET, "/v1/ports", &Value::Null).body(Body::empty()).unwrap();
    api.send(stranger).await;
    expected.insert("/v1/ports GET 401".to_owned(), 1.0);
    let elsewhere = request(Method::GET, "/v1/ports", &Value::Null).header("host", "evil.example");
    api.send(elsewhere.body(Body::empty()).unwrap()).await;
    expected.insert("/v1/ports GET 421".to_owned(), 1.0);
    let (samples, _) = parse(scrape(&api).await.body.as_str().unwrap());
    assert_eq!(counted(&samples), expected);
    let buckets = samples.keys().filter(|series| series.contains("request_duration_seconds_bucket"));
    assert_eq!(buckets.count(), expected.len() * 8);
}

#[tokio::test]
async fn a_stream_counts_when_it_begins_and_not_for_as_long_as_it_lasts() {
    let api = Api::new().await;
    let peer = ConnectInfo(Peer::Unix { uid: LOCAL_UID });
    let watch =
        request(Method::GET, "/v1/events/stream", &Value::Null).header("host", "localhost").extension(peer);
    let stream = api.router.clone().oneshot(watch.body(Body::empty()).unwrap()).await.unwrap();
    let (samples, _) = parse(scrape(&api).await.body.as_str().unwrap());
    assert_eq!(counted(&samples).get("/v1/events/stream GET 200"), Some(&1.0), "while it is open");
    assert_eq!(samples["gatekeeper_watchers"], 1.0);
    drop(stream);
}

#[tokio::test]
async fn contacts_are_counted_by_kind_and_outcome_and_lateness_by_the_agents_own_clock() {
    let api = Api::new().await;
    let (id, own) = api.join("web-1").await;
    let tell = async |session: u64, sequence: u64, rest: Value| {
        let mut contact = json!({
            "session": session, "sequence": sequence, "sent_at": "2001-01-01T00:00:30Z", "agent_version": "1",
            "digest": Digest::default(),
        });
        contact.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        let path = format!("/v1/instances/{id}/contact");
        api.with_token(&own, Method::POST, &path, contact).await.status.as_u16()
    };
    let report = json!({
        "kind": "report", "opening": "00000000-0000-0000-0000-000000000001", "seen_at": "2001-01-01T00:00:20Z",
        "covered": [], "listeners": [], "closed": [], "occupied": [],
    });
    let delta = json!({
        "kind": "delta", "base": 1, "listeners": [], "churned": [],
        "closed": [{"key": {"netns": "home", "protocol": "tcp", "port": 80, "address": "::"},
                    "at": "2001-01-01T00:00:00Z"}],
    });
    let gap = json!({"kind": "delta", "base": 7, "listeners": [], "closed": []});
    let beat = json!({"kind": "heartbeat"});
    let other_set = json!({"kind": "heartbeat", "digest": "1".repeat(32)});
    for (session, sequence, body, status) in [
        (0, 1, &report, 200),
        (1, 1, &beat, 200),
        (1, 1, &beat, 200),
        (1, 2, &delta, 200),
        (1, 8, &gap, 200),
        (1, 2, &other_set, 200),
        (0, 1, &beat, 409),
    ] {
        assert_eq!(tell(session, sequence, body.clone()).await, status, "{body}");
    }
    let (samples, _) = parse(scrape(&api).await.body.as_str().unwrap());
    let prefix = "gatekeeper_contacts_total";
    let counts = samples.iter().filter(|(series, count)| series.starts_with(prefix) && **count > 0.0);
    let counts: BTreeMap<&str, f64> =
        counts.map(|(series, count)| (&series[prefix.len()..], *count)).collect();
    let expected = BTreeMap::from([
        (r#"{kind="report",outcome="accepted"}"#, 1.0),
        (r#"{kind="heartbeat",outcome="accepted"}"#, 2.0),
        (r#"{kind="delta",outcome="accepted"}"#, 1.0),
        (r#"{kind="delta",outcome="report_wanted"}"#, 1.0),
        (r#"{kind="heartbeat",outcome="report_wanted"}"#, 1.0),
        (r#"{kind="heartbeat",outcome="refused"}"#, 1.0),
    ]);
    assert_eq!(counts, expected);
    // The report ten seconds, the delta thirty, though both clocks are a quarter of a century apart.
    assert_eq!(samples["gatekeeper_report_lag_seconds_count"], 2.0);
    assert_eq!(samples["gatekeeper_report_lag_seconds_sum"], 40.0);
}

#[tokio::test]
async fn the_fleet_is_told_as_status_and_pools_tell_it() {
    let api = Api::new().await;
    let listeners =
        [listener(22, "sshd"), listener(25, "exim"), listener(7000, "nc"), listener(8080, "nginx")];
    machine(&api, "web-1", &listeners).await;
    let silent = api.join("web-2").await.0;
    api.join("web-3").await;
    api.join("web-4").await;
    api.local(Method::PUT, "/v1/ignores/sshd", json!({"process": "sshd"})).await;
    for request in [
        json!({"instance": "web-1"}),
        json!({"instance": "web-1", "ttl_seconds": 3600, "protocol": "both"}),
        json!({"instance": silent, "port": 7000, "scope": "fleet"}),
        json!({"instance": silent, "port": 8500, "scope": "fleet"}),
    ] {
        let made = api.local(Method::POST, "/v1/reservations", request).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    }
    let log = api.local(Method::GET, "/v1/events", Value::Null).await.body["log"].clone();
    let (samples, _) = parse(scrape(&api).await.body.as_str().unwrap());
    for (series, value) in [
        ("instances{presence=\"online\"}", 1.0),
        ("instances{presence=\"offline\"}", 3.0),
        ("drift_ports{state=\"conflict\"}", 1.0),
        ("drift_ports{state=\"unreserved\"}", 2.0),
        ("drift_ports{state=\"ignored\"}", 1.0),
        ("listeners", 4.0),
        ("reservations", 5.0),
        ("leases", 2.0),
        ("events_total", log["newest_seq"].as_f64().unwrap()),
        ("pool_ports{pool=\"default\",protocol=\"tcp\"}", 2000.0),
        ("pool_taken_ports{pool=\"default\",protocol=\"tcp\"}", 3.0),
        ("pool_taken_ports{pool=\"default\",protocol=\"udp\"}", 1.0),
        ("pool_fullest_taken_ports{pool=\"default\",protocol=\"tcp\"}", 3.0),
        ("pool_fullest_taken_ports{pool=\"default\",protocol=\"udp\"}", 1.0),
        ("store_up", 1.0),
    ] {
        assert_eq!(samples.get(&format!("gatekeeper_{series}")), Some(&value), "{series} in {samples:#?}");
    }
}

#[tokio::test]
async fn without_its_database_a_server_still_tells_how_it_does() {
    let api = Api::new().await;
    api.lose_database();
    let answer = scrape(&api).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let (samples, _) = parse(answer.body.as_str().unwrap());
    assert_eq!(samples["gatekeeper_store_up"], 0.0);
    assert!(samples.contains_key("gatekeeper_store_queue_length"));
    assert!(!samples.keys().any(|series| series.starts_with("gatekeeper_instances")), "nothing is made up");
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
    let mut labels: BTreeSet<&str> = labels.collect();
    labels.extend(text.split("\",").skip(1).filter_map(|rest| rest.split('=').next()));
    let known = [
        "code", "kind", "le", "method", "outcome", "pool", "presence", "protocol", "route", "state",
        "version",
    ];
    assert_eq!(labels, known.into());
}
