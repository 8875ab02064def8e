//! Never a port twice, whatever runs at the same time and whatever fails next to it.

use std::collections::BTreeSet;
use std::time::Duration;

use gk_model::access::Role;
use gk_model::port::Protocol;
use gk_model::port_set::PortSet;
use gk_model::reservation::ReserveRequest;
use gk_model::token::TokenRequest;
use gk_store::{Error, Refusal, StoreError};

use crate::store::world::{actor, at, credential, listener, port, refused};

#[tokio::test(flavor = "multi_thread")]
async fn no_double_allocation() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let callers: Vec<_> = (0..16)
        .map(|caller| {
            let store = world.store.clone();
            tokio::spawn(async move {
                let actor = actor(&format!("caller-{caller}"), Role::User);
                let mut ledger = Vec::new();
                for _ in 0..50 {
                    let (actor, request) = (actor.clone(), ReserveRequest::next_free(id));
                    let made = store.write(move |tx| tx.reserve(&actor, &request, at(0))).await.unwrap();
                    ledger.push((made.first_port.get(), made.holder));
                }
                ledger
            })
        })
        .collect();
    let mut ledger = Vec::new();
    for caller in callers {
        ledger.extend(caller.await.unwrap());
    }
    let distinct: BTreeSet<u16> = ledger.iter().map(|(number, _)| *number).collect();
    assert_eq!(distinct, (8000..8800).collect(), "lowest first, and each once");
    let mut live: Vec<_> =
        world.live().await.into_iter().map(|made| (made.first_port.get(), made.holder)).collect();
    live.sort();
    ledger.sort();
    assert_eq!(live, ledger, "what is stored is what was answered");
    let counters = world.store.writer_counters();
    assert!(counters.commits < counters.answers, "concurrent callers share a commit: {counters:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_fails_is_its_own_callers_alone() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let user = actor("ada", Role::User);
    let token = move |tx: &mut gk_store::Tx<'_>| {
        let wanted = TokenRequest::for_subject("ada".parse().unwrap(), Role::User);
        tx.create_token(&actor("root", Role::Admin), credential(200), &wanted, at(0)).map(drop)
    };
    world.store.write(token).await.unwrap();
    let mut answers = Vec::new();
    for number in 0..60u16 {
        let (store, user) = (world.store.clone(), user.clone());
        answers.push(tokio::spawn(async move {
            // Every sixth one runs into a primary key, which a database across a network tells only later.
            if number % 6 == 3 {
                return store.write(token).await.map(|()| number);
            }
            let request = ReserveRequest { port: Some(port(9000 + number)), ..ReserveRequest::next_free(id) };
            store
                .write(move |tx| tx.reserve(&user, &request, at(0)))
                .await
                .map(|made| made.first_port.get() - 9000)
        }));
    }
    for (number, answer) in answers.into_iter().enumerate() {
        match (number % 6, answer.await.unwrap()) {
            (3, Err(Error::Failed(StoreError::Database(_)))) => {}
            (0..3 | 4.., Ok(same)) => assert_eq!(usize::from(same), number),
            (_, other) => panic!("closure {number}: {other:?}"),
        }
    }
    assert_eq!(world.live().await.len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_ends_so_that_other_servers_get_theirs() {
    let world = super::new_world().await;
    let before = world.store.writer_counters().commits;
    let slow: Vec<_> = (0..4)
        .map(|_| {
            let store = world.store.clone();
            tokio::spawn(async move {
                // Each takes longer than a whole turn.
                let work = |_: &mut gk_store::Tx<'_>| {
                    std::thread::park_timeout(Duration::from_millis(300));
                    Ok(())
                };
                store.write(work).await
            })
        })
        .collect();
    for answer in slow {
        answer.await.unwrap().unwrap();
    }
    assert_eq!(world.store.writer_counters().commits - before, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_neighbour_harms_nobody_and_leaves_no_gap() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let user = actor("ada", Role::User);
    let mut answers = Vec::new();
    for number in 0..60u16 {
        let (store, user) = (world.store.clone(), user.clone());
        let request = ReserveRequest { port: Some(port(9000 + number)), ..ReserveRequest::next_free(id) };
        answers.push(tokio::spawn(async move {
            store
                .write(move |tx| {
                    let made = tx.reserve(&user, &request, at(0))?;
                    match number % 6 {
                        0 => panic!("on purpose, after writing"),
                        1 => Err(Refusal::BadCursor.into()), // a refusal that has written: must be undone
                        _ => Ok(made),
                    }
                })
                .await
        }));
    }
    let mut expected = BTreeSet::new();
    for (number, answer) in answers.into_iter().enumerate() {
        match (number % 6, answer.await.unwrap()) {
            (0, Err(Error::Failed(StoreError::Panicked(_)))) | (1, Err(Error::Refused(_))) => {}
            (2.., Ok(made)) => drop(expected.insert(made.first_port.get())),
            (_, other) => panic!("closure {number}: {other:?}"),
        }
    }
    assert_eq!(expected.len(), 40);
    let live: BTreeSet<u16> = world.live().await.iter().map(|made| made.first_port.get()).collect();
    assert_eq!(live, expected);
    let numbers: Vec<u64> = world.events().await.iter().map(|event| event.seq).collect();
    assert_eq!(numbers, (1..=41).collect::<Vec<u64>>(), "joined, then 40 reserved, without a gap");
    assert!(world.store.writer_counters().replays > 0, "the failures were replayed, not ignored");
}

#[tokio::test]
async fn a_pool_ends_with_a_clear_refusal() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let user = actor("ada", Role::User);
    let busy: PortSet = (8001..=9999).map(port).collect();
    let request = ReserveRequest { busy, ..ReserveRequest::next_free(id) };
    assert_eq!(world.reserve(&user, &request, at(0)).await.unwrap().first_port, port(8000));
    let refusal = refused(world.reserve(&user, &request, at(0)).await);
    assert_eq!(refusal.to_string(), "pool default of 2000 ports has no free tcp port left on web-1");
    let made = world.live().await.remove(0);
    world.release(&user, &made, at(1)).await.unwrap();
    let refusal = refused(world.reserve(&user, &request, at(2)).await);
    assert_eq!(
        refusal.to_string(),
        "pool default of 2000 ports has no free tcp port left on web-1; one of its ports rests after its release, and can be had by number"
    );
    let udp = ReserveRequest { protocol: Protocol::Udp.into(), ..request };
    assert_eq!(
        world.reserve(&user, &udp, at(0)).await.unwrap().first_port,
        port(8000),
        "udp is another port"
    );
}

