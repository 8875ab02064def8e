//! Which numbers a pool gives, and how long they rest.

use std::collections::{BTreeMap, BTreeSet};

use gk_model::facts::Facts;
use gk_model::history::EventKind;
use gk_model::id::InstanceId;
use gk_model::pool::{Pick, PoolSpec};
use gk_model::port_set::PortSet;
use gk_model::reservation::{Protocols, Reservation, ReserveRequest, Scope};
use gk_store::{Refusal, Tx};

use super::{ada, delete, from, join, limited, name, new_world, set, with_labels};
use crate::store::world::{World, at, count, join_request, pool_spec as spec, port, refused, told};

#[tokio::test]
async fn ports_of_outgoing_connections_are_given_only_by_pools_that_say_so() {
    let world = new_world().await;
    let refusal = refused(set(&world, "high", spec("32767-32769")).await);
    let Refusal::Contradiction(fault) = refusal else { panic!("{refusal:?}") };
    assert_eq!(fault.field, "ephemeral");
    assert!(fault.what.contains("32768-60999, which Linux gives to outgoing connections"), "{}", fault.what);
    set(&world, "high", PoolSpec { ephemeral: true, ..spec("32767-32769") }).await.unwrap();

    let mut request = join_request("web-1", 1);
    request.facts = Facts { ephemeral_ports: Some("7000-33000".parse().unwrap()), ..request.facts };
    let id = join(&world, request).await;
    let ephemeral = PoolSpec { ephemeral: true, ..spec("7001,9000") };
    set(&world, "low", spec("6998-7001")).await.unwrap();
    set(&world, "own", ephemeral).await.unwrap();
    let mut picked = Vec::new();
    for pool in ["high", "low", "low", "own"] {
        picked.push(world.reserve(&ada(), &from(pool, id), at(0)).await.unwrap().first_port.get());
    }
    assert_eq!(picked, [32_767, 6998, 6999, 7001]);
    let full = refused(world.reserve(&ada(), &from("low", id), at(0)).await);
    assert!(matches!(full, Refusal::PoolExhausted { size: 4, .. }), "{full:?}");
}

/// At which second a number is given again that was released at second 0.
async fn rests(world: &World, id: InstanceId, made: &Reservation, seconds: u64) -> Result<(), String> {
    world.release(&ada(), made, at(0)).await.unwrap();
    let only = PoolSpec { exclude: PortSet::default(), ..spec(&made.ports().to_string()) };
    set(world, "probe", PoolSpec { quarantine_seconds: 0.try_into().unwrap(), ..only }).await.unwrap();
    let probe = ReserveRequest { protocol: made.protocol.into(), ..from("probe", id) };
    for (second, expected) in [(seconds.saturating_sub(1), seconds == 0), (seconds, true)] {
        let answer = world.reserve(&ada(), &probe, at(second)).await;
        if answer.is_ok() != expected {
            return Err(format!("{} after {second} s of {seconds}: {answer:?}", told(made)));
        }
        if let Ok(probe) = answer {
            world.release(&ada(), &probe, at(second)).await.unwrap();
        }
    }
    delete(world, "probe", None).await.unwrap();
    Ok(())
}

#[tokio::test]
async fn a_number_rests_as_long_as_its_pool_says() {
    let world = new_world().await;
    let id = world.join("web-1", 1).await;
    let resting = |ranges: &str, seconds: i64| PoolSpec {
        quarantine_seconds: seconds.try_into().unwrap(),
        ..spec(ranges)
    };
    set(&world, "short", resting("7000-7019", 60)).await.unwrap();
    set(&world, "long", resting("7010-7029", 3600)).await.unwrap();
    set(&world, "none", resting("7100-7109", 0)).await.unwrap();
    let by_number = |first: u16, ports| ReserveRequest {
        port: Some(port(first)),
        count: count(ports),
        ..ReserveRequest::next_free(id)
    };
    let table = [
        (from("short", id), 60),
        (from("long", id), 3600),
        (from("none", id), 0),
        (by_number(7001, 1), 60),
        (by_number(7012, 1), 3600),
        (by_number(7105, 1), 0),
        (by_number(6000, 1), 900),
        (ReserveRequest { protocol: Protocols::Udp, ..from("short", id) }, 60),
    ];
    for (request, seconds) in table {
        let made = world.reserve(&ada(), &request, at(0)).await.unwrap();
        rests(&world, id, &made, seconds).await.unwrap();
    }
    // A range rests as a whole, as long as the longest of its pools says.
    let made = world.reserve(&ada(), &by_number(7008, 4), at(0)).await.unwrap();
    rests(&world, id, &made, 3600).await.unwrap();

    // What the pool says at the release counts, not what it said before; and without the pool, its numbers are anybody's.
    let drawn = world.reserve(&ada(), &from("short", id), at(0)).await.unwrap();
    let other = world.reserve(&ada(), &from("short", id), at(0)).await.unwrap();
    set(&world, "short", resting("7500", 30)).await.unwrap();
    rests(&world, id, &drawn, 30).await.unwrap();
    delete(&world, "short", None).await.unwrap();
    rests(&world, id, &other, 900).await.unwrap();
}

