//! What the forms of one request have in common: dry runs, selectors, and editing afterwards.

use std::collections::BTreeMap;

use gk_model::access::{Actor, Role};
use gk_model::history::EventKind;
use gk_model::id::{InstanceId, ReservationId};
use gk_model::labels::{Label, Labels, Selector};
use gk_model::query::{Limit, ReservationQuery};
use gk_model::reservation::{Protocols, Reservation, ReservationPatch, ReserveRequest, Scope};
use gk_model::time::Timestamp;
use gk_store::{Error, Refusal};

use crate::store::world::{World, actor, at, count, port, refused, told};

fn on(selector: &str) -> ReserveRequest {
    ReserveRequest { on: Some(selector.parse().unwrap()), ..ReserveRequest::default() }
}

fn dry(request: &ReserveRequest) -> ReserveRequest {
    ReserveRequest { dry_run: true, ..request.clone() }
}

async fn update(
    world: &World,
    actor: &Actor,
    id: ReservationId,
    patch: &str,
    (force, version): (bool, Option<u64>),
    now: Timestamp,
) -> Result<Reservation, Error> {
    let (actor, patch) = (actor.clone(), serde_json::from_str::<ReservationPatch>(patch).unwrap());
    world.store.write(move |tx| tx.update_reservation(&actor, id, &patch, force, version, now)).await
}

/// Everything that was ever written down of reservations.
async fn everything(world: &World) -> (Vec<Reservation>, usize, usize, u64) {
    let newest = world.store.log().await.unwrap().newest_seq;
    (world.live().await, world.events().await.len(), world.history().await.len(), newest)
}

#[tokio::test]
async fn a_dry_run_picks_as_for_real_and_writes_nothing() {
    let world = super::new_world().await;
    let (one, two) = (world.join("web-1", 1).await, world.join("web-2", 2).await);
    world.label(one, "env=prod").await;
    world.label(two, "env=prod").await;
    let ada = actor("ada", Role::User);
    world.reserve_port(&ada, two, 8000).await.unwrap();
    let forms = [
        ReserveRequest::next_free(one),
        ReserveRequest { port: Some(port(9000)), count: count(3), ..ReserveRequest::next_free(one) },
        ReserveRequest { names: vec!["a".parse().unwrap(), "b".parse().unwrap()], ..on("env=prod") },
        ReserveRequest { protocol: Protocols::Both, scope: Scope::Fleet, ..ReserveRequest::default() },
    ];
    for request in forms {
        let before = everything(&world).await;
        let planned = world.reserve_group(&ada, &dry(&request), at(1)).await.unwrap();
        assert!(planned.iter().all(|it| (it.id, it.version) == (ReservationId::UNMADE, 0)), "{planned:?}");
        assert_eq!(everything(&world).await, before);
        let again = world.reserve_group(&ada, &dry(&request), at(1)).await.unwrap();
        assert_eq!(again, planned, "no map has learned of what was not taken");
        let made = world.reserve_group(&ada, &request, at(1)).await.unwrap();
        let unmade = made.iter().map(|made| Reservation {
            id: ReservationId::UNMADE,
            group: None,
            version: 0,
            ..made.clone()
        });
        assert_eq!(unmade.collect::<Vec<_>>(), planned);
    }
    // A range that cannot be had is refused alike, and alike helpfully.
    let taken = ReserveRequest { port: Some(port(8990)), count: count(20), ..ReserveRequest::next_free(one) };
    let before = everything(&world).await;
    let (dry, real) = (
        refused(world.reserve_group(&ada, &dry(&taken), at(2)).await),
        refused(world.reserve_group(&ada, &taken, at(2)).await),
    );
    assert_eq!(format!("{dry:?}"), format!("{real:?}"));
    assert_eq!(everything(&world).await, before);
    assert_eq!(world.store.writer_counters().replays, 0);
}

#[tokio::test]
async fn a_dry_run_of_ensure_tells_what_would_be_kept_and_how() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let ada = actor("ada", Role::User);
    let ask = |note: &str, ttl: i64| ReserveRequest {
        service: "shop".parse().ok(),
        ensure: true,
        note: note.parse().ok(),
        ttl_seconds: gk_model::lease::LeaseTime::try_from(ttl).ok(),
        ..ReserveRequest::next_free(id)
    };
    let made = world.reserve(&ada, &ask("old", 60), at(0)).await.unwrap();
    let before = everything(&world).await;
    let planned = world.reserve(&ada, &dry(&ask("new", 600)), at(1)).await.unwrap();
    assert_eq!((planned.id, planned.version, planned.expires_at), (made.id, 1, Some(at(601))));
    assert_eq!(planned.note, "new".parse().ok());
    assert_eq!(everything(&world).await, before);
    let kept = world.reserve(&ada, &ask("new", 600), at(1)).await.unwrap();
    assert_eq!(kept, Reservation { version: 3, ..planned }, "edited, then renewed");
    assert_eq!(world.live().await, [kept]);
}