#[tokio::test]
async fn a_taken_port_is_refused_with_its_holder_and_alternatives() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let (ada, bob) = (actor("ada", Role::User), actor("bob", Role::User));
    let request = ReserveRequest {
        port: Some(port(8001)),
        service: Some("billing".parse().unwrap()),
        ..ReserveRequest::next_free(id)
    };
    world.reserve(&ada, &request, at(0)).await.unwrap();
    match refused(world.reserve(&bob, &request, at(1)).await) {
        Refusal::PortReserved { holder, alternatives, .. } => {
            assert_eq!(holder.holder, ada.subject);
            assert_eq!(holder.service.unwrap().as_str(), "billing");
            assert_eq!(alternatives, [port(8000), port(8002), port(8003)]);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_released_port_rests_before_it_is_picked_again() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let user = actor("ada", Role::User);
    let next = ReserveRequest::next_free(id);
    let made = world.reserve(&user, &next, at(0)).await.unwrap();
    world.release(&user, &made, at(10)).await.unwrap();
    let mut picked = Vec::new();
    for seconds in [10, 909, 910] {
        picked.push(world.reserve(&user, &next, at(seconds)).await.unwrap().first_port.get());
    }
    assert_eq!(picked, [8001, 8002, 8000], "in quarantine for 15 minutes after release");

    // The same from a cold cache, and by number at once.
    let made = world.live().await.remove(0);
    world.release(&user, &made, at(1000)).await.unwrap();
    let world = world.reopen(at(1001)).await;
    assert_eq!(world.reserve(&user, &next, at(1002)).await.unwrap().first_port, port(8003));
    let request = ReserveRequest { port: Some(made.first_port), ..next };
    world.reserve(&user, &request, at(1002)).await.unwrap();
}

#[tokio::test]
async fn picks_avoid_what_the_machine_uses() {
    let world = super::new_world().await;
    let seen =
        [listener(Protocol::Tcp, "127.0.0.1", 8000, 1, at(0)), listener(Protocol::Tcp, "::", 8001, 2, at(0))];
    let agent = world.join_with_agent("web-1", 1, &seen).await;
    let user = actor("ada", Role::User);
    let next = ReserveRequest::next_free(agent.id);
    assert_eq!(world.reserve(&user, &next, at(1)).await.unwrap().first_port, port(8002));
    let by_number =
        |number| ReserveRequest { port: Some(port(number)), ..ReserveRequest::next_free(agent.id) };
    let refusal = refused(world.reserve(&user, &by_number(8000), at(1)).await);
    assert_eq!(refusal.to_string(), "8000/tcp on web-1 is in use by worker-1 (pid 1)");
    let adopt = ReserveRequest { adopt: true, ..by_number(8000) };
    assert_eq!(world.reserve(&user, &adopt, at(1)).await.unwrap().first_port, port(8000));
    let nobody = ReserveRequest { adopt: true, ..by_number(8500) };
    assert!(matches!(refused(world.reserve(&user, &nobody, at(1)).await), Refusal::NothingToAdopt { .. }));
}

#[tokio::test]
async fn release_requires_holder() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let (ada, bob, op) = (actor("ada", Role::User), actor("bob", Role::User), actor("op", Role::Operator));
    let made = world.reserve_port(&ada, id, 8080).await.unwrap();
    assert!(matches!(refused(world.release(&bob, &made, at(1)).await), Refusal::NotTheHolder(_)));
    assert!(
        matches!(refused(world.release(&op, &made, at(1)).await), Refusal::NotTheHolder(_)),
        "not without force"
    );
    let (forced, by) = (made.id, bob.clone());
    let answer = world.store.write(move |tx| tx.release(&by, forced, None, true, None, at(1))).await;
    assert!(matches!(refused(answer), Refusal::NotTheHolder(_)), "force is for operators");
    let (forced, by) = (made.id, op.clone());
    let released =
        world.store.write(move |tx| tx.release(&by, forced, None, true, None, at(2))).await.unwrap();
    assert_eq!((released.released_at, released.released_by), (Some(at(2)), Some(op.subject)));
    assert!(matches!(refused(world.release(&ada, &made, at(3)).await), Refusal::AlreadyReleased(_)));
    assert_eq!(world.live().await, []);
    let last = world.events().await.pop().unwrap();
    assert_eq!(last.message, "8080/tcp released by op, held by ada");
}
