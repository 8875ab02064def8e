//! By which names the server may be called: the allow-list for `Host`.
//!
//! What it is for: DNS rebinding. A page that somebody reads in a browser may let its own name point to 127.0.0.1, and
//! then asks the server on the reader's machine as if it were the page's own. The browser tells on it: `Host` is the
//! page's name. So a name counts only when it is known: `localhost`, the machine's own, and those that the
//! configuration adds.
//!
//! An address counts always. Whoever is called by an address was not found through DNS, so there is nothing to rebind,
//! and which addresses lead here (behind a wildcard, a tunnel or a translation) is not for the server to know.
//! The port does not count either: a forwarded port is another one. The Unix socket is out of a browser's reach.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use axum::http::header::HOST;
use axum::http::{HeaderMap, Uri, Version};

/// The names by which the server may be called, beside every address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts {
    names: BTreeSet<HostName>,
}

impl Hosts {
    /// `localhost`, what the machine calls itself, and `others`. A machine's name that no `Host` can hold is left out.
    pub fn new(machine: &str, others: impl IntoIterator<Item = HostName>) -> Hosts {
        let own = ["localhost", machine].into_iter().filter_map(|name| name.parse().ok());
        Hosts { names: own.chain(others).collect() }
    }

    /// Whether a request was meant for this server.
    pub(crate) fn check(&self, head: &Head<'_>) -> Result<(), HostFault> {
        let mut given = head.headers.get_all(HOST).iter();
        let host = given.next().map(|value| value.to_str().map_err(|_| HostFault::Unreadable));
        if given.next().is_some() {
            return Err(HostFault::Several);
        }
        // `GET http://name/ HTTP/1.1` names it in the first line; RFC 9112 lets that one count, and we want both.
        let in_address = head.uri.authority().map(|authority| Ok(authority.as_str()));
        if host.is_none() && in_address.is_none() && head.version > Version::HTTP_10 {
            return Err(HostFault::Missing);
        }
        host.into_iter().chain(in_address).try_for_each(|name| self.admit(name?))
    }

    fn admit(&self, authority: &str) -> Result<(), HostFault> {
        let host = without_port(authority).ok_or(HostFault::Unreadable)?;
        if is_address(host) {
            return Ok(());
        }
        let name: HostName = host.parse().map_err(|_| HostFault::Unreadable)?;
        let any = HostName(HostName::ANY.to_owned());
        match self.names.contains(&name) || self.names.contains(&any) {
            true => Ok(()),
            false => Err(HostFault::Unknown(name)),
        }
    }
}

/// Where a request says whom it is meant for.
pub(crate) struct Head<'a> {
    pub(crate) version: Version,
    pub(crate) uri: &'a Uri,
    pub(crate) headers: &'a HeaderMap,
}

/// Why a request was not meant for this server, as far as one can tell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HostFault {
    #[error("HTTP/1.1 wants a Host header")]
    Missing,
    #[error("there are several Host headers")]
    Several,
    #[error("the Host header is no host")]
    Unreadable,
    #[error("this server does not go by the name `{0}`")]
    Unknown(HostName),
}

/// A name that may stand in `Host`, in lower case and without a port; or `*` for any.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostName(String);

impl HostName {
    const ANY: &str = "*";
    /// As long as a name in DNS can be.
    const MOST_CHARS: usize = 253;
}

impl std::fmt::Display for HostName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is no name of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a host's name has letters, digits, `-`, `_` and dots, and no port; `*` stands for any name")]
pub struct HostNameError;

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<HostName, HostNameError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let is_label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        let is_name = name.len() <= HostName::MOST_CHARS && name.split('.').all(is_label);
        match is_name || text == HostName::ANY {
            true => Ok(HostName(name.to_ascii_lowercase())),
            false => Err(HostNameError),
        }
    }
}

