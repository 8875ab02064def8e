//! Pools: where dynamic reservations are drawn from. Here, what people set and whom it is for; which numbers come out is in
//! `picks`, how full they are in `fill`.

mod fill;
mod picks;

use gk_model::access::{Actor, Role};
use gk_model::history::EventKind;
use gk_model::id::InstanceId;
use gk_model::instance::JoinRequest;
use gk_model::labels::Labels;
use gk_model::pool::{Pick, Pool, PoolSpec, PoolStatus};
use gk_model::query::{Limit, PoolQuery};
use gk_model::reservation::{ReserveRequest, Scope};
use gk_model::text::PoolName;
use gk_model::token::Limits;
use gk_store::{Error, Refusal, Tx};

use super::{new_database, new_world};
use crate::store::world::{World, actor, at, join_request, pool_spec as spec, port, refused, told};

fn name(text: &str) -> PoolName {
    text.parse().unwrap()
}

async fn set(world: &World, pool: &str, spec: PoolSpec) -> Result<(Pool, bool), Error> {
    world.set_pool(pool, spec, None).await
}

async fn delete(world: &World, pool: &str, version: Option<u64>) -> Result<Pool, Error> {
    let (root, name) = (actor("root", Role::Admin), name(pool));
    world.store.write(move |tx| tx.delete_pool(&root, &name, version, at(0))).await
}

async fn get(world: &World, pool: &str) -> Result<PoolStatus, Error> {
    let name = name(pool);
    world.store.read(move |reader| reader.get_pool(&name)).await
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

/// Ada, with a token for these pools only.
fn limited(pools: &[&str]) -> Actor {
    let limits = Limits { instances: None, pools: pools.iter().map(|pool| name(pool)).collect() };
    Actor { limits: Some(limits.into()), ..ada() }
}

#[tokio::test]
async fn a_pool_is_made_changed_and_deleted_and_history_tells_of_it() {
    let world = new_world().await;
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

    set(&world, "web", spec("7000")).await.unwrap();
    delete(&world, "web", None).await.unwrap();
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
async fn a_change_that_insists_on_a_version_changes_no_other() {
    let world = new_world().await;
    set(&world, "web", spec("7000-7009")).await.unwrap();
    set(&world, "web", spec("7000-7008")).await.unwrap();
    for (version, current) in [(1, 2), (3, 2)] {
        let stale = refused(world.set_pool("web", spec("7000"), Some(version)).await);
        assert!(matches!(stale, Refusal::VersionMismatch { current: c } if c == current), "{stale:?}");
        let stale = refused(delete(&world, "web", Some(version)).await);
        assert!(matches!(stale, Refusal::VersionMismatch { current: c } if c == current), "{stale:?}");
    }
    let nobody = refused(world.set_pool("new", spec("7000"), Some(1)).await);
    assert!(matches!(nobody, Refusal::NoSuchPool(_)), "{nobody:?}");
    world.set_pool("web", spec("7000"), Some(2)).await.unwrap();
    delete(&world, "web", Some(3)).await.unwrap();

    // Under its name another one is made, which no version of it stands for.
    let (again, _) = set(&world, "web", spec("7000-7009")).await.unwrap();
    for version in 1..=3 {
        let stale = refused(world.set_pool("web", spec("7001"), Some(version)).await);
        assert!(matches!(stale, Refusal::VersionMismatch { .. }), "{version}: {stale:?}");
        let stale = refused(delete(&world, "web", Some(version)).await);
        assert!(matches!(stale, Refusal::VersionMismatch { .. }), "{version}: {stale:?}");
    }
    delete(&world, "web", Some(again.version)).await.unwrap();
}

#[tokio::test]
async fn pools_are_listed_by_name_in_pages() {
    let world = new_world().await;
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
    let world = new_world().await;
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
async fn only_instances_that_a_pool_is_for_draw_from_it() {
    let world = new_world().await;
    let prod = join(&world, with_labels("web-1", 1, &["env=prod"])).await;
    let dev = join(&world, with_labels("web-2", 2, &["env=dev"])).await;
    let bare = join(&world, with_labels("web-3", 3, &[])).await;
    let only = |labels: &str, ranges: &str| PoolSpec { instances: labels.parse().ok(), ..spec(ranges) };
    set(&world, "prod", only("env=prod", "7000-7009")).await.unwrap();
    set(&world, "dev", only("env in (dev,test)", "7100-7109")).await.unwrap();
    set(&world, "fleet", PoolSpec { scope: Scope::Fleet, ..spec("7200") }).await.unwrap();

    let made = world.reserve(&ada(), &from("prod", prod), at(0)).await.unwrap();
    assert_eq!((told(&made), made.pool), ("7000/tcp".to_owned(), Some(name("prod"))));
    let both = ReserveRequest { instance: None, on: "env in (prod,dev)".parse().ok(), ..from("prod", prod) };
    let everywhere = ReserveRequest { instance: None, scope: Scope::Fleet, ..from("prod", prod) };
    let table = [
        (from("prod", dev), "pool prod is for instances with env=prod, and web-2 has env=dev", "default dev"),
        (from("prod", bare), "pool prod is for instances with env=prod, and web-3 has no labels", "default"),
        (both, "pool prod is for instances with env=prod, and web-2 has env=dev", "default"),
        (
            everywhere,
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
    let world = new_world().await;
    let id = world.join("web-1", 1).await;
    set(&world, "b", spec("7000-7001")).await.unwrap();
    set(&world, "c", spec("7100-7109")).await.unwrap();
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
