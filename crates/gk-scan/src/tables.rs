//! The kernel's socket tables of one network namespace, one dump per part.

use std::collections::HashSet;

use gk_model::contact::{Family, Part};
use gk_model::listener::Netns;
use gk_model::port::Protocol;

use crate::ScanError;
use crate::netlink::Netlink;
use crate::parse::{Cookie, Query, Socket, State, States};

/// How many parts each network namespace has.
pub(crate) const PARTS: usize = 4;

/// Every part of a namespace, in order.
pub(crate) fn parts_of(netns: Netns) -> [Part; PARTS] {
    [
        (Protocol::Tcp, Family::V4),
        (Protocol::Tcp, Family::V6),
        (Protocol::Udp, Family::V4),
        (Protocol::Udp, Family::V6),
    ]
    .map(|(protocol, family)| Part { netns, protocol, family })
}

/// Access to the socket tables. After an error the next dump uses a new socket, so that no rest of the old answer
/// is in the way.
#[derive(Debug)]
pub(crate) struct Tables {
    netlink: Option<Netlink>,
}

impl Tables {
    /// Those of the calling thread's network namespace.
    pub(crate) fn open() -> Result<Tables, ScanError> {
        Ok(Tables { netlink: Some(Netlink::open()?) })
    }

    /// Every socket of a part that is in one of the states.
    pub(crate) fn dump(&mut self, part: Part, states: States) -> Result<Vec<Socket>, ScanError> {
        let mut found = Vec::new();
        self.dump_into(part, states, &mut found)?;
        Ok(found)
    }

    /// Puts them in place of what `found` held.
    fn dump_into(&mut self, part: Part, states: States, found: &mut Vec<Socket>) -> Result<(), ScanError> {
        let mut netlink = match self.netlink.take() {
            Some(netlink) => netlink,
            None => Netlink::open()?,
        };
        found.clear();
        netlink.dump(Query { protocol: part.protocol, family: part.family, states }, found)?;
        self.netlink = Some(netlink);
        Ok(())
    }

    /// Puts the sockets of a part that listen or may (TCP in LISTEN, and every UDP socket) in place of what `found`
    /// held.
    ///
    /// A dump takes several system calls and misses a socket when its neighbours come and go in between. So sockets
    /// that were there before and are `missing` from the first dump get a second chance. A socket that is gone is in
    /// neither.
    pub(crate) fn dump_listening(
        &mut self,
        part: Part,
        found: &mut Vec<Socket>,
        missing: impl FnOnce(&[Socket]) -> HashSet<Cookie>,
    ) -> Result<(), ScanError> {
        const LISTENING: States = States::of(&[State::LISTEN]);
        const UDP: States = States::of(&[State::CLOSE, State::ESTABLISHED]);
        let states = match part.protocol {
            Protocol::Tcp => LISTENING,
            Protocol::Udp => UDP,
        };
        self.dump_into(part, states, found)?;
        let missing = missing(found);
        if !missing.is_empty() {
            let again = self.dump(part, states)?;
            found.extend(again.into_iter().filter(|socket| missing.contains(&socket.cookie)));
        }
        Ok(())
    }

    /// TCP sockets that are bound and do nothing yet. Costs far more than the listening ones, since the kernel walks
    /// the table of all bound ports; finds none before Linux 6.8.
    pub(crate) fn dump_bound(&mut self, part: Part) -> Result<Vec<Socket>, ScanError> {
        self.dump(part, States::of(&[State::BOUND_INACTIVE]))
    }
}
