//! A backup shows one moment, whatever is written meanwhile.

use gk_model::access::Role;
use gk_model::port::Protocol;
use gk_model::reservation::ReserveRequest;

use crate::store::world::{World, actor, at, listener};

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_shows_one_moment() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let seen = [listener(Protocol::Tcp, "0.0.0.0", 80, 1, at(0))];
    let agent = world.join_with_agent("web-1", 1, &seen).await;
    for _ in 0..40 {
        world.reserve(&ada, &ReserveRequest::next_free(agent.id), at(1)).await.unwrap();
    }
    let (source, file) = (world.config.clone(), world.directory.path().join("backup"));
    let writing = async {
        for _ in 0..100 {
            let made = world.reserve(&ada, &ReserveRequest::next_free(agent.id), at(2)).await.unwrap();
            world.release(&ada, &made, at(3)).await.unwrap();
        }
    };
    let to = file.clone();
    let copying =
        tokio::task::spawn_blocking(move || gk_store::backup(&source, &to, at(4), &mut |_| {}).unwrap());
    let (copied, ()) = tokio::join!(copying, writing);
    let copied = copied.unwrap();

    let restored = World::from_backup(super::new_database(), file, at(5)).await;
    for store in [&world.store, &restored.store] {
        assert_eq!(store.verify().await.unwrap().problems(), Vec::<String>::new());
    }
    let (events, then) = (world.events().await, restored.events().await);
    assert_eq!(then.len() as u64, copied.events);
    assert_eq!(then, events[..then.len()], "what was there then, and nothing else");
    let log = restored.store.log().await.unwrap();
    assert_eq!((log.oldest_seq, log.newest_seq), (1, copied.events));
    assert_ne!(log.log_id, world.store.log().await.unwrap().log_id, "the numbers go on differently");
    assert_eq!(restored.live().await.len() as u64, copied.reservations);

    // And it is a store like any other.
    let made = restored.reserve(&ada, &ReserveRequest::next_free(agent.id), at(7)).await.unwrap();
    assert_eq!(restored.events().await.last().unwrap().seq, copied.events + 1);
    assert!(restored.live().await.contains(&made));
}
