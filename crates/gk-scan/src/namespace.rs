//! One network namespace: what its tables said last, and which of its sockets accept traffic.
//!
//! Whatever belongs to a namespace is asked of the kernel in [`Namespace::dump`], by a thread that is inside: the
//! sockets, the ports that it gives by itself, and the names of interfaces. The rest works on the answers, anywhere.

use std::collections::{BTreeSet, HashMap};

use gk_model::contact::{Occupied, Part};
use gk_model::listener::{ListenerKey, Netns};
#[cfg(test)]
use gk_model::port::Protocol;
use gk_model::text::Observed;
use gk_model::time::Timestamp;

use crate::ScanError;
use crate::ephemeral::GivenPorts;
use crate::error::Chain;
use crate::owners::{Owners, SocketId};
use crate::parse::Socket;
use crate::part_sockets::{Changes, PartSockets};
use crate::sys;
use crate::tables::{PARTS, Tables, parts_of};

/// What is known of one network namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    netns: Netns,
    parts: [PartSockets; PARTS],
    given: GivenPorts,
    /// The names of interfaces that sockets are bound to, by index, asked for when the sockets change.
    interfaces: HashMap<u32, Observed>,
    seen_at: Timestamp,
}

impl Namespace {
    /// One that was not looked at yet.
    pub(crate) fn new(netns: Netns) -> Namespace {
        Namespace {
            netns,
            parts: parts_of(netns).map(PartSockets::new),
            given: GivenPorts::default(),
            interfaces: HashMap::new(),
            seen_at: Timestamp::from_micros(0),
        }
    }

    /// Asks the kernel for everything, in the calling thread's network namespace, of which the tables must be too.
    ///
    /// # Errors
    /// When no part could be dumped: why the first could not. Then none is covered.
    pub(crate) fn dump(&mut self, tables: &mut Tables) -> Result<(), ScanError> {
        let (mut is_news, mut failure) = (false, None);
        for sockets in &mut self.parts {
            match sockets.dump(tables) {
                Ok(told_news) => is_news |= told_news,
                Err(error) => {
                    tracing::debug!(scan.part = ?sockets.part(), error = %Chain(&error), "a part of the scan is missing");
                    failure = failure.or(Some(error));
                }
            }
        }
        let given = tables.given_ports();
        if *given != self.given {
            self.given = given.clone();
        }
        if is_news {
            self.name_interfaces();
        }
        failure.filter(|_| self.covered().next().is_none()).map_or(Ok(()), Err)
    }

    /// One that is gone is told by its index.
    fn name_interfaces(&mut self) {
        let name = |index: u32| sys::interface_name(index).unwrap_or_else(|| index.to_string());
        let bound = self.parts.iter().flat_map(PartSockets::interfaces);
        self.interfaces = bound.map(|index| (index, Observed::new(&name(index)))).collect();
    }

    /// It could not be looked at: no part is covered, and nothing follows for its sockets.
    pub(crate) fn lose_sight(&mut self) {
        self.parts.iter_mut().for_each(PartSockets::lose_sight);
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
    pub(crate) fn covered(&self) -> impl Iterator<Item = Part> {
        self.parts.iter().filter_map(PartSockets::covered)
    }

    /// Whether no socket listens in it, as far as was ever seen.
    pub(crate) fn is_empty(&self) -> bool {
        self.known().next().is_none()
    }

    /// The listening sockets of the covered parts: by protocol and family, then by port.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = &Socket> {
        self.parts.iter().filter(|part| part.covered().is_some()).flat_map(PartSockets::listening)
    }

    /// Which of the machine's sockets one of its own is.
    pub(crate) fn id(&self, socket: &Socket) -> SocketId {
        SocketId { netns: self.netns, cookie: socket.cookie }
    }

    /// Every listening socket, those of parts that could not be dumped last time included.
    fn known(&self) -> impl Iterator<Item = SocketId> {
        self.parts.iter().flat_map(PartSockets::listening).map(|socket| self.id(socket))
    }

    /// Whether a process that can be seen holds one of its listening sockets.
    pub(crate) fn is_held(&self, owners: &Owners) -> bool {
        owners.any_held(self.known())
    }

    /// Forgets every socket, for a namespace that is gone.
    pub(crate) fn forget_all(self, owners: &mut Owners) {
        self.known().for_each(|socket| owners.vanish(socket));
    }

    /// The ports that are taken by something else than listeners: by clients, and by these bound sockets.
    pub(crate) fn occupied(&self, bound: &[Socket]) -> Vec<Occupied> {
        let of_parts = parts_of(self.netns).into_iter().zip(&self.parts);
        let clients = of_parts.flat_map(|(part, sockets)| {
            sockets.clients().map(move |port| Occupied { protocol: part.protocol, port })
        });
        let mut taken: BTreeSet<Occupied> = clients.chain(bound.iter().map(occupied)).collect();
        if !taken.is_empty() {
            let listening: BTreeSet<Occupied> = self.sockets().map(occupied).collect();
            taken.retain(|port| !listening.contains(port));
        }
        taken.into_iter().collect()
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

    /// Sorts the dumped sockets into listening ones and others; whether the listening ones changed.
    pub(crate) fn sort_out(&mut self, owners: &mut Owners, now: Timestamp) -> bool {
        let mut changes = Changes::default();
        for part in &mut self.parts {
            part.sort_out(&self.given, now, &mut changes);
        }
        let id = |cookie| SocketId { netns: self.netns, cookie };
        // First, because a socket that is bound anew keeps its cookie, and is in both.
        changes.gone.into_iter().for_each(|cookie| owners.vanish(id(cookie)));
        changes.new.into_iter().for_each(|(cookie, inode)| owners.appear(id(cookie), inode));
        changes.are_some
    }
}

#[cfg(test)]
impl Namespace {
    /// How many sockets the kernel told of last time.
    pub(crate) fn told_sockets(&self) -> usize {
        self.parts.iter().map(PartSockets::told_sockets).sum()
    }

    /// As if the tables of this protocol could not have been dumped.
    pub(crate) fn lose_sight_of(&mut self, protocol: Protocol) {
        let parts = parts_of(self.netns).into_iter().zip(&mut self.parts);
        parts.filter(|(part, _)| part.protocol == protocol).for_each(|(_, sockets)| sockets.lose_sight());
    }
}

/// The port that a socket takes.
fn occupied(socket: &Socket) -> Occupied {
    Occupied { protocol: socket.protocol, port: socket.port }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::truth::world::{at, in_new_namespace};

    #[test]
    fn a_closed_socket_counts_as_a_change_also_without_known_owners() {
        in_new_namespace("the end of a listener without known owners", || {
            let now = Timestamp::from_micros(1_800_000_000_000_000);
            let socket = at(Protocol::Tcp, "127.0.0.1").serve();
            let (mut namespace, mut tables, mut owners) =
                (Namespace::new(Netns::Home), Tables::open().unwrap(), Owners::default());
            let mut is_change = || {
                namespace.dump(&mut tables).unwrap();
                namespace.sort_out(&mut owners, now)
            };
            assert!(is_change());
            drop(socket);
            assert_eq!([is_change(), is_change()], [true, false]);
        });
    }
}
