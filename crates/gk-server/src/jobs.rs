//! What the server does without being asked.
//!
//! A job ticks until the server stops and then returns. It reports when it begins to fail and when it works again,
//! not at every tick in between.

use std::time::Duration;

use gk_store::Store;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::error::chain;
use crate::serve::stopped;

/// How long an unchanged heartbeat may stay in memory only. A crash loses no more than this of "last contact".
const FLUSH_CONTACTS_EVERY: Duration = Duration::from_secs(2);

/// Writes the heartbeats that are kept in memory to the database. The last flush, at shutdown, is
/// [`run`](crate::run)'s, after the last connection has ended.
pub(crate) async fn flush_contacts(store: Store, mut stop: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(FLUSH_CONTACTS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stopped(&mut stop) => return,
        }
        match store.flush_contacts().await {
            Ok(()) if failing => {
                tracing::info!("heartbeats are stored again");
                failing = false;
            }
            Err(error) if !failing => {
                tracing::warn!(error = chain(&error), "heartbeats are not stored for now");
                failing = true;
            }
            Ok(()) | Err(_) => {}
        }
    }
}
