//! Pools: where dynamic reservations are drawn from, how full that is, and what a change of it leaves alone.

use std::collections::{BTreeMap, BTreeSet};

use gk_model::access::{Actor, Role};
use gk_model::facts::Facts;
use gk_model::history::EventKind;
use gk_model::id::InstanceId;
use gk_model::instance::JoinRequest;
use gk_model::labels::Labels;
use gk_model::pool::{Pick, Pool, PoolChange, PoolSpec, PoolStatus};
use gk_model::port::Protocol;
use gk_model::port_set::PortSet;
use gk_model::query::{Limit, PoolQuery};
use gk_model::reservation::{Group, Reservation, ReserveRequest, Scope};
use gk_model::text::PoolName;
use gk_model::token::Limits;
use gk_store::{Error, Refusal, Tx};

use crate::store::world::{World, actor, at, count, join_request, port, refused, told};

fn name(text: &str) -> PoolName {
    text.parse().unwrap()
}

/// `8000-8009,9100`, and everything else as it is unless told.
pub(crate) fn spec(ranges: &str) -> PoolSpec {
    let mut ports = PortSet::default();
    ranges.split(',').for_each(|range| ports.insert_range(range.parse().unwrap()));
    PoolSpec::of(ports)
}

pub(crate) async fn set(world: &World, pool: &str, spec: PoolSpec) -> Result<(Pool, bool), Error> {
    set_at(world, pool, spec, None).await
}

async fn set_at(
    world: &World,
    pool: &str,
    spec: PoolSpec,
    version: Option<u64>,
) -> Result<(Pool, bool), Error> {
    let (root, name) = (actor("root", Role::Admin), name(pool));
    world.store.write(move |tx| tx.set_pool(&root, &name, &spec, version, at(0))).await
}

async fn delete(world: &World, pool: &str, version: Option<u64>) -> Result<Pool, Error> {
    let (root, name) = (actor("root", Role::Admin), name(pool));
    world.store.write(move |tx| tx.delete_pool(&root, &name, version, at(0))).await
}

async fn get(world: &World, pool: &str) -> Result<PoolStatus, Error> {
    let name = name(pool);
    world.store.read(move |reader| reader.get_pool(&name)).await
}

async fn outside(world: &World, pool: Pool) -> PoolChange {
    world.store.read(move |reader| reader.find_outside(pool.clone())).await.unwrap()
}

fn from(pool: &str, id: InstanceId) -> ReserveRequest {
    ReserveRequest { pool: Some(name(pool)), ..ReserveRequest::next_free(id) }
}

fn with_labels(name: &str, seed: u8, labels: &[&str]) -> JoinRequest {
    let labels = labels.iter().map(|label| label.parse().unwrap()).collect::<Vec<_>>();
    JoinRequest { labels: Labels::try_from(labels).unwrap(), ..join_request(name, seed) }
}

async fn join(world: &World, request: JoinRequest) -> InstanceId {
    let root = actor("root", Role::Admin);
    world.store.write(move |tx| tx.join(&root, &request, at(0))).await.unwrap().0.id
}

fn ada() -> Actor {
    actor("ada", Role::User)
}

