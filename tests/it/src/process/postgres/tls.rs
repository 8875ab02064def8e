//! TLS towards PostgreSQL: used when asked for, and only with the one who is meant.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use crate::cluster::{self, Cluster};
use crate::process::crash::join;
use crate::process::harness::{Place, Server, gatekeeper, refusal_of};

/// Makes what a certificate authority makes, with the program that comes along with Debian's PostgreSQL.
fn openssl(directory: &Path, words: &str) {
    let output = Command::new("openssl").args(words.split(' ')).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
}

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -batch";

fn make_authority(directory: &Path, name: &str) {
    openssl(
        directory,
        &format!("req -x509 {KEY} -keyout {name}.key -out {name}.pem -subj /CN={name} -days 2"),
    );
}

/// A cluster with a certificate for this address, which listens there and on another one.
fn start(place: &Path, address: Ipv4Addr, other: Ipv4Addr) -> Cluster {
    make_authority(place, "ours");
    make_authority(place, "theirs");
    std::fs::write(place.join("names"), format!("subjectAltName=IP:{address}")).unwrap();
    openssl(place, &format!("req {KEY} -keyout server.key -out server.csr -subj /CN=db"));
    openssl(
        place,
        "x509 -req -in server.csr -CA ours.pem -CAkey ours.key -CAcreateserial -days 2 -extfile names -out server.pem",
    );
    let listen = format!("listen_addresses={address},{other}");
    let settings = ["ssl=on", "ssl_cert_file=server.pem", "ssl_key_file=server.key", &listen];
    let cluster = Cluster::prepare(cluster::in_memory(), &settings);
    for file in ["server.pem", "server.key"] {
        let kept = cluster.directory().join("data").join(file);
        std::fs::copy(place.join(file), &kept).unwrap();
        std::fs::set_permissions(&kept, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        cluster.give(&kept);
    }
    cluster.serving()
}

#[test]
fn a_database_is_talked_to_by_tls_and_no_other_is_taken_for_it() {
    // Addresses of this process alone, so that the usual port is free.
    let (high, low) = ((std::process::id() >> 8) as u8, std::process::id() as u8);
    let (address, other) = (Ipv4Addr::new(127, 100, high, low), Ipv4Addr::new(127, 101, high, low));
    let place = Place::new();
    let cluster = start(place.path(), address, other);
    let options = cluster.create_url().split_once("options=").unwrap().1.to_owned();
    let url =
        |host: Ipv4Addr, more: &str| format!("postgres://gatekeeper@{host}/postgres?options={options}{more}");
    let trusted = |name: &str| format!("&sslrootcert={}", place.join(name).display());

    let good = url(address, &format!("&sslmode=require{}", trusted("ours.pem")));
    let server = Server::start_on(&good, &place.join("data"));
    join(&server.admin(), "web-1", 1);
    let sql = "select distinct ssl from pg_stat_ssl join pg_stat_activity using (pid) \
               where application_name = 'gatekeeper'";
    assert_eq!(cluster.ask(sql), "t");
    server.verify();

    let refused = |url: &str| refusal_of(&mut gatekeeper("server", &place.join("other"), Some(url)));
    let error = refused(&url(address, &format!("&sslmode=verify-full{}", trusted("theirs.pem"))));
    assert!(error.contains("UnknownIssuer") && error.contains("?sslrootcert=FILE"), "{error}");
    let error = refused(&url(other, &format!("&sslmode=require{}", trusted("ours.pem"))));
    assert!(error.contains("not valid for name") && error.contains("the host in the address"), "{error}");
    let error = refused(&url(address, &format!("&sslmode=require{}", trusted("names"))));
    assert!(error.contains("/names cannot be used: there are none in it"), "{error}");
    let error = refused(&url(address, "&sslmode=require"));
    assert!(error.contains("sslrootcert=FILE"), "{error}");
}
