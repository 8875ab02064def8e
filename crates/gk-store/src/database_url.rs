//! The address of a PostgreSQL database, and the rule that nothing crosses a network unprotected.
//!
//! Takes what `psql` takes, `postgres://USER@HOST:PORT/NAME?…`, and decides about TLS: on this machine (a Unix socket or
//! a loopback address) it is used when asked for, anywhere else always, and the server's certificate is always
//! verified. A password is kept out of everything that is shown.

use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

/// Where Debian's packages and libpq look for the socket when no host is named.
const DEFAULT_SOCKET_DIR: &str = "/var/run/postgresql";

/// A PostgreSQL database.
#[derive(Clone)]
pub struct DatabaseUrl {
    config: Config,
    root_certificates: Option<PathBuf>,
}

/// Why a text is no address of a database.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseUrlError {
    /// It does not begin as one.
    #[error(
        "a database is written postgres://USER@HOST:PORT/NAME; for SQLite leave it out and choose a directory with --data"
    )]
    NotPostgres,
    /// PostgreSQL's client library does not understand it.
    #[error("the database's address cannot be read: {0}")]
    Unreadable(String),
    /// TLS was switched off for a database on another machine.
    #[error(
        "the database is on another machine, and sslmode=disable would send everything in clear: leave it out"
    )]
    InClear,
}

impl FromStr for DatabaseUrl {
    type Err = DatabaseUrlError;

    fn from_str(text: &str) -> Result<DatabaseUrl, DatabaseUrlError> {
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err(DatabaseUrlError::NotPostgres);
        }
        let (text, root_certificates) = take_tls_parameters(text);
        let parsed: Result<Config, tokio_postgres::Error> = text.parse();
        // The source names the parameter; the error around it only says that there is one.
        let mut config = parsed.map_err(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            DatabaseUrlError::Unreadable(source.unwrap_or_else(|| error.to_string()))
        })?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            config.host_path(DEFAULT_SOCKET_DIR);
        }
        // Whatever follows the first @ is taken for the host, and a host is shown.
        if config.get_hosts().iter().any(|host| matches!(host, Host::Tcp(name) if name.contains('@'))) {
            return Err(DatabaseUrlError::Unreadable("an @ in a name or password is written %40".to_owned()));
        }
        config.ssl_mode(protection(&config)?);
        set_defaults(&mut config);
        Ok(DatabaseUrl { config, root_certificates })
    }
}

