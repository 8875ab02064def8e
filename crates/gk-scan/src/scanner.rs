//! Scans: the listeners of a machine's network namespaces, with what is known of their owners.
//!
//! The first scan looks through every process. Later ones compare the kernel's tables with the last scan and work only
//! on the difference; when there is none, the answer of the last scan is given again with a new time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use gk_model::contact::{Occupied, Part};
use gk_model::listener::{Listener, ListenerKey, Netns, Owner};
use gk_model::port::Protocol;
use gk_model::time::Timestamp;

use crate::ScanError;
use crate::accounts::Accounts;
use crate::cgroup::Cgroups;
use crate::error::Chain;
use crate::namespace::{Namespace, occupied};
use crate::others::Others;
use crate::owners::{Owners, SocketId};
use crate::parse::Socket;
use crate::place::Place;
use crate::process::{Description, Pid};
use crate::processes::Processes;
use crate::tables::{Tables, parts_of};

/// Scans the network namespaces of this machine again and again.
///
/// It belongs to the namespace of the thread that made it, which is its home ([`Netns::Home`]). Other threads may use
/// it as long as they are in the same namespace.
#[derive(Debug)]
pub struct Scanner {
    tables: Tables,
    home: Namespace,
    /// None for a scanner that was asked for its home only.
    others: Option<Others>,
    processes: Processes,
    owners: Owners,
    accounts: Accounts,
    cgroups: Cgroups,
    /// Since when listeners are there whose part could not be dumped last time, so that they are not in the last scan.
    hidden: BTreeMap<ListenerKey, Timestamp>,
    last: Scan,
}

/// What a scan saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Every listener of the covered parts, by key, so those of the home namespace come first; sockets that share a key
    /// are one listener with all their owners.
    pub listeners: Vec<Listener>,
    /// Ports of the home namespace that are taken by something else, in order, once each: UDP clients, sockets that may
    /// be UDP clients, and, when asked for, TCP sockets that are bound and do not listen. Ports of listeners are left
    /// out.
    pub occupied: Vec<Occupied>,
    /// The parts that could be dumped when their namespace was last looked at, in order: the home namespace in this
    /// scan, another one at most two scans before. Nothing follows for a part that is missing here: not that its
    /// listeners are gone.
    pub covered: Vec<Part>,
    /// When each namespace was dumped last that is there, or may be.
    pub seen_at: BTreeMap<Netns, Timestamp>,
    /// Every namespace that is there or may be. One that a scanner has shown is left out only when it is certain to be
    /// gone, and its listeners with it.
    pub namespaces: BTreeSet<Netns>,
    /// Whether there can be no others: every process could be asked where it is.
    pub knows_all_namespaces: bool,
    /// Whether anything but `last_seen_at` may differ from this scanner's scan before; true for the first.
    pub changed: bool,
}

impl Scanner {
    /// Opens the kernel's tables of the calling thread's network namespace, and scans that one only. Needs no privilege.
    ///
    /// # Errors
    /// [`ScanError::Open`] when sock_diag is not available, as in sandboxes that deny netlink.
    pub fn new() -> Result<Scanner, ScanError> {
        Ok(Scanner {
            tables: Tables::open()?,
            home: Namespace::new(Netns::Home),
            others: None,
            processes: Processes::default(),
            owners: Owners::default(),
            accounts: Accounts::new("/etc/passwd"),
            cgroups: Cgroups::find(),
            hidden: BTreeMap::new(),
            last: Scan::default(),
        })
    }

    /// As [`Scanner::new`], and scans every other network namespace that may be entered, too. A kernel without network
    /// namespaces has its home only.
    ///
    /// # Errors
    /// As [`Scanner::new`].
    pub fn of_all_namespaces() -> Result<Scanner, ScanError> {
        let warn = |error: &io::Error| tracing::warn!(%error, "cannot look for other network namespaces");
        Ok(Scanner { others: Others::start().inspect_err(warn).ok(), ..Scanner::new()? })
    }

