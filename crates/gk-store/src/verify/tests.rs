//! Each check, seen to speak of the damage it is for, and alone.

use std::path::Path;

use gk_model::port::Port;
use gk_model::reservation::ReserveRequest;
use tempfile::TempDir;

use super::CHECKS;
use crate::samples::{ada, at, damage, filled, join, reserve};
use crate::{Store, StoreConfig, verify};

/// The invariants that do not hold.
fn broken(directory: &Path) -> Vec<&'static str> {
    let verdict = verify(&StoreConfig::embedded(directory), at(100), &mut |_| {}).unwrap();
    assert_eq!(verdict.checks.len(), CHECKS.len());
    for check in &verdict.checks {
        assert_eq!(check.shown.len() as u64, check.violations.min(20), "{check:?}");
        assert!(check.looked_at > 0, "{} looked at nothing", check.invariant);
    }
    verdict.checks.iter().filter(|check| check.violations > 0).map(|check| check.invariant).collect()
}

#[test]
fn a_sound_database_is_told_to_be_sound() {
    let directory = filled();
    assert_eq!(broken(directory.path()), Vec::<&str>::new());
}

/// Each way to damage the tables, and the invariant that it breaks.
const DAMAGES: &[(&str, &str)] = &[
    (
        "the database file is sound",
        "pragma writable_schema = on;
         update sqlite_schema set sql = 'create index event_at on event (recorded_at, seq)' where name = 'event_at'",
    ),
    ("claims are the ports of live reservations", "delete from claim where port = 8000"),
    ("claims are the ports of live reservations", "update claim set port = 9000 where port = 8000"),
    ("claims are the ports of live reservations", "update claim set space = 'fleet' where port = 8000 and
        space = (select min(space) from claim)"),
    ("claims are the ports of live reservations", "update claim set protocol = 'udp' where port = 8000"),
    ("claims are the ports of live reservations",
        "insert into claim values ('fleet', 'tcp', 9000, '018bcfe5-0000-7000-8000-000000000000')"),
    (
        "ended reservations claim nothing",
        "insert into claim select instance, protocol, 9000, id from reservation where released_at is not null",
    ),
    // Of the whole fleet in every table, and yet somebody else has the number.
    (
        "live reservations do not overlap",
        "update reservation set scope = 'fleet' where id =
            (select min(id) from reservation where first_port = 8000);
         update claim set space = 'fleet' where reservation in (select id from reservation where scope = 'fleet')",
    ),
    (
        "live reservations do not overlap",
        "update reservation set scope = 'fleet' where id =
            (select max(id) from reservation where first_port = 8000);
         update claim set space = 'fleet' where reservation in (select id from reservation where scope = 'fleet')",
    ),
    ("pools are what they may be", "delete from pool_range"),
    ("pools are what they may be", "update pool set ranges = '[\"8000-9000\"]'"),
    ("pools are what they may be", "insert into pool_range values ('nobody', 1, 2)"),
    ("pools are what they may be", "insert into pool select 'web', '[\"40000\"]', exclude, scope, pick,
        quarantine_seconds, instances, ephemeral, note, 1 from pool;
        insert into pool_range values ('web', 40000, 40000)"),
    ("pools are what they may be", "insert into pool select 'web', '[\"9999\"]', exclude, 'fleet', pick,
        quarantine_seconds, instances, ephemeral, note, 1 from pool;
        insert into pool_range values ('web', 9999, 9999)"),
    ("pools are what they may be", "update pool set name = 'web'; update pool_range set pool = 'web'"),
    ("the use of pools is counted", "update pool_use set taken = taken + 1"),
    ("the use of pools is counted", "delete from pool_use"),
    ("the use of pools is counted", "insert into pool_use values ('fleet', 'udp', 'default', 1)"),
    ("the use of pools is counted", "update pool_total set taken = taken + 1"),
    ("the use of pools is counted", "delete from pool_total"),
    ("events are numbered without a gap", "delete from event where seq = 4"),
    ("events are numbered without a gap", "update event_seq set seq = seq + 1"),
    ("no event happened after it was recorded", "update event set at = recorded_at + 1 where seq = 2"),
    (
        "each live reservation has one open interval",
        "update interval set ended_at = began_at where kind = 'held' and first_port = 8000",
    ),
    (
        "each live reservation has one open interval",
        "insert into interval (seq, kind, instance, protocol, first_port, last_port, began_at)
         select 99, 'held', space, 'tcp', 9000, 9000, 0 from claim limit 1",
    ),
    // The second began while the first lasted, by time and by number.
    (
        "no port was held twice at a time",
        "insert into interval (seq, kind, instance, protocol, first_port, last_port, began_at, ended_at, reservation)
         select 99, kind, instance, protocol, first_port - 5, last_port + 5, began_at + 1, began_at + 9, reservation
         from interval where kind = 'held' and first_port = 8000 limit 1",
    ),
    (
        "each listener has one open interval",
        "update interval set ended_at = began_at where kind = 'listened' and first_port = 22",
    ),
    (
        "each listener has one open interval",
        "insert into interval (seq, kind, instance, protocol, first_port, last_port, began_at)
         select 99, 'listened', space, 'tcp', 9000, 9000, 0 from claim limit 1",
    ),
    (
        "no interval ends before it begins",
        "update interval set ended_at = began_at - 1 where ended_at is not null",
    ),
    ("digests fit the stored listeners", "update instance set digest = '0123456789abcdef0123456789abcdef'"),
    (
        "no two joined instances share a name",
        "drop index instance_name; update instance set name_key = 'web-1'; update drift set name_key = 'web-1'",
    ),
    (
        "labels are written down as they are",
        "insert into instance_label select 'env=prod', name_key, id from instance where name = 'web-1'",
    ),
    ("labels are written down as they are", "update instance set labels = '{\"env\":\"prod\"}' where name = 'web-1'"),
    (
        "labels are written down as they are",
        "update instance set labels = '{\"env\":\"prod\"}' where name = 'web-1';
         insert into instance_label select 'env=test', name_key, id from instance where name = 'web-1'",
    ),
    (
        "labels are written down as they are",
        "update instance set labels = '{\"env\":\"prod\"}' where name = 'web-1';
         insert into instance_label select 'env=prod', 'web-2', id from instance where name = 'web-1'",
    ),
    (
        "every row belongs to a known instance",
        "delete from instance where name = 'web-2'; update event_seq set instances = instances - 1",
    ),
    ("drift is kept as it is", "update drift set port = 23 where port = 22"),
    ("drift is kept as it is", "update drift set reservation = (select min(id) from reservation) where port = 22"),
    ("drift is kept as it is", "update drift set name_key = 'web-9' where port = 22"),
    ("drift is kept as it is",
        "update drift set ignored = 1, ignored_by = 'x'; update event_seq set unreserved = 0, ignored = 4"),
    ("drift is kept as it is", "update drift set ignored_by = 'x'"),
    ("drift is kept as it is", "delete from drift where port = 22; update event_seq set unreserved = 2"),
    ("drift is kept as it is", "update reservation set idle_since = null where first_port = 8000"),
    ("drift is kept as it is", "update reservation set idle_since = created_at - 1 where first_port = 8000"),
    ("counters count what there is", "update event_seq set listeners = 3"),
    ("counters count what there is", "update event_seq set instances = 3"),
    ("counters count what there is", "update event_seq set leases = 1"),
];

/// Damaged claims, or numbers, would else be told twice.
const RECOUNT: &str = "delete from pool_use; insert into pool_use (space, protocol, pool, taken)
    select c.space, c.protocol, r.pool, count(*) from pool_range r join claim c
    on c.port between r.first_port and r.last_port group by c.space, c.protocol, r.pool;
    delete from pool_total; insert into pool_total (pool, protocol, taken)
    select pool, protocol, sum(taken) from pool_use group by pool, protocol";

#[test]
fn each_damage_is_told_by_its_check_and_by_no_other() {
    for (invariant, sql) in DAMAGES {
        let directory = filled();
        damage(directory.path(), sql);
        if *invariant != "the use of pools is counted" {
            damage(directory.path(), RECOUNT);
        }
        assert_eq!(broken(directory.path()), [*invariant], "after {sql}");
    }
}

#[test]
fn every_check_has_a_damage() {
    for check in CHECKS {
        let has = DAMAGES.iter().any(|(invariant, _)| *invariant == check.invariant);
        assert!(has, "nobody has seen the check speak that {}", check.invariant);
    }
}

#[test]
fn a_clock_that_steps_back_is_no_damage() {
    let directory = TempDir::new().unwrap();
    let store = Store::open_here(&StoreConfig::embedded(directory.path()), at(0)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let id = join(&store, "web-1", 1).await;
        let request = ReserveRequest { port: Port::new(8000), ..ReserveRequest::next_free(id) };
        let first = reserve(&store, request.clone(), at(1000)).await.id;
        store.write(move |tx| tx.release(&ada(), first, None, false, None, at(2000))).await.unwrap();
        reserve(&store, request, at(500)).await;
        let verdict = store.verify().await.unwrap();
        assert_eq!(verdict.problems(), Vec::<String>::new());
    });
}