impl DatabaseUrl {
    /// Whether a password is part of it, which does not belong on a command line.
    pub fn has_password(&self) -> bool {
        self.config.get_password().is_some()
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn needs_tls(&self) -> bool {
        self.config.get_ssl_mode() == SslMode::Require
    }

    /// A file of certificates to trust instead of the system's.
    pub(crate) fn root_certificates(&self) -> Option<&Path> {
        self.root_certificates.as_deref()
    }
}

/// Without the password, and so that it names the same database when it is pasted.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut names, mut sockets) = (Vec::new(), Vec::new());
        for host in self.config.get_hosts() {
            match host {
                Host::Tcp(name) => names.push(name.clone()),
                Host::Unix(path) => sockets.push(path.display().to_string()),
            }
        }
        names.extend(self.config.get_hostaddrs().iter().map(IpAddr::to_string));
        f.write_str("postgres://")?;
        if let Some(user) = self.config.get_user() {
            write!(f, "{user}@")?;
        }
        f.write_str(&names.join(","))?;
        if let [port] = self.config.get_ports()
            && *port != 5432
        {
            write!(f, ":{port}")?;
        }
        write!(f, "/{}", self.config.get_dbname().unwrap_or_default())?;
        if sockets.is_empty() { Ok(()) } else { write!(f, "?host={}", sockets.join(",")) }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Takes out of an address what the client library leaves to us: `sslrootcert`, and the strict values of `sslmode`,
/// which are what `require` means here.
fn take_tls_parameters(text: &str) -> (String, Option<PathBuf>) {
    let Some((base, query)) = text.split_once('?') else { return (text.to_owned(), None) };
    let mut root_certificates = None;
    let mut kept = Vec::new();
    for parameter in query.split('&') {
        match parameter.split_once('=') {
            // What newer programs of PostgreSQL write for what is the default here.
            Some(("sslrootcert", "system")) => root_certificates = None,
            Some(("sslrootcert", path)) => root_certificates = Some(decode(path)),
            Some(("sslmode", "verify-ca" | "verify-full")) => kept.push("sslmode=require"),
            _ => kept.push(parameter),
        }
    }
    let separator = if kept.is_empty() { "" } else { "?" };
    (format!("{base}{separator}{}", kept.join("&")), root_certificates)
}

/// A path as it stands in an address: `%20` is a space.
fn decode(text: &str) -> PathBuf {
    let (mut decoded, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, after @ ..] = rest {
        let digit = |byte: &u8| char::from(*byte).to_digit(16);
        let byte = match (first, after) {
            (b'%', [high, low, ..]) => digit(high).zip(digit(low)).map(|(high, low)| high * 16 + low),
            _ => None,
        };
        decoded.push(byte.and_then(|byte| u8::try_from(byte).ok()).unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    PathBuf::from(OsString::from_vec(decoded))
}

fn protection(config: &Config) -> Result<SslMode, DatabaseUrlError> {
    let is_here = |host: &Host| match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()),
    };
    let local =
        config.get_hosts().iter().all(is_here) && config.get_hostaddrs().iter().all(IpAddr::is_loopback);
    match (local, config.get_ssl_mode()) {
        (true, SslMode::Require) | (false, SslMode::Prefer | SslMode::Require) => Ok(SslMode::Require),
        (true, _) => Ok(SslMode::Disable),
        (false, _) => Err(DatabaseUrlError::InClear),
    }
}

/// A network that swallows packets is noticed within seconds, and a standby is not written to.
fn set_defaults(config: &mut Config) {
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(Duration::from_secs(5));
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(Duration::from_secs(10));
    }
    if config.get_application_name().is_none() {
        config.application_name("gatekeeper");
    }
    config
        .keepalives_idle(Duration::from_secs(5))
        .keepalives_interval(Duration::from_secs(2))
        .keepalives_retries(3);
    config.target_session_attrs(TargetSessionAttrs::ReadWrite);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_crosses_a_network_in_clear() {
        // (address, TLS, or refused)
        let table = [
            ("postgres:///gatekeeper", Ok(false)),
            ("postgres://ada@localhost/gatekeeper", Ok(false)),
            ("postgres://ada@127.0.0.1:5433/gatekeeper?sslmode=prefer", Ok(false)),
            ("postgres://ada@localhost/gatekeeper?sslmode=verify-full&sslrootcert=/etc/ca.pem", Ok(true)),
            ("postgresql:///gatekeeper?host=/run/postgresql", Ok(false)),
            ("postgres://ada@db.example/gatekeeper", Ok(true)),
            ("postgres://ada@192.0.2.7/gatekeeper?sslmode=prefer", Ok(true)),
            ("postgres://ada@localhost,db.example/gatekeeper", Ok(true)),
            ("postgres://ada@db.example/gatekeeper?sslmode=disable", Err(DatabaseUrlError::InClear)),
            ("mysql://ada@db.example/gatekeeper", Err(DatabaseUrlError::NotPostgres)),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<DatabaseUrl>().map(|url| url.needs_tls()), expected, "{text}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let url: DatabaseUrl = "postgres://ada:sesame@db.example:5433/gatekeeper".parse().unwrap();
        assert!(url.has_password());
        assert_eq!(format!("{url} {url:?}"), ["postgres://ada@db.example:5433/gatekeeper"; 2].join(" "));
        let error =
            "postgres://ada:sesame@db.example/gatekeeper?sslmode=maybe".parse::<DatabaseUrl>().unwrap_err();
        assert!(!error.to_string().contains("sesame"), "{error}");
        let sly = "postgres://ada:open@sesame@db.example/g".parse::<DatabaseUrl>().unwrap_err().to_string();
        assert!(sly.contains("%40") && !sly.contains("sesame"), "{sly}");
    }

    #[test]
    fn what_is_shown_names_the_same_database() {
        for text in [
            "postgres://ada@localhost/gatekeeper",
            "postgres://ada@db.example:5433/gatekeeper",
            "postgres://ada@/gatekeeper?host=/run/postgresql",
        ] {
            assert_eq!(text.parse::<DatabaseUrl>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn the_file_of_certificates_is_ours_to_read() {
        let url: DatabaseUrl =
            "postgres://db.example/g?sslrootcert=/etc/ca.pem&connect_timeout=3".parse().unwrap();
        assert_eq!(url.root_certificates(), Some(Path::new("/etc/ca.pem")));
        let encoded: DatabaseUrl =
            "postgres://db.example/g?sslrootcert=%2Fetc%2Fmy%20ca%.pem".parse().unwrap();
        assert_eq!(encoded.root_certificates(), Some(Path::new("/etc/my ca%.pem")));
        let system: DatabaseUrl = "postgres://db.example/g?sslrootcert=system".parse().unwrap();
        assert_eq!(system.root_certificates(), None);
        assert_eq!(url.config().get_connect_timeout(), Some(&Duration::from_secs(3)));
    }
}
