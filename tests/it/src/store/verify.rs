//! Whatever is done to a store, its invariants hold after every step.

use gk_model::access::Role;
use gk_model::port::Protocol;
use gk_model::reservation::ReserveRequest;

use crate::store::world::{World, actor, at, listener, port};

async fn sound(world: &World, step: &str) {
    let verdict = world.store.verify().await.unwrap();
    assert_eq!(verdict.problems(), Vec::<String>::new(), "after {step}");
}

#[tokio::test]
async fn the_invariants_hold_after_every_step() {
    let world = super::new_world().await;
    sound(&world, "opening").await;
    let ada = actor("ada", Role::Admin);
    let on = |number, pid| listener(Protocol::Tcp, "0.0.0.0", number, pid, at(1));
    let mut agent = world.join_with_agent("web-1", 1, &[on(80, 1), on(81, 1)]).await;
    sound(&world, "joining with a report").await;
    let other = world.join("web-2", 2).await;
    sound(&world, "joining without an agent").await;

    let made = world.reserve(&ada, &ReserveRequest::next_free(agent.id), at(2)).await.unwrap();
    world.reserve_port(&ada, other, made.first_port.get()).await.unwrap();
    sound(&world, "reserving the same number on both").await;
    let contact = agent.delta(&[on(80, 2)], &[(on(81, 1).key, at(3))], &[on(80, 2)], at(4));
    world.contact(&agent, contact, at(4)).await.unwrap();
    sound(&world, "a change of owner and an end").await;
    let half = gk_model::contact::Part {
        netns: gk_model::listener::Netns::Home,
        protocol: Protocol::Udp,
        family: gk_model::contact::Family::ALL[0],
    };
    let contact = agent.report_of(vec![half], &[], at(5));
    world.contact(&agent, contact, at(5)).await.unwrap();
    sound(&world, "a report that covers next to nothing").await;
    let contact = agent.report(&[on(80, 2), on(90, 3)], at(6));
    world.contact(&agent, contact, at(6)).await.unwrap();
    sound(&world, "a full report").await;

    world.release(&ada, &made, at(7)).await.unwrap();
    sound(&world, "releasing").await;
    world.reserve_port(&ada, agent.id, made.first_port.get()).await.unwrap();
    sound(&world, "reserving it again, by a clock that stepped back").await;
    let (actor, leaving) = (ada.clone(), agent.id.into());
    world.store.write(move |tx| tx.leave(&actor, &leaving, true, None, at(9))).await.unwrap();
    sound(&world, "leaving").await;
    let world = world.reopen(at(10)).await;
    sound(&world, "opening again").await;
}

#[tokio::test]
async fn a_part_that_is_given_away_by_a_slower_request_was_not_held_twice() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let id = world.join("web-1", 1).await;
    let range = ReserveRequest { count: 4.try_into().unwrap(), ..ReserveRequest::next_free(id) };
    let made = world.reserve(&ada, &range, at(2)).await.unwrap();
    let (first, part) = (made.first_port.get(), made.first_port.get() + 2);
    world.release_part(&ada, &made, &part.to_string(), at(7)).await.unwrap();
    let by_number = ReserveRequest { port: Some(port(part)), ..ReserveRequest::next_free(id) };
    world.reserve(&ada, &by_number, at(6)).await.unwrap();
    sound(&world, "a request that came before the release").await;
    let rest = world.live().await.into_iter().find(|held| held.first_port.get() == first).unwrap();
    world.release(&ada, &rest, at(8)).await.unwrap();
    sound(&world, "an end of what was left of it").await;
}
