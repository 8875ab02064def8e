//! Why a server's certificate is not believed, in words that say what to do.

use std::io;

use gk_model::pin::Pin;
use gk_model::time::Timestamp;
use rustls::CertificateError;
use rustls::pki_types::UnixTime;

/// What is wrong with a certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// No pin is known, and the system's authorities do not know who signed it.
    #[error(
        "it is not signed by anybody whom this machine trusts: give the pin that the server prints at start with \
         --ca-pin or GATEKEEPER_CA_PIN, as in `gkctl instance join --ca-pin sha256:…`"
    )]
    UnknownIssuer,
    /// A certificate with a pinned key was sent along, and has not signed this one.
    #[error("it is not signed by the pinned key that was sent along: this is not the server that is meant")]
    NotSigned,
    /// None of the pinned keys.
    #[error(transparent)]
    Unpinned(#[from] Unpinned),
    /// It belongs to somebody else.
    #[error(
        "it is for {}, and not for {expected}: use one of these names in the server's address, or give the server \
         `--tls-name {expected}`", .presented.join(", ")
    )]
    WrongName {
        /// The host that was asked for.
        expected: String,
        /// The names in the certificate.
        presented: Vec<String>,
    },
    /// It was valid once.
    #[error(
        "it, or the authority behind it, has expired{}: renew it on the server, or set this machine's clock",
        moments(.not_after.as_ref(), .now.as_ref(), "ended")
    )]
    Expired {
        /// When it ended.
        not_after: Option<Timestamp>,
        /// The time here.
        now: Option<Timestamp>,
    },
    /// It will be valid one day.
    #[error(
        "it is not valid yet{}: set this machine's clock, or the server's",
        moments(.not_before.as_ref(), .now.as_ref(), "begins")
    )]
    NotYetValid {
        /// When it begins.
        not_before: Option<Timestamp>,
        /// The time here.
        now: Option<Timestamp>,
    },
    /// There is nobody to ask.
    #[error(
        "this machine knows no authorities to verify it with: give the pin that the server prints at start with \
         --ca-pin or GATEKEEPER_CA_PIN, or install ca-certificates"
    )]
    NoAuthorities,
    /// Anything else, in the words of the TLS library.
    #[error("{0}")]
    Other(String),
}

/// A chain without any pinned key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it has none of the pinned keys: pinned is {}, and the server shows {}. Either this is not the server that is meant, \
     or its authority was made anew; compare with what the server prints at start, and join again with `gkctl instance \
     join --ca-pin sha256:…`", list(.expected), list(.presented)
)]
pub struct Unpinned {
    /// The pins.
    pub expected: Vec<Pin>,
    /// The keys in the chain, the server's own first.
    pub presented: Vec<Pin>,
}

impl Distrust {
    /// What a failure says of the server's certificate, if that is why it failed.
    pub(crate) fn of(error: &ureq::Error) -> Option<Distrust> {
        let ureq::Error::Io(error) = error else { return None };
        let inner = error.get_ref()?;
        match inner.downcast_ref::<rustls::Error>() {
            Some(rustls::Error::InvalidCertificate(error)) => Some(Distrust::named(error)),
            _ => inner.downcast_ref::<Distrust>().cloned(),
        }
    }

    /// The TLS library's verdict in our words.
    pub(crate) fn named(error: &CertificateError) -> Distrust {
        use CertificateError as Error;
        match error {
            // A bad signature is that of another authority of the same name.
            Error::UnknownIssuer | Error::BadSignature => Distrust::UnknownIssuer,
            Error::Expired => Distrust::Expired { not_after: None, now: None },
            Error::ExpiredContext { time, not_after } => {
                Distrust::Expired { not_after: Some(timestamp(*not_after)), now: Some(timestamp(*time)) }
            }
            Error::NotValidYet => Distrust::NotYetValid { not_before: None, now: None },
            Error::NotValidYetContext { time, not_before } => Distrust::NotYetValid {
                not_before: Some(timestamp(*not_before)),
                now: Some(timestamp(*time)),
            },
            Error::NotValidForNameContext { expected, presented } => Distrust::WrongName {
                expected: expected.to_str().into_owned(),
                presented: presented.iter().map(|name| bare(name)).collect(),
            },
            Error::Other(rustls::OtherError(source)) => match source.downcast_ref::<Distrust>() {
                Some(distrust) => distrust.clone(),
                None => Distrust::Other(source.to_string()),
            },
            other => Distrust::Other(other.to_string()),
        }
    }
}

/// Whether the answer to a handshake was none.
pub(crate) fn speaks_no_tls(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidMessage(_)))
}

fn timestamp(time: UnixTime) -> Timestamp {
    Timestamp::from_micros(i64::try_from(time.as_secs()).unwrap_or(i64::MAX).saturating_mul(1_000_000))
}

fn moments(at: Option<&Timestamp>, now: Option<&Timestamp>, verb: &str) -> String {
    match (at, now) {
        (Some(at), Some(now)) => format!(" (it {verb} at {at}, and it is {now} here)"),
        _ => String::new(),
    }
}

fn list(pins: &[Pin]) -> String {
    let pins: Vec<String> = pins.iter().map(ToString::to_string).collect();
    pins.join(" or ")
}

/// `DnsName("web-1")` and `IpAddress(10.0.0.1)`, without what the library puts around.
fn bare(name: &str) -> String {
    let inside = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
    inside.trim_matches('"').to_owned()
}
