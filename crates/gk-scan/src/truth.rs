//! The truth test: in a network namespace of its own, what a scan shows is exactly what the test opened.
//!
//! Two witnesses are asked. The ledger is what the test itself opened, compared as a whole, so that a listener too many
//! fails like one too few. `ss` is a program of other people that reads the same kernel.

mod cost;
mod elsewhere;
mod life;
pub(crate) mod machine;
mod powers;
mod random;
mod reserved;
pub(crate) mod world;

use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::time::Duration;

use gk_model::contact::Occupied;
use gk_model::listener::{MOST_OWNERS, Netns};
use gk_model::port::{Port, PortRange, Protocol};
use gk_model::time::Timestamp;

use Protocol::{Tcp, Udp};

use crate::scanner::{Scan, Scanner};
use crate::tables::parts_of;
use crate::{busy_ports, test_bind};
use world::{
    Entry, Spec, at, exercised, give_ports_from, in_new_namespace, listen, port_of, spawn_holder, ss,
};

/// Listeners, clients, and what is known of them, all open.
struct Scene {
    listeners: BTreeSet<Entry>,
    /// UDP sockets without a peer that the kernel gave a port; `ss` cannot tell them from servers either.
    auto_bound: BTreeSet<Entry>,
    clients: BTreeSet<Occupied>,
    bound: BTreeSet<Occupied>,
    /// Both ends of a connection and their like, which keep a port busy without being told of in a scan.
    connected: BTreeSet<Port>,
    _open: Vec<OwnedFd>,
    _connection: (TcpListener, [TcpStream; 2]),
}

/// Every kind of server, each on a port of its own that the kernel chose.
fn server_specs() -> Vec<Spec> {
    vec![
        at(Tcp, "0.0.0.0"),
        at(Tcp, "127.0.0.1"),
        at(Tcp, "127.9.9.9"),
        Spec { v6only: true, ..at(Tcp, "::") },
        at(Tcp, "::"),
        at(Tcp, "::1"),
        at(Tcp, "::ffff:127.0.0.1"),
        Spec { interface: "lo", ..at(Tcp, "0.0.0.0") },
        Spec { reuse_port: true, ..at(Tcp, "0.0.0.0") },
        at(Udp, "0.0.0.0"),
        at(Udp, "127.0.0.1"),
        at(Udp, "::"),
        Spec { v6only: true, ..at(Udp, "::") },
        at(Udp, "::1"),
        Spec { interface: "lo", ..at(Udp, "0.0.0.0") },
    ]
}

fn open_everything() -> Scene {
    let (mut open, mut listeners) = (Vec::new(), BTreeSet::new());
    for spec in server_specs() {
        let socket = spec.serve();
        listeners.insert(Entry::own(spec, &socket));
        if spec.reuse_port {
            open.push(Spec { port: port_of(&socket).get(), ..spec }.serve());
        }
        open.push(socket);
    }
    // The same port for both families, held apart by v6only.
    let pair = Spec { port: port_of(&open[0]).get(), v6only: true, ..at(Tcp, "::") };
    open.push(pair.serve());
    listeners.insert(Entry::own(pair, &open[open.len() - 1]));
    let unbound = at(Tcp, "0.0.0.0").open();
    listen(&unbound);
    listeners.insert(Entry::own(at(Tcp, "0.0.0.0"), &unbound));

    let bound: Vec<OwnedFd> = [at(Tcp, "127.0.0.1"), at(Tcp, "::1")].map(Spec::bind).into();
    let acceptor = TcpListener::bind("127.0.0.1:0").unwrap();
    listeners.insert(Entry::own(at(Tcp, "127.0.0.1"), &acceptor.try_clone().unwrap().into()));
    give_ports_from("50000 59999");
    let outgoing = TcpStream::connect(acceptor.local_addr().unwrap()).unwrap();
    let (incoming, peer) = acceptor.accept().unwrap();
    let clients = [at(Udp, "0.0.0.0").open(), at(Udp, "::").open()];
    for (socket, to) in clients.iter().zip(["127.0.0.1:9", "[::1]:9"]) {
        UdpSocket::from(socket.try_clone().unwrap()).send_to(b"hello", to).unwrap();
    }
    let connected = at(Udp, "127.0.0.1").bind();
    UdpSocket::from(connected.try_clone().unwrap()).connect("127.0.0.1:9").unwrap();

    let taken = |protocol, socket: &OwnedFd| Occupied { protocol, port: port_of(socket) };
    let auto_bound = [("0.0.0.0", &clients[0]), ("::", &clients[1])];
    Scene {
        listeners,
        auto_bound: auto_bound.map(|(address, socket)| Entry::own(at(Udp, address), socket)).into(),
        clients: clients.iter().chain([&connected]).map(|socket| taken(Udp, socket)).collect(),
        bound: bound.iter().map(|socket| taken(Tcp, socket)).collect(),
        connected: BTreeSet::from([Port::new(peer.port()).unwrap()]),
        _open: open.into_iter().chain(clients).chain(bound).chain([unbound, connected]).collect(),
        _connection: (acceptor, [outgoing, incoming]),
    }
}