/// `name:80` and `[::1]:80` without the port.
fn without_port(authority: &str) -> Option<&str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(_) => authority.split_at(authority.find(']')? + 1),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let is_port = |digits: &str| digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
    (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then_some(host)
}

fn is_address(host: &str) -> bool {
    let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match v6 {
        Some(text) => text.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<IpAddr>().is_ok_and(|address| address.is_ipv4()),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn check(version: Version, uri: &str, given: &[&str]) -> Result<(), HostFault> {
        let hosts = Hosts::new("web-1", ["gate.example.org".parse().unwrap()]);
        let mut headers = HeaderMap::new();
        for host in given {
            headers.append(HOST, HeaderValue::from_bytes(host.as_bytes()).unwrap());
        }
        hosts.check(&Head { version, uri: &uri.parse().unwrap(), headers: &headers })
    }

    #[test]
    fn known_names_and_all_addresses_are_let_in() {
        let good = [
            "localhost",
            "LocalHost:5000",
            "localhost.",
            "web-1",
            "WEB-1:80",
            "gate.example.org",
            "127.0.0.1:5000",
            "192.0.2.7",
            "[::1]",
            "[2001:db8::1]:5000",
        ];
        for host in good {
            assert_eq!(check(Version::HTTP_11, "/", &[host]), Ok(()), "{host}");
        }
    }

    #[test]
    fn a_name_that_somebody_else_may_point_here_is_not() {
        let foreign = [
            "evil.example",
            "evil.example:5000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "web-1.evil.example",
            "evil-localhost",
            "example.org",
            "2130706433.example",
            "0x7f000001",
        ];
        for host in foreign {
            let refused = check(Version::HTTP_11, "/", &[host]);
            assert!(matches!(refused, Err(HostFault::Unknown(_))), "{host}: {refused:?}");
        }
    }

    #[test]
    fn what_is_no_host_is_not_guessed_at() {
        let table = [
            (&[][..], HostFault::Missing),
            (&["localhost", "localhost"], HostFault::Several),
            (&["evil.example", "localhost"], HostFault::Several),
            (&[""], HostFault::Unreadable),
            (&["localhost@evil.example"], HostFault::Unreadable),
            (&["evil.example:80@localhost"], HostFault::Unreadable),
            (&["localhost/x"], HostFault::Unreadable),
            (&["localhost,evil.example"], HostFault::Unreadable),
            (&["localhost:port"], HostFault::Unreadable),
            (&["[::1"], HostFault::Unreadable),
            (&["::1"], HostFault::Unreadable),
            (&["l\u{f6}calhost"], HostFault::Unreadable),
        ];
        for (given, fault) in table {
            assert_eq!(check(Version::HTTP_11, "/", given), Err(fault), "{given:?}");
        }
        assert_eq!(
            check(Version::HTTP_10, "/", &[]),
            Ok(()),
            "HTTP/1.0 knows no Host, and no browser speaks it"
        );
    }

    #[test]
    fn the_address_of_the_request_counts_too() {
        assert_eq!(check(Version::HTTP_11, "http://localhost/", &["localhost"]), Ok(()));
        for (uri, host) in [("http://evil.example/", "localhost"), ("http://localhost/", "evil.example")] {
            let refused = check(Version::HTTP_11, uri, &[host]);
            assert!(matches!(refused, Err(HostFault::Unknown(_))), "{uri} {host}: {refused:?}");
        }
    }

    #[test]
    fn a_star_lets_every_name_in() {
        let hosts = Hosts::new("web-1", ["*".parse().unwrap()]);
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("evil.example"));
        let head = Head { version: Version::HTTP_11, uri: &Uri::from_static("/"), headers: &headers };
        assert_eq!(hosts.check(&head), Ok(()));
        for bad in ["", "a b", "a:80", "a..b", "http://a", &"a".repeat(254)] {
            assert_eq!(bad.parse::<HostName>(), Err(HostNameError), "{bad}");
        }
    }
}
