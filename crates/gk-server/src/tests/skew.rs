//! Agents of other versions: what was recorded of each older one is still taken, and still answered in a way that it
//! can read.
//!
//! `tests/agents/VERSION.json` holds what an agent of that version sent, and what it was answered. The first eight of
//! 0.1.0 were cut from a wire; the rest is what an agent sends when things are less quiet. A file is added for each
//! minor version and never changed: an agent in the field cannot be changed either.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use flate2::Compression;
use flate2::write::GzEncoder;
use gk_model::time::Timestamp;
use serde_json::{Value, json};

use super::{Api, LOCAL_UID};
use crate::{Config, Peer};

/// Stands for what is another one each time, such as an id.
const ANYTHING: &str = "*";

fn recordings() -> Vec<(String, Value)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/agents");
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let read = files.map(|path| {
        let text = std::fs::read_to_string(&path).unwrap();
        (path.display().to_string(), serde_json::from_str(&text).unwrap())
    });
    let found: Vec<_> = read.collect();
    assert!(!found.is_empty(), "there are recordings");
    found
}

/// One contact as it was sent, by this credential or, to join, by the local admin.
async fn send(
    api: &Api,
    contact: &Value,
    instance: &str,
    credential: Option<&str>,
    body: &Value,
) -> (u16, Value) {
    let path = contact["path"].as_str().unwrap().replace("{instance}", instance);
    let mut request = Request::post(path).header("content-type", "application/json");
    request = match credential {
        Some(credential) => request.header("authorization", format!("Bearer {credential}")),
        None => request.extension(ConnectInfo(Peer::Unix { uid: LOCAL_UID })),
    };
    let mut bytes = body.to_string().into_bytes();
    if contact["gzip"] == true {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&bytes).unwrap();
        bytes = encoder.finish().unwrap();
        request = request.header("content-encoding", "gzip");
    }
    let answer = api.send(request.body(Body::from(bytes)).unwrap()).await;
    (answer.status.as_u16(), answer.body)
}

/// Whether an answer has all that was answered then. It may have more.
fn holds(answered: &Value, expected: &Value) -> bool {
    match (answered, expected) {
        (Value::Object(answered), Value::Object(expected)) => expected
            .iter()
            .all(|(field, expected)| answered.get(field).is_some_and(|answered| holds(answered, expected))),
        (answered, expected) => expected == ANYTHING || answered == expected,
    }
}

/// Replays a recording and asserts that every field of the recorded answers is answered as it was.
async fn replay(name: &str, recording: &Value, change: impl Fn(&Value) -> Value) {
    let then: Timestamp = recording["at"].as_str().unwrap().parse().unwrap();
    let api = Api::with(|config| Config { clock: Arc::new(move || then), ..config }).await;
    let credential = recording["credential"].as_str().unwrap();
    let mut instance = String::new();
    for contact in recording["contacts"].as_array().unwrap() {
        let about = format!("{name}: {}", contact["what"]);
        let credential = (!instance.is_empty()).then_some(credential);
        let (status, answer) = send(&api, contact, &instance, credential, &change(&contact["body"])).await;
        assert_eq!(status, contact["status"], "{about}: {answer}");
        for (field, expected) in contact["answer"].as_object().unwrap() {
            let answered = answer.get(field).unwrap_or_else(|| panic!("{about}: {field} is gone"));
            assert!(holds(answered, expected), "{about}: {field} is {answered}");
        }
        if instance.is_empty() {
            instance = answer["id"].as_str().unwrap().to_owned();
        }
    }
}

#[tokio::test]
async fn what_an_older_agent_sends_is_taken_and_answered_as_it_was() {
    for (name, recording) in recordings() {
        replay(&name, &recording, Value::clone).await;
    }
}

/// The same with a field in each object that this server has never heard of.
fn from_the_future(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, field)| (name.clone(), from_the_future(field)));
            fields.chain([("from_the_future".to_owned(), json!([{"deep": [1]}]))]).collect()
        }
        Value::Array(items) => items.iter().map(from_the_future).collect(),
        value => value.clone(),
    }
}

#[tokio::test]
async fn what_a_newer_agent_adds_is_ignored() {
    for (name, recording) in recordings() {
        replay(&name, &recording, from_the_future).await;
    }
}