    /// As [`Scanner::new`], and looks at no process: listeners are shown without their owners, which spares a look at
    /// every open file of the machine.
    ///
    /// # Errors
    /// As [`Scanner::new`].
    pub fn without_processes() -> Result<Scanner, ScanError> {
        Ok(Scanner { owners: Owners::idle(), ..Scanner::new()? })
    }

    /// Scans once; TCP sockets that are bound and do not listen are not looked for.
    ///
    /// # Errors
    /// When no part of the home namespace could be dumped: why the first could not.
    pub fn scan(&mut self, now: Timestamp) -> Result<Scan, ScanError> {
        let mut scan = self.scan_in_place(now)?.clone();
        for listener in &mut scan.listeners {
            let seen_at = scan.seen_at.get(&listener.key.netns).copied();
            listener.last_seen_at = seen_at.unwrap_or(listener.last_seen_at);
        }
        Ok(scan)
    }

    /// As [`Scanner::scan`], for who scans but once: nothing is copied, and a later scan would take everything for new.
    ///
    /// # Errors
    /// As [`Scanner::scan`].
    pub fn scan_once(&mut self, now: Timestamp) -> Result<Scan, ScanError> {
        self.scan_in_place(now)?;
        Ok(std::mem::take(&mut self.last))
    }

    /// As [`Scanner::scan`], without making a copy for the caller, and when nothing changed without touching its listeners:
    /// with a thousand of them, either takes as long as half the scan. Their `last_seen_at` may then be too early; it
    /// is [`Scan::seen_at`] of their namespace.
    ///
    /// # Errors
    /// As [`Scanner::scan`].
    pub fn scan_in_place(&mut self, now: Timestamp) -> Result<&Scan, ScanError> {
        self.home.dump(&mut self.tables)?;
        self.home.note_seen(now);
        let new = self.others.is_some().then(|| self.processes.refresh()).flatten();
        if let Some(others) = &mut self.others {
            others.meet(new.as_deref().unwrap_or_default());
            others.look(&self.processes, new.is_some(), &mut self.owners, now);
        }
        Ok(self.conclude(new, now))
    }

