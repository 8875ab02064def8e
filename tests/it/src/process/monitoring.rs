//! What watches Gatekeeper: the rules and the board in `packaging`, and a real Prometheus that takes all of it.
//!
//! Prometheus is Debian's package: unpacked by `.ci/prerequisites test`, or installed.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use serde_json::Value;

use super::harness::{Place, Process, Server, gkctl, stdout, wait_for};

const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging");

fn packaged(file: &str) -> PathBuf {
    Path::new(PACKAGING).join(file)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(packaged(file)).unwrap()
}

/// The body of a `GET`, which must go well.
fn get(mut stream: impl Read + Write, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.split(' ').nth(1) == Some("200"), "{path}: {answer}");
    body.to_owned()
}

fn metrics(server: &Server) -> String {
    get(UnixStream::connect(server.data.join("gatekeeper.sock")).unwrap(), "/metrics")
}

/// Every name of a metric of ours in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("gatekeeper_")).collect()
}

#[test]
fn rules_and_board_name_metrics_that_a_server_tells() {
    let place = Place::new();
    // With a certificate, about which it then tells, too.
    let server = Server::start_with(&place.join("data"), "127.0.0.1:0", |command| {
        command.args(["--tls", "auto"]);
    });
    let text = metrics(&server);
    // Requests are told of once there were any.
    let text = text + &metrics(&server);
    let told = names(&text);
    let board: Value = serde_json::from_str(&read("grafana/gatekeeper.json")).unwrap();
    let panels = board["panels"].as_array().unwrap();
    assert!(
        panels.iter().all(|panel| panel["type"] == "row" || panel["description"] != ""),
        "each says what it is"
    );
    let board = board.to_string();
    for (file, text) in [
        ("alerts.yml", read("prometheus/alerts.yml")),
        ("alerts_test.yml", read("prometheus/alerts_test.yml")),
        ("gatekeeper.json", board.clone()),
    ] {
        let named = names(&text);
        assert!(named.len() > 5, "{file} names {named:?}");
        let unknown: Vec<_> = named.difference(&told).collect();
        assert!(unknown.is_empty(), "{file}: no server tells {unknown:?}");
    }
    // And the other way round: nothing is told that nobody is shown. Of a histogram one part is enough.
    let family = |name: &str| {
        let part = ["_bucket", "_count", "_sum"].iter().find_map(|part| name.strip_suffix(part));
        part.unwrap_or(name).to_owned()
    };
    let shown: BTreeSet<String> = names(&board).into_iter().map(family).collect();
    let missing: Vec<String> = told.into_iter().map(family).filter(|name| !shown.contains(name)).collect();
    assert!(missing.is_empty(), "the board shows no {missing:?}");
}

/// A program of the Prometheus package.
fn tool(name: &str) -> Command {
    let unpacked = Path::new(PACKAGING).join("../target/prometheus/usr/bin").join(name);
    Command::new(if unpacked.exists() { unpacked } else { name.into() })
}

/// What it says, which has to be nothing but good.
fn promtool(place: &Place, words: &[&str], input: &str) -> Output {
    let mut command = tool("promtool");
    command.args(words).current_dir(place.path());
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("run `.ci/prerequisites test`, which unpacks Prometheus");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "promtool {words:?}: {output:?}");
    output
}

/// A service that tells Prometheus something, for as long as the test runs.
fn serve() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut asked = [0; 4096];
            let _request = stream.read(&mut asked);
            let answer = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n\
                          Content-Length: 10\r\n\r\nshop_up 1\n";
            let _sent = stream.write_all(answer.as_bytes());
        }
    });
    port
}

/// The packaged files in a scratch directory, made for this server and this service. Everything happens each second.
fn configure(place: &Place, server: &Server, token: &str) -> PathBuf {
    for file in ["alerts.yml", "alerts_test.yml"] {
        std::fs::copy(packaged("prometheus").join(file), place.join(file)).unwrap();
    }
    std::fs::write(place.join("gatekeeper.token"), token).unwrap();
    let example = read("prometheus/prometheus.yml");
    for expected in ["127.0.0.1:5000", "service=node"] {
        assert!(example.contains(expected), "the example has no {expected}");
    }
    let example = example.replace("127.0.0.1:5000", &server.address).replace("service=node", "service=shop");
    let config = place.join("prometheus.yml");
    std::fs::write(&config, format!("global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n{example}"))
        .unwrap();
    config
}

/// A running Prometheus.
struct Prometheus {
    process: Process,
    address: String,
}

