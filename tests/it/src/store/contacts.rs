//! What agents tell: applied once, in order, from the right one, and never at a reservation's expense.

use gk_model::access::{Actor, Authority, Role};
use gk_model::contact::{Contact, ContactBody, Family, Session};
use gk_model::history::EventKind;
use gk_model::instance::JoinRequest;
use gk_model::listener::{Container, Listener, ListenerKey, Netns, Owner, Owners};
use gk_model::port::Protocol;
use gk_model::port_state::State;
use gk_model::query::{HistoryQuery, Limit, PortQuery};
use gk_model::reservation::Reservation;
use gk_model::time::Timestamp;
use gk_store::Refusal;
use uuid::Uuid;

use crate::store::world::{FakeAgent, World, actor, at, everything_covered, listener, refused};

fn tcp(number: u16, pid: u32) -> Listener {
    listener(Protocol::Tcp, "0.0.0.0", number, pid, at(0))
}

/// The ports the store shows as listened on, with the pid of the first owner.
async fn shown(world: &World, agent: &FakeAgent) -> Vec<(u16, u32)> {
    let id = agent.id;
    let query = PortQuery { limit: Some(Limit::MAX), ..Default::default() };
    let page =
        world.store.read(move |reader| reader.list_ports(Some(&id.into()), &query, at(0))).await.unwrap();
    let listeners = page.items.iter().flat_map(|state| &state.listeners);
    listeners.map(|listener| (listener.key.port.get(), listener.owners[0].pid)).collect()
}

/// When the agent was last heard of, and when what is shown was last confirmed.
async fn seen_at(world: &World, agent: &FakeAgent) -> (Option<Timestamp>, Option<Timestamp>) {
    let id = agent.id;
    let instance = world.store.read(move |reader| reader.get_instance(&id.into(), at(0))).await.unwrap();
    (instance.last_contact_at, instance.observed_at)
}

async fn kinds(world: &World) -> Vec<EventKind> {
    world.events().await.iter().map(|event| event.kind).collect()
}

#[tokio::test]
async fn report_never_touches_reservations() {
    let world = super::new_world().await;
    let mut agent = world.join_with_agent("web-1", 1, &[tcp(8080, 1)]).await;
    let ada = actor("ada", Role::User);
    for number in [8000, 8001, 9000] {
        world.reserve_port(&ada, agent.id, number).await.unwrap();
    }
    // Since when nobody listens there is an observation that is shown beside the intent.
    let intent = async || {
        let live = world.live().await.into_iter();
        live.map(|live| Reservation { idle_since: None, ..live }).collect::<Vec<_>>()
    };
    let before = intent().await;
    for round in 1..20 {
        let seen: Vec<Listener> = if round % 2 == 0 { vec![] } else { vec![tcp(8000, 7), tcp(8080, 1)] };
        let contact = agent.report(&seen, at(round));
        world.contact(&agent, contact, at(round)).await.unwrap();
        assert_eq!(intent().await, before, "after report {round}");
    }
    assert!(!kinds(&world).await.contains(&EventKind::Released));
}

/// What a watch takes for one event.
const MOST_EVENT_BYTES: usize = 1 << 20;

