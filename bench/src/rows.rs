//! What a user of the programs notices: sizes, how soon a listener shows, how long a command takes.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::Result;
use gk_client::Client;
use gk_model::id::InstanceId;
use gk_model::query::PortQuery;

use crate::fleet::{Fleet, resident_bytes, wait};
use crate::report::Row;
use crate::stats::mebibytes;

/// Size of each program.
pub(crate) fn sizes(fleet: &Fleet) -> Result<Vec<Row>> {
    ["gatekeeper", "gatekeeper-agent", "gkctl"]
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
            Ok(Row::new(format!("resident memory of the {role}"), mebibytes(resident_bytes(pid)?)))
        })
        .collect()
}

fn quantiles(times: &mut [Duration]) -> String {
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1000.0;
    format!("p50 {:.1} ms, p90 {:.1} ms, max {:.1} ms", at(0.5), at(0.9), at(1.0))
}
