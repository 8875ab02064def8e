//! Old history goes, from its beginning only, and nobody is disturbed.

use std::time::Duration;

use gk_model::access::Role;
use gk_model::port::Protocol;
use gk_model::query::HistoryQuery;
use gk_model::reservation::ReserveRequest;
use gk_model::time::Timestamp;
use gk_store::{Pruned, Retention};

use crate::store::world::{World, actor, at, listener};

const DAY: u64 = 86_400;

async fn prune(world: &World, day: u64, most: u32) -> Pruned {
    let keep = Duration::from_secs(10 * DAY);
    let pruned = world.store.write(move |tx| tx.prune(at(day * DAY), keep, most)).await.unwrap();
    assert_eq!(world.store.verify().await.unwrap().problems(), Vec::<String>::new());
    pruned
}

async fn numbers(world: &World) -> (u64, u64) {
    let log = world.store.log().await.unwrap();
    let numbers: Vec<u64> = world.events().await.iter().map(|event| event.seq).collect();
    assert_eq!(numbers, (log.oldest_seq..=log.newest_seq).collect::<Vec<_>>(), "no hole");
    (log.oldest_seq, log.newest_seq)
}

#[tokio::test]
async fn pruning_moves_the_beginning_of_the_log_and_nothing_else() {
    let world = super::new_world().await;
    assert_eq!(numbers(&world).await, (1, 0), "nothing yet");
    let ada = actor("ada", Role::User);
    let id = world.join("web-1", 1).await;
    let mut held = Vec::new();
    for day in 1..=20 {
        held.push(world.reserve(&ada, &ReserveRequest::next_free(id), at(day * DAY)).await.unwrap());
    }
    let live = world.live().await;
    assert_eq!(numbers(&world).await, (1, 21));
    assert_eq!(prune(&world, 10, 500).await, Pruned::default(), "nothing is older than ten days");
    // Days 0 to 4 are older than ten days on day 15; two at a time.
    for (events, is_partial) in [(2, true), (2, true), (1, false)] {
        assert_eq!(prune(&world, 15, 2).await, Pruned { events, rows: 0, is_partial });
    }
    assert_eq!(numbers(&world).await, (6, 21));
    assert_eq!(world.live().await, live, "what is held stays held, however old");
    let history = world.store.read(|reader| reader.list_history(&HistoryQuery::default())).await.unwrap();
    assert_eq!(history.items.len(), 20, "and history says so");

    world.release(&ada, &held[0], at(21 * DAY)).await.unwrap();
    assert_eq!(prune(&world, 30, 500).await.rows, 1, "only the quarantine has ended long enough ago");
    let last = prune(&world, 40, 500).await;
    assert_eq!((last.events, last.rows), (1, 2), "then interval and reservation");
    assert_eq!(numbers(&world).await, (22, 22), "the newest event stays, however old");
    world.reserve(&ada, &ReserveRequest::next_free(id), at(40 * DAY)).await.unwrap();
    assert_eq!(numbers(&world).await, (22, 23), "and the numbers go on");
}

#[tokio::test]
async fn of_too_many_events_the_oldest_go_and_what_had_ended_by_then() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let id = world.join("web-1", 1).await;
    let mut held = Vec::new();
    for second in 1..=10 {
        held.push(world.reserve(&ada, &ReserveRequest::next_free(id), at(second)).await.unwrap());
    }
    for (second, made) in (11..).zip(&held[..4]) {
        world.release(&ada, made, at(second)).await.unwrap();
    }
    assert_eq!(numbers(&world).await, (1, 15));
    let prune = async |most_events, most| {
        let keep = Retention { age: Duration::from_secs(400 * DAY), most_events: Some(most_events) };
        let pruned = world.store.write(move |tx| tx.prune(at(20), keep, most)).await.unwrap();
        assert_eq!(world.store.verify().await.unwrap().problems(), Vec::<String>::new());
        pruned
    };
    assert_eq!(prune(15, 500).await, Pruned::default(), "just as many as there may be");
    assert_eq!(prune(1000, 500).await, Pruned::default());
    // Events 14 and 15 stay, of seconds 13 and 14; what ended in seconds 11 and 12 goes with their events.
    for (events, is_partial) in [(8, true), (5, false)] {
        let pruned = prune(2, 8).await;
        assert_eq!((pruned.events, pruned.is_partial), (events, is_partial));
    }
    assert_eq!(numbers(&world).await, (14, 15));
    let history = world.store.read(|reader| reader.list_history(&HistoryQuery::default())).await.unwrap();
    let ended = history.items.iter().filter_map(|interval| interval.ended_at).collect::<Vec<_>>();
    assert_eq!(ended, [at(14), at(13)], "and still says who held them since when, whose beginning is gone");
    assert_eq!(history.items.len(), 8, "what lasts stays");
    assert_eq!(prune(0, 500).await.events, 1, "the newest stays, whatever is asked for");
    assert_eq!(world.live().await.len(), 6);
}

