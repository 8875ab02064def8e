//! One network namespace: what its tables said last, and which of its sockets accept traffic.
//!
//! Whatever belongs to a namespace is asked of the kernel in [`Namespace::dump`], by a thread that is inside: the
//! sockets, the ports that it gives by itself, and the names of interfaces. The rest works on the answers, anywhere.

use std::collections::{BTreeSet, HashMap, HashSet};

use gk_model::contact::{Occupied, Part};
use gk_model::listener::{ListenerKey, Netns};
use gk_model::port::Protocol;
use gk_model::text::Observed;
use gk_model::time::Timestamp;

use crate::ScanError;
use crate::dump::Dump;
use crate::ephemeral::{CLIENT_LIFETIME, GivenPorts};
use crate::error::Chain;
use crate::numbers::NumberMap;
use crate::owners::{Owners, SocketId};
use crate::parse::{Cookie, Socket, State};
use crate::sys;
use crate::tables::{PARTS, Tables, parts_of};

/// What is known of one network namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    netns: Netns,
    /// The parts that could be dumped last time, in order.
    covered: Vec<Part>,
    /// What each of its parts dumped last time.
    dumps: [Dump; PARTS],
    given: GivenPorts,
    /// The names of interfaces that sockets are bound to, by index, asked for when the sockets change.
    interfaces: HashMap<u32, Observed>,
    /// Whether all of this differs from what was sorted out last.
    is_news: bool,
    /// Every listening socket, those of parts that could not be dumped last time included.
    listening: NumberMap<Cookie, Known>,
    /// When UDP sockets that may be clients were first seen, and whether some are too young to tell.
    maybe_clients: NumberMap<Cookie, Timestamp>,
    some_are_young: bool,
    /// The ports of sockets that do not listen.
    clients: BTreeSet<Occupied>,
    seen_at: Timestamp,
    round: u64,
}

/// A listening socket.
#[derive(Debug)]
struct Known {
    socket: Socket,
    part: Part,
    seen_in_round: u64,
}

impl Namespace {
    /// One that was not looked at yet.
    pub(crate) fn new(netns: Netns) -> Namespace {
        Namespace {
            netns,
            covered: Vec::new(),
            dumps: Default::default(),
            given: GivenPorts::default(),
            interfaces: HashMap::new(),
            is_news: false,
            listening: NumberMap::default(),
            maybe_clients: NumberMap::default(),
            some_are_young: false,
            clients: BTreeSet::new(),
            seen_at: Timestamp::from_micros(0),
            round: 0,
        }
    }

    /// Asks the kernel for everything, in the calling thread's network namespace, of which the tables must be too.
    ///
    /// # Errors
    /// When no part could be dumped: why the first could not. Then none is covered.
    pub(crate) fn dump(&mut self, tables: &mut Tables) -> Result<(), ScanError> {
        let (mut covered, mut failure) = (Vec::with_capacity(PARTS), None);
        for (index, part) in parts_of(self.netns).into_iter().enumerate() {
            let (dump, listening) = (&mut self.dumps[index], &self.listening);
            match tables.dump_listening(part, dump, |found| missing(listening, part, found)) {
                Ok(()) => covered.push(part),
                Err(error) => {
                    tracing::debug!(scan.part = ?part, error = %Chain(&error), "a part of the scan is missing");
                    dump.clear();
                    failure = failure.or(Some(error));
                }
            }
            self.is_news |= dump.is_news();
        }
        let given = tables.given_ports();
        if *given != self.given {
            self.given = given.clone();
            self.is_news = true;
        }
        self.is_news |= covered != self.covered;
        self.covered = covered;
        if self.is_news {
            self.name_interfaces();
        }
        failure.filter(|_| self.covered.is_empty()).map_or(Ok(()), Err)
    }

    /// One that is gone is told by its index.
    fn name_interfaces(&mut self) {
        let name = |index: u32| sys::interface_name(index).unwrap_or_else(|| index.to_string());
        self.interfaces.clear();
        let sockets = self.dumps.iter().flat_map(Dump::sockets);
        for socket in sockets.filter(|socket| socket.interface_index != 0) {
            let index = socket.interface_index;
            self.interfaces.entry(index).or_insert_with(|| Observed::new(&name(index)));
        }
    }

    /// It could not be looked at: no part is covered, and nothing follows for its sockets.
    pub(crate) fn lose_sight(&mut self) {
        self.is_news |= !self.covered.is_empty();
        self.covered.clear();
        self.dumps.iter_mut().for_each(Dump::clear);
    }

    /// It was dumped at this time.
    pub(crate) fn note_seen(&mut self, now: Timestamp) {
        self.seen_at = now;
    }

