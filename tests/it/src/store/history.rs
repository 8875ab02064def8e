//! Who held or listened on what, from when to when.

use gk_model::access::Role;
use gk_model::history::{Interval, IntervalKind};
use gk_model::port::Protocol;
use gk_model::query::{EventQuery, HistoryQuery, Limit};

use crate::store::world::{World, actor, at, listener};

async fn history(world: &World, query: HistoryQuery) -> Vec<Interval> {
    let mut found = Vec::new();
    let mut query = HistoryQuery { limit: Some(Limit::at_most(2)), ..query };
    loop {
        let asked = query.clone();
        let page = world.store.read(move |reader| reader.list_history(&asked)).await.unwrap();
        assert!(page.items.len() <= 2);
        found.extend(page.items);
        match page.next {
            None => return found,
            next => query.cursor = next,
        }
    }
}

#[tokio::test]
async fn history_answers_who_and_when() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let on = |pid, seconds| listener(Protocol::Tcp, "0.0.0.0", 8080, pid, at(seconds));
    let mut agent = world.join_with_agent("web-1", 1, &[]).await;
    let made = world.reserve_port(&ada, agent.id, 8080).await.unwrap();
    // Opened at 10 by pid 1, taken over by pid 2 at 20, closed at 30.
    let handed_over = gk_model::listener::Listener { last_seen_at: at(20), ..on(2, 10) };
    for (seconds, seen, closed) in [
        (10, vec![on(1, 10)], vec![]),
        (20, vec![handed_over], vec![]),
        (30, vec![], vec![(on(2, 10).key, at(30))]),
    ] {
        let contact = agent.delta(&seen, &closed, &seen, at(seconds));
        assert!(!world.contact(&agent, contact, at(seconds)).await.unwrap().want_report);
    }
    world.release(&ada, &made, at(40)).await.unwrap();

    let all = history(&world, HistoryQuery::default()).await;
    let lines: Vec<_> = all
        .iter()
        .map(|interval| {
            let pid = interval.listener.as_ref().map(|listener| listener.owners[0].pid);
            (interval.kind, interval.began_at, interval.ended_at, pid)
        })
        .collect();
    use IntervalKind::{Held, Listened};
    let expected = [
        (Listened, at(20), Some(at(30)), Some(2)),
        (Listened, at(10), Some(at(20)), Some(1)),
        (Held, at(0), Some(at(40)), None),
    ];
    assert_eq!(lines, expected);

    let then = |seconds| HistoryQuery {
        at: Some(at(seconds)),
        kind: Some(Listened),
        port: Some("8080".parse().unwrap()),
        ..Default::default()
    };
    for (seconds, pid) in [(5, None), (10, Some(1)), (19, Some(1)), (20, Some(2)), (29, Some(2)), (30, None)]
    {
        let found = history(&world, then(seconds)).await;
        let pids: Vec<u32> =
            found.iter().map(|found| found.listener.as_ref().unwrap().owners[0].pid).collect();
        assert_eq!(pids, pid.into_iter().collect::<Vec<u32>>(), "who listened at {seconds}");
    }
    let since = HistoryQuery { since: Some(at(25)), until: Some(at(15)), ..Default::default() };
    assert_eq!(
        history(&world, since).await.len(),
        1,
        "only the reservation lasted past 25 and began before 15"
    );
    let elsewhere = HistoryQuery { port: Some("1-8079".parse().unwrap()), ..Default::default() };
    assert_eq!(history(&world, elsewhere).await, []);
}

#[tokio::test]
async fn nothing_ends_before_it_began_when_the_clock_steps_back() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let id = world.join("web-1", 1).await;
    let request = gk_model::reservation::ReserveRequest::next_free(id);
    let made = world.reserve(&ada, &request, at(1000)).await.unwrap();
    let released = world.release(&ada, &made, at(10)).await.unwrap();
    assert_eq!(released.released_at, Some(at(1000)));
    assert_eq!(history(&world, HistoryQuery::default()).await[0].ended_at, Some(at(1000)));
}

