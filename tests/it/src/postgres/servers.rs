//! Several servers on one database: one writer at a time, and caches that follow the others.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::time::Duration;

use gk_model::access::Role;
use gk_model::contact::{ContactBody, Occupied};
use gk_model::facts::Facts;
use gk_model::lease::LeaseTime;
use gk_model::pool::PoolSpec;
use gk_model::port::Protocol;
use gk_model::query::{EventQuery, Limit};
use gk_model::reservation::ReserveRequest;
use gk_model::time::Timestamp;
use gk_model::token::TokenRequest;
use gk_store::Refusal;
use uuid::Uuid;

use super::Server;
use crate::cluster;
use crate::store::world::{
    World, actor, at, credential, join_request, listener, pool_spec as spec, port, refused,
};

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_never_give_one_port_twice_nor_one_number_to_two_events() {
    let world = World::new(Some(cluster::shared().create_database())).await;
    let other = Server::start(world.config.database.as_ref().unwrap()).await;
    let id = world.join("web-1", 1).await;
    let stores = [world.store.clone(), other.store.clone()];
    let callers: Vec<_> = (0..16)
        .map(|caller: usize| {
            let store = stores[caller % 2].clone();
            tokio::spawn(async move {
                let ada = actor("ada", Role::User);
                let mut held = Vec::new();
                for round in 0..30 {
                    let (actor, request) = (ada.clone(), ReserveRequest::next_free(id));
                    let made = store.write(move |tx| tx.reserve(&actor, &request, at(0))).await.unwrap();
                    if round % 3 == 2 {
                        let actor = ada.clone();
                        store
                            .write(move |tx| tx.release(&actor, made.id, None, false, None, at(0)))
                            .await
                            .unwrap();
                    } else {
                        held.push(made.first_port.get());
                    }
                }
                held
            })
        })
        .collect();
    let mut held = Vec::new();
    for caller in callers {
        held.extend(caller.await.unwrap());
    }
    held.sort_unstable();
    let distinct: BTreeSet<u16> = held.iter().copied().collect();
    assert_eq!((held.len(), distinct.len()), (16 * 20, 16 * 20), "a port was given twice");
    let live: Vec<u16> = world.live().await.iter().map(|made| made.first_port.get()).collect();
    assert_eq!(live, held, "what is stored is what was answered");
    let numbers: Vec<u64> = world.events().await.iter().map(|event| event.seq).collect();
    assert_eq!(numbers, (1..=1 + 16 * 40).collect::<Vec<u64>>(), "consecutive, whichever server wrote them");
    for store in &stores {
        assert!(store.writer_counters().commits > 1, "both have written");
    }
}

#[tokio::test]
async fn a_pick_knows_what_another_server_has_just_written() {
    let world = World::new(Some(cluster::shared().create_database())).await;
    let other = Server::start(world.config.database.as_ref().unwrap()).await;
    let mut agent = world.join_with_agent("web-1", 1, &[]).await;
    let id = agent.id;
    // Both have the map of this instance from now on.
    assert_eq!((world.next_free(id).await, other.next_free(id).await), (8000, 8001));

    let taken = world.reserve_port(&actor("bob", Role::User), id, 8002).await.unwrap();
    assert_eq!(other.next_free(id).await, 8003, "a reservation");
    world.release(&actor("bob", Role::User), &taken, at(0)).await.unwrap();
    assert_eq!(other.next_free(id).await, 8004, "a quarantine");

    let seen = [listener(Protocol::Tcp, "0.0.0.0", 8005, 1, at(0))];
    let report = agent.report(&seen, at(0));
    world.contact(&agent, report, at(0)).await.unwrap();
    assert_eq!(other.next_free(id).await, 8006, "a listener");

    let mut delta = agent.delta(&[], &[], &seen, at(0));
    let ContactBody::Delta { occupied, .. } = &mut delta.body else { unreachable!() };
    *occupied = Some(vec![Occupied { protocol: Protocol::Tcp, port: port(8007) }]);
    world.contact(&agent, delta, at(0)).await.unwrap();
    assert_eq!(other.next_free(id).await, 8008, "a port that is occupied without a listener");

    let mut refreshed = join_request("web-1", 1);
    refreshed.facts = Facts { ephemeral_ports: Some("8009-8019".parse().unwrap()), ..refreshed.facts };
    let admin = actor("root", Role::Admin);
    let own = gk_model::access::Authority::Instance(id, refreshed.credential_hash);
    let own = gk_model::access::Actor { authority: own, ..admin };
    world.store.write(move |tx| tx.join(&own, &refreshed, at(0))).await.unwrap();
    assert_eq!(other.next_free(id).await, 8020, "another ephemeral range");
}

