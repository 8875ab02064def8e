//! Limits of tokens, where machines join, are taken over and are labelled, and where tokens end.

use gk_model::access::{Actor, Role};
use gk_model::facts::Facts;
use gk_model::id::{InstanceId, InstanceRef};
use gk_model::instance::{Instance, InstancePatch, JoinRequest};
use gk_model::labels::Labels;
use gk_model::reservation::{Reservation, ReserveRequest};
use gk_model::token::{Limits, Token, TokenRequest};
use gk_store::{Error, Refusal};
use uuid::Uuid;

use crate::store::world::{World, actor, at, credential, join_request, pool_spec, port, refused};

/// An operator for instances with these labels, which may do anything else an operator may.
fn operator_for(instances: &str) -> Actor {
    let limits = Limits { instances: instances.parse().ok(), ..Limits::default() };
    Actor { limits: Some(limits.into()), ..actor("op", Role::Operator) }
}

fn labels(all: &[&str]) -> Labels {
    Labels::try_from(all.iter().map(|label| label.parse().unwrap()).collect::<Vec<_>>()).unwrap()
}

fn labelled(name: &str, seed: u8, all: &[&str]) -> JoinRequest {
    let request = join_request(name, seed);
    let stack = (Some(Uuid::from_u128(seed.into())), Some(u64::from(seed)));
    let facts = Facts { boot_id: stack.0, netns_inode: stack.1, ..request.facts };
    JoinRequest { labels: labels(all), facts, ..request }
}

/// One that gives no name, so that nothing is renamed, which has limits of its own.
fn nameless(seed: u8) -> JoinRequest {
    JoinRequest { name: None, ..join_request("anything", seed) }
}

async fn join(world: &World, by: &Actor, request: JoinRequest) -> Result<Instance, Error> {
    let by = by.clone();
    world.store.write(move |tx| Ok(tx.join(&by, &request, at(0))?.0)).await
}

async fn update(world: &World, by: &Actor, id: InstanceId, patch: InstancePatch) -> Result<Instance, Error> {
    let by = by.clone();
    world.store.write(move |tx| tx.update_instance(&by, &id.into(), &patch, None, at(0))).await
}

/// A development machine, and one that is in production.
async fn two_machines(world: &World) -> [Instance; 2] {
    let root = actor("root", Role::Admin);
    let dev = join(world, &root, labelled("dev-web", 1, &["env=dev"])).await.unwrap();
    [dev, join(world, &root, labelled("prod-db", 2, &["env=prod"])).await.unwrap()]
}

/// What a refusal has left: the same instances with the same credentials, no event, and no batch that had to be undone.
async fn assert_untouched(world: &World, machines: &[Instance; 2], events: usize) {
    for (machine, seed) in machines.iter().zip([1, 2]) {
        let id = machine.id.into();
        let now = world.store.read(move |reader| reader.get_instance(&id, at(0))).await.unwrap();
        assert_eq!(now, *machine);
        let bearer = world.store.find_actor(credential(seed), at(0)).await.unwrap();
        assert!(bearer.is_some(), "the credential of {} still acts for it", machine.name);
    }
    assert_eq!((world.events().await.len(), world.store.writer_counters().replays), (events, 0));
}

fn assert_beyond<T: std::fmt::Debug>(answer: Result<T, Error>, what: &str) {
    match refused(answer) {
        Refusal::BeyondLimits(told) => assert_eq!(told, what),
        other => panic!("{other:?} instead of {what}"),
    }
}

#[tokio::test]
async fn a_limited_operator_takes_over_and_refreshes_only_what_it_reaches() {
    let world = super::new_world().await;
    let machines = two_machines(&world).await;
    let [dev, prod] = &machines;
    let (operator, events) = (operator_for("env=dev"), world.events().await.len());
    let beyond = "it is for instances with env=dev, and prod-db has env=prod";
    for target in [prod.id.into(), InstanceRef::Name(prod.name.clone())] {
        let take_over = JoinRequest { replace: Some(target), ..nameless(3) };
        assert_beyond(join(&world, &operator, take_over).await, beyond);
    }
    assert_eq!(world.store.find_actor(credential(3), at(0)).await.unwrap(), None, "it holds no credential");
    // Whoever knows the hash of a credential, which is no secret, could tell other facts of its instance.
    let facts = Facts { host_name: "elsewhere".into(), ..prod.facts.clone() };
    let refresh = JoinRequest { facts, ..nameless(2) };
    assert_beyond(join(&world, &operator, refresh).await, beyond);
    assert_untouched(&world, &machines, events).await;

    let take_over = JoinRequest { replace: Some(dev.id.into()), ..nameless(4) };
    assert_eq!(join(&world, &operator, take_over).await.unwrap().id, dev.id, "within its limits it may");
    let nobody = JoinRequest { replace: Some(dev.id.into()), ..nameless(5) };
    let user = actor("ada", Role::User);
    assert!(matches!(refused(join(&world, &user, nobody).await), Refusal::TakeOverNotYours));
}

