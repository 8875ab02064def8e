//! Scans: the listeners of a network namespace, with what is known of their owners.
//!
//! The first scan looks through every process. Later ones compare the kernel's tables with the last scan and work only
//! on the difference; when there is none, the answer of the last scan is given again with a new time.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use gk_model::contact::{Occupied, Part};
use gk_model::listener::{Container, Listener, ListenerKey, Netns, Owner};
use gk_model::port::Protocol;
use gk_model::text::Observed;
use gk_model::time::Timestamp;

use crate::ScanError;
use crate::accounts::Accounts;
use crate::cgroup::Cgroups;
use crate::ephemeral::{CLIENT_LIFETIME, GivenPorts};
use crate::owners::Owners;
use crate::parse::{Cookie, Socket, State};
use crate::place::place;
use crate::process::Description;
use crate::sys;
use crate::tables::{PARTS, Tables};

/// Scans one network namespace again and again.
///
/// It belongs to the namespace of the thread that made it, which is its home ([`Netns::Home`]). Other threads may use
/// it as long as they are in the same namespace.
#[derive(Debug)]
pub struct Scanner {
    tables: Tables,
    owners: Owners,
    accounts: Accounts,
    cgroups: Cgroups,
    /// What each of [`PARTS`] dumped in this scan and in the one before, to see at a glance whether anything changed.
    dumps: [Vec<Socket>; PARTS.len()],
    dumps_before: [Vec<Socket>; PARTS.len()],
    given: GivenPorts,
    /// Every listening socket, those of parts that could not be dumped last time included.
    listening: HashMap<Cookie, Known>,
    /// When UDP sockets that may be clients were first seen, and whether some are too young to tell.
    maybe_clients: HashMap<Cookie, Timestamp>,
    some_are_young: bool,
    /// The ports of sockets that do not listen.
    clients: BTreeSet<Occupied>,
    first_seen: HashMap<ListenerKey, Timestamp>,
    last: Scan,
    scan: u64,
}

/// What a scan saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Every listener of the covered parts, by key; sockets that share a key are one listener with all their owners.
    pub listeners: Vec<Listener>,
    /// Ports that are taken by something else, in order, once each: UDP clients, sockets that may be UDP clients, and,
    /// when asked for, TCP sockets that are bound and do not listen. Ports of listeners are left out.
    pub occupied: Vec<Occupied>,
    /// The parts that could be dumped, in order. Nothing follows for a part that is missing here: not that its
    /// listeners are gone.
    pub covered: Vec<Part>,
    /// Whether anything but `last_seen_at` may differ from this scanner's scan before; true for the first.
    pub changed: bool,
}

/// A listening socket.
#[derive(Debug)]
struct Known {
    socket: Socket,
    part: Part,
    seen_in_scan: u64,
}

impl Scanner {
    /// Opens the kernel's tables of the calling thread's network namespace. Needs no privilege.
    ///
    /// # Errors
    /// [`ScanError::Open`] when sock_diag is not available, as in sandboxes that deny netlink.
    pub fn new() -> Result<Scanner, ScanError> {
        Ok(Scanner {
            tables: Tables::open()?,
            owners: Owners::default(),
            accounts: Accounts::new("/etc/passwd"),
            cgroups: Cgroups::find(),
            dumps: Default::default(),
            dumps_before: Default::default(),
            given: GivenPorts::read(),
            listening: HashMap::new(),
            maybe_clients: HashMap::new(),
            some_are_young: false,
            clients: BTreeSet::new(),
            first_seen: HashMap::new(),
            last: Scan::default(),
            scan: 0,
        })
    }

    /// Scans once; TCP sockets that are bound and do not listen are not looked for.
    ///
    /// # Errors
    /// When no part could be dumped: why the first could not.
    pub fn scan(&mut self, now: Timestamp) -> Result<Scan, ScanError> {
        self.scan_in_place(now).cloned()
    }

    /// As [`Scanner::scan`], without making a copy for the caller: with a thousand listeners, that copy is a quarter
    /// of a scan in which nothing changed.
    ///
    /// # Errors
    /// As [`Scanner::scan`].
    pub fn scan_in_place(&mut self, now: Timestamp) -> Result<&Scan, ScanError> {
        let covered = self.dump()?;
        Ok(self.conclude(covered, now))
    }

