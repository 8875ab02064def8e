//! History at size: how PostgreSQL answers each form, on 200,000 intervals.

use gk_model::history::{EventKind, IntervalKind};
use gk_model::query::{HistoryQuery, Limit};
use gk_model::time::Timestamp;
use gk_store::{Filling, fill_history, filled_from};

use crate::cluster;
use crate::store::world::{World, at};

const ROWS: u64 = 200_000;

/// The filler numbers its rows from here, a millisecond apart.
const FIRST: u64 = 1_000_001;

/// What one page may read, a twentieth of the table: a page of ten is put together from a few arms, and what lasted at a
/// moment is found among what is sixteen times as much at most. Two filters that each let much through and both nothing,
/// as ranges of somebody who has none, cost most.
const MOST_READ: u64 = 10_000;

async fn filled() -> World {
    let url = cluster::shared().create_url();
    let world = World::new(Some(url.parse().unwrap())).await;
    for number in 0..20 {
        world.join(&format!("node-{number}"), number).await;
    }
    world.store.close();
    let config = world.config.clone();
    tokio::task::spawn_blocking(move || fill_history(&config, Filling::Intervals, ROWS).unwrap())
        .await
        .unwrap();
    let schema = url.rsplit_once("search_path%3D").unwrap().1.to_owned();
    cluster::shared().ask(&format!("analyze {schema}.interval"));
    world.reopen(Timestamp::from_micros(0)).await
}

/// Every form there is, each with a page of ten in the middle of the table.
fn forms() -> Vec<HistoryQuery> {
    let middle = filled_from().as_micros() + (FIRST + ROWS / 2) as i64 * 1000;
    let middle = Some(Timestamp::from_micros(middle));
    let plain = || HistoryQuery { limit: Some(Limit::at_most(10)), ..Default::default() };
    let words = [
        plain(),
        HistoryQuery { service: Some("service-9".parse().unwrap()), ..plain() },
        HistoryQuery { holder: Some("ada".parse().unwrap()), ..plain() },
        HistoryQuery { process: Some("worker-7".to_owned()), ..plain() },
        HistoryQuery { unit: Some("unit-7.service".to_owned()), ..plain() },
        HistoryQuery { container: Some("web-7".to_owned()), ..plain() },
        HistoryQuery { account: Some("www-data".to_owned()), ..plain() },
        HistoryQuery { account: Some("nobody-has-this".to_owned()), ..plain() },
        HistoryQuery { kind: Some(IntervalKind::Held), ..plain() },
        HistoryQuery { protocol: Some(gk_model::port::Protocol::Udp), ..plain() },
    ];
    let times = [
        (None, None, None),
        (middle, None, None),
        (None, middle, None),
        (middle, middle, None),
        (None, None, middle),
    ];
    let mut forms = Vec::new();
    for word in &words {
        for (since, until, at) in times {
            for instance in [None, Some("node-7".parse().unwrap())] {
                for port in [None, Some("8000".parse().unwrap()), Some("8003-8007".parse().unwrap())] {
                    for oldest in [None, Some(true)] {
                        let instance = instance.clone();
                        forms.push(HistoryQuery { since, until, at, instance, port, oldest, ..word.clone() });
                    }
                }
            }
        }
    }
    forms
}

/// How many rows of intervals were looked at, those that were thrown away included.
fn rows_read(plan: &[String]) -> u64 {
    let number = |text: &str| {
        text.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<f64>().unwrap()
    };
    let after = |line: &str, word: &str| line.split_once(word).map(|(_, rest)| number(rest));
    let (mut read, mut loops) = (0.0, 1.0);
    for line in plan {
        if line.contains("actual rows=") {
            loops = after(line, "loops=").unwrap();
            if line.contains(" on interval") {
                read += after(line, "actual rows=").unwrap() * loops;
            }
        }
        read += after(line, "Rows Removed by Filter: ").unwrap_or(0.0) * loops;
        read += after(line, "Rows Removed by Index Recheck: ").unwrap_or(0.0) * loops;
    }
    read as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn no_form_of_history_reads_more_than_a_page_needs() {
    let world = filled().await;
    let mut most = 0;
    for form in forms() {
        let asked = form.clone();
        let how = "explain (analyze, costs off, timing off, summary off)";
        let plan = world.store.read(move |reader| reader.explain_history(&asked, how)).await.unwrap();
        let read = rows_read(&plan);
        assert!(
            !plan.iter().any(|line| line.contains("Seq Scan on interval")),
            "{form:?}:\n{}",
            plan.join("\n")
        );
        assert!(read <= MOST_READ, "{read} rows read for {form:?}:\n{}", plan.join("\n"));
        most = most.max(read);
    }
    assert!(most > 10, "the plans are understood");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_servers_one_tells_who_is_offline() {
    let database = cluster::shared().create_database();
    let world = World::new(Some(database.clone())).await;
    let other = super::Server::start(&database).await;
    let agent = world.join_with_agent("web-1", 1, &[]).await;
    // The other server answers its heartbeats from memory from here on.
    let heartbeat = |seconds| (agent.id, agent.credential, agent.heartbeat(&[], at(seconds)), at(seconds));
    let (id, credential, contact, now) = heartbeat(30);
    other.store.contact(id, credential, contact, now).await.unwrap();
    other.store.flush_contacts().await.unwrap();
    let (one, two) = tokio::join!(world.store.mark_offline(at(200)), other.store.mark_offline(at(200)));
    assert_eq!(one.unwrap() + two.unwrap(), 1);
    other.store.flush_contacts().await.unwrap();
    for seconds in [210, 240] {
        let (id, credential, contact, now) = heartbeat(seconds);
        other.store.contact(id, credential, contact, now).await.unwrap();
    }
    let edges: Vec<EventKind> = world.events().await.iter().map(|event| event.kind).collect();
    assert_eq!(edges[edges.len() - 2..], [EventKind::Offline, EventKind::Online]);
    let is_edge = |kind: &&EventKind| matches!(kind, EventKind::Offline | EventKind::Online);
    assert_eq!(edges.iter().filter(is_edge).count(), 2);
}