#[tokio::test]
async fn no_crowd_of_owners_makes_a_large_event_or_another_set_than_the_agents() {
    let world = super::new_world().await;
    let mut agent = world.join_with_agent("web-1", 1, &[]).await;
    let worker = tcp(80, 1).owners.remove(0);
    let squatter = Owner { pid: 39_999, name: "nc".into(), exe: Some("/tmp/nc".into()), ..worker.clone() };
    let mut owners: Vec<Owner> = (1..=40_000).map(|pid| Owner { pid, ..worker.clone() }).collect();
    owners[39_998] = squatter.clone();
    let crowded = Listener { owners: owners.into(), ..tcp(80, 1) };
    // As the server's route reads what an agent of today, or one that knows no bound, has sent.
    let read =
        |contact: &Contact| serde_json::from_slice::<Contact>(&serde_json::to_vec(contact).unwrap()).unwrap();
    let bounded = crowded.clone().bounded();
    let unbounded = agent.delta(std::slice::from_ref(&crowded), &[], std::slice::from_ref(&bounded), at(1));
    let answer = world.contact(&agent, read(&unbounded), at(1)).await.unwrap();
    assert_eq!((answer.acknowledged, answer.want_report), (unbounded.sequence, false));
    let contact = agent.report(std::slice::from_ref(&bounded), at(2));
    let answer = world.contact(&agent, read(&contact), at(2)).await.unwrap();
    assert_eq!((answer.acknowledged, answer.want_report), (contact.sequence, false), "they mean the same");
    let events = world.events().await;
    assert!(events.iter().all(|event| serde_json::to_vec(event).unwrap().len() < MOST_EVENT_BYTES / 10));
    let opened: Vec<_> = events.iter().filter_map(|event| event.listener.as_deref()).collect();
    assert_eq!((opened.len(), opened[0].owners.len(), opened[0].more_owners), (1, 64, 39_936));
    assert!(opened[0].owners.contains(&squatter), "whoever is not like the others is told");
}

#[tokio::test]
async fn text_is_ordered_by_its_bytes() {
    let world = super::new_world().await;
    let seen = ["::1", "10.0.0.1", "0.0.0.0"].map(|address| listener(Protocol::Tcp, address, 80, 1, at(0)));
    let agent = world.join_with_agent("web-1", 1, &seen).await;
    let query = PortQuery::default();
    let list =
        move |reader: &mut gk_store::Reader<'_>| reader.list_ports(Some(&agent.id.into()), &query, at(0));
    let page = world.store.read(list).await.unwrap();
    let addresses = page.items[0].listeners.iter().map(|listener| listener.key.address.to_string());
    // Where people sort, the colon comes before the digits.
    assert_eq!(addresses.collect::<Vec<_>>(), ["0.0.0.0", "10.0.0.1", "::1"]);
}

#[tokio::test]
async fn replayed_contact_changes_nothing() {
    let world = super::new_world().await;
    let mut agent = world.join_with_agent("web-1", 1, &[]).await;
    let reported = agent.report(&[tcp(22, 9)], at(1));
    let opened = agent.delta(&[tcp(80, 1)], &[], &[tcp(22, 9), tcp(80, 1)], at(1));
    let closed = agent.delta(&[], &[(tcp(22, 9).key, at(2))], &[tcp(80, 1)], at(2));
    for contact in [&reported, &opened, &closed] {
        let answer = world.contact(&agent, contact.clone(), at(3)).await.unwrap();
        assert_eq!((answer.acknowledged, answer.want_report), (contact.sequence, false));
    }
    let (before, events) = (shown(&world, &agent).await, world.events().await);
    assert_eq!(before, [(80, 1)]);
    for contact in [&reported, &opened, &closed, &opened, &reported] {
        let answer = world.contact(&agent, contact.clone(), at(4)).await.unwrap();
        assert_eq!(answer.acknowledged, closed.sequence, "acknowledged again");
    }
    assert_eq!((shown(&world, &agent).await, world.events().await), (before, events));
}

#[tokio::test]
async fn uncovered_scan_never_closes() {
    let world = super::new_world().await;
    let v6 = listener(Protocol::Tcp, "::", 443, 2, at(0));
    let udp = listener(Protocol::Udp, "0.0.0.0", 53, 3, at(0));
    let mut agent = world.join_with_agent("web-1", 1, &[tcp(80, 1), v6, udp]).await;
    let mut covered = everything_covered();
    covered.retain(|part| part.protocol == Protocol::Tcp && part.family == Family::V4);
    let contact = agent.report_of(covered, &[], at(1));
    world.contact(&agent, contact, at(1)).await.unwrap();
    assert_eq!(shown(&world, &agent).await, [(443, 2), (53, 3)], "only the covered part was closed");
    let contact = agent.report_of(vec![], &[], at(2));
    world.contact(&agent, contact, at(2)).await.unwrap();
    world.contact(&agent, agent.heartbeat(&[], at(3)), at(3)).await.unwrap();
    assert_eq!(shown(&world, &agent).await, [(443, 2), (53, 3)]);
    assert_eq!(
        seen_at(&world, &agent).await,
        (Some(at(3)), Some(at(0))),
        "in contact, and seeing nothing since"
    );
    let contact = agent.report(&[], at(4));
    world.contact(&agent, contact, at(4)).await.unwrap();
    assert_eq!(shown(&world, &agent).await, []);
    assert_eq!(seen_at(&world, &agent).await, (Some(at(4)), Some(at(4))));
}

