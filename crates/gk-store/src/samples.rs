//! A small database with a bit of everything, for the tests of what reads all of it.

use std::path::Path;

use gk_model::access::{Actor, Authority, Role};
use gk_model::contact::{Contact, ContactBody, Family, Part, Session};
use gk_model::facts::Facts;
use gk_model::id::InstanceId;
use gk_model::instance::JoinRequest;
use gk_model::listener::{Digest, Listener, ListenerKey, Netns};
use gk_model::port::{Port, Protocol};
use gk_model::reservation::ReserveRequest;
use gk_model::secret::{Secret, SecretKind};
use gk_model::time::Timestamp;
use tempfile::TempDir;
use uuid::Uuid;

use crate::{Store, StoreConfig};

pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros((1_700_000_000 + seconds) * 1_000_000)
}

pub(crate) fn ada() -> Actor {
    Actor::new("ada".parse().unwrap(), Authority::Role(Role::Admin))
}

fn listener(port: u16) -> Listener {
    let key = ListenerKey {
        netns: Netns::Home,
        protocol: Protocol::Tcp,
        port: Port::new(port).unwrap(),
        address: "0.0.0.0".parse().unwrap(),
        interface: None,
        v6only: false,
    };
    Listener {
        key,
        account: None,
        owners: Default::default(),
        more_owners: 0,
        unit: None,
        container: None,
        first_seen_at: at(1),
        last_seen_at: at(1),
    }
}

fn report(listeners: &[Listener]) -> Contact {
    let parts = Protocol::ALL.iter().flat_map(|protocol| {
        Family::ALL.iter().map(|family| Part { netns: Netns::Home, protocol: *protocol, family: *family })
    });
    Contact {
        session: Session(0),
        opening: Some(Uuid::from_u128(1)),
        sequence: 1,
        sent_at: at(5),
        digest: Digest::of(listeners),
        agent_version: "test".into(),
        body: ContactBody::Report {
            seen_at: None,
            covered: parts.collect(),
            listeners: listeners.to_vec(),
            closed: vec![],
            occupied: vec![],
            churned: vec![],
            piece: gk_model::contact::Piece::default(),
            namespaces: None,
        },
    }
}

/// Joins an instance whose agent reports two listeners, seen some seconds before they are recorded.
pub(crate) async fn join(store: &Store, name: &str, seed: u8) -> InstanceId {
    let credential_hash = Secret::from_random(SecretKind::Instance, &[seed; 32]).hash();
    let name = Some(name.parse().unwrap());
    let request = JoinRequest {
        name,
        credential_hash,
        facts: Facts::default(),
        labels: gk_model::labels::Labels::default(),
        replace: None,
    };
    let joined = store.write(move |tx| tx.join(&ada(), &request, at(0))).await.unwrap();
    let id = joined.0.id;
    store.contact(id, credential_hash, report(&[listener(22), listener(80)]), at(5)).await.unwrap();
    id
}

pub(crate) async fn reserve(
    store: &Store,
    request: ReserveRequest,
    now: Timestamp,
) -> gk_model::reservation::Reservation {
    store.write(move |tx| tx.reserve(&ada(), &request, now)).await.unwrap()
}

/// Two instances that hold 8000 and 8001 each; the first has held and released 8001 before.
async fn fill(store: &Store) {
    let by_number = |id, port| ReserveRequest { port: Port::new(port), ..ReserveRequest::next_free(id) };
    for (name, seed) in [("web-1", 1), ("web-2", 2)] {
        let id = join(store, name, seed).await;
        let first = reserve(store, by_number(id, 8001), at(10)).await.id;
        if seed == 1 {
            store.write(move |tx| tx.release(&ada(), first, None, false, None, at(20))).await.unwrap();
            reserve(store, by_number(id, 8001), at(30)).await;
        }
        reserve(store, by_number(id, 8000), at(30)).await;
    }
}

pub(crate) fn filled() -> TempDir {
    let directory = TempDir::new().unwrap();
    let store = Store::open_here(&StoreConfig::embedded(directory.path()), at(0)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(fill(&store));
    store.close();
    directory
}

/// Changes tables behind the store's back.
pub(crate) fn damage(directory: &Path, sql: &str) {
    let connection = rusqlite::Connection::open(directory.join("gatekeeper.db")).unwrap();
    connection.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_DEFENSIVE, false).unwrap();
    connection.execute_batch(sql).unwrap();
    connection.close().unwrap();
}
