//! Why a server's certificate is not believed, in words that say what to do.

use std::fmt;
use std::io;

use gk_model::pin::Pin;
use gk_model::time::Timestamp;
use rustls::CertificateError;
use rustls::pki_types::UnixTime;

/// What is wrong with a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// No pin is known, and the system's authorities do not know who signed it.
    UnknownIssuer,
    /// A certificate with a pinned key was sent along, and has not signed this one.
    NotSigned,
    /// None of the pinned keys is in the chain.
    Unpinned {
        /// The pins.
        expected: Vec<Pin>,
        /// The keys in the chain, the server's own first.
        presented: Vec<Pin>,
    },
    /// It belongs to somebody else.
    WrongName {
        /// The host that was asked for.
        expected: String,
        /// The names in the certificate.
        presented: Vec<String>,
    },
    /// It was valid once.
    Expired {
        /// When it ended.
        not_after: Option<Timestamp>,
        /// The time here.
        now: Option<Timestamp>,
    },
    /// It will be valid one day.
    NotYetValid {
        /// When it begins.
        not_before: Option<Timestamp>,
        /// The time here.
        now: Option<Timestamp>,
    },
    /// There is nobody to ask.
    NoAuthorities,
    /// Anything else, in the words of the TLS library.
    Other(String),
}

/// What is wrong, and what to do.
impl fmt::Display for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what())?;
        self.remedy().map_or(Ok(()), |remedy| write!(f, ": {remedy}"))
    }
}

impl std::error::Error for Distrust {}

impl Distrust {
    /// What is wrong, as it is said of a certificate.
    pub fn what(&self) -> String {
        match self {
            Distrust::UnknownIssuer => "it is not signed by anybody whom this machine trusts".to_owned(),
            Distrust::NotSigned => "it is not signed by the pinned key that was sent along".to_owned(),
            Distrust::Unpinned { expected, presented } => format!(
                "it has none of the pinned keys; pinned is {}, and the server shows {}",
                list(expected),
                list(presented)
            ),
            Distrust::WrongName { expected, presented } => {
                format!("it is for {}, and not for {expected}", presented.join(", "))
            }
            Distrust::Expired { not_after, now } => format!(
                "it, or the authority behind it, has expired{}",
                moments(not_after.as_ref(), now.as_ref(), "ended")
            ),
            Distrust::NotYetValid { not_before, now } => {
                format!("it is not valid yet{}", moments(not_before.as_ref(), now.as_ref(), "begins"))
            }
            Distrust::NoAuthorities => "this machine knows no authorities to verify it with".to_owned(),
            Distrust::Other(words) => words.clone(),
        }
    }

    /// What to do about it.
    pub fn remedy(&self) -> Option<String> {
        let remedy = match self {
            Distrust::UnknownIssuer => {
                "give the pin that the server prints at start with --ca-pin or GATEKEEPER_CA_PIN, as in `gkctl instance \
                 join --ca-pin sha256:…`"
            }
            Distrust::NotSigned => "this is not the server that is meant",
            Distrust::Unpinned { .. } => {
                "either this is not the server that is meant, or its authority was made anew; compare with what the server \
                 prints at start, and join again with `gkctl instance join --ca-pin sha256:…`"
            }
            Distrust::WrongName { expected, .. } => {
                return Some(format!(
                    "use one of these names in the server's address, or give the server `--tls-name {expected}`, or a \
                     certificate that is for it"
                ));
            }
            Distrust::Expired { .. } => "renew it on the server, or set this machine's clock",
            Distrust::NotYetValid { .. } => "set this machine's clock, or the server's",
            Distrust::NoAuthorities => {
                "give the pin that the server prints at start with --ca-pin or GATEKEEPER_CA_PIN, or install ca-certificates"
            }
            Distrust::Other(_) => return None,
        };
        Some(remedy.to_owned())
    }

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