#[tokio::test]
async fn a_pool_is_made_changed_and_deleted_and_history_tells_of_it() {
    let world = super::new_world().await;
    let first = get(&world, "default").await.unwrap();
    assert_eq!(
        (first.pool.describe(), first.size),
        ("8000-9999, scope instance, pick lowest, quarantine 15m".to_owned(), 2000)
    );
    assert_eq!((first.reserved, first.fullest, first.pool.version), (0, None, 1));
    assert!(matches!(refused(get(&world, "web").await), Refusal::NoSuchPool(_)));

    let (made, is_new) = set(&world, "web", spec("7000-7009")).await.unwrap();
    assert_eq!((made.version, is_new), (1, true));
    let (same, is_new) = set(&world, "web", spec("7000-7004,7005-7009")).await.unwrap();
    assert_eq!((same, is_new), (made, false), "the same in other words changes nothing");
    let all = PoolSpec {
        exclude: spec("7003").ranges,
        pick: Pick::Random,
        quarantine_seconds: 0.try_into().unwrap(),
        instances: Some("env=prod".parse().unwrap()),
        ephemeral: true,
        note: Some("for the web".parse().unwrap()),
        scope: Scope::Fleet,
        ..spec("7000-7009,40000")
    };
    let (changed, _) = set(&world, "web", all.clone()).await.unwrap();
    assert_eq!((changed.spec(), changed.version), (all, 2));
    let shown = get(&world, "web").await.unwrap();
    assert_eq!((shown.pool, shown.size), (changed, 10));

    for (version, current) in [(1, 2), (3, 2)] {
        let stale = refused(set_at(&world, "web", spec("7000"), Some(version)).await);
        assert!(matches!(stale, Refusal::VersionMismatch { current: c } if c == current), "{stale:?}");
        let stale = refused(delete(&world, "web", Some(version)).await);
        assert!(matches!(stale, Refusal::VersionMismatch { current: c } if c == current), "{stale:?}");
    }
    let nobody = refused(set_at(&world, "new", spec("7000"), Some(1)).await);
    assert!(matches!(nobody, Refusal::NoSuchPool(_)), "{nobody:?}");
    set_at(&world, "web", spec("7000"), Some(2)).await.unwrap();
    delete(&world, "web", Some(3)).await.unwrap();
    assert!(matches!(refused(delete(&world, "web", None).await), Refusal::NoSuchPool(_)));
    assert!(matches!(refused(delete(&world, "default", None).await), Refusal::DefaultPoolStays));
    set(&world, "default", spec("9000-9001")).await.expect("it can be changed");

    let events = world.events().await;
    let told: Vec<(EventKind, &str)> = events.iter().map(|event| (event.kind, &*event.message)).collect();
    assert_eq!(
        told,
        [
            (
                EventKind::PoolSet,
                "pool web set by root: 7000-7009, scope instance, pick lowest, quarantine 15m"
            ),
            (
                EventKind::PoolSet,
                "pool web set by root: 7000-7009,40000 without 7003, scope fleet, pick random, quarantine 0s, for \
             instances with env=prod, ephemeral ports too"
            ),
            (EventKind::PoolSet, "pool web set by root: 7000, scope instance, pick lowest, quarantine 15m"),
            (
                EventKind::PoolDeleted,
                "pool web deleted by root: 7000, scope instance, pick lowest, quarantine 15m"
            ),
            (
                EventKind::PoolSet,
                "pool default set by root: 9000-9001, scope instance, pick lowest, quarantine 15m"
            ),
        ]
    );
    assert_eq!(world.store.verify().await.unwrap().problems(), Vec::<String>::new());
}

#[tokio::test]
async fn pools_are_listed_by_name_in_pages() {
    let world = super::new_world().await;
    for number in [3, 1, 2] {
        set(&world, &format!("p{number}"), spec(&format!("700{number}"))).await.unwrap();
    }
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let query = PoolQuery { cursor, limit: Some(Limit::at_most(1)) };
        let page = world.store.read(move |reader| reader.list_pools(&query)).await.unwrap();
        found.extend(page.items.into_iter().map(|it| (it.pool.name.to_string(), it.pool.numbers())));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let found: Vec<(&str, &str)> = found.iter().map(|(name, numbers)| (&**name, &**numbers)).collect();
    assert_eq!(found, [("default", "8000-9999"), ("p1", "7001"), ("p2", "7002"), ("p3", "7003")]);
}