fn start() -> Timestamp {
    Timestamp::from_micros(1_800_000_000_000_000)
}

fn scan(scanner: &mut Scanner) -> Scan {
    scanner.scan(start()).unwrap()
}

/// What a scan says, in the ledger's words.
pub(crate) fn entries(scan: &Scan) -> BTreeSet<Entry> {
    assert!(scan.listeners.is_sorted_by(|a, b| a.key < b.key), "sorted by key, each once");
    scan.listeners.iter().map(Entry::from).collect()
}

fn owners(scan: &Scan) -> Vec<u32> {
    scan.listeners.iter().flat_map(|listener| listener.owners.iter().map(|owner| owner.pid)).collect()
}

#[test]
fn scan_equals_the_ledger_and_ss() {
    in_new_namespace("that a scan shows exactly what is open", || {
        let scene = open_everything();
        let mut scanner = Scanner::new().unwrap();
        for round in ["first", "steady"] {
            assert_eq!(scanner.look(start()).unwrap(), round == "first");
            let seen = scan(&mut scanner);
            assert_eq!(entries(&seen), scene.listeners, "{round} scan");
            assert_eq!(seen.occupied, Vec::from_iter(scene.clients.clone()), "{round} scan");
            assert_eq!(seen.coverage.parts, parts_of(Netns::Home));
        }
        let seen = scanner.scan_occupied(start()).unwrap();
        assert_eq!(entries(&seen), scene.listeners);
        assert_eq!(seen.occupied, Vec::from_iter(scene.bound.union(&scene.clients).copied()));
        exercised("sockets that are bound and do not listen (Linux 6.8)");
        if let Some(seen_by_ss) = ss() {
            let told: BTreeSet<String> =
                entries(&seen).union(&scene.auto_bound).map(Entry::as_in_ss).collect();
            assert_eq!(told, seen_by_ss);
        }
    });
}

#[test]
fn a_udp_socket_that_stays_is_a_server() {
    in_new_namespace("the age of UDP servers", || {
        let scene = open_everything();
        let mut scanner = Scanner::new().unwrap();
        scan(&mut scanner);
        let almost = scanner.scan(start().plus(Duration::from_millis(29_999))).unwrap();
        assert_eq!(entries(&almost), scene.listeners);
        let later = start().plus(Duration::from_secs(30));
        let seen = scanner.scan(later).unwrap();
        assert_eq!(entries(&seen), scene.listeners.union(&scene.auto_bound).cloned().collect());
        assert_eq!(seen.occupied.len(), 1, "a socket with a peer stays a client");
        assert!(seen.listeners.iter().all(|listener| listener.last_seen_at == later));
        assert!(!scanner.look(later).unwrap());
    });
}

#[test]
fn forked_workers_are_owners_until_they_end() {
    in_new_namespace("owners that inherit a socket", || {
        let socket = at(Tcp, "127.0.0.1").serve();
        let mut scanner = Scanner::new().unwrap();
        let me = std::process::id();
        assert_eq!(owners(&scan(&mut scanner)), [me]);
        let mut child = spawn_holder(&socket);
        let both = BTreeSet::from([me, child.id()]);
        let seen = scan(&mut scanner);
        assert_eq!(BTreeSet::from_iter(owners(&seen)), both);
        let worker = seen.listeners[0].owners.iter().find(|owner| owner.pid == child.id()).unwrap();
        assert_eq!(worker.name.as_str(), "cat");
        drop(socket);
        // The socket lives on in the child; that we closed it takes one turn of the slices.
        assert_eq!(owners(&scan(&mut scanner)), [child.id()]);
        child.kill().unwrap();
        // Not yet waited for, so it is a zombie; waiting for that state is waiting for its death.
        wait_until_dead(child.id());
        assert_eq!(scan(&mut scanner).listeners, []);
        child.wait().unwrap();
    });
}

