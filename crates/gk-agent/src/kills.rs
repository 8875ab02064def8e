//! The agent is killed, at any moment, while the server is away and while it comes back.

use std::time::Duration;

use proptest::prelude::*;

use crate::model_server::Entry;
use crate::simulation::{Fate, PORTS, World, in_contact};
use crate::spool::Spooled;

/// What happened to one port.
fn of(entries: &[Entry], port: u16) -> Vec<Entry> {
    entries.iter().filter(|entry| entry.0 == port).copied().collect()
}

/// The ledger of the server is what the agents saw: complete, in order, each entry once and with its time.
fn assert_same_history(world: &World) {
    world.assert_equal_views();
    for port in PORTS {
        assert_eq!(of(&world.server.ledger, port), of(&world.history, port), "port {port}");
    }
}

/// Of each port, entries are in order, and openings and closings take turns.
fn assert_nothing_twice(world: &World) {
    for port in PORTS {
        let entries = of(&world.server.ledger, port);
        let is_true = entries.windows(2).all(|pair| pair[0].1 != pair[1].1 && pair[0].2 <= pair[1].2);
        assert!(is_true, "port {port}: {entries:?}");
    }
}

/// In contact, then out of it for long enough that the spool has begun.
fn away() -> World {
    let mut world = in_contact();
    while world.disk.is_none() {
        world.scan(3, 0, 3, Fate::RequestLost);
    }
    world
}

#[test]
fn an_hour_without_the_server_and_with_kills_is_told_completely_in_order_and_once() {
    let mut world = away();
    let begun = world.elapsed;
    let mut state = 1_u32;
    while world.elapsed < begun + Duration::from_secs(3_600) {
        // Something changes every minute or so, and the agent is killed every ten minutes.
        state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        let open = (state >> 16) as u8 % 64;
        for _ in 0..100 + state % 100 {
            world.scan(open, 0, 3, Fate::RequestLost);
        }
        if state.is_multiple_of(8) {
            world.restart();
        }
    }
    assert!(world.history.len() > 100, "{}", world.history.len());
    let told_before = world.server.ledger.len();
    world.quiet(5);
    assert!(world.server.ledger.len() > told_before + 100);
    assert_same_history(&world);
    assert_eq!(world.disk, None, "the spool ends when all is told");
}

#[test]
fn an_agent_whose_server_answers_writes_nothing() {
    let mut world = in_contact();
    for open in 0..64 {
        world.scan(open, 0, 3, Fate::Arrives);
        assert_eq!(world.disk, None);
    }
}

/// What is told in the moment of the kill either arrived or did not; the server's answer decides.
#[test]
fn a_kill_before_or_after_the_server_took_a_contact_makes_no_difference() {
    for fate in [Fate::RequestLost, Fate::AnswerLost] {
        let mut world = away();
        for open in [7, 3, 7, 3] {
            (0..9).for_each(|_| world.scan(open, 0, 3, Fate::RequestLost));
        }
        // The server is back, takes two steps, and then this happens.
        while world.server.acknowledged < 3 {
            world.scan(3, 0, 3, Fate::Arrives);
        }
        let contacts = world.contacts;
        while world.contacts == contacts {
            world.scan(3, 0, 3, fate);
        }
        world.restart();
        world.settle(3);
        assert_same_history(&world);
    }
}

#[test]
fn a_spool_that_does_not_fit_is_told_by_its_result() {
    let mut world = away();
    for open in [7, 3, 15] {
        (0..9).for_each(|_| world.scan(open, 0, 3, Fate::RequestLost));
    }
    // The machine crashed, and the spool of an hour ago came back without what was told since.
    let old = world.disk.clone();
    world.settle(15);
    world.scan(3, 0, 3, Fate::Arrives);
    world.settle(3);
    world.disk = old;
    world.restart();
    world.settle(3);
    world.assert_equal_views();
    assert_nothing_twice(&world);
    assert_eq!(world.server.ledger.len(), world.history.len(), "and nothing of it once more");
}

#[test]
fn what_follows_a_torn_record_is_not_lost_with_it() {
    let mut world = away();
    world.scan(7, 0, 3, Fate::RequestLost);
    world.kill_within_a_write(5);
    for open in [7, 3, 7, 3] {
        (0..9).for_each(|_| world.scan(open, 0, 3, Fate::RequestLost));
    }
    world.restart();
    world.settle(3);
    let told = of(&world.server.ledger, 82);
    assert_eq!(told[1..], of(&world.history, 82)[1..], "only the torn one is told as it was seen again");
    assert_eq!(told.len(), 4);
}

#[derive(Clone, Debug)]
struct Spell {
    open: u8,
    owners: u8,
    scans: usize,
    fate: Fate,
    kill: bool,
}

