//! What agents tell late, in pieces, and by its number.

use gk_model::contact::{Churn, Contact, ContactBody, Piece, Session};
use gk_model::history::EventKind;
use gk_model::listener::{Digest, Listener};
use gk_model::port::Protocol;
use gk_model::query::PortQuery;
use gk_model::time::Timestamp;
use uuid::Uuid;

use crate::store::world::{FakeAgent, World, at, listener};

fn tcp(number: u16, pid: u32) -> Listener {
    listener(Protocol::Tcp, "0.0.0.0", number, pid, at(0))
}

/// A report of these, of which `piece` is told.
fn piece(
    agent: &mut FakeAgent,
    told: &[Listener],
    so_far: &[Listener],
    piece: Piece,
    now: Timestamp,
) -> Contact {
    let mut contact = agent.report(told, now);
    contact.digest = Digest::of(so_far);
    let ContactBody::Report { piece: which, .. } = &mut contact.body else { unreachable!() };
    *which = piece;
    contact
}

async fn shown(world: &World, agent: &FakeAgent) -> Vec<u16> {
    let (id, query) = (agent.id, PortQuery::default());
    let list = move |reader: &mut gk_store::Reader<'_>| reader.list_ports(Some(&id.into()), &query, at(0));
    let page = world.store.read(list).await.unwrap();
    page.items.iter().filter(|state| !state.listeners.is_empty()).map(|state| state.port.get()).collect()
}

async fn observed_at(world: &World, agent: &FakeAgent) -> Option<Timestamp> {
    let id = agent.id;
    let get = move |reader: &mut gk_store::Reader<'_>| reader.get_instance(&id.into(), at(99));
    world.store.read(get).await.unwrap().observed_at
}

#[tokio::test]
async fn a_report_in_pieces_closes_only_what_each_piece_covers() {
    let world = super::new_world().await;
    let all = [tcp(80, 1), tcp(81, 1), tcp(90, 1), tcp(91, 1)];
    let mut agent = world.join_with_agent("web-1", 1, &all).await;
    // 81 and 91 are gone, 92 is new.
    let now = [tcp(80, 1), tcp(90, 1), tcp(92, 1)];
    let split = || Some(tcp(85, 1).key);
    let first = Piece { until: split(), ..Piece::default() };
    let first = piece(&mut agent, &now[..1], &now[..1], first, at(1));
    let answer = world.contact(&agent, first, at(1)).await.unwrap();
    assert!(!answer.want_report, "the digest is that of what was told so far");
    assert_eq!(shown(&world, &agent).await, [80, 90, 91]);
    assert_eq!(observed_at(&world, &agent).await, Some(at(0)), "not complete yet");
    let second = Piece { base: Some(answer.acknowledged), after: split(), until: None };
    let second = piece(&mut agent, &now[1..], &now, second, at(2));
    for _ in 0..2 {
        let answer = world.contact(&agent, second.clone(), at(2)).await.unwrap();
        assert_eq!((answer.acknowledged, answer.want_report), (second.sequence, false));
        assert_eq!(shown(&world, &agent).await, [80, 90, 92]);
    }
    assert_eq!(observed_at(&world, &agent).await, Some(at(2)));
}

#[tokio::test]
async fn a_piece_without_the_one_before_changes_nothing() {
    let world = super::new_world().await;
    let mut agent = world.join_with_agent("web-1", 1, &[tcp(80, 1), tcp(90, 1)]).await;
    let lost = Piece { until: Some(tcp(85, 1).key), ..Piece::default() };
    let lost = piece(&mut agent, &[], &[], lost, at(1));
    let second = Piece { base: Some(lost.sequence), after: Some(tcp(85, 1).key), until: None };
    let second = piece(&mut agent, &[], &[], second, at(1));
    let answer = world.contact(&agent, second, at(1)).await.unwrap();
    assert_eq!((answer.acknowledged, answer.want_report), (lost.sequence - 1, true));
    assert_eq!(shown(&world, &agent).await, [80, 90]);
}

