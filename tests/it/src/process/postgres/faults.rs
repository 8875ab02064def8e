//! A database that is gone for a while, or full, under the server that people talk to.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use gk_model::problem::{Code, Problem};
use gk_model::reservation::ReserveRequest;

use crate::cluster::{self, Cluster};
use crate::process::crash::join;
use crate::process::disk::{SmallDisk, reserve_until_put_off, stored};
use crate::process::harness::{Place, Server, reserve, wait_for};

/// Status line, headers and body, as they come over TCP.
fn get(server: &Server, path: &str) -> String {
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.to_ascii_lowercase()
}

fn is_put_off(answer: &str) -> bool {
    answer.starts_with("http/1.1 503 ")
        && answer.contains("content-type: application/problem+json")
        && answer.contains("retry-after: ")
        && answer.contains("the server's database is away; nothing was changed")
}

#[test]
fn while_the_database_is_gone_the_server_says_so_and_then_goes_on_by_itself() {
    let (place, cluster) = (Place::new(), Cluster::start(std::env::temp_dir(), &[]));
    let mut server = Server::start_on(&cluster.create_url(), &place.join("data"));
    let client = server.admin().with_patience(Duration::ZERO);
    let instance = join(&client, "web-1", 1);
    let made = reserve(&client, &ReserveRequest::next_free(instance)).unwrap();
    for patient in [true, false] {
        if patient {
            cluster.stop();
        } else {
            cluster.crash();
        }
        let ready = get(&server, "/readyz");
        assert!(is_put_off(&ready), "{ready}");
        assert!(get(&server, "/healthz").starts_with("http/1.1 200 "));
        // A change waits for some seconds before it is put off; once is enough.
        if patient {
            let problem = reserve(&client, &ReserveRequest::next_free(instance)).unwrap_err();
            assert_eq!(problem.problem().unwrap().code, Code::Unavailable, "{problem:?}");
        }
        let problem = client.list_instances(&Default::default()).unwrap_err();
        assert_eq!(problem.problem().unwrap().code, Code::Unavailable, "{problem:?}");
        cluster.resume();
        wait_for("the server to be ready", || {
            get(&server, "/readyz").starts_with("http/1.1 200 ").then_some(())
        });
        assert_eq!(server.live(), std::slice::from_ref(&made));
        let more = reserve(&client, &ReserveRequest::next_free(instance)).unwrap();
        client.release(more.id, false).unwrap();
    }
    server.process.assert_running();
    server.verify();
}

#[test]
fn a_statement_that_fails_is_told_as_a_fault_and_not_as_a_database_that_is_away() {
    let (place, url) = (Place::new(), cluster::shared().create_url());
    let server = Server::start_on(&url, &place.join("data"));
    let client = server.admin();
    let instance = join(&client, "web-1", 1);
    let schema = url.rsplit_once("search_path%3D").unwrap().1;
    cluster::shared().ask(&format!("alter table {schema}.event rename to gone"));
    let ready = get(&server, "/readyz");
    assert!(ready.starts_with("http/1.1 500 ") && ready.contains("its log tells more"), "{ready}");
    assert!(!ready.contains("retry-after"), "{ready}");
    let error = reserve(&client, &ReserveRequest::next_free(instance)).unwrap_err();
    let problem = error.problem().unwrap();
    assert_eq!(problem.code, Code::Internal, "{problem:?}");
    let (log, request) = (server.process.log(), problem.request_id.clone().unwrap());
    let told = log.lines().find(|line| line.contains("a request failed") && line.contains(&request));
    assert!(told.is_some_and(|line| line.contains("42P01")), "{log}");
    cluster::shared().ask(&format!("alter table {schema}.gone rename to event"));
    reserve(&client, &ReserveRequest::next_free(instance)).unwrap();
    server.verify();
}

#[test]
fn a_database_on_a_full_disk_puts_writes_off_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount("160m") else { return };
    let place = Place::new();
    // Its log is let be: PostgreSQL stops when that cannot be written, which is the test of a crash.
    let cluster = Cluster::start(disk.path().to_owned(), &["max_wal_size=32MB", "shared_buffers=1MB"]);
    let server = Server::start_on(&cluster.create_url(), &place.join("data"));
    let client = server.admin().with_patience(Duration::ZERO);
    let instance = join(&client, "web-1", 1);
    let mut ledger = BTreeMap::new();
    disk.fill(0);
    let put_off = reserve_until_put_off(&client, instance, &mut ledger, 3);
    assert!(put_off.iter().all(|problem| problem.code == Code::Unavailable), "{put_off:?}");
    // Not every one: when its log is what does not fit, PostgreSQL starts anew, and is away meanwhile.
    let full = |problem: &Problem| problem.detail == "the server's disk is full; nothing was changed";
    assert!(put_off.iter().any(full), "{put_off:?}");
    disk.make_space();
    cluster.resume();
    let made =
        wait_for("the server to go on", || reserve(&client, &ReserveRequest::next_free(instance)).ok());
    ledger.insert(made.id, made.first_port.get());
    let stored = stored(&server);
    assert!(ledger.iter().all(|(id, port)| stored.get(id) == Some(port)));
    server.verify();
}
