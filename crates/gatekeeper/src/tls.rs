//! How the server is to prove who it is: options, and what follows from them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args as ClapArgs, ValueEnum};
use gk_model::time::Timestamp;
use gk_server::{Cidr, Tls, TlsName, TlsSource};

#[derive(ClapArgs)]
#[command(next_help_heading = "TLS")]
pub(crate) struct TlsArgs {
    /// auto: serve HTTPS by an authority of its own, made and kept in the data directory. The pin that other machines join
    /// with is told at start.
    #[arg(
        long,
        env = "GATEKEEPER_TLS",
        hide_env_values = true,
        value_enum,
        value_name = "auto",
        hide_possible_values = true
    )]
    tls: Option<Mode>,
    /// A name or an address by which other machines reach the server; may be repeated. With --tls auto the certificate is for
    /// these, the host name, the addresses listened on, and this machine itself.
    #[arg(
        long,
        env = "GATEKEEPER_TLS_NAME",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "NAME"
    )]
    tls_name: Vec<TlsName>,
    /// Serve HTTPS with the certificate in this file: PEM, followed by those that lead to its authority. Read again by itself
    /// when it changes.
    #[arg(long, env = "GATEKEEPER_TLS_CERT", hide_env_values = true, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The key of that certificate: PEM, and readable by its owner only.
    #[arg(long, env = "GATEKEEPER_TLS_KEY", hide_env_values = true, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Believe a proxy at this address, or in this range (10.0.0.0/8), when it says by X-Forwarded-For or Forwarded whom it
    /// speaks for; may be repeated.
    #[arg(
        long,
        env = "GATEKEEPER_TRUSTED_PROXY",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "CIDR"
    )]
    pub(crate) trusted_proxy: Vec<Cidr>,
}

/// Where a certificate comes from when not from files.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// From an authority of the server's own.
    Auto,
}

impl TlsArgs {
    /// Whether the options agree, wherever each of them comes from.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        match (&self.tls_cert, &self.tls_key, self.tls) {
            (Some(_), None, _) => bail!("--tls-cert needs --tls-key: the key of that certificate"),
            (None, Some(_), _) => bail!("--tls-key needs --tls-cert: the certificate that the key is for"),
            (Some(_), Some(_), Some(Mode::Auto)) => {
                bail!("--tls auto makes a certificate, and --tls-cert brings one: leave one of them out")
            }
            _ => Ok(()),
        }
    }

    /// Whether HTTPS is served at all.
    pub(crate) fn is_wanted(&self) -> bool {
        self.tls.is_some() || self.tls_cert.is_some()
    }

    /// The certificate, if one is wanted. The data directory is ours by now.
    pub(crate) fn open(&self, data: &Path, listen: SocketAddr) -> anyhow::Result<Option<Tls>> {
        let source = match (&self.tls_cert, &self.tls_key, self.tls) {
            (Some(certificate), Some(key), _) => {
                TlsSource::Files { certificate: certificate.clone(), key: key.clone() }
            }
            (_, _, Some(Mode::Auto)) => {
                TlsSource::Auto { directory: data.join("tls"), names: self.names(listen) }
            }
            _ => return Ok(None),
        };
        Tls::open(source, Timestamp::from_clock()).map(Some).context("cannot serve HTTPS")
    }

    /// Sorted, because another order is no other certificate.
    fn names(&self, listen: SocketAddr) -> Vec<TlsName> {
        let facts = gk_scan::facts("");
        let listening: Vec<IpAddr> =
            if listen.ip().is_unspecified() { facts.addresses } else { vec![listen.ip()] };
        let told = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into_iter();
        let found = told
            .chain(listening.iter().map(ToString::to_string))
            .chain([facts.host_name.to_string()])
            // A host name that no certificate can be for is one that nobody can ask by.
            .filter_map(|name| name.parse().ok());
        let all: BTreeSet<TlsName> = found.chain(self.tls_name.iter().cloned()).collect();
        all.into_iter().collect()
    }

    /// Where other machines reach the server, as far as it can be told from here. With a certificate from files that is one
    /// of the names in it, `certified`: by another one nobody would believe it.
    pub(crate) fn url(&self, address: SocketAddr, certified: &[String]) -> String {
        let scheme = if self.is_wanted() { "https" } else { "http" };
        let told = self.tls_name.first().map(ToString::to_string);
        let certified = certified.first().filter(|_| self.tls_cert.is_some()).cloned();
        let host = match told.or(certified) {
            Some(name) => name,
            None if address.ip().is_unspecified() => gk_scan::facts("").host_name.to_string(),
            None => address.ip().to_string(),
        };
        let port = address.port();
        match host.parse::<IpAddr>() {
            Ok(ip) => format!("{scheme}://{}", SocketAddr::new(ip, port)),
            Err(_) => format!("{scheme}://{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(tls: Option<Mode>, names: &[&str]) -> TlsArgs {
        let tls_name = names.iter().map(|name| name.parse().unwrap()).collect();
        TlsArgs { tls, tls_name, tls_cert: None, tls_key: None, trusted_proxy: Vec::new() }
    }

    #[test]
    fn a_certificate_is_for_whatever_the_server_is_reached_by() {
        let names = |listen: &str, more: &[&str]| -> Vec<String> {
            let names = args(Some(Mode::Auto), more).names(listen.parse().unwrap());
            names.iter().map(ToString::to_string).collect()
        };
        let told = names("192.0.2.7:5000", &["gk.example", "GK.example"]);
        for name in ["127.0.0.1", "192.0.2.7", "::1", "gk.example", "localhost"] {
            assert_eq!(told.iter().filter(|told| *told == name).count(), 1, "{name} in {told:?}");
        }
        assert_eq!(told, names("192.0.2.7:5000", &["gk.example"]), "the same names, the same certificate");
        assert!(!names("0.0.0.0:5000", &[]).contains(&"0.0.0.0".to_owned()));
    }

    #[test]
    fn the_url_for_others_is_by_name_where_one_is_told() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let https = |names| args(Some(Mode::Auto), names);
        let auto = |names, listen: &str| https(names).url(address(listen), &["localhost".to_owned()]);
        assert_eq!(auto(&["gk.example"], "0.0.0.0:5000"), "https://gk.example:5000");
        assert_eq!(auto(&["2001:db8::1"], "[::]:5000"), "https://[2001:db8::1]:5000");
        assert_eq!(auto(&[], "192.0.2.7:5000"), "https://192.0.2.7:5000");
        assert_eq!(args(None, &[]).url(address("127.0.0.1:5000"), &[]), "http://127.0.0.1:5000");
        let host = gk_scan::facts("").host_name.to_string();
        assert_eq!(auto(&[], "0.0.0.0:5000"), format!("https://{host}:5000"));
        let files = TlsArgs { tls_cert: Some("cert.pem".into()), ..args(None, &[]) };
        let certified = ["gk.example".to_owned(), "192.0.2.7".to_owned()];
        assert_eq!(files.url(address("0.0.0.0:5000"), &certified), "https://gk.example:5000");
    }
}
