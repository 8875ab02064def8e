//! Who a client is behind a proxy.
//!
//! `X-Forwarded-For` and `Forwarded` are what anybody may write. They count only where the connection comes from a proxy
//! that the operator named, and only up to the first address that is no such proxy: what is left of that, the client
//! may have written itself. Nobody is admitted by an address; it is for logs and limits.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use axum::http::header::FORWARDED;
use axum::http::{HeaderMap, HeaderName};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A range of addresses: `10.0.0.0/8`, or a single one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    /// As IPv6; an IPv4 address in its mapped form.
    bits: u128,
    prefix: u32,
}

/// A text that is no range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write an address (10.0.0.1), or a range of them (10.0.0.0/8, fd00::/8)")]
pub struct CidrError;

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn mask(prefix: u32) -> u128 {
    u128::MAX.checked_shl(128 - prefix).unwrap_or(0)
}

impl Cidr {
    /// Whether the address is in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        bits(ip) & mask(self.prefix) == self.bits
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Cidr, CidrError> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length.parse::<u32>().map_err(|_| CidrError)?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| CidrError)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = length.unwrap_or(most);
        if length > most {
            return Err(CidrError);
        }
        let prefix = length + 128 - most;
        Ok(Cidr { bits: bits(address) & mask(prefix), prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = Ipv6Addr::from_bits(self.bits).to_canonical();
        let length = if address.is_ipv4() { self.prefix.saturating_sub(96) } else { self.prefix };
        write!(f, "{address}/{length}")
    }
}

/// The client that a trusted proxy speaks for; none when the peer speaks for itself, or the proxy does not say.
pub(crate) fn forwarded_for(trusted: &[Cidr], peer: SocketAddr, headers: &HeaderMap) -> Option<IpAddr> {
    let is_proxy = |ip: IpAddr| trusted.iter().any(|range| range.contains(ip));
    if !is_proxy(peer.ip()) {
        return None;
    }
    let named = |header: HeaderName, parse: fn(&str) -> Option<IpAddr>| {
        client(entries(headers, &header), parse, is_proxy)
    };
    let by_list = named(X_FORWARDED_FOR, parse_node);
    let by_standard = named(FORWARDED, parse_element);
    match (by_list, by_standard) {
        // A proxy writes one of them and may hand on the other one as the client wrote it. Which is which nobody knows.
        (Some(one), Some(other)) if one != other => None,
        (one, other) => one.or(other),
    }
}

/// The entries of all lines of a header, the nearest one first.
fn entries<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    let lines: Vec<&str> = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?")).collect();
    lines.into_iter().rev().flat_map(|line| line.rsplit(',')).map(str::trim)
}

/// The first that is no proxy of ours; the farthest proxy when all are, or when what comes next makes no sense.
fn client<'a>(
    entries: impl Iterator<Item = &'a str>,
    parse: fn(&str) -> Option<IpAddr>,
    is_proxy: impl Fn(IpAddr) -> bool,
) -> Option<IpAddr> {
    let mut farthest = None;
    for address in entries.map_while(parse) {
        farthest = Some(address);
        if !is_proxy(address) {
            break;
        }
    }
    farthest
}

/// `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]:4711`.
fn parse_node(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address: Option<IpAddr> = bare.parse().ok();
    let address = address.or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()));
    address.map(|address| address.to_canonical())
}

/// The `for` of an element of `Forwarded` (RFC 7239).
fn parse_element(text: &str) -> Option<IpAddr> {
    let pairs = text.split(';').filter_map(|pair| pair.split_once('='));
    let mut nodes = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
    parse_node(nodes.next()?.1.trim().trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whose connection it is, what its headers say, and who is believed to be the client.
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Option<&'a str>);

    fn found(peer: &str, lines: &[(&str, &str)]) -> Option<String> {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|range| range.parse().unwrap());
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        let peer: IpAddr = peer.parse().unwrap();
        forwarded_for(&trusted, SocketAddr::new(peer, 1), &headers).map(|ip| ip.to_string())
    }

    #[test]
    fn only_trusted_proxies_are_believed_and_only_up_to_the_first_stranger() {
        let xff = "x-forwarded-for";
        let table: &[Case<'_>] = &[
            ("192.0.2.1", &[(xff, "198.51.100.7")], None),
            ("10.1.1.1", &[], None),
            ("10.1.1.1", &[(xff, "198.51.100.7")], Some("198.51.100.7")),
            ("::ffff:10.1.1.1", &[(xff, "198.51.100.7")], Some("198.51.100.7")),
            ("fd12::1", &[(xff, "2001:db8::1")], Some("2001:db8::1")),
            ("10.1.1.1", &[(xff, "6.6.6.6, 198.51.100.7")], Some("198.51.100.7")),
            ("10.1.1.1", &[(xff, "6.6.6.6, 198.51.100.7, 10.2.2.2")], Some("198.51.100.7")),
            ("10.1.1.1", &[(xff, "6.6.6.6"), (xff, "198.51.100.7")], Some("198.51.100.7")),
            ("10.1.1.1", &[(xff, "6.6.6.6, unknown, 10.2.2.2")], Some("10.2.2.2")),
            ("10.1.1.1", &[(xff, "10.3.3.3, 10.2.2.2")], Some("10.3.3.3")),
            ("10.1.1.1", &[(xff, "gibberish")], None),
            ("10.1.1.1", &[(xff, "198.51.100.7:4711")], Some("198.51.100.7")),
            ("10.1.1.1", &[(xff, "[2001:db8::1]:4711")], Some("2001:db8::1")),
            ("10.1.1.1", &[("forwarded", "for=6.6.6.6, for=198.51.100.7;proto=https")], Some("198.51.100.7")),
            ("10.1.1.1", &[("forwarded", "By=x; For=\"[2001:db8::1]:47\"")], Some("2001:db8::1")),
            ("10.1.1.1", &[("forwarded", "for=6.6.6.6"), (xff, "198.51.100.7")], None),
            ("10.1.1.1", &[("forwarded", "for=6.6.6.6"), (xff, "6.6.6.6")], Some("6.6.6.6")),
        ];
        for (peer, lines, expected) in table {
            assert_eq!(found(peer, lines).as_deref(), *expected, "{peer} {lines:?}");
        }
    }

    #[test]
    fn a_range_holds_its_addresses_and_no_others() {
        let holds = |range: &str, ip: &str| range.parse::<Cidr>().unwrap().contains(ip.parse().unwrap());
        assert!(holds("10.0.0.0/8", "10.255.0.1") && !holds("10.0.0.0/8", "11.0.0.1"));
        assert!(holds("10.1.2.3", "10.1.2.3") && !holds("10.1.2.3", "10.1.2.4"));
        assert!(holds("0.0.0.0/0", "1.2.3.4") && !holds("0.0.0.0/0", "2001:db8::1"));
        assert!(holds("::/0", "2001:db8::1"));
        for bad in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "web-1"] {
            assert_eq!(bad.parse::<Cidr>(), Err(CidrError), "{bad}");
        }
        for text in ["10.0.0.0/8", "10.1.2.3/32", "fd00::/8"] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), text);
        }
    }
}
