//! TLS to a server: whose certificate is believed, and the bytes of a connection.
//!
//! A client that holds pins believes a certificate exactly if one of the pinned keys is behind it: a certificate with
//! that key was sent along and signed it, or it has that key itself; and if names and dates are right. Nobody else's word
//! counts then, and the system's authorities are not even read. Without pins, they decide. There is no third way, and
//! none to skip the question.
//!
//! The pins of a client can be renewed while it lives, because a server announces the key that is to follow.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use gk_model::pin::Pin;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme, StreamOwned,
};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};

use crate::distrust::Distrust;

/// The pins of a client and all its clones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pins(Arc<RwLock<Vec<Pin>>>);

impl Pins {
    pub(crate) fn new(pins: Vec<Pin>) -> Pins {
        Pins(Arc::new(RwLock::new(pins)))
    }

    pub(crate) fn get(&self) -> Vec<Pin> {
        // Whoever panicked while holding it had written all or nothing.
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over what the server announced. A list that shares no key with ours is not: then somebody made a mistake, and
    /// to follow would be to lock ourselves out. Nor is any, where the system's authorities are trusted.
    pub(crate) fn renew(&self, announced: Vec<Pin>) {
        let mut pins = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if pins.iter().any(|pin| announced.contains(pin)) {
            *pins = announced;
        }
    }
}

/// How connections to one server are secured.
#[derive(Debug)]
pub(crate) struct Tls {
    host: String,
    pins: Pins,
    /// Made for the first connection: many clients never open one.
    config: OnceLock<Arc<ClientConfig>>,
}

impl Tls {
    pub(crate) fn new(host: &str, pins: Pins) -> Tls {
        Tls { host: host.to_owned(), pins, config: OnceLock::new() }
    }

    /// Shakes hands over a fresh connection. What comes back belongs to the server that is meant.
    pub(crate) fn secure(
        &self,
        plain: Box<dyn Transport>,
        details: &ConnectionDetails,
    ) -> io::Result<TlsTransport> {
        let invalid =
            |error: &dyn fmt::Display| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
        let name = ServerName::try_from(self.host.clone()).map_err(|error| invalid(&error))?;
        let mut conn = ClientConnection::new(self.config()?, name).map_err(io::Error::other)?;
        let mut sock = TransportAdapter::new(plain, Arc::clone(&details.current_time));
        sock.set_timeout(details.timeout);
        while conn.is_handshaking() {
            conn.complete_io(&mut sock)?;
        }
        let buffers =
            LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(TlsTransport { stream: StreamOwned { conn, sock }, buffers })
    }

