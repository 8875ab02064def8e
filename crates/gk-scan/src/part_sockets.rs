//! One part of a namespace: what its table said last, and which of its sockets accept traffic.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashSet};

use gk_model::contact::Part;
use gk_model::port::{Port, Protocol};
use gk_model::time::Timestamp;

use crate::ScanError;
use crate::dump::{Dump, order};
use crate::ephemeral::{CLIENT_LIFETIME, GivenPorts};
use crate::parse::{Cookie, Inode, Socket, State};
use crate::tables::Tables;

/// What is known of one part.
#[derive(Debug)]
pub(crate) struct PartSockets {
    part: Part,
    /// Whether it could be dumped last time.
    is_covered: bool,
    dump: Dump,
    /// The interfaces that its sockets are bound to, by index.
    interfaces: BTreeSet<u32>,
    /// The sockets that accept traffic, in the order of a dump. They stay while the part is not covered.
    listening: Vec<Socket>,
    /// UDP sockets that may be clients, and when each was first seen.
    maybe_clients: Vec<(Socket, Timestamp)>,
    /// The ports of sockets that are clients.
    clients: Vec<Port>,
}

/// Sockets that begin to accept traffic, and those that do not any more.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) new: Vec<(Cookie, Option<Inode>)>,
    pub(crate) gone: Vec<Cookie>,
    /// Whether there is any of these, or one that stays is another in anything else.
    pub(crate) are_some: bool,
}

impl PartSockets {
    /// Not looked at yet.
    pub(crate) fn new(part: Part) -> PartSockets {
        PartSockets {
            part,
            is_covered: false,
            dump: Dump::default(),
            interfaces: BTreeSet::new(),
            listening: Vec::new(),
            maybe_clients: Vec::new(),
            clients: Vec::new(),
        }
    }

    /// Asks the kernel; whether it told anything new.
    ///
    /// # Errors
    /// When it could not be asked. Then the part is not covered.
    pub(crate) fn dump(&mut self, tables: &mut Tables) -> Result<bool, ScanError> {
        let listening = &self.listening;
        let missing = |found: &[Socket]| missing(listening, found);
        if let Err(error) = tables.dump_listening(self.part, &mut self.dump, missing) {
            self.lose_sight();
            return Err(error);
        }
        self.is_covered = true;
        if let Some(news) = self.dump.news().filter(|_| self.dump.is_news()) {
            let bound = news.iter().map(|socket| socket.interface_index);
            self.interfaces = bound.filter(|index| *index != 0).collect();
        }
        Ok(self.dump.is_news())
    }

    /// The part is not covered: nothing follows for its sockets.
    pub(crate) fn lose_sight(&mut self) {
        self.is_covered = false;
        self.dump.clear();
    }

    /// Which part it is.
    pub(crate) fn part(&self) -> Part {
        self.part
    }

    /// Which part, if it could be dumped last time.
    pub(crate) fn covered(&self) -> Option<Part> {
        self.is_covered.then_some(self.part)
    }

    /// The interfaces that its sockets are bound to, by index.
    pub(crate) fn interfaces(&self) -> impl Iterator<Item = u32> {
        self.interfaces.iter().copied()
    }

    /// Those that accept traffic, by port, also while the part is not covered.
    pub(crate) fn listening(&self) -> &[Socket] {
        &self.listening
    }

    /// The ports of those that do not.
    pub(crate) fn clients(&self) -> impl Iterator<Item = Port> {
        let maybe = self.maybe_clients.iter().map(|(socket, _)| socket.port);
        self.clients.iter().copied().chain(maybe).filter(|_| self.is_covered)
    }

    /// Sorts what the dump told into sockets that accept traffic and others, and adds to the changes.
    pub(crate) fn sort_out(&mut self, given: &GivenPorts, now: Timestamp, changes: &mut Changes) {
        let listening = match self.dump.take_news() {
            Some(news) => Some(self.divide(news, given, now)),
            None => self.promote(given, now),
        };
        if let Some(listening) = listening {
            changes.note(&self.listening, &listening);
            self.listening = listening;
        }
    }

