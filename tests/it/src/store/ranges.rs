//! Ranges: contiguous ports, released whole or in part, and the numbers that rest afterwards.

use std::collections::BTreeSet;

use gk_model::access::Role;
use gk_model::history::{EventKind, IntervalKind};
use gk_model::port::{Port, Protocol};
use gk_model::port_set::PortSet;
use gk_model::reservation::{Reservation, ReserveRequest};
use gk_store::Refusal;

use crate::store::world::{actor, at, count, listener, port, refused, told};

fn ports_of(live: &[Reservation]) -> Vec<u16> {
    live.iter().flat_map(|made| made.ports().ports()).map(Port::get).collect()
}

#[tokio::test]
async fn a_range_is_the_lowest_that_fits_between_what_is_taken() {
    let seen = [listener(Protocol::Tcp, "0.0.0.0", 8007, 1, at(0))];
    let world = super::new_world().await;
    let agent = world.join_with_agent("web-1", 1, &seen).await;
    let ada = actor("ada", Role::User);
    let next = ReserveRequest::next_free(agent.id);
    world.reserve_port(&ada, agent.id, 8003).await.unwrap();
    let mut made = Vec::new();
    // 8003 is held and 8007 listened on: so 3, then 3, then none of 3 below 8008.
    for wanted in [3, 3, 1, 100, 4096] {
        let request = ReserveRequest { count: count(wanted), ..next.clone() };
        made.push(
            world
                .reserve(&ada, &request, at(1))
                .await
                .map(|made| told(&made))
                .map_err(|error| error.to_string()),
        );
    }
    let expected = [
        Ok("8000-8002/tcp".to_owned()),
        Ok("8004-8006/tcp".to_owned()),
        Ok("8008/tcp".to_owned()),
        Ok("8009-8108/tcp".to_owned()),
        Err("pool default of 2000 ports has no 4096 contiguous free tcp ports left on web-1".to_owned()),
    ];
    assert_eq!(made, expected);
    assert_eq!(world.events().await.last().unwrap().message, "8009-8108/tcp reserved by ada");

    // From a cold cache the same ports are taken.
    let world = world.reopen(at(2)).await;
    let request = ReserveRequest { count: count(2), ..next };
    assert_eq!(told(&world.reserve(&ada, &request, at(3)).await.unwrap()), "8109-8110/tcp");
}

