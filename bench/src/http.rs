//! Reserving through HTTP: in groups against one by one (D1), against the Python system (H1), against a route that does
//! nothing (H2).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gk_model::paths;
use gk_model::reservation::{ReserveRequest, Reserved};
use serde_json::json;

use crate::agents::{Agent, join};
use crate::bed::{Bed, Disk, on_both};
use crate::loader::{Address, Answers, Load, Until, once, request};
use crate::report::Row;
use crate::server::Server;
use crate::stats::{median, milliseconds, quantile, rate};
use crate::syncs::SLOW;

const PAIRS: usize = 5;
const SPAN: Duration = Duration::from_millis(600);

/// Enough ports for all that is reserved.
const INSTANCES: usize = 150;

/// Requests in turn, from where the last run ended.
struct Turns {
    address: Address,
    requests: Rc<Vec<Vec<u8>>>,
    first: usize,
}

impl Turns {
    /// As admin, at the Unix socket.
    fn reserves(server: &Server, agents: &[Agent]) -> Result<Turns> {
        let reserve = |agent: &Agent| {
            let body = serde_json::to_vec(&ReserveRequest::next_free(agent.id))?;
            Ok(request("POST", paths::RESERVATIONS, None, &body))
        };
        let requests = agents.iter().map(reserve).collect::<Result<Vec<_>>>()?;
        Ok(Turns { address: server.socket(), requests: Rc::new(requests), first: 0 })
    }

    fn run(&mut self, connections: usize, span: Duration) -> Result<Answers> {
        let load = Load {
            address: self.address.clone(),
            requests: Rc::clone(&self.requests),
            first: self.first,
            connections,
            until: Until::Elapsed(span),
            every: None,
        };
        let answers = load.run()?;
        self.first += answers.times.len();
        Ok(answers)
    }

    /// The same, where nothing may be refused.
    fn run_well(&mut self, connections: usize) -> Result<Answers> {
        let answers = self.run(connections, SPAN)?;
        ensure!(answers.failed == 0, "{} requests failed: {}", answers.failed, answers.failure);
        Ok(answers)
    }
}

/// D1 through HTTP: one server with a batch of one, one as it is, on a disk that takes 4 ms.
pub(crate) fn group_rows() -> Result<Vec<Row>> {
    on_both(Disk::Memory, |bed| {
        let (slow, fast) = (Server::start(bed, Some(1))?, Server::start(bed, None)?);
        let mut sides = Vec::new();
        for server in [&slow, &fast] {
            let agents = join(&server.socket(), INSTANCES, 0)?;
            sides.push(Turns::reserves(server, &agents)?);
        }
        for server in [&slow, &fast] {
            server.syncs(bed).take(SLOW)?;
        }
        let mut rows = Vec::new();
        for (clients, least) in [(1, None), (64, Some(20.0)), (256, Some(60.0))] {
            let (mut ratios, mut rates, mut slow_rates, mut syncs) = (vec![], vec![], vec![], vec![]);
            for _ in 0..PAIRS {
                let one_by_one = sides[0].run_well(clients)?.per_second;
                let before = fast.syncs(bed).count()?;
                let grouped = sides[1].run_well(clients)?;
                syncs.push((fast.syncs(bed).count()? - before) as f64 / grouped.times.len() as f64);
                ratios.push(grouped.per_second / one_by_one);
                rates.push(grouped.per_second);
                slow_rates.push(one_by_one);
            }
            let (ratio, syncs) = (median(ratios), median(syncs));
            let what = format!("{}, HTTP, 4 ms a sync, {clients} clients: against a commit each", bed.name);
            let figure = format!("{ratio:.1}×: {} against {}", rate(median(rates)), rate(median(slow_rates)));
            let row = Row::new(what, figure);
            rows.push(match least {
                Some(least) => row.with(format!("≥ {least:.0}×"), ratio >= least),
                None => row,
            });
            let what = format!("{}, HTTP, 4 ms a sync, {clients} clients: syncs an answer", bed.name);
            rows.push(match clients {
                1 => Row::new(what, format!("{syncs:.2}")).with("≤ 1.25", syncs <= 1.25),
                64 => Row::new(what, format!("1/{:.0}", 1.0 / syncs)).with("≤ 1/20", syncs <= 0.05),
                _ => Row::new(what, format!("1/{:.0}", 1.0 / syncs)),
            });
        }
        bed.syncs().take(Duration::ZERO)?;
        Ok(rows)
    })
}

