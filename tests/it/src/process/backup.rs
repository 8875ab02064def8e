//! Backup, restore and verify as they are typed, beside a server that works.

use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};

use gk_model::facts::Facts;
use gk_model::instance::JoinRequest;
use gk_model::reservation::ReserveRequest;
use gk_model::secret::{Secret, SecretKind};
use gk_model::time::Timestamp;
use gk_model::watch::Log;
use gk_store::{Store, StoreConfig};

use super::harness::{Place, Server, program, reserve, stdout};

fn gatekeeper(verb: &str, data: &Path, file: Option<&Path>) -> Output {
    program("gatekeeper").args([verb, "--data"]).arg(data).args(file).output().unwrap()
}

fn error(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A server on which one instance has joined.
fn start(data: &Path) -> (Server, ReserveRequest) {
    let server = Server::start(data);
    let request = JoinRequest {
        name: Some("web-1".parse().unwrap()),
        credential_hash: Secret::from_random(SecretKind::Instance, &[1; 32]).hash(),
        facts: Facts::default(),
        labels: gk_model::labels::Labels::default(),
        replace: None,
    };
    let id = server.admin().join(&request).unwrap().instance.id;
    (server, ReserveRequest::next_free(id))
}

/// Runs `work` while four callers reserve and release without a pause.
fn under_load<T>(server: &Server, request: &ReserveRequest, work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let client = server.admin();
                while !done.load(Ordering::Relaxed) {
                    let made = reserve(&client, request).unwrap();
                    client.release(made.id, false).unwrap();
                }
            });
        }
        let answer = work();
        done.store(true, Ordering::Relaxed);
        answer
    })
}

fn log(data: &Path) -> Log {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let opened = runtime.block_on(Store::open(StoreConfig::embedded(data), Timestamp::from_clock()));
    let store = opened.unwrap();
    let log = runtime.block_on(store.log()).unwrap();
    store.close();
    log
}

#[test]
fn a_restored_server_serves_what_was_backed_up() {
    let place = Place::new();
    let (mut server, request) = start(&place.join("data"));
    let held: Vec<_> = (0..20).map(|_| server.reserve(&request).unwrap()).collect();
    let (file, restored) = (place.join("backup"), place.join("restored"));
    let (told, verdict) = under_load(&server, &request, || {
        (gatekeeper("backup", &server.data, Some(&file)), gatekeeper("verify", &server.data, None))
    });
    let told = stdout(&told);
    assert!(told.starts_with("backed up ") && told.contains(" and 1 instance to "), "{told}");
    assert!(!stdout(&verdict).contains("WRONG"), "{verdict:?}");

    let told = stdout(&gatekeeper("restore", &restored, Some(&file)));
    assert!(told.starts_with("restored ") && told.trim_end().ends_with("/restored/gatekeeper.db"), "{told}");
    stdout(&gatekeeper("verify", &restored, None));
    let mut copy = Server::start(&restored);
    let live = copy.live();
    for made in &held {
        assert!(live.contains(made), "{} was held all the time", made.first_port);
    }
    assert!(live.len() <= held.len() + 4, "and nothing else but what four callers had at that moment");
    copy.reserve(&request).unwrap();
    stdout(&gatekeeper("verify", &restored, None));
    assert_eq!((server.process.terminate(), copy.process.terminate()), (Some(0), Some(0)));
    assert_ne!(log(&server.data).log_id, log(&restored).log_id);

    // A stopped server's database as well, and exactly.
    let (still, again) = (place.join("still"), place.join("again"));
    stdout(&gatekeeper("backup", &server.data, Some(&still)));
    stdout(&gatekeeper("restore", &again, Some(&still)));
    server.restart();
    assert_eq!(Server::start(&again).live(), server.live());
}

#[test]
fn nothing_is_overwritten() {
    let place = Place::new();
    let (mut server, request) = start(&place.join("data"));
    server.reserve(&request).unwrap();
    let file = place.join("backup");
    stdout(&gatekeeper("backup", &server.data, Some(&file)));
    let before = std::fs::read(&file).unwrap();
    let told = error(&gatekeeper("backup", &server.data, Some(&file)));
    assert!(told.contains("exists: name a file that does not"), "{told}");
    assert!(std::fs::read(&file).unwrap() == before);

    let told = error(&gatekeeper("restore", &server.data, Some(&file)));
    assert!(told.contains("another server is using the data directory"), "{told}");
    server.process.terminate();
    let told = error(&gatekeeper("restore", &server.data, Some(&file)));
    assert!(told.contains("is not empty") && told.contains("--data"), "{told}");
    server.restart();
    assert_eq!(server.live().len(), 1);

    let nowhere = place.join("nowhere");
    for verb in ["backup", "verify"] {
        let file = (verb == "backup").then(|| place.join("other"));
        let told = error(&gatekeeper(verb, &nowhere, file.as_deref()));
        assert!(told.contains("there is no Gatekeeper database at"), "{told}");
    }
    assert!(!nowhere.exists() && !place.join("other").exists());
}

#[test]
fn verify_fails_when_something_is_wrong() {
    let place = Place::new();
    let (mut server, request) = start(&place.join("data"));
    server.reserve(&request).unwrap();
    server.process.terminate();
    let path = server.data.join("gatekeeper.db");
    let mut bytes = std::fs::read(&path).unwrap();
    // In the table or in its index, whichever comes first: now they differ.
    let word = b"reserved";
    let found = bytes.windows(word.len()).position(|window| window == word).unwrap();
    bytes[found] = b'R';
    std::fs::write(&path, bytes).unwrap();
    let output = gatekeeper("verify", &server.data, None);
    let told = error(&output);
    assert!(told.contains("in the database ") && told.contains("restore the last good backup"), "{told}");
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(lines.starts_with("WRONG the database file is sound"), "{lines}");
}
