//! Every test of the store. This file is two modules, `sqlite` and `postgres`, and its name as a module says on which
//! database its tests run.

mod allocation;
mod asked;
mod backup;
mod batches;
mod contacts;
mod drift;
mod ensure;
mod fleet;
mod forms;
mod gaps;
mod groups;
mod history;
mod idempotency;
mod instances;
mod leases;
mod limits;
mod model;
mod pools;
mod prune;
mod ranges;
mod renewals;
mod sync;
mod targets;
mod verify;

use gk_store::DatabaseUrl;

use crate::cluster;
use crate::store::world::World;

/// Nothing for SQLite, an empty database for PostgreSQL.
fn new_database() -> Option<DatabaseUrl> {
    new_database_url().map(|url| url.parse().unwrap())
}

/// The same as text, for programs.
fn new_database_url() -> Option<String> {
    module_path!().ends_with("::postgres").then(|| cluster::shared().create_url())
}

/// An empty store on this module's database.
async fn new_world() -> World {
    World::new(new_database()).await
}