#[tokio::test]
async fn an_expired_number_rests_as_its_pool_says_too() {
    let world = new_world().await;
    let id = world.join("web-1", 1).await;
    set(&world, "brief", PoolSpec { quarantine_seconds: 30.try_into().unwrap(), ..spec("7000") })
        .await
        .unwrap();
    let lease = ReserveRequest { ttl_seconds: 10.try_into().ok(), ..from("brief", id) };
    world.reserve(&ada(), &lease, at(0)).await.unwrap();
    for second in [100, 110] {
        let elapsed = std::time::Duration::from_secs(10);
        let tick =
            gk_model::lease::Tick { now: at(second), elapsed: Some(elapsed), since_start: elapsed * 10 };
        world.store.expire_leases(tick).await.unwrap();
    }
    assert_eq!(world.live_ports().await, Vec::<String>::new());
    let ended = world.events().await.pop().unwrap();
    assert_eq!(ended.kind, EventKind::Expired);
    let after = |seconds| ended.recorded_at.plus(std::time::Duration::from_secs(seconds));
    refused(world.reserve(&ada(), &from("brief", id), after(29)).await);
    world.reserve(&ada(), &from("brief", id), after(30)).await.expect("it has rested");
}

#[tokio::test]
async fn a_random_pick_is_any_of_those_that_fit_and_reaches_each() {
    let world = new_world().await;
    let (one, two) = (world.join("web-1", 1).await, world.join("web-2", 2).await);
    let random = PoolSpec {
        pick: Pick::Random,
        quarantine_seconds: 0.try_into().unwrap(),
        exclude: spec("7012").ranges,
        ..spec("7000-7003,7010-7013,7063-7066")
    };
    set(&world, "any", random).await.unwrap();
    // Taken on the other instance, and for the other protocol.
    world.reserve_port(&ada(), two, 7001).await.unwrap();
    let udp = ReserveRequest { protocol: Protocols::Udp, ..ReserveRequest::next_free(one) };
    world.reserve(&ada(), &ReserveRequest { port: Some(port(7065)), ..udp }, at(0)).await.unwrap();

    let pair = ReserveRequest { count: count(2), ..from("any", one) };
    let both = ReserveRequest { protocol: Protocols::Both, ..pair.clone() };
    let on_each = ReserveRequest { instance: None, on: "env!=none".parse().ok(), ..pair.clone() };
    let fleet = ReserveRequest { scope: Scope::Fleet, ..from("any", one) };
    let everywhere = ReserveRequest { instance: None, protocol: Protocols::Both, ..fleet.clone() };
    let table: [(ReserveRequest, &[u16]); 6] = [
        (from("any", one), &[7000, 7001, 7002, 7003, 7010, 7011, 7013, 7063, 7064, 7065, 7066]),
        (pair, &[7000, 7001, 7002, 7010, 7063, 7064, 7065]),
        (both, &[7000, 7001, 7002, 7010, 7063]),
        (on_each, &[7002, 7010, 7063, 7064, 7065]),
        (fleet, &[7000, 7002, 7003, 7010, 7011, 7013, 7063, 7064, 7065, 7066]),
        (everywhere, &[7000, 7002, 7003, 7010, 7011, 7013, 7063, 7064, 7066]),
    ];
    for (request, starts) in table {
        let (asked, rounds) = (request.clone(), 100 * starts.len());
        // All rounds are one change, because each change is a sync.
        let draw = move |tx: &mut Tx<'_>| {
            let mut seen: BTreeMap<u16, u32> = BTreeMap::new();
            for _ in 0..rounds {
                let made = tx.reserve_group(&ada(), &asked, at(0))?.items;
                *seen.entry(made[0].first_port.get()).or_default() += 1;
                for held in made {
                    tx.release(&ada(), held.id, None, false, None, at(0))?;
                }
            }
            Ok(seen)
        };
        let seen = world.store.write(draw).await.unwrap();
        assert_eq!(seen.keys().copied().collect::<Vec<_>>(), starts, "{request:?}");
        // 100 each on average: so far off happens by chance once in some ten million runs.
        assert!(seen.values().all(|times| (45..=160).contains(times)), "{seen:?}");
    }
}

