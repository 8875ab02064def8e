//! Fleet-wide reservations: a number that is one's everywhere, for one instance or for all.

use gk_model::access::Role;
use gk_model::id::InstanceId;
use gk_model::port::Protocol;
use gk_model::port_state::State;
use gk_model::query::{Limit, PortQuery};
use gk_model::reservation::{Protocols, ReserveRequest, Scope};
use gk_store::Refusal;

use crate::store::world::{actor, at, count, listener, port, refused, told};

fn fleet(id: InstanceId) -> ReserveRequest {
    ReserveRequest { scope: Scope::Fleet, ..ReserveRequest::next_free(id) }
}

fn everywhere() -> ReserveRequest {
    ReserveRequest { scope: Scope::Fleet, ..ReserveRequest::default() }
}

fn by_number(request: ReserveRequest, number: u16) -> ReserveRequest {
    ReserveRequest { port: Some(port(number)), ..request }
}

#[tokio::test]
async fn fleet_and_instance_exclude_each_other_in_both_directions() {
    for is_cold in [false, true] {
        let mut world = super::new_world().await;
        let ada = actor("ada", Role::User);
        let (one, two) = (world.join("web-1", 1).await, world.join("web-2", 2).await);
        world.reserve(&ada, &by_number(ReserveRequest::next_free(two), 8000), at(1)).await.unwrap();
        // Loads the map of web-2 before there is anything fleet-wide.
        world.reserve(&ada, &fleet(one), at(1)).await.unwrap();
        if is_cold {
            world = world.reopen(at(1)).await;
        }
        assert_eq!(world.live_ports().await.len(), 2);
        let live = world.live().await;
        let held = live.iter().find(|made| made.scope == Scope::Fleet).unwrap();
        assert_eq!(
            (told(held), held.instance.as_ref().unwrap().id),
            ("8001/tcp".to_owned(), one),
            "8000 is web-2's"
        );
        // Number by number, in both directions, and never twice.
        let before = world.events().await.len();
        for (request, number, words) in [
            (fleet(one), 8000, "8000/tcp on web-2 is reserved"),
            (fleet(two), 8001, "8001/tcp (fleet-wide for web-1) is reserved"),
            (ReserveRequest::next_free(two), 8001, "8001/tcp (fleet-wide for web-1) is reserved"),
            (ReserveRequest::next_free(one), 8001, "8001/tcp (fleet-wide for web-1) is reserved"),
            (everywhere(), 8000, "8000/tcp on web-2 is reserved"),
            (everywhere(), 8001, "8001/tcp (fleet-wide for web-1) is reserved"),
        ] {
            let refusal = refused(world.reserve(&ada, &by_number(request, number), at(2)).await);
            assert_eq!(refusal.to_string(), words, "cold: {is_cold}");
        }
        assert_eq!((world.events().await.len(), world.store.writer_counters().replays), (before, 0));
        let ranges = ReserveRequest { count: count(3), ..by_number(fleet(one), 7999) };
        assert!(
            matches!(refused(world.reserve(&ada, &ranges, at(2)).await), Refusal::PortReserved { port: p, .. } if p == port(8000))
        );
        for (id, expected) in [(two, 8002), (one, 8000)] {
            let made = world.reserve(&ada, &ReserveRequest::next_free(id), at(2)).await.unwrap();
            assert_eq!(made.first_port, port(expected), "what is fleet-wide is not picked on any instance");
        }
        let udp = ReserveRequest { protocol: Protocols::Udp, ..fleet(one) };
        assert_eq!(told(&world.reserve(&ada, &udp, at(2)).await.unwrap()), "8000/udp");
    }
}

#[tokio::test]
async fn a_fleet_pick_avoids_claims_everywhere_and_listeners_where_it_is_held() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let on = |number| [listener(Protocol::Tcp, "0.0.0.0", number, 1, at(0))];
    let one = world.join_with_agent("web-1", 1, &on(8001)).await;
    let two = world.join_with_agent("web-2", 2, &on(8002)).await;
    world.reserve_port(&ada, two.id, 8000).await.unwrap();
    let mut picked = Vec::new();
    for request in [fleet(one.id), fleet(one.id), fleet(two.id)] {
        picked.push(told(&world.reserve(&ada, &request, at(1)).await.unwrap()));
    }
    assert_eq!(picked, ["8002/tcp", "8003/tcp", "8001/tcp"], "a listener elsewhere is no obstacle");

    // After the last claim of a number is gone it is free for the fleet, when it has rested.
    let live = world.live().await;
    for made in live.iter().filter(|made| made.first_port == port(8000)) {
        world.release(&ada, made, at(10)).await.unwrap();
    }
    let mut picked = Vec::new();
    for seconds in [11, 909, 910] {
        picked.push(told(&world.reserve(&ada, &fleet(two.id), at(seconds)).await.unwrap()));
    }
    assert_eq!(picked, ["8004/tcp", "8005/tcp", "8000/tcp"]);
}