    fn config(&self) -> io::Result<Arc<ClientConfig>> {
        if let Some(config) = self.config.get() {
            return Ok(Arc::clone(config));
        }
        let config = make_config(&self.pins)?;
        Ok(Arc::clone(self.config.get_or_init(|| config)))
    }
}

fn make_config(pins: &Pins) -> io::Result<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let mut config = if pins.get().is_empty() {
        builder.with_root_certificates(system_roots()?).with_no_client_auth()
    } else {
        let verifier = PinVerifier { pins: pins.clone(), provider };
        // Dangerous is what a verifier of one's own might leave out; this one adds to what the library checks.
        builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A resumed session is not verified again. Connections are kept anyway, so resuming would save nothing.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The machine's own store, or what `SSL_CERT_FILE` names. Single certificates in it that cannot be read are left out, as
/// every TLS client does.
fn system_roots() -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    match roots.is_empty() {
        true => Err(io::Error::other(Distrust::NoAuthorities)),
        false => Ok(roots),
    }
}

/// Believes the pinned keys.
#[derive(Debug)]
struct PinVerifier {
    pins: Pins,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let leaf = ParsedCertificate::try_from(end_entity)?;
        let pins = self.pins.get();
        let is_pinned =
            |certificate: &CertificateDer<'_>| pin_of(certificate).is_some_and(|pin| pins.contains(&pin));
        if is_pinned(end_entity) {
            // The handshake proves that the server has this very key; no signature of anybody could add to that.
            self.check_dates(&leaf, now)?;
        } else {
            let mut anchors = RootCertStore::empty();
            for certificate in intermediates.iter().filter(|certificate| is_pinned(certificate)) {
                self.check_dates(&ParsedCertificate::try_from(certificate)?, now)?;
                anchors.add(certificate.clone().into_owned())?;
            }
            if anchors.is_empty() {
                let chain = std::iter::once(end_entity).chain(intermediates);
                let presented = chain.filter_map(pin_of).collect();
                return Err(distrust(Distrust::Unpinned { expected: pins, presented }));
            }
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&leaf, &anchors, intermediates, now, algorithms)
                .map_err(|error| match error {
                    rustls::Error::InvalidCertificate(
                        CertificateError::UnknownIssuer | CertificateError::BadSignature,
                    ) => distrust(Distrust::NotSigned),
                    other => other,
                })?;
        }
        verify_server_name(&leaf, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl PinVerifier {
    /// Whether a certificate is valid now, whoever signed it. The library has no function for that alone; but it looks at
    /// the dates before it looks for a signer, and there is none to be found here. (Tests hold it to that.)
    fn check_dates(&self, certificate: &ParsedCertificate<'_>, now: UnixTime) -> Result<(), rustls::Error> {
        use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
        let algorithms = self.provider.signature_verification_algorithms.all;
        let nobody = RootCertStore::empty();
        match verify_server_cert_signed_by_trust_anchor(certificate, &nobody, &[], now, algorithms) {
            Err(rustls::Error::InvalidCertificate(
                date @ (Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }),
            )) => Err(date.into()),
            _ => Ok(()),
        }
    }
}

/// The pin of the key in a certificate, as the same parser reads it that verifies signatures with it.
fn pin_of(certificate: &CertificateDer<'_>) -> Option<Pin> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    Some(Pin::of_public_key(&parsed.subject_public_key_info()))
}

fn distrust(why: Distrust) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(why))).into()
}

