//! Group commit against a commit per request: the same closures, the same durability, one option apart (D1, D2).
//!
//! Each pair is measured back to back, because a disk may change its mind within minutes, and the median of the ratios
//! counts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use gk_model::access::{Actor, Authority, Role};
use gk_model::facts::Facts;
use gk_model::id::InstanceId;
use gk_model::instance::JoinRequest;
use gk_model::port::Port;
use gk_model::reservation::ReserveRequest;
use gk_model::secret::{Secret, SecretKind};
use gk_model::time::Timestamp;
use gk_store::{Error, Store, StoreConfig};
use tokio::runtime::Runtime;

use crate::bed::{Bed, Disk, on_both};
use crate::report::Row;
use crate::stats::{median, rate};
use crate::syncs::SLOW;

/// Pairs of which the median ratio counts.
const PAIRS: usize = 5;

/// How long each side of a pair runs.
const SPAN: Duration = Duration::from_millis(500);

/// Enough that no pool runs out, however fast the disk is.
const INSTANCES: usize = 300;

/// Closures on one instance before the next one has its turn; four of five take a port of its 2,000.
const TURN: usize = 1200;

/// A number outside every pool, which is held on each instance from the beginning.
pub(crate) const TAKEN: u16 = 7000;

pub(crate) fn admin() -> Result<Actor> {
    Ok(Actor::new("bench".parse()?, Authority::Role(Role::Admin)))
}

/// Joins so many instances in one transaction, each with one port taken.
pub(crate) async fn fill(store: &Store, count: usize) -> Result<Vec<InstanceId>> {
    let now = Timestamp::from_clock();
    let actor = admin()?;
    let joined = store.write(move |tx| {
        let join = |number: usize| {
            let mut seed = [0; 32];
            seed[..8].copy_from_slice(&number.to_ne_bytes());
            let request = JoinRequest {
                name: format!("node-{number}").parse().ok(),
                credential_hash: Secret::from_random(SecretKind::Instance, &seed).hash(),
                facts: Facts::default(),
                labels: gk_model::labels::Labels::default(),
                replace: None,
            };
            let id = tx.join(&actor, &request, now)?.0.id;
            tx.reserve(&actor, &by_number(id), now)?;
            Ok(id)
        };
        (0..count).map(join).collect::<Result<Vec<_>, Error>>()
    });
    Ok(joined.await?)
}

fn by_number(instance: InstanceId) -> ReserveRequest {
    ReserveRequest { port: Port::new(TAKEN), ..ReserveRequest::next_free(instance) }
}

/// One or two stores on the same data, and whose turn it is.
struct Side {
    stores: Vec<Store>,
    instances: Arc<Vec<InstanceId>>,
    done: Arc<AtomicUsize>,
    actor: Actor,
}

/// What one side did in its time.
struct Run {
    per_second: f64,
    syncs_each: f64,
    /// Which port was given on which instance.
    given: Vec<(InstanceId, Port)>,
}

impl Side {
    async fn open(bed: &Bed, max_batch: usize, stores: usize) -> Result<Side> {
        let config = bed.config(max_batch)?;
        let mut opened = Vec::new();
        for number in 0..stores {
            // Each server has a directory of its own, also where they share a database.
            let directory = config.directory.join(number.to_string());
            std::fs::create_dir(&directory)?;
            let config = StoreConfig { directory, ..config.clone() };
            opened.push(Store::open(config, Timestamp::from_clock()).await?);
        }
        let instances = Arc::new(fill(&opened[0], INSTANCES).await?);
        Ok(Side { stores: opened, instances, done: Arc::default(), actor: admin()? })
    }

    async fn run(&self, bed: &Bed, clients: usize) -> Result<Run> {
        let before = bed.syncs().count()?;
        let begun = Instant::now();
        let clients = (0..clients).map(|client| {
            let store = self.stores[client % self.stores.len()].clone();
            let (instances, done) = (Arc::clone(&self.instances), Arc::clone(&self.done));
            tokio::spawn(ask(store, instances, done, self.actor.clone(), begun + SPAN))
        });
        let clients: Vec<_> = clients.collect();
        let (mut answers, mut given) = (0, Vec::new());
        for client in clients {
            let (more, ports) = client.await??;
            answers += more;
            given.extend(ports);
        }
        let syncs = bed.syncs().count()? - before;
        Ok(Run {
            per_second: answers as f64 / begun.elapsed().as_secs_f64(),
            syncs_each: syncs as f64 / answers as f64,
            given,
        })
    }

    fn close(&self) {
        self.stores.iter().for_each(Store::close);
    }
}