#[tokio::test]
async fn pools_share_numbers_only_where_they_have_the_same_scope() {
    let world = super::new_world().await;
    set(&world, "web", spec("8500-8509,10000-10009")).await.expect("both are of the scope instance");
    let fleet = |ranges: &str| PoolSpec { scope: Scope::Fleet, ..spec(ranges) };
    let refusal = refused(set(&world, "all", fleet("7000-7009,10005-10020")).await);
    assert_eq!(
        refusal.to_string(),
        "10005-10009 of pool all are in pool web too, and its scope is instance, not fleet: pools share numbers only \
         where their scope is the same"
    );
    set(&world, "all", fleet("7000-7009,10010-10020")).await.unwrap();
    set(&world, "more", fleet("7005-7020")).await.expect("both are of the scope fleet");
    let before = world.events().await.len();
    for (pool, wanted) in [("web", spec("7009")), ("default", spec("8000,7020")), ("web", fleet("8500-8509"))]
    {
        let refusal = refused(set(&world, pool, wanted).await);
        assert!(matches!(refusal, Refusal::PoolOverlaps { .. }), "{refusal:?}");
    }
    let without = PoolSpec { exclude: spec("7000-7020").ranges, ..spec("6990-7030") };
    set(&world, "web", without).await.expect("what it leaves out is not shared");
    let own = fleet("7000-7009");
    set(&world, "more", own).await.unwrap();
    delete(&world, "all", None).await.unwrap();
    set(&world, "more", spec("7000-7009")).await.expect("its own numbers do not stand in its way");
    assert_eq!((world.events().await.len(), world.store.writer_counters().replays), (before + 4, 0));
}