impl Prometheus {
    fn start(place: &Place, config: &Path) -> Prometheus {
        let mut command = tool("prometheus");
        command.arg("--config.file").arg(config).arg("--storage.tsdb.path").arg(place.join("tsdb"));
        command.arg("--web.listen-address=127.0.0.1:0").current_dir(place.path());
        let mut process = Process::start(&mut command, place.join("prometheus.log"));
        let address = wait_for("Prometheus to be ready", || {
            process.assert_running();
            let log = process.log();
            if !log.contains("ready to receive web requests") {
                return None;
            }
            let line = log.lines().find(|line| line.contains("Listening on"))?;
            Some(line.split("address=").nth(1)?.split(' ').next()?.to_owned())
        });
        Prometheus { process, address }
    }

    fn ask(&self, path: &str) -> Value {
        let body = get(TcpStream::connect(&self.address).unwrap(), path);
        serde_json::from_str::<Value>(&body).unwrap()["data"].take()
    }

    /// Its targets once each was asked: job, port and health, in order.
    fn targets(&self) -> Option<Vec<[String; 3]>> {
        let data = self.ask("/api/v1/targets?state=active");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let mut targets: Vec<_> = data["activeTargets"]
            .as_array()?
            .iter()
            .map(|target| {
                let address = text(&target["discoveredLabels"]["__address__"]);
                let port = address.rsplit(':').next().unwrap().to_owned();
                [text(&target["labels"]["job"]), port, text(&target["health"])]
            })
            .collect();
        targets.sort();
        (targets.len() >= 3 && targets.iter().all(|[.., health]| health != "unknown")).then_some(targets)
    }
}

#[test]
fn a_real_prometheus_takes_metrics_targets_and_rules_without_complaint() {
    let place = Place::new();
    let mut server = Server::start(&place.join("data"));
    let state = place.join("state");
    let run = |words: &[&str]| stdout(&gkctl(&server, &state, words));
    let (served, near) = (serve(), TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let near = (near.local_addr().unwrap().port(), near);
    // A name that leads here, too, where a machine has no address.
    run(&["instance", "join", "--name", "localhost"]);
    for port in [served, near.0] {
        run(&["port", "reserve", "--port", &port.to_string(), "--adopt", "--service", "shop"]);
    }
    // None of the pool, whose numbers other tests listen on.
    let down =
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port().to_string();
    run(&["port", "reserve", "--port", &down, "--service", "shop"]);
    let token = run(&["token", "create", "--subject", "prometheus", "--role", "viewer"]);

    let config = configure(&place, &server, &token);
    promtool(&place, &["check", "config", "--lint=all", "--lint-fatal", "prometheus.yml"], "");
    promtool(&place, &["check", "rules", "--lint=all", "--lint-fatal", "alerts.yml"], "");
    promtool(&place, &["test", "rules", "alerts_test.yml"], "");
    let complaints = promtool(&place, &["check", "metrics"], &metrics(&server));
    assert_eq!(
        String::from_utf8_lossy(&complaints.stderr) + &*String::from_utf8_lossy(&complaints.stdout),
        ""
    );

    let prometheus = Prometheus::start(&place, &config);
    let own = server.address.rsplit(':').next().unwrap();
    // What is down is a target, and down; what only its own machine reaches is none.
    let mut expected =
        [("gatekeeper", own, "up"), ("node", &served.to_string(), "up"), ("node", &down, "down")]
            .map(|(job, port, health)| [job, port, health].map(str::to_owned));
    expected.sort();
    assert_eq!(wait_for("all targets", || prometheus.targets()), expected);
    let shop = wait_for("what the service tells", || {
        let found = prometheus.ask("/api/v1/query?query=shop_up")["result"].take();
        found[0]["metric"]["instance"].as_str().map(str::to_owned)
    });
    assert_eq!(shop, "localhost", "labels of the target are there to be kept");
    let groups = wait_for("each rule to be looked at", || {
        let groups = prometheus.ask("/api/v1/rules")["groups"].take();
        let rules = groups.as_array()?.iter().flat_map(|group| group["rules"].as_array().unwrap());
        let health: Vec<String> = rules.map(|rule| rule["health"].to_string()).collect();
        health.iter().all(|health| health != "\"unknown\"").then_some(health)
    });
    assert!(groups.len() > 10 && groups.iter().all(|health| health == "\"ok\""), "{groups:?}");
    let log = prometheus.process.log();
    assert!(!log.contains("level=warn") && !log.contains("level=error"), "{log}");
    server.process.assert_running();
}