/// The same listener in a container.
fn in_container(listener: Listener) -> Listener {
    Listener { key: ListenerKey { netns: Netns::Other(7), ..listener.key }, ..listener }
}

#[tokio::test]
async fn a_namespace_that_is_gone_closes_what_was_in_it() {
    let world = super::new_world().await;
    let contained = in_container(tcp(81, 2));
    let mut agent = world.join_with_agent("web-1", 1, &[tcp(80, 1), contained]).await;
    // As another run of the agent, which never saw that namespace.
    let told = |mut contact: Contact, all: Option<&[Netns]>| {
        let ContactBody::Report { namespaces, .. } = &mut contact.body else { unreachable!() };
        *namespaces = all.map(<[Netns]>::to_vec);
        contact
    };
    let may_be_there = [None, Some(&[Netns::Home, Netns::Other(7)][..]), Some(&[Netns::Other(7)])];
    for (second, all) in (1..).zip(may_be_there) {
        let contact = told(agent.report(&[tcp(80, 1)], at(second)), all);
        world.contact(&agent, contact, at(second)).await.unwrap();
        assert_eq!(shown(&world, &agent).await, [(80, 1), (81, 2)], "{all:?}");
    }
    let contact = told(agent.report_of(vec![], &[], at(5)), Some(&[]));
    world.contact(&agent, contact, at(5)).await.unwrap();
    assert_eq!(shown(&world, &agent).await, [(80, 1)], "the home namespace is always there");
    assert_eq!(kinds(&world).await.last(), Some(&EventKind::Closed));
}

#[tokio::test]
async fn a_port_of_a_container_is_shown_and_is_not_the_machines() {
    let world = super::new_world().await;
    let agent = world.join_with_agent("web-1", 1, &[in_container(tcp(8000, 2))]).await;
    assert_eq!(shown(&world, &agent).await, [(8000, 2)]);
    let (ada, id) = (actor("ada", Role::User), agent.id);
    assert_eq!(world.next_free(id).await, 8000, "picks do not avoid it");
    world.reserve_port(&ada, id, 8001).await.unwrap();
    let state = async || {
        let query = PortQuery::default();
        let list =
            move |reader: &mut gk_store::Reader<'_>| reader.list_ports(Some(&id.into()), &query, at(0));
        let page = world.store.read(list).await.unwrap();
        page.items.iter().map(|port| (port.port.get(), port.state, port.listeners.len())).collect::<Vec<_>>()
    };
    assert_eq!(state().await, [(8000, State::Reserved, 1), (8001, State::Reserved, 0)]);
}

#[tokio::test]
async fn superseded_identity_is_refused() {
    let world = super::new_world().await;
    let mut agent = world.join_with_agent("web-1", 1, &[]).await;
    let mut clone = FakeAgent { ..agent };
    let opens = |agent: &mut FakeAgent, nonce: u128, now: Timestamp| {
        agent.sequence = 0;
        Contact { opening: Some(Uuid::from_u128(nonce)), ..agent.report(&[], now) }
    };
    let opening = opens(&mut agent, 77, at(1));
    let answer = world.contact(&agent, opening.clone(), at(1)).await.unwrap();
    assert_eq!(answer.session, Session(2));
    let again = world.contact(&agent, opening, at(1)).await.unwrap();
    assert_eq!(again, answer, "a lost answer is given again");
    agent.session = answer.session;

    let refusal = refused(world.contact(&clone, clone.heartbeat(&[], at(2)), at(2)).await);
    assert!(matches!(refusal, Refusal::IdentitySuperseded { presented: Session(1), current: Session(2) }));
    let opening = opens(&mut clone, 99, at(2));
    let refusal = refused(world.contact(&clone, opening, at(2)).await);
    assert!(matches!(refusal, Refusal::IdentitySuperseded { .. }));
    world.contact(&agent, agent.heartbeat(&[], at(3)), at(3)).await.unwrap();
}

