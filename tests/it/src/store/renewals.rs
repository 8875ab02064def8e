//! Leases that the server renews while somebody listens, and the word before a lease ends.

use gk_model::access::{Actor, Role};
use gk_model::history::EventKind;
use gk_model::lease::LeaseTime;
use gk_model::listener::Listener;
use gk_model::port::Protocol;
use gk_model::reservation::{Reservation, ReserveRequest, Scope};
use gk_store::Refusal;

use super::leases::{Looker, lease};
use crate::store::world::{FakeAgent, World, actor, at, listener, port, refused};

const WEEK: u64 = 7 * 86_400;

fn ada() -> Actor {
    actor("ada", Role::User)
}

fn seen(number: u16) -> Vec<Listener> {
    vec![listener(Protocol::Tcp, "0.0.0.0", number, 1, at(0))]
}

fn renewing(agent: &FakeAgent, seconds: i64) -> ReserveRequest {
    ReserveRequest { renew_while_listening: true, ..lease(agent.id, seconds) }
}

async fn report(world: &World, agent: &mut FakeAgent, listeners: &[Listener], now: u64) {
    let report = agent.report(listeners, at(now));
    world.contact(agent, report, at(now)).await.unwrap();
    world.store.flush_contacts().await.unwrap();
}

async fn kinds_of(world: &World, made: &Reservation) -> Vec<EventKind> {
    let events = world.events().await.into_iter();
    events.filter(|event| event.reservation == Some(made.id)).map(|event| event.kind).collect()
}

async fn deadline(world: &World) -> Option<u64> {
    let live = world.live().await;
    Some(live.first()?.expires_at?.since(at(0)).as_secs())
}

#[tokio::test]
async fn a_lease_goes_on_while_somebody_listens_and_ends_when_nobody_does() {
    let world = super::new_world().await;
    let mut agent = world.join_with_agent("web-1", 1, &[]).await;
    let made = world.reserve(&ada(), &renewing(&agent, 600), at(0)).await.unwrap();
    assert!(made.renew_while_listening && made.ttl_seconds == Some(LeaseTime::try_from(600).unwrap()));
    assert_eq!(world.live().await, std::slice::from_ref(&made));
    let mut server = Looker::new(0);
    let (mut deadlines, mut last) = (Vec::new(), None);
    for now in (0..3000).step_by(30) {
        let listeners = if now < 1500 { seen(8000) } else { vec![] };
        report(&world, &mut agent, &listeners, now).await;
        server.look(&world, at(now), now).await;
        let found = deadline(&world).await;
        if found != last {
            deadlines.push(found);
        }
        last = found;
    }
    assert_eq!(
        deadlines,
        [Some(600), Some(1200), Some(1800), None],
        "by its own length, until nobody listens"
    );
    let expected = [
        EventKind::Reserved,
        EventKind::Renewed,
        EventKind::Renewed,
        EventKind::Expiring,
        EventKind::Expired,
    ];
    assert_eq!(kinds_of(&world, &made).await, expected, "what is renewed is not announced to end");
    let renewed = world.events().await.into_iter().find(|event| event.kind == EventKind::Renewed).unwrap();
    assert_eq!(renewed.actor.as_str(), "server");
    assert_eq!(world.store.verify().await.unwrap().problems(), Vec::<String>::new());
}

#[tokio::test]
async fn whoever_does_not_ask_for_it_is_not_renewed_nor_by_a_stranger_elsewhere() {
    let world = super::new_world().await;
    let mut agent = world.join_with_agent("web-1", 1, &[]).await;
    let mut other = world.join_with_agent("web-2", 2, &[]).await;
    world.reserve(&ada(), &lease(agent.id, 100), at(0)).await.unwrap();
    let fleet = ReserveRequest { scope: Scope::Fleet, ..renewing(&agent, 100) };
    world.reserve(&ada(), &fleet, at(0)).await.unwrap();
    report(&world, &mut agent, &seen(8000), 60).await;
    report(&world, &mut other, &seen(8001), 60).await;
    let mut server = Looker::new(0);
    server.look(&world, at(99), 99).await;
    assert_eq!(world.live().await.len(), 2);
    server.look(&world, at(100), 100).await;
    assert!(world.live().await.is_empty());
    let forever = ReserveRequest { renew_while_listening: true, ..ReserveRequest::next_free(agent.id) };
    assert!(matches!(refused(world.reserve(&ada(), &forever, at(1)).await), Refusal::Contradiction(_)));
}

#[tokio::test]
async fn what_is_held_for_all_is_renewed_by_anybody() {
    let world = super::new_world().await;
    let agent = world.join_with_agent("web-1", 1, &[]).await;
    let mut other = world.join_with_agent("web-2", 2, &[]).await;
    let request = ReserveRequest {
        instance: None,
        scope: Scope::Fleet,
        port: Some(port(9100)),
        ..renewing(&agent, 100)
    };
    world.reserve(&ada(), &request, at(0)).await.unwrap();
    report(&world, &mut other, &seen(9100), 60).await;
    let mut server = Looker::new(0);
    server.look(&world, at(90), 90).await;
    server.look(&world, at(100), 100).await;
    assert_eq!(deadline(&world).await, Some(200));
}