/// One client: the next one when the last one is answered. Every fifth asks for a port that is taken.
async fn ask(
    store: Store,
    instances: Arc<Vec<InstanceId>>,
    done: Arc<AtomicUsize>,
    actor: Actor,
    until: Instant,
) -> Result<(u64, Vec<(InstanceId, Port)>)> {
    let (mut answers, mut given) = (0, Vec::new());
    while Instant::now() < until {
        let number = done.fetch_add(1, Ordering::Relaxed);
        let instance = instances[number / TURN % instances.len()];
        let is_refused = number.is_multiple_of(5);
        let request = if is_refused { by_number(instance) } else { ReserveRequest::next_free(instance) };
        let (actor, now) = (actor.clone(), Timestamp::from_clock());
        match store.write(move |tx| tx.reserve(&actor, &request, now)).await {
            Ok(made) if !is_refused => given.push((instance, made.first_port)),
            Err(Error::Refused(_)) if is_refused => {}
            Ok(_) => bail!("a port that was taken was given"),
            Err(error) => return Err(error.into()),
        }
        answers += 1;
    }
    Ok((answers, given))
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// D1 and D2 in this process, on a disk that takes 4 ms and on the one there is.
pub(crate) fn rows() -> Result<Vec<Row>> {
    let mut rows = on_both(Disk::Memory, |bed| bed.with_syncs(SLOW, || on(bed, "4 ms a sync")))?;
    rows.extend(on_both(Disk::Real, |bed| on(bed, "this disk"))?);
    Ok(rows)
}

fn on(bed: &Bed, disk: &str) -> Result<Vec<Row>> {
    runtime()?.block_on(async {
        let (slow, fast) = (Side::open(bed, 1, 1).await?, Side::open(bed, StoreConfig::MAX_BATCH, 1).await?);
        let mut rows = Vec::new();
        for clients in [1, 64, 256] {
            rows.extend(pairs(bed, disk, &slow, &fast, clients).await?);
        }
        [&slow, &fast].into_iter().for_each(Side::close);
        Ok(rows)
    })
}

async fn pairs(bed: &Bed, disk: &str, slow: &Side, fast: &Side, clients: usize) -> Result<Vec<Row>> {
    let (mut ratios, mut rates, mut slow_rates, mut syncs) = (vec![], vec![], vec![], vec![]);
    for _ in 0..PAIRS {
        let one_by_one = slow.run(bed, clients).await?;
        let grouped = fast.run(bed, clients).await?;
        ratios.push(grouped.per_second / one_by_one.per_second);
        rates.push(grouped.per_second);
        slow_rates.push(one_by_one.per_second);
        syncs.push(grouped.syncs_each);
    }
    let (ratio, syncs) = (median(ratios), median(syncs));
    let what = format!("{}, {disk}, {clients} clients: group commit against a commit each", bed.name);
    let figure = format!("{ratio:.1}×: {} against {}", rate(median(rates)), rate(median(slow_rates)));
    let least = match clients {
        64 => 8.0,
        256 => 18.0,
        _ => {
            let what = format!("{}, {disk}, 1 client: syncs an answer", bed.name);
            let one = Row::new(what, format!("{syncs:.2}")).with("≤ 1.25", syncs <= 1.25);
            return Ok(vec![Row::new(what_of_one(bed, disk), figure), one]);
        }
    };
    let mut rows = vec![Row::new(what, figure).with(format!("≥ {least:.0}×"), ratio >= least)];
    if clients == 64 {
        let what = format!("{}, {disk}, 64 clients: syncs an answer", bed.name);
        let figure = format!("1/{:.0}", 1.0 / syncs);
        rows.push(Row::new(what, figure).with("≤ 1/20", syncs <= 1.0 / 20.0));
    }
    Ok(rows)
}

fn what_of_one(bed: &Bed, disk: &str) -> String {
    format!("{}, {disk}, 1 client: group commit against a commit each", bed.name)
}

/// Two servers on one PostgreSQL database, each with half of the clients, against one with all of them.
pub(crate) fn two_servers() -> Result<Vec<Row>> {
    let labels = ["4 ms a sync", "no sync"];
    let name = |disk: &str| format!("PostgreSQL, {disk}, 64 clients: two servers together, against one");
    let Some(bed) = Bed::postgres(Disk::Memory)? else {
        return Ok(labels.map(|disk| Row::not_measured(name(disk), "0 duplicates")).to_vec());
    };
    let mut rows = Vec::new();
    for (disk, taking) in [(labels[0], SLOW), (labels[1], Duration::ZERO)] {
        rows.push(bed.with_syncs(taking, || runtime()?.block_on(together(&bed, name(disk))))?);
    }
    Ok(rows)
}

async fn together(bed: &Bed, what: String) -> Result<Row> {
    let one = Side::open(bed, StoreConfig::MAX_BATCH, 1).await?;
    let two = Side::open(bed, StoreConfig::MAX_BATCH, 2).await?;
    let (mut alone, mut both, mut given) = (vec![], vec![], vec![]);
    for _ in 0..PAIRS {
        alone.push(one.run(bed, 64).await?.per_second);
        let run = two.run(bed, 64).await?;
        both.push(run.per_second);
        given.extend(run.given);
    }
    [&one, &two].into_iter().for_each(Side::close);
    let distinct: BTreeSet<_> = given.iter().copied().collect();
    let duplicates = given.len() - distinct.len();
    given.first().context("nothing was given")?;
    let figure = format!(
        "{} against {}; {duplicates} duplicates in {}",
        rate(median(both)),
        rate(median(alone)),
        given.len()
    );
    Ok(Row::new(what, figure).with("0 duplicates", duplicates == 0))
}
