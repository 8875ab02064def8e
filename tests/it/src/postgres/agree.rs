//! The same data on both databases, and every question asked of both.

use gk_model::access::Role;
use gk_model::history::{EventKind, IntervalKind};
use gk_model::id::GroupId;
use gk_model::instance::{Instance, Presence};
use gk_model::lease::LeaseTime;
use gk_model::port::Protocol;
use gk_model::port_state::State;
use gk_model::query::{
    EventQuery, HistoryQuery, IdleTime, InstanceQuery, Limit, PortQuery, ReservationQuery,
};
use gk_model::reservation::{Reservation, ReserveRequest};
use gk_store::{Error, Reader};

use crate::cluster;
use crate::store::world::{World, actor, at, listener, port};

/// Every page of a list, as JSON, so that nothing about it can differ unseen.
macro_rules! pages {
    ($world:expr, $query:expr, |$reader:ident, $asked:ident| $list:expr) => {{
        let (mut query, mut pages) = ($query.clone(), Vec::new());
        query.limit = Some(Limit::at_most(3));
        loop {
            let $asked = query.clone();
            let page = $world.store.read(move |$reader: &mut Reader<'_>| $list).await.unwrap();
            pages.push(serde_json::to_value(&page).unwrap());
            match page.next {
                None => break pages,
                next => query.cursor = next,
            }
        }
    }};
}

/// Names that languages sort differently, several of everything, and something of each kind of history.
async fn fill(world: &World) -> (Vec<Instance>, Vec<Reservation>) {
    let (ada, bob) = (actor("ada", Role::User), actor("Bob", Role::User));
    let mut agents = Vec::new();
    for (seed, name) in ["web-1", "Web-10", "web.2", "web_3", "db"].into_iter().enumerate() {
        let seed = seed as u8 + 1;
        let seen = ["::1", "10.0.0.1", "0.0.0.0"]
            .map(|address| listener(Protocol::Tcp, address, 8000 + u16::from(seed), u32::from(seed), at(0)));
        agents.push(world.join_with_agent(name, seed, &seen).await);
    }
    for (agent, label) in agents.iter().zip(["env=prod", "env=Prod", "Env=prod", "x-env=prod"]) {
        world.label(agent.id, label).await;
    }
    let mut made = Vec::new();
    for (number, service) in ["a-b", "a.b", "A_b", "ab", "Z", "z"].into_iter().enumerate() {
        let holder = if number % 2 == 0 { &ada } else { &bob };
        let request = ReserveRequest {
            service: Some(service.parse().unwrap()),
            protocol: if number == 3 { Protocol::Udp.into() } else { Protocol::Tcp.into() },
            name: (number > 3).then(|| "http".parse().unwrap()),
            ttl_seconds: (number == 4).then(|| LeaseTime::try_from(9000).unwrap()),
            ..ReserveRequest::next_free(agents[number % 4].id)
        };
        made.push(world.reserve(holder, &request, at(number as u64)).await.unwrap());
    }
    world.release(&ada, &made[0], at(10)).await.unwrap();
    let mut moved = agents[0];
    let report = moved.report(&[listener(Protocol::Udp, "0.0.0.0", 9999, 7, at(11))], at(12));
    world.contact(&moved, report, at(12)).await.unwrap();
    let leaver = agents[4].id;
    world.leave(leaver, false, at(13)).await.unwrap();
    world.store.flush_contacts().await.unwrap();
    let everything = InstanceQuery { limit: Some(Limit::MAX), ..Default::default() };
    let list = move |reader: &mut Reader<'_>| reader.list_instances(&everything, at(20));
    (world.store.read(list).await.unwrap().items, made)
}

async fn instances(world: &World) -> Vec<serde_json::Value> {
    let plain = InstanceQuery::default;
    let queries = [
        plain(),
        InstanceQuery { q: Some("EB".into()), ..plain() },
        InstanceQuery { q: Some("_".into()), ..plain() },
        InstanceQuery { q: Some("%".into()), ..plain() },
        InstanceQuery { name: Some("WEB-10".into()), ..plain() },
        InstanceQuery { presence: Some(Presence::Left), ..plain() },
        InstanceQuery { presence: Some(Presence::Offline), ..plain() },
    ];
    let mut answers = Vec::new();
    for query in &queries {
        answers.extend(pages!(world, query, |reader, asked| reader.list_instances(&asked, at(20))));
    }
    answers
}

async fn ports(world: &World) -> Vec<serde_json::Value> {
    let plain = PortQuery::default;
    let queries = [
        plain(),
        PortQuery { port: Some("7999-8003".parse().unwrap()), ..plain() },
        PortQuery { protocol: Some(Protocol::Udp), ..plain() },
        PortQuery { state: Some(State::Reserved), ..plain() },
        PortQuery { state: Some(State::Unreserved), ..plain() },
        PortQuery { service: Some("A_b".parse().unwrap()), ..plain() },
        PortQuery { holder: Some("Bob".parse().unwrap()), ..plain() },
        PortQuery { process: Some("worker".into()), ..plain() },
        PortQuery { q: Some("WORKER-2".into()), ..plain() },
    ];
    let mut answers = Vec::new();
    for query in &queries {
        answers.extend(pages!(world, query, |reader, asked| reader.list_ports(None, &asked, at(20))));
    }
    answers
}

async fn reservations(world: &World, instance: &Instance) -> Vec<serde_json::Value> {
    let plain = ReservationQuery::default;
    let queries = [
        plain(),
        ReservationQuery { instance: Some(instance.id.into()), ..plain() },
        ReservationQuery { port: Some(port(8000).into()), ..plain() },
        ReservationQuery { protocol: Some(Protocol::Udp), ..plain() },
        ReservationQuery { service: Some("z".parse().unwrap()), ..plain() },
        ReservationQuery { holder: Some("Bob".parse().unwrap()), ..plain() },
        ReservationQuery { name: Some("http".parse().unwrap()), ..plain() },
        ReservationQuery { pool: Some("default".parse().unwrap()), ..plain() },
        ReservationQuery { label: Some("env=prod".parse().unwrap()), ..plain() },
        ReservationQuery { label: Some("env in (prod,Prod),team!=web".parse().unwrap()), ..plain() },
        ReservationQuery { label: Some("env!=prod".parse().unwrap()), ..plain() },
        ReservationQuery { group: Some(GroupId::generate(at(0))), ..plain() },
        ReservationQuery { idle_for_seconds: IdleTime::try_from(17).ok(), ..plain() },
        ReservationQuery { expires_before: Some(at(10_000)), ..plain() },
    ];
    let mut answers = Vec::new();
    for query in &queries {
        answers.extend(pages!(world, query, |reader, asked| reader.list_reservations(&asked, at(20))));
    }
    answers
}

async fn history(world: &World, instance: &Instance) -> Vec<serde_json::Value> {
    let plain = HistoryQuery::default;
    let queries = [
        plain(),
        HistoryQuery { instance: Some(instance.id.into()), ..plain() },
        HistoryQuery { port: Some("8000-8002".parse().unwrap()), ..plain() },
        HistoryQuery { kind: Some(IntervalKind::Held), ..plain() },
        HistoryQuery { since: Some(at(9)), until: Some(at(13)), ..plain() },
        HistoryQuery { at: Some(at(5)), ..plain() },
        HistoryQuery { service: Some("A_b".parse().unwrap()), ..plain() },
        HistoryQuery { holder: Some("Bob".parse().unwrap()), since: Some(at(4)), ..plain() },
        HistoryQuery { process: Some("WORKER-1".into()), ..plain() },
        HistoryQuery { account: Some("ada".into()), at: Some(at(9)), ..plain() },
        HistoryQuery { port: Some(port(8001).into()), oldest: Some(true), ..plain() },
        HistoryQuery { label: Some("env!=prod".parse().unwrap()), ..plain() },
    ];
    let mut answers = Vec::new();
    for query in &queries {
        answers.extend(pages!(world, query, |reader, asked| reader.list_history(&asked)));
    }
    answers
}

async fn events(world: &World, instance: &Instance) -> Vec<serde_json::Value> {
    let plain = EventQuery::default;
    let queries = [
        plain(),
        EventQuery { instance: Some(instance.id.into()), ..plain() },
        EventQuery { port: Some(port(8001).into()), ..plain() },
        EventQuery { kind: Some(EventKind::Opened.into()), ..plain() },
        EventQuery { kind: Some("reserved,closed,joined".parse().unwrap()), ..plain() },
        EventQuery { protocol: Some(Protocol::Udp), ..plain() },
        EventQuery { label: Some("env=prod".parse().unwrap()), ..plain() },
        EventQuery { label: Some("env!=prod".parse().unwrap()), ..plain() },
        EventQuery { actor: Some("ada".parse().unwrap()), ..plain() },
        EventQuery { since: Some(at(5)), until: Some(at(12)), ..plain() },
    ];
    let mut answers = Vec::new();
    for query in &queries {
        answers.extend(pages!(world, query, |reader, asked| reader.list_events(&asked)));
    }
    // The log of a restored database is another one.
    let log_id = world.store.log().await.unwrap().log_id.to_string();
    let told =
        |page: &serde_json::Value| serde_json::from_str(&page.to_string().replace(&log_id, "LOG")).unwrap();
    answers.iter().map(told).collect()
}

/// What each database says to the same refusals.
async fn refusals(world: &World, made: &[Reservation]) -> Vec<String> {
    let (ada, bob) = (actor("ada", Role::User), actor("Bob", Role::User));
    let instance = made[1].instance.as_ref().unwrap().id;
    let answers: [Result<Reservation, Error>; 4] = [
        world.reserve_port(&ada, instance, made[1].first_port.get()).await,
        world.reserve_port(&ada, instance, 8002).await,
        world.release(&ada, &made[1], at(30)).await,
        world.release(&bob, &made[0], at(30)).await,
    ];
    answers.into_iter().map(|answer| format!("{:?}", answer.unwrap_err())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_agree() {
    let sqlite = World::new(None).await;
    let (known, made) = fill(&sqlite).await;
    let file = sqlite.directory.path().join("backup");
    let (config, to) = (sqlite.config.clone(), file.clone());
    let copy = move || gk_store::backup(&config, &to, at(15), &mut |_| {}).unwrap();
    tokio::task::spawn_blocking(copy).await.unwrap();
    // Neither of them is asked with anything in memory that the other one has not.
    let sqlite = sqlite.reopen(at(16)).await;
    let database = cluster::shared().create_database();
    let postgres = World::from_backup(Some(database), file, at(16)).await;

    let some = &known[0];
    assert_eq!(instances(&sqlite).await, instances(&postgres).await);
    assert_eq!(ports(&sqlite).await, ports(&postgres).await);
    assert_eq!(reservations(&sqlite, some).await, reservations(&postgres, some).await);
    assert_eq!(history(&sqlite, some).await, history(&postgres, some).await);
    assert_eq!(events(&sqlite, some).await, events(&postgres, some).await);
    assert_eq!(refusals(&sqlite, &made).await, refusals(&postgres, &made).await);
    for world in [&sqlite, &postgres] {
        assert_eq!(world.store.verify().await.unwrap().problems(), Vec::<String>::new());
    }
}