    /// As [`Scanner::scan`], and looks for TCP sockets that are bound and do not listen, which takes up to 18 ms more on
    /// a busy machine. Linux before 6.8 does not tell of them.
    ///
    /// # Errors
    /// As [`Scanner::scan`].
    pub fn scan_occupied(&mut self, now: Timestamp) -> Result<Scan, ScanError> {
        let mut scan = self.scan(now)?;
        let mut taken: BTreeSet<Occupied> = scan.occupied.iter().copied().collect();
        for part in PARTS.into_iter().filter(|part| part.protocol == Protocol::Tcp) {
            match self.tables.dump_bound(part) {
                Ok(bound) => taken.extend(bound.iter().map(occupied)),
                Err(error) => {
                    tracing::debug!(scan.part = ?part, error = %Chain(&error), "cannot list bound sockets");
                }
            }
        }
        scan.occupied = without_listeners(&taken, &scan.listeners);
        Ok(scan)
    }

    /// Dumps every part; which ones could be.
    fn dump(&mut self) -> Result<Vec<Part>, ScanError> {
        std::mem::swap(&mut self.dumps, &mut self.dumps_before);
        let (mut covered, mut failure) = (Vec::with_capacity(PARTS.len()), None);
        for (index, part) in PARTS.into_iter().enumerate() {
            let (dump, before, listening) =
                (&mut self.dumps[index], &self.dumps_before[index], &self.listening);
            let missing = |found: &[Socket]| {
                if found == before { HashSet::new() } else { missing(listening, part, found) }
            };
            match self.tables.dump_listening(part, dump, missing) {
                Ok(()) => covered.push(part),
                Err(error) => {
                    tracing::debug!(scan.part = ?part, error = %Chain(&error), "a part of the scan is missing");
                    dump.clear();
                    failure = failure.or(Some(error));
                }
            }
        }
        match failure {
            Some(error) if covered.is_empty() => Err(error),
            _ => Ok(covered),
        }
    }

    /// Brings owners up to date with the sockets, and the answer with both.
    fn conclude(&mut self, covered: Vec<Part>, now: Timestamp) -> &Scan {
        self.scan += 1;
        let renamed = self.accounts.refresh();
        if renamed {
            self.owners.rename_accounts(&self.accounts);
        }
        let sockets_changed = self.sort_out(&covered, now);
        let owners_changed = self.owners.refresh(&self.accounts);
        let changed = renamed || sockets_changed || owners_changed || covered != self.last.covered;
        if changed {
            self.last.listeners = self.merge(&covered, now);
            self.last.covered = covered;
        } else {
            self.last.listeners.iter_mut().for_each(|listener| listener.last_seen_at = now);
        }
        // Clients come and go all the time on some machines, without any listener changing.
        let occupied = without_listeners(&self.clients, &self.last.listeners);
        self.last.changed = changed || occupied != self.last.occupied;
        self.last.occupied = occupied;
        &self.last
    }

