//! What one allocation costs where almost nothing is free, against an empty pool (D3).
//!
//! Measured inside the writer, without the commit: a closure makes two reservations, times both, and then fails, so that
//! all of it is rolled back and the next one finds the same. What is cached is loaded before; the two take turns at
//! being first.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use gk_model::access::Actor;
use gk_model::id::InstanceId;
use gk_model::port::{Port, Protocol};
use gk_model::reservation::{PortCount, ReserveRequest, Scope};
use gk_model::time::Timestamp;
use gk_store::{Error, Refusal, Store, StoreConfig, Tx};

use crate::bed::{Bed, Disk, on_both};
use crate::group::{admin, fill};
use crate::report::Row;
use crate::stats::{microseconds, quantile};

const ROUNDS: usize = 200;

/// The built-in pool.
const FIRST: u16 = 8000;
const SIZE: u16 = 2000;

/// D3, on both databases.
pub(crate) fn rows() -> Result<Vec<Row>> {
    on_both(Disk::Memory, |bed| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(on(bed))
    })
}

/// One request where nothing is taken, and the same where almost all is.
struct Case {
    what: &'static str,
    empty: ReserveRequest,
    full: ReserveRequest,
}

async fn on(bed: &Bed) -> Result<Vec<Row>> {
    let store = bed.open(StoreConfig::MAX_BATCH).await?;
    let instances = fill(&store, 4).await?;
    let (empty, full, nearly, other) = (instances[0], instances[1], instances[2], instances[3]);
    let taken = [by_number(full, FIRST, SIZE - 1)?, fleet(by_number(other, FIRST, SIZE - 1)?)];
    let mut requests = taken.to_vec();
    // One free port after each fifteen, and the only sixteen in a row at the end.
    for first in (FIRST..FIRST + SIZE - 16).step_by(16) {
        requests.push(by_number(nearly, first, 15)?);
    }
    let (actor, now) = (admin()?, Timestamp::from_clock());
    let make = move |tx: &mut Tx<'_>| -> Result<(), Error> {
        requests.iter().try_for_each(|request| tx.reserve(&actor, request, now).map(drop))
    };
    store.write(make).await?;
    let sixteen = |instance| next(instance, 16);
    let cases = [
        Case { what: "1 port of 2,000, the last one free", empty: next(empty, 1)?, full: next(full, 1)? },
        Case { what: "16 in a row, the last ones free", empty: sixteen(empty)?, full: sixteen(nearly)? },
        // Where it is full everybody's UDP is; TCP has a map of its own.
        Case {
            what: "1 port fleet-wide, the last one free",
            empty: ReserveRequest { scope: Scope::Fleet, ..next(empty, 1)? },
            full: fleet(next(empty, 1)?),
        },
    ];
    let mut rows = Vec::new();
    for case in cases {
        rows.push(measure(bed, &store, case, other).await?);
    }
    store.close();
    Ok(rows)
}

fn next(instance: InstanceId, count: i64) -> Result<ReserveRequest> {
    Ok(ReserveRequest { count: PortCount::try_from(count)?, ..ReserveRequest::next_free(instance) })
}

fn by_number(instance: InstanceId, first: u16, count: u16) -> Result<ReserveRequest> {
    Ok(ReserveRequest { port: Port::new(first), ..next(instance, count.into())? })
}

fn fleet(request: ReserveRequest) -> ReserveRequest {
    ReserveRequest { scope: Scope::Fleet, protocol: Protocol::Udp.into(), ..request }
}

type Times = Arc<Mutex<Vec<(Duration, Duration)>>>;

async fn measure(bed: &Bed, store: &Store, case: Case, other: InstanceId) -> Result<Row> {
    let times = Times::default();
    let (actor, now) = (admin()?, Timestamp::from_clock());
    let Case { what, empty, full } = case;
    let (empty, full) = (Arc::new(empty), Arc::new(full));
    for round in 0..ROUNDS {
        let (times, actor) = (Arc::clone(&times), actor.clone());
        let (empty, full) = (Arc::clone(&empty), Arc::clone(&full));
        let timed = store.write(move |tx| {
            warm(tx, &actor, &empty, now)?;
            warm(tx, &actor, &full, now)?;
            tx.reserve(&actor, &ReserveRequest::next_free(other), now)?;
            let first_empty = round % 2 == 0;
            let (first, second) = if first_empty { (&empty, &full) } else { (&full, &empty) };
            let (first, second) = (time(tx, &actor, first, now)?, time(tx, &actor, second, now)?);
            let pair = if first_empty { (first, second) } else { (second, first) };
            times.lock().unwrap_or_else(PoisonError::into_inner).push(pair);
            Err::<(), Error>(Refusal::BadCursor.into())
        });
        // It always fails; that is the rollback.
        let _rolled_back = timed.await;
    }
    let times = times.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut empty, mut full): (Vec<_>, Vec<_>) = times.iter().copied().unzip();
    anyhow::ensure!(full.len() >= ROUNDS, "{what}: a reservation was refused");
    let (empty, full) = (quantile(&mut empty, 0.5), quantile(&mut full, 0.5));
    let ratio = full / empty;
    let figure = format!("{ratio:.2}×: {} against {}", microseconds(full), microseconds(empty));
    Ok(Row::new(format!("{}, {what}", bed.name), figure).with("≤ 2×", ratio <= 2.0))
}

/// Loads every map that the request needs: by the same for more ports than there are, which is refused.
fn warm(tx: &mut Tx<'_>, actor: &Actor, request: &ReserveRequest, now: Timestamp) -> Result<(), Error> {
    match tx.reserve(actor, &ReserveRequest { count: PortCount::MAX, ..request.clone() }, now) {
        Err(Error::Refused(_)) => Ok(()),
        other => other.map(drop),
    }
}

fn time(tx: &mut Tx<'_>, actor: &Actor, request: &ReserveRequest, now: Timestamp) -> Result<Duration, Error> {
    let begun = Instant::now();
    tx.reserve(actor, request, now)?;
    Ok(begun.elapsed())
}