#[tokio::test]
async fn a_released_fleet_number_rests_on_every_instance() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let (one, two) = (world.join("web-1", 1).await, world.join("web-2", 2).await);
    let made = world.reserve(&ada, &ReserveRequest { count: count(3), ..fleet(one) }, at(0)).await.unwrap();
    world.reserve(&ada, &ReserveRequest::next_free(two), at(0)).await.unwrap();
    world.release_part(&ada, &made, "8001-8002", at(10)).await.unwrap();
    let mut picked = Vec::new();
    for seconds in [11, 909, 910] {
        picked.push(told(&world.reserve(&ada, &ReserveRequest::next_free(two), at(seconds)).await.unwrap()));
    }
    assert_eq!(picked, ["8004/tcp", "8005/tcp", "8001/tcp"]);
    let by_number = by_number(ReserveRequest::next_free(two), 8002);
    world.reserve(&ada, &by_number, at(911)).await.expect("nobody claims it any more");
}

#[tokio::test]
async fn what_is_held_for_all_avoids_listeners_of_all() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let on = |number| [listener(Protocol::Tcp, "0.0.0.0", number, 1, at(0))];
    world.join_with_agent("web-1", 1, &on(8001)).await;
    world.join_with_agent("web-2", 2, &on(8004)).await;
    let gone = world.join_with_agent("web-3", 3, &on(8007)).await;
    world.leave(gone.id, false, at(1)).await.unwrap();
    let range = ReserveRequest { count: count(3), ..everywhere() };
    let made = world.reserve(&ada, &range, at(2)).await.unwrap();
    assert_eq!(
        (told(&made), made.instance.clone(), made.scope),
        ("8005-8007/tcp".to_owned(), None, Scope::Fleet)
    );
    match refused(world.reserve(&ada, &by_number(range.clone(), 8002), at(2)).await) {
        Refusal::PortInUse { port: used, instance, alternatives, .. } => {
            assert_eq!((used, instance.name.as_str()), (port(8004), "web-2"));
            assert_eq!(alternatives, [port(8008), port(8011), port(8014)]);
        }
        other => panic!("{other:?}"),
    }
    // Beyond the window of one look-up, too.
    let many: Vec<_> = (8008..8600).map(|number| listener(Protocol::Tcp, "::", number, 1, at(0))).collect();
    world.join_with_agent("web-4", 4, &many).await;
    assert_eq!(told(&world.reserve(&ada, &range, at(3)).await.unwrap()), "8600-8602/tcp");

    let both = ReserveRequest { protocol: Protocols::Both, ..range };
    let made = world.reserve_group(&ada, &both, at(3)).await.unwrap();
    assert_eq!(made.iter().map(told).collect::<Vec<_>>(), ["8603-8605/tcp", "8603-8605/udp"]);
    let event = world.events().await.pop().unwrap();
    assert_eq!((event.instance, event.message.as_str()), (None, "8603-8605/udp reserved fleet-wide by ada"));
    assert!(world.history().await.iter().filter(|interval| interval.instance.is_none()).count() == 4);
}

#[tokio::test]
async fn port_states_tell_whose_a_number_is_everywhere() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let on = |number| [listener(Protocol::Tcp, "0.0.0.0", number, 1, at(0))];
    let one = world.join_with_agent("web-1", 1, &on(8000)).await;
    let two = world.join_with_agent("web-2", 2, &on(8001)).await;
    world.reserve(&ada, &by_number(fleet(one.id), 8001), at(1)).await.unwrap();
    world.reserve(&ada, &by_number(fleet(one.id), 8002), at(1)).await.unwrap();
    world.reserve(&ada, &by_number(everywhere(), 8003), at(1)).await.unwrap();
    let states = |id: InstanceId, asked: Option<&str>| {
        let query = PortQuery { port: asked.map(|asked| asked.parse().unwrap()), ..Default::default() };
        let query = PortQuery { protocol: Some(Protocol::Tcp), ..query };
        let found = world.store.read(move |reader| reader.list_ports(Some(&id.into()), &query, at(2)));
        async {
            found.await.unwrap().items.into_iter().map(|it| (it.port.get(), it.state)).collect::<Vec<_>>()
        }
    };
    use State::{Conflict, Reserved, Unreserved};
    let held = [(8000, Unreserved), (8001, Reserved), (8002, Reserved), (8003, Reserved)];
    assert_eq!(states(one.id, None).await, held);
    assert_eq!(states(two.id, None).await, [(8001, Conflict), (8003, Reserved)]);
    assert_eq!(states(two.id, Some("8001-8002")).await, [(8001, Conflict), (8002, Reserved)]);
}

