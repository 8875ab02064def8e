//! What a change costs, in syncs and round trips rather than in time: counts hold on every machine.

use gk_model::access::{Actor, Authority, Role};
use gk_model::id::InstanceRef;
use gk_model::idempotency::Fingerprint;
use gk_model::reservation::ReserveRequest;
use gk_model::secret::{Secret, SecretHash, SecretKind};
use gk_model::token::TokenRequest;
use gk_store::{Error, Keyed, StoreError, Tx};

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
    let own = Actor::new("instance:web-1".parse().unwrap(), Authority::Instance(id, credential(1)));
    let by_name = InstanceRef::Name("web-1".parse().unwrap());
    // The first one looks the instance, its ports and the pools up.
    let (asked, _) = cost(&world, &ada, id.into()).await;
    assert!((1..=4).contains(&asked), "{asked} questions");
    assert_eq!(
        cost(&world, &ada, id.into()).await,
        (0, 42),
        "event, reservation, claim, interval: each once; and for all of them, how full the pool is there and altogether"
    );
    assert_eq!(cost(&world, &ada, by_name).await.0, 0, "by name");
    assert_eq!(cost(&world, &own, id.into()).await.0, 1, "its credential, once");
    assert_eq!(cost(&world, &own, id.into()).await.0, 0);
    let taken = ReserveRequest { port: Some(port(8000)), ..ReserveRequest::next_free(id) };
    let before = world.store.metrics().statements;
    refused(world.reserve(&ada, &taken, at(0)).await);
    let after = world.store.metrics().statements;
    assert_eq!((after.asked - before.asked, after.said - before.said), (0, 0), "who holds it, a reader asks");
}

#[tokio::test]
async fn rows_that_travel_together_arrive_as_each_was_said() {
    let world = new_world().await;
    let id = world.join("web-1", 1).await;
    let mut said = Vec::new();
    for rows in [1, 2, 3, 127, 128, 129, 300] {
        let ada = actor("ada", Role::User);
        // Each of these columns is empty in some rows, and all of them in the only row of the first round.
        let request = move |number: u64| ReserveRequest {
            note: (number % 2 == 1).then(|| format!("Grüße aus Köln № {number} 🦀").parse().unwrap()),
            service: (number % 3 == 1).then(|| "web".parse().unwrap()),
            ttl_seconds: (number % 5 == 1).then(|| i64::try_from(60 + number).unwrap().try_into().unwrap()),
            ..ReserveRequest::next_free(id)
        };
        let reserve = move |tx: &mut Tx<'_>| {
            (0..rows)
                .map(|number| tx.reserve(&ada, &request(number), at(number)))
                .collect::<Result<Vec<_>, _>>()
        };
        said.extend(world.store.write(reserve).await.unwrap());
    }
    assert_eq!(world.live().await, said);
    assert_eq!(world.store.verify().await.unwrap().problems(), Vec::<String>::new());
    assert_eq!(world.store.writer_counters().replays, 0);
}

/// A secret that is there already is refused by the database alone.
fn create_tokens(tx: &mut Tx<'_>, hashes: &[SecretHash]) -> Result<(), Error> {
    let wanted = TokenRequest::for_subject("ada".parse().unwrap(), Role::User);
    hashes
        .iter()
        .try_for_each(|hash| tx.create_token(&actor("root", Role::Admin), *hash, &wanted, at(0)).map(drop))
}

#[tokio::test]
async fn a_row_that_is_there_already_undoes_nothing_but_the_change_that_said_it() {
    const CHANGES: u8 = 20;
    let world = new_world().await;
    let busy = world.occupy().await;
    let changes: Vec<_> = (0..CHANGES)
        .map(|number| {
            let (store, own) = (world.store.clone(), credential(2 * number));
            // The one in the middle says its second row twice.
            let other = credential(2 * number + u8::from(number != CHANGES / 2));
            tokio::spawn(async move { store.write(move |tx| create_tokens(tx, &[own, other])).await })
        })
        .collect();
    busy.free_when(u64::from(CHANGES)).await;
    for (number, change) in (0..CHANGES).zip(changes) {
        let (answer, spoilt) = (change.await.unwrap(), number == CHANGES / 2);
        assert_eq!(
            matches!(answer, Err(Error::Failed(StoreError::Database(_)))),
            spoilt,
            "{number}: {answer:?}"
        );
        let found = world.store.find_actor(credential(2 * number), at(0)).await.unwrap();
        assert_eq!(found.is_none(), spoilt, "{number}");
    }
}

#[tokio::test]
async fn a_change_of_as_many_rows_as_travel_together_is_committed() {
    let world = new_world().await;
    let mut next = 0_u32;
    // A token is two rows, and a request with a key one more.
    for rows in 4090..=4097 {
        let hashes: Vec<_> = (next..next + rows / 2).map(hash).collect();
        next += rows / 2;
        let last = hashes[hashes.len() - 1];
        let key = format!("{rows}").parse().unwrap();
        let keyed = Keyed { key, fingerprint: Fingerprint::of("POST", "/v1/tokens", &rows) };
        let keyed = (rows % 2 == 1).then_some(keyed);
        let ada = actor("ada", Role::Admin);
        let create =
            move |tx: &mut Tx<'_>| tx.once(&ada, keyed.as_ref(), at(0), |tx| create_tokens(tx, &hashes));
        world.store.write(create).await.unwrap();
        assert!(world.store.find_actor(last, at(0)).await.unwrap().is_some(), "{rows}");
    }
}

fn hash(number: u32) -> SecretHash {
    let mut random = [0; 32];
    random[..4].copy_from_slice(&number.to_be_bytes());
    Secret::from_random(SecretKind::Subject, &random).hash()
}