    /// Sorts the dumped sockets into listening ones and others; whether the listening ones changed.
    fn sort_out(&mut self, covered: &[Part], now: Timestamp) -> bool {
        let given = GivenPorts::read();
        let same = self.dumps == self.dumps_before && covered == self.last.covered && given == self.given;
        if same && !self.some_are_young {
            return false;
        }
        self.given = given;
        self.clients.clear();
        self.some_are_young = false;
        let mut changed = false;
        let dumps = std::mem::take(&mut self.dumps);
        for (part, dump) in PARTS.into_iter().zip(&dumps) {
            for socket in dump {
                if self.is_server(socket, now) {
                    changed |= self.note_listening(part, socket);
                } else {
                    self.clients.insert(occupied(socket));
                }
            }
        }
        changed |= self.forget_what_is_gone(covered, &dumps);
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
    fn note_listening(&mut self, part: Part, socket: &Socket) -> bool {
        let known = Known { socket: *socket, part, seen_in_scan: self.scan };
        let before = self.listening.insert(socket.cookie, known);
        if before.is_none() {
            self.owners.appear(socket.cookie, socket.inode);
        }
        before.is_none_or(|before| before.socket != *socket)
    }

    /// Forgets the sockets of covered parts that this scan did not see; whether there were any that listened.
    fn forget_what_is_gone(&mut self, covered: &[Part], dumps: &[Vec<Socket>]) -> bool {
        let count_before = self.listening.len();
        let (scan, owners) = (self.scan, &mut self.owners);
        self.listening.retain(|cookie, known| {
            let stays = known.seen_in_scan == scan || !covered.contains(&known.part);
            if !stays {
                owners.vanish(*cookie);
            }
            stays
        });
        // With all parts at hand; what was not looked at keeps its age.
        if covered.len() == PARTS.len() {
            let there: HashSet<Cookie> = dumps.iter().flatten().map(|socket| socket.cookie).collect();
            self.maybe_clients.retain(|cookie, _| there.contains(cookie));
        }
        self.listening.len() != count_before
    }

    /// Makes listeners of the sockets of the covered parts, by key.
    fn merge(&mut self, covered: &[Part], now: Timestamp) -> Vec<Listener> {
        self.cgroups.learn(self.listening.values().filter_map(|known| known.socket.cgroup));
        let owners = self.owners.by_socket();
        let mut names = HashMap::new();
        let mut merged: BTreeMap<ListenerKey, Listener> = BTreeMap::new();
        // By age, so that the oldest of several sockets gives the account, whatever order the kernel dumps them in.
        let mut sockets: Vec<&Socket> = self
            .listening
            .values()
            .filter(|known| covered.contains(&known.part))
            .map(|known| &known.socket)
            .collect();
        sockets.sort_unstable_by_key(|socket| socket.cookie);
        for socket in sockets {
            let owners = owners.get(&socket.cookie).map_or(&[][..], Vec::as_slice);
            let listener = self.listener(socket, owners, &mut names, now);
            match merged.entry(listener.key.clone()) {
                Entry::Vacant(entry) => {
                    entry.insert(listener);
                }
                Entry::Occupied(mut entry) => absorb(entry.get_mut(), listener),
            }
        }
        self.first_seen.retain(|key, _| !covered.contains(&key.part()) || merged.contains_key(key));
        for listener in merged.values_mut() {
            listener.first_seen_at = *self.first_seen.entry(listener.key.clone()).or_insert(now);
        }
        merged.into_values().collect()
    }

    fn listener(
        &self,
        socket: &Socket,
        owners: &[&Description],
        names: &mut HashMap<u32, Observed>,
        now: Timestamp,
    ) -> Listener {
        let (unit, container) = self.place_of(socket, owners);
        Listener {
            key: ListenerKey {
                netns: Netns::Home,
                protocol: socket.protocol,
                port: socket.port,
                address: socket.address,
                interface: interface(socket.interface_index, names),
                v6only: socket.v6only,
            },
            account: Some(self.accounts.name(socket.uid)),
            owners: owners.iter().map(|process| process.owner.clone()).collect(),
            unit,
            container,
            first_seen_at: now,
            last_seen_at: now,
        }
    }

    /// The cgroup in which the socket was made, or, where that is the root or unknown (hosts that keep services in the
    /// old hierarchies), the one of its first owner.
    fn place_of(&self, socket: &Socket, owners: &[&Description]) -> (Option<Observed>, Option<Container>) {
        match socket.cgroup.and_then(|id| self.cgroups.path(id)) {
            Some(path) => place(path),
            None => {
                owners.first().map_or((None, None), |owner| (owner.unit.clone(), owner.container.clone()))
            }
        }
    }
}

/// The listening sockets of a part that were there before and are not among those found.
fn missing(listening: &HashMap<Cookie, Known>, part: Part, found: &[Socket]) -> HashSet<Cookie> {
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

fn occupied(socket: &Socket) -> Occupied {
    Occupied { protocol: socket.protocol, port: socket.port }
}

/// In order, less the ports of the listeners, which are sorted by protocol and port first.
fn without_listeners(taken: &BTreeSet<Occupied>, listeners: &[Listener]) -> Vec<Occupied> {
    let port_of = |listener: &Listener| Occupied { protocol: listener.key.protocol, port: listener.key.port };
    taken.iter().filter(|port| listeners.binary_search_by_key(*port, port_of).is_err()).copied().collect()
}

/// The name of an interface, asked for once per merge: it can be changed. One that is gone is told by its index.
fn interface(index: u32, names: &mut HashMap<u32, Observed>) -> Option<Observed> {
    let name = || Observed::new(&sys::interface_name(index).unwrap_or_else(|| index.to_string()));
    (index != 0).then(|| names.entry(index).or_insert_with(name).clone())
}

/// Adds a later socket of the same key to a listener.
fn absorb(listener: &mut Listener, later: Listener) {
    listener.owners.extend(later.owners);
    listener.owners.sort_unstable_by_key(|owner| owner.pid);
    listener.owners.dedup_by_key(|owner: &mut Owner| owner.pid);
    listener.unit = listener.unit.take().or(later.unit);
    listener.container = listener.container.take().or(later.container);
}

/// An error with its causes on one line, for logs.
struct Chain<'a>(&'a ScanError);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = std::error::Error::source(self.0);
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use super::*;
    use crate::truth::world::{at, in_new_namespace, port_of};

    fn start() -> Timestamp {
        Timestamp::from_micros(1_800_000_000_000_000)
    }