/// H2: reserving against `/healthz`, data in memory.
pub(crate) fn no_op_rows() -> Result<Vec<Row>> {
    on_both(Disk::Memory, |bed| {
        let server = Server::start(bed, None)?;
        let agents = join(&server.socket(), INSTANCES, 0)?;
        let mut reserves = Turns::reserves(&server, &agents)?;
        let own = agents.iter().map(Agent::reserve).collect::<Result<Vec<_>>>()?;
        let mut own = Turns { address: server.tcp()?, requests: Rc::new(own), first: 0 };
        let health = Rc::new(vec![request("GET", "/healthz", None, b"")]);
        let mut health = Turns { address: server.socket(), requests: health, first: 0 };
        let mut rows = Vec::new();
        for clients in [1, 16, 64] {
            let (mut ratios, mut rates, mut no_ops, mut times) = (vec![], vec![], vec![], vec![]);
            for _ in 0..PAIRS {
                let no_op = health.run_well(clients)?.per_second;
                let answers = reserves.run_well(clients)?;
                ratios.push(answers.per_second / no_op);
                rates.push(answers.per_second);
                no_ops.push(no_op);
                times.extend(answers.times);
            }
            let ratio = median(ratios);
            let p99 = milliseconds(quantile(&mut times, 0.99));
            let what = format!("{}, in memory, {clients} clients: reserve against `/healthz`", bed.name);
            let figure =
                format!("{ratio:.2}: {} (p99 {p99}) against {}", rate(median(rates)), rate(median(no_ops)));
            let row = Row::new(what, figure);
            rows.push(if clients == 64 { row.with("≥ 0.25", ratio >= 0.25) } else { row });
        }
        let with_token = own.run_well(64)?;
        let what = format!("{}, in memory, 64 clients by TCP, with an instance's credential", bed.name);
        rows.push(Row::new(what, rate(with_token.per_second)));
        Ok(rows)
    })
}

/// H1: the same loader on a Python Gatekeeper at `url` and on ours, on the disk there is.
pub(crate) fn python_rows(url: Option<&str>) -> Result<Vec<Row>> {
    let targets = [(16, 100.0), (64, 200.0)];
    let what =
        |clients: usize| format!("SQLite, this disk, {clients} clients: reserve against the Python system");
    let unmeasured = |(clients, least): (usize, f64)| {
        Row::not_measured(what(clients), format!("≥ {least:.0}×, 0 duplicates"))
    };
    let Some(url) = url else { return Ok(targets.map(unmeasured).to_vec()) };
    let mut theirs = python(url)?;
    let bed = Bed::sqlite(Disk::Real)?;
    let server = Server::start(&bed, None)?;
    let mut ours = Turns::reserves(&server, &join(&server.socket(), INSTANCES, 0)?)?;
    let mut rows = Vec::new();
    for (clients, least) in targets {
        let (mut ratios, mut rates, mut slow_rates) = (vec![], vec![], vec![]);
        let (mut given, mut failed) = (Vec::new(), 0);
        for _ in 0..3 {
            let slow = theirs.run(clients, Duration::from_secs(2))?;
            failed += slow.failed;
            let fast = ours.run_well(clients)?;
            ratios.push(fast.per_second / slow.per_second);
            rates.push(fast.per_second);
            slow_rates.push(slow.per_second);
            given.extend(fast.bodies);
        }
        let (count, duplicates) = duplicates(&given)?;
        let ratio = median(ratios);
        let figure = format!(
            "{ratio:.0}×: {} ({duplicates} duplicates in {count}) against {} ({failed} failed)",
            rate(median(rates)),
            rate(median(slow_rates))
        );
        let met = ratio >= least && duplicates == 0;
        rows.push(Row::new(what(clients), figure).with(format!("≥ {least:.0}×, 0 duplicates"), met));
    }
    Ok(rows)
}

/// The legacy route, for one instance that is made first.
fn python(url: &str) -> Result<Turns> {
    let rest =
        url.trim_end_matches('/').strip_prefix("http://").context("--python wants http://ADDRESS:PORT")?;
    let address: SocketAddr =
        rest.replace("localhost", "127.0.0.1").parse().context("--python wants an address")?;
    let address = Address::Tcp(address);
    let id = format!("bench-{}", std::process::id());
    let instance = json!({ "instance_id": id, "name": id });
    once(&address, request("POST", "/api/instances", None, &serde_json::to_vec(&instance)?))?;
    let reserve = serde_json::to_vec(&json!({ "instance_id": id }))?;
    let reserve = request("POST", "/api/ports/reserve", None, &reserve);
    Ok(Turns { address, requests: Rc::new(vec![reserve]), first: 0 })
}

/// How many reservations were answered, and how many of them gave a port once more.
fn duplicates(bodies: &[(usize, Vec<u8>)]) -> Result<(usize, usize)> {
    let mut distinct = BTreeSet::new();
    for (_, body) in bodies {
        let made: Reserved = serde_json::from_slice(body)?;
        let made = made.only().context("one reservation was asked for")?;
        distinct.insert((made.instance.as_ref().map(|instance| instance.id), made.first_port));
    }
    Ok((bodies.len(), bodies.len() - distinct.len()))
}
