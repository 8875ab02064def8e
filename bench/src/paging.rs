//! Pages of a long history: the last against the first (R1).

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use gk_model::history::{Event, History, Interval, IntervalKind};
use gk_model::query::{EventQuery, HistoryQuery, Limit, Page};
use gk_model::time::Timestamp;
use gk_store::{Error, Filling, Reader, Store, StoreConfig, fill_history, filled_from};
use serde::Serialize;

use crate::bed::{Bed, Disk};
use crate::group::fill;
use crate::report::Row;
use crate::server::Server;
use crate::stats::{microseconds, milliseconds, quantile};
use crate::watching::{self, allow_files};

/// The filler numbers its rows from here.
const FIRST: u64 = 1_000_001;

const INSTANCES: usize = 100;

const ROUNDS: usize = 31;

/// Below what people notice.
const FORM: &str = "≤ 25 ms";

const RATIO: &str = "≤ 1.3×";

/// R1 at so many events and as many intervals, in a file.
pub(crate) fn sqlite_rows(count: u64) -> Result<Vec<Row>> {
    rows(&Bed::sqlite(Disk::Real)?, count)
}

/// The same in a server.
pub(crate) fn postgres_rows(count: u64) -> Result<Vec<Row>> {
    match Bed::postgres(Disk::Real)? {
        Some(bed) => rows(&bed, count),
        None => Ok(vec![Row::not_measured("PostgreSQL, last page against the first", RATIO)]),
    }
}

fn rows(bed: &Bed, count: u64) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let data = bed.create_data()?;
    let config = data.config(StoreConfig::MAX_BATCH)?;
    let store = runtime.block_on(Store::open(config.clone(), Timestamp::from_clock()))?;
    let instances = runtime.block_on(fill(&store, INSTANCES))?;
    store.close();
    drop(store);
    let begun = Instant::now();
    write(bed, &config, count)?;
    eprintln!("{}: {count} events and intervals in {:.0} s", bed.name, begun.elapsed().as_secs_f64());
    let store = runtime.block_on(Store::open(config, Timestamp::from_clock()))?;
    let rows = runtime.block_on(measure(bed, &store, count));
    store.close();
    drop(store);
    let mut rows = rows?;
    allow_files()?;
    let server = Server::start_on(bed, &data)?;
    let whose = format!("{}, {} M events", bed.name, count / 1_000_000);
    rows.extend(watching::rows_of(&whose, &server, &instances, 1_000, 500)?);
    Ok(rows)
}

/// One after the other into a file, both at once into a server.
fn write(bed: &Bed, config: &StoreConfig, count: u64) -> Result<()> {
    let Some(cluster) = &bed.cluster else {
        fill_history(config, Filling::Events, count)?;
        return Ok(fill_history(config, Filling::Intervals, count)?);
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| fill_history(config, Filling::Intervals, count));
        fill_history(config, Filling::Events, count)?;
        anyhow::Ok(other.join().ok().context("the filler does not panic")??)
    })?;
    // As its own housekeeping would, in time.
    cluster.psql("vacuum analyze")
}

/// The two ends of one list, as pages of 1,000.
struct Ends<Q> {
    what: &'static str,
    first: Q,
    last: Q,
}

async fn measure(bed: &Bed, store: &Store, count: u64) -> Result<Vec<Row>> {
    let name = |limit: u32| EventQuery { limit: Some(Limit::at_most(limit)), ..Default::default() };
    let instance = Some("node-7".parse()?);
    let end = FIRST + count;
    let log = store.log().await?;
    let events = |before: u64, instance| {
        let cursor = Some(log.cursor(before - 1).to_string());
        EventQuery { cursor, instance, ..name(1000) }
    };
    let history = |before: u64, instance| HistoryQuery {
        cursor: Some(format!("{}~{before}", before * 1000 + filled_from().as_micros() as u64)),
        instance,
        limit: Some(Limit::MAX),
        ..Default::default()
    };
    // Of one instance, every hundredth row.
    let each = INSTANCES as u64;
    let of_events = [
        Ends { what: "events", first: events(FIRST, None), last: events(end - 1000, None) },
        Ends {
            what: "events of one instance",
            first: events(FIRST, instance.clone()),
            last: events(end - 1000 * each, instance.clone()),
        },
    ];
    let of_history = [
        Ends { what: "history", first: history(end, None), last: history(FIRST + 1000, None) },
        Ends {
            what: "history of one instance",
            first: history(end, instance.clone()),
            last: history(FIRST + 1000 * each, instance),
        },
    ];
    let mut rows = Vec::new();
    for ends in of_events {
        rows.extend(time_ends(bed, store, count, ends, list_events).await?);
    }
    for ends in of_history {
        rows.extend(time_ends(bed, store, count, ends, list_history).await?);
    }
    for (what, query) in forms(count)? {
        rows.push(time_form(bed, store, count, what, query).await?);
    }
    Ok(rows)
}

