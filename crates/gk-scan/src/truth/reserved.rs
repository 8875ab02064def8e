//! The kernel's list of reserved ports, asked of the kernel: what it does with it, and what others put there.

use std::fs;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};

use gk_model::port::{Port, PortRange, Protocol};
use gk_model::port_set::PortSet;

use super::world::{Spec, at, become_nobody, exercised, give_ports_from, in_new_namespace, listen, port_of};
use crate::ephemeral::Settings;
use crate::reserved::{ReservedList, reserved_ports};

const LIST: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// How often the kernel picks in each way: without the list a single round would hit with nine chances in ten.
const ROUNDS: u8 = 200;

fn set(ranges: &str) -> PortSet {
    let mut set = PortSet::default();
    ranges.split(',').for_each(|range| set.insert_range(range.parse().unwrap()));
    set
}

/// As many ports without a neighbour.
fn scattered(first: u16, count: u16) -> PortSet {
    (0..count).filter_map(|index| Port::new(first + 2 * index)).collect()
}

fn write_as_somebody_else(text: &str) {
    fs::write(LIST, text).unwrap();
}

/// The port of a connection to an address, and both ends of it.
fn connect(listener: &TcpListener, to: impl ToSocketAddrs) -> (u16, [TcpStream; 2]) {
    let outgoing = TcpStream::connect(to).unwrap();
    let (incoming, peer) = listener.accept().unwrap();
    (peer.port(), [outgoing, incoming])
}

fn send_unbound(address: &'static str, to: &str) -> u16 {
    let socket = at(Protocol::Udp, address).open();
    UdpSocket::from(socket.try_clone().unwrap()).send_to(b"hello", to).unwrap();
    port_of(&socket).get()
}

fn listen_unbound() -> u16 {
    let socket = at(Protocol::Tcp, "0.0.0.0").open();
    listen(&socket);
    port_of(&socket).get()
}

#[test]
fn the_kernel_keeps_off_reserved_ports() {
    in_new_namespace("that the kernel keeps off reserved ports", || {
        give_ports_from("20000 20099");
        let reserved = set("20000-20039,20050-20099");
        assert_eq!(ReservedList::open().unwrap().add(&reserved).unwrap(), reserved);
        let listener = TcpListener::bind("0.0.0.0:30000").unwrap();
        let listener6 = TcpListener::bind("[::1]:30001").unwrap();
        let is_kept_off = |port: u16| !reserved.contains(Port::new(port).unwrap());
        for round in 0..ROUNDS {
            // An address of its own each time, so that ports of connections that are over may be used again.
            let (picked, _ends) = connect(&listener, format!("127.0.1.{}:30000", round + 1));
            assert!(is_kept_off(picked), "connect: {picked}");
            for address in ["0.0.0.0", "::", "127.0.0.1", "::1"] {
                for protocol in Protocol::ALL.iter().copied() {
                    let picked = port_of(&at(protocol, address).bind()).get();
                    assert!(is_kept_off(picked), "bind to {address}/{protocol}: {picked}");
                }
            }
            for (address, to) in [("0.0.0.0", "127.0.0.1:9"), ("::", "[::1]:9")] {
                let picked = send_unbound(address, to);
                assert!(is_kept_off(picked), "first datagram of {address}: {picked}");
            }
            let picked = listen_unbound();
            assert!(is_kept_off(picked), "listen: {picked}");
        }
        let (picked, _ends) = connect(&listener6, "[::1]:30001");
        assert!(is_kept_off(picked), "connect: {picked}");
        for protocol in Protocol::ALL.iter().copied() {
            let by_number = Spec { port: 20_005, ..at(protocol, "0.0.0.0") };
            assert_eq!(port_of(&by_number.serve()).get(), 20_005, "whoever asks for it gets it");
        }
        exercised("net.ipv4.ip_local_reserved_ports, written");
    });
}

#[test]
fn entries_of_others_survive_adding_and_taking_out() {
    let outside = reserved_ports().unwrap();
    in_new_namespace("that entries of others in the kernel's list survive", || {
        write_as_somebody_else("8080,21000-21010");
        let list = ReservedList::open().unwrap();
        assert_eq!(list.add(&set("9000-9001,21011")).unwrap(), set("8080,9000-9001,21000-21011"));
        write_as_somebody_else("8080,9000-9001,21000-21011,30000");
        assert_eq!(list.take_out(&set("9000,21011")).unwrap(), set("8080,9001,21000-21010,30000"));
        assert_eq!(list.take_out(&set("1-65535")).unwrap(), PortSet::default());
        assert_eq!(reserved_ports().unwrap(), PortSet::default());
    });
    assert_eq!(reserved_ports().unwrap(), outside, "the list of another namespace is not touched");
}

#[test]
fn a_list_longer_than_one_write_is_complete() {
    in_new_namespace("that a long list of the kernel's is complete", || {
        let (theirs, ours) = (scattered(2_000, 1_500), scattered(10_000, 2_000));
        let list = ReservedList::open().unwrap();
        list.add(&theirs).unwrap();
        let mut both = theirs.clone();
        both.insert_all(&ours);
        assert_eq!(list.add(&ours).unwrap(), both);
        assert_eq!(fs::metadata(LIST).unwrap().len(), 0, "its size tells nobody how long it is");
        assert_eq!(reserved_ports().unwrap().len(), 3_500);
        give_ports_from("10000 60999");
        let mut settings = Settings::new();
        let given = settings.read();
        assert!(ours.iter().all(|port| !given.contains(port)), "a scan knows all of them");
        assert_eq!(list.take_out(&ours).unwrap(), theirs);
        let all: PortSet = scattered(1, 32_768);
        assert_eq!(list.add(&all).unwrap().len(), 32_768 + 1_500, "the longest there can be");
    });
}

#[test]
fn what_is_no_list_leaves_the_old_one() {
    in_new_namespace("that the kernel refuses what is no list", || {
        write_as_somebody_else("8080,9000-9009");
        for junk in ["8081,x", "70000", "9-3", "-1", "8081 8082"] {
            let error = fs::write(LIST, junk).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{junk}");
            assert_eq!(reserved_ports().unwrap(), set("8080,9000-9009"), "{junk}");
        }
    });
}

#[test]
fn whoever_may_not_write_the_list_may_read_it() {
    in_new_namespace("that the kernel's list is refused to unprivileged accounts", || {
        let list = ReservedList::open().unwrap();
        list.add(&PortRange::ALL.ports().take(3).collect()).unwrap();
        become_nobody();
        assert_eq!(ReservedList::open().unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!(reserved_ports().unwrap(), set("1-3"));
    });
}