#[test]
fn of_a_crowd_of_workers_the_first_are_told_and_the_rest_are_counted() {
    in_new_namespace("a crowd that inherits a socket", || {
        let socket = at(Tcp, "127.0.0.1").serve();
        let mut crowd: Vec<Child> = (0..70).map(|_| spawn_holder(&socket)).collect();
        let seen = scan(&mut Scanner::new().unwrap());
        let me = std::process::id();
        let mut pids: Vec<u32> = crowd.iter().map(Child::id).chain([me]).collect();
        // We are of a kind of our own, wherever our number is among theirs.
        pids.sort_unstable_by_key(|pid| (*pid != me, *pid));
        pids.truncate(MOST_OWNERS);
        pids.sort_unstable();
        assert_eq!((owners(&seen), seen.listeners[0].more_owners), (pids, 7));
        for child in &mut crowd {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    });
}

#[test]
fn a_dead_owner_vanishes_at_once() {
    in_new_namespace("owners that end", || {
        // So many that the slices, which would notice too, do not come by in time.
        let _others: Vec<OwnedFd> = (0..400).map(|_| at(Tcp, "127.0.0.1").serve()).collect();
        let socket = at(Tcp, "::1").serve();
        let mut children: Vec<_> = (0..5).map(|_| spawn_holder(&socket)).collect();
        let mut scanner = Scanner::new().unwrap();
        let mut owners_of_it = || {
            let scan = scan(&mut scanner);
            let it = scan.listeners.iter().find(|listener| listener.key.address.is_ipv6()).unwrap();
            BTreeSet::from_iter(it.owners.iter().map(|owner| owner.pid))
        };
        owners_of_it();
        assert_eq!(owners_of_it().len(), 6);
        while let Some(mut child) = children.pop() {
            child.kill().unwrap();
            wait_until_dead(child.id());
            let left = children.iter().map(std::process::Child::id).chain([std::process::id()]);
            assert_eq!(owners_of_it(), left.collect(), "the zombie is no owner");
            child.wait().unwrap();
        }
    });
}

/// Returns when the process is a zombie, without reaping it.
fn wait_until_dead(pid: u32) {
    while crate::process::Pid(pid).started_ticks().is_some() {
        std::thread::yield_now();
    }
}

#[test]
fn what_opens_appears_and_what_closes_vanishes_2000_times() {
    in_new_namespace("2,000 listeners that come and go", || {
        let permanent = at(Tcp, "::1").serve();
        let mut scanner = Scanner::new().unwrap();
        let before = entries(&scan(&mut scanner));
        assert_eq!(before, [Entry::own(at(Tcp, "::1"), &permanent)].into());
        for round in 0..2_000 {
            let spec = [at(Tcp, "0.0.0.0"), at(Tcp, "::")][round % 2];
            let socket = spec.serve();
            let mut with_it = before.clone();
            with_it.insert(Entry::own(spec, &socket));
            assert_eq!(entries(&scan(&mut scanner)), with_it, "round {round}");
            drop(socket);
            assert_eq!(entries(&scan(&mut scanner)), before, "round {round}");
        }
    });
}

#[test]
fn a_socket_that_moves_to_another_port_is_another_listener() {
    in_new_namespace("a socket that is bound again", || {
        let socket = at(Tcp, "127.0.0.1").serve();
        let mut scanner = Scanner::new().unwrap();
        scan(&mut scanner);
        let before = Entry::own(at(Tcp, "127.0.0.1"), &socket);
        world::stop_listening(&socket);
        assert_eq!(scan(&mut scanner).listeners, []);
        give_ports_from("50000 59999");
        for _ in 0..5 {
            // Also between two scans, so that nothing but the port differs.
            listen(&socket);
            let now = Entry::own(at(Tcp, "127.0.0.1"), &socket);
            assert_ne!(now, before);
            assert_eq!(entries(&scan(&mut scanner)), [now].into());
            world::stop_listening(&socket);
        }
    });
}

#[test]
fn busy_ports_are_those_that_cannot_be_bound() {
    in_new_namespace("busy ports", || {
        let scene = open_everything();
        for protocol in [Tcp, Udp] {
            let listening = scene.listeners.iter().filter(|entry| entry.protocol == protocol);
            let listening = listening.filter_map(|entry| Port::new(entry.address.port()));
            let others = scene.clients.union(&scene.bound).filter(|taken| taken.protocol == protocol);
            let mut expected: BTreeSet<Port> = listening.chain(others.map(|taken| taken.port)).collect();
            expected.extend(scene.connected.iter().filter(|_| protocol == Tcp));
            let busy = busy_ports(protocol, PortRange::ALL).unwrap();
            assert_eq!(busy, Vec::from_iter(expected), "{protocol}");
            for port in &busy {
                let refused = test_bind(protocol, *port).unwrap_err();
                assert_eq!(refused.kind(), std::io::ErrorKind::AddrInUse, "{protocol} {port}");
            }
            assert!(busy_ports(protocol, PortRange::from(Port::MAX)).unwrap().is_empty());
            test_bind(protocol, Port::MAX).unwrap();
            test_bind(protocol, Port::MAX).unwrap();
        }
    });
}

#[test]
fn a_connection_keeps_its_ports_busy_until_time_wait_ends() {
    in_new_namespace("ports in TIME_WAIT", || {
        let acceptor = TcpListener::bind("127.0.0.1:0").unwrap();
        let outgoing = TcpStream::connect(acceptor.local_addr().unwrap()).unwrap();
        let (mut incoming, peer) = acceptor.accept().unwrap();
        drop(outgoing);
        // The end of the stream tells that the other side has closed.
        assert_eq!(std::io::Read::read(&mut incoming, &mut [0]).unwrap(), 0);
        drop((incoming, acceptor));
        let port = Port::new(peer.port()).unwrap();
        assert_eq!(busy_ports(Tcp, port.into()).unwrap(), [port]);
        assert_eq!(test_bind(Tcp, port).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    });
}
