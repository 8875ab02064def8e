//! Which ports a program could bind now: by looking, and by trying.
//!
//! `bind` of the wildcard address without SO_REUSEADDR fails when *any* socket holds the port: a listener, a socket that
//! is only bound, either end of a connection, even one in TIME_WAIT. (With SO_REUSEADDR it fails just the same for an
//! outgoing connection, which did not set it.) So all of them are busy here. A reservation that avoids them is usable
//! at once by a program that knows nothing of SO_REUSEADDR, and by one that binds any address.

use std::collections::BTreeSet;
use std::io;

use gk_model::contact::Family;
use gk_model::listener::Netns;
use gk_model::port::{Port, PortRange, Protocol};

use crate::ScanError;
use crate::parse::States;
use crate::sys;
use crate::tables::{Tables, parts_of};

/// Every port of the range that some socket of the calling thread's network namespace holds, lowest first.
///
/// Reads the tables of all connections: milliseconds for tens of thousands. Before Linux 6.8 the kernel does not tell
/// of TCP sockets that are bound and do nothing else; [`test_bind`] notices them.
///
/// # Errors
/// When the sockets of either family cannot be listed: half an answer would be taken for a whole one.
pub fn busy_ports(protocol: Protocol, range: PortRange) -> Result<Vec<Port>, ScanError> {
    let mut tables = Tables::open()?;
    let mut busy = BTreeSet::new();
    for part in parts_of(Netns::Home).into_iter().filter(|part| part.protocol == protocol) {
        let sockets = tables.dump(part, States::ALL)?;
        busy.extend(sockets.iter().map(|socket| socket.port).filter(|port| range.contains(*port)));
    }
    Ok(busy.into_iter().collect())
}

/// Tries to bind the wildcard address of both families (IPv6 dual-stack), without SO_REUSEADDR, and lets go at once.
///
/// The answer may be outdated when it arrives; it only tells that nothing is in the way now. What this process may not
/// do (`EACCES`, ports below `ip_unprivileged_port_start`) says nothing about others and counts as free. A family that
/// the machine does not have is left out.
///
/// # Errors
/// What the kernel answered, [`io::ErrorKind::AddrInUse`] above all.
pub fn test_bind(protocol: Protocol, port: Port) -> io::Result<()> {
    for family in [Family::V4, Family::V6] {
        match sys::bind_wildcard(protocol, family, port) {
            Err(error) if !tells_nothing(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn tells_nothing(error: &io::Error) -> bool {
    let silent = [libc::EACCES, libc::EAFNOSUPPORT, libc::EPROTONOSUPPORT, libc::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|errno| silent.contains(&errno))
}