#[tokio::test]
async fn ports_of_outgoing_connections_are_given_only_by_pools_that_say_so() {
    let world = super::new_world().await;
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

#[tokio::test]
async fn only_instances_that_a_pool_is_for_draw_from_it() {
    let world = super::new_world().await;
    let prod = join(&world, with_labels("web-1", 1, &["env=prod"])).await;
    let dev = join(&world, with_labels("web-2", 2, &["env=dev"])).await;
    let bare = join(&world, with_labels("web-3", 3, &[])).await;
    let only = |labels: &str, ranges: &str| PoolSpec { instances: labels.parse().ok(), ..spec(ranges) };
    set(&world, "prod", only("env=prod", "7000-7009")).await.unwrap();
    set(&world, "dev", only("env in (dev,test)", "7100-7109")).await.unwrap();
    set(&world, "fleet", PoolSpec { scope: Scope::Fleet, ..spec("7200") }).await.unwrap();

    let made = world.reserve(&ada(), &from("prod", prod), at(0)).await.unwrap();
    assert_eq!((told(&made), made.pool), ("7000/tcp".to_owned(), Some(name("prod"))));
    let also_on = Group { also_on: vec![dev.into()], ..Group::default() };
    let everywhere = Group { everywhere: true, ..Group::default() };
    let table = [
        (from("prod", dev), "pool prod is for instances with env=prod, and web-2 has env=dev", "default dev"),
        (from("prod", bare), "pool prod is for instances with env=prod, and web-3 has no labels", "default"),
        (
            ReserveRequest { group: also_on, ..from("prod", prod) },
            "pool prod is for instances with env=prod, and web-2 has env=dev",
            "default",
        ),
        (
            ReserveRequest { group: everywhere, ..from("prod", prod) },
            "pool prod is for instances with env=prod, and this is to be held for all of them",
            "default",
        ),
    ];
    for (request, words, would_do) in table {
        let refusal = refused(world.reserve_group(&ada(), &request, at(0)).await);
        assert_eq!(refusal.to_string(), words);
        let Refusal::PoolNotForInstance { others, .. } = refusal else { unreachable!("{words}") };
        assert_eq!(others.iter().map(PoolName::as_str).collect::<Vec<_>>().join(" "), would_do);
    }
    world.reserve_port(&ada(), dev, 7001).await.expect("by number anybody may");

    // What the labels are now counts, and so does what the pool is now; what is held stays held.
    let service = |request| ReserveRequest { service: "billing".parse().ok(), ensure: true, ..request };
    let kept = world.reserve(&ada(), &service(from("prod", prod)), at(0)).await.unwrap();
    for (id, labels) in [(dev, &["env=prod"][..]), (prod, &[])] {
        let (root, labels) = (actor("root", Role::Operator), with_labels("x", 9, labels).labels);
        let label = move |tx: &mut Tx<'_>| tx.label_instance(&root, &id.into(), &labels, None, at(0));
        world.store.write(label).await.unwrap();
    }
    assert_eq!(told(&world.reserve(&ada(), &from("prod", dev), at(0)).await.unwrap()), "7000/tcp");
    let other = refused(world.reserve(&ada(), &from("prod", prod), at(0)).await);
    assert!(matches!(other, Refusal::PoolNotForInstance { .. }), "{other:?}");
    let again = world.reserve(&ada(), &service(from("prod", prod)), at(1)).await.unwrap();
    assert_eq!(again, kept, "it is not drawn, it is held");
    set(&world, "prod", spec("7000-7009")).await.unwrap();
    world.reserve(&ada(), &from("prod", bare), at(0)).await.expect("it is for all of them now");
}

#[tokio::test]
async fn a_request_without_a_pool_draws_from_the_first_of_its_token_or_the_default() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    set(&world, "b", spec("7000-7001")).await.unwrap();
    set(&world, "c", spec("7100-7109")).await.unwrap();
    let limited = |pools: &[&str]| {
        let limits = Limits { instances: None, pools: pools.iter().map(|pool| name(pool)).collect() };
        Actor { limits: Some(limits.into()), ..ada() }
    };
    let draw = async |actor: &Actor, request: ReserveRequest| {
        world.reserve(actor, &request, at(0)).await.map(|made| (made.first_port.get(), made.pool))
    };
    let next = || ReserveRequest::next_free(id);
    assert_eq!(draw(&ada(), next()).await.unwrap(), (8000, Some(name("default"))));
    assert_eq!(draw(&limited(&["c", "b"]), next()).await.unwrap(), (7000, Some(name("b"))));
    assert_eq!(draw(&limited(&["c", "b"]), from("c", id)).await.unwrap().0, 7100);
    let beyond = refused(draw(&limited(&["c"]), from("b", id)).await);
    assert!(matches!(beyond, Refusal::BeyondLimits(_)), "{beyond:?}");
    let by_number = |number| ReserveRequest { port: Some(port(number)), ..next() };
    assert_eq!(draw(&limited(&["c"]), by_number(7105)).await.unwrap(), (7105, None));
    assert!(matches!(refused(draw(&limited(&["c"]), by_number(7001)).await), Refusal::BeyondLimits(_)));
    // What is offered instead is what the token may draw from.
    draw(&limited(&["b"]), next()).await.unwrap();
    match refused(draw(&limited(&["b", "c"]), next()).await) {
        Refusal::PoolExhausted { others, .. } => assert_eq!(others, [name("c")]),
        other => panic!("{other:?}"),
    }
    let gone = refused(draw(&limited(&["gone"]), next()).await);
    assert!(matches!(gone, Refusal::NoSuchPool(_)), "{gone:?}");
}