#[tokio::test]
async fn a_lease_of_an_offline_instance_waits_for_its_next_contact() {
    let world = super::new_world().await;
    let mut agent = world.join_with_agent("web-1", 1, &seen(8000)).await;
    let request = ReserveRequest { port: Some(port(8000)), adopt: true, ..renewing(&agent, 600) };
    let made = world.reserve(&ada(), &request, at(0)).await.unwrap();
    let mut server = Looker::new(0);
    server.look(&world, at(500), 500).await;
    server.look(&world, at(600), 600).await;
    assert_eq!(deadline(&world).await, Some(600 + WEEK), "nobody knows");
    server.look(&world, at(5000), 5000).await;
    let world = world.reopen(at(5000)).await;
    let mut server = Looker::new(5000);
    server.look(&world, at(5001), 5001).await;
    assert_eq!(deadline(&world).await, Some(600 + WEEK), "not even after a start");
    // It comes back without the service, which has a minute to follow.
    report(&world, &mut agent, &[], 6000).await;
    server.look(&world, at(6000), 6000).await;
    server.look(&world, at(6001), 6001).await;
    assert_eq!(deadline(&world).await, Some(6060));
    report(&world, &mut agent, &seen(8000), 6030).await;
    server.look(&world, at(6060), 6060).await;
    server.look(&world, at(6061), 6061).await;
    assert_eq!(deadline(&world).await, Some(6660), "and by its own length from there");
    let expected = [EventKind::Adopted, EventKind::Renewed, EventKind::Renewed, EventKind::Renewed];
    assert_eq!(kinds_of(&world, &made).await, expected);
}

#[tokio::test]
async fn nobody_waits_longer_than_a_week() {
    let world = super::new_world().await;
    let agent = world.join_with_agent("web-1", 1, &seen(8000)).await;
    let request = ReserveRequest { port: Some(port(8000)), adopt: true, ..renewing(&agent, 600) };
    world.reserve(&ada(), &request, at(0)).await.unwrap();
    let mut server = Looker::new(0);
    server.look(&world, at(500), 500).await;
    server.look(&world, at(600), 600).await;
    server.look(&world, at(599 + WEEK), 599 + WEEK).await;
    assert_eq!(deadline(&world).await, Some(600 + WEEK));
    server.look(&world, at(600 + WEEK), 600 + WEEK).await;
    assert_eq!(deadline(&world).await, None);
}

#[tokio::test]
async fn the_end_is_announced_once_for_each_deadline() {
    // (length, announced so long before)
    for (seconds, before) in [(300, 60), (3600, 360), (86_400, 3600)] {
        let world = super::new_world().await;
        let id = world.join("web-1", 1).await;
        let made = world.reserve(&ada(), &lease(id, seconds), at(0)).await.unwrap();
        let end = u64::try_from(seconds).unwrap();
        let mut server = Looker::new(0);
        server.look(&world, at(end - before - 1), end - before - 1).await;
        assert_eq!(kinds_of(&world, &made).await, [EventKind::Reserved]);
        for now in [end - before, end - before + 1, end - 1] {
            server.look(&world, at(now), now).await;
        }
        let world = world.reopen(at(end - 1)).await;
        server = Looker::new(end - 100);
        server.look(&world, at(end - 1), end - 1).await;
        assert_eq!(kinds_of(&world, &made).await, [EventKind::Reserved, EventKind::Expiring]);
        let event = world.events().await.pop().unwrap();
        assert_eq!(event.message, format!("8000/tcp expires at {}, held by ada", at(end)));
        let (ada, ttl) = (ada(), LeaseTime::try_from(seconds).unwrap());
        let renew = move |tx: &mut gk_store::Tx<'_>| tx.renew(&ada, made.id, ttl, false, None, at(end - 1));
        world.store.write(renew).await.unwrap();
        let end = 2 * end - 1;
        for now in [end - before - 1, end - before, end - 1] {
            server.look(&world, at(now), now).await;
        }
        let expected = [EventKind::Reserved, EventKind::Expiring, EventKind::Renewed, EventKind::Expiring];
        assert_eq!(kinds_of(&world, &made).await, expected);
    }
}

#[tokio::test]
async fn when_the_clock_steps_announcements_move_along() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let made = world.reserve(&ada(), &lease(id, 600), at(0)).await.unwrap();
    let mut server = Looker::new(0);
    server.look(&world, at(100), 100).await;
    assert!(server.look(&world, at(5101), 101).await.shifted_micros.is_some());
    server.look(&world, at(5500), 500).await;
    assert_eq!(kinds_of(&world, &made).await, [EventKind::Reserved]);
    server.look(&world, at(5545), 545).await;
    assert_eq!(kinds_of(&world, &made).await, [EventKind::Reserved, EventKind::Expiring]);
}