/// Each selector, asked of the database as a filter and as a choice, and of the model.
#[tokio::test]
async fn a_selector_chooses_the_same_in_every_database() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let given =
        ["", "env=prod", "env=Prod", "env=prod,team=web", "x-env=prod", "a=env", "env=prod-2", "env=b%_"];
    let mut known: BTreeMap<InstanceId, Labels> = BTreeMap::new();
    for (seed, labels) in given.iter().enumerate().skip(1) {
        // Not every text is a value, and what is none is no test.
        let labels: Vec<Label> = labels.split(',').filter_map(|label| label.parse().ok()).collect();
        let id = world.join(&format!("web-{seed}"), u8::try_from(seed).unwrap()).await;
        let labels = Labels::try_from(labels).unwrap();
        let (patch, root) = (labels.clone(), actor("root", Role::Admin));
        let patch = gk_model::instance::InstancePatch { labels: Some(patch), ..Default::default() };
        let label =
            move |tx: &mut gk_store::Tx<'_>| tx.update_instance(&root, &id.into(), &patch, None, at(0));
        world.store.write(label).await.unwrap();
        known.insert(id, labels);
        world.reserve_port(&ada, id, 9000).await.unwrap();
    }
    for text in [
        "env",
        "env=prod",
        "env!=prod",
        "env in (prod,Prod)",
        "env=prod,team!=web",
        "team",
        "a=env",
        "nobody=x",
    ] {
        let selector: Selector = text.parse().unwrap();
        let chosen: Vec<InstanceId> =
            known.iter().filter(|(_, labels)| selector.matches(labels)).map(|(id, _)| *id).collect();
        let ids = |all: &[Reservation]| {
            all.iter().filter_map(|it| Some(it.instance.as_ref()?.id)).collect::<Vec<_>>()
        };
        let query =
            ReservationQuery { label: Some(selector.clone()), limit: Some(Limit::MAX), ..Default::default() };
        let listed =
            world.store.read(move |reader| reader.list_reservations(&query, at(0))).await.unwrap().items;
        assert_eq!(ids(&listed), chosen, "{text}");
        match world.reserve_group(&ada, &dry(&on(text)), at(1)).await {
            Ok(planned) => {
                let mut found = ids(&planned);
                found.sort_unstable();
                assert_eq!(found, chosen, "{text}");
            }
            refusal => {
                assert!(matches!(refused(refusal), Refusal::NobodyChosen(_)), "{text}");
                assert!(chosen.is_empty(), "{text}");
            }
        }
    }
}

#[tokio::test]
async fn whoever_has_left_or_lost_its_label_is_not_chosen() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let mut ids = Vec::new();
    for seed in 1..4 {
        let id = world.join(&format!("web-{seed}"), seed).await;
        world.label(id, "env=prod").await;
        ids.push(id);
    }
    assert_eq!(world.reserve_group(&ada, &dry(&on("env=prod")), at(1)).await.unwrap().len(), 3);
    world.leave(ids[0], false, at(1)).await.unwrap();
    world.label(ids[1], "env=test").await;
    let made = world.reserve_group(&ada, &on("env=prod"), at(2)).await.unwrap();
    assert_eq!(made.iter().map(Reservation::place).collect::<Vec<_>>(), ["on web-3"]);
    assert_eq!(made[0].group, None, "one alone is no group");
}