    /// Those of the dump that accept traffic.
    fn divide(&mut self, mut news: Vec<Socket>, given: &GivenPorts, now: Timestamp) -> Vec<Socket> {
        self.clients.clear();
        let known = std::mem::take(&mut self.maybe_clients);
        let first_seen = |socket: &Socket| {
            let seen = known.binary_search_by_key(&order(socket), |(known, _)| order(known));
            seen.map_or(now, |place| known[place].1)
        };
        news.retain(|socket| {
            if socket.protocol == Protocol::Tcp || socket.state == State::ESTABLISHED {
                let is_server = socket.state == State::LISTEN;
                self.clients.extend((!is_server).then_some(socket.port));
                return is_server;
            }
            // Once a server, always a server.
            let is_known = || self.listening.binary_search_by_key(&order(socket), order).is_ok();
            let since = first_seen(socket);
            let is_server = !may_be_client(socket, since, given, now) || is_known();
            self.maybe_clients.extend((!is_server).then_some((*socket, since)));
            is_server
        });
        news.shrink_to_fit();
        news
    }

    /// With those that turn out to accept traffic, after some time or another setting; none when there are none.
    fn promote(&mut self, given: &GivenPorts, now: Timestamp) -> Option<Vec<Socket>> {
        if !self.is_covered {
            return None;
        }
        let is_server =
            |(socket, since): &mut (Socket, Timestamp)| !may_be_client(socket, *since, given, now);
        let mut servers: Vec<Socket> =
            self.maybe_clients.extract_if(.., is_server).map(|(socket, _)| socket).collect();
        if servers.is_empty() {
            return None;
        }
        servers.extend(&self.listening);
        servers.sort_unstable_by_key(order);
        Some(servers)
    }
}

/// Whether a UDP socket without a peer may be a client, by the rules of `ephemeral`.
fn may_be_client(socket: &Socket, first_seen: Timestamp, given: &GivenPorts, now: Timestamp) -> bool {
    given.contains(socket.port) && now.since(first_seen) < CLIENT_LIFETIME
}

