//! Every test of the store. This file is two modules, `sqlite` and `postgres`, and its name as a module says on which
//! database its tests run.

mod allocation;
mod asked;
mod backup;
mod batches;
mod contacts;
mod ensure;
mod fleet;
mod gaps;
mod groups;
mod history;
mod idempotency;
mod instances;
mod leases;
mod model;
mod prune;
mod ranges;
mod sync;
mod verify;

use gk_store::DatabaseUrl;

use crate::cluster;
use crate::store::world::World;

/// Nothing for SQLite, an empty database for PostgreSQL.
fn new_database() -> Option<DatabaseUrl> {
    module_path!().ends_with("::postgres").then(|| cluster::shared().create_database())
}

/// An empty store on this module's database.
async fn new_world() -> World {
    World::new(new_database()).await
}
