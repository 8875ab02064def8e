//! Leases: they end late, never early, whatever the clocks do.

use std::time::Duration;

use gk_model::access::Role;
use gk_model::history::EventKind;
use gk_model::id::InstanceId;
use gk_model::lease::{LeaseTime, Tick};
use gk_model::reservation::{Reservation, ReserveRequest};
use gk_model::time::Timestamp;
use gk_store::{ExpiryReport, Refusal};

use crate::store::world::{World, actor, at, count, port, refused, told};

pub(super) fn lease(id: InstanceId, seconds: i64) -> ReserveRequest {
    ReserveRequest {
        ttl_seconds: Some(LeaseTime::try_from(seconds).unwrap()),
        ..ReserveRequest::next_free(id)
    }
}

/// A server that looks at its leases: its wall clock, and a clock that never steps.
pub(super) struct Looker {
    started: u64,
    last: Option<u64>,
}

impl Looker {
    pub(super) fn new(started: u64) -> Looker {
        Looker { started, last: None }
    }

    /// A tick when the wall clock says `wall` and `passed` seconds have really passed since the test began.
    fn tick(&mut self, wall: Timestamp, passed: u64) -> Tick {
        let elapsed = self.last.map(|last| Duration::from_secs(passed - last));
        self.last = Some(passed);
        Tick { now: wall, elapsed, since_start: Duration::from_secs(passed - self.started) }
    }

    pub(super) async fn look(&mut self, world: &World, wall: Timestamp, passed: u64) -> ExpiryReport {
        let tick = self.tick(wall, passed);
        world.store.expire_leases(tick).await.unwrap()
    }

    /// As another server on the same database would: without what this process remembers.
    async fn look_from_elsewhere(&mut self, world: &World, wall: Timestamp, passed: u64) -> ExpiryReport {
        let tick = self.tick(wall, passed);
        world.store.write(move |tx| tx.expire_leases(&tick, 500)).await.unwrap()
    }
}

async fn deadlines(world: &World) -> Vec<Option<Timestamp>> {
    world.live().await.iter().map(|made| made.expires_at).collect()
}

#[tokio::test]
async fn lease_never_ends_early() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let ada = actor("ada", Role::User);
    let made = world.reserve(&ada, &lease(id, 100), at(0)).await.unwrap();
    world.reserve(&ada, &ReserveRequest::next_free(id), at(0)).await.unwrap();
    let mut server = Looker::new(0);
    let mut ended_at = None;
    for second in 0..300u64 {
        let report = server.look(&world, at(second), second).await;
        if report.expired > 0 {
            assert_eq!(ended_at.replace(second), None, "once");
        }
    }
    assert_eq!(ended_at, Some(100));
    assert_eq!(world.live_ports().await, ["8001/tcp"], "what is no lease stays");
    let id_of = made.id;
    let ended = world.store.read(move |reader| reader.get_reservation(id_of)).await.unwrap();
    let by = ended.released_by.unwrap();
    assert_eq!((ended.released_at, by.as_str(), ended.version), (Some(at(100)), "server", 2));
    let event = world.events().await.pop().unwrap();
    assert_eq!(
        (event.kind, event.actor.as_str(), event.message.as_str()),
        (EventKind::Expired, "server", "8000/tcp expired, held by ada")
    );
    assert_eq!(world.history().await[0].ended_at, Some(at(100)));
    // Its number rests as after a release, and may be had by number.
    assert_eq!(
        told(&world.reserve(&ada, &ReserveRequest::next_free(id), at(101)).await.unwrap()),
        "8002/tcp"
    );
    world.reserve_port(&ada, id, 8000).await.unwrap();
}

#[tokio::test]
async fn a_renewed_lease_goes_on_and_only_its_holder_renews() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let (ada, bob, op) = (actor("ada", Role::User), actor("bob", Role::User), actor("op", Role::Operator));
    let made = world.reserve(&ada, &lease(id, 100), at(0)).await.unwrap();
    let ever = world.reserve(&ada, &ReserveRequest::next_free(id), at(0)).await.unwrap();
    let renew =
        |who: &gk_model::access::Actor, made: &Reservation, force: bool, version: Option<u64>, now: u64| {
            let (who, id, ttl) = (who.clone(), made.id, LeaseTime::try_from(100).unwrap());
            world.store.write(move |tx| tx.renew(&who, id, ttl, force, version, at(now)))
        };
    let before = world.events().await.len();
    assert!(matches!(refused(renew(&bob, &made, true, None, 50).await), Refusal::NotTheHolder(_)));
    assert!(matches!(refused(renew(&op, &made, false, None, 50).await), Refusal::NotTheHolder(_)));
    assert!(matches!(
        refused(renew(&ada, &made, false, Some(7), 50).await),
        Refusal::VersionMismatch { current: 1 }
    ));
    assert!(matches!(refused(renew(&ada, &ever, false, None, 50).await), Refusal::NoLease(_)));
    assert_eq!(world.events().await.len(), before);
    let renewed = renew(&ada, &made, false, Some(1), 50).await.unwrap();
    assert_eq!((renewed.expires_at, renewed.version), (Some(at(150)), 2));
    assert_eq!(world.live().await[0], renewed);
    let event = world.events().await.pop().unwrap();
    assert_eq!((event.kind, event.actor.as_str()), (EventKind::Renewed, "ada"));

    let mut server = Looker::new(0);
    server.look(&world, at(139), 139).await;
    // Over, but not written down: still live, and renewed by an operator.
    let renewed = renew(&op, &made, true, None, 160).await.unwrap();
    assert_eq!(renewed.expires_at, Some(at(260)));
    assert_eq!(server.look(&world, at(161), 161).await, ExpiryReport::default());
    assert_eq!(server.look(&world, at(260), 260).await.expired, 1);
    assert!(matches!(refused(renew(&ada, &made, false, None, 261).await), Refusal::AlreadyReleased(_)));
}

