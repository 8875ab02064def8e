//! TLS of the server: which certificate it shows, and how that changes while it runs.
//!
//! Certificate and key come from files of the operator, or are made here (`authority.rs`). Either way they are looked at
//! every few seconds and whenever [`Tls::reload`] is called; connections that begin afterwards see the new ones. What cannot
//! be used is said in the log, once, and what was shown before goes on being shown.
//!
//! Sessions are not resumed: clients keep their connections, and every new one is verified anew.

mod authority;
mod certificate;
mod files;
mod handshake;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use gk_model::pin::Pin;
use gk_model::time::Timestamp;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::{Notify, watch};

use crate::app::Clock;
use crate::error::chain;
use crate::serve::stopped;

pub(crate) use handshake::handshake;

use certificate::Told;

/// So long before its end a certificate should have been renewed. One that is made here is, a month before.
const WARN_BEFORE: Duration = Duration::from_hours(14 * 24);

/// How often that is said, until somebody does.
const WARN_EVERY: Duration = Duration::from_hours(24);

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// Where certificate and key come from.
#[derive(Clone, Debug)]
pub enum TlsSource {
    /// From the operator, in PEM.
    Files {
        /// The server's certificate, followed by those that lead to its authority.
        certificate: PathBuf,
        /// The key, readable by its owner only.
        key: PathBuf,
    },
    /// From an authority of the server's own.
    Auto {
        /// Where it keeps authority and certificate.
        directory: PathBuf,
        /// The names in the certificate.
        names: Vec<TlsName>,
    },
}

/// A name in a certificate: of DNS, or an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TlsName(String);

/// A text that no certificate can be for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither a DNS name nor an IP address")]
pub struct TlsNameError(String);

impl FromStr for TlsName {
    type Err = TlsNameError;

    fn from_str(text: &str) -> Result<TlsName, TlsNameError> {
        match ServerName::try_from(text) {
            Ok(name) => Ok(TlsName(name.to_str().to_ascii_lowercase())),
            Err(_) => Err(TlsNameError(text.chars().take(80).flat_map(char::escape_debug).collect())),
        }
    }
}

impl fmt::Display for TlsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why there is no certificate to show.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or written.
    #[error("cannot use {}", .file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("there is no {what} in {}: it has to be PEM", .file.display())]
    Missing {
        /// The file.
        file: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// A file is no PEM.
    #[error("{} is not PEM: {why}", .file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A key is for more eyes than its owner's.
    #[error("the private key {} can be read by other accounts (mode {mode:04o}): `chmod 600` it", .file.display())]
    Exposed {
        /// The file.
        file: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Certificate and key cannot be used together.
    #[error("{} and {} are no pair of certificate and key", .certificate.display(), .key.display())]
    Pair {
        /// The file with the certificate.
        certificate: PathBuf,
        /// The file with the key.
        key: PathBuf,
        /// What the TLS library says.
        #[source]
        error: rustls::Error,
    },
    /// An authority's file is damaged.
    #[error(
        "{} is damaged: bring it back from a backup. Without `ca.pem` the authority that was announced to all machines takes \
         over; without both it is made anew, and every machine has to join again", .0.display()
    )]
    Damaged(PathBuf),
    /// The library makes no certificate of it.
    #[error("cannot make a certificate: {0}")]
    Make(String),
}

/// The server's certificate. Clones share it.
#[derive(Clone, Debug)]
pub struct Tls(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    source: TlsSource,
    config: Arc<ServerConfig>,
    shown: Arc<Shown>,
    seen: Mutex<Seen>,
    asked: Notify,
}

/// What is shown to clients now.
#[derive(Debug)]
struct Shown(RwLock<Loaded>);

#[derive(Clone, Debug)]
struct Loaded {
    pair: files::Pair,
    pins: Vec<Pin>,
    told: Told,
}

impl Loaded {
    fn new(pair: CertifiedKey, pins: Vec<Pin>) -> Loaded {
        Loaded { told: Told::by(&pair), pair: Arc::new(pair), pins }
    }
}

impl Shown {
    fn get(&self) -> Loaded {
        // Whoever panicked while holding it had replaced all or nothing.
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get().pair)
    }
}

/// What was found when files were last looked at.
#[derive(Debug)]
struct Seen {
    traces: Vec<files::Trace>,
    renew_at: Option<Timestamp>,
    /// When it was last said that the certificate ends.
    warned_at: Option<Timestamp>,
}

impl Seen {
    /// Whether it is to be said, and notes that it is.
    fn warns(&mut self, ends_at: Option<Timestamp>, now: Timestamp) -> bool {
        let is_near = ends_at.is_some_and(|end| end.minus(WARN_BEFORE) <= now);
        let is_due = is_near && self.warned_at.is_none_or(|at| at.plus(WARN_EVERY) <= now);
        if is_due {
            self.warned_at = Some(now);
        }
        is_due
    }
}