#[tokio::test]
async fn a_credential_that_was_replaced_meanwhile_is_refused() {
    let world = super::new_world().await;
    let mut old = world.join_with_agent("web-1", 1, &[]).await;
    world.contact(&old, old.heartbeat(&[], at(1)), at(1)).await.expect("known from memory");
    let stranger = FakeAgent { credential: crate::store::world::credential(9), ..old };
    let refusal = refused(world.contact(&stranger, old.heartbeat(&[], at(1)), at(1)).await);
    assert!(matches!(refusal, Refusal::CredentialReplaced), "memory knows whose it is");
    let replace = JoinRequest {
        labels: gk_model::labels::Labels::default(),
        replace: Some(old.id.into()),
        ..crate::store::world::join_request("web-1", 2)
    };
    let admin = actor("root", Role::Admin);
    world.store.write(move |tx| tx.join(&admin, &replace, at(1))).await.unwrap();
    // Both were let in at the door before the credential was replaced.
    for contact in [old.heartbeat(&[], at(2)), old.report(&[tcp(80, 1)], at(2))] {
        let refusal = refused(world.contact(&old, contact, at(2)).await);
        assert!(matches!(refusal, Refusal::CredentialReplaced), "{refusal}");
    }
    let own = Actor::new("x".parse().unwrap(), Authority::Instance(old.id, old.credential));
    let request = crate::store::world::join_request("web-1", 1);
    let late = own.clone();
    let late = world.store.write(move |tx| tx.join(&late, &request, at(2))).await;
    assert!(matches!(refused(late), Refusal::CredentialReplaced), "and does not come back by a late refresh");
    let late = world.reserve_port(&own, old.id, 8080).await;
    assert!(matches!(refused(late), Refusal::CredentialReplaced));
    let late = world.store.write(move |tx| tx.leave(&own, &old.id.into(), true, None, at(2))).await;
    assert!(matches!(refused(late), Refusal::CredentialReplaced), "nor takes the machine out");
}

#[tokio::test]
async fn a_listener_that_is_told_twice_is_one() {
    let world = super::new_world().await;
    let mut agent = world.join_with_agent("web-1", 1, &[]).await;
    let (one, other) = (tcp(80, 1), tcp(80, 2));
    let contact = agent.report(&[one, other.clone()], at(1));
    world.contact(&agent, contact, at(1)).await.unwrap();
    assert_eq!(shown(&world, &agent).await, [(80, 2)]);
    let contact = agent.report(&[], at(2));
    world.contact(&agent, contact, at(2)).await.unwrap();
    let query = HistoryQuery::default();
    let history = world.store.read(move |reader| reader.list_history(&query)).await.unwrap().items;
    assert_eq!(
        history.iter().map(|past| past.ended_at).collect::<Vec<_>>(),
        [Some(at(2))],
        "nothing stays open"
    );
}

#[tokio::test]
async fn a_listener_is_last_seen_when_the_set_was_confirmed() {
    let world = super::new_world().await;
    let agent = world.join_with_agent("web-1", 1, &[tcp(80, 1)]).await;
    world.contact(&agent, agent.heartbeat(&[tcp(80, 1)], at(60)), at(60)).await.unwrap();
    let id = agent.id;
    let query = PortQuery::default();
    let page =
        world.store.read(move |reader| reader.list_ports(Some(&id.into()), &query, at(61))).await.unwrap();
    let listener = &page.items[0].listeners[0];
    assert_eq!((listener.first_seen_at, listener.last_seen_at), (at(0), at(60)));
}

