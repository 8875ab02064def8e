//! What a certificate says: until when it is valid, and for whom.
//!
//! Asked of the library that clients verify with, by questions whose refusals tell it: no second parser of certificates
//! could disagree with theirs.

use std::net::IpAddr;
use std::time::Duration;

use gk_model::time::Timestamp;
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::ring;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, Error, RootCertStore};

/// The first second of the year 10000, by when every certificate has ended.
const AFTER_ALL: u64 = 253_402_300_800;

/// For nobody, ever (RFC 2606).
const NOBODY: &str = "gatekeeper.invalid";

/// What is asked of a server's own certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// When it ends.
    pub(super) ends_at: Option<Timestamp>,
    /// The names and addresses that it is for, as they stand in a URL but for brackets; without wildcards.
    pub(super) names: Vec<String>,
}

impl Told {
    /// Of the first certificate of a chain.
    pub(super) fn by(pair: &CertifiedKey) -> Told {
        let parsed = pair.cert.first().and_then(|first| ParsedCertificate::try_from(first).ok());
        parsed.map(|parsed| Told { ends_at: end(&parsed), names: names(&parsed) }).unwrap_or_default()
    }

    /// Whether a client that asks for this address believes it.
    pub(super) fn is_for(&self, address: IpAddr) -> bool {
        self.names.iter().any(|name| name.parse() == Ok(address))
    }
}

/// It looks at the dates before it looks for a signer, and there is none to be found.
fn end(certificate: &ParsedCertificate<'_>) -> Option<Timestamp> {
    let (nobody, algorithms) =
        (RootCertStore::empty(), ring::default_provider().signature_verification_algorithms);
    let then = UnixTime::since_unix_epoch(Duration::from_secs(AFTER_ALL));
    match verify_server_cert_signed_by_trust_anchor(certificate, &nobody, &[], then, algorithms.all) {
        Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            let micros = i64::try_from(not_after.as_secs()).ok()?.checked_mul(1_000_000)?;
            Some(Timestamp::from_micros(micros))
        }
        _ => None,
    }
}

fn names(certificate: &ParsedCertificate<'_>) -> Vec<String> {
    let nobody = ServerName::try_from(NOBODY).expect("it is a name");
    match verify_server_name(certificate, &nobody) {
        Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. })) => {
            let names = presented.iter().filter_map(|name| bare(name));
            names.filter(|name| ServerName::try_from(*name).is_ok()).map(str::to_owned).collect()
        }
        _ => Vec::new(),
    }
}

/// `DnsName("web-1")` and `IpAddress(10.0.0.1)`, as the library writes them.
fn bare(name: &str) -> Option<&str> {
    let (_, inside) = name.strip_suffix(')')?.split_once('(')?;
    Some(inside.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    fn told(names: &[&str], last_day: (i32, u8, u8)) -> Told {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = rcgen::date_time_ymd(last_day.0, last_day.1, last_day.2);
        let certificate = params.self_signed(&key).unwrap();
        let secret = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(ring::default_provider());
        Told::by(&CertifiedKey::from_der(vec![certificate.der().clone()], secret, &provider).unwrap())
    }

    #[test]
    fn a_certificate_tells_its_end_and_its_names() {
        let told_by = told(&["gk.example", "*.gk.example", "10.0.0.1", "2001:db8::1"], (2031, 5, 4));
        assert_eq!(told_by.ends_at.unwrap().to_string(), "2031-05-04T00:00:00.000000Z");
        assert_eq!(told_by.names, ["gk.example", "10.0.0.1", "2001:db8::1"], "nobody asks for a wildcard");
        let is_for = |address: &str| told_by.is_for(address.parse().unwrap());
        assert!(is_for("10.0.0.1") && is_for("2001:db8::1") && !is_for("127.0.0.1"));
        assert!(
            told(&["a"], (9999, 12, 31)).ends_at.is_some() && told(&["a"], (1990, 1, 1)).ends_at.is_some()
        );
        assert_eq!(told(&[], (2031, 5, 4)).names, Vec::<String>::new());
    }
}
