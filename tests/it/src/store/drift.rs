//! Drift: kept as it is after every change, whoever made it.

use gk_model::access::{Actor, Role};
use gk_model::drift::{Drift, DriftKind};
use gk_model::expect::Fit;
use gk_model::history::EventKind;
use gk_model::id::InstanceId;
use gk_model::ignore::{Ignore, IgnoreSpec};
use gk_model::listener::{Listener, Netns};
use gk_model::port::Protocol;
use gk_model::port_state::State;
use gk_model::query::{DriftQuery, IdleTime, InstanceQuery, Limit, PortQuery};
use gk_model::reservation::{Reservation, ReserveRequest, Scope};
use gk_model::status::{DriftCounts, InstanceCounts, Status};
use gk_model::time::Timestamp;
use gk_store::Refusal;

use crate::store::world::{World, actor, at, listener, port, refused};

fn tcp(number: u16, pid: u32) -> Listener {
    listener(Protocol::Tcp, "0.0.0.0", number, pid, at(0))
}

fn named(number: u16, process: &str) -> Listener {
    let mut seen = tcp(number, 7);
    seen.owners[0].name = process.into();
    seen.owners[0].exe = None;
    seen
}

async fn list(world: &World, query: DriftQuery, now: Timestamp) -> Vec<Drift> {
    let mut query = DriftQuery { limit: Some(Limit::at_most(2)), ..query };
    let mut found = Vec::new();
    loop {
        let asked = query.clone();
        let page = world.store.read(move |reader| reader.list_drift(&asked, now)).await.unwrap();
        assert!(page.items.len() <= 2);
        found.extend(page.items);
        match page.next {
            None => return found,
            next => query.cursor = next,
        }
    }
}

/// `web-1 8080 unreserved`, with who ignores it.
async fn told(world: &World, query: DriftQuery) -> Vec<String> {
    let shown = list(world, query, at(9)).await.into_iter().map(|drift| {
        let place = drift.instance.map_or("all".to_owned(), |link| link.name.to_string());
        let ignored = drift.ignored_by.map(|name| format!(" by {name}")).unwrap_or_default();
        format!("{place} {} {}{ignored}", drift.first_port, drift.kind)
    });
    shown.collect()
}

async fn status(world: &World, now: Timestamp) -> Status {
    world.store.read(move |reader| reader.get_status(now)).await.unwrap()
}

async fn counts(world: &World) -> (u64, u64, u64) {
    let DriftCounts { conflict, unreserved, ignored } = status(world, at(9)).await.drift;
    (conflict, unreserved, ignored)
}

/// Everything that is kept is what is computed anew.
async fn is_sound(world: &World) {
    assert_eq!(world.store.verify().await.unwrap().problems(), Vec::<String>::new());
}

async fn conflict_events(world: &World) -> Vec<(EventKind, String)> {
    let events = world.events().await.into_iter();
    let of_conflicts = |kind| matches!(kind, EventKind::ConflictBegan | EventKind::ConflictEnded);
    events.filter(|event| of_conflicts(event.kind)).map(|event| (event.kind, event.message)).collect()
}

fn fleet(id: InstanceId, number: u16) -> ReserveRequest {
    ReserveRequest { port: Some(port(number)), scope: Scope::Fleet, ..ReserveRequest::next_free(id) }
}

fn ada() -> Actor {
    actor("ada", Role::User)
}

async fn adopt(world: &World, id: InstanceId, number: u16) -> Reservation {
    let request = ReserveRequest { port: Some(port(number)), adopt: true, ..ReserveRequest::next_free(id) };
    world.reserve(&ada(), &request, at(3)).await.unwrap()
}