#[tokio::test]
async fn random_picks_fill_a_pool_to_the_last_port() {
    let world = new_world().await;
    let id = world.join("web-1", 1).await;
    set(&world, "any", PoolSpec { pick: Pick::Random, ..spec("7000-7029") }).await.unwrap();
    let mut picked = BTreeSet::new();
    for _ in 0..30 {
        picked.insert(world.reserve(&ada(), &from("any", id), at(0)).await.unwrap().first_port.get());
    }
    assert_eq!(picked, (7000..=7029).collect());
    assert!(matches!(
        refused(world.reserve(&ada(), &from("any", id), at(0)).await),
        Refusal::PoolExhausted { size: 30, .. }
    ));
    // Three runs of ten fit in one way only, which no luck may miss.
    let udp = ReserveRequest { protocol: Protocols::Udp, count: count(10), ..from("any", id) };
    let names = ["a", "b", "c"].iter().map(|name| name.parse().unwrap()).collect();
    let made = world.reserve_group(&ada(), &ReserveRequest { names, ..udp }, at(0)).await.unwrap();
    let made: BTreeSet<String> = made.iter().map(told).collect();
    let expected = ["7000-7009/udp", "7010-7019/udp", "7020-7029/udp"];
    assert_eq!(made, expected.map(str::to_owned).into());
}

#[tokio::test]
async fn ensure_gives_no_number_again_that_its_pool_gives_no_more() {
    let world = new_world().await;
    let id = world.join("web-1", 1).await;
    set(&world, "web", spec("7000-7009")).await.unwrap();
    let ensure = ReserveRequest { service: "billing".parse().ok(), ensure: true, ..from("web", id) };
    let made = world.reserve(&ada(), &ensure, at(0)).await.unwrap();
    world.release(&ada(), &made, at(1)).await.unwrap();
    let made = world.reserve(&ada(), &ensure, at(2)).await.unwrap();
    assert_eq!(told(&made), "7000/tcp", "the same again");
    world.release(&ada(), &made, at(3)).await.unwrap();
    set(&world, "web", spec("7005-7009")).await.unwrap();
    assert_eq!(told(&world.reserve(&ada(), &ensure, at(4)).await.unwrap()), "7005/tcp");
}

/// The same service on one instance, or on all with these labels, from any pool.
fn billing(id: InstanceId, on: &str) -> ReserveRequest {
    let instance = on.is_empty().then_some(id.into());
    let service = "billing".parse().ok();
    ReserveRequest { instance, on: on.parse().ok(), service, ensure: true, ..ReserveRequest::next_free(id) }
}

#[tokio::test]
async fn ensure_gives_no_number_again_that_its_token_may_not_draw() {
    let world = new_world().await;
    set(&world, "blue", spec("7001-7009")).await.unwrap();
    set(&world, "red", spec("7101-7109")).await.unwrap();
    set(&world, "low-red", spec("7101-7104")).await.unwrap();
    // Where its last number came from, under a token without limits; then the token's pools, and what it gets.
    let table = [
        (Ok("blue"), &["red"][..], "7101/tcp", Some("red")),
        (Ok("blue"), &["blue", "red"], "7001/tcp", Some("blue")),
        (Ok("low-red"), &["red"], "7102/tcp", Some("red")),
        (Err(7005), &["red"], "7101/tcp", Some("red")),
        (Err(7005), &["blue"], "7005/tcp", None),
    ];
    for (seed, (origin, pools, expected, pool)) in (1..).zip(table) {
        let id = world.join(&format!("web-{seed}"), seed).await;
        let last = match origin {
            Ok(pool) => ReserveRequest { pool: Some(name(pool)), ..billing(id, "") },
            Err(number) => ReserveRequest { port: Some(port(number)), ..billing(id, "") },
        };
        let last = world.reserve(&ada(), &last, at(0)).await.unwrap();
        world.release(&ada(), &last, at(1)).await.unwrap();
        let token = limited(pools);
        let planned = ReserveRequest { dry_run: true, ..billing(id, "") };
        let planned = world.reserve(&token, &planned, at(2)).await.unwrap();
        let made = world.reserve(&token, &billing(id, ""), at(2)).await.unwrap();
        assert_eq!((told(&made), made.pool), (expected.to_owned(), pool.map(name)), "{origin:?} {pools:?}");
        assert_eq!(told(&planned), expected, "nor does a dry run");
    }
}

