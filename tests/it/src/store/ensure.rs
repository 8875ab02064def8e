//! Ensure: the same caller, asking for the same thing, gets the same thing.

use std::time::Duration;

use gk_model::access::Role;
use gk_model::history::EventKind;
use gk_model::id::InstanceId;
use gk_model::lease::LeaseTime;
use gk_model::port::Protocol;
use gk_model::reservation::{Protocols, ReserveRequest, Scope};
use gk_store::Refusal;

use crate::store::world::{actor, at, count, listener, port, refused, told};

fn billing(id: InstanceId) -> ReserveRequest {
    ReserveRequest { service: "billing".parse().ok(), ensure: true, ..ReserveRequest::next_free(id) }
}

fn ttl(seconds: i64) -> Option<LeaseTime> {
    Some(LeaseTime::try_from(seconds).unwrap())
}

#[tokio::test]
async fn the_same_question_has_the_same_answer() {
    let world = super::new_world().await;
    let (one, two) = (world.join("web-1", 1).await, world.join("web-2", 2).await);
    let (ada, bob) = (actor("ada", Role::User), actor("bob", Role::User));
    let first = world.reserve(&ada, &billing(one), at(1)).await.unwrap();
    let before = world.events().await.len();
    let again = world.reserve(&ada, &billing(one), at(2)).await.unwrap();
    assert_eq!((again, world.events().await.len()), (first.clone(), before), "and nothing happened");
    let by_number = ReserveRequest { port: Some(port(8000)), ..billing(one) };
    assert_eq!(
        world.reserve(&ada, &by_number, at(2)).await.unwrap().id,
        first.id,
        "its own number is no conflict"
    );

    // Each part of the key matters.
    let other = |request: ReserveRequest| request;
    let others = [
        (&bob, billing(one)),
        (&ada, billing(two)),
        (&ada, other(ReserveRequest { service: "shop".parse().ok(), ..billing(one) })),
        (&ada, other(ReserveRequest { name: "http".parse().ok(), ..billing(one) })),
        (&ada, other(ReserveRequest { protocol: Protocols::Udp, ..billing(one) })),
    ];
    for (who, request) in others {
        let made = world.reserve(who, &request, at(3)).await.unwrap();
        assert_ne!(made.id, first.id);
        assert_eq!(world.reserve(who, &request, at(4)).await.unwrap(), made);
    }
    assert_eq!(world.live().await.len(), 6);
    let nameless = ReserveRequest { ensure: true, ..ReserveRequest::next_free(one) };
    let refusal = refused(world.reserve(&ada, &nameless, at(5)).await);
    assert!(matches!(refusal, Refusal::Contradiction(found) if found.field == "service"));
}

#[tokio::test]
async fn what_is_held_must_fit_what_is_asked_for() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let ada = actor("ada", Role::User);
    let range = ReserveRequest { count: count(3), ..billing(id) };
    world.reserve(&ada, &range, at(1)).await.unwrap();
    let before = world.events().await.len();
    for (request, field) in [
        (billing(id), "count"),
        (ReserveRequest { count: count(4), ..billing(id) }, "count"),
        (ReserveRequest { port: Some(port(8001)), ..range.clone() }, "port"),
        (ReserveRequest { scope: Scope::Fleet, ..range.clone() }, "scope"),
        (ReserveRequest { ttl_seconds: ttl(60), ..range.clone() }, "ttl_seconds"),
    ] {
        let refusal = refused(world.reserve(&ada, &request, at(2)).await);
        let words = format!("8000-8002/tcp on web-1 is reserved for this already, and differs in `{field}`");
        assert_eq!(refusal.to_string(), words);
    }
    assert_eq!((world.events().await.len(), world.store.writer_counters().replays), (before, 0));
}

#[tokio::test]
async fn after_release_it_is_the_same_number_while_that_is_free() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let (ada, bob) = (actor("ada", Role::User), actor("bob", Role::User));
    let range = ReserveRequest { count: count(2), ..billing(id) };
    world.reserve_port(&bob, id, 8000).await.unwrap();
    let first = world.reserve(&ada, &range, at(1)).await.unwrap();
    world.release(&ada, &first, at(2)).await.unwrap();
    let plain = world.reserve(&ada, &ReserveRequest { ensure: false, ..range.clone() }, at(3)).await.unwrap();
    assert_eq!(told(&plain), "8003-8004/tcp", "to a pick it rests");
    world.release(&ada, &plain, at(3)).await.unwrap();
    // The newest of this purpose counts; from a cold cache just the same.
    let world = world.reopen(at(3)).await;
    let again = world.reserve(&ada, &range, at(3)).await.unwrap();
    assert_eq!((told(&again), again.pool), (told(&plain), plain.pool), "it may rest: from ada itself");
    assert_ne!(again.id, plain.id);
    world.release(&ada, &world.live().await[1].clone(), at(4)).await.unwrap();

    // Taken by number meanwhile: another one. And once bob has released it, it rests from bob.
    let taken = ReserveRequest { port: Some(port(8004)), ..ReserveRequest::next_free(id) };
    let taken = world.reserve(&bob, &taken, at(5)).await.unwrap();
    let elsewhere = world.reserve(&ada, &range, at(5)).await.unwrap();
    assert_eq!(told(&elsewhere), "8005-8006/tcp");
    world.release(&ada, &elsewhere, at(6)).await.unwrap();
    let next = ReserveRequest { port: Some(port(8005)), ..ReserveRequest::next_free(id) };
    let between = world.reserve(&bob, &next, at(6)).await.unwrap();
    world.release(&bob, &between, at(7)).await.unwrap();
    world.release(&bob, &taken, at(7)).await.unwrap();
    assert_eq!(
        told(&world.reserve(&ada, &range, at(8)).await.unwrap()),
        "8007-8008/tcp",
        "it rests from bob"
    );
}

