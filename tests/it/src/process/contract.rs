//! The served document against the server: schemathesis asks each route what the document allows, and what it does not.
//!
//! What it checks of every answer: no fault of the server, no status or type of content that is not in the document, a
//! body and headers as the document has them; bad data, missing headers, unknown methods and missing tokens refused.
//! Which statuses count as accepting good data is in `tests/it/schemathesis.toml`, with reasons.
//!
//! A run proves nothing if most of it is not let in, and nothing of a route that never lets it in. So answers are counted in
//! the server's log, the token has to be good at the end, and what only an instance may do is asked as one.
//!
//! `make test` runs the same few thousand requests each time, derived from the document alone, in well under a minute.
//! `make soak` goes on with random ones for half an hour (or GATEKEEPER_SOAK_SECONDS); the seed is in its output.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use gk_client::Client;
use gk_model::access::{Actor, Authority, Role};
use gk_model::facts::Facts;
use gk_model::id::TokenId;
use gk_model::instance::JoinRequest;
use gk_model::labels::Labels;
use gk_model::secret::{Secret, SecretKind};
use gk_model::text::Subject;
use gk_model::time::Timestamp;
use gk_model::token::TokenRequest;
use gk_store::{Store, StoreConfig};

use super::harness::{Place, Server};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// An admin's token, put into the database before its server starts, and its id.
fn token(data: &Path) -> (Secret, TokenId) {
    let token = Secret::from_random(SecretKind::Subject, &[7; 32]);
    let (hash, now) = (token.hash(), Timestamp::from_clock());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let made = runtime.block_on(async {
        let store = Store::open(StoreConfig::embedded(data), now).await.unwrap();
        let subject: Subject = "schemathesis".parse().unwrap();
        let admin = Actor::new(subject.clone(), Authority::Role(Role::Admin));
        let wanted = TokenRequest::for_subject(subject, Role::Admin);
        let made = store.write(move |tx| tx.create_token(&admin, hash, &wanted, now)).await.unwrap();
        tokio::task::spawn_blocking(move || store.close()).await.unwrap();
        made
    });
    (token, made.id)
}

/// An instance, so that what is asked by name is there, and its credential.
fn join(server: &Server) -> Secret {
    let credential = Secret::from_random(SecretKind::Instance, &[1; 32]);
    let request = JoinRequest {
        name: Some("web-1".parse().unwrap()),
        credential_hash: credential.hash(),
        facts: Facts::default(),
        labels: Labels::default(),
        replace: None,
    };
    server.admin().join(&request).unwrap();
    credential
}

/// A server that lets everybody ask as fast as they can, and logs each answer.
fn start(data: &Path) -> Server {
    Server::start_with(data, "127.0.0.1:0", |command| {
        // It asks faster than anybody should; that there is a limit is tested elsewhere.
        command.env("GATEKEEPER_RATE_LIMIT", "off").env("GATEKEEPER_LOG", "info,gk_server::request=debug");
    })
}

/// Runs schemathesis against the server, with this secret, on the routes that `words` choose.
fn ask(server: &Server, secret: &Secret, own_token: &str, words: &[&str]) {
    let tool = Path::new(ROOT).join("target/schemathesis/bin/schemathesis");
    assert!(tool.exists(), "run `.ci/prerequisites test`, which installs schemathesis, as `make test` does");
    let place = Place::new();
    let mut asking = Command::new(tool);
    asking.args(["--config-file", concat!(env!("CARGO_MANIFEST_DIR"), "/schemathesis.toml"), "run"]);
    asking.arg(format!("http://{}/openapi.json", server.address)).args(words);
    asking.args(["--header", &format!("Authorization: Bearer {}", secret.reveal())]);
    // An instance that has left and a reservation that was released are found by their id for ever, because history refers to
    // them. What ends with them is tested elsewhere. (Said here: `--checks all` goes before the configuration.)
    asking.args(["--checks", "all", "--exclude-checks", "use_after_free"]);
    asking.args(["--continue-on-failure", "--no-color"]);
    asking.env("SCHEMATHESIS_HOOKS", concat!(env!("CARGO_MANIFEST_DIR"), "/schemathesis_hooks.py"));
    // What Python would leave beside the hooks is not ours.
    asking.env("OWN_TOKEN_ID", own_token).env("PYTHONDONTWRITEBYTECODE", "1");
    match std::env::var_os("GATEKEEPER_SOAK") {
        None => asking.args(["--max-examples", "10", "--generation-deterministic"]),
        Some(_) => {
            let seconds = std::env::var("GATEKEEPER_SOAK_SECONDS").unwrap_or_else(|_| "1800".to_owned());
            asking.args(["--max-examples", "1000", "--max-time", &seconds])
        }
    };
    // What it remembers of one run would change the next one.
    let asked = asking.current_dir(place.path()).output().unwrap();
    let said = String::from_utf8_lossy(&asked.stdout);
    std::fs::write(place.join("schemathesis.txt"), &*said).unwrap();
    assert!(asked.status.success(), "{said}\n{}", String::from_utf8_lossy(&asked.stderr));
}

/// How often each status was answered by TCP, while nothing was wrong.
fn statuses(server: &mut Server) -> BTreeMap<u64, usize> {
    server.process.assert_running();
    let log = server.process.log();
    assert!(!log.contains(r#""level":"ERROR""#) && !log.contains("panicked"), "{log}");
    let mut counts = BTreeMap::new();
    for line in log.lines().filter(|line| line.contains(r#""http.peer":"127.0.0.1:"#)) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        if let Some(status) = line["fields"]["http.status"].as_u64() {
            *counts.entry(status).or_default() += 1;
        }
    }
    counts
}

/// How many answers are among these, of all.
fn share(counts: &BTreeMap<u64, usize>, statuses: &[u64]) -> f64 {
    let all: usize = counts.values().sum();
    let those: usize = statuses.iter().filter_map(|status| counts.get(status)).sum();
    assert!(all > 100, "hardly anything was asked: {counts:?}");
    those as f64 / all as f64
}

#[test]
fn the_server_keeps_to_its_document_by_schemathesis() {
    let place = Place::new();
    let data = place.join("data");
    let (token, id) = token(&data);
    let mut server = start(&data);
    join(&server);
    // An admin is never let in there; see below.
    ask(&server, &token, &id.to_string(), &["--exclude-path-regex", "/contact$"]);
    let counts = statuses(&mut server);
    assert!(share(&counts, &[401, 403]) < 0.25, "most of it was not let in: {counts:?}");
    assert!(counts[&200] > 50 && counts[&201] > 5, "hardly anything went well: {counts:?}");
    let address = format!("http://{}", server.address).parse().unwrap();
    assert!(Client::new(address, Some(token)).whoami().is_ok(), "it ended its own token: {counts:?}");
}

#[test]
fn contacts_keep_to_the_document_by_schemathesis() {
    let place = Place::new();
    let mut server = start(&place.join("data"));
    let credential = join(&server);
    ask(&server, &credential, "", &["--include-path-regex", "/contact$"]);
    let counts = statuses(&mut server);
    assert!(share(&counts, &[401, 403]) < 0.25, "most of it was not let in: {counts:?}");
}
