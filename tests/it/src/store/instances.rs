//! Joining, renaming, leaving, coming back.

use std::time::Duration;

use gk_model::access::{Actor, Authority, Role};
use gk_model::contact::{Contact, Session};
use gk_model::facts::Facts;
use gk_model::history::EventKind;
use gk_model::id::{InstanceId, InstanceRef};
use gk_model::instance::{Instance, JoinRequest, Presence};
use gk_model::port::Protocol;
use gk_model::query::{HistoryQuery, InstanceQuery, Limit};
use gk_model::reservation::ReserveRequest;
use gk_model::secret::{Secret, SecretKind};
use gk_model::token::TokenRequest;
use gk_store::{Error, Refusal};
use uuid::Uuid;

use crate::store::world::{FakeAgent, World, actor, at, join_request, listener, refused};

async fn join(world: &World, request: JoinRequest) -> Result<(Instance, bool), Error> {
    let admin = actor("root", Role::Admin);
    world.store.write(move |tx| tx.join(&admin, &request, at(0))).await
}

fn on_stack(request: JoinRequest, boot: u128, inode: u64) -> JoinRequest {
    let facts = Facts { boot_id: Some(Uuid::from_u128(boot)), netns_inode: Some(inode), ..request.facts };
    JoinRequest { facts, ..request }
}

#[tokio::test]
async fn names_are_unique_without_regard_to_case() {
    let world = super::new_world().await;
    world.join("web-1", 1).await;
    assert!(matches!(refused(join(&world, join_request("WEB-1", 2)).await), Refusal::NameTaken(_)));
    let facts = Facts { host_name: "my host".into(), ..Facts::default() };
    let unnamed = JoinRequest { name: None, facts, ..join_request("any", 3) };
    assert_eq!(join(&world, unnamed).await.unwrap().0.name.as_str(), "my-host");
}

#[tokio::test]
async fn one_network_stack_joins_once() {
    let world = super::new_world().await;
    let (first, anew) = join(&world, on_stack(join_request("web-1", 1), 5, 7)).await.unwrap();
    assert!(anew);
    let again = on_stack(join_request("web-2", 2), 5, 7);
    match refused(join(&world, again.clone()).await) {
        Refusal::AlreadyJoined(known) => assert_eq!(known.id, first.id),
        other => panic!("{other:?}"),
    }
    join(&world, on_stack(join_request("container", 3), 5, 8))
        .await
        .expect("another namespace is another instance");
    let replace =
        JoinRequest { labels: gk_model::labels::Labels::default(), replace: Some(first.id.into()), ..again };
    let (replaced, anew) = join(&world, replace).await.unwrap();
    assert_eq!((replaced.id, replaced.name.as_str(), anew), (first.id, "web-2", false), "the id is kept");
}

#[tokio::test]
async fn the_old_credential_refreshes_and_the_lost_one_is_replaced() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let hash = |seed| Secret::from_random(SecretKind::Instance, &[seed; 32]).hash();
    let who = |seed| {
        let store = world.store.clone();
        async move { store.find_actor(hash(seed), at(1)).await.unwrap() }
    };
    let own = who(1).await.unwrap();
    assert_eq!((own.subject.as_str(), own.authority), ("instance:web-1", Authority::Instance(id, hash(1))));
    assert_eq!(who(2).await, None);

    let mut request = join_request("web-1", 1);
    request.facts.kernel = Some("6.18".into());
    let (asked, own_actor): (JoinRequest, Actor) = (request.clone(), own.clone());
    let (refreshed, anew) = world.store.write(move |tx| tx.join(&own_actor, &asked, at(1))).await.unwrap();
    assert_eq!((refreshed.id, refreshed.facts, anew), (id, request.facts, false));

    let replace = JoinRequest {
        labels: gk_model::labels::Labels::default(),
        replace: Some(id.into()),
        ..join_request("web-1", 2)
    };
    assert_eq!(join(&world, replace).await.unwrap().0.id, id);
    assert_eq!(who(1).await, None, "the lost credential is worthless");
    let again = Actor { authority: Authority::Instance(id, hash(2)), ..own };
    assert_eq!(who(2).await, Some(again), "and the new one is the same subject");
}

#[tokio::test]
async fn a_join_whose_answer_was_lost_is_repeated() {
    let world = super::new_world().await;
    let request = on_stack(join_request("web-1", 1), 5, 7);
    let (first, anew) = join(&world, request.clone()).await.unwrap();
    let (again, anew_again) = join(&world, request.clone()).await.unwrap();
    assert_eq!((again.id, anew, anew_again), (first.id, true, false));
    // The same hash from elsewhere is no repetition.
    let elsewhere = on_stack(JoinRequest { name: Some("web-2".parse().unwrap()), ..request }, 5, 8);
    assert!(matches!(refused(join(&world, elsewhere).await), Refusal::CredentialTaken));
}

