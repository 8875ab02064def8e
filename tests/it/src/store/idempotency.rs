//! A request under a key takes effect once, and its repetition gets the same answer.

use gk_model::access::{Actor, Authority, Role};
use gk_model::id::InstanceId;
use gk_model::idempotency::{Fingerprint, KEPT_FOR};
use gk_model::instance::JoinRequest;
use gk_model::reservation::{Reservation, ReserveRequest};
use gk_model::time::Timestamp;
use gk_store::{Error, Keyed, Once, Refusal, StoreError};

use crate::store::world::{World, actor, at, credential, join_request, port, refused};

fn keyed(key: &str, request: &ReserveRequest) -> Keyed {
    let fingerprint = Fingerprint::of("POST", "/v1/reservations", request);
    Keyed { key: key.parse().unwrap(), fingerprint }
}

/// The next free port, under a key.
async fn reserve(
    world: &World,
    actor: &Actor,
    key: &str,
    instance: InstanceId,
    now: Timestamp,
) -> Result<Once<Reservation>, Error> {
    reserve_this(world, actor, key, ReserveRequest::next_free(instance), now).await
}

async fn reserve_this(
    world: &World,
    actor: &Actor,
    key: &str,
    request: ReserveRequest,
    now: Timestamp,
) -> Result<Once<Reservation>, Error> {
    let (actor, keyed) = (actor.clone(), keyed(key, &request));
    let work = world
        .store
        .write(move |tx| tx.once(&actor, Some(&keyed), now, |tx| tx.reserve(&actor, &request, now)));
    work.await
}

#[tokio::test]
async fn a_repeated_request_gets_the_same_answer_and_no_second_effect() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let ada = actor("ada", Role::User);
    let first = reserve(&world, &ada, "k", id, at(1)).await.unwrap();
    assert!(!first.replayed);
    let events = world.events().await.len();
    let world = world.reopen(at(50)).await;
    let again = reserve(&world, &ada, "k", id, at(60)).await.unwrap();
    assert_eq!(again, Once { answer: first.answer.clone(), replayed: true }, "also after a restart");
    world.release(&ada, &first.answer, at(70)).await.unwrap();
    let released = reserve(&world, &ada, "k", id, at(80)).await.unwrap();
    assert_eq!(released.answer, first.answer, "as it was then");
    assert_eq!(world.live().await, []);
    assert_eq!(world.events().await.len(), events + 1, "the release, and nothing else");
}

#[tokio::test]
async fn another_request_under_the_same_key_is_refused() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let ada = actor("ada", Role::User);
    reserve(&world, &ada, "k", id, at(1)).await.unwrap();
    let other = ReserveRequest { port: Some(port(8080)), ..ReserveRequest::next_free(id) };
    let refusal = refused(reserve_this(&world, &ada, "k", other, at(2)).await);
    assert!(matches!(&refusal, Refusal::IdempotencyKeyReused(key) if key.as_str() == "k"), "{refusal:?}");
    assert_eq!(world.live().await.len(), 1);
}

#[tokio::test]
async fn a_key_belongs_to_its_subject() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let (ada, bob) = (actor("ada", Role::User), actor("bob", Role::User));
    let first = reserve(&world, &ada, "k", id, at(1)).await.unwrap();
    let other = reserve(&world, &bob, "k", id, at(1)).await.unwrap();
    assert!(!other.replayed);
    assert_eq!(other.answer.holder, bob.subject);
    assert_ne!(other.answer.first_port, first.answer.first_port);
    // Rotating a token changes the secret, not the subject.
    let rotated = actor("ada", Role::Operator);
    assert!(reserve(&world, &rotated, "k", id, at(2)).await.unwrap().replayed);
}

