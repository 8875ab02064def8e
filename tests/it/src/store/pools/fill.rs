//! How full pools are, against a ledger; and what a change of a pool leaves alone.

use gk_model::access::Role;
use gk_model::id::InstanceId;
use gk_model::pool::{Pool, PoolChange, PoolSpec};
use gk_model::port::Protocol;
use gk_model::reservation::{Protocols, Reservation, ReserveRequest, Scope};
use gk_store::{Refusal, Tx};

use super::{ada, delete, from, get, name, new_database, new_world, set};
use crate::store::world::{World, actor, at, count, pool_spec as spec, port, refused, told};

async fn outside(world: &World, pool: Pool) -> PoolChange {
    world.store.read(move |reader| reader.find_outside(pool.clone())).await.unwrap()
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

/// Requests of every shape, some of whose ports are in a pool.
fn wanted(ids: &[InstanceId]) -> Vec<ReserveRequest> {
    let by_number =
        |id, number: u16| ReserveRequest { port: Some(port(number)), ..ReserveRequest::next_free(id) };
    let fleet = |request| ReserveRequest { scope: Scope::Fleet, ..request };
    let udp = |request| ReserveRequest { protocol: Protocols::Udp, ..request };
    vec![
        fleet(udp(from("web", ids[0]))),
        from("web", ids[0]),
        from("web", ids[1]),
        udp(from("web", ids[1])),
        // Half in the pool, and over the one that it leaves out.
        ReserveRequest { count: count(8), ..by_number(ids[1], 7002) },
        ReserveRequest {
            count: count(2),
            protocol: Protocols::Both,
            instance: None,
            on: "half=odd".parse().ok(),
            ..from("default", ids[0])
        },
        fleet(ReserveRequest { instance: None, ..udp(by_number(ids[0], 7006)) }),
        by_number(ids[2], 5000),
        ReserveRequest { ttl_seconds: 10.try_into().ok(), ..udp(from("web", ids[2])) },
    ]
}

#[tokio::test]
async fn how_full_a_pool_is_agrees_with_what_was_reserved() {
    let world = new_world().await;
    let ids = [world.join("web-1", 1).await, world.join("web-2", 2).await, world.join("web-3", 3).await];
    world.label(ids[0], "half=odd").await;
    world.label(ids[2], "half=odd").await;
    let (web, late, default) = ([7000, 7001, 7002, 7003, 7005, 7006, 7007], [6999, 7000], [8000, 8001, 8002]);
    let pools: [(&str, &[u16]); 2] = [("web", &web), ("default", &default)];
    let mut ledger = Ledger::default();
    set(&world, "web", PoolSpec { exclude: spec("7004").ranges, ..spec("7000-7007") }).await.unwrap();
    set(&world, "default", spec("8000-8002")).await.unwrap();
    ledger.check(&world, &ids, &pools).await;

    let mut made = Vec::new();
    for request in wanted(&ids) {
        let new = world.reserve_group(&ada(), &request, at(0)).await.unwrap();
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
    let world = new_world().await;
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

#[tokio::test]
async fn however_many_counts_one_change_moves_each_is_right() {
    let world = new_world().await;
    let mut ids = Vec::new();
    for number in 0..75_u8 {
        ids.push(world.join(&format!("web-{number}"), number).await);
    }
    let everywhere = ReserveRequest { on: "env!=none".parse().ok(), ..ReserveRequest::default() };
    // 75 counts are 64, 8 and three more.
    let made = world.reserve_group(&ada(), &everywhere, at(0)).await.unwrap();
    let found = get(&world, "default").await.unwrap();
    assert_eq!((found.reserved, found.fullest.unwrap().left), (75, 1999));
    assert_eq!(world.store.verify().await.unwrap().problems(), Vec::<String>::new());
    let release = move |tx: &mut Tx<'_>| {
        made.iter()
            .skip(2)
            .try_for_each(|held| tx.release(&ada(), held.id, None, false, None, at(1)).map(drop))
    };
    world.store.write(release).await.unwrap();
    assert_eq!(get(&world, "default").await.unwrap().reserved, 2);
    assert_eq!(world.store.verify().await.unwrap().problems(), Vec::<String>::new());
}

/// One batch with reservations, a change of a pool, a release, and somebody whose change is undone.
#[tokio::test]
async fn what_is_undone_is_not_counted() {
    let world = new_world().await;
    let id = world.join("web-1", 1).await;
    set(&world, "web", spec("7000-7009")).await.unwrap();
    // This one is not counted anew in the batch.
    set(&world, "beside", spec("7000-7009")).await.unwrap();
    let busy = world.occupy().await;
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
    busy.free_when(9).await;
    for (number, change) in changes.into_iter().enumerate() {
        assert_eq!(change.await.unwrap().is_ok(), number % 3 != 1, "{number}");
    }
    let found = get(&world, "web").await.unwrap();
    assert_eq!((found.reserved, found.fullest.map(|it| it.left)), (3, Some(found.size - 3)));
    assert_eq!(get(&world, "beside").await.unwrap().reserved, 3);
    assert!(world.store.writer_counters().replays > 0, "somebody was undone");
    assert_eq!(world.store.verify().await.unwrap().problems(), Vec::<String>::new());
}

#[tokio::test]
async fn what_becomes_of_a_pool_touches_nothing_that_was_drawn_from_it() {
    let world = new_world().await;
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
async fn pools_come_back_with_a_backup() {
    let world = new_world().await;
    let id = world.join("web-1", 1).await;
    set(&world, "web", PoolSpec { exclude: spec("7001").ranges, ..spec("7000-7009") }).await.unwrap();
    set(&world, "default", spec("8000-8004")).await.unwrap();
    world.reserve(&ada(), &from("web", id), at(0)).await.unwrap();
    let file = world.directory.path().join("pools.backup");
    let (config, to) = (world.config.clone(), file.clone());
    let backup = move || gk_store::backup(&config, &to, at(1), &mut |_| {}).unwrap();
    tokio::task::spawn_blocking(backup).await.unwrap();
    let restored = World::from_backup(new_database(), file, at(2)).await;
    for pool in ["web", "default"] {
        assert_eq!(get(&restored, pool).await.unwrap(), get(&world, pool).await.unwrap());
    }
    assert_eq!(told(&restored.reserve(&ada(), &from("web", id), at(2)).await.unwrap()), "7002/tcp");
    assert_eq!(restored.store.verify().await.unwrap().problems(), Vec::<String>::new());
}