#[tokio::test]
async fn a_credential_is_replaced_with_an_overlap() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let days = |days: u64| at(days * 86_400);
    let hash = |seed| Secret::from_random(SecretKind::Instance, &[seed; 32]).hash();
    let who = |seed, now| {
        let store = world.store.clone();
        async move { store.find_actor(hash(seed), now).await.unwrap() }
    };
    let mut agent = FakeAgent { id, credential: hash(1), session: Session(0), sequence: 0 };
    let opening = Contact { opening: Some(Uuid::from_u128(1)), ..agent.report(&[], days(29)) };
    let opened = world.store.contact(id, hash(1), opening, days(29)).await.unwrap();
    agent.session = opened.session;
    let contact = |seed, now| world.store.contact(id, hash(seed), agent.heartbeat(&[], now), now);
    assert!(!opened.renew_credential);
    assert!(contact(1, days(30)).await.unwrap().renew_credential);
    let renew = |by: Option<Actor>, seed, now| {
        let (store, request) = (world.store.clone(), join_request("web-1", seed));
        async move { store.write(move |tx| tx.join(by.as_ref().unwrap(), &request, now)).await }
    };
    renew(who(1, days(30)).await, 2, days(30)).await.unwrap();
    assert!(!contact(2, days(30)).await.unwrap().renew_credential, "it is new");
    let end = days(30).plus(Duration::from_mins(10));
    assert!(who(1, end.minus(Duration::from_secs(1))).await.is_some(), "for whoever still has it");
    assert!(contact(1, days(30)).await.is_ok());
    assert_eq!(who(1, end).await, None);
    assert!(who(2, end).await.is_some());
    // Whoever refreshes facts with the one before does not bring it back.
    renew(who(1, days(30)).await, 1, days(30)).await.unwrap();
    assert_eq!(who(1, end).await, None);
    let replace = JoinRequest { replace: Some(id.into()), ..join_request("web-1", 3) };
    join(&world, replace).await.unwrap();
    let left = [who(1, days(30)).await, who(2, days(30)).await];
    assert_eq!(left, [None, None], "from whoever lost it, it is taken at once");
}

#[tokio::test]
async fn a_join_token_lets_one_machine_join() {
    let world = super::new_world().await;
    let token = Secret::from_random(SecretKind::Join, &[9; 32]).hash();
    let create = move |tx: &mut gk_store::Tx<'_>| {
        tx.create_token(&actor("installer", Role::Operator), token, &TokenRequest::to_join(), at(0)).map(drop)
    };
    world.store.write(create).await.unwrap();
    let who = |seconds| {
        let store = world.store.clone();
        async move { store.find_actor(token, at(seconds)).await.unwrap() }
    };
    assert_eq!(who(3600).await, None, "it expires");
    // Both come with a token that was good when they knocked.
    let joiner = who(1).await.unwrap();
    let mut answers = Vec::new();
    for (name, seed) in [("web-1", 1), ("web-2", 2)] {
        let (joiner, request) = (joiner.clone(), join_request(name, seed));
        answers.push(world.store.write(move |tx| tx.join(&joiner, &request, at(1))).await);
    }
    assert!(matches!(refused(answers.remove(1)), Refusal::JoinTokenUsed));
    assert_eq!(answers.remove(0).unwrap().0.name.as_str(), "web-1");
    assert_eq!(who(2).await, None, "it is used up");
}

#[tokio::test]
async fn renaming_keeps_the_id_and_is_history() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    world.join("web-2", 2).await;
    let rename = |name: &str, version| {
        let (store, name, admin) = (world.store.clone(), name.parse().unwrap(), actor("root", Role::Admin));
        async move { store.write(move |tx| tx.rename_instance(&admin, &id.into(), &name, version, at(5))).await }
    };
    assert!(matches!(refused(rename("web-2", None).await), Refusal::NameTaken(_)));
    assert!(matches!(refused(rename("web-3", Some(9)).await), Refusal::VersionMismatch { current: 1 }));
    let renamed = rename("web-3", Some(1)).await.unwrap();
    assert_eq!((renamed.id, renamed.name.as_str(), renamed.version), (id, "web-3", 2));
    let event = world.events().await.pop().unwrap();
    assert_eq!((event.kind, event.message.as_str()), (EventKind::Renamed, "web-1 renamed to web-3"));

    // The freed name may be used again, and its subject is not the renamed one's.
    let other = world.join("web-1", 3).await;
    let hash = Secret::from_random(SecretKind::Instance, &[3; 32]).hash();
    let subject = world.store.find_actor(hash, at(6)).await.unwrap().unwrap().subject;
    assert_eq!(subject.as_str(), format!("instance:web-1+{other}"));
}

