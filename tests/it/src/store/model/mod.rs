//! The store against a reference model: random histories, and the same by many clients at once.
//!
//! `history` makes the histories, `reference`, `sync` and `judge` are the model, `play` and `observe` compare the two
//! after every step, and `clients` lets many go on at once, calling the store or through HTTP (`way`), and explains
//! afterwards, from the event log alone, everything that was answered.
//!
//! `GATEKEEPER_SOAK=1` makes it a hundred times as many. What failed once is tried first, from then on: proptest keeps
//! it in a file beside this one.

mod agents;
mod clients;
mod drift;
mod history;
mod judge;
mod observe;
mod play;
mod reference;
mod sync;
mod way;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner};

use super::new_world;
use crate::store::world::World;
use play::Play;

/// A failure in words.
fn show(fault: impl std::fmt::Display) -> String {
    fault.to_string()
}

/// Runs so many cases, or a hundred times as many in a soak. Those that failed once are in a file, named from the
/// package's directory, where tests run.
fn check<S, F>(cases: u32, max_shrink_iters: u32, failed: &'static str, strategy: &S, run: F)
where
    S: Strategy,
    F: AsyncFn(S::Value) -> Result<(), String>,
{
    let cases = if std::env::var_os("GATEKEEPER_SOAK").is_some() { cases * 100 } else { cases };
    let failure_persistence = Some(Box::new(FileFailurePersistence::Direct(failed)) as Box<_>);
    let config = Config { cases, max_shrink_iters, failure_persistence, ..Config::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let run = |value| runtime.block_on(run(value)).map_err(TestCaseError::fail);
    if let Err(failure) = TestRunner::new(config).run(strategy, run) {
        panic!("{failure}");
    }
}

/// A store, and a second server on its database if that can be shared.
async fn servers() -> Vec<World> {
    let first = new_world().await;
    let database = first.config.database.clone();
    match database.is_some() {
        true => vec![first, World::new(database).await],
        false => vec![first],
    }
}

#[test]
fn any_history_leads_where_the_model_leads() {
    let failed = "src/store/model/failed_histories.txt";
    check(12, 1000, failed, &history::history(1..150), async |history| {
        Play::new(servers().await).await.play(&history).await
    });
}

/// What fails here may not fail again, so there is little to gain from shrinking.
#[test]
fn whatever_many_clients_are_answered_the_log_explains_it() {
    let failed = "src/store/model/failed_loads.txt";
    check(12, 200, failed, &clients::load(), async |load| clients::run(&servers().await, load).await);
}

/// Every form of a request, as programs make it.
#[test]
fn whatever_many_clients_are_answered_over_http_the_log_explains_it() {
    let failed = "src/store/model/failed_http_loads.txt";
    check(4, 50, failed, &clients::load(), async |load| clients::run_through_http(load).await);
}
