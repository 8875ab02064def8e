//! A server, the database, or the power gone at any moment: what was answered is there afterwards, and nothing twice.

use std::sync::atomic::Ordering;

use crate::cluster::{self, Cluster};
use crate::process::crash::{Load, join, kill, rounds};
use crate::process::harness::{Place, Server};

/// For what takes a second each time.
fn slow_rounds() -> u64 {
    rounds().min(200) / 4 + 1
}

#[test]
fn one_of_two_servers_killed_loses_nothing_and_stops_nobody() {
    let place = Place::new();
    let url = cluster::shared().create_url();
    let mut servers = ["a", "b"].map(|name| Server::start_on(&url, &place.join(name)));
    let load = Load::default();
    for round in 0..rounds() / 2 {
        let instance = join(&servers[0].admin(), &format!("node-{round}"), round as u8);
        let victim = round as usize % 2;
        let pid = servers[victim].process.id();
        load.during(&[&servers[0], &servers[1]], instance, || {
            load.wait_for_more(3 + (round as usize * 37) % 100);
            kill(pid);
            // Soon only the other one answers.
            load.wait_for_more(30);
        });
        servers[victim].process.kill();
        servers[victim].restart();
        load.check(&servers[victim], round);
        load.check(&servers[1 - victim], round);
        load.clear(&servers[victim]);
    }
    assert_eq!(load.put_off.load(Ordering::Relaxed), 0, "the other one answered every time");
}

/// Both servers under load while the database goes away and comes back.
fn harm_database(cluster: &Cluster, harm: impl Fn()) {
    let place = Place::new();
    let url = cluster.create_url();
    let servers = ["a", "b"].map(|name| Server::start_on(&url, &place.join(name)));
    let load = Load::default();
    for round in 0..slow_rounds() {
        let instance = join(&servers[0].admin(), &format!("node-{round}"), round as u8);
        load.during(&[&servers[0], &servers[1]], instance, || {
            load.wait_for_more(3 + (round as usize * 37) % 100);
            harm();
            cluster.resume();
            load.wait_for_more(20);
        });
        load.check(&servers[round as usize % 2], round);
        load.clear(&servers[0]);
    }
    let unsure = load.put_off.load(Ordering::Relaxed);
    println!("{unsure} requests were put off");
}

#[test]
fn a_database_killed_under_load_keeps_what_the_servers_answered() {
    // On the disk, where a missing write would show.
    let cluster = Cluster::start(std::env::temp_dir(), &[]);
    harm_database(&cluster, || cluster.crash());
}

#[test]
fn what_was_answered_survives_the_loss_of_everything_that_the_database_did_not_sync() {
    // A copy counts as synced, so that memory will do.
    let cluster = Cluster::start_losing_unsynced(cluster::in_memory());
    harm_database(&cluster, || cluster.lose_unsynced());
}