#[tokio::test]
async fn leaving_needs_free_hands_and_keeps_history() {
    let world = super::new_world().await;
    let seen = [listener(Protocol::Tcp, "0.0.0.0", 80, 1, at(0))];
    let agent = world.join_with_agent("web-1", 1, &seen).await;
    let (id, ada) = (agent.id, actor("ada", Role::User));
    world.reserve_port(&ada, id, 8080).await.unwrap();
    let leave = |release| {
        let (store, admin) = (world.store.clone(), actor("root", Role::Admin));
        async move { store.write(move |tx| tx.leave(&admin, &id.into(), release, None, at(50))).await }
    };
    assert!(matches!(refused(leave(false).await), Refusal::ReservationsLive { count: 1, .. }));
    leave(true).await.unwrap();
    assert!(matches!(refused(leave(true).await), Refusal::InstanceLeft(_)));
    assert_eq!(world.live().await, []);
    let left = world.store.read(move |reader| reader.get_instance(&id.into(), at(60))).await.unwrap();
    assert_eq!((left.presence, left.left_at), (Presence::Left, Some(at(50))));
    let query = HistoryQuery::default();
    let history = world.store.read(move |reader| reader.list_history(&query)).await.unwrap().items;
    let ends: Vec<_> = history.iter().map(|interval| interval.ended_at).collect();
    assert_eq!(ends, [Some(at(50)), Some(at(0))], "held until it left, listened until its last contact");
    assert!(matches!(
        refused(world.contact(&agent, agent.heartbeat(&seen, at(70)), at(70)).await),
        Refusal::NoSuchInstance(_)
    ));

    world.join("web-1", 2).await;
    let query = InstanceQuery { presence: Some(Presence::Left), ..Default::default() };
    let gone = world.store.read(move |reader| reader.list_instances(&query, at(60))).await.unwrap().items;
    assert_eq!(gone.iter().map(|instance| instance.id).collect::<Vec<_>>(), [id]);
}

#[tokio::test]
async fn instances_are_listed_in_pages_by_name() {
    let world = super::new_world().await;
    let mut ledger: Vec<String> = (0..25).map(|number| format!("node-{:02}", (number * 7) % 25)).collect();
    for (seed, name) in (1..).zip(&ledger) {
        world.join(name, seed).await;
    }
    ledger.sort();
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let query = InstanceQuery {
            limit: Some(Limit::at_most(4)),
            cursor,
            q: Some("NODE".into()),
            ..Default::default()
        };
        let page = world.store.read(move |reader| reader.list_instances(&query, at(1))).await.unwrap();
        found.extend(page.items.into_iter().map(|instance| instance.name.to_string()));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(found, ledger);
}

#[tokio::test]
async fn a_silent_instance_is_forgotten_unless_it_holds_something() {
    let world = super::new_world().await;
    let hash = Secret::from_random(SecretKind::Join, &[9; 32]).hash();
    let terms = serde_json::json!({"reusable": true, "forget_after_seconds": 600});
    let wanted = TokenRequest { join: serde_json::from_value(terms).unwrap(), ..TokenRequest::to_join() };
    let create = move |tx: &mut gk_store::Tx<'_>| {
        tx.create_token(&actor("op", Role::Operator), hash, &wanted, at(0)).map(drop)
    };
    world.store.write(create).await.unwrap();
    let mut ids = Vec::new();
    for (name, seed) in [("web-1", 1), ("web-2", 2)] {
        let joiner = world.store.find_actor(hash, at(0)).await.unwrap().unwrap();
        let request = join_request(name, seed);
        ids.push(world.store.write(move |tx| tx.join(&joiner, &request, at(0))).await.unwrap().0.id);
    }
    world.join("stays", 3).await;
    world.reserve(&actor("ada", Role::User), &ReserveRequest::next_free(ids[1]), at(1)).await.unwrap();
    let silent = |seconds| world.store.read(move |reader| reader.list_silent(at(seconds)));
    assert_eq!(silent(599).await.unwrap(), []);
    assert_eq!(silent(600).await.unwrap(), [ids[0]]);
    assert_eq!(world.store.forget_silent(ids.clone(), at(600)).await.unwrap(), 1);
    let names =
        world.store.read(|reader| reader.list_instances(&InstanceQuery::default(), at(601))).await.unwrap();
    let names: Vec<_> = names.items.iter().map(|instance| instance.name.as_str()).collect();
    assert_eq!(names, ["stays", "web-2"]);
}

#[tokio::test]
async fn whoever_read_an_instance_that_left_changes_none_that_has_its_name_now() {
    let world = super::new_world().await;
    let (id, name) = (world.join("web-1", 1).await, InstanceRef::Name("web-1".parse().unwrap()));
    let get = |id: InstanceId| world.store.read(move |reader| reader.get_instance(&id.into(), at(1)));
    let read = get(id).await.unwrap().version;
    world.leave(id, false, at(2)).await.unwrap();
    let again = world.join("web-1", 2).await;
    let now = get(again).await.unwrap().version;
    let leave = |version| {
        let (admin, name) = (actor("root", Role::Admin), name.clone());
        world.store.write(move |tx| tx.leave(&admin, &name, true, Some(version), at(3)))
    };
    assert!(matches!(refused(leave(read).await), Refusal::VersionMismatch { current } if current == now));
    leave(now).await.unwrap();
}
