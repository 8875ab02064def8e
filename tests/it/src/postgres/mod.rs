//! What only a database that is shared, and can go away, can show.

mod agree;
mod faults;
mod history;
mod lost;
mod proxy;
mod servers;

use gk_model::access::Role;
use gk_model::id::InstanceId;
use gk_model::reservation::{Reservation, ReserveRequest};
use gk_store::{DatabaseUrl, Error, Store, StoreConfig};
use tempfile::TempDir;

use crate::store::world::{actor, at};

/// One of several servers: a store of its own on a database that others use too.
pub(crate) struct Server {
    pub(crate) store: Store,
    _directory: TempDir,
}

impl Server {
    pub(crate) async fn start(database: &DatabaseUrl) -> Server {
        let directory = TempDir::new().unwrap();
        let config =
            StoreConfig { database: Some(database.clone()), ..StoreConfig::embedded(directory.path()) };
        let store = Store::open(config, at(0)).await.unwrap();
        Server { store, _directory: directory }
    }

    pub(crate) async fn reserve(&self, request: &ReserveRequest) -> Result<Reservation, Error> {
        let (ada, request) = (actor("ada", Role::User), request.clone());
        self.store.write(move |tx| tx.reserve(&ada, &request, at(0))).await
    }

    pub(crate) async fn next_free(&self, id: InstanceId) -> u16 {
        self.reserve(&ReserveRequest::next_free(id)).await.unwrap().first_port.get()
    }
}