    /// As [`Scanner::scan`], and looks for TCP sockets of the home namespace that are bound and do not listen, which
    /// takes up to 18 ms more on a busy machine. Linux before 6.8 does not tell of them.
    ///
    /// # Errors
    /// As [`Scanner::scan`].
    pub fn scan_occupied(&mut self, now: Timestamp) -> Result<Scan, ScanError> {
        let mut scan = self.scan(now)?;
        let mut taken: BTreeSet<Occupied> = scan.occupied.iter().copied().collect();
        for part in parts_of(Netns::Home).into_iter().filter(|part| part.protocol == Protocol::Tcp) {
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

    /// Brings owners up to date with the sockets, and the answer with both. `listed` are the processes that this scan
    /// has listed for the first time so far, if it did.
    fn conclude(&mut self, listed: Option<Vec<Pid>>, now: Timestamp) -> &Scan {
        let renamed = self.accounts.refresh();
        if renamed {
            self.owners.rename_accounts(&self.accounts);
        }
        let mut changed = renamed | self.home.sort_out(&mut self.owners, now);
        if let Some(others) = &mut self.others {
            changed |= others.sort_out(&mut self.owners, now);
        }
        changed |= self.refresh_owners(listed);
        let covered: Vec<Part> = self.namespaces().flat_map(Namespace::covered).copied().collect();
        changed |= covered != self.last.covered;
        if changed {
            self.last.listeners = self.merge();
            self.last.covered = covered;
        }
        // Clients come and go all the time on some machines, without any listener changing.
        let occupied = without_listeners(self.home.clients(), &self.last.listeners);
        let namespaces = self.namespaces().map(Namespace::netns).collect();
        self.last.changed = changed || occupied != self.last.occupied || namespaces != self.last.namespaces;
        self.last.occupied = occupied;
        self.last.seen_at =
            self.namespaces().map(|namespace| (namespace.netns(), namespace.seen_at())).collect();
        self.last.namespaces = namespaces;
        self.last.knows_all_namespaces = self.others.as_ref().is_some_and(Others::are_all);
        &self.last
    }

    /// After the dumps: a process made in between may hold what they showed.
    fn refresh_owners(&mut self, listed: Option<Vec<Pid>>) -> bool {
        if self.owners.is_idle() {
            return false;
        }
        let later = self.processes.refresh();
        if let (Some(others), Some(later)) = (&mut self.others, &later) {
            others.meet(later);
        }
        let new = match (listed, later) {
            (Some(listed), Some(later)) => Some([later, listed].concat()),
            (listed, later) => listed.or(later),
        };
        self.owners.refresh(&self.processes, new.as_deref(), &self.accounts)
    }

    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        std::iter::once(&self.home).chain(self.others.iter().flat_map(Others::namespaces))
    }

    /// Makes listeners of the sockets of the covered parts, by key.
    fn merge(&mut self) -> Vec<Listener> {
        let namespaces =
            || std::iter::once(&self.home).chain(self.others.iter().flat_map(Others::namespaces));
        self.cgroups.learn(namespaces().flat_map(Namespace::sockets).filter_map(|(_, socket)| socket.cgroup));
        let owners = self.owners.by_socket();
        let mut listeners: Vec<Listener> = Vec::new();
        // Namespaces stand in the order of keys, too.
        for namespace in self.namespaces() {
            // Those of one key by age, so that the oldest gives the account, whatever order the kernel dumps them in.
            let mut sockets: Vec<(SocketId, &Socket)> = namespace.sockets().collect();
            sockets.sort_unstable_by(|(id, socket), (other_id, other)| {
                let order = (socket.protocol, socket.port).cmp(&(other.protocol, other.port));
                // Few share both, with which keys begin; to make keys of all takes longer than to sort.
                order.then_with(|| (namespace.key(socket), id).cmp(&(namespace.key(other), other_id)))
            });
            listeners.reserve(sockets.len());
            for (id, socket) in sockets {
                let held = &owners[owners.partition_point(|(held, _)| *held < id)..];
                let held = &held[..held.partition_point(|(held, _)| *held == id)];
                let listener = self.listener(namespace, socket, held);
                match listeners.last_mut().filter(|last| last.key == listener.key) {
                    Some(same) => absorb(same, listener),
                    None => listeners.push(listener),
                }
            }
        }
        self.date(&mut listeners);
        // Only now: of several sockets each may have owners that the others have, too.
        listeners.into_iter().map(Listener::bounded).collect()
    }

    /// Says since when each is there. What is not shown because its part is not covered keeps its time.
    fn date(&mut self, listeners: &mut [Listener]) {
        // Both in order, so each is passed by once.
        let mut before = self.last.listeners.iter().peekable();
        for listener in listeners.iter_mut() {
            while before.next_if(|before| before.key < listener.key).is_some() {}
            let same = before.next_if(|before| before.key == listener.key);
            let since = same.map(|before| before.first_seen_at);
            let since = since.or_else(|| self.hidden.remove(&listener.key));
            listener.first_seen_at = since.unwrap_or(listener.last_seen_at);
        }
        let others = self.others.as_ref();
        let covered: BTreeSet<Part> = self.namespaces().flat_map(Namespace::covered).copied().collect();
        let is_there = |netns| match netns {
            Netns::Home => true,
            Netns::Other(inode) => others.is_some_and(|others| others.seen_at(inode).is_some()),
        };
        let is_hidden = |key: &ListenerKey| is_there(key.netns) && !covered.contains(&key.part());
        self.hidden.retain(|key, _| is_hidden(key));
        let before = self.last.listeners.iter().filter(|before| is_hidden(&before.key));
        self.hidden.extend(before.map(|before| (before.key.clone(), before.first_seen_at)));
    }

    fn listener(
        &self,
        namespace: &Namespace,
        socket: &Socket,
        owners: &[(SocketId, &Description)],
    ) -> Listener {
        let place = self.place_of(socket, owners.first().map(|(_, owner)| *owner));
        let Place { unit, container } = place.cloned().unwrap_or_default();
        Listener {
            key: namespace.key(socket),
            account: Some(self.accounts.name(socket.uid)),
            owners: owners.iter().map(|(_, process)| process.owner.clone()).collect(),
            more_owners: 0,
            unit,
            container,
            first_seen_at: namespace.seen_at(),
            last_seen_at: namespace.seen_at(),
        }
    }

    /// The cgroup in which the socket was made, or, where that is the root or unknown (hosts that keep services in the
    /// old hierarchies), the one of its first owner.
    fn place_of<'a>(&'a self, socket: &Socket, owner: Option<&'a Description>) -> Option<&'a Place> {
        let place = socket.cgroup.and_then(|id| self.cgroups.place(id));
        place.or_else(|| owner.map(|owner| &owner.place))
    }
}

/// In order, less the ports of the home namespace's listeners, which come first, sorted by protocol and port.
fn without_listeners(taken: &BTreeSet<Occupied>, listeners: &[Listener]) -> Vec<Occupied> {
    let at_home = listeners.partition_point(|listener| listener.key.netns == Netns::Home);
    let port_of = |listener: &Listener| Occupied { protocol: listener.key.protocol, port: listener.key.port };
    let is_free = |port: &&Occupied| listeners[..at_home].binary_search_by_key(*port, port_of).is_err();
    taken.iter().filter(is_free).copied().collect()
}

/// Adds a later socket of the same key to a listener.
fn absorb(listener: &mut Listener, later: Listener) {
    listener.owners.extend(later.owners);
    listener.owners.sort_unstable_by_key(|owner| owner.pid);
    listener.owners.dedup_by_key(|owner: &mut Owner| owner.pid);
    listener.unit = listener.unit.take().or(later.unit);
    listener.container = listener.container.take().or(later.container);
}

#[cfg(test)]
impl Scanner {
    /// How many sockets of the home namespace the kernel told of in the last scan.
    pub(crate) fn told_sockets(&self) -> usize {
        self.home.told_sockets()
    }