#[tokio::test]
async fn whatever_changes_a_port_changes_what_is_kept_of_it() {
    let world = super::new_world().await;
    let mut inner = tcp(81, 5);
    inner.key.netns = Netns::Other(9);
    let mut agent = world.join_with_agent("web-1", 1, &[tcp(80, 1), inner.clone()]).await;
    assert_eq!(told(&world, DriftQuery::default()).await, ["web-1 80 unreserved"], "home alone counts");
    let both = [tcp(80, 1), tcp(90, 2), inner.clone()];
    let opened = agent.delta(&[tcp(90, 2)], &[], &both, at(2));
    world.contact(&agent, opened, at(2)).await.unwrap();
    let found = list(&world, DriftQuery::default(), at(9)).await;
    assert_eq!(found.iter().map(|drift| drift.since).collect::<Vec<_>>(), [at(0), at(2)]);
    assert_eq!((found[1].listeners.len(), found[1].observed_at, found[1].fit), (1, Some(at(2)), None));
    is_sound(&world).await;

    let adopted = adopt(&world, agent.id, 80).await;
    assert_eq!(adopted.idle_since, None);
    assert_eq!(told(&world, DriftQuery::default()).await, ["web-1 90 unreserved"]);
    is_sound(&world).await;
    world.release(&ada(), &adopted, at(4)).await.unwrap();
    assert_eq!(told(&world, DriftQuery::default()).await, ["web-1 80 unreserved", "web-1 90 unreserved"]);
    let report = agent.report(&[tcp(90, 2), inner], at(5));
    world.contact(&agent, report, at(5)).await.unwrap();
    assert_eq!(told(&world, DriftQuery::default()).await, ["web-1 90 unreserved"]);
    assert_eq!(counts(&world).await, (0, 1, 0));
    is_sound(&world).await;
    world.leave(agent.id, false, at(6)).await.unwrap();
    assert_eq!(counts(&world).await, (0, 0, 0));
    assert_eq!(status(&world, at(9)).await.listeners, 0);
    assert!(conflict_events(&world).await.is_empty());
    is_sound(&world).await;
}

#[tokio::test]
async fn a_conflict_begins_and_ends_once_and_names_both_sides() {
    let world = super::new_world().await;
    let mut squatted = world.join_with_agent("web-2", 2, &[]).await;
    let holder = world.join_with_agent("web-1", 1, &[]).await;
    let request = ReserveRequest { service: Some("billing".parse().unwrap()), ..fleet(holder.id, 8080) };
    let made = world.reserve(&ada(), &request, at(1)).await.unwrap();
    let seen = named(8080, "nc");
    for second in 2..5 {
        let report = squatted.report(std::slice::from_ref(&seen), at(second));
        world.contact(&squatted, report, at(second)).await.unwrap();
    }
    let told_at =
        "8080/tcp is reserved fleet-wide for web-1 for billing by ada, and nc (pid 7) listens there";
    assert_eq!(conflict_events(&world).await, [(EventKind::ConflictBegan, told_at.to_owned())]);
    let event = world.events().await.pop().unwrap();
    assert_eq!((event.actor.as_str(), event.reservation, event.at), ("server", Some(made.id), at(2)));
    assert_eq!(event.instance.unwrap().id, squatted.id);
    assert_eq!(event.listener.unwrap().key, seen.key);
    let found =
        list(&world, DriftQuery { kind: Some(DriftKind::Conflict), ..Default::default() }, at(9)).await;
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].fit, found[0].reservation.as_ref().map(|held| held.id)),
        (Some(Fit::Differs), Some(made.id))
    );
    assert_eq!(made.idle_since, Some(at(1)), "who it is held for does not listen");
    is_sound(&world).await;

    world.release(&ada(), &made, at(6)).await.unwrap();
    let ended = "8080/tcp is no longer in conflict: it is not reserved any more".to_owned();
    assert_eq!(conflict_events(&world).await.pop(), Some((EventKind::ConflictEnded, ended)));
    assert_eq!(told(&world, DriftQuery::default()).await, ["web-2 8080 unreserved"]);
    is_sound(&world).await;
    // Whoever comes first: reserved fleet-wide while somebody listens elsewhere.
    world.reserve(&ada(), &fleet(holder.id, 8080), at(7)).await.unwrap();
    assert_eq!(counts(&world).await, (1, 0, 0));
    world.leave(squatted.id, false, at(8)).await.unwrap();
    let ended = "8080/tcp is no longer in conflict: nobody listens there any more".to_owned();
    assert_eq!(conflict_events(&world).await.pop(), Some((EventKind::ConflictEnded, ended)));
    assert_eq!(conflict_events(&world).await.len(), 4);
    is_sound(&world).await;
}