fn spells(longest: usize) -> impl Strategy<Value = Vec<Spell>> {
    let fate =
        prop_oneof![3 => Just(Fate::Arrives), 2 => Just(Fate::RequestLost), 2 => Just(Fate::AnswerLost)];
    let scans = prop_oneof![Just(1_usize), Just(2), Just(5), Just(80)];
    let spell = (0..64_u8, 0..64_u8, scans, fate, prop::bool::weighted(0.3));
    let spell = spell.prop_map(|(open, owners, scans, fate, kill)| Spell { open, owners, scans, fate, kill });
    prop::collection::vec(spell, 1..longest)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// SIGKILL takes nothing away that the spool has, whatever the network does meanwhile.
    #[test]
    fn kills_lose_nothing_that_is_spooled(spells in spells(30), last in 0..64_u8) {
        let mut world = away();
        for spell in spells {
            for _ in 0..spell.scans {
                world.scan(spell.open, spell.owners, 3, spell.fate);
            }
            // Without a spool the server answers, and a kill costs what happens until the next start.
            if spell.kill && world.disk.is_some() {
                world.restart();
            }
        }
        world.settle(last);
        assert_same_history(&world);
    }

    /// A kill in the middle of a write, or while the server answers, never makes history untrue.
    #[test]
    fn a_kill_at_any_byte_makes_nothing_untrue(
        spells in spells(30),
        cuts in prop::collection::vec(0..2_000_usize, 30),
        last in 0..64_u8,
    ) {
        let mut world = away();
        for (spell, cut) in spells.into_iter().zip(cuts) {
            for _ in 0..spell.scans {
                world.scan(spell.open, spell.owners, 3, spell.fate);
            }
            if spell.kill {
                world.kill_within_a_write(cut);
            }
        }
        world.settle(last);
        world.assert_equal_views();
        assert_nothing_twice(&world);
    }
}

/// The disk after every write of a run in which the server goes, comes back and goes again.
fn disks() -> Vec<Vec<u8>> {
    let mut world = away();
    let mut disks = Vec::new();
    let fates = [Fate::RequestLost, Fate::RequestLost, Fate::Arrives, Fate::AnswerLost, Fate::RequestLost];
    for (open, fate) in [7, 3, 5, 21, 7].into_iter().zip(fates) {
        for _ in 0..9 {
            world.scan(open, 0, 3, fate);
            disks.extend(world.disk.clone());
        }
    }
    disks.dedup();
    disks
}

#[test]
fn a_spool_cut_at_any_byte_is_read_up_to_there() {
    let disk = disks().into_iter().max_by_key(Vec::len).unwrap();
    let base = disk.iter().position(|byte| *byte == b'\n').unwrap();
    let mut steps = 0;
    for length in 0..=disk.len() {
        let Some(spooled) = Spooled::read(&disk[..length]) else {
            assert!(length <= base, "at {length}");
            continue;
        };
        let ends = disk[..length].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
        assert_eq!(spooled.torn_bytes, length - ends);
        steps = steps.max(spooled.steps.len());
    }
    assert!(steps > 0);
}

#[test]
fn a_spool_with_any_byte_changed_is_read_up_to_there() {
    let disk = disks().into_iter().max_by_key(Vec::len).unwrap();
    let whole = Spooled::read(&disk).unwrap();
    assert_eq!(whole.torn_bytes, 0);
    for position in 0..disk.len() {
        let mut damaged = disk.clone();
        damaged[position] ^= 1;
        let Some(spooled) = Spooled::read(&damaged) else { continue };
        assert!(
            spooled.torn_bytes >= disk.len() - position.min(disk.len()) || disk[position] == b'\n',
            "at {position}"
        );
        assert!(spooled.torn_bytes > 0, "at {position}");
    }
}

/// Whenever the agent is killed, and wherever in its last write, the next run makes nothing untrue; and what was
/// written whole is told as it was.
#[test]
fn the_next_run_goes_on_from_any_moment() {
    let fates = [Fate::RequestLost, Fate::RequestLost, Fate::Arrives, Fate::AnswerLost, Fate::RequestLost];
    let scans = || [7, 3, 5, 21, 7].into_iter().zip(fates).flat_map(|scan| [scan; 9]);
    for killed_after in 1..=scans().count() {
        let mut lost_bytes = 0;
        loop {
            let mut world = away();
            scans().take(killed_after).for_each(|(open, fate)| world.scan(open, 0, 3, fate));
            let last_write = world.last_write;
            world.kill_within_a_write(lost_bytes);
            world.settle(1);
            world.assert_equal_views();
            assert_nothing_twice(&world);
            if lost_bytes == 0 {
                assert_same_history(&world);
            }
            // Each byte would take long; records are lines.
            lost_bytes += 97;
            if lost_bytes > last_write {
                break;
            }
        }
    }
}