/// At which second a number is given again that was released at second 0.
async fn rests(world: &World, id: InstanceId, made: &Reservation, seconds: u64) -> Result<(), String> {
    world.release(&ada(), made, at(0)).await.unwrap();
    let only = PoolSpec { exclude: PortSet::default(), ..spec(&made.ports().to_string()) };
    set(world, "probe", PoolSpec { quarantine_seconds: 0.try_into().unwrap(), ..only }).await.unwrap();
    let probe = ReserveRequest { protocol: made.protocol, ..from("probe", id) };
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
    let world = super::new_world().await;
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
        (ReserveRequest { protocol: Protocol::Udp, ..from("short", id) }, 60),
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
    let world = super::new_world().await;
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
    let world = super::new_world().await;
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
    let udp = ReserveRequest { protocol: Protocol::Udp, ..ReserveRequest::next_free(one) };
    world.reserve(&ada(), &ReserveRequest { port: Some(port(7065)), ..udp }, at(0)).await.unwrap();

    let pair = ReserveRequest { count: count(2), ..from("any", one) };
    let both = Group { both_protocols: true, ..Group::default() };
    let also = Group { also_on: vec![two.into()], ..Group::default() };
    let fleet = ReserveRequest { scope: Scope::Fleet, ..from("any", one) };
    let everywhere = Group { everywhere: true, both_protocols: true, ..Group::default() };
    let table: [(ReserveRequest, &[u16]); 6] = [
        (from("any", one), &[7000, 7001, 7002, 7003, 7010, 7011, 7013, 7063, 7064, 7065, 7066]),
        (pair.clone(), &[7000, 7001, 7002, 7010, 7063, 7064, 7065]),
        (ReserveRequest { group: both, ..pair.clone() }, &[7000, 7001, 7002, 7010, 7063]),
        (ReserveRequest { group: also, ..pair }, &[7002, 7010, 7063, 7064, 7065]),
        (fleet, &[7000, 7002, 7003, 7010, 7011, 7013, 7063, 7064, 7065, 7066]),
        (
            ReserveRequest { group: everywhere, ..from("any", one) },
            &[7000, 7002, 7003, 7010, 7011, 7013, 7063, 7064, 7066],
        ),
    ];
    for (request, starts) in table {
        let (asked, rounds) = (request.clone(), 40 * starts.len());
        // All rounds are one change, because each change is a sync.
        let draw = move |tx: &mut Tx<'_>| {
            let mut seen: BTreeMap<u16, u32> = BTreeMap::new();
            for _ in 0..rounds {
                let made = tx.reserve_group(&ada(), &asked, at(0))?;
                *seen.entry(made[0].first_port.get()).or_default() += 1;
                for held in made {
                    tx.release(&ada(), held.id, None, false, None, at(0))?;
                }
            }
            Ok(seen)
        };
        let seen = world.store.write(draw).await.unwrap();
        assert_eq!(seen.keys().copied().collect::<Vec<_>>(), starts, "{request:?}");
        // 40 each on average: so far off happens by chance once in some million runs.
        assert!(seen.values().all(|times| (8..=80).contains(times)), "{seen:?}");
    }
}

#[tokio::test]
async fn random_picks_fill_a_pool_to_the_last_port() {
    let world = super::new_world().await;
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
    let udp = ReserveRequest { protocol: Protocol::Udp, count: count(10), ..from("any", id) };
    let names = ["a", "b", "c"].iter().map(|name| name.parse().unwrap()).collect();
    let group = Group { names, ..Group::default() };
    let made = world.reserve_group(&ada(), &ReserveRequest { group, ..udp }, at(0)).await.unwrap();
    let made: BTreeSet<String> = made.iter().map(told).collect();
    let expected = ["7000-7009/udp", "7010-7019/udp", "7020-7029/udp"];
    assert_eq!(made, expected.map(str::to_owned).into());
}

/// What a test has reserved: place (none for the fleet), protocol, port.
#[derive(Default)]
struct Ledger(Vec<(Option<InstanceId>, Protocol, u16)>);

impl Ledger {
    fn add(&mut self, made: &Reservation) {
        self.0.extend(made.ports().ports().map(|port| (Ledger::space(made), made.protocol, port.get())));
    }

    fn remove(&mut self, made: &Reservation, ports: impl Iterator<Item = u16>) {
        for port in ports {
            let gone = (Ledger::space(made), made.protocol, port);
            let index = self.0.iter().position(|held| *held == gone).unwrap();
            self.0.remove(index);
        }
    }

    fn space(made: &Reservation) -> Option<InstanceId> {
        made.instance.as_ref().filter(|_| made.scope == Scope::Instance).map(|link| link.id)
    }