#[tokio::test]
async fn a_split_range_keeps_each_part_right() {
    let world = super::new_world().await;
    let mut agent = world.join_with_agent("web-1", 1, &[]).await;
    let request = ReserveRequest {
        port: Some(port(8000)),
        count: crate::store::world::count(5),
        ..ReserveRequest::next_free(agent.id)
    };
    let made = world.reserve(&ada(), &request, at(1)).await.unwrap();
    let report = agent.report(&[tcp(8002, 1), tcp(8004, 2)], at(2));
    world.contact(&agent, report, at(2)).await.unwrap();
    assert_eq!(world.live().await[0].idle_since, None);
    let kept = world.release_part(&ada(), &made, "8002-8003", at(3)).await.unwrap();
    let live = world.live().await;
    assert_eq!(live[0], kept);
    assert_eq!(live.iter().map(|live| live.idle_since).collect::<Vec<_>>(), [Some(at(3)), None]);
    assert_eq!(told(&world, DriftQuery::default()).await, ["web-1 8002 unreserved"]);
    is_sound(&world).await;
    let report = agent.report(&[], at(4));
    world.contact(&agent, report, at(4)).await.unwrap();
    assert_eq!(world.live().await[1].idle_since, Some(at(4)));
    let idle = DriftQuery { idle_for_seconds: Some(5.try_into().unwrap()), ..Default::default() };
    let found = list(&world, idle.clone(), at(9)).await;
    assert_eq!(
        found.iter().map(|idle| (idle.first_port.get(), idle.since)).collect::<Vec<_>>(),
        [(8000, at(3)), (8004, at(4))]
    );
    assert_eq!(list(&world, idle, at(8)).await.len(), 1, "idle for long enough");
    let any = DriftQuery {
        kind: Some(DriftKind::Idle),
        idle_for_seconds: Some(IdleTime::ANY),
        ..Default::default()
    };
    assert_eq!(list(&world, any, at(4)).await.len(), 2);
    is_sound(&world).await;
}

#[tokio::test]
async fn what_is_held_for_all_is_idle_while_nobody_anywhere_listens() {
    let world = super::new_world().await;
    let (mut one, mut two) =
        (world.join_with_agent("web-1", 1, &[]).await, world.join_with_agent("web-2", 2, &[]).await);
    let request = ReserveRequest { port: Some(port(9100)), scope: Scope::Fleet, ..ReserveRequest::default() };
    world.reserve(&ada(), &request, at(1)).await.unwrap();
    let since = async || world.live().await[0].idle_since;
    assert_eq!(since().await, Some(at(1)));
    for agent in [&mut one, &mut two] {
        let report = agent.report(&[tcp(9100, 1)], at(2));
        world.contact(agent, report, at(2)).await.unwrap();
        assert_eq!(since().await, None);
        is_sound(&world).await;
    }
    let report = one.report(&[], at(3));
    world.contact(&one, report, at(3)).await.unwrap();
    assert_eq!(since().await, None, "somebody else listens");
    world.leave(two.id, false, at(4)).await.unwrap();
    assert_eq!(since().await, Some(at(4)));
    is_sound(&world).await;
}

/// Three machines with 80, which nobody reserved, and 8080, which is the hub's fleet-wide.
async fn three_machines() -> World {
    let world = super::new_world().await;
    let root = actor("root", Role::Admin);
    for (seed, name) in [(1, "web-2"), (2, "web-1"), (3, "db-1")] {
        let id = world.join_with_agent(name, seed, &[tcp(80, 1), tcp(8080, 2)]).await.id;
        let (root, label) = (root.clone(), vec![format!("kind={}", &name[..2]).parse().unwrap()]);
        let label = move |tx: &mut gk_store::Tx<'_>| {
            tx.label_instance(&root, &id.into(), &label.clone().try_into().unwrap(), None, at(1))
        };
        world.store.write(label).await.unwrap();
    }
    let holder = world.join("hub", 4).await;
    let request = ReserveRequest { service: Some("web".parse().unwrap()), ..fleet(holder, 8080) };
    world.reserve(&actor("bob", Role::User), &request, at(1)).await.unwrap();
    world
}

