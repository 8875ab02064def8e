//! Several reservations at once: all of them, or none.

use std::collections::BTreeSet;

use gk_model::access::{Actor, Authority, Role};
use gk_model::port::Protocol;
use gk_model::port_set::PortSet;
use gk_model::reservation::{Protocols, Reservation, ReserveRequest, Scope};
use gk_model::text::PortName;
use gk_store::{Error, Refusal};

use crate::store::world::{actor, at, count, credential, listener, port, refused, told};

fn names(names: &[&str]) -> Vec<PortName> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn on(selector: &str) -> ReserveRequest {
    ReserveRequest { on: Some(selector.parse().unwrap()), ..ReserveRequest::default() }
}

fn summary(made: &[Reservation]) -> Vec<String> {
    let place = |made: &Reservation| {
        let name = made.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
        format!("{} {}{name}", told(made), made.place())
    };
    made.iter().map(place).collect()
}

#[tokio::test]
async fn names_get_a_run_each_and_share_a_group() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let ada = actor("ada", Role::User);
    world.reserve_port(&ada, id, 8003).await.unwrap();
    let request = ReserveRequest {
        names: names(&["http", "grpc", "debug"]),
        count: count(2),
        ..ReserveRequest::next_free(id)
    };
    let made = world.reserve_group(&ada, &request, at(1)).await.unwrap();
    let expected =
        ["8000-8001/tcp on web-1 http", "8004-8005/tcp on web-1 grpc", "8006-8007/tcp on web-1 debug"];
    assert_eq!(summary(&made), expected);
    let groups: BTreeSet<_> = made.iter().map(|made| made.group).collect();
    assert!(groups.len() == 1 && !groups.contains(&None));
    let alone = world.reserve(&ada, &ReserveRequest::next_free(id), at(1)).await.unwrap();
    assert_eq!((alone.first_port, alone.group), (port(8002), None), "one alone is no group");

    let by_number = ReserveRequest { port: Some(port(9000)), ..request };
    let made = world.reserve_group(&ada, &by_number, at(1)).await.unwrap();
    let expected =
        ["9000-9001/tcp on web-1 http", "9002-9003/tcp on web-1 grpc", "9004-9005/tcp on web-1 debug"];
    assert_eq!(summary(&made), expected, "by number they follow each other");
    assert_eq!(made.iter().map(|made| made.pool.clone()).collect::<Vec<_>>(), [None, None, None]);
}

#[tokio::test]
async fn a_pool_holds_as_many_runs_as_fit() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let ada = actor("ada", Role::User);
    // Free are 8000-8004 and 8006-8008: two runs of two, and one of two.
    let busy: PortSet = (8009..=9999).chain([8005]).map(port).collect();
    let asked = |names| ReserveRequest {
        names,
        busy: busy.clone(),
        count: count(2),
        ..ReserveRequest::next_free(id)
    };
    let before = world.events().await.len();
    let refusal = refused(world.reserve_group(&ada, &asked(names(&["a", "b", "c", "d"])), at(1)).await);
    assert_eq!(
        refusal.to_string(),
        "pool default of 2000 ports has no 4 times 2 contiguous free tcp ports left on web-1"
    );
    assert_eq!((world.events().await.len(), world.live().await.len()), (before, 0), "none of the four");
    let made = world.reserve_group(&ada, &asked(names(&["a", "b", "c"])), at(1)).await.unwrap();
    assert_eq!(
        made.iter().map(told).collect::<Vec<_>>(),
        ["8000-8001/tcp", "8002-8003/tcp", "8006-8007/tcp"]
    );
}