#[tokio::test]
async fn a_key_is_forgotten_after_a_day() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let ada = actor("ada", Role::User);
    let first = reserve(&world, &ada, "k", id, at(0)).await.unwrap().answer;
    let day = KEPT_FOR.as_secs();
    assert_eq!(day, 86_400);
    assert!(reserve(&world, &ada, "k", id, at(day - 1)).await.unwrap().replayed);
    let anew = reserve(&world, &ada, "k", id, at(day)).await.unwrap();
    assert!(!anew.replayed && anew.answer.id != first.id);
    let again = reserve(&world, &ada, "k", id, at(2 * day - 1)).await.unwrap();
    assert_eq!(again, Once { replayed: true, ..anew }, "counted from the newer one");
    let other = ReserveRequest { port: Some(port(8080)), ..ReserveRequest::next_free(id) };
    assert!(!reserve_this(&world, &ada, "k", other, at(2 * day)).await.unwrap().replayed);
}

#[tokio::test]
async fn a_refusal_is_not_kept() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let (ada, bob) = (actor("ada", Role::User), actor("bob", Role::User));
    let held = world.reserve_port(&bob, id, 8080).await.unwrap();
    let wanted = ReserveRequest { port: Some(port(8080)), ..ReserveRequest::next_free(id) };
    let refusal = refused(reserve_this(&world, &ada, "k", wanted.clone(), at(1)).await);
    assert!(matches!(refusal, Refusal::PortReserved { .. }), "{refusal:?}");
    world.release(&bob, &held, at(2)).await.unwrap();
    let made = reserve_this(&world, &ada, "k", wanted, at(3)).await.unwrap();
    assert!(!made.replayed && made.answer.first_port == port(8080));
}

#[tokio::test]
async fn the_key_and_the_effect_are_one_transaction() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let ada = actor("ada", Role::User);
    let request = ReserveRequest::next_free(id);
    let failing = {
        let (ada, request, keyed) = (ada.clone(), request.clone(), keyed("k", &request));
        world.store.write(move |tx| -> Result<(), Error> {
            tx.once(&ada, Some(&keyed), at(1), |tx| tx.reserve(&ada, &request, at(1)))?;
            Err(StoreError::Database("on purpose, after both".to_owned()).into())
        })
    };
    assert!(matches!(failing.await, Err(Error::Failed(_))));
    assert_eq!(world.live().await, []);
    let made = reserve(&world, &ada, "k", id, at(2)).await.unwrap();
    assert!(!made.replayed, "the key went with the effect");
    assert_eq!(world.live().await, [made.answer]);
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_who_come_at_once_share_one_effect() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let ada = actor("ada", Role::User);
    for round in 0..20 {
        let key = format!("k-{round}");
        let callers: Vec<_> = (0..16)
            .map(|_| {
                let request = ReserveRequest::next_free(id);
                let (ada, keyed) = (ada.clone(), keyed(&key, &request));
                let write = move |tx: &mut gk_store::Tx<'_>| {
                    tx.once(&ada, Some(&keyed), at(1), |tx| tx.reserve(&ada, &request, at(1)))
                };
                let store = world.store.clone();
                tokio::spawn(async move { store.write(write).await })
            })
            .collect();
        let mut answers = Vec::new();
        for caller in callers {
            answers.push(caller.await.unwrap().unwrap());
        }
        assert!(answers.iter().all(|once| once.answer == answers[0].answer));
        assert_eq!(answers.iter().filter(|once| !once.replayed).count(), 1);
    }
    assert_eq!(world.live().await.len(), 20);
}

#[tokio::test]
async fn a_replaced_credential_replays_nothing() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let own = Actor::new("instance:web-1".parse().unwrap(), Authority::Instance(id, credential(1)));
    reserve(&world, &own, "k", id, at(1)).await.unwrap();
    let replace = JoinRequest { replace: Some(id.into()), ..join_request("web-1", 2) };
    let operator = actor("root", Role::Operator);
    world.store.write(move |tx| tx.join(&operator, &replace, at(2))).await.unwrap();
    let refusal = refused(reserve(&world, &own, "k", id, at(3)).await);
    assert!(matches!(refusal, Refusal::CredentialReplaced), "{refusal:?}");
    let rotated = Actor { authority: Authority::Instance(id, credential(2)), ..own };
    assert!(reserve(&world, &rotated, "k", id, at(4)).await.unwrap().replayed);
}
