//! Certificates and keys in files: reading them, and noticing that they are others now.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use gk_model::pin::Pin;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;

use super::TlsError;

/// Reads a chain, the server's own certificate first, and the key that belongs to it. Both may be in one file.
pub(super) fn read(certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    refuse_exposed(key)?;
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<_, _>>)
        .map_err(|error| unreadable(certificate, error, "certificate"))?;
    if chain.is_empty() {
        return Err(TlsError::Missing { file: certificate.to_owned(), what: "certificate" });
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, error, "private key"))?;
    CertifiedKey::from_der(chain, secret, &ring::default_provider()).map_err(|error| TlsError::Pair {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        error,
    })
}

fn unreadable(file: &Path, error: pem::Error, what: &'static str) -> TlsError {
    let file = file.to_owned();
    match error {
        pem::Error::Io(source) => TlsError::File { file, source },
        pem::Error::NoItemsFound => TlsError::Missing { file, what },
        other => TlsError::Malformed { file, why: other.to_string() },
    }
}

/// A key that other accounts can read is not one to prove anything by. As everywhere, a group may read one of root's.
fn refuse_exposed(key: &Path) -> Result<(), TlsError> {
    let metadata = fs::metadata(key).map_err(|source| TlsError::File { file: key.to_owned(), source })?;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    match metadata.mode() & forbidden {
        0 => Ok(()),
        _ => Err(TlsError::Exposed { file: key.to_owned(), mode: metadata.mode() & 0o777 }),
    }
}

/// The key at the end of the chain: that of the authority, if the chain goes so far, else of whoever it ends with.
pub(super) fn pin_of_authority(pair: &CertifiedKey) -> Option<Pin> {
    let parsed = ParsedCertificate::try_from(pair.cert.last()?).ok()?;
    Some(Pin::of_public_key(&parsed.subject_public_key_info()))
}

/// By what a file is told from the one that was there before; none when there is none.
pub(super) type Trace = Option<(u64, u64, u64, [i64; 4])>;

pub(super) fn trace(file: &Path) -> Trace {
    let of = |metadata: Metadata| {
        let times = [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()];
        (metadata.dev(), metadata.ino(), metadata.size(), times)
    };
    let found: io::Result<Metadata> = fs::metadata(file);
    found.ok().map(of)
}

/// A pair behind a pointer, as connections take it.
pub(super) type Pair = Arc<CertifiedKey>;
