//! What needs a look behind the API: expectations, which nobody may set yet, and databases of older versions.

use gk_model::drift::{Drift, DriftKind};
use gk_model::expect::Fit;
use gk_model::history::EventKind;
use gk_model::id::ReservationId;
use gk_model::port::Port;
use gk_model::query::{DriftQuery, EventQuery};
use gk_model::reservation::{Reservation, ReserveRequest};
use gk_model::status::Status;
use tempfile::TempDir;

use crate::driver::{Access, Connection, Location};
use crate::samples::{at, damage, filled, join, reserve};
use crate::value::values;
use crate::{Store, StoreConfig, migrate};

async fn open(directory: &TempDir) -> Store {
    Store::open(StoreConfig::embedded(directory.path()), at(100)).await.unwrap()
}

async fn drift(store: &Store) -> Vec<Drift> {
    let query = DriftQuery::default();
    store.read(move |reader| reader.list_drift(&query, at(100))).await.unwrap().items
}

async fn conflicts(store: &Store) -> Vec<(EventKind, String)> {
    let query = EventQuery::default();
    let events = store.read(move |reader| reader.list_events(&query)).await.unwrap().items.into_iter();
    let of_conflicts = |kind| matches!(kind, EventKind::ConflictBegan | EventKind::ConflictEnded);
    events.filter(|event| of_conflicts(event.kind)).map(|event| (event.kind, event.message)).collect()
}

/// As whoever changes an expectation does it.
async fn expect(store: &Store, id: ReservationId, text: &'static str) -> Reservation {
    let change = move |tx: &mut crate::Tx<'_>| {
        tx.later("update reservation set expect = $2 where id = $1", values![id, text])?;
        let held = tx.get_reservation(id)?;
        tx.settle_reservation(&held, held.ports(), at(50))?;
        Ok(held)
    };
    store.write(change).await.unwrap()
}

#[tokio::test]
async fn a_changed_expectation_begins_and_ends_conflicts() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory).await;
    let id = join(&store, "web-1", 1).await;
    let adopt = ReserveRequest { port: Port::new(80), adopt: true, ..ReserveRequest::next_free(id) };
    let held = reserve(&store, adopt, at(10)).await;
    assert_eq!(drift(&store).await.len(), 1, "22 is left");
    expect(&store, held.id, r#"{"address":"127.0.0.1"}"#).await;
    expect(&store, held.id, r#"{"address":"::1"}"#).await;
    let found = drift(&store).await;
    assert_eq!(
        found.iter().map(|it| (it.kind, it.fit)).collect::<Vec<_>>(),
        [(DriftKind::Unreserved, None), (DriftKind::Conflict, Some(Fit::Differs))]
    );
    let began = "80/tcp is reserved on web-1 by ada expecting address=127.0.0.1, and a process the agent may not see \
                 listens there";
    assert_eq!(conflicts(&store).await, [(EventKind::ConflictBegan, began.to_owned())], "once");
    expect(&store, held.id, r#"{"address":"0.0.0.0"}"#).await;
    let ended = "80/tcp is no longer in conflict: who listens there fits".to_owned();
    assert_eq!(conflicts(&store).await.pop(), Some((EventKind::ConflictEnded, ended)));
    // What the agent may not see is held against nobody.
    expect(&store, held.id, r#"{"process":"nginx"}"#).await;
    assert_eq!((drift(&store).await.len(), conflicts(&store).await.len()), (1, 2));
    assert_eq!(store.verify().await.unwrap().problems(), Vec::<String>::new());
}

async fn status(store: &Store) -> Status {
    store.read(|reader| reader.get_status(at(100))).await.unwrap()
}

#[tokio::test]
async fn what_an_older_version_did_not_keep_is_kept_after_the_first_start() {
    // It has a runtime of its own.
    let directory = tokio::task::spawn_blocking(filled).await.unwrap();
    let store = open(&directory).await;
    let (before, shown) = (status(&store).await, drift(&store).await);
    assert_eq!(before.drift.unreserved, 4);
    store.close();
    drop(store);
    damage(
        directory.path(),
        "delete from drift; update reservation set idle_since = null;
         update event_seq set instances = 0, reservations = 0, leases = 0, listeners = 0, unreserved = 0;
         insert into sweep (id, after_instance, recount) values (0, '', 1)",
    );
    let store = open(&directory).await;
    assert_eq!(status(&store).await, before);
    let kept = |drift: &Drift| (drift.kind, drift.instance.clone(), drift.first_port);
    assert!(drift(&store).await.iter().map(kept).eq(shown.iter().map(kept)));
    assert_eq!(store.verify().await.unwrap().problems(), Vec::<String>::new());
}

#[test]
fn a_migrated_database_is_to_be_settled_and_a_new_one_is_not() {
    for (insert, expected) in [("", 0), (INSTANCE, 1)] {
        let directory = TempDir::new().unwrap();
        let mut old =
            Connection::open(&Location::of(&StoreConfig::embedded(directory.path())), Access::Write).unwrap();
        old.begin(Access::Write).unwrap();
        migrate::create(&mut old, 10, at(0)).unwrap();
        old.script(insert).unwrap();
        old.commit().unwrap();
        migrate::migrate(&mut old, at(0)).unwrap();
        assert_eq!(old.query("select id from sweep where recount = 1", &[]).unwrap().len(), expected);
    }
}

const INSTANCE: &str = "insert into instance (id, name, name_key, subject, facts, joined_at, version, session, sequence, \
                        digest, complete, occupied) values ('x', 'web-1', 'web-1', 'x', '{}', 0, 1, 0, 0, '', 0, '[]')";