#[tokio::test]
async fn after_a_start_nothing_ends_for_a_minute() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let ada = actor("ada", Role::User);
    world.reserve(&ada, &lease(id, 10), at(0)).await.unwrap();
    Looker::new(0).look(&world, at(1), 1).await;
    // Away for an hour, and back.
    let world = world.reopen(at(3600)).await;
    let mut server = Looker::new(3600);
    let mut ended_at = None;
    for second in 3600..3700u64 {
        let report = server.look(&world, at(second), second).await;
        assert_eq!(report.shifted_micros, None, "an hour away is no step of the clock");
        if report.expired > 0 {
            ended_at.get_or_insert(second);
        }
    }
    assert_eq!(ended_at, Some(3660));
}

#[tokio::test]
async fn when_the_clock_steps_deadlines_move_along() {
    for (step, name) in [(3600i64, "forward"), (-1800, "backward")] {
        let world = super::new_world().await;
        let id = world.join("web-1", 1).await;
        let ada = actor("ada", Role::User);
        let start = 10_000u64;
        world.reserve(&ada, &lease(id, 300), at(start)).await.unwrap();
        let mut server = Looker::new(0);
        let mut ended_after = None;
        for passed in 100..700u64 {
            // After 50 seconds of the lease the clock steps.
            let stepped = if passed > 150 { step } else { 0 };
            let wall = at((start + passed - 100).saturating_add_signed(stepped));
            let report = server.look(&world, wall, passed).await;
            if passed == 151 {
                let moved = report.shifted_micros.unwrap();
                assert!((moved - step * 1_000_000).abs() <= 1_000_000, "{name}: {moved}");
                assert_eq!(report.expired, 0);
            } else {
                assert_eq!(report.shifted_micros, None, "{name}: once, at {passed}");
            }
            if report.expired > 0 {
                ended_after.get_or_insert(passed - 100);
            }
        }
        let ended_after = ended_after.unwrap();
        assert!((300..=302).contains(&ended_after), "{name}: after {ended_after} s of 300");
    }
}

/// The step is noticed by the next tick only: what is leased or renewed in between must not suffer from it.
#[tokio::test]
async fn a_lease_begun_between_a_step_and_its_tick_is_not_short() {
    for step in [3600i64, -1800] {
        let world = super::new_world().await;
        let id = world.join("web-1", 1).await;
        let ada = actor("ada", Role::User);
        let wall = move |passed: u64| at((10_000 + passed).saturating_add_signed(step));
        world.reserve(&ada, &lease(id, 9000), at(10_000)).await.unwrap();
        let old = world.reserve(&ada, &lease(id, 300), at(10_000)).await.unwrap();
        let mut server = Looker::new(0);
        for passed in 99..102 {
            server.look(&world, at(10_000 + passed), passed).await;
        }
        world.reserve(&ada, &lease(id, 50), wall(102)).await.unwrap();
        let (by, ttl) = (ada.clone(), LeaseTime::try_from(50).unwrap());
        let renew = move |tx: &mut gk_store::Tx<'_>| tx.renew(&by, old.id, ttl, false, None, wall(102));
        world.store.write(renew).await.unwrap();
        assert_eq!(server.look(&world, wall(102), 102).await.expired, 0);
        // Stamped before the step, and done only now.
        world.reserve(&ada, &lease(id, 50), at(10_102)).await.unwrap();
        for passed in 103..152 {
            assert_eq!(server.look(&world, wall(passed), passed).await.expired, 0, "{step}: {passed}");
        }
        assert_eq!(world.live().await.len(), 4);
    }
}

