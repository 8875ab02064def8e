//! Fleets: what a heartbeat costs (F1), a reserve while a fleet reports, and the memory that a large one takes.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gk_model::paths;
use gk_model::reservation::ReserveRequest;

use crate::agents::{Agent, join, send};
use crate::bed::{Bed, Disk, on_both};
use crate::loader::{Address, Load, Until, once, request};
use crate::report::Row;
use crate::server::Server;
use crate::stats::{mebibytes, median, milliseconds, quantile, rate};
use crate::syncs::SLOW;

const PAIRS: usize = 5;

/// How long each side of a pair runs.
const SPAN: Duration = Duration::from_millis(1500);

/// Contacts come on so many connections, each of them thirty times a second.
const CONNECTIONS: usize = 10;
const EVERY: Duration = Duration::from_nanos(33_333_333);

/// p99 of one client's reserves while 300 contacts a second arrive, against an idle server.
pub(crate) fn latency_rows() -> Result<Vec<Row>> {
    on_both(Disk::Memory, |bed| {
        let server = Server::start(bed, None)?;
        let mut agents = join(&server.socket(), 200, 30)?;
        let tcp = server.tcp()?;
        send(&tcp, agents.iter_mut().map(Agent::report).collect::<Result<_>>()?)?;
        server.syncs(bed).take(SLOW)?;
        let (mut ratios, mut idle_times, mut busy_times, mut contacts) = (vec![], vec![], vec![], 0);
        for _ in 0..PAIRS {
            let idle = reserve(&server.socket(), &agents)?;
            let mixed = mix(&mut agents)?;
            let (busy, sent) = std::thread::scope(|scope| {
                let fleet = scope.spawn(|| pace(&tcp, mixed));
                let busy = reserve(&server.socket(), &agents);
                let sent = fleet.join().ok().context("the fleet does not panic")??;
                anyhow::Ok((busy?, sent))
            })?;
            contacts += sent;
            ratios.push(busy.1 / idle.1);
            idle_times.push(idle.1);
            busy_times.push(busy.1);
        }
        server.syncs(bed).take(Duration::ZERO)?;
        let (ratio, per_second) = (median(ratios), contacts as f64 / SPAN.as_secs_f64() / PAIRS as f64);
        let what = format!("{}, 4 ms a sync: p99 of a reserve under 300 contacts a second", bed.name);
        let (busy, idle) = (milliseconds(median(busy_times)), milliseconds(median(idle_times)));
        let figure = format!("{ratio:.2}×: {busy} against {idle} idle, at {per_second:.0} contacts/s");
        Ok(vec![Row::new(what, figure).with("≤ 3×", ratio <= 3.0)])
    })
}

/// F1: unchanged heartbeats against `/healthz`, both by TCP at 64 connections.
pub(crate) fn heartbeat_rows() -> Result<Vec<Row>> {
    on_both(Disk::Memory, |bed| {
        let server = Server::start(bed, None)?;
        let tcp = server.tcp()?;
        let mut agents = join(&server.socket(), 200, 30)?;
        send(&tcp, agents.iter_mut().map(Agent::report).collect::<Result<_>>()?)?;
        let heartbeats = agents.iter_mut().map(Agent::heartbeat).collect::<Result<_>>()?;
        let sides = [Rc::new(vec![request("GET", "/healthz", None, b"")]), Rc::new(heartbeats)];
        let (mut ratios, mut rates, mut no_ops) = (vec![], vec![], vec![]);
        for _ in 0..PAIRS {
            let mut pair = [0.0; 2];
            for (side, requests) in pair.iter_mut().zip(&sides) {
                let (address, requests) = (tcp.clone(), Rc::clone(requests));
                let until = Until::Elapsed(SPAN);
                let answers =
                    Load { address, requests, first: 0, connections: 64, until, every: None }.run()?;
                ensure!(answers.failed == 0, "{} were refused: {}", answers.failed, answers.failure);
                *side = answers.per_second;
            }
            ratios.push(pair[1] / pair[0]);
            no_ops.push(pair[0]);
            rates.push(pair[1]);
        }
        let ratio = median(ratios);
        let what =
            format!("{}, in memory, 64 clients by TCP: unchanged heartbeat against `/healthz`", bed.name);
        let figure = format!("{ratio:.2}: {} against {}", rate(median(rates)), rate(median(no_ops)));
        Ok(vec![Row::new(what, figure).with("≥ 0.8", ratio >= 0.8)])
    })
}

/// p50 and p99 of one client.
fn reserve(socket: &Address, agents: &[Agent]) -> Result<(f64, f64)> {
    let requests = agents.iter().map(|agent| {
        let body = serde_json::to_vec(&ReserveRequest::next_free(agent.id))?;
        Ok(request("POST", paths::RESERVATIONS, None, &body))
    });
    let load = Load {
        address: socket.clone(),
        requests: Rc::new(requests.collect::<Result<_>>()?),
        first: 0,
        connections: 1,
        until: Until::Elapsed(SPAN),
        every: None,
    };
    let mut answers = load.run()?;
    ensure!(answers.failed == 0, "a reserve failed: {}", answers.failure);
    Ok((quantile(&mut answers.times, 0.5), quantile(&mut answers.times, 0.99)))
}

/// The next contacts of the fleet: of twenty, sixteen heartbeats, three deltas and a full report.
fn mix(agents: &mut [Agent]) -> Result<Vec<Vec<u8>>> {
    let count = (SPAN.as_secs_f64() * 300.0) as usize;
    let contact = |number: usize| {
        let index = number % agents.len();
        let agent = &mut agents[index];
        match number * 7 % 20 {
            0 => agent.report(),
            1..=3 => agent.delta(),
            _ => agent.heartbeat(),
        }
    };
    (0..count).map(contact).collect()
}

/// Sends them over the span; each must be taken.
fn pace(tcp: &Address, contacts: Vec<Vec<u8>>) -> Result<usize> {
    let load = Load {
        address: tcp.clone(),
        requests: Rc::new(contacts),
        first: 0,
        connections: CONNECTIONS,
        until: Until::Sent,
        every: Some(EVERY),
    };
    let answers = load.run()?;
    ensure!(answers.failed == 0, "a contact failed: {}", answers.failure);
    Ok(answers.times.len())
}

/// Memory of a server that 10,000 instances with 30 listeners each have reported to.
pub(crate) fn memory_rows() -> Result<Vec<Row>> {
    const INSTANCES: usize = 10_000;
    let bed = Bed::sqlite(Disk::Memory)?;
    let server = Server::start(&bed, None)?;
    let before = server.resident_bytes()?;
    let mut agents = join(&server.socket(), INSTANCES, 30)?;
    send(&server.tcp()?, agents.iter_mut().map(Agent::report).collect::<Result<_>>()?)?;
    // Lists read all of it once.
    once(&server.socket(), request("GET", "/v1/ports?limit=1000", None, b""))?;
    let resident = server.resident_bytes()?;
    let what = "SQLite: resident memory of a server with 10,000 instances and 300,000 listeners";
    let figure = format!("{} ({} when started)", mebibytes(resident), mebibytes(before));
    Ok(vec![Row::new(what, figure)])
}
