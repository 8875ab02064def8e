//! Every test of the store. This file is two modules, `sqlite` and `postgres`, and its name as a module says on which
//! database its tests run.

mod allocation;
mod contacts;
mod history;
mod idempotency;
mod instances;

use crate::cluster;
use crate::store::world::World;

/// An empty store on this module's database.
async fn new_world() -> World {
    let on_postgres = module_path!().ends_with("::postgres");
    World::new(on_postgres.then(|| cluster::shared().create_database())).await
}