#[tokio::test]
async fn of_two_servers_one_moves_the_deadlines() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let ada = actor("ada", Role::User);
    world.reserve(&ada, &lease(id, 300), at(1000)).await.unwrap();
    let (mut one, mut two) = (Looker::new(0), Looker::new(0));
    for passed in 1000..1005 {
        one.look_from_elsewhere(&world, at(passed), passed).await;
        two.look_from_elsewhere(&world, at(passed), passed).await;
    }
    // An hour forward; both look.
    let first = two.look_from_elsewhere(&world, at(1005 + 3600), 1005).await;
    let second = one.look_from_elsewhere(&world, at(1005 + 3600), 1005).await;
    assert_eq!((first.shifted_micros, second.shifted_micros), (Some(3_601_000_000), None));
    assert_eq!(deadlines(&world).await, [Some(at(1300 + 3601))]);
    for passed in 1006..1301 {
        for server in [&mut one, &mut two] {
            assert_eq!(
                server.look_from_elsewhere(&world, at(passed + 3600), passed).await,
                ExpiryReport::default()
            );
        }
    }
    assert_eq!(one.look_from_elsewhere(&world, at(1301 + 3600), 1301).await.expired, 1);
    assert_eq!(two.look_from_elsewhere(&world, at(1301 + 3600), 1301).await.expired, 0);
}

#[tokio::test]
async fn a_server_without_leases_writes_nothing_and_still_sees_a_step() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let ada = actor("ada", Role::User);
    world.reserve(&ada, &ReserveRequest::next_free(id), at(0)).await.unwrap();
    let mut server = Looker::new(0);
    let before = world.store.writer_counters();
    for passed in 0..5000u64 {
        if passed % 100 == 0 {
            assert_eq!(server.look(&world, at(passed), passed).await, ExpiryReport::default());
        }
    }
    server.look(&world, at(5000), 5000).await;
    assert_eq!(world.store.writer_counters(), before, "not one transaction");
    // A lease begins, and before the next tick the clock steps by an hour.
    world.reserve(&ada, &lease(id, 100), at(5000)).await.unwrap();
    let report = server.look(&world, at(5001 + 3600), 5001).await;
    assert_eq!(
        (report.expired, report.shifted_micros),
        (0, Some(3_601_000_000)),
        "the hour, not the quiet time"
    );
    for passed in 5002..5101u64 {
        assert_eq!(server.look(&world, at(passed + 3600), passed).await, ExpiryReport::default(), "{passed}");
    }
    assert_eq!(server.look(&world, at(5101 + 3600), 5101).await.expired, 1);
}

#[tokio::test]
async fn many_leases_end_in_batches() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let ada = actor("ada", Role::User);
    let made = world.store.write(move |tx| {
        (0..1201)
            .map(|_| Ok(tx.reserve(&ada, &lease(id, 5), at(0))?.id))
            .collect::<Result<Vec<_>, gk_store::Error>>()
    });
    assert_eq!(made.await.unwrap().len(), 1201);
    let mut server = Looker::new(0);
    server.look(&world, at(100), 100).await;
    let mut batches = Vec::new();
    loop {
        let report = server.look(&world, at(101), 101).await;
        batches.push(report.expired);
        if !report.more {
            break;
        }
    }
    assert_eq!(batches, [500, 500, 201]);
    assert_eq!(world.live().await, []);
}

#[tokio::test]
async fn a_range_split_in_two_keeps_its_deadline_in_both() {
    let world = super::new_world().await;
    let id = world.join("web-1", 1).await;
    let ada = actor("ada", Role::User);
    let range = ReserveRequest { count: count(5), ..lease(id, 100) };
    let made = world.reserve(&ada, &range, at(0)).await.unwrap();
    world.release_part(&ada, &made, "8002", at(10)).await.unwrap();
    assert_eq!(deadlines(&world).await, [Some(at(100)); 2]);
    let mut server = Looker::new(0);
    server.look(&world, at(99), 99).await;
    assert_eq!(server.look(&world, at(100), 100).await.expired, 2);
    assert_eq!(world.live().await, []);
    let everything =
        ReserveRequest { port: Some(port(8000)), count: count(5), ..ReserveRequest::next_free(id) };
    world.reserve(&ada, &everything, at(101)).await.expect("no claim is left behind");
}

/// While no lease is live nobody writes down what the clock says, so a step then must not count for the next lease.
#[tokio::test]
async fn a_lease_begun_after_a_step_in_quiet_times_lasts_as_long_as_any() {
    for step in [3600i64, -1800] {
        let world = super::new_world().await;
        let id = world.join("web-1", 1).await;
        let ada = actor("ada", Role::User);
        let wall = move |passed: u64| at((10_000 + passed).saturating_add_signed(step));
        // Leases before, so that the clock was written down once.
        world.reserve(&ada, &lease(id, 1), at(10_000)).await.unwrap();
        let (mut one, mut two) = (Looker::new(0), Looker::new(0));
        for passed in 98..101 {
            one.look(&world, at(10_000 + passed), passed).await;
            two.look(&world, at(10_000 + passed), passed).await;
        }
        assert_eq!(world.live().await, []);
        // The clock steps; one server has looked since, and the other one has not, when a lease is made.
        one.look(&world, wall(101), 101).await;
        world.reserve(&ada, &lease(id, 50), wall(101)).await.unwrap();
        let mut ended = None;
        for passed in 102..200 {
            for server in [&mut two, &mut one] {
                let report = server.look(&world, wall(passed), passed).await;
                assert_eq!(report.shifted_micros, None, "{step}");
                ended = ended.or((report.expired > 0).then_some(passed));
            }
        }
        assert_eq!(ended, Some(151), "{step}");
    }
}