#[tokio::test]
async fn a_pool_that_another_server_has_just_set_counts_here() {
    let world = World::new(Some(cluster::shared().create_database())).await;
    let other = Server::start(world.config.database.as_ref().unwrap()).await;
    let id = world.join("web-1", 1).await;
    let ada = actor("ada", Role::User);
    let draw = async |seconds| {
        let request = ReserveRequest { pool: "web".parse().ok(), ..ReserveRequest::next_free(id) };
        let ada = ada.clone();
        other.store.write(move |tx| tx.reserve(&ada, &request, at(seconds))).await
    };
    // That server knows all pools from now on, and this one is none of them.
    assert!(matches!(refused(draw(0).await), Refusal::NoSuchPool(_)));
    let brief = PoolSpec { quarantine_seconds: 60.try_into().unwrap(), ..spec("7000-7001") };
    world.set_pool("web", brief, None).await.unwrap();
    let made = draw(0).await.unwrap();
    assert_eq!(made.first_port, port(7000), "it is there");
    world.set_pool("web", spec("7001-7002"), None).await.unwrap();
    assert_eq!(draw(0).await.unwrap().first_port, port(7001), "it has other numbers");
    let eternal = PoolSpec { quarantine_seconds: 0.try_into().unwrap(), ..spec("7000") };
    world.set_pool("web", eternal, None).await.unwrap();
    let (id_of_it, by) = (made.id, ada.clone());
    other.store.write(move |tx| tx.release(&by, id_of_it, None, false, None, at(1))).await.unwrap();
    assert_eq!(draw(1).await.unwrap().first_port, port(7000), "it keeps nothing back");
    // Both have counted.
    let name = "web".parse().unwrap();
    let status = world.store.read(move |reader| reader.get_pool(&name)).await.unwrap();
    assert_eq!((status.reserved, status.fullest.unwrap().left), (1, 0));
    let root = actor("root", Role::Admin);
    let delete = move |tx: &mut gk_store::Tx<'_>| tx.delete_pool(&root, &"web".parse().unwrap(), None, at(2));
    world.store.write(delete).await.unwrap();
    assert!(matches!(refused(draw(2).await), Refusal::NoSuchPool(_)), "it is gone");
    assert_eq!(world.store.verify().await.unwrap().problems(), Vec::<String>::new());
}

#[tokio::test]
async fn a_token_that_another_server_ended_is_not_remembered_for_long() {
    let world = World::new(Some(cluster::shared().create_database())).await;
    let other = Server::start(world.config.database.as_ref().unwrap()).await;
    let (admin, hash) = (actor("root", Role::Admin), credential(1));
    let wanted = TokenRequest::for_subject("ada".parse().unwrap(), Role::User);
    let create = move |tx: &mut gk_store::Tx<'_>| tx.create_token(&admin, hash, &wanted, at(0));
    let token = world.store.write(create).await.unwrap();
    assert!(other.store.find_actor(hash, at(1)).await.unwrap().is_some(), "known there from now on");
    let admin = actor("root", Role::Admin);
    world.store.write(move |tx| tx.revoke_token(&admin, token.id, at(2))).await.unwrap();
    assert_eq!(world.store.find_actor(hash, at(2)).await.unwrap(), None, "here at once");
    let refused = async {
        while other.store.find_actor(hash, at(2)).await.unwrap().is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), refused).await.expect("it is refused there, too");
}

#[tokio::test]
async fn a_session_that_another_server_ended_is_refused_at_the_next_tick() {
    let world = World::new(Some(cluster::shared().create_database())).await;
    let other = Server::start(world.config.database.as_ref().unwrap()).await;
    let agent = world.join_with_agent("web-1", 1, &[]).await;
    let send = |contact| other.store.contact(agent.id, agent.credential, contact, at(1));
    // The second one is answered from the memory of that server.
    send(agent.heartbeat(&[], at(1))).await.unwrap();
    send(agent.heartbeat(&[], at(1))).await.unwrap();
    let mut clone = agent;
    let mut opening = clone.report(&[], at(2));
    opening.opening = Some(Uuid::from_u128(99));
    world.contact(&clone, opening, at(2)).await.unwrap();
    other.store.flush_contacts().await.unwrap();
    let refusal = refused(send(agent.heartbeat(&[], at(3))).await);
    assert!(matches!(refusal, Refusal::IdentitySuperseded { .. }), "{refusal:?}");
}

