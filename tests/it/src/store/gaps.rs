//! From when to when nobody watched, and the edges of presence.

use gk_model::history::{EventKind, Gap, History};
use gk_model::instance::OFFLINE_AFTER;
use gk_model::listener::Listener;
use gk_model::port::Protocol;
use gk_model::query::{HistoryQuery, Limit};
use uuid::Uuid;

use crate::store::world::{FakeAgent, World, at, listener};

async fn history(world: &World, query: HistoryQuery) -> History {
    world.store.read(move |reader| reader.list_history(&query)).await.unwrap()
}

/// From and until, in seconds since the beginning; the last gap first.
fn seconds(gaps: &[Gap]) -> Vec<(u64, Option<u64>)> {
    let second = |time: gk_model::time::Timestamp| time.since(at(0)).as_secs();
    gaps.iter().map(|gap| (second(gap.from), gap.until.map(second))).collect()
}

async fn gaps(world: &World, query: HistoryQuery) -> Vec<(u64, Option<u64>)> {
    seconds(&history(world, query).await.gaps)
}

async fn edges(world: &World) -> Vec<(EventKind, u64)> {
    let is_edge = |kind: EventKind| matches!(kind, EventKind::Offline | EventKind::Online);
    let events = world.events().await;
    let edges = events.iter().filter(|event| is_edge(event.kind));
    edges.map(|event| (event.kind, event.at.since(at(0)).as_secs())).collect()
}

/// The next run of an agent: another session, which begins with a report.
async fn restart(world: &World, agent: &mut FakeAgent, listeners: &[Listener], seconds: u64) {
    agent.sequence = 0;
    let mut opening = agent.report(listeners, at(seconds));
    opening.opening = Some(Uuid::from_u128(u128::from(seconds)));
    agent.session = world.contact(agent, opening, at(seconds)).await.unwrap().session;
}

async fn beat(world: &World, agent: &FakeAgent, listeners: &[Listener], seconds: u64) {
    let heartbeat = agent.heartbeat(listeners, at(seconds));
    assert!(!world.contact(agent, heartbeat, at(seconds)).await.unwrap().want_report);
}

#[tokio::test]
async fn going_offline_and_coming_back_are_told_once() {
    let world = super::new_world().await;
    let agent = world.join_with_agent("web-1", 1, &[]).await;
    world.join("never-seen", 2).await;
    beat(&world, &agent, &[], 100).await;
    let silence = OFFLINE_AFTER.as_secs();
    // A heartbeat is only in memory, and counts.
    assert_eq!(world.store.mark_offline(at(100 + silence - 1)).await.unwrap(), 0);
    for (seconds, marked) in [(100 + silence, 1), (101 + silence, 0), (1000, 0)] {
        assert_eq!(world.store.mark_offline(at(seconds)).await.unwrap(), marked, "at {seconds}");
    }
    assert_eq!(edges(&world).await, [(EventKind::Offline, 100 + silence)]);
    for seconds in [1010, 1040, 1070] {
        beat(&world, &agent, &[], seconds).await;
    }
    assert_eq!(world.store.mark_offline(at(1100)).await.unwrap(), 0);
    assert_eq!(edges(&world).await, [(EventKind::Offline, 100 + silence), (EventKind::Online, 1010)]);
    // Counted from the start of the server, which says nothing about anybody.
    world.store.flush_contacts().await.unwrap();
    let world = world.reopen(at(5000)).await;
    assert_eq!(world.store.mark_offline(at(5000 + silence - 1)).await.unwrap(), 0);
    assert_eq!(world.store.mark_offline(at(5000 + silence)).await.unwrap(), 1);
    assert_eq!(edges(&world).await.last(), Some(&(EventKind::Offline, 5000 + silence)));
}