    /// Which one it is.
    pub(crate) fn netns(&self) -> Netns {
        self.netns
    }

    /// When it was dumped last.
    pub(crate) fn seen_at(&self) -> Timestamp {
        self.seen_at
    }

    /// The parts that could be dumped last time, in order.
    pub(crate) fn covered(&self) -> &[Part] {
        &self.covered
    }

    /// The ports of sockets that do not listen.
    pub(crate) fn clients(&self) -> &BTreeSet<Occupied> {
        &self.clients
    }

    /// Whether no socket listens in it, as far as was ever seen.
    pub(crate) fn is_empty(&self) -> bool {
        self.listening.is_empty()
    }

    /// The listening sockets of the covered parts.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = (SocketId, &Socket)> {
        let covered = self.listening.values().filter(|known| self.covered.contains(&known.part));
        covered.map(|known| (self.id_of(&known.socket), &known.socket))
    }

    fn id_of(&self, socket: &Socket) -> SocketId {
        SocketId { netns: self.netns, cookie: socket.cookie }
    }

    /// Whether a process that can be seen holds one of its listening sockets.
    pub(crate) fn is_held(&self, owners: &Owners) -> bool {
        owners.any_held(self.listening.values().map(|known| self.id_of(&known.socket)))
    }

    /// Forgets every socket, for a namespace that is gone.
    pub(crate) fn forget_all(self, owners: &mut Owners) {
        for known in self.listening.values() {
            owners.vanish(self.id_of(&known.socket));
        }
    }

    /// What tells the listener of one of its sockets from others.
    pub(crate) fn key(&self, socket: &Socket) -> ListenerKey {
        ListenerKey {
            netns: self.netns,
            protocol: socket.protocol,
            port: socket.port,
            address: socket.address,
            interface: self.interfaces.get(&socket.interface_index).cloned(),
            v6only: socket.v6only,
        }
    }

    /// Sorts the dumped sockets into listening ones and others; whether the listening ones changed, or what is covered.
    pub(crate) fn sort_out(&mut self, owners: &mut Owners, now: Timestamp) -> bool {
        if !std::mem::take(&mut self.is_news) && !self.some_are_young {
            return false;
        }
        self.round += 1;
        self.clients.clear();
        self.some_are_young = false;
        let mut changed = false;
        let dumps = std::mem::take(&mut self.dumps);
        for (part, dump) in parts_of(self.netns).into_iter().zip(&dumps) {
            for socket in dump.sockets() {
                if self.is_server(socket, now) {
                    changed |= self.note_listening(part, socket, owners);
                } else {
                    self.clients.insert(occupied(socket));
                }
            }
        }
        changed |= self.forget_what_is_gone(&dumps, owners);
        self.dumps = dumps;
        changed
    }

    /// Whether a socket accepts traffic, by the rules of `ephemeral`.
    fn is_server(&mut self, socket: &Socket, now: Timestamp) -> bool {
        if socket.protocol == Protocol::Tcp || socket.state == State::ESTABLISHED {
            return socket.state == State::LISTEN;
        }
        if !self.given.contains(socket.port) {
            return true;
        }
        let first_seen = *self.maybe_clients.entry(socket.cookie).or_insert(now);
        let is_young = now.since(first_seen) < CLIENT_LIFETIME;
        self.some_are_young |= is_young;
        !is_young
    }

    /// Takes over that a socket listens; whether that is new, or it has changed.
    fn note_listening(&mut self, part: Part, socket: &Socket, owners: &mut Owners) -> bool {
        let known = Known { socket: *socket, part, seen_in_round: self.round };
        let before = self.listening.insert(socket.cookie, known);
        if before.is_none() {
            owners.appear(self.id_of(socket), socket.inode);
        }
        before.is_none_or(|before| before.socket != *socket)
    }

    /// Forgets the sockets of covered parts that this round did not see; whether there were any that listened.
    fn forget_what_is_gone(&mut self, dumps: &[Dump], owners: &mut Owners) -> bool {
        let count_before = self.listening.len();
        let (round, covered, netns) = (self.round, &self.covered, self.netns);
        self.listening.retain(|cookie, known| {
            let stays = known.seen_in_round == round || !covered.contains(&known.part);
            if !stays {
                owners.vanish(SocketId { netns, cookie: *cookie });
            }
            stays
        });
        // With all parts at hand; what was not looked at keeps its age.
        if self.covered.len() == PARTS && !self.maybe_clients.is_empty() {
            let there: HashSet<Cookie> =
                dumps.iter().flat_map(Dump::sockets).map(|socket| socket.cookie).collect();
            self.maybe_clients.retain(|cookie, _| there.contains(cookie));
        }
        self.listening.len() != count_before
    }
}