#[tokio::test]
async fn what_happened_while_a_connection_was_cut_is_not_confirmed_from_memory() {
    let (cluster, name) = (cluster::shared(), format!("gap-{}", std::process::id()));
    let url = cluster.create_url();
    let world = World::new(Some(url.parse().unwrap())).await;
    let other = Server::start(&format!("{url}&application_name={name}").parse().unwrap()).await;
    let agent = world.join_with_agent("web-1", 1, &[]).await;
    let send = |contact| other.store.contact(agent.id, agent.credential, contact, at(1));
    send(agent.heartbeat(&[], at(1))).await.unwrap();
    let cut =
        format!("select pg_terminate_backend(pid) from pg_stat_activity where application_name = '{name}'");
    assert!(cluster.psql(&cut).status.success());
    // This batch finds the connection cut, and may have missed anything.
    other.store.flush_contacts().await.unwrap();
    let mut clone = agent;
    let mut opening = clone.report(&[], at(2));
    opening.opening = Some(Uuid::from_u128(99));
    world.contact(&clone, opening, at(2)).await.unwrap();
    let refusal = refused(send(agent.heartbeat(&[], at(3))).await);
    assert!(matches!(refusal, Refusal::IdentitySuperseded { .. }), "{refusal:?}");
}

#[tokio::test]
async fn pruning_goes_by_the_clock_of_the_database() {
    let database = cluster::shared().create_database();
    let world = World::new(Some(database.clone())).await;
    world.join("web-1", 1).await;
    world.join("web-2", 2).await;
    let server = Server::start(&database).await;
    let year = Duration::from_secs(365 * 86_400);
    // This server believes that it is 2123.
    let far_ahead = at(0).plus(100 * year);
    let pruned = server.store.write(move |tx| tx.prune(far_ahead, 50 * year, 500)).await.unwrap();
    assert_eq!((pruned.events, world.events().await.len()), (0, 2));
}

#[tokio::test]
async fn leases_go_by_the_clock_of_the_database() {
    let database = cluster::shared().create_database();
    let world = World::new(Some(database.clone())).await;
    let id = world.join("web-1", 1).await;
    // This server believes that it is 2023.
    let server = Server::start(&database).await;
    let lease = ReserveRequest {
        ttl_seconds: Some(LeaseTime::try_from(3600).unwrap()),
        ..ReserveRequest::next_free(id)
    };
    let made = server.reserve(&lease).await.unwrap();
    let left_us = made.expires_at.unwrap().as_micros() - Timestamp::from_clock().as_micros();
    assert!((3540..=3660).contains(&(left_us / 1_000_000)), "{left_us} µs are left of an hour");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_gives_the_lock_up_within_seconds() {
    let world = World::new(Some(cluster::shared().create_database())).await;
    let other = Server::start(world.config.database.as_ref().unwrap()).await;
    let id = world.join("web-1", 1).await;
    // So that the commit of the hung one has nothing to ask before.
    world.next_free(id).await;
    // Hangs with the lock in its hands until the other one got through.
    let (go_on, hung) = mpsc::channel::<()>();
    let (has_lock, locked) = tokio::sync::oneshot::channel::<()>();
    let (mut hung, mut has_lock) = (Some(hung), Some(has_lock));
    let store = world.store.clone();
    let hanging = tokio::spawn(async move {
        let request = ReserveRequest::next_free(id);
        let ada = actor("ada", Role::User);
        let hang = move |tx: &mut gk_store::Tx<'_>| {
            let made = tx.reserve(&ada, &request, at(0))?;
            if let (Some(hung), Some(has_lock)) = (hung.take(), has_lock.take()) {
                has_lock.send(()).unwrap();
                hung.recv().unwrap();
            }
            Ok(made)
        };
        store.write(hang).await
    });
    locked.await.unwrap();
    let got = other.next_free(id).await;
    go_on.send(()).unwrap();
    let late = hanging.await.unwrap().unwrap().first_port.get();
    assert_eq!(BTreeSet::from([got, late]), BTreeSet::from([8001, 8002]), "the hung one began anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_start_together_make_one_schema() {
    let url = cluster::shared().create_database();
    let starting: Vec<_> = (0..6)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(async move { Server::start(&url).await })
        })
        .collect();
    for started in starting {
        let server = started.await.unwrap();
        let query = EventQuery { limit: Some(Limit::MAX), ..Default::default() };
        server.store.read(move |reader| reader.list_events(&query)).await.unwrap();
    }
}
