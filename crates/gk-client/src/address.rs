//! Where a server is: `http://host:port`, `https://host:port` or `unix:PATH`.
//!
//! Parsing is strict, because a token is sent to whatever comes out of it: no user name, no path, no query, no
//! address without a scheme. `Display` gives back what was parsed.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use gk_model::port::Port;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ServerAddress {
    /// TCP in clear.
    Http(Authority),
    /// TCP with TLS, always verified.
    Https(Authority),
    /// A Unix socket on this machine.
    Unix(PathBuf),
}

/// Host and port of a server. The port may be left out, as in every URL: 80, or 443 with TLS.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authority {
    host: String,
    port: Option<Port>,
}

/// Why a text is no address of a server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a server address: {reason}")]
pub struct AddressError {
    text: String,
    reason: &'static str,
}

impl ServerAddress {
    /// Whether what is sent there stays on this machine: a Unix socket, a loopback address, or `localhost`.
    pub fn is_local(&self) -> bool {
        match self {
            ServerAddress::Unix(_) => true,
            ServerAddress::Http(authority) | ServerAddress::Https(authority) => authority.is_loopback(),
        }
    }

    /// Whether it is the same place as `other`, and by TLS now.
    pub fn secures(&self, other: &ServerAddress) -> bool {
        matches!((self, other), (ServerAddress::Https(here), ServerAddress::Http(there)) if here == there)
    }
}

impl Authority {
    /// The host as certificates name it: without the brackets of an IPv6 address.
    pub(crate) fn bare_host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    fn is_loopback(&self) -> bool {
        let bare = self.bare_host();
        bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl FromStr for ServerAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<ServerAddress, AddressError> {
        let refuse = |reason| AddressError { text: excerpt(text), reason };
        let (scheme, rest) = text
            .trim()
            .split_once(':')
            .ok_or_else(|| refuse("write http://HOST:PORT, https://HOST:PORT or unix:PATH"))?;
        let authority = || {
            let rest =
                rest.strip_prefix("//").ok_or("two slashes follow the scheme, as in http://HOST:PORT")?;
            parse_authority(rest.strip_suffix('/').unwrap_or(rest))
        };
        match scheme.to_ascii_lowercase().as_str() {
            "http" => authority().map(ServerAddress::Http).map_err(refuse),
            "https" => authority().map(ServerAddress::Https).map_err(refuse),
            "unix" if rest.is_empty() => Err(refuse("a path follows `unix:`")),
            "unix" => Ok(ServerAddress::Unix(PathBuf::from(rest))),
            _ => Err(refuse("it starts with http://, https:// or unix:")),
        }
    }
}

fn parse_authority(text: &str) -> Result<Authority, &'static str> {
    if text.contains('@') {
        return Err("it may not hold a user name or a password");
    }
    if text.contains(['/', '?', '#']) {
        return Err("it ends with the port, without a path");
    }
    let host_ends = text.find(']').map_or_else(|| text.find(':').unwrap_or(text.len()), |end| end + 1);
    let (host, port) = text.split_at(host_ends);
    if !is_host(host) {
        return Err("the host is a name, an IPv4 address, or an IPv6 address in brackets");
    }
    let port = match port.strip_prefix(':') {
        Some(number) => Some(number.parse().map_err(|_| "the port is a number from 1 to 65535")?),
        None if port.is_empty() => None,
        None => return Err("the port follows the host after a colon"),
    };
    Ok(Authority { host: host.to_owned(), port })
}

fn is_host(text: &str) -> bool {
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inside) => inside.parse::<Ipv6Addr>().is_ok(),
        None => {
            !text.is_empty()
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
        }
    }
}

/// At most 80 characters of what was typed, without control characters and without anything that may be a password.
fn excerpt(text: &str) -> String {
    let shown = text.rsplit_once('@').map_or(text, |(_, after)| after);
    shown.chars().take(80).flat_map(char::escape_debug).collect()
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerAddress::Http(authority) => write!(f, "http://{authority}"),
            ServerAddress::Https(authority) => write!(f, "https://{authority}"),
            ServerAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_its_text_form() {
        for good in
            ["http://127.0.0.1:5000", "https://gk.example", "http://[::1]:80", "unix:/run/gk.sock", "unix:gk"]
        {
            assert_eq!(good.parse::<ServerAddress>().unwrap().to_string(), good);
        }
        assert_eq!("HTTP://web-1:5000/".parse::<ServerAddress>().unwrap().to_string(), "http://web-1:5000");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bad in [
            "",
            "web-1",
            "web-1:5000",
            "127.0.0.1:5000",
            "ftp://web-1",
            "http:web-1",
            "http://",
            "http://:5000",
            "http://web-1:0",
            "http://web-1:65536",
            "http://web-1:",
            "http://web-1/v1",
            "http://web-1?x=1",
            "http://ada:hunter2@web-1:5000",
            "http://::1:5000",
            "http://[::1",
            "http://[web]:1",
            "http://[::1]5",
            "http://a b:1",
            "unix:",
        ] {
            let error = bad.parse::<ServerAddress>().expect_err(bad);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_same_place_by_tls_is_no_other_server() {
        let secures =
            |one: &str, other: &str| one.parse::<ServerAddress>().unwrap().secures(&other.parse().unwrap());
        assert!(secures("https://web-1:5000", "http://web-1:5000"));
        assert!(!secures("https://web-1:5001", "http://web-1:5000"));
        assert!(!secures("https://web-2:5000", "http://web-1:5000"));
        assert!(!secures("http://web-1:5000", "https://web-1:5000"), "and never the other way");
    }

    #[test]
    fn local_is_what_never_leaves_this_machine() {
        let local = |text: &str| text.parse::<ServerAddress>().unwrap().is_local();
        assert!(
            ["unix:/x", "http://localhost:1", "http://127.9.9.9:1", "http://[::1]"].into_iter().all(local)
        );
        assert!(
            !["http://web-1:1", "http://10.0.0.1:1", "http://localhost.evil:1", "http://0.0.0.0:1"]
                .into_iter()
                .any(local)
        );
    }
}