#[tokio::test]
async fn drift_is_listed_by_what_was_asked_for_and_by_name() {
    let world = three_machines().await;
    let all = told(&world, DriftQuery::default()).await;
    let expected = ["db-1", "web-1", "web-2"]
        .map(|name| [format!("{name} 80 unreserved"), format!("{name} 8080 conflict")]);
    assert_eq!(all, expected.concat());
    let queries = [
        (DriftQuery { kind: Some(DriftKind::Conflict), ..Default::default() }, 3),
        (DriftQuery { kind: Some(DriftKind::Unreserved), ..Default::default() }, 3),
        (DriftQuery { kind: Some(DriftKind::Idle), ..Default::default() }, 1),
        (DriftQuery { label: Some("kind=we".parse().unwrap()), ..Default::default() }, 4),
        (DriftQuery { label: Some("kind".parse().unwrap()), ..Default::default() }, 6),
        (DriftQuery { instance: Some("web-1".parse().unwrap()), ..Default::default() }, 2),
        (DriftQuery { port: Some("1-100".parse().unwrap()), ..Default::default() }, 3),
        (DriftQuery { protocol: Some(Protocol::Udp), ..Default::default() }, 0),
        (DriftQuery { service: Some("web".parse().unwrap()), ..Default::default() }, 3),
        (DriftQuery { holder: Some("ada".parse().unwrap()), ..Default::default() }, 0),
    ];
    for (query, expected) in queries {
        assert_eq!(list(&world, query.clone(), at(9)).await.len(), expected, "{query:?}");
    }
    // Another name, another place in the list.
    let (root, to) = (actor("root", Role::Admin), "app-1".parse().unwrap());
    let rename = move |tx: &mut gk_store::Tx<'_>| {
        tx.rename_instance(&root, &"web-2".parse().unwrap(), &to, None, at(2))
    };
    world.store.write(rename).await.unwrap();
    assert_eq!(
        told(&world, DriftQuery::default()).await[..2],
        ["app-1 80 unreserved", "app-1 8080 conflict"]
    );
    let labelled = DriftQuery { label: Some("kind=we".parse().unwrap()), ..Default::default() };
    assert_eq!(told(&world, labelled).await[..2], ["app-1 80 unreserved", "app-1 8080 conflict"]);
    is_sound(&world).await;
}

#[tokio::test]
async fn port_states_that_few_have_are_those_picked_from_all() {
    let world = three_machines().await;
    let every = ports(&world, PortQuery::default()).await;
    let web = |state: &gk_model::port_state::PortState| {
        state.reservation.as_ref().is_some_and(|held| held.service.is_some())
    };
    let picked = every.iter().filter(|state| web(state)).cloned().collect::<Vec<_>>();
    assert_eq!(picked.len(), 4);
    assert_eq!(
        ports(&world, PortQuery { service: Some("web".parse().unwrap()), ..Default::default() }).await,
        picked
    );
    assert_eq!(
        ports(&world, PortQuery { holder: Some("bob".parse().unwrap()), ..Default::default() }).await,
        picked
    );
    for state in [State::Conflict, State::Unreserved] {
        let picked = every.iter().filter(|found| found.state == state).cloned().collect::<Vec<_>>();
        assert_eq!(ports(&world, PortQuery { state: Some(state), ..Default::default() }).await, picked);
    }
    let labelled = PortQuery { label: Some("kind=db".parse().unwrap()), ..Default::default() };
    assert_eq!(ports(&world, labelled).await.len(), 2);
    let query = InstanceQuery { label: Some("kind=we".parse().unwrap()), ..Default::default() };
    let page = world.store.read(move |reader| reader.list_instances(&query, at(9))).await.unwrap();
    assert_eq!(page.items.iter().map(|found| found.name.as_str()).collect::<Vec<_>>(), ["web-1", "web-2"]);
}

async fn ports(world: &World, query: PortQuery) -> Vec<gk_model::port_state::PortState> {
    let mut query = PortQuery { limit: Some(Limit::at_most(2)), ..query };
    let mut found = Vec::new();
    loop {
        let asked = query.clone();
        let page = world.store.read(move |reader| reader.list_ports(None, &asked, at(9))).await.unwrap();
        found.extend(page.items);
        match page.next {
            None => return found,
            next => query.cursor = next,
        }
    }
}

