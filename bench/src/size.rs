//! What is asked of a large fleet, against a small one: answers of the same size must cost nearly the same.
//!
//! Each instance of both has 30 reservations and 100 listeners: 28 as planned, one reserved for somebody else, 11 that
//! nobody reserved, 60 that a rule ignores; one reservation is idle.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use gk_model::paths;
use serde_json::{Value, json};

use crate::agents::{Agent, join, send};
use crate::bed::{Bed, Disk, on_both};
use crate::loader::{Load, Until, once, request};
use crate::report::Row;
use crate::server::Server;
use crate::stats::{milliseconds, quantile};

const SMALL: usize = 100;

/// Instances that have a label in common.
const RACK: usize = 100;
const ROOM: usize = 1_000;

const LISTENERS: usize = 100;

/// Reports of so many are held in memory to be sent.
const CHUNK: usize = 250;

/// Heartbeats of all are stored by then.
const UNTIL_STORED: Duration = Duration::from_secs(5);

/// Fleets take turns at answering so many at a time.
const ROUNDS: usize = 5;
const EACH: usize = 20;

/// On both databases.
pub(crate) fn rows(quick: bool) -> Result<Vec<Row>> {
    let large = if quick { 2_000 } else { 10_000 };
    on_both(Disk::Real, |bed| rows_of(bed, large))
}

fn rows_of(bed: &Bed, large: usize) -> Result<Vec<Row>> {
    let mut fleets = [Fleet::start(bed, SMALL)?, Fleet::start(bed, large)?];
    if let Some(cluster) = &bed.cluster {
        // As its own housekeeping would, in time.
        cluster.psql("vacuum analyze")?;
    }
    // While they were filled they were silent for long.
    for fleet in &mut fleets {
        let beats = fleet.agents.iter_mut().map(Agent::heartbeat).collect::<Result<_>>()?;
        send(&fleet.server.tcp()?, beats)?;
        let requests = Rc::new(vec![request("GET", paths::STATUS, None, b"")]);
        let until = Until::Elapsed(UNTIL_STORED);
        Load { address: fleet.server.socket(), requests, first: 0, connections: 1, until, every: None }
            .run()?;
    }
    let mut rows = Vec::new();
    for (what, path) in READS {
        let asked = request("GET", path, None, b"");
        rows.push(compare(bed, &fleets, what, [vec![asked.clone()], vec![asked]], 1.0)?);
    }
    let one =
        |fleet: &Fleet| fleet.agents.iter().map(|agent| reserve(&json!({"instance": agent.id}))).collect();
    rows.push(compare(bed, &fleets, "reserve on one instance", [one(&fleets[0]), one(&fleets[1])], 1.0)?);
    let rack = vec![reserve(&json!({"on": "rack=0"}))];
    rows.push(compare(bed, &fleets, "reserve on a hundred", [rack.clone(), rack.clone()], 1.0)?);
    let room = vec![reserve(&json!({"on": "room=0"}))];
    let times = (ROOM / RACK) as f64;
    rows.push(compare(bed, &fleets, "reserve on a thousand, a tenth of it against", [rack, room], times)?);
    Ok(rows)
}

/// Answers that have no end are pages of 100.
const READS: [(&str, &str); 8] = [
    // First, while nobody is offline: whoever is, is counted one by one.
    ("status", "/v1/status"),
    ("drift", "/v1/drift"),
    ("drift, conflicts only", "/v1/drift?kind=conflict"),
    ("drift, idle only", "/v1/drift?kind=idle"),
    ("ports in conflict", "/v1/ports?state=conflict"),
    ("ports of a service", "/v1/ports?service=app"),
    ("ports of a rack in conflict", "/v1/ports?label=rack%3D0&state=conflict"),
    ("pools", "/v1/pools"),
];

/// A server and what it knows.
struct Fleet {
    server: Server,
    agents: Vec<Agent>,
}

impl Fleet {
    fn start(bed: &Bed, count: usize) -> Result<Fleet> {
        let server = Server::start(bed, None)?;
        let (socket, tcp) = (server.socket(), server.tcp()?);
        for number in 0..10 {
            let (first, name) = (10_000 + number * 100, format!("pool-{number}"));
            let ranges = format!("{first}-{}", first + 99);
            put(&server, &format!("{}/{name}", paths::POOLS), &json!({"ranges": [ranges]}))?;
        }
        put(&server, &format!("{}/builds", paths::IGNORES), &json!({"ports": ["10040-10099"]}))?;
        let mut agents = join(&socket, count, LISTENERS)?;
        send(&socket, agents.iter().flat_map(plan).collect())?;
        for some in agents.chunks_mut(CHUNK) {
            send(&tcp, some.iter_mut().map(Agent::report).collect::<Result<_>>()?)?;
        }
        let status = once(&socket, request("GET", paths::STATUS, None, b""))?;
        let status: Value = serde_json::from_slice(&status)?;
        let told = &status["drift"];
        ensure!(
            told["conflict"] == count && told["unreserved"] == 11 * count,
            "not the fleet that was meant: {status}"
        );
        Ok(Fleet { server, agents })
    }
}

fn put(server: &Server, path: &str, body: &Value) -> Result<Vec<u8>> {
    once(&server.socket(), request("PUT", path, None, body.to_string().as_bytes()))
}

fn reserve(asked: &Value) -> Vec<u8> {
    request("POST", paths::RESERVATIONS, None, asked.to_string().as_bytes())
}

/// The reservations of one instance.
fn plan(agent: &Agent) -> [Vec<u8>; 3] {
    let names: Vec<_> = (0..28).map(|number| format!("n{number}")).collect();
    let worker = json!({"process": "worker"});
    [
        json!({"instance": agent.id, "pool": "pool-0", "service": "app", "names": names, "expect": worker}),
        json!({"instance": agent.id, "port": 10_028, "expect": {"process": "somebody-else"}}),
        json!({"instance": agent.id, "port": 9_000}),
    ]
    .map(|asked| reserve(&asked))
}

/// The median answer of the large fleet, which may be `times` as large, against the small one's.
fn compare(bed: &Bed, fleets: &[Fleet; 2], what: &str, asked: [Vec<Vec<u8>>; 2], times: f64) -> Result<Row> {
    let asked = asked.map(|asked| Rc::new(asked.into_iter().cycle().take(EACH).collect::<Vec<_>>()));
    let mut took: [Vec<Duration>; 2] = [vec![], vec![]];
    // The first round warms what is kept in memory.
    for round in 0..=ROUNDS {
        for ((fleet, requests), took) in fleets.iter().zip(&asked).zip(&mut took) {
            let (address, requests) = (fleet.server.socket(), Rc::clone(requests));
            let answers =
                Load { address, requests, first: 0, connections: 1, until: Until::Sent, every: None }
                    .run()?;
            ensure!(answers.failed == 0, "{what}: {}", answers.failure);
            if round > 0 {
                took.extend(answers.times);
            }
        }
    }
    let [small, large] = took.map(|mut took| quantile(&mut took, 0.5));
    let ratio = large / times / small;
    let count = fleets[1].agents.len();
    let what = format!("{}, {count} instances against {SMALL}: {what}", bed.name);
    let figure = format!("{ratio:.2}×: {} against {}", milliseconds(large / times), milliseconds(small));
    Ok(Row::new(what, figure).with("≤ 3×", ratio <= 3.0))
}
