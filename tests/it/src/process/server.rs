//! The server as a process: starting, refusing to start, stopping, and sixteen callers at once.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use gk_model::facts::Facts;
use gk_model::instance::JoinRequest;
use gk_model::reservation::ReserveRequest;
use gk_model::secret::{Secret, SecretKind};

use super::harness::{Place, Server, gkctl, program, refusal_of, reserve, stdout};

/// A server that must not come up, and what it says.
fn refused(data: &Path, listen: &str) -> String {
    let mut server = program("gatekeeper");
    refusal_of(server.args(["server", "--listen", listen, "--data"]).arg(data))
}

#[test]
fn sixteen_callers_get_eight_hundred_different_ports() {
    let place = Place::new();
    let server = Server::start(&place.join("data"));
    let request = JoinRequest {
        name: Some("web-1".parse().unwrap()),
        credential_hash: Secret::from_random(SecretKind::Instance, &[1; 32]).hash(),
        facts: Facts::default(),
        labels: gk_model::labels::Labels::default(),
        replace: None,
    };
    let instance = server.admin().join(&request).unwrap().instance.id;
    let got: Vec<Vec<u16>> = std::thread::scope(|scope| {
        let caller = || {
            let client = server.admin();
            let one = |_| reserve(&client, &ReserveRequest::next_free(instance)).unwrap().first_port.get();
            (0..50).map(one).collect()
        };
        let callers: Vec<_> = (0..16).map(|_| scope.spawn(caller)).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    let all: Vec<u16> = got.into_iter().flatten().collect();
    assert_eq!(all.len(), 800);
    assert_eq!(all.into_iter().collect::<BTreeSet<u16>>(), (8000..8800).collect());
}

#[test]
fn a_taken_port_is_named_with_the_way_out() {
    let place = Place::new();
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap().to_string();
    let error = refused(&place.join("data"), &address);
    assert!(error.contains(&address) && error.contains("in use") && error.contains("--listen"), "{error}");
}

#[test]
fn one_server_per_data_directory() {
    let place = Place::new();
    let server = Server::start(&place.join("data"));
    let error = refused(&server.data, "127.0.0.1:0");
    assert!(error.contains("another server is using"), "{error}");
    assert!(server.admin().ready().is_ok(), "and the first one is not disturbed");
}

#[test]
fn a_public_address_needs_tls_or_a_word() {
    let place = Place::new();
    let error = refused(&place.join("data"), "0.0.0.0:0");
    assert!(error.contains("plain HTTP") && error.contains("--insecure-http"), "{error}");
}

/// The status line of a request over TCP under this name.
fn status(server: &Server, host: &str) -> String {
    let mut stream = TcpStream::connect(&server.address).unwrap();
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn names_and_rates_are_set_by_options_and_the_socket_has_neither() {
    let place = Place::new();
    let server = Server::start_with(&place.join("data"), "127.0.0.1:0", |command| {
        command.args(["--allow-host", "gate.example.org", "--rate-limit", "1"]);
    });
    assert!(status(&server, "evil.example").contains(" 421 "), "a page whose name points here");
    let statuses: Vec<String> = (0..40).map(|_| status(&server, "gate.example.org")).collect();
    assert!(statuses[0].contains(" 200 "), "{statuses:?}");
    assert!(statuses.iter().any(|status| status.contains(" 429 ")), "{statuses:?}");
    for _ in 0..40 {
        server.admin().ready().unwrap();
    }
    for wrong in [["--rate-limit", "many"], ["--allow-host", "http://x"]] {
        let refused = program("gatekeeper").arg("server").args(wrong).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    }
}

#[test]
fn a_foreign_database_and_a_read_only_directory_are_refused() {
    let place = Place::new();
    let data = place.join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::set_permissions(&data, PermissionsExt::from_mode(0o700)).unwrap();
    std::fs::write(data.join("gatekeeper.db"), "dear diary, ".repeat(1000)).unwrap();
    let error = refused(&data, "127.0.0.1:0");
    assert!(error.contains("not a Gatekeeper database"), "{error}");

    // Root may write anywhere, so the read-only directory needs a file system that says no: /proc does.
    let error = refused(Path::new("/proc/gatekeeper"), "127.0.0.1:0");
    assert!(error.contains("cannot use the data directory /proc/gatekeeper"), "{error}");
}

#[test]
fn leaked_database_reveals_no_token() {
    let place = Place::new();
    let mut server = Server::start_with(&place.join("data"), "127.0.0.1:0", |command| {
        command.env("GATEKEEPER_LOG", "trace");
    });
    let state = place.join("state");
    stdout(&gkctl(&server, &state, &["instance", "join"]));
    let told = program("gatekeeper-agent")
        .args(["--once", "--log", "trace"])
        .env("GATEKEEPER_STATE", &state)
        .output();
    let told = told.unwrap();
    stdout(&told);
    let credential = std::fs::read_to_string(state.join("credential")).unwrap();
    let digits = credential.trim().trim_start_matches("gka_").to_owned();
    assert_eq!(digits.len(), 64);
    server.process.terminate();
    let mut searched = vec![
        ("the agent's log".to_owned(), told.stderr),
        ("the server's log".to_owned(), server.process.log().into_bytes()),
    ];
    for file in std::fs::read_dir(&server.data).unwrap().map(|entry| entry.unwrap().path()) {
        searched.push((file.display().to_string(), std::fs::read(file).unwrap()));
    }
    assert!(
        searched.iter().any(|(name, bytes)| name.ends_with(".db") && bytes.len() > 4096),
        "the database is there"
    );
    for (name, bytes) in searched {
        let found = bytes.windows(digits.len()).any(|window| window == digits.as_bytes());
        assert!(!found, "{name} holds the credential");
    }
}

#[test]
fn what_it_writes_is_its_own_and_a_clean_stop_is_clean() {
    let place = Place::new();
    let mut server = Server::start(&place.join("data"));
    assert_eq!(std::fs::metadata(&server.data).unwrap().mode() & 0o777, 0o700);
    for file in ["gatekeeper.db", "gatekeeper.db-wal", "gatekeeper.lock", "gatekeeper.sock"] {
        assert_eq!(std::fs::metadata(server.data.join(file)).unwrap().mode() & 0o077, 0, "{file}");
    }
    assert_eq!(server.process.terminate(), Some(0), "{}", server.process.log());
    assert!(!server.data.join("gatekeeper.sock").exists(), "no socket without a server");
    server.restart();
}