#[cfg(test)]
impl Namespace {
    /// How many sockets the kernel told of last time.
    pub(crate) fn told_sockets(&self) -> usize {
        self.dumps.iter().map(|dump| dump.sockets().len()).sum()
    }

    /// As if the tables of this protocol could not have been dumped.
    pub(crate) fn lose_sight_of(&mut self, protocol: Protocol) {
        self.covered.retain(|part| part.protocol != protocol);
        for (part, dump) in parts_of(self.netns).iter().zip(&mut self.dumps) {
            if part.protocol == protocol {
                dump.clear();
            }
        }
        self.is_news = true;
    }
}

/// The listening sockets of a part that were there before and are not among those found.
fn missing(listening: &NumberMap<Cookie, Known>, part: Part, found: &[Socket]) -> HashSet<Cookie> {
    let expected = listening.values().filter(|known| known.part == part).count();
    let still_there = found.iter().filter(|socket| listening.contains_key(&socket.cookie)).count();
    if still_there >= expected {
        return HashSet::new();
    }
    let found: HashSet<Cookie> = found.iter().map(|socket| socket.cookie).collect();
    listening
        .iter()
        .filter(|(cookie, known)| known.part == part && !found.contains(cookie))
        .map(|(cookie, _)| *cookie)
        .collect()
}

/// The port that a socket takes.
pub(crate) fn occupied(socket: &Socket) -> Occupied {
    Occupied { protocol: socket.protocol, port: socket.port }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::truth::world::{at, in_new_namespace};

    fn now() -> Timestamp {
        Timestamp::from_micros(1_800_000_000_000_000)
    }

    /// The calling thread's, with what listens there now.
    fn look() -> (Namespace, Tables, Owners) {
        let (mut namespace, mut tables, mut owners) =
            (Namespace::new(Netns::Home), Tables::open().unwrap(), Owners::default());
        namespace.dump(&mut tables).unwrap();
        namespace.sort_out(&mut owners, now());
        (namespace, tables, owners)
    }

    #[test]
    fn a_socket_that_one_dump_missed_is_found_by_the_second() {
        in_new_namespace("a dump that misses a socket", || {
            let sockets: Vec<OwnedFd> = (0..3).map(|_| at(Protocol::Tcp, "127.0.0.1").serve()).collect();
            let (namespace, mut tables, _) = look();
            let (known, [part, other_part, ..]) = (&namespace.listening, parts_of(Netns::Home));
            let cookies: HashSet<Cookie> = known.keys().copied().collect();
            assert_eq!(missing(known, part, &[]), cookies);
            assert_eq!(missing(known, other_part, &[]), HashSet::new());
            let mut dump = Dump::default();
            tables.dump_listening(part, &mut dump, |found| missing(known, part, found)).unwrap();
            let all = dump.sockets();
            assert_eq!((all.len(), missing(known, part, all).len()), (3, 0));
            assert_eq!(missing(known, part, &all[1..]), HashSet::from([all[0].cookie]));
            // As if the first dump had missed one: the second adds that one and no other.
            let one = all[0].cookie;
            let mut dump = Dump::default();
            tables.dump_listening(part, &mut dump, |_| HashSet::from([one])).unwrap();
            assert_eq!((dump.sockets().len(), dump.sockets()[3].cookie), (4, one));
            // Nor is it taken for granted from then on, though the first dump tells the same again.
            tables.dump_listening(part, &mut dump, |found| missing(known, part, found)).unwrap();
            assert_eq!((dump.sockets().len(), dump.is_news()), (3, true));
            tables.dump_listening(part, &mut dump, |_| unreachable!("nothing is new")).unwrap();
            assert_eq!((dump.sockets().len(), dump.is_news()), (3, false));
            // As if it had missed all, and they were gone by the second: none is made up.
            drop(sockets);
            tables.dump_listening(part, &mut dump, |_| cookies).unwrap();
            assert_eq!(dump.sockets(), []);
        });
    }

    #[test]
    fn a_closed_socket_counts_as_a_change_also_without_known_owners() {
        in_new_namespace("the end of a listener without known owners", || {
            let socket = at(Protocol::Tcp, "127.0.0.1").serve();
            let (mut namespace, mut tables, mut owners) = look();
            drop(socket);
            namespace.dump(&mut tables).unwrap();
            assert!(namespace.sort_out(&mut owners, now()));
            namespace.dump(&mut tables).unwrap();
            assert!(!namespace.sort_out(&mut owners, now()));
        });
    }
}