#[tokio::test]
async fn what_nobody_watched_is_a_gap_and_what_is_told_later_is_none() {
    let world = super::new_world().await;
    let set = [listener(Protocol::Tcp, "0.0.0.0", 80, 1, at(1))];
    let mut agent = world.join_with_agent("web-1", 1, &set).await;
    beat(&world, &agent, &set, 100).await;
    world.store.mark_offline(at(300)).await.unwrap();
    let whole = HistoryQuery::default;
    assert_eq!(gaps(&world, whole()).await, [(100, None)], "while it is offline");

    // The same run goes on: it has watched all the while, and tells now what it saw.
    let taken_over = [Listener { last_seen_at: at(200), ..listener(Protocol::Tcp, "0.0.0.0", 80, 2, at(1)) }];
    let told = agent.delta(&taken_over, &[], &taken_over, at(400));
    world.contact(&agent, told, at(400)).await.unwrap();
    assert_eq!(gaps(&world, whole()).await, []);
    let then = history(&world, HistoryQuery { at: Some(at(250)), ..whole() }).await;
    assert_eq!(then.items[0].listener.as_ref().unwrap().owners[0].pid, 2);

    // Another run: nobody watched since the one before was last heard of, offline or not.
    restart(&world, &mut agent, &taken_over, 450).await;
    beat(&world, &agent, &taken_over, 500).await;
    world.store.mark_offline(at(700)).await.unwrap();
    restart(&world, &mut agent, &taken_over, 900).await;
    assert_eq!(gaps(&world, whole()).await, [(500, Some(900)), (400, Some(450))]);
    // One that is run from time to time leaves one gap, and not one for each time.
    restart(&world, &mut agent, &taken_over, 1000).await;
    restart(&world, &mut agent, &taken_over, 1100).await;
    assert_eq!(gaps(&world, whole()).await, [(500, Some(1100)), (400, Some(450))]);

    let table = [
        (HistoryQuery { at: Some(at(420)), ..whole() }, vec![(400, Some(450))]),
        (HistoryQuery { at: Some(at(400)), ..whole() }, vec![]),
        (HistoryQuery { at: Some(at(450)), ..whole() }, vec![]),
        (HistoryQuery { since: Some(at(449)), until: Some(at(500)), ..whole() }, vec![(400, Some(450))]),
        (HistoryQuery { since: Some(at(450)), ..whole() }, vec![(500, Some(1100))]),
        (HistoryQuery { until: Some(at(450)), ..whole() }, vec![(400, Some(450))]),
    ];
    for (query, expected) in table {
        for instance in [None, Some("web-1".parse().unwrap())] {
            let query = HistoryQuery { instance, ..query.clone() };
            assert_eq!(gaps(&world, query.clone()).await, expected, "{query:?}");
        }
    }
}

#[tokio::test]
async fn contacts_that_were_lost_with_the_database_are_a_gap() {
    let world = super::new_world().await;
    let mut agent = world.join_with_agent("web-1", 1, &[]).await;
    beat(&world, &agent, &[], 50).await;
    // As after a restore: the run goes on, and has told in between what is not here any more.
    agent.sequence += 5;
    let heartbeat = agent.heartbeat(&[], at(90));
    world.contact(&agent, heartbeat, at(90)).await.unwrap();
    let report = agent.report(&[], at(95));
    world.contact(&agent, report, at(95)).await.unwrap();
    assert_eq!(gaps(&world, HistoryQuery::default()).await, [(50, Some(95))]);
}

#[tokio::test]
async fn an_instance_that_leaves_while_it_is_offline_was_not_watched_until_then() {
    let world = super::new_world().await;
    let agent = world.join_with_agent("web-1", 1, &[]).await;
    beat(&world, &agent, &[], 60).await;
    world.store.mark_offline(at(200)).await.unwrap();
    world.leave(agent.id, false, at(500)).await.unwrap();
    let of_it = HistoryQuery { instance: Some(agent.id.into()), ..Default::default() };
    assert_eq!(gaps(&world, of_it).await, [(60, Some(500))]);
}

#[tokio::test]
async fn each_gap_is_on_one_page() {
    let world = super::new_world().await;
    let ada = crate::store::world::actor("ada", gk_model::access::Role::User);
    let mut agent = world.join_with_agent("web-1", 1, &[]).await;
    for round in 1..=6 {
        let begins = round * 100;
        beat(&world, &agent, &[], begins).await;
        restart(&world, &mut agent, &[], begins + 50).await;
        let next_free = gk_model::reservation::ReserveRequest::next_free(agent.id);
        world.reserve(&ada, &next_free, at(begins + 20)).await.unwrap();
    }
    let expected: Vec<(u64, Option<u64>)> =
        (1..=6).rev().map(|round| (round * 100, Some(round * 100 + 50))).collect();
    for (limit, oldest) in [(1, None), (4, None), (1000, None), (1, Some(true)), (4, Some(true))] {
        let mut query = HistoryQuery { limit: Some(Limit::at_most(limit)), oldest, ..Default::default() };
        let mut found = Vec::new();
        loop {
            let page = history(&world, query.clone()).await;
            found.extend(seconds(&page.gaps));
            match page.next {
                None => break,
                next => query.cursor = next,
            }
        }
        found.sort_unstable_by(|one, other| other.cmp(one));
        assert_eq!(found, expected, "{limit} {oldest:?}");
    }
}

#[tokio::test]
async fn an_opening_that_comes_again_may_be_that_of_the_next_run() {
    let world = super::new_world().await;
    let mut agent = world.join_with_agent("web-1", 1, &[]).await;
    beat(&world, &agent, &[], 50).await;
    let kept = agent.session;
    restart(&world, &mut agent, &[], 100).await;
    // That run was killed before it kept the answer; the next one asks again, under the same id.
    (agent.session, agent.sequence) = (kept, 0);
    let mut again = agent.report(&[], at(130));
    again.opening = Some(Uuid::from_u128(100));
    world.contact(&agent, again, at(130)).await.unwrap();
    assert_eq!(gaps(&world, HistoryQuery::default()).await, [(50, Some(130))]);
}