async fn is_believed(world: &World, now: Timestamp) -> bool {
    let believed = world.store.write(move |tx| tx.believe(now)).await.unwrap();
    assert!(believed.is_none_or(|believed| believed == now));
    believed.is_some()
}

#[tokio::test]
async fn a_clock_that_leaps_is_not_believed_until_the_log_has_gone_on_for_a_day() {
    const HOUR: u64 = 3600;
    let world = super::new_world().await;
    assert!(!is_believed(&world, at(0)).await, "nothing was ever recorded");
    let ada = actor("ada", Role::User);
    let mut agent = world.join_with_agent("web-1", 1, &[]).await;
    let id = agent.id;
    let reserve = async |now| world.reserve(&ada, &ReserveRequest::next_free(id), now).await.unwrap();
    for day in 1..=20 {
        reserve(at(day * DAY)).await;
    }
    let years = 700 * DAY;
    let table = [
        (20 * DAY, true),
        (20 * DAY + 23 * HOUR, true),
        (22 * DAY, true),
        (22 * DAY + HOUR, false), // nothing has happened for two days
        (30 * DAY, false),
        (years, false),
    ];
    for (now, believed) in table {
        assert_eq!(is_believed(&world, at(now)).await, believed, "at {now} s");
    }
    // By the clock that has leapt, the agent tells of yesterday.
    let told = listener(Protocol::Tcp, "0.0.0.0", 80, 1, at(years - 30 * HOUR));
    let contact = agent.delta(std::slice::from_ref(&told), &[], std::slice::from_ref(&told), at(years));
    world.contact(&agent, contact, at(years)).await.unwrap();
    assert_eq!(world.events().await.last().unwrap().at, at(years - 30 * HOUR));
    assert!(!is_believed(&world, at(years)).await, "that it was yesterday is the word of that clock");
    // The server was off for so long indeed, and something happens.
    reserve(at(years)).await;
    let table = [(23, false), (25, true), (47, true), (49, false)];
    for (hours, believed) in table {
        assert_eq!(is_believed(&world, at(years + hours * HOUR)).await, believed, "after {hours} h");
    }
}

#[tokio::test]
async fn without_a_time_that_is_believed_nothing_is_too_old() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let id = world.join("web-1", 1).await;
    for second in 1..=5 {
        let made = world.reserve(&ada, &ReserveRequest::next_free(id), at(second)).await.unwrap();
        world.release(&ada, &made, at(second)).await.unwrap();
    }
    let prune = async |most_events| {
        let keep = Retention { age: Duration::ZERO, most_events };
        world.store.write(move |tx| tx.prune(None, keep, 500)).await.unwrap()
    };
    assert_eq!(prune(None).await, Pruned::default());
    let pruned = prune(Some(3)).await;
    assert_eq!((pruned.events, numbers(&world).await), (8, (9, 11)), "what is too much goes at any time");
    assert_eq!(pruned.rows, 6, "and so do three intervals and their reservations, but no quarantine");
}

#[tokio::test]
async fn an_old_event_behind_a_young_one_waits_for_it() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let id = world.join("web-1", 1).await;
    // On day 20 the clock is found to be 15 days ahead.
    for day in [1, 20, 5, 6] {
        world.reserve(&ada, &ReserveRequest::next_free(id), at(day * DAY)).await.unwrap();
    }
    assert_eq!(prune(&world, 18, 500).await.events, 2);
    assert_eq!(numbers(&world).await, (3, 5));
    assert_eq!(prune(&world, 31, 500).await.events, 2);
    assert_eq!(numbers(&world).await, (5, 5));
}

#[tokio::test]
async fn a_number_rests_no_less_because_of_pruning() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let id = world.join("web-1", 1).await;
    let made = world.reserve(&ada, &ReserveRequest::next_free(id), at(0)).await.unwrap();
    world.release(&ada, &made, at(60)).await.unwrap();
    prune(&world, 0, 500).await;
    let world = world.reopen(at(61)).await;
    let next = world.reserve(&ada, &ReserveRequest::next_free(id), at(61)).await.unwrap();
    assert_ne!(next.first_port, made.first_port);
}