/// A connection that speaks TLS.
pub(crate) struct TlsTransport {
    stream: StreamOwned<ClientConnection, TransportAdapter>,
    buffers: LazyBuffers,
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.sock.set_timeout(timeout);
        self.stream.write_all(&self.buffers.output()[..amount])?;
        Ok(self.stream.flush()?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.sock.set_timeout(timeout);
        let amount = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.sock.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

impl fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsTransport").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

    use super::*;

    type Authority = CertifiedIssuer<'static, KeyPair>;

    const DAY: Duration = Duration::from_secs(86_400);

    fn params(name: &str, names: &[&str], days: std::ops::Range<i32>) -> CertificateParams {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        // Day 0 is the last of the year 1999.
        let date =
            |day: i32| rcgen::date_time_ymd(2000, 1, 1) + DAY * 1000 - DAY * (1000 - day).cast_unsigned();
        (params.not_before, params.not_after) = (date(days.start), date(days.end));
        params
    }

    fn authority(name: &str, days: std::ops::Range<i32>) -> Authority {
        let mut params = params(name, &[], days);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn leaf(by: &Authority, names: &[&str], days: std::ops::Range<i32>) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        params("leaf", names, days).signed_by(&key, by).unwrap().der().clone()
    }

    fn verify(pins: &[Pin], chain: &[&CertificateDer<'static>], name: &str, day: u32) -> Result<(), String> {
        let verifier =
            PinVerifier { pins: Pins::new(pins.to_vec()), provider: Arc::new(ring::default_provider()) };
        let rest: Vec<CertificateDer<'static>> = chain[1..].iter().map(|&one| one.clone()).collect();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(946_684_800) + DAY * day);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let verdict = verifier.verify_server_cert(chain[0], &rest, &name, &[], now);
        verdict.map(drop).map_err(|error| match error {
            rustls::Error::InvalidCertificate(error) => Distrust::named(&error).to_string(),
            other => panic!("no verdict on a certificate: {other}"),
        })
    }

    fn refused(verdict: Result<(), String>, why: &str) {
        let error = verdict.expect_err(why);
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn a_chain_is_believed_if_a_pinned_key_has_signed_it() {
        let (ours, theirs) = (authority("ours", 0..100), authority("theirs", 0..100));
        let good = leaf(&ours, &["gk.example", "192.0.2.7"], 10..50);
        let pin = pin_of(ours.der()).unwrap();
        let chain = [&good, ours.der()];
        assert_eq!(verify(&[pin], &chain, "gk.example", 20), Ok(()));
        assert_eq!(verify(&[pin], &chain, "192.0.2.7", 20), Ok(()));
        let next = pin_of(theirs.der()).unwrap();
        assert_eq!(verify(&[next, pin], &chain, "gk.example", 20), Ok(()), "any of several");
        assert_eq!(verify(&[pin], &[&good, theirs.der(), ours.der()], "gk.example", 20), Ok(()));

        refused(verify(&[next], &chain, "gk.example", 20), &format!("{next}"));
        refused(verify(&[next], &chain, "gk.example", 20), &format!("{pin}"));
        refused(verify(&[pin], &chain[..1], "gk.example", 20), "has none of the pinned keys");
        refused(verify(&[pin], &chain, "evil.example", 20), "gk.example");
        refused(verify(&[pin], &chain, "192.0.2.8", 20), "192.0.2.7");
        refused(verify(&[pin], &chain, "gk.example", 51), "expired");
        refused(verify(&[pin], &chain, "gk.example", 5), "not valid yet");
    }

    #[test]
    fn a_pinned_certificate_that_is_only_sent_along_proves_nothing() {
        let (ours, theirs) = (authority("ours", 0..100), authority("theirs", 0..100));
        let pin = pin_of(ours.der()).unwrap();
        let forged = leaf(&theirs, &["gk.example"], 0..100);
        refused(verify(&[pin], &[&forged, ours.der()], "gk.example", 20), "not signed");
        refused(verify(&[pin], &[&forged, theirs.der(), ours.der()], "gk.example", 20), "not signed");
        // The same name as the pinned authority, and another key.
        let forged = leaf(&authority("ours", 0..100), &["gk.example"], 0..100);
        refused(verify(&[pin], &[&forged, ours.der()], "gk.example", 20), "not signed");
        // A certificate of ours is no authority, although one has signed it.
        let mine = KeyPair::generate().unwrap();
        let mine = CertifiedIssuer::signed_by(params("mine", &["gk.example"], 0..100), mine, &ours).unwrap();
        let below = leaf(&mine, &["gk.example"], 0..100);
        assert!(verify(&[pin], &[&below, mine.der(), ours.der()], "gk.example", 20).is_err());
    }

    #[test]
    fn dates_of_the_authority_count_too() {
        let ours = authority("ours", 0..30);
        let good = leaf(&ours, &["gk.example"], 0..100);
        let pin = pin_of(ours.der()).unwrap();
        assert_eq!(verify(&[pin], &[&good, ours.der()], "gk.example", 20), Ok(()));
        refused(verify(&[pin], &[&good, ours.der()], "gk.example", 31), "expired");
    }

    #[test]
    fn a_pinned_leaf_needs_nobody_else_and_has_to_be_right_itself() {
        let signed = leaf(&authority("anybody", 0..100), &["gk.example"], 10..50);
        let is_ca = authority("gk.example", 10..50);
        let key = KeyPair::generate().unwrap();
        let own = params("own", &["gk.example"], 10..50).self_signed(&key).unwrap();
        for leaf in [&signed, own.der()] {
            let pin = pin_of(leaf).unwrap();
            assert_eq!(verify(&[pin], &[leaf], "gk.example", 20), Ok(()));
            refused(verify(&[pin], &[leaf], "evil.example", 20), "gk.example");
            refused(verify(&[pin], &[leaf], "gk.example", 51), "expired");
            refused(verify(&[pin], &[leaf], "gk.example", 5), "not valid yet");
        }
        let pin = pin_of(is_ca.der()).unwrap();
        refused(verify(&[pin], &[is_ca.der()], "gk.example", 51), "expired");
    }

    #[test]
    fn announced_pins_are_taken_from_those_who_are_trusted_already() {
        let [one, two, three, four] = [1, 2, 3, 4].map(|key| Pin::of_public_key(&[key]));
        let pins = Pins::new(vec![one, two]);
        let clone = pins.clone();
        pins.renew(vec![two, three]);
        assert_eq!(clone.get(), [two, three]);
        pins.renew(vec![four]);
        pins.renew(Vec::new());
        assert_eq!(clone.get(), [two, three], "no word of ours in it");
        let none = Pins::default();
        none.renew(vec![one]);
        assert_eq!(none.get(), [], "the system's authorities stay those who are asked");
    }
}