#[tokio::test]
async fn nothing_ends_before_it_began_when_contacts_travel_unevenly() {
    let world = super::new_world().await;
    let on = |pid, seconds| listener(Protocol::Tcp, "0.0.0.0", 80, pid, at(seconds));
    let mut agent = world.join_with_agent("web-1", 1, &[]).await;
    let handed_over = gk_model::listener::Listener { last_seen_at: at(95), ..on(2, 10) };
    // Sent at 95 and received at 100, so the handover is taken for one at 100; the end, at 97, travels at once.
    for (seen, closed, sent, received) in [
        (vec![on(1, 10)], vec![], 10, 10),
        (vec![handed_over], vec![], 95, 100),
        (vec![], vec![(on(2, 10).key, at(97))], 101, 101),
    ] {
        let contact = agent.delta(&seen, &closed, &seen, at(sent));
        world.contact(&agent, contact, at(received)).await.unwrap();
    }
    for interval in history(&world, HistoryQuery::default()).await {
        assert!(interval.ended_at >= Some(interval.began_at), "{interval:?}");
    }
}

#[tokio::test]
async fn events_since_a_time_are_all_there_though_a_clock_stepped_back() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let id = world.join("web-1", 1).await;
    for seconds in [100, 300, 200, 50, 400] {
        let request = gk_model::reservation::ReserveRequest::next_free(id);
        world.reserve(&ada, &request, at(seconds)).await.unwrap();
    }
    for (since, expected) in [(0, vec![0, 100, 300, 200, 50, 400]), (200, vec![300, 200, 400]), (401, vec![])]
    {
        let query = EventQuery { since: Some(at(since)), ..Default::default() };
        assert_eq!(times(&world, query.clone()).await, expected, "since {since}");
        let backwards = EventQuery { newest: Some(true), ..query };
        let expected: Vec<i64> = expected.into_iter().rev().collect();
        assert_eq!(times(&world, backwards).await, expected, "since {since}, the newest first");
    }
}

/// When the events of a list happened, in seconds, page after page of one.
async fn times(world: &World, query: EventQuery) -> Vec<i64> {
    let (mut found, mut query) = (Vec::new(), EventQuery { limit: Some(Limit::at_most(1)), ..query });
    loop {
        let asked = query.clone();
        let page = world.store.read(move |reader| reader.list_events(&asked)).await.unwrap();
        found.extend(page.items.into_iter().map(|event| event.at.since(at(0)).as_secs() as i64));
        match page.next {
            None => return found,
            next => query.cursor = next,
        }
    }
}

#[tokio::test]
async fn the_log_is_read_backwards_to_where_it_was_pruned_to() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let id = world.join("web-1", 1).await;
    world.label(id, "env=prod").await;
    for seconds in 1..=9 {
        let request = gk_model::reservation::ReserveRequest::next_free(id);
        let made = world.reserve(&ada, &request, at(seconds)).await.unwrap();
        if seconds % 3 == 0 {
            world.release(&ada, &made, at(seconds)).await.unwrap();
        }
    }
    let newest = || EventQuery { newest: Some(true), ..Default::default() };
    let reserved_and_released = [9, 9, 8, 7, 6, 6, 5, 4, 3, 3, 2, 1];
    let kinds = EventQuery { kind: "reserved,released".parse().ok(), ..newest() };
    assert_eq!(times(&world, kinds).await, reserved_and_released);
    let labelled = EventQuery { label: "env=prod".parse().ok(), kind: "released".parse().ok(), ..newest() };
    assert_eq!(times(&world, labelled).await, [9, 6, 3]);
    let first = EventQuery { limit: Some(Limit::at_most(5)), ..newest() };
    let page = world.store.read(move |reader| reader.list_events(&first)).await.unwrap();
    let keep = std::time::Duration::from_secs(1);
    world.store.write(move |tx| tx.prune(at(100), keep, 500)).await.unwrap();
    let rest = EventQuery { cursor: page.next, ..newest() };
    assert_eq!(
        times(&world, rest).await,
        Vec::<i64>::new(),
        "it is gone, and whoever goes back misses nothing"
    );
}

#[tokio::test]
async fn pages_join_to_the_whole() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let id = world.join("web-1", 1).await;
    let mut ledger = Vec::new();
    for number in 9000..9025 {
        world.reserve_port(&ada, id, number).await.unwrap();
        ledger.push(number);
    }
    // All began at the same time, so the order rests on the number of the event.
    ledger.reverse();
    let found = history(&world, HistoryQuery::default()).await;
    assert_eq!(found.iter().map(|interval| interval.first_port.get()).collect::<Vec<_>>(), ledger);
}