    /// Compares how full the pools are said to be, and asks the store to check itself.
    async fn check(&self, world: &World, instances: &[InstanceId], pools: &[(&str, &[u16])]) {
        for (pool, ports) in pools {
            let inside: Vec<_> = self.0.iter().filter(|(_, _, port)| ports.contains(port)).collect();
            let left = |place: InstanceId, protocol: Protocol| {
                let taken = |held: &&&(Option<InstanceId>, Protocol, u16)| {
                    held.1 == protocol && (held.0.is_none() || held.0 == Some(place))
                };
                ports.len() - inside.iter().filter(taken).count()
            };
            let all = instances.iter().flat_map(|id| Protocol::ALL.iter().map(|it| left(*id, *it)));
            let expected = all.min().unwrap();
            let found = get(world, pool).await.unwrap();
            assert_eq!((found.size as usize, found.reserved), (ports.len(), inside.len() as u64), "{pool}");
            match found.fullest {
                None => assert!(inside.is_empty(), "{pool}"),
                Some(fullest) => {
                    assert_eq!(fullest.left as usize, expected, "{pool}: {fullest:?}");
                    let place = fullest.instance.as_ref().map_or(instances[0], |link| link.id);
                    assert_eq!(left(place, fullest.protocol), expected, "{pool}: {fullest:?}");
                }
            }
        }
        assert_eq!(world.store.verify().await.unwrap().problems(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn how_full_a_pool_is_agrees_with_what_was_reserved() {
    let world = super::new_world().await;
    let ids = [world.join("web-1", 1).await, world.join("web-2", 2).await, world.join("web-3", 3).await];
    let (web, late, default) = ([7000, 7001, 7002, 7003, 7005, 7006, 7007], [6999, 7000], [8000, 8001, 8002]);
    let pools: [(&str, &[u16]); 2] = [("web", &web), ("default", &default)];
    let mut ledger = Ledger::default();
    set(&world, "web", PoolSpec { exclude: spec("7004").ranges, ..spec("7000-7007") }).await.unwrap();
    set(&world, "default", spec("8000-8002")).await.unwrap();
    ledger.check(&world, &ids, &pools).await;

    let by_number =
        |id, number: u16| ReserveRequest { port: Some(port(number)), ..ReserveRequest::next_free(id) };
    let fleet = |request| ReserveRequest { scope: Scope::Fleet, ..request };
    let udp = |request| ReserveRequest { protocol: Protocol::Udp, ..request };
    let both = Group { both_protocols: true, also_on: vec![ids[2].into()], ..Group::default() };
    let everywhere = Group { everywhere: true, ..Group::default() };
    let wanted = [
        fleet(udp(from("web", ids[0]))),
        from("web", ids[0]),
        from("web", ids[1]),
        udp(from("web", ids[1])),
        // Half in the pool, and over the one that it leaves out.
        ReserveRequest { count: count(8), ..by_number(ids[1], 7002) },
        ReserveRequest { count: count(2), group: both, ..from("default", ids[0]) },
        ReserveRequest { group: everywhere, ..udp(by_number(ids[0], 7006)) },
        by_number(ids[2], 5000),
        ReserveRequest { ttl_seconds: 10.try_into().ok(), ..udp(from("web", ids[2])) },
    ];
    let mut made = Vec::new();
    for request in &wanted {
        let new = world.reserve_group(&ada(), request, at(0)).await.unwrap();
        new.iter().for_each(|new| ledger.add(new));
        made.extend(new);
        ledger.check(&world, &ids, &pools).await;
    }
    // Nobody is refused, and nothing is counted twice.
    let again = refused(world.reserve_port(&ada(), ids[1], 7003).await);
    assert!(matches!(again, Refusal::PortReserved { .. }), "{again:?}");
    ledger.check(&world, &ids, &pools).await;

    let range = made.iter().find(|held| held.ports().count() == 8).unwrap().clone();
    world.release_part(&ada(), &range, "7003-7005", at(1)).await.unwrap();
    ledger.remove(&range, 7003..=7005);
    ledger.check(&world, &ids, &pools).await;
    let single =
        made.iter().find(|held| held.first_port == port(7000) && held.scope == Scope::Fleet).unwrap();
    world.release(&ada(), single, at(1)).await.unwrap();
    ledger.remove(single, 7000..=7000);
    ledger.check(&world, &ids, &pools).await;
    let lease = made.iter().find(|held| held.expires_at.is_some()).unwrap();
    for second in [100, 110] {
        let elapsed = std::time::Duration::from_secs(10);
        let tick =
            gk_model::lease::Tick { now: at(second), elapsed: Some(elapsed), since_start: elapsed * 10 };
        world.store.expire_leases(tick).await.unwrap();
    }
    ledger.remove(lease, std::iter::once(lease.first_port.get()));
    ledger.check(&world, &ids, &pools).await;

    // A pool that comes late counts what was there before, and one that changes counts anew.
    set(&world, "late", spec("6999-7000")).await.unwrap();
    let pools = [("web", &web[..]), ("default", &default), ("late", &late)];
    ledger.check(&world, &ids, &pools).await;
    set(&world, "web", spec("7002-7003")).await.unwrap();
    let pools = [("web", &[7002, 7003][..]), ("default", &default), ("late", &late)];
    ledger.check(&world, &ids, &pools).await;
    let (world, of_web_2) = (world.reopen(at(200)).await, ids[1]);
    ledger.check(&world, &ids, &pools).await;

    world.leave(of_web_2, true, at(300)).await.unwrap();
    ledger.0.retain(|(place, ..)| *place != Some(of_web_2));
    ledger.check(&world, &[ids[0], ids[2]], &pools).await;
    delete(&world, "late", None).await.unwrap();
    set(&world, "late", spec("6999-7000")).await.unwrap();
    ledger.check(&world, &[ids[0], ids[2]], &pools).await;
}

#[tokio::test]
async fn what_is_fleet_wide_is_missing_everywhere() {
    let world = super::new_world().await;
    let (one, _) = (world.join("web-1", 1).await, world.join("web-2", 2).await);
    set(&world, "all", PoolSpec { scope: Scope::Fleet, ..spec("7000-7009") }).await.unwrap();
    world.reserve(&ada(), &ReserveRequest { count: count(4), ..from("all", one) }, at(0)).await.unwrap();
    let found = get(&world, "all").await.unwrap();
    let fullest = found.fullest.unwrap();
    assert_eq!((found.reserved, fullest.instance, fullest.left), (4, None, 6));
    world.reserve_port(&ada(), one, 7009).await.unwrap();
    let found = get(&world, "all").await.unwrap();
    let fullest = found.fullest.unwrap();
    assert_eq!((found.reserved, fullest.instance.map(|link| link.id), fullest.left), (5, Some(one), 5));
}

/// One batch with reservations, a change of a pool, a release, and somebody whose change is undone.
#[tokio::test]
async fn what_is_undone_is_not_counted() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    set(&world, "web", spec("7000-7009")).await.unwrap();
    let (busy, is_busy) = tokio::sync::oneshot::channel();
    let (free, is_free) = std::sync::mpsc::channel::<()>();
    let (store, mut busy) = (world.store.clone(), Some(busy));
    let keep_busy = tokio::spawn(async move {
        let wait = move |_: &mut Tx<'_>| {
            busy.take().into_iter().for_each(|busy| busy.send(()).unwrap());
            is_free.recv().unwrap();
            Ok(())
        };
        store.write(wait).await
    });
    is_busy.await.unwrap();
    let changes: Vec<_> = (0..9_u16)
        .map(|number| {
            let store = world.store.clone();
            tokio::spawn(async move {
                let change = move |tx: &mut Tx<'_>| {
                    let made = tx.reserve(&ada(), &from("web", id), at(0))?;
                    match number % 3 {
                        0 => Ok(()),
                        // Pools change in the middle, and this one comes to nothing.
                        1 => {
                            let root = actor("root", Role::Admin);
                            tx.set_pool(
                                &root,
                                &name("web"),
                                &spec(&format!("7000-701{number}")),
                                None,
                                at(0),
                            )?;
                            Err(Refusal::BadCursor.into())
                        }
                        _ => {
                            let root = actor("root", Role::Admin);
                            tx.set_pool(
                                &root,
                                &name("web"),
                                &spec(&format!("7000-702{number}")),
                                None,
                                at(0),
                            )?;
                            tx.release(&ada(), made.id, None, false, None, at(0)).map(drop)
                        }
                    }
                };
                store.write(change).await
            })
        })
        .collect();
    while world.store.metrics().queue_length < 9 {
        tokio::task::yield_now().await;
    }
    free.send(()).unwrap();
    keep_busy.await.unwrap().unwrap();
    for (number, change) in changes.into_iter().enumerate() {
        assert_eq!(change.await.unwrap().is_ok(), number % 3 != 1, "{number}");
    }
    let found = get(&world, "web").await.unwrap();
    assert_eq!((found.reserved, found.fullest.map(|it| it.left)), (3, Some(found.size - 3)));
    assert!(world.store.writer_counters().replays > 0, "somebody was undone");
    assert_eq!(world.store.verify().await.unwrap().problems(), Vec::<String>::new());
}

#[tokio::test]
async fn what_becomes_of_a_pool_touches_nothing_that_was_drawn_from_it() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    set(&world, "web", spec("7000-7099")).await.unwrap();
    let range = ReserveRequest { count: count(10), ..from("web", id) };
    world.reserve(&ada(), &range, at(0)).await.unwrap();
    for _ in 0..30 {
        world.reserve(&ada(), &from("web", id), at(0)).await.unwrap();
    }
    world.reserve_port(&ada(), id, 7095).await.unwrap();
    let before = world.live().await;
    let shown = |change: &PoolChange| change.first_outside.iter().map(told).collect::<Vec<_>>();