#[tokio::test]
async fn a_number_in_use_is_not_given_again() {
    let world = super::new_world().await;
    let mut agent = world.join_with_agent("web-1", 1, &[]).await;
    let ada = actor("ada", Role::User);
    let first = world.reserve(&ada, &billing(agent.id), at(1)).await.unwrap();
    world.release(&ada, &first, at(2)).await.unwrap();
    let busy = ReserveRequest { busy: [port(8000)].into_iter().collect(), ..billing(agent.id) };
    let other = world.reserve(&ada, &busy, at(3)).await.unwrap();
    assert_eq!(told(&other), "8001/tcp");
    world.release(&ada, &other, at(4)).await.unwrap();
    let seen = [listener(Protocol::Tcp, "0.0.0.0", 8001, 1, at(4))];
    let report = agent.report(&seen, at(4));
    world.contact(&agent, report, at(4)).await.unwrap();
    assert_eq!(told(&world.reserve(&ada, &billing(agent.id), at(5)).await.unwrap()), "8002/tcp");
}

#[tokio::test]
async fn a_group_is_completed_with_the_numbers_it_has() {
    let world = super::new_world().await;
    let (one, two) = (world.join("web-1", 1).await, world.join("web-2", 2).await);
    let (ada, bob) = (actor("ada", Role::User), actor("bob", Role::User));
    let ask = |names: &[&str]| ReserveRequest {
        names: names.iter().map(|name| name.parse().unwrap()).collect(),
        ..billing(one)
    };
    let first = world.reserve_group(&ada, &ask(&["http", "grpc"]), at(1)).await.unwrap();
    let more = world.reserve_group(&ada, &ask(&["grpc", "debug", "http"]), at(2)).await.unwrap();
    assert_eq!(more.iter().map(told).collect::<Vec<_>>(), ["8001/tcp", "8002/tcp", "8000/tcp"]);
    assert_eq!((&more[0], &more[2]), (&first[1], &first[0]), "those it had");
    assert_eq!(more[1].group, first[0].group, "the new one joins their group");

    world.label(one, "env=prod").await;
    world.label(two, "env=prod").await;
    let on_both = |name| ReserveRequest {
        instance: None,
        on: "env=prod".parse().ok(),
        protocol: Protocols::Both,
        ..ask(&[name])
    };
    let all = world.reserve_group(&ada, &on_both("http"), at(3)).await.unwrap();
    assert_eq!(all.iter().map(told).collect::<Vec<_>>(), ["8000/tcp", "8000/udp", "8000/tcp", "8000/udp"]);
    assert_eq!(all[0], first[0]);
    // Where its number is another's, nothing is made.
    let udp =
        ReserveRequest { protocol: Protocols::Udp, port: Some(port(8001)), ..ReserveRequest::next_free(two) };
    world.reserve(&bob, &udp, at(4)).await.unwrap();
    let before = world.events().await.len();
    assert!(matches!(
        refused(world.reserve_group(&ada, &on_both("grpc"), at(5)).await),
        Refusal::PortReserved { .. }
    ));
    assert_eq!(world.events().await.len(), before);
}

#[tokio::test]
async fn what_is_held_fleet_wide_is_found_again() {
    let world = super::new_world().await;
    let (one, two) = (world.join("web-1", 1).await, world.join("web-2", 2).await);
    let ada = actor("ada", Role::User);
    for request in [
        ReserveRequest { scope: Scope::Fleet, ..billing(one) },
        ReserveRequest { scope: Scope::Fleet, instance: None, ..billing(one) },
    ] {
        let made = world.reserve(&ada, &request, at(1)).await.unwrap();
        assert_eq!(world.reserve(&ada, &request, at(2)).await.unwrap(), made);
        world.release(&ada, &made, at(3)).await.unwrap();
        let again = world.reserve(&ada, &request, at(4)).await.unwrap();
        assert_eq!(again.ports(), made.ports());
        world.release(&ada, &again, at(5)).await.unwrap();
        // Somebody takes the number on one instance.
        let taken = ReserveRequest { port: Some(made.first_port), ..ReserveRequest::next_free(two) };
        let taken = world.reserve(&ada, &taken, at(6)).await.unwrap();
        let other = world.reserve(&ada, &request, at(7)).await.unwrap();
        assert_ne!(other.ports(), made.ports());
        for made in [other, taken] {
            world.release(&ada, &made, at(8)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn ensure_renews_a_lease_and_never_shortens_it() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let ada = actor("ada", Role::User);
    let leased = |seconds| ReserveRequest { ttl_seconds: ttl(seconds), ..billing(id) };
    let first = world.reserve(&ada, &leased(60), at(0)).await.unwrap();
    assert_eq!((first.expires_at, first.version), (Some(at(60)), 1));
    let renewed = world.reserve(&ada, &leased(60), at(30)).await.unwrap();
    assert_eq!((renewed.id, renewed.expires_at, renewed.version), (first.id, Some(at(90)), 2));
    assert_eq!(world.live().await, std::slice::from_ref(&renewed));
    let event = world.events().await.pop().unwrap();
    assert_eq!((event.kind, event.reservation, event.at), (EventKind::Renewed, Some(first.id), at(30)));
    let before = world.events().await.len();
    for request in [leased(10), billing(id)] {
        assert_eq!(world.reserve(&ada, &request, at(31)).await.unwrap(), renewed);
    }
    assert_eq!((world.events().await.len(), at(0).plus(Duration::from_secs(60))), (before, at(60)));
}