    /// As if what it may do elsewhere had changed to what the calling thread may do now.
    pub(crate) fn change_powers(&mut self) {
        self.others.as_mut().expect("it looks into all namespaces").change_powers();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::truth::world::{at, in_new_namespace, port_of};

    fn start() -> Timestamp {
        Timestamp::from_micros(1_800_000_000_000_000)
    }

    /// A scan in which the tables of this protocol could not be dumped.
    fn scan_without(scanner: &mut Scanner, protocol: Protocol, now: Timestamp) -> Scan {
        scanner.home.dump(&mut scanner.tables).unwrap();
        scanner.home.lose_sight_of(protocol);
        scanner.home.note_seen(now);
        scanner.conclude(None, now).clone()
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
            let whole = scanner.scan(later).unwrap();
            assert_eq!(whole.covered, parts_of(Netns::Home));
            for (before, after) in first.listeners.iter().zip(&whole.listeners) {
                assert!(before.same_but_times(after));
                assert_eq!((after.first_seen_at, after.last_seen_at), (start(), later));
            }
        });
    }

    #[test]
    fn a_scan_after_the_only_one_takes_everything_for_new() {
        in_new_namespace("a second scan once", || {
            let socket = at(Protocol::Tcp, "127.0.0.1").serve();
            let mut scanner = Scanner::new().unwrap();
            for now in [start(), start().plus(Duration::from_secs(1))] {
                let scan = scanner.scan_once(now).unwrap();
                let shown: Vec<_> =
                    scan.listeners.iter().map(|one| (one.key.port, one.first_seen_at)).collect();
                assert_eq!((shown, scan.changed), (vec![(port_of(&socket), now)], true));
            }
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
            more_owners: 0,
            unit: unit.map(Into::into),
            container: None,
            first_seen_at: start(),
            last_seen_at: start(),
        };
        let mut merged = listener(&[5, 9], None);
        absorb(&mut merged, listener(&[1, 5, 12], Some("a.service")));
        assert_eq!(merged, listener(&[1, 5, 9, 12], Some("a.service")));
    }
}