#[tokio::test]
async fn ensure_gives_no_number_again_of_a_pool_that_is_not_for_the_instance_any_more() {
    let world = new_world().await;
    let id = join(&world, with_labels("web-1", 1, &["env=prod"])).await;
    let prod = PoolSpec { instances: "env=prod".parse().ok(), ..spec("7000-7009") };
    set(&world, "web", prod).await.unwrap();
    let from_web = ReserveRequest { pool: Some(name("web")), ..billing(id, "") };
    let first = world.reserve(&ada(), &from_web, at(0)).await.unwrap();
    world.release(&ada(), &first, at(0)).await.unwrap();
    let again = world.reserve(&ada(), &billing(id, ""), at(1)).await.unwrap();
    assert_eq!((told(&again), again.pool.clone()), ("7000/tcp".to_owned(), Some(name("web"))));
    world.release(&ada(), &again, at(1)).await.unwrap();
    world.label(id, "env=dev").await;
    let refusal = refused(world.reserve(&ada(), &from_web, at(0)).await);
    assert!(matches!(refusal, Refusal::PoolNotForInstance { .. }), "{refusal:?}");
    let other = world.reserve(&ada(), &billing(id, ""), at(0)).await.unwrap();
    assert_eq!((told(&other), other.pool), ("8000/tcp".to_owned(), Some(name("default"))));
}

#[tokio::test]
async fn ensure_completes_nothing_with_numbers_that_could_not_be_drawn() {
    let world = new_world().await;
    let prod = join(&world, with_labels("web-1", 1, &["env=prod", "team=red"])).await;
    let dev = join(&world, with_labels("web-2", 2, &["env=dev", "team=red"])).await;
    let for_prod = PoolSpec { instances: "env=prod".parse().ok(), ..spec("7000-7009") };
    set(&world, "web", for_prod).await.unwrap();
    let from_web = ReserveRequest { pool: Some(name("web")), ..billing(prod, "") };
    let held = world.reserve(&ada(), &from_web, at(0)).await.unwrap();
    let events = world.events().await.len();
    let both = billing(prod, "team=red");
    match refused(world.reserve_group(&ada(), &both, at(0)).await) {
        Refusal::PoolNotForInstance { pool, place, others, .. } => {
            assert_eq!((pool, place.unwrap().0.id, others), (name("web"), dev, vec![name("default")]));
        }
        other => panic!("{other:?}"),
    }
    set(&world, "web", spec("7000-7009")).await.unwrap();
    let beyond = refused(world.reserve_group(&limited(&["default"]), &both, at(0)).await);
    assert!(matches!(&beyond, Refusal::BeyondLimits(_)), "{beyond:?}");
    assert_eq!((world.events().await.len(), world.store.writer_counters().replays), (events + 1, 0));

    // Where it is held it is not looked at, and by number anybody may who may have the number.
    let kept = world.reserve(&limited(&["default"]), &billing(prod, ""), at(0)).await.unwrap();
    assert_eq!(kept, held);
    let for_dev = PoolSpec { instances: "env=dev".parse().ok(), ..spec("7000-7009") };
    set(&world, "web", for_dev).await.unwrap();
    let whole = world.reserve_group(&ada(), &both, at(0)).await.unwrap();
    assert_eq!(whole.iter().map(told).collect::<Vec<_>>(), ["7000/tcp", "7000/tcp"]);
    world.release(&ada(), &whole[1], at(0)).await.unwrap();
    let for_none = PoolSpec { instances: "env=none".parse().ok(), ..spec("7000-7009") };
    set(&world, "web", for_none).await.unwrap();
    let by_number = ReserveRequest { port: Some(port(7000)), ..both };
    world.reserve_group(&ada(), &by_number, at(0)).await.expect("its number is free there");
}

#[tokio::test]
async fn a_pool_that_is_used_up_says_how_large_it_is_and_which_others_have_room() {
    let world = new_world().await;
    let id = join(&world, with_labels("web-1", 1, &["env=prod"])).await;
    set(&world, "web", spec("7000-7001")).await.unwrap();
    set(&world, "full", spec("7000")).await.unwrap();
    set(&world, "pair", spec("7100-7101")).await.unwrap();
    set(&world, "dev", PoolSpec { instances: "env=dev".parse().ok(), ..spec("7200-7299") }).await.unwrap();
    set(&world, "fleet", PoolSpec { scope: Scope::Fleet, ..spec("7300-7399") }).await.unwrap();
    let first = world.reserve(&ada(), &from("web", id), at(0)).await.unwrap();
    world.reserve(&ada(), &from("web", id), at(0)).await.unwrap();
    let refusal = refused(world.reserve(&ada(), &from("web", id), at(0)).await);
    assert_eq!(refusal.to_string(), "pool web of 2 ports has no free tcp port left on web-1");
    let Refusal::PoolExhausted { others, .. } = refusal else { unreachable!("see above") };
    assert_eq!(others, [name("default"), name("pair")]);
    let three = ReserveRequest { count: count(3), ..from("web", id) };
    match refused(world.reserve(&ada(), &three, at(0)).await) {
        Refusal::PoolExhausted { others, .. } => assert_eq!(others, [name("default")]),
        other => panic!("{other:?}"),
    }
    world.release(&ada(), &first, at(0)).await.unwrap();
    assert_eq!(told(&world.reserve(&ada(), &from("web", id), at(900)).await.unwrap()), "7000/tcp");
}