/// How else history is asked for, of ports and processes that lasted for seconds: each must be as quick as a page from the end, however much lies before and after.
fn forms(count: u64) -> Result<Vec<(&'static str, HistoryQuery)>> {
    let plain = HistoryQuery::default;
    let middle = Timestamp::from_micros(filled_from().as_micros() + ((FIRST + count / 2) * 1000) as i64);
    Ok(vec![
        ("history at a moment", HistoryQuery { at: Some(middle), ..plain() }),
        ("history of one instance at a moment", {
            HistoryQuery { at: Some(middle), instance: Some("node-7".parse()?), ..plain() }
        }),
        ("history since a moment", HistoryQuery { since: Some(middle), until: Some(middle), ..plain() }),
        ("history of one port everywhere", HistoryQuery { port: Some("8120".parse()?), ..plain() }),
        ("history of one port at a moment", {
            HistoryQuery { port: Some("8120".parse()?), at: Some(middle), ..plain() }
        }),
        ("history of a service", HistoryQuery { service: Some("service-7".parse()?), ..plain() }),
        ("history of a process", HistoryQuery { process: Some("worker-10".to_owned()), ..plain() }),
        ("history of a process at a moment", {
            HistoryQuery { process: Some("worker-10".to_owned()), at: Some(middle), ..plain() }
        }),
        ("history of a unit", HistoryQuery { unit: Some("unit-7.service".to_owned()), ..plain() }),
        ("history of a container", HistoryQuery { container: Some("web-7".to_owned()), ..plain() }),
        ("history of an account", HistoryQuery { account: Some("www-data".to_owned()), ..plain() }),
        ("the first use of a port", {
            let kind = Some(IntervalKind::Listened);
            let limit = Some(Limit::at_most(1));
            HistoryQuery { port: Some("8120".parse()?), kind, limit, oldest: Some(true), ..plain() }
        }),
    ])
}

async fn time_form(bed: &Bed, store: &Store, count: u64, what: &str, query: HistoryQuery) -> Result<Row> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let (time, page) = time(store, query.clone(), list_history).await?;
        ensure!(!page.items.is_empty(), "{what}: nothing found");
        times.push(time);
    }
    let median = quantile(&mut times, 0.5);
    let what = format!("{}, {what} of {count}", bed.name);
    Ok(Row::new(what, milliseconds(median)).with(FORM, median <= 0.025))
}

// The methods themselves are not general enough to be passed.
fn list_events(reader: &mut Reader<'_>, query: &EventQuery) -> Result<Page<Event>, Error> {
    reader.list_events(query).map(Page::from)
}

fn list_history(reader: &mut Reader<'_>, query: &HistoryQuery) -> Result<Page<Interval>, Error> {
    let History { items, next, .. } = reader.list_history(query)?;
    Ok(Page { items, next })
}

type List<Q, T> = fn(&mut Reader<'_>, &Q) -> Result<Page<T>, Error>;

async fn time_ends<Q, T>(
    bed: &Bed,
    store: &Store,
    count: u64,
    ends: Ends<Q>,
    list: List<Q, T>,
) -> Result<Vec<Row>>
where
    Q: Clone + Send + 'static,
    T: Serialize + Send + 'static,
{
    let (mut first, mut last, mut json) = (vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let (time, page) = time(store, ends.first.clone(), list).await?;
        first.push(time);
        let begun = Instant::now();
        ensure!(
            serde_json::to_vec(&page)?.len() > 100_000 && page.items.len() == 1000,
            "{}: no page",
            ends.what
        );
        json.push(begun.elapsed());
        let (time, page) = self::time(store, ends.last.clone(), list).await?;
        ensure!(page.items.len() == 1000, "{}: no last page", ends.what);
        last.push(time);
    }
    let (first, last, json) = (quantile(&mut first, 0.5), quantile(&mut last, 0.5), quantile(&mut json, 0.5));
    let ratio = last / first;
    let what = format!("{}, {} of {count}: last page against the first", bed.name, ends.what);
    let figure = format!("{ratio:.2}×: {} against {}", milliseconds(last), milliseconds(first));
    let page = Row::new(what, figure).with(RATIO, ratio <= 1.3);
    if ends.what != "events" {
        return Ok(vec![page]);
    }
    let what = format!("{}, a row of a page of 1,000 events", bed.name);
    let figure = format!("{} read, {} as JSON", microseconds(first / 1e3), microseconds(json / 1e3));
    Ok(vec![page, Row::new(what, figure).with("≤ 0.6 µs for both", (first + json) / 1e3 <= 0.6e-6)])
}

async fn time<Q, T>(store: &Store, query: Q, list: List<Q, T>) -> Result<(Duration, Page<T>)>
where
    Q: Send + 'static,
    T: Send + 'static,
{
    let timed = store.read(move |reader| {
        let begun = Instant::now();
        let page = list(reader, &query)?;
        Ok((begun.elapsed(), page))
    });
    Ok(timed.await?)
}
