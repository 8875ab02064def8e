//! Targets: what Prometheus is told of, whoever listens.

use gk_model::access::Role;
use gk_model::discovery::TargetGroup;
use gk_model::expect::Expect;
use gk_model::port::Protocol;
use gk_model::query::TargetQuery;
use gk_model::reservation::{Protocols, ReserveRequest, Scope};
use gk_model::time::Timestamp;
use gk_store::{Error, Refusal};

use crate::store::world::{World, actor, at, count, listener, port, refused};

async fn list(world: &World, query: TargetQuery, now: Timestamp) -> Result<Vec<TargetGroup>, Error> {
    world.store.read(move |reader| reader.list_targets(&query, now)).await
}

/// `web-1:8080`, in any order.
async fn targets(world: &World, query: TargetQuery) -> Vec<String> {
    let found = list(world, query, at(1)).await.unwrap();
    let mut found: Vec<String> = found.into_iter().flat_map(|group| group.targets).collect();
    found.sort_unstable();
    found
}

/// Two machines: of what web-1 has, some is reserved, some is listened on, some is both.
async fn filled() -> World {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let tcp = |address, number| listener(Protocol::Tcp, address, number, 7, at(0));
    let seen = [
        tcp("0.0.0.0", 22),
        tcp("::", 7000),
        tcp("0.0.0.0", 8080),
        tcp("127.0.0.1", 8081),
        tcp("::", 8084),
        listener(Protocol::Udp, "0.0.0.0", 8085, 7, at(0)),
    ];
    let one = world.join_with_agent("web-1", 1, &seen).await.id;
    let two = world.join("web-2", 2).await;
    world.label(two, "env=prod").await;
    let stranger: Expect = "process=somebody-else".parse().unwrap();
    let on_one = ReserveRequest::next_free(one);
    let wanted = [
        (8080, "web", on_one.clone()),
        (8081, "private", on_one.clone()),
        (8082, "down", on_one.clone()),
        (8083, "", on_one.clone()),
        (8084, "taken", ReserveRequest { expect: Some(stranger), ..on_one.clone() }),
        (8085, "dns", ReserveRequest { protocol: Protocols::Udp, ..on_one }),
        (9100, "node", ReserveRequest { scope: Scope::Fleet, ..ReserveRequest::default() }),
        (7000, "billing", ReserveRequest { scope: Scope::Fleet, ..ReserveRequest::next_free(two) }),
    ];
    for (number, service, request) in wanted {
        let service = (!service.is_empty()).then(|| service.parse().unwrap());
        let adopt = [8080, 8081, 8084, 8085].contains(&number);
        let request = ReserveRequest { port: Some(port(number)), service, adopt, ..request };
        world.reserve(&ada, &request, at(0)).await.unwrap();
    }
    world
}

#[tokio::test]
async fn a_target_is_what_is_reserved_for_a_service_whoever_listens() {
    let world = filled().await;
    let all = ["web-1:8080", "web-1:8082", "web-1:8084", "web-1:9100", "web-2:7000", "web-2:9100"];
    assert_eq!(targets(&world, TargetQuery::default()).await, all);
    // However long nobody has heard of the machines.
    let later = list(&world, TargetQuery::default(), at(86_400)).await.unwrap();
    assert_eq!(later.len(), all.len());
    let presence = |group: &TargetGroup| group.labels["__meta_gatekeeper_presence"].clone();
    assert!(later.iter().all(|group| presence(group) == "offline"), "{later:?}");
}

#[tokio::test]
async fn targets_are_filtered_as_port_states_are() {
    let world = filled().await;
    let of = |change: fn(&mut TargetQuery)| {
        let mut query = TargetQuery::default();
        change(&mut query);
        query
    };
    let table: [(TargetQuery, &[&str]); 13] = [
        (of(|query| query.service = Some("web".parse().unwrap())), &["web-1:8080"]),
        (of(|query| query.service = Some("node".parse().unwrap())), &["web-1:9100", "web-2:9100"]),
        (of(|query| query.holder = Some("eve".parse().unwrap())), &[]),
        (of(|query| query.port = Some("8081-8082".parse().unwrap())), &["web-1:8082"]),
        (of(|query| query.label = Some("env=prod".parse().unwrap())), &["web-2:7000", "web-2:9100"]),
        (of(|query| query.process = Some("worker-7".to_owned())), &["web-1:8080", "web-1:8084"]),
        (of(|query| query.q = Some("BILL".to_owned())), &["web-2:7000"]),
        (of(|query| query.netns = Some("home".parse().unwrap())), &["web-1:8080", "web-1:8084"]),
        (
            of(|query| query.protocol = Some(Protocol::Tcp)),
            &["web-1:8080", "web-1:8082", "web-1:8084", "web-1:9100", "web-2:7000", "web-2:9100"],
        ),
        (
            of(|query| query.state = Some("reserved".parse().unwrap())),
            &["web-1:8082", "web-1:8083", "web-1:9100", "web-2:7000", "web-2:9100"],
        ),
        (of(|query| query.state = Some("in_use".parse().unwrap())), &["web-1:8080"]),
        (of(|query| query.state = Some("conflict".parse().unwrap())), &["web-1:7000", "web-1:8084"]),
        (of(|query| query.state = Some("unreserved".parse().unwrap())), &["web-1:22"]),
    ];
    for (query, expected) in table {
        assert_eq!(targets(&world, query.clone()).await, expected, "{query:?}");
    }
}

#[tokio::test]
async fn more_targets_than_may_be_told_at_once_are_refused_and_none_is_left_out() {
    let world = super::new_world().await;
    let (ada, id) = (actor("ada", Role::User), world.join("web-1", 1).await);
    let block = |first: u16, ports: i64| ReserveRequest {
        port: Some(port(first)),
        count: count(ports),
        service: Some("many".parse().unwrap()),
        ..ReserveRequest::next_free(id)
    };
    for (first, ports) in [(10_000, 4096), (15_000, 4096), (20_000, 1808)] {
        world.reserve(&ada, &block(first, ports), at(0)).await.unwrap();
    }
    let found = targets(&world, TargetQuery::default()).await;
    assert_eq!(found.len(), 10_000);
    world.reserve(&ada, &block(30_000, 1), at(0)).await.unwrap();
    let refusal = refused(list(&world, TargetQuery::default(), at(1)).await);
    assert!(matches!(refusal, Refusal::TooManyTargets { most: 10_000 }), "{refusal:?}");
    let narrow = TargetQuery { port: Some("20000-65535".parse().unwrap()), ..TargetQuery::default() };
    assert_eq!(targets(&world, narrow).await.len(), 1809);
}

#[tokio::test]
async fn targets_are_read_page_after_page_and_each_comes_once() {
    let world = super::new_world().await;
    let (ada, one, two) =
        (actor("ada", Role::User), world.join("web-1", 1).await, world.join("web-2", 2).await);
    let mut expected = Vec::new();
    let names: Vec<_> = (0..100).map(|index| format!("p{index}").parse().unwrap()).collect();
    for (id, place) in [(one, "web-1"), (two, "web-2")] {
        for first in (10_000..10_700).step_by(100) {
            let request = ReserveRequest {
                port: Some(port(first)),
                names: names.clone(),
                service: Some("many".parse().unwrap()),
                ..ReserveRequest::next_free(id)
            };
            world.reserve_group(&ada, &request, at(0)).await.unwrap();
            expected.extend((first..first + 100).map(|number| format!("{place}:{number}")));
        }
    }
    assert_eq!(targets(&world, TargetQuery::default()).await, expected);
}