#[tokio::test]
async fn pages_of_port_states_of_every_size_tell_the_same() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    // Several listeners on one port, more than a page holds; both protocols; reservations before, between and after.
    let mut seen: Vec<_> =
        (1..=9).map(|host| listener(Protocol::Tcp, &format!("127.0.0.{host}"), 8000, 1, at(0))).collect();
    seen.extend((8003..8009).map(|number| listener(Protocol::Tcp, "0.0.0.0", number, 1, at(0))));
    seen.extend([8000, 8002].map(|number| listener(Protocol::Udp, "0.0.0.0", number, 1, at(0))));
    let one = world.join_with_agent("web-1", 1, &seen).await;
    world.join_with_agent("web-2", 2, &seen[..10]).await;
    for wanted in [7990, 8001, 8010] {
        world.reserve(&ada, &by_number(ReserveRequest::next_free(one.id), wanted), at(1)).await.unwrap();
    }
    world.reserve(&ada, &by_number(everywhere(), 8011), at(1)).await.unwrap();
    for (instance, range) in [(Some(one.id), None), (Some(one.id), Some("7995-8012")), (None, None)] {
        let pages = async |limit: u32| {
            let (mut found, mut cursor) = (Vec::new(), None);
            loop {
                let port = range.map(|range: &str| range.parse().unwrap());
                let query = PortQuery {
                    port,
                    limit: Some(Limit::at_most(limit)),
                    cursor: cursor.take(),
                    ..PortQuery::default()
                };
                let instance = instance.map(Into::into);
                let list =
                    world.store.read(move |reader| reader.list_ports(instance.as_ref(), &query, at(2)));
                let page = list.await.unwrap();
                assert!(page.items.len() <= limit as usize);
                found.extend(page.items);
                cursor = page.next;
                if cursor.is_none() {
                    return found;
                }
            }
        };
        let whole = pages(1000).await;
        assert!(whole.len() >= 12, "{whole:?}");
        for limit in [1, 2, 3, 7] {
            assert_eq!(pages(limit).await, whole, "{limit} at a time, {instance:?}, {range:?}");
        }
    }
}

#[tokio::test]
async fn the_reserved_ports_of_an_instance_are_its_own_and_those_for_all() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let (one, two) = (world.join("web-1", 1).await, world.join("web-2", 2).await);
    let on = ReserveRequest::next_free;
    let udp = |request| ReserveRequest { protocol: Protocols::Udp, ..request };
    let three = ReserveRequest { count: count(3), ..by_number(on(one), 8100) };
    let wanted = [
        by_number(on(one), 8000),
        udp(by_number(on(one), 8000)),
        udp(by_number(on(one), 8001)),
        three,
        by_number(fleet(one), 9000),
        by_number(everywhere(), 9001),
        by_number(on(two), 8050),
        by_number(fleet(two), 9050),
    ];
    let mut made = Vec::new();
    for request in &wanted {
        made.push(world.reserve(&ada, request, at(1)).await.unwrap());
    }
    let reserved = async |id: InstanceId| {
        let read = world.store.read(move |reader| reader.get_reserved_ports(&id.into())).await;
        read.map(|reserved| reserved.ports.ranges().iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(reserved(one).await.unwrap(), ["8000-8001", "8100-8102", "9000-9001"]);
    assert_eq!(reserved(two).await.unwrap(), ["8050", "9001", "9050"]);
    world.release(&ada, &made[0], at(2)).await.unwrap();
    assert_eq!(reserved(one).await.unwrap()[0], "8000-8001", "its number is held for UDP still");
    world.release(&ada, &made[1], at(2)).await.unwrap();
    world.release_part(&ada, &made[3], "8101", at(2)).await.unwrap();
    assert_eq!(reserved(one).await.unwrap(), ["8001", "8100", "8102", "9000-9001"]);
    world.leave(two, true, at(3)).await.unwrap();
    assert!(matches!(refused(reserved(two).await), Refusal::InstanceLeft(_)));
}

#[tokio::test]
async fn leaving_counts_and_ends_what_is_held_fleet_wide() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let (one, two) = (world.join("web-1", 1).await, world.join("web-2", 2).await);
    let ranges = ReserveRequest { count: count(4), ..fleet(one) };
    world.reserve(&ada, &ranges, at(1)).await.unwrap();
    world.reserve(&ada, &ReserveRequest::next_free(one), at(1)).await.unwrap();
    world.reserve(&ada, &everywhere(), at(1)).await.unwrap();
    let refusal = refused(world.leave(one, false, at(2)).await);
    assert!(matches!(refusal, Refusal::ReservationsLive { count: 2, .. }), "{refusal:?}");
    world.leave(one, true, at(3)).await.unwrap();
    assert_eq!(world.live_ports().await, ["8005/tcp"], "what is held for all stays");
    let freed = by_number(ReserveRequest::next_free(two), 8002);
    world.reserve(&ada, &freed, at(4)).await.expect("the number is free on the others");
    let picked = world.reserve(&ada, &ReserveRequest::next_free(two), at(4)).await.unwrap();
    assert_eq!(picked.first_port, port(8004), "those that were fleet-wide rest; 8004 rests on web-1 only");
}