impl Changes {
    /// From what was there to what is, both in order.
    fn note(&mut self, before: &[Socket], now: &[Socket]) {
        let (mut before, mut now) = (before.iter().peekable(), now.iter().peekable());
        loop {
            let which = match (before.peek(), now.peek()) {
                (None, None) => return,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(before), Some(now)) => order(before).cmp(&order(now)),
            };
            let was = before.next_if(|_| which.is_le());
            let is = now.next_if(|_| which.is_ge());
            self.are_some |= was != is;
            match (was, is) {
                (Some(was), None) => self.gone.push(was.cookie),
                (None, Some(is)) => self.new.push((is.cookie, is.inode)),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
impl PartSockets {
    /// How many sockets the kernel told of last time.
    pub(crate) fn told_sockets(&self) -> usize {
        self.dump.told_sockets()
    }
}

/// The sockets that listened before and are not among those found; both in order.
fn missing(listening: &[Socket], found: &[Socket]) -> HashSet<Cookie> {
    let mut found = found.iter().peekable();
    let is_missing = |known: &&Socket| {
        while found.next_if(|found| order(found) < order(known)).is_some() {}
        found.peek().is_none_or(|found| order(found) != order(known))
    };
    listening.iter().filter(is_missing).map(|known| known.cookie).collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use gk_model::listener::Netns;
    use proptest::prelude::*;

    use super::*;
    use crate::parse::{States, Uid};
    use crate::tables::parts_of;
    use crate::truth::world::{at, in_new_namespace};

    #[test]
    fn a_socket_that_one_dump_missed_is_found_by_the_second() {
        in_new_namespace("a dump that misses a socket", || {
            let sockets: Vec<OwnedFd> = (0..3).map(|_| at(Protocol::Tcp, "127.0.0.1").serve()).collect();
            let (mut tables, [part, ..]) = (Tables::open().unwrap(), parts_of(Netns::Home));
            let mut dump = Dump::default();
            tables.dump_listening(part, &mut dump, |_| HashSet::new()).unwrap();
            let all = dump.take_news().unwrap();
            dump.clear();
            let cookies: HashSet<Cookie> = all.iter().map(|socket| socket.cookie).collect();
            assert_eq!((all.len(), missing(&all, &all)), (3, HashSet::new()));
            assert_eq!(missing(&all, &[]), cookies);
            for one in 0..3 {
                let mut others = all.clone();
                let one = others.remove(one);
                assert_eq!(missing(&all, &others), HashSet::from([one.cookie]));
                assert_eq!(missing(&others, &all), HashSet::new());
            }
            // One that begins to listen after the first dump, and is known of: the second finds it.
            let mut late = None;
            let dumped = tables.dump_listening(part, &mut dump, |found| {
                assert_eq!(found.len(), 3);
                late = Some(at(Protocol::Tcp, "127.0.0.1").serve());
                let now = Tables::open().unwrap().dump(part, States::ALL).unwrap();
                now.iter().map(|socket| socket.cookie).collect()
            });
            dumped.unwrap();
            assert_eq!(dump.take_news().map(|sockets| sockets.len()), Some(4));
            // As if it had missed all, and they were gone by the second: none is made up.
            drop((sockets, late));
            tables.dump_listening(part, &mut dump, |_| cookies).unwrap();
            assert_eq!(dump.take_news(), Some(vec![]));
        });
    }

    fn socket(port: u16, cookie: u64, uid: u32) -> Socket {
        Socket {
            cookie: Cookie(cookie),
            protocol: Protocol::Udp,
            state: State::CLOSE,
            port: Port::new(port).unwrap(),
            address: [0, 0, 0, 0].into(),
            interface_index: 0,
            v6only: false,
            uid: Uid(uid),
            inode: Some(Inode(7)),
            cgroup: None,
        }
    }

    /// As dumps hand them over.
    fn sockets() -> impl Strategy<Value = Vec<Socket>> {
        let one = (1u16..4, 0u64..4, 0u32..2).prop_map(|(port, cookie, uid)| socket(port, cookie, uid));
        proptest::collection::vec(one, 0..8).prop_map(|mut sockets| {
            sockets.sort_unstable_by_key(order);
            sockets.dedup_by_key(|socket| order(socket));
            sockets
        })
    }

    #[test]
    fn a_socket_that_stays_and_is_another_is_a_change() {
        let mut changes = Changes::default();
        for (uid, are_some) in [(0, false), (1, true)] {
            changes.note(&[socket(1, 1, 0)], &[socket(1, 1, uid)]);
            assert_eq!((changes.are_some, changes.new.len(), changes.gone.len()), (are_some, 0, 0));
        }
    }

    proptest! {
        #[test]
        fn changes_are_what_is_on_one_side_only(before in sockets(), now in sockets()) {
            let only = |these: &[Socket], others: &[Socket]| -> Vec<Cookie> {
                let has = |one: &Socket| others.iter().any(|other| order(other) == order(one));
                these.iter().filter(|one| !has(one)).map(|one| one.cookie).collect()
            };
            let mut changes = Changes::default();
            changes.note(&before, &now);
            let new: Vec<Cookie> = changes.new.iter().map(|(cookie, _)| *cookie).collect();
            prop_assert_eq!(&changes.gone, &only(&before, &now));
            prop_assert_eq!(&new, &only(&now, &before));
            prop_assert_eq!(changes.are_some, before != now);
            prop_assert_eq!(missing(&before, &now), HashSet::from_iter(changes.gone));
        }
    }

    #[test]
    fn a_udp_socket_is_a_server_outside_of_the_given_ports_or_after_some_time_and_stays_one() {
        let start = Timestamp::from_micros(1_800_000_000_000_000);
        let after = |seconds| start.plus(Duration::from_secs(seconds));
        let given = |text: &str| GivenPorts::of_range(text.parse().unwrap());
        let mut part = PartSockets::new(parts_of(Netns::Home)[2]);
        part.is_covered = true;
        // What is told, which ports are given, when; and who listens then, and who is a client.
        type Row<'a> = (Option<&'a [u16]>, &'a str, u64, &'a [u16], &'a [u16]);
        let table: [Row<'_>; 9] = [
            (Some(&[10, 20]), "20-30", 0, &[10], &[20]),
            (None, "20-30", 29, &[10], &[20]),
            (Some(&[10, 20, 25]), "20-30", 29, &[10], &[20, 25]),
            (None, "20-30", 30, &[10, 20], &[25]),
            (None, "10-30", 31, &[10, 20], &[25]),
            (Some(&[10, 20, 25, 26]), "10-30", 32, &[10, 20], &[25, 26]),
            (None, "10-25", 33, &[10, 20, 26], &[25]),
            (Some(&[25]), "10-25", 59, &[25], &[]),
            (Some(&[24, 25]), "10-25", 60, &[25], &[24]),
        ];
        for (told, range, seconds, servers, clients) in table {
            part.dump = Dump::of(told.map(|ports| ports.iter().map(|port| socket(*port, 1, 0)).collect()));
            part.sort_out(&given(range), after(seconds), &mut Changes::default());
            let listening: Vec<u16> = part.listening().iter().map(|socket| socket.port.get()).collect();
            let others: Vec<u16> = part.clients().map(Port::get).collect();
            assert_eq!((&listening[..], &others[..]), (servers, clients), "after {seconds} s");
        }
        part.lose_sight();
        part.sort_out(&given("10-25"), after(99), &mut Changes::default());
        assert_eq!((part.listening().len(), part.clients().count(), part.covered()), (1, 0, None));
    }
}