async fn set(world: &World, name: &str, json: &str) -> Ignore {
    let (op, name) = (actor("op", Role::Operator), name.parse().unwrap());
    let rule: IgnoreSpec = serde_json::from_str(json).unwrap();
    let set = move |tx: &mut gk_store::Tx<'_>| tx.set_ignore(&op, &name, &rule, None, at(5));
    world.store.write(set).await.unwrap()
}

#[tokio::test]
async fn what_is_ignored_is_shown_as_ignored_and_counted_apart() {
    let world = super::new_world().await;
    let mut agent = world.join_with_agent("web-1", 1, &[named(22, "sshd"), named(80, "nginx")]).await;
    let made = set(&world, "sshd", r#"{"process":"sshd"}"#).await;
    assert_eq!(set(&world, "sshd", r#"{"process":"sshd"}"#).await, made, "the same again");
    let all = || DriftQuery { ignored: Some(true), ..Default::default() };
    assert_eq!(told(&world, DriftQuery::default()).await, ["web-1 80 unreserved"]);
    assert_eq!(told(&world, all()).await, ["web-1 22 unreserved by sshd", "web-1 80 unreserved"]);
    assert_eq!(counts(&world).await, (0, 1, 1));
    is_sound(&world).await;
    // Whoever comes later is ignored too, and whoever only has the port is not.
    let report = agent.report(&[named(22, "nc"), named(2222, "sshd")], at(6));
    world.contact(&agent, report, at(6)).await.unwrap();
    assert_eq!(told(&world, all()).await, ["web-1 22 unreserved", "web-1 2222 unreserved by sshd"]);
    set(&world, "sshd", r#"{"ports":["22"],"instances":"env=prod"}"#).await;
    assert_eq!(told(&world, all()).await, ["web-1 22 unreserved", "web-1 2222 unreserved"]);
    let (root, id) = (actor("root", Role::Admin), agent.id);
    let label = move |tx: &mut gk_store::Tx<'_>| {
        let labels = vec!["env=prod".parse().unwrap()].try_into().unwrap();
        tx.label_instance(&root, &id.into(), &labels, None, at(7))
    };
    world.store.write(label).await.unwrap();
    assert_eq!(told(&world, all()).await, ["web-1 22 unreserved by sshd", "web-1 2222 unreserved"]);
    assert_eq!(counts(&world).await, (0, 1, 1));
    is_sound(&world).await;
    let delete = |version| {
        let op = actor("op", Role::Operator);
        move |tx: &mut gk_store::Tx<'_>| tx.delete_ignore(&op, &"sshd".parse().unwrap(), version, at(8))
    };
    assert!(matches!(
        refused(world.store.write(delete(Some(made.version))).await),
        Refusal::VersionMismatch { current } if current == made.version + 1
    ));
    assert!(world.store.write(delete(Some(made.version + 1))).await.is_ok());
    assert!(matches!(refused(world.store.write(delete(None)).await), Refusal::NoSuchIgnore(_)));
    assert_eq!(counts(&world).await, (0, 2, 0));
    is_sound(&world).await;
    let kinds: Vec<EventKind> = world.events().await.iter().rev().take(3).map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::IgnoreDeleted, EventKind::Labelled, EventKind::IgnoreSet]);
    // Under its name another one is made, which no version of it stands for.
    set(&world, "sshd", r#"{"process":"sshd"}"#).await;
    for version in [made.version, made.version + 1] {
        let stale = refused(world.store.write(delete(Some(version))).await);
        assert!(matches!(stale, Refusal::VersionMismatch { .. }), "{version}: {stale:?}");
    }
}

#[tokio::test]
async fn a_rule_reaches_a_large_fleet_bit_by_bit() {
    let world = super::new_world().await;
    let many: Vec<Listener> = (1..=1100).map(|number| named(number, "sshd")).collect();
    for seed in 1..=4 {
        world.join_with_agent(&format!("web-{seed}"), seed, &many).await;
    }
    set(&world, "sshd", r#"{"process":"sshd"}"#).await;
    assert_eq!(counts(&world).await, (0, 2200, 2200), "two instances at once");
    is_sound(&world).await;
    assert!(!world.store.sweep(at(6)).await.unwrap());
    assert_eq!(counts(&world).await, (0, 0, 4400));
    assert!(!world.store.sweep(at(6)).await.unwrap());
    is_sound(&world).await;
    // A start goes on where the last server stopped.
    set(&world, "sshd", r#"{"process":"nobody"}"#).await;
    assert_eq!(counts(&world).await, (0, 2200, 2200));
    let world = world.reopen(at(8)).await;
    assert_eq!(counts(&world).await, (0, 4400, 0));
    is_sound(&world).await;
}

#[tokio::test]
async fn the_status_counts_who_is_there() {
    let world = super::new_world().await;
    let agent = world.join_with_agent("web-1", 1, &[tcp(80, 1)]).await;
    world.join("web-2", 2).await;
    let instances = async |now: u64| status(&world, at(now)).await.instances;
    assert_eq!(instances(1).await, InstanceCounts { joined: 2, online: 1, offline: 1 });
    assert_eq!(instances(89).await.online, 1);
    assert_eq!(instances(90).await, InstanceCounts { joined: 2, online: 0, offline: 2 });
    world.contact(&agent, agent.heartbeat(&[tcp(80, 1)], at(60)), at(60)).await.unwrap();
    assert_eq!(instances(149).await.online, 1, "heard of in memory only");
    world.leave(agent.id, false, at(150)).await.unwrap();
    assert_eq!(instances(150).await, InstanceCounts { joined: 1, online: 0, offline: 1 });
}

#[tokio::test]
async fn the_status_counts_however_many_are_offline() {
    let world = super::new_world().await;
    for seed in 0..101_u8 {
        let agent = world.join_with_agent(&format!("web-{seed}"), seed, &[tcp(80, 1)]).await;
        world.contact(&agent, agent.heartbeat(&[tcp(80, 1)], at(60)), at(60)).await.unwrap();
    }
    let offline = async |now: u64| status(&world, at(now)).await.instances.offline;
    assert_eq!((offline(149).await, offline(150).await), (0, 101), "that the database knows of them late");
    world.store.flush_contacts().await.unwrap();
    assert_eq!((offline(149).await, offline(150).await), (0, 101));
}

#[tokio::test]
async fn an_unchanged_report_and_an_idle_release_settle_nothing() {
    let world = super::new_world().await;
    let many: Vec<Listener> = (1..=1000).map(|number| tcp(number, 1)).collect();
    let mut agent = world.join_with_agent("web-1", 1, &many).await;
    let before = world.store.metrics().statements;
    let report = agent.report(&many, at(2));
    world.contact(&agent, report, at(2)).await.unwrap();
    let after = world.store.metrics().statements;
    assert_eq!(
        (after.asked - before.asked, after.said - before.said),
        (2, 1),
        "the instance and its listeners"
    );
    let made = world.reserve(&ada(), &ReserveRequest::next_free(agent.id), at(3)).await.unwrap();
    let before = world.store.metrics().statements;
    world.release(&ada(), &made, at(4)).await.unwrap();
    let after = world.store.metrics().statements;
    assert_eq!(after.asked - before.asked, 1, "the reservation");
}

#[tokio::test]
async fn what_was_undone_was_not_counted() {
    let world = super::new_world().await;
    let agent = world.join_with_agent("web-1", 1, &[tcp(80, 1)]).await;
    let before = status(&world, at(9)).await;
    let request = ReserveRequest { port: Some(port(80)), adopt: true, ..ReserveRequest::next_free(agent.id) };
    let undone = move |tx: &mut gk_store::Tx<'_>| {
        tx.reserve(&ada(), &request, at(1))?;
        Err::<(), _>(Refusal::BadCursor.into())
    };
    refused(world.store.write(undone).await);
    assert_eq!(status(&world, at(9)).await, before);
    is_sound(&world).await;
}

#[tokio::test]
async fn idle_is_counted_from_when_the_last_listener_closed_and_not_from_when_that_was_told() {
    let world = super::new_world().await;
    let mut agent = world.join_with_agent("web-1", 1, &[tcp(8000, 1)]).await;
    adopt(&world, agent.id, 8000).await;
    let closed = agent.delta(&[], &[(tcp(8000, 1).key, at(50))], &[], at(90));
    world.contact(&agent, closed, at(90)).await.unwrap();
    assert_eq!(world.live().await[0].idle_since, Some(at(50)));
    is_sound(&world).await;
}
