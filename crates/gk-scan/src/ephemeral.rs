//! Telling UDP servers from UDP clients, as far as that is knowable.
//!
//! A UDP socket that has a peer is a client. One without may be either: a server that was bound, or a client that the
//! kernel gave a port when it sent its first datagram. The kernel remembers which (`SOCK_BINDPORT_LOCK`) but tells
//! nobody: sock_diag has no attribute for it, `INET_DIAG_SOCKOPT` included (its eleven bits are recverr, is_icsk,
//! freebind, hdrincl, mc_loop, transparent, mc_all, nodefrag, bind_address_no_port, recverr_rfc4884, defer_connect).
//! A bound address would prove a bind, but resolvers bind a source address with port 0 as well. So the port decides:
//!
//! - Outside of `ip_local_port_range`, or in `ip_local_reserved_ports`, the kernel gives no ports: a server.
//! - Inside, it is a server once it has lived for [`CLIENT_LIFETIME`], counted from the first scan that saw it.
//!
//! Until then it merely occupies its port.

use std::fs;
use std::time::Duration;

use gk_model::port::{Port, PortRange};
use gk_model::port_set::PortSet;

use crate::polled::Polled;
use crate::reserved;

/// A client rarely keeps an unconnected socket that long.
pub(crate) const CLIENT_LIFETIME: Duration = Duration::from_secs(30);

/// The ports that the kernel gives to sockets that ask for any, in one network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GivenPorts {
    range: Option<PortRange>,
    reserved: PortSet,
}

impl GivenPorts {
    /// Whether the kernel may have given this port. When the range is unknown, any.
    pub(crate) fn contains(&self, port: Port) -> bool {
        self.range.is_none_or(|range| range.contains(port)) && !self.reserved.contains(port)
    }
}

#[cfg(test)]
impl GivenPorts {
    pub(crate) fn of_range(range: PortRange) -> GivenPorts {
        GivenPorts { range: Some(range), ..GivenPorts::default() }
    }
}

/// The two settings that say which those are, in the network namespace of the thread that reads them first.
#[derive(Debug)]
pub(crate) struct Settings {
    range: Polled,
    reserved: Polled,
    given: GivenPorts,
}

impl Settings {
    /// Not yet read.
    pub(crate) fn new() -> Settings {
        let (range, reserved) = (Polled::new(RANGE), Polled::new(reserved::LIST));
        Settings { range, reserved, given: GivenPorts::default() }
    }

    /// What they say now.
    pub(crate) fn read(&mut self) -> &GivenPorts {
        if self.range.refresh() {
            self.given.range = parse_range(self.range.text());
        }
        if self.reserved.refresh() {
            self.given.reserved = reserved::parse(self.reserved.text());
        }
        &self.given
    }
}

const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// `net.ipv4.ip_local_port_range`, which counts for IPv6 too.
pub fn ephemeral_range() -> Option<PortRange> {
    parse_range(&fs::read_to_string(RANGE).ok()?)
}

/// Two numbers and white space: `32768\t60999\n`.
fn parse_range(text: &str) -> Option<PortRange> {
    let (first, last) = text.trim().split_once(char::is_whitespace)?;
    PortRange::new(first.parse().ok()?, last.parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_range("32768\t60999\n").unwrap().to_string(), "32768-60999");
        assert_eq!(parse_range("1024 1024").unwrap().to_string(), "1024");
        assert_eq!([parse_range(""), parse_range("9 8"), parse_range("0 5")], [None; 3]);
    }

    #[test]
    fn reserved_ports_are_not_given() {
        let mut reserved = PortSet::default();
        ["40000-40009", "50000"].iter().for_each(|range| reserved.insert_range(range.parse().unwrap()));
        let given = GivenPorts { range: parse_range("32768 60999"), reserved };
        let port = |number| Port::new(number).unwrap();
        for number in [32768, 39999, 40010, 60999] {
            assert!(given.contains(port(number)), "{number}");
        }
        for number in [32767, 61000, 40000, 40009, 50000] {
            assert!(!given.contains(port(number)), "{number}");
        }
    }
}
