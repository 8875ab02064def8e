//! The served document against the server: schemathesis asks each route what the document allows, and what it does not.
//!
//! What it checks of every answer: no fault of the server, no status or type of content that is not in the document, a
//! body and headers as the document has them; bad data, missing headers, unknown methods and missing tokens refused.
//! Which statuses count as accepting good data is in `tests/it/schemathesis.toml`, with reasons.
//!
//! `make test` runs the same few thousand requests each time, derived from the document alone, in well under a minute.
//! `make soak` goes on with random ones for half an hour (or GATEKEEPER_SOAK_SECONDS); the seed is in its output.

use std::path::Path;
use std::process::Command;

use gk_model::access::{Actor, Authority, Role};
use gk_model::facts::Facts;
use gk_model::instance::JoinRequest;
use gk_model::labels::Labels;
use gk_model::secret::{Secret, SecretKind};
use gk_model::text::Subject;
use gk_model::time::Timestamp;
use gk_model::token::TokenRequest;
use gk_store::{Store, StoreConfig};

use super::harness::{Place, Server};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// An admin's token, put into the database before its server starts.
fn token(data: &Path) -> Secret {
    let token = Secret::from_random(SecretKind::Subject, &[7; 32]);
    let (hash, now) = (token.hash(), Timestamp::from_clock());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::open(StoreConfig::embedded(data), now).await.unwrap();
        let subject: Subject = "schemathesis".parse().unwrap();
        let admin = Actor::new(subject.clone(), Authority::Role(Role::Admin));
        let wanted = TokenRequest::for_subject(subject, Role::Admin);
        store.write(move |tx| tx.create_token(&admin, hash, &wanted, now)).await.unwrap();
        tokio::task::spawn_blocking(move || store.close()).await.unwrap();
    });
    token
}

/// An instance, so that what is asked by name is there.
fn join(server: &Server) {
    let request = JoinRequest {
        name: Some("web-1".parse().unwrap()),
        credential_hash: Secret::from_random(SecretKind::Instance, &[1; 32]).hash(),
        facts: Facts::default(),
        labels: Labels::default(),
        replace: None,
    };
    server.admin().join(&request).unwrap();
}

#[test]
fn the_server_keeps_to_its_document_by_schemathesis() {
    let tool = Path::new(ROOT).join("target/schemathesis/bin/schemathesis");
    assert!(tool.exists(), "run `.ci/prerequisites test`, which installs schemathesis, as `make test` does");
    let place = Place::new();
    let data = place.join("data");
    let token = token(&data);
    let mut server = Server::start_with(&data, "127.0.0.1:0", |command| {
        // It asks faster than anybody should; that there is a limit is tested elsewhere.
        command.env("GATEKEEPER_RATE_LIMIT", "off");
    });
    join(&server);
    let mut asking = Command::new(tool);
    asking.args(["--config-file", concat!(env!("CARGO_MANIFEST_DIR"), "/schemathesis.toml"), "run"]);
    asking.arg(format!("http://{}/openapi.json", server.address));
    asking.args(["--header", &format!("Authorization: Bearer {}", token.reveal())]);
    asking.args(["--checks", "all", "--continue-on-failure", "--no-color"]);
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
    server.process.assert_running();
    let log = server.process.log();
    assert!(!log.contains(r#""level":"ERROR""#) && !log.contains("panicked"), "{log}");
}