#[tokio::test]
async fn a_taken_range_is_refused_with_starting_points_for_as_many() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let (ada, bob) = (actor("ada", Role::User), actor("bob", Role::User));
    for number in [8005, 8030] {
        world.reserve_port(&ada, id, number).await.unwrap();
    }
    let before = world.events().await.len();
    let by_number = |first, many| ReserveRequest {
        port: Some(port(first)),
        count: count(many),
        ..ReserveRequest::next_free(id)
    };
    match refused(world.reserve(&bob, &by_number(8001, 10), at(1)).await) {
        Refusal::PortReserved { port: taken, holder, alternatives, .. } => {
            assert_eq!((taken, holder.holder), (port(8005), ada.subject.clone()));
            assert_eq!(alternatives, [port(8006), port(8016), port(8031)]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(world.live_ports().await, ["8005/tcp", "8030/tcp"], "none of the ten");
    assert_eq!(world.events().await.len(), before, "a refusal writes nothing");
    assert_eq!(world.store.writer_counters().replays, 0, "so there was nothing to undo");
    for (first, last) in [(8006, 8015), (8016, 8025)] {
        let made = world.reserve(&bob, &by_number(first, 10), at(2)).await.unwrap();
        assert_eq!((made.first_port, made.last_port), (port(first), port(last)));
    }
    let beyond = refused(world.reserve(&bob, &by_number(65_530, 10), at(2)).await);
    assert!(matches!(beyond, Refusal::Contradiction(found) if found.field == "count"));
}

#[tokio::test]
async fn a_range_by_number_names_the_first_listener_in_the_way() {
    let seen = [8004, 8002].map(|number| listener(Protocol::Tcp, "0.0.0.0", number, 7, at(0)));
    let world = super::new_world().await;
    let agent = world.join_with_agent("web-1", 1, &seen).await;
    let ada = actor("ada", Role::User);
    let request =
        ReserveRequest { port: Some(port(8000)), count: count(8), ..ReserveRequest::next_free(agent.id) };
    match refused(world.reserve(&ada, &request, at(1)).await) {
        Refusal::PortInUse { port: used, listeners, alternatives, .. } => {
            assert_eq!((used, listeners.len()), (port(8002), 1));
            assert_eq!(alternatives, [port(8005), port(8013), port(8021)]);
        }
        other => panic!("{other:?}"),
    }
}

/// Releases each possible part of a range of five, and counts the ports before and after.
#[tokio::test]
async fn releasing_a_part_conserves_the_ports() {
    for first in 8000..8005u16 {
        for last in first..8005u16 {
            let world = super::new_world().await;
            let id = world.join("web-1", 1).await;
            let ada = actor("ada", Role::User);
            let request = ReserveRequest {
                count: count(5),
                service: "billing".parse().ok(),
                ..ReserveRequest::next_free(id)
            };
            let made = world.reserve(&ada, &request, at(0)).await.unwrap();
            let answer = world.release_part(&ada, &made, &format!("{first}-{last}"), at(10)).await.unwrap();
            let live = world.live().await;
            let remaining: Vec<u16> = (8000..8005).filter(|port| *port < first || *port > last).collect();
            assert_eq!(ports_of(&live), remaining, "{first}-{last} of 8000-8004");
            // The lowest part keeps the id, and the other tells where it comes from.
            let ids: Vec<_> = live.iter().map(|part| (part.id == made.id, part.split_from)).collect();
            let expected = [(true, None), (false, Some(made.id))];
            assert_eq!(ids, expected[..live.len()]);
            assert_eq!((answer.id, answer.version), (made.id, 2));
            match live.first() {
                Some(kept) => assert_eq!(*kept, answer, "what was answered is what is stored"),
                None => assert_eq!(answer.released_at, Some(at(10))),
            }
            for part in &live {
                let same = |it: &Reservation| {
                    (it.created_at, it.service.clone(), it.pool.clone(), it.holder.clone())
                };
                assert_eq!(same(part), same(&made));
            }
            // Exactly the released ports rest, and each remaining one is still claimed by the right reservation.
            let next =
                ReserveRequest { busy: (8005..=9999).map(port).collect(), ..ReserveRequest::next_free(id) };
            assert!(matches!(
                refused(world.reserve(&ada, &next, at(11)).await),
                Refusal::PoolExhausted { .. }
            ));
            for number in 8000..8005u16 {
                let wanted = ReserveRequest { port: Some(port(number)), ..ReserveRequest::next_free(id) };
                match world.reserve(&ada, &wanted, at(12)).await {
                    Ok(_) => assert!((first..=last).contains(&number)),
                    Err(gk_store::Error::Refused(refusal)) => match *refusal {
                        Refusal::PortReserved { holder, .. } => {
                            assert!(holder.ports().contains(port(number)) && remaining.contains(&number));
                        }
                        other => panic!("{other:?}"),
                    },
                    Err(other) => panic!("{other:?}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn a_split_is_true_history() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let ada = actor("ada", Role::User);
    let request = ReserveRequest { count: count(9), ..ReserveRequest::next_free(id) };
    let made = world.reserve(&ada, &request, at(0)).await.unwrap();
    world.release_part(&ada, &made, "8003-8005", at(10)).await.unwrap();
    let kept = world.live().await.remove(0);
    world.release(&ada, &kept, at(20)).await.unwrap();
    let lines: Vec<_> = world
        .history()
        .await
        .iter()
        .map(|it| (it.kind, it.first_port.get(), it.last_port.get(), it.began_at, it.ended_at))
        .collect();
    use IntervalKind::Held;
    let expected = [
        (Held, 8000, 8008, at(0), Some(at(10))),
        (Held, 8000, 8002, at(10), Some(at(20))),
        (Held, 8006, 8008, at(10), None),
    ];
    assert_eq!(lines, expected);
    let events: Vec<_> =
        world.events().await.iter().skip(1).map(|it| (it.kind, it.first_port, it.last_port)).collect();
    use EventKind::{Released, Reserved, Split};
    let ports = |first, last| (Some(port(first)), Some(port(last)));
    let expected = [
        (Reserved, ports(8000, 8008)),
        (Released, ports(8003, 8005)),
        (Split, ports(8000, 8002)),
        (Split, ports(8006, 8008)),
        (Released, ports(8000, 8002)),
    ];
    assert_eq!(events, expected.map(|(kind, (first, last))| (kind, first, last)));
    // The part that went on is released under its own id, also from a cold cache.
    let world = world.reopen(at(21)).await;
    let other = world.live().await.remove(0);
    world.release(&ada, &other, at(30)).await.unwrap();
    assert_eq!(world.live_ports().await, Vec::<String>::new());
    assert_eq!(world.history().await.last().unwrap().ended_at, Some(at(30)));
}

#[tokio::test]
async fn only_its_own_ports_and_only_the_holder() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let (ada, bob) = (actor("ada", Role::User), actor("bob", Role::User));
    let request = ReserveRequest { count: count(5), ..ReserveRequest::next_free(id) };
    let made = world.reserve(&ada, &request, at(0)).await.unwrap();
    let before = world.events().await.len();
    for outside in ["7999-8000", "8004-8005", "9000", "7000-9000"] {
        let refusal = refused(world.release_part(&ada, &made, outside, at(1)).await);
        assert_eq!(
            refusal.to_string(),
            format!("{outside} is not all in the reservation of 8000-8004/tcp on web-1")
        );
    }
    let theft = refused(world.release_part(&bob, &made, "8002", at(1)).await);
    assert!(matches!(theft, Refusal::NotTheHolder(_)));
    assert_eq!(
        (world.events().await.len(), world.live_ports().await),
        (before, vec!["8000-8004/tcp".to_owned()])
    );
}

#[tokio::test]
async fn a_released_range_rests_as_a_whole() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let ada = actor("ada", Role::User);
    let request = ReserveRequest { count: count(10), ..ReserveRequest::next_free(id) };
    let made = world.reserve(&ada, &request, at(0)).await.unwrap();
    world.release(&ada, &made, at(10)).await.unwrap();
    let mut picked = Vec::new();
    for seconds in [10, 909, 910] {
        picked.push(told(&world.reserve(&ada, &request, at(seconds)).await.unwrap()));
    }
    assert_eq!(
        picked,
        ["8010-8019/tcp", "8020-8029/tcp", "8000-8009/tcp"],
        "15 minutes, and not a second less"
    );
    let by_number = ReserveRequest { port: Some(port(8500)), ..request };
    let made = world.reserve(&ada, &by_number, at(1000)).await.unwrap();
    world.release(&ada, &made, at(1000)).await.unwrap();
    world.reserve(&ada, &by_number, at(1000)).await.expect("by number it need not rest");
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_never_overlap_whatever_runs_at_the_same_time() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let callers = (0..8).map(|caller: u32| {
        let store = world.store.clone();
        tokio::spawn(async move {
            let ada = actor(&format!("caller-{caller}"), Role::User);
            let mut ledger = PortSet::default();
            for round in 0..12 {
                let (ada, request) =
                    (ada.clone(), ReserveRequest { count: count(7), ..ReserveRequest::next_free(id) });
                let made = store
                    .write(move |tx| {
                        let made = tx.reserve(&ada, &request, at(0))?;
                        if round % 3 == 0 {
                            let first = made.first_port.get();
                            let middle = format!("{}-{}", first + 2, first + 3).parse().unwrap();
                            tx.release(&ada, made.id, Some(middle), false, None, at(1))?;
                        }
                        Ok(made)
                    })
                    .await
                    .unwrap();
                ledger.insert_range(made.ports());
                if round % 3 == 0 {
                    let first = made.first_port.get();
                    ledger.remove_range(format!("{}-{}", first + 2, first + 3).parse().unwrap());
                }
            }
            ledger
        })
    });
    let callers: Vec<_> = callers.collect();
    let mut ledger = Vec::new();
    for caller in callers {
        ledger.extend(caller.await.unwrap().iter().map(Port::get).collect::<Vec<_>>());
    }
    let distinct: BTreeSet<u16> = ledger.iter().copied().collect();
    assert_eq!(distinct.len(), ledger.len(), "each port once");
    let live: BTreeSet<u16> = ports_of(&world.live().await).into_iter().collect();
    assert_eq!(live, distinct, "what is stored is what was answered");
}