#[tokio::test]
async fn an_opening_is_told_how_far_the_session_before_had_come() {
    let world = super::new_world().await;
    let mut agent = world.join_with_agent("web-1", 1, &[]).await;
    let contact = agent.delta(&[tcp(80, 1)], &[], &[tcp(80, 1)], at(1));
    let answer = world.contact(&agent, contact.clone(), at(1)).await.unwrap();
    assert_eq!(answer.previous, None, "nobody asked");
    let heartbeat = agent.heartbeat(&[tcp(80, 1)], at(1));
    assert_eq!(world.contact(&agent, heartbeat, at(1)).await.unwrap().previous, None);
    let told = contact.sequence;
    agent.sequence = 0;
    let nothing = agent.report_of(vec![], &[], at(2));
    let opening = Contact { opening: Some(Uuid::from_u128(7)), ..nothing };
    let answer = world.contact(&agent, opening.clone(), at(2)).await.unwrap();
    assert_eq!((answer.session, answer.acknowledged, answer.previous), (Session(2), 1, Some(told)));
    assert_eq!(shown(&world, &agent).await, [80], "nothing was covered");
    // The session goes on, and its opening is repeated by an agent that did not hear the answer.
    let next = FakeAgent { session: answer.session, sequence: 1, ..agent }.delta(
        &[],
        &[(tcp(80, 1).key, at(3))],
        &[],
        at(3),
    );
    world.contact(&agent, next, at(3)).await.unwrap();
    let again = world.contact(&agent, opening, at(4)).await.unwrap();
    assert_eq!((again.session, again.acknowledged, again.previous), (Session(2), 2, Some(told)));
    // Restored from an old backup, it has nothing of the session that the agent holds.
    agent.session = Session(40);
    agent.sequence = 0;
    let opening = Contact { opening: Some(Uuid::from_u128(8)), ..agent.report(&[], at(5)) };
    assert_eq!(world.contact(&agent, opening, at(5)).await.unwrap().previous, Some(0));
}

#[tokio::test]
async fn what_a_late_report_misses_was_gone_when_it_was_made() {
    let world = super::new_world().await;
    let mut agent = world.join_with_agent("web-1", 1, &[tcp(80, 1)]).await;
    let mut report = agent.report(&[], at(3_600));
    let ContactBody::Report { seen_at, .. } = &mut report.body else { unreachable!() };
    *seen_at = Some(at(10));
    world.contact(&agent, report, at(3_600)).await.unwrap();
    let event = world.events().await.pop().unwrap();
    assert_eq!((event.kind, event.at, event.recorded_at), (EventKind::Closed, at(10), at(3_600)));
}

#[tokio::test]
async fn what_happened_too_often_is_one_event_with_its_counts() {
    let world = super::new_world().await;
    let mut agent = world.join_with_agent("web-1", 1, &[]).await;
    let mut contact = agent.delta(&[tcp(80, 2)], &[], &[tcp(80, 2)], at(60));
    let ContactBody::Delta { churned, .. } = &mut contact.body else { unreachable!() };
    let key = tcp(80, 1).key;
    // The agent's clock says that some of it is still to come.
    *churned = vec![Churn { key, from: at(1), until: at(99), opened: 499, closed: 500, changed: 3 }];
    for _ in 0..2 {
        world.contact(&agent, contact.clone(), at(60)).await.unwrap();
    }
    let events = world.events().await;
    let [.., churn, opened] = &events[..] else { panic!("{events:?}") };
    assert_eq!((churn.kind, churn.at, opened.kind), (EventKind::Churn, at(60), EventKind::Opened));
    assert!(churn.message.contains("0.0.0.0:80/tcp opened 499 times, closed 500 times"), "{}", churn.message);
    assert_eq!((churn.first_port, churn.protocol), (opened.first_port, Some(Protocol::Tcp)));
    assert_eq!(shown(&world, &agent).await, [80]);
    assert_eq!(events.iter().filter(|event| event.kind == EventKind::Churn).count(), 1);
}
