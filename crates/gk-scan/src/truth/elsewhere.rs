//! Other network namespaces: all are seen, none is mixed up with home, and none is kept from ending.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::time::Duration;

use gk_model::listener::Netns;
use gk_model::port::Protocol::{Tcp, Udp};
use gk_model::time::Timestamp;

use super::machine::{
    Mounted, Place, count_watched, end, in_new_machine, netns_of, spawn_server, wait, watch_mounted,
    watch_process,
};
use super::start;
use super::world::{Entry, Spec, at, exercised, port_of, refused};
use crate::scanner::{Scan, Scanner};
use crate::tables::parts_of;

/// How many mounted namespaces there are.
const MANY: usize = 50;

/// How many scans an unexpected change may take to be seen; see `others`.
const SCANS_PER_LOOK: usize = 3;

type Sockets = Vec<(OwnedFd, Entry)>;

/// A few sockets of different kinds; those of the same number have the same ports in every namespace.
fn open_some(number: usize) -> Sockets {
    let port = 8_000 + u16::try_from(number % 3).unwrap();
    let specs = [
        Spec { port, ..at(Tcp, "0.0.0.0") },
        Spec { port, v6only: true, ..at(Tcp, "::") },
        Spec { port, ..at(Udp, "127.0.0.1") },
        Spec { port, interface: "lo", ..at(Udp, "::1") },
    ];
    let open = |spec: Spec| {
        let socket = spec.serve();
        let entry = Entry::own(spec, &socket);
        (socket, entry)
    };
    specs.into_iter().take(number % 4 + 1).map(open).collect()
}

fn ledger(sockets: &Sockets) -> BTreeSet<Entry> {
    sockets.iter().map(|(_, entry)| entry.clone()).collect()
}

/// What a scan shows of one namespace.
fn shown(scan: &Scan, netns: Netns) -> BTreeSet<Entry> {
    scan.listeners.iter().filter(|listener| listener.key.netns == netns).map(Entry::from).collect()
}

fn all_namespaces() -> Scanner {
    Scanner::of_all_namespaces().unwrap()
}

/// Scans until something can be said; each scan is half a second later than the one before.
fn scan_until<T>(scanner: &mut Scanner, what: &str, mut ask: impl FnMut(&Scan) -> Option<T>) -> T {
    let mut now = start();
    wait(what, || {
        now = now.plus(Duration::from_millis(500));
        ask(&scanner.scan(now).unwrap())
    })
}

#[test]
fn fifty_namespaces_and_an_unprivileged_one_are_seen_exactly_and_let_go() {
    in_new_machine("listeners of other network namespaces", || {
        let many: Vec<Mounted<Sockets>> =
            (0..MANY).map(|number| Mounted::new(&format!("n{number}"), || open_some(number))).collect();
        let at_home = open_some(3);
        let spec = Spec { port: 8_000, ..at(Tcp, "0.0.0.0") };
        let mut children = vec![spawn_server(Place::Elsewhere, spec).unwrap()];
        match spawn_server(Place::Unprivileged, spec) {
            Ok(child) => {
                children.push(child);
                exercised("unprivileged user namespaces");
            }
            Err(error) => refused("unprivileged user namespaces", "a network namespace of one", &error),
        }
        let of_child = |pid: u32| (netns_of(format!("/proc/{pid}/ns/net")), pid);
        let of_children = BTreeMap::from_iter(children.iter().map(|child| of_child(child.id())));
        let mut scanner = all_namespaces();
        for round in 0..3 {
            let scan = scanner.scan(start()).unwrap();
            assert_eq!(shown(&scan, Netns::Home), ledger(&at_home), "round {round}");
            for one in &many {
                assert_eq!(shown(&scan, one.netns), ledger(&one.made), "round {round}");
                assert!(parts_of(one.netns).iter().all(|part| scan.coverage.parts.contains(part)));
            }
            for (netns, pid) in &of_children {
                let seen = shown(&scan, *netns);
                let owners = seen.iter().map(|entry| (entry.address.port(), entry.owners.clone()));
                assert_eq!(Vec::from_iter(owners), [(8_000, BTreeSet::from([*pid]))]);
                let listener = scan.listeners.iter().find(|one| one.key.netns == *netns).unwrap();
                assert_eq!(listener.owners[0].account, crate::account_name(super::machine::NOBODY));
            }
        }
        let_go(&mut scanner, many, children);
        exercised("setns into the network namespaces of others");
    });
}

/// Ends every namespace, while the scanner lives, and scans.
fn let_go(scanner: &mut Scanner, many: Vec<Mounted<Sockets>>, children: Vec<std::process::Child>) {
    watch_mounted();
    children.iter().for_each(|child| watch_process(child.id()));
    assert_eq!(count_watched(), many.len() + children.len());
    let all: BTreeSet<Netns> = many
        .iter()
        .map(|one| one.netns)
        .chain(children.iter().map(|child| netns_of(format!("/proc/{}/ns/net", child.id()))))
        .collect();
    scanner.scan(start()).unwrap();
    children.into_iter().for_each(end);
    drop(Vec::from_iter(many.into_iter().map(Mounted::unmount)));
    wait("the kernel frees every namespace", || (count_watched() == 0).then_some(()));
    let end = scan_until(scanner, "all are known to be gone", |scan| {
        (!all.iter().any(|netns| scan.coverage.namespaces.contains_key(netns))).then(|| scan.clone())
    });
    assert!(all.iter().all(|netns| shown(&end, *netns).is_empty()));
}

