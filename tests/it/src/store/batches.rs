//! What a change costs, in syncs and round trips rather than in time: counts hold on every machine.

use gk_model::access::{Actor, Authority, Role};
use gk_model::id::InstanceRef;
use gk_model::reservation::ReserveRequest;
use gk_model::secret::{Secret, SecretHash, SecretKind};
use gk_store::{Error, Tx};

use super::new_world;
use crate::store::world::{World, actor, at, credential, port, refused};

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_writers_share_their_syncs() {
    const WRITERS: u64 = 64;
    const ROUNDS: u64 = 15;
    let world = new_world().await;
    let id = world.join("web-1", 1).await;
    let before = world.store.writer_counters();
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let store = world.store.clone();
            tokio::spawn(async move {
                for _ in 0..ROUNDS {
                    let (ada, request) = (actor("ada", Role::User), ReserveRequest::next_free(id));
                    store.write(move |tx| tx.reserve(&ada, &request, at(0))).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let after = world.store.writer_counters();
    let (commits, answers) = (after.commits - before.commits, after.answers - before.answers);
    assert_eq!(answers, WRITERS * ROUNDS);
    assert!(commits * 8 <= answers, "{commits} syncs for {answers} answers");
}

/// Questions and statements of ten next-free reservations.
async fn cost(world: &World, actor: &Actor, instance: InstanceRef) -> (u64, u64) {
    let before = world.store.metrics().statements;
    let (actor, request) = (actor.clone(), ReserveRequest::next_free(instance));
    let ten = move |tx: &mut gk_store::Tx<'_>| {
        (0..10).try_for_each(|_| tx.reserve(&actor, &request, at(0)).map(drop))
    };
    world.store.write(ten).await.unwrap();
    let after = world.store.metrics().statements;
    (after.asked - before.asked, after.said - before.said)
}

#[tokio::test]
async fn a_next_free_reserve_asks_the_database_nothing_that_it_has_told() {
    let world = new_world().await;
    let id = world.join("web-1", 1).await;
    let ada = actor("ada", Role::User);
    let own = Actor {
        subject: "instance:web-1".parse().unwrap(),
        authority: Authority::Instance(id, credential(1)),
    };
    let by_name = InstanceRef::Name("web-1".parse().unwrap());
    // The first one looks the instance and its ports up.
    let (asked, _) = cost(&world, &ada, id.into()).await;
    assert!((1..=3).contains(&asked), "{asked} questions");
    assert_eq!(
        cost(&world, &ada, id.into()).await,
        (0, 40),
        "event, reservation, claim, interval: each once"
    );
    assert_eq!(cost(&world, &ada, by_name).await.0, 0, "by name");
    assert_eq!(cost(&world, &own, id.into()).await.0, 1, "its credential, once");
    assert_eq!(cost(&world, &own, id.into()).await.0, 0);
    let taken = ReserveRequest { port: Some(port(8000)), ..ReserveRequest::next_free(id) };
    let before = world.store.metrics().statements;
    refused(world.reserve(&ada, &taken, at(0)).await);
    let after = world.store.metrics().statements;
    assert_eq!((after.asked - before.asked, after.said - before.said), (1, 0), "who holds it");
}

/// A secret that is there already is refused by the database alone.
fn create_tokens(tx: &mut Tx<'_>, hashes: &[SecretHash]) -> Result<(), Error> {
    let ada = "ada".parse().unwrap();
    hashes
        .iter()
        .try_for_each(|hash| tx.create_token(*hash, SecretKind::Subject, &ada, Role::User, None, at(0)))
}

#[tokio::test]
async fn a_change_of_as_many_rows_as_travel_together_is_committed() {
    let world = new_world().await;
    let mut next = 0_u32;
    for rows in 4094..=4097 {
        let hashes: Vec<_> = (next..next + rows).map(hash).collect();
        next += rows;
        let last = hashes[hashes.len() - 1];
        world.store.write(move |tx| create_tokens(tx, &hashes)).await.unwrap();
        assert!(world.store.find_actor(last, at(0)).await.unwrap().is_some(), "{rows}");
    }
}

fn hash(number: u32) -> SecretHash {
    let mut random = [0; 32];
    random[..4].copy_from_slice(&number.to_be_bytes());
    Secret::from_random(SecretKind::Subject, &random).hash()
}
