//! What is measured.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use gk_client::Client;
use gk_model::id::InstanceId;
use gk_model::query::{Limit, PortQuery, ReservationQuery};
use gk_model::reservation::ReserveRequest;

use crate::Row;
use crate::fleet::{Fleet, wait};

/// Size of each program.
pub(crate) fn sizes(fleet: &Fleet) -> Result<Vec<Row>> {
    ["gatekeeper", "gkctl"]
        .into_iter()
        .map(|name| {
            let bytes = std::fs::metadata(fleet.program(name))?.len();
            Ok(Row::new(format!("`{name}`, release, stripped"), mebibytes(bytes)))
        })
        .collect()
}

/// From `listen()` and `close()` on this machine to the answer of `GET /v1/instances/{i}/ports`.
pub(crate) fn listener_latency(fleet: &Fleet) -> Result<Vec<Row>> {
    const ROUNDS: usize = 40;
    let client = fleet.client();
    let (mut opened, mut closed) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        opened.push(wait(|| is_shown(&client, fleet.instance, port))?);
        drop(listener);
        closed.push(wait(|| !is_shown(&client, fleet.instance, port))?);
    }
    Ok(vec![
        Row::new("a new listener shows", quantiles(&mut opened)),
        Row::new("a closed listener goes", quantiles(&mut closed)),
    ])
}

fn is_shown(client: &Client, instance: InstanceId, port: u16) -> bool {
    let query = PortQuery { port: port.to_string().parse().ok(), ..PortQuery::default() };
    let page = client.list_instance_ports(&instance.into(), &query);
    page.is_ok_and(|page| page.items.iter().any(|state| !state.listeners.is_empty()))
}

/// Durable reservations through HTTP on the Unix socket, each followed by its release.
pub(crate) fn reserve(fleet: &Fleet) -> Result<Vec<Row>> {
    [1, 16, 64].into_iter().map(|callers| reserve_with(fleet, callers)).collect()
}

fn reserve_with(fleet: &Fleet, callers: usize) -> Result<Row> {
    /// So that the pool of 2,000 lasts: each caller reserves this many, then they are released.
    const EACH: usize = 12;
    let begun = Instant::now();
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..callers).map(|_| scope.spawn(|| reserve_some(fleet, EACH))).collect();
        callers
            .into_iter()
            .map(|caller| caller.join().expect("a caller does not panic"))
            .collect::<Result<Vec<_>>>()
    })?
    .concat();
    let rate = (callers * EACH) as f64 / begun.elapsed().as_secs_f64();
    let client = fleet.client();
    for made in
        client.list_reservations(&ReservationQuery { limit: Some(Limit::MAX), ..Default::default() })?.items
    {
        client.release(made.id, true)?;
    }
    let what = format!("reserve, durable, {callers} callers");
    Ok(Row::new(what, format!("{rate:.0}/s; {}", quantiles(&mut times))))
}

fn reserve_some(fleet: &Fleet, count: usize) -> Result<Vec<Duration>> {
    let client = fleet.client();
    let reserve = |_| {
        let begun = Instant::now();
        client.reserve(&ReserveRequest::next_free(fleet.instance))?;
        Ok(begun.elapsed())
    };
    (0..count).map(reserve).collect()
}

/// Whole commands, from start to end of the process.
pub(crate) fn commands(fleet: &Fleet) -> Result<Vec<Row>> {
    let table: [(&str, &[&str]); 4] = [
        ("gkctl", &["--version"]),
        ("gkctl", &["port", "list"]),
        ("gkctl", &["port", "reserve"]),
        ("gatekeeper", &["scan"]),
    ];
    table
        .into_iter()
        .map(|(program, words)| {
            let mut times = (0..30).map(|_| time(fleet, program, words)).collect::<Result<Vec<_>>>()?;
            Ok(Row::new(format!("`{program} {}`", words.join(" ")), quantiles(&mut times)))
        })
        .collect()
}

fn time(fleet: &Fleet, program: &str, words: &[&str]) -> Result<Duration> {
    let begun = Instant::now();
    let status = fleet.command(program).args(words).status()?;
    anyhow::ensure!(status.success(), "{program} {words:?} failed");
    Ok(begun.elapsed())
}

/// Resident memory of both processes after all that.
pub(crate) fn memory(fleet: &Fleet) -> Result<Vec<Row>> {
    [("server", fleet.server.id()), ("agent", fleet.agent.id())]
        .into_iter()
        .map(|(role, pid)| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
            let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
            Ok(Row::new(format!("resident memory of the {role}"), mebibytes(kibibytes * 1024)))
        })
        .collect()
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn quantiles(times: &mut [Duration]) -> String {
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1000.0;
    format!("p50 {:.1} ms, p90 {:.1} ms, max {:.1} ms", at(0.5), at(0.9), at(1.0))
}