#[test]
fn a_change_elsewhere_is_seen_within_three_scans_and_looked_for_in_every_third() {
    in_new_machine("how often other network namespaces are looked at", || {
        let many: Vec<Mounted<Sockets>> =
            (0..10).map(|number| Mounted::new(&format!("n{number}"), || open_some(number))).collect();
        let mut scanner = all_namespaces();
        scanner.scan(start()).unwrap();
        let mut looks: BTreeMap<Netns, BTreeSet<Timestamp>> = BTreeMap::new();
        for tick in 1..=30 {
            let scan = scanner.scan(start().plus(Duration::from_millis(500 * tick))).unwrap();
            for listener in scan.listeners {
                looks.entry(listener.key.netns).or_default().insert(listener.last_seen_at);
            }
        }
        for one in &many {
            let looks = looks[&one.netns].len();
            assert!((10..=11).contains(&looks), "{} was looked at in {looks} of 30 scans", one.netns);
        }
        for one in &many {
            let spec = Spec { port: 9_000, ..at(Tcp, "127.0.0.1") };
            let (socket, entry) = one.inside(|| {
                let socket = spec.serve();
                let entry = Entry::own(spec, &socket);
                (socket, entry)
            });
            let shows =
                |scanner: &mut Scanner| shown(&scanner.scan(start()).unwrap(), one.netns).contains(&entry);
            assert!((0..SCANS_PER_LOOK).any(|_| shows(&mut scanner)), "{} is seen to open", one.netns);
            drop(socket);
            assert!((0..SCANS_PER_LOOK).any(|_| !shows(&mut scanner)), "{} is seen to close", one.netns);
        }
    });
}

#[test]
fn a_new_namespace_is_seen_at_the_next_scan_mounted_or_not() {
    in_new_machine("namespaces that are made later", || {
        let mut scanner = all_namespaces();
        scanner.scan(start()).unwrap();
        for number in 0..5 {
            let mounted = Mounted::new("later", || open_some(number));
            assert_eq!(shown(&scanner.scan(start()).unwrap(), mounted.netns), ledger(&mounted.made));
            let child = spawn_server(Place::Elsewhere, at(Tcp, "0.0.0.0")).unwrap();
            let netns = netns_of(format!("/proc/{}/ns/net", child.id()));
            assert_eq!(shown(&scanner.scan(start()).unwrap(), netns).len(), 1);
            mounted.unmount();
            end(child);
        }
    });
}

#[test]
fn a_namespace_that_only_a_socket_keeps_is_not_covered_and_not_gone() {
    in_new_machine("namespaces without any door", || {
        let mounted = Mounted::new("lonely", || open_some(0));
        let netns = mounted.netns;
        let mut scanner = all_namespaces();
        assert_eq!(shown(&scanner.scan(start()).unwrap(), netns).len(), 1);
        // The socket is ours, and it lives in a namespace that nobody can enter any more.
        let sockets = mounted.unmount();
        for _ in 0..100 {
            let scan = scanner.scan(start()).unwrap();
            let is_covered = scan.coverage.parts.iter().any(|part| part.netns == netns);
            assert_eq!(shown(&scan, netns).len(), usize::from(is_covered));
            assert!(scan.coverage.namespaces.contains_key(&netns));
        }
        assert!(scanner.scan(start()).unwrap().coverage.parts.iter().all(|part| part.netns != netns));
        drop(sockets);
        wait("it is known to be gone", || {
            let has_changed = scanner.look(start()).unwrap();
            let is_gone = !scanner.coverage().namespaces.contains_key(&netns);
            assert!(has_changed || !is_gone, "whoever kept what was in it is told");
            is_gone.then_some(())
        });
    });
}

#[test]
fn the_home_namespace_is_never_shown_as_another_one() {
    in_new_machine("the home namespace among others", || {
        let here = at(Tcp, "127.0.0.1").serve();
        let child = spawn_server(Place::Here, at(Tcp, "127.0.0.1")).unwrap();
        let Netns::Other(home) = netns_of("/proc/thread-self/ns/net") else { unreachable!() };
        let mounted = Mounted::new("other", || open_some(2));
        let scan = all_namespaces().scan(start()).unwrap();
        assert!(!scan.coverage.namespaces.contains_key(&Netns::Other(home)));
        assert_eq!(shown(&scan, Netns::Other(home)), BTreeSet::new());
        let at_home = shown(&scan, Netns::Home);
        assert_eq!(at_home.len(), 2);
        assert!(at_home.iter().any(|entry| entry.address.port() == port_of(&here).get()));
        // Ports that only others use are free here, so they are neither listened on nor occupied at home.
        let elsewhere: BTreeSet<u16> = mounted.made.iter().map(|(_, entry)| entry.address.port()).collect();
        assert!(at_home.iter().all(|entry| !elsewhere.contains(&entry.address.port())));
        assert!(
            Scanner::new().unwrap().scan(start()).unwrap().listeners.len() == 2,
            "home only unless asked for more"
        );
        end(child);
    });
}

#[test]
fn a_udp_client_is_told_by_the_ports_of_its_own_namespace() {
    in_new_machine("ephemeral ports of each namespace", || {
        // 45,000 is given by the kernel here, and not there.
        super::give_ports_from("40000 49999");
        let spec = Spec { port: 45_000, ..at(Udp, "0.0.0.0") };
        let _here = spec.serve();
        let there = Mounted::new("other", || spec.serve());
        let scan = all_namespaces().scan(start()).unwrap();
        assert_eq!((shown(&scan, Netns::Home).len(), shown(&scan, there.netns).len()), (0, 1));
        assert_eq!(scan.occupied.len(), 1);
    });
}