    let (pool, _) = set(&world, "web", spec("7000-7008,7012-7099")).await.unwrap();
    let change = outside(&world, pool).await;
    assert_eq!(
        (change.outside, shown(&change)),
        (3, ["7000-7009/tcp", "7010/tcp", "7011/tcp"].map(str::to_owned).into())
    );
    let (pool, _) = set(&world, "web", spec("7000-7199")).await.unwrap();
    assert_eq!(outside(&world, pool).await.outside, 0);
    let (pool, _) = set(&world, "web", spec("7200")).await.unwrap();
    let change = outside(&world, pool).await;
    assert_eq!(
        (change.outside, change.first_outside.len()),
        (31, PoolChange::SHOWN),
        "not what was taken by number"
    );
    let deleted = delete(&world, "web", None).await.unwrap();
    assert_eq!(outside(&world, deleted).await.outside, 31);
    assert_eq!(world.live().await, before, "all of it is as it was");
    for held in &before {
        world.release(&ada(), held, at(0)).await.unwrap();
    }
    assert_eq!(world.store.verify().await.unwrap().problems(), Vec::<String>::new());
}

#[tokio::test]
async fn ensure_gives_no_number_again_that_its_pool_gives_no_more() {
    let world = super::new_world().await;
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

#[tokio::test]
async fn a_pool_that_is_used_up_says_how_large_it_is_and_which_others_have_room() {
    let world = super::new_world().await;
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

#[tokio::test]
async fn pools_come_back_with_a_backup() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    set(&world, "web", PoolSpec { exclude: spec("7001").ranges, ..spec("7000-7009") }).await.unwrap();
    set(&world, "default", spec("8000-8004")).await.unwrap();
    world.reserve(&ada(), &from("web", id), at(0)).await.unwrap();
    let file = world.directory.path().join("pools.backup");
    let (config, to) = (world.config.clone(), file.clone());
    let backup = move || gk_store::backup(&config, &to, at(1), &mut |_| {}).unwrap();
    tokio::task::spawn_blocking(backup).await.unwrap();
    let restored = World::from_backup(super::new_database(), file, at(2)).await;
    for pool in ["web", "default"] {
        assert_eq!(get(&restored, pool).await.unwrap(), get(&world, pool).await.unwrap());
    }
    assert_eq!(told(&restored.reserve(&ada(), &from("web", id), at(2)).await.unwrap()), "7002/tcp");
    assert_eq!(restored.store.verify().await.unwrap().problems(), Vec::<String>::new());
}