    /// A scan in which the tables of this protocol could not be dumped.
    fn scan_without(scanner: &mut Scanner, protocol: Protocol, now: Timestamp) -> Scan {
        let mut covered = scanner.dump().unwrap();
        covered.retain(|part| part.protocol != protocol);
        for (part, dump) in PARTS.iter().zip(&mut scanner.dumps) {
            dump.retain(|_| part.protocol != protocol);
        }
        scanner.conclude(covered, now).clone()
    }

    #[test]
    fn a_part_that_is_not_covered_is_neither_shown_nor_forgotten() {
        in_new_namespace("parts that cannot be dumped", || {
            let sockets = [Protocol::Tcp, Protocol::Udp].map(|protocol| at(protocol, "127.0.0.1").serve());
            // Away from the UDP socket, which so is a server.
            crate::truth::world::give_ports_from("50000 59999");
            let mut scanner = Scanner::new().unwrap();
            let first = scanner.scan(start()).unwrap();
            let later = start().plus(Duration::from_secs(1));
            let partial = scan_without(&mut scanner, Protocol::Udp, later);
            let ports: Vec<_> = partial.listeners.iter().map(|listener| listener.key.port).collect();
            assert_eq!((ports, partial.covered.len()), (vec![port_of(&sockets[0])], 2));
            assert_eq!(scanner.listening.len(), 2, "both sockets are remembered");
            let whole = scanner.scan(later).unwrap();
            assert_eq!(whole.covered, PARTS);
            for (before, after) in first.listeners.iter().zip(&whole.listeners) {
                assert!(before.same_but_times(after));
                assert_eq!((after.first_seen_at, after.last_seen_at), (start(), later));
            }
        });
    }

    #[test]
    fn a_socket_that_one_dump_missed_is_found_by_the_second() {
        in_new_namespace("a dump that misses a socket", || {
            let sockets: Vec<OwnedFd> = (0..3).map(|_| at(Protocol::Tcp, "127.0.0.1").serve()).collect();
            let mut scanner = Scanner::new().unwrap();
            scanner.scan(start()).unwrap();
            let part = PARTS[0];
            let cookies: HashSet<Cookie> = scanner.listening.keys().copied().collect();
            assert_eq!(missing(&scanner.listening, part, &[]), cookies);
            assert_eq!(missing(&scanner.listening, PARTS[1], &[]), HashSet::new());
            let (known, mut all) = (&scanner.listening, Vec::new());
            scanner.tables.dump_listening(part, &mut all, |found| missing(known, part, found)).unwrap();
            assert_eq!((all.len(), missing(&scanner.listening, part, &all).len()), (3, 0));
            assert_eq!(missing(&scanner.listening, part, &all[1..]), HashSet::from([all[0].cookie]));
            // As if the first dump had missed one: the second adds that one and no other.
            let one = all[0].cookie;
            scanner.tables.dump_listening(part, &mut all, |_| HashSet::from([one])).unwrap();
            assert_eq!(all.len(), 4);
            assert_eq!(all[3].cookie, one);
            // As if it had missed all, and they were gone by the second: none is made up.
            drop(sockets);
            scanner.tables.dump_listening(part, &mut all, |_| cookies).unwrap();
            assert_eq!(all, []);
        });
    }

    #[test]
    fn a_closed_socket_counts_as_a_change_also_without_known_owners() {
        in_new_namespace("the end of a listener without known owners", || {
            let socket = at(Protocol::Tcp, "127.0.0.1").serve();
            let mut scanner = Scanner::new().unwrap();
            scanner.scan(start()).unwrap();
            drop(socket);
            let covered = scanner.dump().unwrap();
            scanner.scan += 1;
            assert!(scanner.sort_out(&covered, start()));
        });
    }

    #[test]
    fn sockets_of_one_key_are_one_listener_with_all_owners() {
        let owner =
            |pid| Owner { pid, started_ticks: 1, name: "a".into(), exe: None, account: "root".into() };
        let listener = |owners: &[u32], unit: Option<&str>| Listener {
            key: ListenerKey {
                netns: Netns::Home,
                protocol: Protocol::Tcp,
                port: gk_model::port::Port::MAX,
                address: [0, 0, 0, 0].into(),
                interface: None,
                v6only: false,
            },
            account: None,
            owners: owners.iter().copied().map(owner).collect(),
            unit: unit.map(Observed::new),
            container: None,
            first_seen_at: start(),
            last_seen_at: start(),
        };
        let mut merged = listener(&[5, 9], None);
        absorb(&mut merged, listener(&[1, 5, 12], Some("a.service")));
        assert_eq!(merged, listener(&[1, 5, 9, 12], Some("a.service")));
    }
}