#[tokio::test]
async fn a_gap_or_a_wrong_digest_asks_for_a_report() {
    let world = super::new_world().await;
    let mut agent = world.join_with_agent("web-1", 1, &[]).await;
    let _lost = agent.delta(&[tcp(80, 1)], &[], &[tcp(80, 1)], at(1));
    let both = [tcp(80, 1), tcp(81, 1)];
    let contact = agent.delta(&both[1..], &[], &both, at(2));
    let answer = world.contact(&agent, contact, at(2)).await.unwrap();
    assert_eq!(
        (answer.want_report, answer.acknowledged),
        (true, 1),
        "the opening report was the last one stored"
    );
    assert_eq!(shown(&world, &agent).await, [], "nothing of it was applied");
    let contact = agent.report(&both, at(3));
    assert!(!world.contact(&agent, contact, at(3)).await.unwrap().want_report);
    assert_eq!(shown(&world, &agent).await, [(80, 1), (81, 1)]);
    let answer = world.contact(&agent, agent.heartbeat(&both[..1], at(4)), at(4)).await.unwrap();
    assert!(answer.want_report, "the agent means another set");
}

#[tokio::test]
async fn an_unchanged_heartbeat_costs_no_transaction() {
    let world = super::new_world().await;
    let agent = world.join_with_agent("web-1", 1, &[tcp(80, 1)]).await;
    let before = world.store.writer_counters().commits;
    let statements_before = world.store.metrics().statements;
    for seconds in 1..100 {
        let answer =
            world.contact(&agent, agent.heartbeat(&[tcp(80, 1)], at(seconds)), at(seconds)).await.unwrap();
        assert!(!answer.want_report);
    }
    assert_eq!(world.store.writer_counters().commits, before);
    assert_eq!(world.store.metrics().statements, statements_before, "nor a statement");
    let id = agent.id;
    let get = move |reader: &mut gk_store::Reader<'_>| reader.get_instance(&id.into(), at(99));
    assert_eq!(
        world.store.read(get).await.unwrap().last_contact_at,
        Some(at(99)),
        "and is seen all the same"
    );
    world.store.flush_contacts().await.unwrap();
    let world = world.reopen(at(200)).await;
    assert_eq!(world.store.read(get).await.unwrap().observed_at, Some(at(99)), "and survives once flushed");
}

#[tokio::test]
async fn times_are_corrected_by_the_clocks_offset_and_never_in_the_future() {
    let world = super::new_world().await;
    let mut agent = world.join_with_agent("web-1", 1, &[]).await;
    // The agent's clock is an hour ahead: it saw the port open 5 s before it sent this.
    let seen = listener(Protocol::Tcp, "0.0.0.0", 80, 1, at(3600 + 95));
    let contact = agent.delta(std::slice::from_ref(&seen), &[], std::slice::from_ref(&seen), at(3600 + 100));
    world.contact(&agent, contact, at(100)).await.unwrap();
    let event = world.events().await.pop().unwrap();
    assert_eq!((event.kind, event.at, event.recorded_at), (EventKind::Opened, at(95), at(100)));
    // And a broken one that claims the far future.
    let seen = listener(Protocol::Tcp, "0.0.0.0", 81, 1, at(999_999));
    let contact = agent.delta(std::slice::from_ref(&seen), &[], std::slice::from_ref(&seen), at(101));
    world.contact(&agent, contact, at(101)).await.unwrap();
    let event = world.events().await.pop().unwrap();
    assert_eq!((event.at, event.recorded_at), (at(101), at(101)));
}