#[tokio::test]
async fn a_limited_operator_puts_no_machine_where_it_does_not_reach() {
    let world = super::new_world().await;
    let machines = two_machines(&world).await;
    let (operator, events) = (operator_for("env in (dev,test)"), world.events().await.len());
    let beyond =
        |given: &str| format!("it is for instances with env in (dev,test), and this one would have {given}");
    for (given, told) in [(&["env=prod"][..], "env=prod"), (&["team=red"], "team=red"), (&[], "no labels")] {
        assert_beyond(join(&world, &operator, labelled("new", 3, given)).await, &beyond(told));
        // With a new name too, of which nothing is written before the labels are looked at.
        let patch = InstancePatch { name: "other".parse().ok(), labels: Some(labels(given)) };
        assert_beyond(update(&world, &operator, machines[0].id, patch).await, &beyond(told));
        let again = JoinRequest {
            labels: labels(given),
            replace: (!given.is_empty()).then(|| machines[0].id.into()),
            ..join_request("other", 3)
        };
        assert_beyond(join(&world, &operator, again).await, &beyond(told));
    }
    assert_untouched(&world, &machines, events).await;

    let patch = InstancePatch { labels: Some(labels(&["env=test"])), ..InstancePatch::default() };
    update(&world, &operator, machines[0].id, patch).await.expect("from one that it reaches to another");
    join(&world, &operator, labelled("new", 3, &["env=dev", "team=red"])).await.expect("it reaches that one");
    let anywhere = operator_for("env!=prod");
    join(&world, &anywhere, join_request("bare", 4)).await.expect("and this one is for those without, too");
}

#[tokio::test]
async fn an_operator_for_some_pools_ends_no_reservation_of_others_beyond_them() {
    let world = super::new_world().await;
    for (pool, ports) in [("red", "7000-7009"), ("blue", "7010-7019")] {
        world.set_pool(pool, pool_spec(ports), None).await.unwrap();
    }
    let id = world.join("web-1", 1).await;
    let limits = Limits { pools: ["red".parse().unwrap()].into(), ..Limits::default() };
    let operator = Actor { limits: Some(limits.into()), ..actor("op", Role::Operator) };
    let ada = actor("ada", Role::User);
    let reserve = async |number: Option<u16>, pool: Option<&str>| {
        let pool = pool.map(|pool| pool.parse().unwrap());
        let request = ReserveRequest { port: number.map(port), pool, ..ReserveRequest::next_free(id) };
        world.reserve(&ada, &request, at(0)).await.unwrap()
    };
    let end = async |held: &Reservation| {
        let (by, id) = (operator.clone(), held.id);
        world.store.write(move |tx| tx.release(&by, id, None, true, None, at(1))).await
    };
    let [red, number, blue] = [
        reserve(None, Some("red")).await,
        reserve(Some(7005), None).await,
        reserve(None, Some("blue")).await,
    ];
    // What was drawn from its pool stays within its reach when the pool moves on.
    world.set_pool("red", pool_spec("7001-7009"), None).await.unwrap();
    let beyond = "7010 is in none of its pools, red";
    assert_beyond(end(&blue).await, beyond);
    let (by, machine) = (operator.clone(), id.into());
    assert_beyond(world.store.write(move |tx| tx.leave(&by, &machine, true, None, at(1))).await, beyond);
    for held in [red, number] {
        assert_eq!(end(&held).await.unwrap().released_by, Some(operator.subject.clone()));
    }
    let left: Vec<u16> = world.live().await.iter().map(|held| held.first_port.get()).collect();
    assert_eq!(left, [7010]);
}

#[tokio::test]
async fn a_limited_operator_ends_no_tokens() {
    let world = super::new_world().await;
    let (root, operator) = (actor("root", Role::Admin), operator_for("env=dev"));
    let create = move |tx: &mut gk_store::Tx<'_>| {
        tx.create_token(&root, credential(9), &TokenRequest::to_join(), at(0))
    };
    let token = world.store.write(create).await.unwrap();
    let revoke = async |by: &Actor| -> Result<Token, Error> {
        let by = by.clone();
        world.store.write(move |tx| tx.revoke_token(&by, token.id, at(1))).await
    };
    assert_beyond(revoke(&operator).await, "it is limited, and ends no tokens");
    assert!(world.store.find_actor(credential(9), at(1)).await.unwrap().is_some(), "it still lets in");
    let unlimited = actor("op", Role::Operator);
    assert!(revoke(&unlimited).await.unwrap().revoked_at.is_some());
}
