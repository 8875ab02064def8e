//! The kernel's socket tables of one network namespace, one dump per part.

use std::collections::HashSet;

use gk_model::contact::{Family, Part};
use gk_model::listener::Netns;
use gk_model::port::Protocol;

use crate::ScanError;
use crate::dump::Dump;
use crate::ephemeral::{GivenPorts, Settings};
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
    settings: Settings,
}

impl Tables {
    /// Those of the calling thread's network namespace.
    pub(crate) fn open() -> Result<Tables, ScanError> {
        Ok(Tables { netlink: Some(Netlink::open()?), settings: Settings::new() })
    }

    /// The ports that the kernel gives by itself, as of now.
    pub(crate) fn given_ports(&mut self) -> &GivenPorts {
        self.settings.read()
    }

    /// Every socket of a part that is in one of the states.
    pub(crate) fn dump(&mut self, part: Part, states: States) -> Result<Vec<Socket>, ScanError> {
        let mut dump = Dump::default();
        self.dump_into(part, states, &mut dump)?;
        Ok(dump.take_news().unwrap_or_default())
    }

    fn dump_into(&mut self, part: Part, states: States, dump: &mut Dump) -> Result<(), ScanError> {
        let mut netlink = match self.netlink.take() {
            Some(netlink) => netlink,
            None => Netlink::open()?,
        };
        netlink.dump(Query { protocol: part.protocol, family: part.family, states }, dump)?;
        self.netlink = Some(netlink);
        Ok(())
    }

    /// Brings a dump of the sockets of a part that listen or may (TCP in LISTEN, and every UDP socket) up to date.
    ///
    /// A dump takes several system calls and misses a socket when its neighbours come and go in between. So sockets
    /// that were there before and are `missing` from the first dump, which it hands over in its order, get a
    /// second chance. A socket that is gone is in neither.
    pub(crate) fn dump_listening(
        &mut self,
        part: Part,
        dump: &mut Dump,
        missing: impl FnOnce(&[Socket]) -> HashSet<Cookie>,
    ) -> Result<(), ScanError> {
        const LISTENING: States = States::of(&[State::LISTEN]);
        const UDP: States = States::of(&[State::CLOSE, State::ESTABLISHED]);
        let states = match part.protocol {
            Protocol::Tcp => LISTENING,
            Protocol::Udp => UDP,
        };
        self.dump_into(part, states, dump)?;
        let missing = dump.news().filter(|_| dump.is_news()).map(missing).unwrap_or_default();
        if !missing.is_empty() {
            let mut again = Dump::default();
            self.dump_into(part, states, &mut again)?;
            dump.add(again, |cookie| missing.contains(&cookie));
        }
        Ok(())
    }

    /// TCP sockets that are bound and do nothing yet. Costs far more than the listening ones, since the kernel walks
    /// the table of all bound ports; finds none before Linux 6.8.
    pub(crate) fn dump_bound(&mut self, part: Part) -> Result<Vec<Socket>, ScanError> {
        self.dump(part, States::of(&[State::BOUND_INACTIVE]))
    }
}