#[tokio::test]
async fn both_protocols_get_one_number() {
    let seen = [listener(Protocol::Udp, "0.0.0.0", 8002, 1, at(0))];
    let world = super::new_world().await;
    let agent = world.join_with_agent("web-1", 1, &seen).await;
    let ada = actor("ada", Role::User);
    let udp = ReserveRequest {
        protocol: Protocols::Udp,
        port: Some(port(8000)),
        ..ReserveRequest::next_free(agent.id)
    };
    world.reserve(&ada, &udp, at(1)).await.unwrap();
    world.reserve_port(&ada, agent.id, 8001).await.unwrap();
    let both = ReserveRequest { protocol: Protocols::Both, ..ReserveRequest::next_free(agent.id) };
    let made = world.reserve_group(&ada, &both, at(1)).await.unwrap();
    assert_eq!(summary(&made), ["8003/tcp on web-1", "8003/udp on web-1"], "free for both");
    assert_eq!(made[0].group, made[1].group);
    let before = world.events().await.len();
    let taken = ReserveRequest { port: Some(port(8000)), ..both };
    match refused(world.reserve_group(&ada, &taken, at(2)).await) {
        Refusal::PortReserved { protocol, alternatives, .. } => {
            assert_eq!((protocol, alternatives), (Protocol::Udp, vec![port(8004), port(8005), port(8006)]));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(world.events().await.len(), before, "nor TCP, which was free");
}

#[tokio::test]
async fn several_instances_get_the_same_numbers_or_none() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let first = world.join("web-1", 1).await;
    let second = world.join("web-2", 2).await;
    let third = world.join_with_agent("web-3", 3, &[listener(Protocol::Tcp, "::", 8001, 1, at(0))]).await;
    world.reserve_port(&ada, second, 8000).await.unwrap();
    let other = world.join("web-0", 4).await;
    for (id, label) in
        [(third.id, "env=prod"), (first, "env=prod"), (second, "env=prod"), (other, "env=test")]
    {
        world.label(id, label).await;
    }
    let all = on("env=prod");
    let made = world.reserve_group(&ada, &all, at(1)).await.unwrap();
    assert_eq!(
        summary(&made),
        ["8002/tcp on web-1", "8002/tcp on web-2", "8002/tcp on web-3"],
        "by name, whichever was labelled first"
    );
    let before = world.events().await.len();
    for number in [8000, 8001] {
        let taken = ReserveRequest { port: Some(port(number)), ..all.clone() };
        refused(world.reserve_group(&ada, &taken, at(2)).await);
    }
    let nowhere = refused(world.reserve_group(&ada, &on("env=prod,team"), at(2)).await);
    assert_eq!(nowhere.to_string(), "no joined instance is labelled env=prod,team");
    assert_eq!(world.events().await.len(), before, "no instance got a thing");
    assert_eq!(world.store.writer_counters().replays, 0, "and nothing had to be undone");
    let everything = ReserveRequest { names: names(&["a", "b"]), protocol: Protocols::Both, ..all };
    let made = world.reserve_group(&ada, &everything, at(3)).await.unwrap();
    assert_eq!(made.len(), 12, "two names, three instances, two protocols");
    assert_eq!(made.iter().map(|made| made.group).collect::<BTreeSet<_>>().len(), 1);
    assert_eq!(made.iter().map(told).collect::<BTreeSet<_>>().len(), 4, "the same two numbers everywhere");
}

#[tokio::test]
async fn a_failing_member_leaves_nothing_even_when_replayed() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let ada = actor("ada", Role::User);
    let request =
        ReserveRequest { names: names(&["a", "b"]), count: count(3), ..ReserveRequest::next_free(id) };
    let (by, asked) = (ada.clone(), request.clone());
    // A closure that fails after it has written is undone, with all that its maps learned.
    let undone: Result<(), Error> = world
        .store
        .write(move |tx| {
            tx.reserve_group(&by, &asked, at(1))?;
            Err(Refusal::BadCursor.into())
        })
        .await;
    refused(undone);
    assert_eq!((world.live().await.len(), world.events().await.len()), (0, 1));
    let made = world.reserve_group(&ada, &request, at(2)).await.unwrap();
    assert_eq!(made.iter().map(told).collect::<Vec<_>>(), ["8000-8002/tcp", "8003-8005/tcp"]);
}

#[tokio::test]
async fn agent_credential_acts_only_for_its_instance() {
    let world = super::new_world().await;
    let (own, other) = (world.join("web-1", 1).await, world.join("web-2", 2).await);
    let agent =
        Actor { authority: Authority::Instance(own, credential(1)), ..actor("instance:web-1", Role::User) };
    world.label(own, "own=yes").await;
    let beyond = [
        on("own!=maybe"),
        ReserveRequest { scope: Scope::Fleet, ..ReserveRequest::default() },
        ReserveRequest { scope: Scope::Fleet, ..ReserveRequest::next_free(own) },
        ReserveRequest::next_free(other),
    ];
    for request in beyond {
        let refusal = refused(world.reserve_group(&agent, &request, at(1)).await);
        assert!(matches!(refusal, Refusal::BeyondOwnInstance), "{refusal:?}");
    }
    world.reserve_group(&agent, &ReserveRequest::next_free(own), at(1)).await.unwrap();
    world.reserve_group(&agent, &on("own"), at(1)).await.expect("it chooses its own instance and no other");
}