impl Tls {
    /// Reads certificate and key, or makes them.
    ///
    /// # Errors
    /// [`TlsError`] when there is none to begin with.
    pub fn open(source: TlsSource, now: Timestamp) -> Result<Tls, TlsError> {
        let (loaded, seen) = load(&source, now)?;
        let shown = Arc::new(Shown(RwLock::new(loaded)));
        let config = make_config(Arc::clone(&shown)).map_err(|error| TlsError::Make(error.to_string()))?;
        let seen = Mutex::new(seen);
        Ok(Tls(Arc::new(Shared { source, config: Arc::new(config), shown, seen, asked: Notify::new() })))
    }

    /// The keys that vouch for this server: the current one, and the one announced to follow it.
    pub fn pins(&self) -> Vec<Pin> {
        self.0.shown.get().pins
    }

    /// When the certificate that is shown now ends.
    pub fn ends_at(&self) -> Option<Timestamp> {
        self.0.shown.get().told.ends_at
    }

    /// The names and addresses that the certificate is for, without wildcards.
    pub fn names(&self) -> Vec<String> {
        self.0.shown.get().told.names
    }

    /// Whether a client that asks for this address believes the certificate.
    pub fn is_for(&self, address: IpAddr) -> bool {
        self.0.shown.get().told.is_for(address)
    }

    /// Looks at the files soon, whether they seem to have changed or not.
    pub fn reload(&self) {
        self.forget();
        self.0.asked.notify_one();
    }

    fn forget(&self) {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner).traces.clear();
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.config)
    }

    /// Takes over what has changed. Blocks on files, and the time of making a key.
    fn look(&self, now: Timestamp) {
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let traces = traces(&self.0.source);
        let is_due = seen.renew_at.is_some_and(|at| at <= now);
        if traces != seen.traces || is_due {
            self.load_again(&mut seen, traces, now);
        }
        let ends_at = self.ends_at();
        if seen.warns(ends_at, now) {
            tracing::warn!(
                tls.ends_at = ends_at.map(tracing::field::display),
                "the certificate ends soon, and clients will refuse it then: renew the files, which are read again by \
                 themselves"
            );
        }
    }

    fn load_again(&self, seen: &mut Seen, traces: Vec<files::Trace>, now: Timestamp) {
        match load(&self.0.source, now) {
            Ok((loaded, found)) => {
                let pin = loaded.pins.first().map(tracing::field::display);
                tracing::info!(tls.pin = pin, "new connections see the certificate that is in the files now");
                *self.0.shown.0.write().unwrap_or_else(PoisonError::into_inner) = loaded;
                *seen = found;
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "the certificate shown until now stays in use");
                // Not again before something changes, or an hour later where it is made here.
                let renew_at = seen.renew_at.map(|_| now.plus(Duration::from_secs(3_600)));
                (seen.traces, seen.renew_at) = (traces, renew_at);
            }
        }
    }
}

fn make_config(shown: Arc<Shown>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Traces before contents: what changes in between differs at the next look.
fn load(source: &TlsSource, now: Timestamp) -> Result<(Loaded, Seen), TlsError> {
    match source {
        TlsSource::Files { certificate, key } => {
            let seen = Seen { traces: traces(source), renew_at: None, warned_at: None };
            let pair = files::read(certificate, key)?;
            let pins = files::pin_of_authority(&pair).into_iter().collect();
            Ok((Loaded::new(pair, pins), seen))
        }
        TlsSource::Auto { directory, names } => {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            let authority::Issued { pins, renew_at } = authority::ensure(directory, &names, now)?;
            let seen = Seen { traces: traces(source), renew_at: Some(renew_at), warned_at: None };
            let file = directory.join(authority::SERVER_FILE);
            Ok((Loaded::new(files::read(&file, &file)?, pins), seen))
        }
    }
}

fn traces(source: &TlsSource) -> Vec<files::Trace> {
    match source {
        TlsSource::Files { certificate, key } => vec![files::trace(certificate), files::trace(key)],
        TlsSource::Auto { directory, .. } => {
            let names = [authority::CA_FILE, authority::NEXT_FILE, authority::SERVER_FILE];
            names.iter().map(|name| files::trace(&directory.join(name))).collect()
        }
    }
}

/// Keeps the certificate up to date until the server stops.
pub(crate) async fn keep(tls: Tls, clock: Clock, mut stop: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = tls.0.asked.notified() => {}
            () = stopped(&mut stop) => return,
        }
        let (tls, now) = (tls.clone(), clock());
        if tokio::task::spawn_blocking(move || tls.look(now)).await.is_err() {
            tracing::error!("looking at the certificate panicked; it stays as it is");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_said_two_weeks_before_and_then_daily() {
        let end = Timestamp::from_micros(1_700_000_000_000_000);
        let mut seen = Seen { traces: Vec::new(), renew_at: None, warned_at: None };
        let mut at = |hours_before: u64| seen.warns(Some(end), end.minus(Duration::from_hours(hours_before)));
        let table =
            [(1000, false), (337, false), (336, true), (335, false), (313, false), (312, true), (0, true)];
        for (hours_before, said) in table {
            assert_eq!(at(hours_before), said, "{hours_before} hours before");
        }
        assert!(seen.warns(Some(end), end.plus(Duration::from_hours(24))), "and after it has ended");
        assert!(!Seen { traces: Vec::new(), renew_at: None, warned_at: None }.warns(None, end));
    }
}