#[tokio::test]
async fn states_join_intent_and_fact() {
    let world = super::new_world().await;
    let agent = world.join_with_agent("web-1", 1, &[tcp(8080, 1), tcp(22, 2)]).await;
    let ada = actor("ada", Role::User);
    world.reserve_port(&ada, agent.id, 9000).await.unwrap();
    let request = gk_model::reservation::ReserveRequest {
        port: Some(crate::store::world::port(8080)),
        adopt: true,
        ..gk_model::reservation::ReserveRequest::next_free(agent.id)
    };
    world.reserve(&ada, &request, at(0)).await.unwrap();
    let id = agent.id;
    let list = |query: PortQuery| {
        let store = world.store.clone();
        async move {
            let page =
                store.read(move |reader| reader.list_ports(Some(&id.into()), &query, at(0))).await.unwrap();
            page.items.iter().map(|state| (state.port.get(), state.protocol, state.state)).collect::<Vec<_>>()
        }
    };
    use Protocol::{Tcp, Udp};
    assert_eq!(
        list(PortQuery::default()).await,
        [(22, Tcp, State::Unreserved), (8080, Tcp, State::InUse), (9000, Tcp, State::Reserved)]
    );
    let asked = PortQuery { port: Some("8080-8081".parse().unwrap()), ..Default::default() };
    assert_eq!(
        list(asked).await,
        [
            (8080, Tcp, State::InUse),
            (8081, Tcp, State::Free),
            (8080, Udp, State::Free),
            (8081, Udp, State::Free)
        ],
        "a port that was asked for is answered even when it is free"
    );
}

#[tokio::test]
async fn the_name_of_a_container_is_learnt_without_a_change_of_hands() {
    let world = super::new_world().await;
    let proxy = tcp(8080, 7);
    let mut agent = world.join_with_agent("web-1", 1, std::slice::from_ref(&proxy)).await;
    let contained = |id: &str, name: Option<&str>| {
        let (id, name) = (id.into(), name.map(Into::into));
        let container = Some(Box::new(Container { id, name, engine: "docker".into(), pod: None }));
        Listener { container, ..proxy.clone() }
    };
    // The engine tells of it, its name, another name.
    for (second, container) in
        [(1, contained("c1", None)), (2, contained("c1", Some("web"))), (3, contained("c1", Some("front")))]
    {
        let told = std::slice::from_ref(&container);
        let contact = agent.delta(told, &[], told, at(second));
        let answer = world.contact(&agent, contact, at(second)).await.unwrap();
        assert!(!answer.want_report, "both mean the same set after {second}");
    }
    assert_eq!(kinds(&world).await, [EventKind::Joined, EventKind::Opened]);
    let history = world.store.read(|reader| reader.list_history(&HistoryQuery::default())).await.unwrap();
    let listened = history.items[0].listener.as_ref().unwrap();
    assert_eq!(listened.container.as_ref().unwrap().name.as_ref().unwrap().as_str(), "front");
    assert_eq!((history.items.len(), history.items[0].began_at), (1, at(0)));
    // Another container behind the same process, and another process, are changes of hands.
    let other = contained("c2", Some("front"));
    let mut moved = other.clone();
    moved.owners[0].pid = 8;
    for (second, listener) in [(4, other), (5, moved)] {
        let told = std::slice::from_ref(&listener);
        let contact = agent.delta(told, &[], told, at(second));
        assert!(!world.contact(&agent, contact, at(second)).await.unwrap().want_report);
    }
    let changed = kinds(&world).await.iter().filter(|kind| **kind == EventKind::OwnerChanged).count();
    assert_eq!(changed, 2);
}

#[tokio::test]
async fn a_published_port_without_a_socket_is_in_use_and_never_picked() {
    let world = super::new_world().await;
    let container = Container { id: "c1".into(), name: None, engine: "docker".into(), pod: None };
    let published =
        Listener { owners: Owners::default(), container: Some(Box::new(container)), ..tcp(8000, 1) };
    let agent = world.join_with_agent("web-1", 1, &[published]).await;
    let id = agent.id;
    let query = PortQuery::default();
    let list = move |reader: &mut gk_store::Reader<'_>| reader.list_ports(Some(&id.into()), &query, at(0));
    let page = world.store.read(list).await.unwrap();
    assert_eq!((page.items[0].port.get(), page.items[0].state), (8000, State::Unreserved));
    assert_eq!(world.next_free(id).await, 8001);
}
