//! Scans: the listeners of a machine's network namespaces, with what is known of their owners.
//!
//! The first look goes through every process. Later ones compare the kernel's tables with those of the look before and
//! work only on the difference; when there is none, that is the answer. Listeners are made of all that when somebody
//! asks for them, and not kept: whoever wants to compare them keeps them anyway.

use std::collections::BTreeMap;
use std::io;

use gk_model::contact::{Occupied, Part};
use gk_model::listener::{Listener, Netns, Owner};
use gk_model::port::Protocol;
use gk_model::time::Timestamp;

use crate::ScanError;
use crate::accounts::Accounts;
use crate::cgroup::Cgroups;
use crate::error::Chain;
use crate::namespace::Namespace;
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
    coverage: Coverage,
}

/// What a scan saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// As [`Scanner::listeners`].
    pub listeners: Vec<Listener>,
    /// Ports of the home namespace that are taken by something else, in order, once each: UDP clients, sockets that may
    /// be UDP clients, and, when asked for, TCP sockets that are bound and do not listen.
    pub occupied: Vec<Occupied>,
    /// What it is complete for.
    pub coverage: Coverage,
}

/// What listeners are complete for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// The parts that could be dumped when their namespace was last looked at, in order: the home namespace just now,
    /// another one at most two looks before. Nothing follows for a part that is missing here: not that its listeners
    /// are gone.
    pub parts: Vec<Part>,
    /// Every namespace that is there or may be, and when it was dumped last. One that a scanner has shown is left out
    /// only when it is certain to be gone, and its listeners with it.
    pub namespaces: BTreeMap<Netns, Timestamp>,
    /// Whether there can be no others: every process could be asked where it is.
    pub knows_all_namespaces: bool,
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
            coverage: Coverage::default(),
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

    /// Looks, and answers with everything that is seen; TCP sockets that are bound and do not listen are not looked for.
    ///
    /// # Errors
    /// As [`Scanner::look`].
    pub fn scan(&mut self, now: Timestamp) -> Result<Scan, ScanError> {
        self.look(now)?;
        let (listeners, occupied) = (self.listeners(), self.home.occupied(&[]));
        Ok(Scan { listeners, occupied, coverage: self.coverage.clone() })
    }

    /// As [`Scanner::scan`], with the ports of [`Scanner::occupied`].
    ///
    /// # Errors
    /// As [`Scanner::look`].
    pub fn scan_occupied(&mut self, now: Timestamp) -> Result<Scan, ScanError> {
        let scan = self.scan(now)?;
        Ok(Scan { occupied: self.occupied(), ..scan })
    }

    /// Brings all that is known up to date with the kernel; whether anything may differ from the look before but
    /// the ports that clients occupy and when listeners were last seen. True for the first.
    ///
    /// # Errors
    /// When no part of the home namespace could be dumped: why the first could not.
    pub fn look(&mut self, now: Timestamp) -> Result<bool, ScanError> {
        self.home.dump(&mut self.tables)?;
        self.home.note_seen(now);
        let new = self.others.is_some().then(|| self.processes.refresh()).flatten();
        if let Some(others) = &mut self.others {
            others.meet(new.as_deref().unwrap_or_default());
            others.look(&self.processes, new.is_some(), &mut self.owners, now);
        }
        Ok(self.conclude(new, now))
    }

    /// What the last look is complete for.
    pub fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// Ports of the home namespace that are taken by something else than its listeners, in order, once each: by UDP
    /// clients as of the last look, and by TCP sockets that are bound and do not listen. These are looked for now, which
    /// takes up to 18 ms on a busy machine; Linux before 6.8 does not tell of them.
    pub fn occupied(&mut self) -> Vec<Occupied> {
        let mut all_bound = Vec::new();
        for part in parts_of(Netns::Home).into_iter().filter(|part| part.protocol == Protocol::Tcp) {
            match self.tables.dump_bound(part) {
                Ok(bound) => all_bound.extend(bound),
                Err(error) => {
                    tracing::debug!(scan.part = ?part, error = %Chain(&error), "cannot list bound sockets");
                }
            }
        }
        self.home.occupied(&all_bound)
    }

    /// Brings owners up to date with the sockets; whether anything changed. `listed` are the processes that this look has
    /// listed for the first time so far, if it did.
    fn conclude(&mut self, listed: Option<Vec<Pid>>, now: Timestamp) -> bool {
        let renamed = self.accounts.refresh();
        if renamed {
            self.owners.rename_accounts(&self.accounts);
        }
        let mut changed = renamed | self.home.sort_out(&mut self.owners, now);
        if let Some(others) = &mut self.others {
            changed |= others.sort_out(&mut self.owners, now);
        }
        changed |= self.refresh_owners(listed);
        changed | self.refresh_coverage()
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

    /// Whether anything but a time changed.
    fn refresh_coverage(&mut self) -> bool {
        let now = Coverage {
            parts: self.namespaces().flat_map(Namespace::covered).collect(),
            namespaces: self.namespaces().map(|one| (one.netns(), one.seen_at())).collect(),
            knows_all_namespaces: self.others.as_ref().is_some_and(Others::are_all),
        };
        let before = std::mem::replace(&mut self.coverage, now);
        before.parts != self.coverage.parts
            || before.knows_all_namespaces != self.coverage.knows_all_namespaces
            || !before.namespaces.keys().eq(self.coverage.namespaces.keys())
    }

    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        std::iter::once(&self.home).chain(self.others.iter().flat_map(Others::namespaces))
    }

    /// Every listener of the covered parts as of the last look, by key, so those of the home namespace come first; sockets
    /// that share a key are one listener with all their owners. Each was first and last seen when its namespace was
    /// dumped: what there was before is for the caller to remember.
    pub fn listeners(&mut self) -> Vec<Listener> {
        let namespaces =
            || std::iter::once(&self.home).chain(self.others.iter().flat_map(Others::namespaces));
        self.cgroups.learn(namespaces().flat_map(Namespace::sockets).filter_map(|socket| socket.cgroup));
        let count = namespaces().flat_map(Namespace::sockets).count();
        let (owners, mut listeners) = (self.owners.by_socket(), Vec::<Listener>::with_capacity(count));
        // Namespaces stand in the order of keys, too.
        for namespace in self.namespaces() {
            let mut sockets: Vec<&Socket> = namespace.sockets().collect();
            // Those of one key by age, so that the oldest gives the account, whatever order the kernel dumps them in. They
            // come part by part in nearly this order, of which a stable sort makes use.
            sockets.sort_by(|one, other| {
                let order = (one.protocol, one.port).cmp(&(other.protocol, other.port));
                // Few share both, with which keys begin; to make keys of all takes longer than to sort.
                let key = |socket| (namespace.key(socket), socket.cookie);
                order.then_with(|| key(one).cmp(&key(other)))
            });
            for socket in sockets {
                let id = namespace.id(socket);
                let held = &owners[owners.partition_point(|(held, _)| *held < id)..];
                // One or two, as a rule.
                let count = held.iter().take_while(|(held, _)| *held == id).count();
                let held = &held[..count];
                let listener = self.listener(namespace, socket, held);
                match listeners.last_mut().filter(|last| last.key == listener.key) {
                    Some(same) => absorb(same, listener),
                    None => listeners.push(listener),
                }
            }
        }
        // Only now: of several sockets each may have owners that the others have, too.
        listeners.into_iter().map(Listener::bounded).collect()
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
            owners: match owners {
                [(_, one)] => one.alone.clone(),
                _ => owners.iter().map(|(_, process)| process.owner().clone()).collect(),
            },
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

/// Adds a later socket of the same key to a listener.
fn absorb(listener: &mut Listener, later: Listener) {
    if listener.owners != later.owners {
        listener.owners.extend_from_slice(&later.owners);
        listener.owners.sort_unstable_by_key(|owner| owner.pid);
        listener.owners.dedup_by_key(|owner: &mut Owner| owner.pid);
    }
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

    use gk_model::listener::ListenerKey;

    use super::*;
    use crate::truth::world::{at, in_new_namespace, port_of};

    fn start() -> Timestamp {
        Timestamp::from_micros(1_800_000_000_000_000)
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
            scanner.home.lose_sight_of(Protocol::Udp);
            assert!(scanner.conclude(None, later));
            let ports: Vec<_> = scanner.listeners().iter().map(|listener| listener.key.port).collect();
            assert_eq!((ports, scanner.coverage().parts.len()), (vec![port_of(&sockets[0])], 2));
            // A part that is covered again is a change, and one that stays as it is none.
            assert_eq!([true, false].map(|_| scanner.look(later).unwrap()), [true, false]);
            assert_eq!(scanner.coverage().parts, parts_of(Netns::Home));
            let whole = scanner.listeners();
            assert_eq!(whole.len(), 2);
            for (before, after) in first.listeners.iter().zip(&whole) {
                assert!(before.same_but_times(after));
                assert_eq!(after.last_seen_at, later);
            }
        });
    }

    #[test]
    fn what_closed_unseen_is_gone_when_its_part_is_seen_again() {
        in_new_namespace("a part in which all closed unseen", || {
            let socket = at(Protocol::Tcp, "127.0.0.1").serve();
            let mut scanner = Scanner::new().unwrap();
            assert_eq!(scanner.scan(start()).unwrap().listeners.len(), 1);
            drop(socket);
            // What is told next is told to somebody who remembers nothing that was told before.
            scanner.home.lose_sight_of(Protocol::Tcp);
            assert_eq!(scanner.scan(start()).unwrap().listeners, []);
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