#[tokio::test]
async fn one_request_reserves_on_a_thousand_instances_and_no_more() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    let admin = actor("root", Role::Admin);
    let join = |from: u32, to: u32| {
        let admin = admin.clone();
        world.store.write(move |tx| {
            for number in from..to {
                let secret = gk_model::secret::Secret::from_random(
                    gk_model::secret::SecretKind::Instance,
                    &[number.to_le_bytes(); 8].concat().try_into().unwrap(),
                );
                let mut request = crate::store::world::join_request(&format!("node-{number:04}"), 0);
                request.credential_hash = secret.hash();
                tx.join(&admin, &request, at(0))?;
            }
            Ok(())
        })
    };
    join(0, 1000).await.unwrap();
    let ranges = ReserveRequest { count: count(66), ..on("env!=prod") };
    assert!(matches!(refused(world.reserve_group(&ada, &ranges, at(1)).await), Refusal::Contradiction(_)));
    let made = world.reserve_group(&ada, &on("env!=prod"), at(1)).await.unwrap();
    assert_eq!((made.len(), told(&made[0]), told(&made[999])), (1000, "8000/tcp".into(), "8000/tcp".into()));
    join(1000, 1001).await.unwrap();
    match refused(world.reserve_group(&ada, &on("env!=prod"), at(1)).await) {
        Refusal::Contradiction(found) => assert_eq!(found.field, "on"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn editing_changes_what_is_said_and_nothing_that_is_held() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let (ada, bob) = (actor("ada", Role::User), actor("bob", Role::User));
    let request = ReserveRequest {
        service: "shop".parse().ok(),
        count: count(4),
        note: "n".parse().ok(),
        ..ReserveRequest::next_free(id)
    };
    let made = world.reserve(&ada, &request, at(0)).await.unwrap();
    let edited =
        update(&world, &ada, made.id, r#"{"note":null,"labels":{"a":"b"}}"#, (false, Some(1)), at(1)).await;
    let edited = edited.unwrap();
    let labels = Labels::try_from(vec!["a=b".parse::<Label>().unwrap()]).unwrap();
    assert_eq!(edited, Reservation { note: None, labels, version: 2, ..made.clone() });
    assert_eq!(world.live().await, std::slice::from_ref(&edited));
    assert_eq!(world.history().await.len(), 1, "it is held for the same");
    let before = everything(&world).await;
    let same = update(&world, &ada, made.id, r#"{"note":null}"#, (false, None), at(2)).await.unwrap();
    assert_eq!(same, edited);
    for (who, force, version) in [(&bob, true, None), (&ada, false, Some(1))] {
        refused(update(&world, who, made.id, r#"{"note":"x"}"#, (force, version), at(2)).await);
    }
    assert_eq!(everything(&world).await, before);

    // What it is for is history; so is who said so.
    let op = actor("op", Role::Operator);
    refused(update(&world, &op, made.id, r#"{"service":"store"}"#, (false, None), at(3)).await);
    let other = update(&world, &op, made.id, r#"{"service":"store"}"#, (true, None), at(3)).await.unwrap();
    let spans: Vec<_> = world
        .history()
        .await
        .into_iter()
        .map(|it| (it.service.unwrap().to_string(), it.began_at, it.ended_at))
        .collect();
    assert_eq!(spans, [("shop".into(), at(0), Some(at(3))), ("store".into(), at(3), None)]);
    let event = world.events().await.pop().unwrap();
    assert_eq!((event.kind, event.actor.as_str()), (EventKind::Edited, "op"));
    assert_eq!(event.message, "8000-8003/tcp edited by op, held by ada: service store instead of shop");

    // Parts go on with what was said last, and their ends end the interval that the edit began.
    world.release_part(&ada, &other, "8001", at(4)).await.unwrap();
    let services: Vec<_> = world.live().await.into_iter().map(|it| it.service.unwrap().to_string()).collect();
    assert_eq!(services, ["store", "store"]);
    assert_eq!(world.store.verify().await.unwrap().problems(), Vec::<String>::new());
    world.release(&ada, &other, at(5)).await.unwrap();
    let gone = update(&world, &ada, made.id, r#"{"note":"x"}"#, (false, None), at(6)).await;
    assert!(matches!(refused(gone), Refusal::AlreadyReleased(_)));
    assert_eq!(world.store.verify().await.unwrap().problems(), Vec::<String>::new());
}

#[tokio::test]
async fn a_number_that_is_free_everywhere_is_found_for_both_protocols_and_several_names() {
    let world = super::new_world().await;
    let ada = actor("ada", Role::User);
    for seed in 1..4u8 {
        let id = world.join(&format!("web-{seed}"), seed).await;
        world.label(id, "env=prod").await;
        let taken = ReserveRequest {
            port: Some(port(8000 + 2 * u16::from(seed))),
            protocol: if seed == 2 { Protocols::Udp } else { Protocols::Tcp },
            ..ReserveRequest::next_free(id)
        };
        world.reserve(&ada, &taken, at(0)).await.unwrap();
    }
    let names = vec!["http".parse().unwrap(), "grpc".parse().unwrap()];
    let all = ReserveRequest { names, count: count(2), protocol: Protocols::Both, ..on("env") };
    let made = world.reserve_group(&ada, &all, at(1)).await.unwrap();
    let told: std::collections::BTreeSet<String> = made.iter().map(told).collect();
    let expected = ["8000-8001/tcp", "8000-8001/udp", "8007-8008/tcp", "8007-8008/udp"];
    assert_eq!((made.len(), told), (12, expected.map(str::to_owned).into()));
}
