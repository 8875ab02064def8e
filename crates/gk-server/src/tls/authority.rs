//! `--tls auto`: an authority of the server's own, which signs its certificate.
//!
//! Three files of mode 0600 in a directory of mode 0700, each replaced as a whole: `ca.pem` (key and certificate of the
//! authority, ten years), `next-ca.pem` (the key that is to follow it), `server.pem` (key and certificate of the server,
//! ninety days, signed by the authority). What they hold is said by a line of text above, so that nothing here has to
//! read a certificate.
//!
//! Promises: clients are told of the next key from the first day on, so that the authority can change (a year before it
//! ends, or as soon as `ca.pem` is gone) and nobody has to join again. A crash at any moment leaves files that the next
//! start goes on with. Refuses to make a new authority in place of one that cannot be read: every machine would be shut out.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use gk_model::pin::Pin;
use gk_model::time::Timestamp;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, date_time_ymd,
};

use super::TlsError;

pub(super) const CA_FILE: &str = "ca.pem";
pub(super) const NEXT_FILE: &str = "next-ca.pem";
pub(super) const SERVER_FILE: &str = "server.pem";

const DAY: Duration = Duration::from_secs(86_400);

/// How long an authority lives, and how long before its end the next one takes its place. What it signed meanwhile ends
/// long before it does.
const CA_LIFE: Duration = Duration::from_secs(3_653 * 86_400);
const CA_HANDOVER: Duration = Duration::from_secs(365 * 86_400);

/// How long a certificate lives, and how long before its end it is renewed.
const LEAF_LIFE: Duration = Duration::from_secs(90 * 86_400);
const LEAF_HANDOVER: Duration = Duration::from_secs(30 * 86_400);

/// Certificates begin a day early, for machines whose clocks are behind.
const BACKDATED: Duration = DAY;

/// What the files come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Issued {
    /// The authority's key, then the one that is to follow it.
    pub(super) pins: Vec<Pin>,
    /// When to look again.
    pub(super) renew_at: Timestamp,
}

/// The authority that signs.
struct Authority {
    key: KeyPair,
    /// Its certificate, as PEM.
    certificate: String,
    ends_at: Timestamp,
}

/// Makes what is missing and renews what is about to end. Afterwards `server.pem` holds a certificate for `names`.
pub(super) fn ensure(directory: &Path, names: &[String], now: Timestamp) -> Result<Issued, TlsError> {
    make_directory(directory)?;
    let next = read_key(directory, NEXT_FILE)?;
    let (authority, next) = match read_authority(directory)? {
        Some(authority) if authority.ends_at.since(now) > CA_HANDOVER => (authority, next),
        // The key that was announced takes over; there is none yet at the first start only.
        _ => (make_authority(directory, next.map_or_else(generate, Ok)?, now)?, None),
    };
    let next = match next.filter(|next| pin(next) != pin(&authority.key)) {
        Some(next) => next,
        None => make_next(directory)?,
    };
    let wanted = Label { signed_by: pin(&authority.key).to_string(), names: names.join(" ") };
    let ends_at = match read_label(directory) {
        Some((label, ends_at)) if label == wanted && is_fresh(ends_at, now) => ends_at,
        _ => make_leaf(directory, &authority, &wanted, names, now)?,
    };
    let pins = vec![pin(&authority.key), pin(&next)];
    Ok(Issued { pins, renew_at: ends_at.minus(LEAF_HANDOVER).min(authority.ends_at.minus(CA_HANDOVER)) })
}

/// Neither about to end, nor of a time when the clock was far ahead.
fn is_fresh(ends_at: Timestamp, now: Timestamp) -> bool {
    ends_at.since(now) > LEAF_HANDOVER && ends_at <= now.plus(LEAF_LIFE)
}

fn pin(key: &KeyPair) -> Pin {
    Pin::of_public_key(&key.subject_public_key_info())
}

fn generate() -> Result<KeyPair, TlsError> {
    KeyPair::generate().map_err(|error| TlsError::Make(error.to_string()))
}

fn make_authority(directory: &Path, key: KeyPair, now: Timestamp) -> Result<Authority, TlsError> {
    let ends_at = now.plus(CA_LIFE);
    let certificate = authority_params(&key, now, ends_at)?.self_signed(&key).map_err(unmade)?.pem();
    let text = format!("{ENDS}{ends_at}\n{}{certificate}", key.serialize_pem());
    write(directory, CA_FILE, &text)?;
    tracing::info!(tls.pin = %pin(&key), "made a certificate authority");
    Ok(Authority { key, certificate, ends_at })
}

fn make_next(directory: &Path) -> Result<KeyPair, TlsError> {
    let key = generate()?;
    write(directory, NEXT_FILE, &key.serialize_pem())?;
    Ok(key)
}

/// The name is that of the key, so that no two authorities have the same.
fn authority_params(
    key: &KeyPair,
    now: Timestamp,
    ends_at: Timestamp,
) -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::new(Vec::new()).map_err(unmade)?;
    params.distinguished_name.push(DnType::CommonName, format!("Gatekeeper {}", pin(key).short()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    set_dates(&mut params, now, ends_at);
    Ok(params)
}

fn make_leaf(
    directory: &Path,
    authority: &Authority,
    label: &Label,
    names: &[String],
    now: Timestamp,
) -> Result<Timestamp, TlsError> {
    let ends_at = now.plus(LEAF_LIFE);
    let key = generate()?;
    let certificate = sign_leaf(&key, authority, names, now, ends_at).map_err(unmade)?.pem();
    let text = format!(
        "{ENDS}{ends_at}\n{SIGNED_BY}{}\n{NAMES}{}\n{}{certificate}{}",
        label.signed_by,
        label.names,
        key.serialize_pem(),
        authority.certificate
    );
    write(directory, SERVER_FILE, &text)?;
    tracing::info!(tls.names = %label.names, tls.ends_at = %ends_at, "issued the server's certificate");
    Ok(ends_at)
}

fn sign_leaf(
    key: &KeyPair,
    authority: &Authority,
    names: &[String],
    now: Timestamp,
    ends_at: Timestamp,
) -> Result<Certificate, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "Gatekeeper server");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    set_dates(&mut params, now, ends_at);
    // What signing takes from the authority is its name and its key.
    let mut issuer = CertificateParams::new(Vec::new())?;
    let name = format!("Gatekeeper {}", pin(&authority.key).short());
    issuer.distinguished_name.push(DnType::CommonName, name);
    params.signed_by(key, &Issuer::from_params(&issuer, &authority.key))
}

fn set_dates(params: &mut CertificateParams, now: Timestamp, ends_at: Timestamp) {
    let epoch = date_time_ymd(1970, 1, 1);
    let date = |at: Timestamp| epoch + at.since(Timestamp::from_micros(0));
    params.not_before = date(now.minus(BACKDATED));
    params.not_after = date(ends_at);
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` hands over")]
fn unmade(error: rcgen::Error) -> TlsError {
    TlsError::Make(error.to_string())
}

const ENDS: &str = "Ends: ";
const SIGNED_BY: &str = "Signed by: ";
const NAMES: &str = "Names: ";

/// What `server.pem` says of itself.
#[derive(PartialEq, Eq)]
struct Label {
    signed_by: String,
    names: String,
}

fn line<'a>(text: &'a str, begins: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(begins))
}

/// None when there is no certificate, or none of ours: it is made anew then, which harms nobody.
fn read_label(directory: &Path) -> Option<(Label, Timestamp)> {
    let text = fs::read_to_string(directory.join(SERVER_FILE)).ok()?;
    let label =
        Label { signed_by: line(&text, SIGNED_BY)?.to_owned(), names: line(&text, NAMES)?.to_owned() };
    super::files::read(&directory.join(SERVER_FILE), &directory.join(SERVER_FILE)).ok()?;
    Some((label, line(&text, ENDS)?.parse().ok()?))
}

fn read_authority(directory: &Path) -> Result<Option<Authority>, TlsError> {
    let Some(text) = read(directory, CA_FILE)? else { return Ok(None) };
    let damaged = || TlsError::Damaged(directory.join(CA_FILE));
    let key = KeyPair::from_pem(&text).map_err(|_| damaged())?;
    let certificate = text.find("-----BEGIN CERTIFICATE-----").map(|begin| text[begin..].to_owned());
    let ends_at = line(&text, ENDS).and_then(|text| text.parse().ok());
    let (certificate, ends_at) = certificate.zip(ends_at).ok_or_else(damaged)?;
    Ok(Some(Authority { key, certificate, ends_at }))
}

fn read_key(directory: &Path, name: &str) -> Result<Option<KeyPair>, TlsError> {
    let key = read(directory, name)?.map(|text| KeyPair::from_pem(&text));
    key.transpose().map_err(|_| TlsError::Damaged(directory.join(name)))
}

fn read(directory: &Path, name: &str) -> Result<Option<String>, TlsError> {
    let file = directory.join(name);
    match fs::read_to_string(&file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TlsError::File { file, source }),
    }
}

fn make_directory(directory: &Path) -> Result<(), TlsError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|source| TlsError::File { file: directory.to_owned(), source })
}

/// Replaces a file as a whole, or leaves it as it was.
fn write(directory: &Path, name: &str, text: &str) -> Result<(), TlsError> {
    let (file, temporary) = (directory.join(name), directory.join(format!(".{name}.tmp")));
    let written = write_new(&temporary, text)
        .and_then(|()| fs::rename(&temporary, &file))
        .and_then(|()| File::open(directory)?.sync_all());
    written.map_err(|source| TlsError::File { file, source })
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    // What lies there was left by a server that was killed; the data directory has one owner.
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn text(directory: &Path, name: &str) -> String {
        fs::read_to_string(directory.join(name)).unwrap()
    }

    fn begun() -> Timestamp {
        Timestamp::from_micros(1_700_000_000_000_000)
    }

    fn later(days: u32) -> Timestamp {
        begun().plus(DAY * days)
    }

    #[test]
    fn everything_is_made_once_and_is_private() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("data/tls");
        let first = ensure(&directory, &names("localhost 127.0.0.1"), begun()).unwrap();
        let files = [CA_FILE, NEXT_FILE, SERVER_FILE];
        let before = files.map(|name| text(&directory, name));
        assert_eq!(ensure(&directory, &names("localhost 127.0.0.1"), later(59)).unwrap(), first);
        assert_eq!(files.map(|name| text(&directory, name)), before);
        assert_eq!(first.pins.len(), 2);
        assert_ne!(first.pins[0], first.pins[1]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&directory), 0o700);
        assert!(files.iter().all(|name| mode(&directory.join(name)) == 0o600));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 3, "nothing is left behind");
    }

    #[test]
    fn a_certificate_is_renewed_a_month_before_its_end_and_for_other_names() {
        let place = tempfile::tempdir().unwrap();
        let first = ensure(place.path(), &names("localhost"), begun()).unwrap();
        assert_eq!(first.renew_at, later(60));
        let before = text(place.path(), SERVER_FILE);
        let renewed = ensure(place.path(), &names("localhost"), first.renew_at).unwrap();
        assert_eq!((renewed.renew_at, &renewed.pins), (later(120), &first.pins));
        let after = text(place.path(), SERVER_FILE);
        assert_ne!(after, before);
        ensure(place.path(), &names("localhost web-1"), later(61)).unwrap();
        assert_ne!(text(place.path(), SERVER_FILE), after);
        let behind = ensure(place.path(), &names("localhost web-1"), begun()).unwrap();
        assert_eq!(behind.renew_at, later(60), "one made while the clock was ahead is of no use");
    }

    #[test]
    fn the_announced_key_takes_over_and_the_next_one_is_announced() {
        let place = tempfile::tempdir().unwrap();
        let first = ensure(place.path(), &names("localhost"), begun()).unwrap();
        let old = ensure(place.path(), &names("localhost"), later(3_653 - 366)).unwrap();
        assert_eq!(old.pins, first.pins);
        let rotated = ensure(place.path(), &names("localhost"), old.renew_at).unwrap();
        assert_eq!(rotated.pins[0], first.pins[1]);
        assert!(!first.pins.contains(&rotated.pins[1]));
        assert!(text(place.path(), SERVER_FILE).contains(&rotated.pins[0].to_string()));

        fs::remove_file(place.path().join(CA_FILE)).unwrap();
        let forced = ensure(place.path(), &names("localhost"), later(3_653)).unwrap();
        assert_eq!(forced.pins[0], rotated.pins[1]);
    }

    #[test]
    fn a_kill_between_two_files_is_gone_on_from() {
        let place = tempfile::tempdir().unwrap();
        let first = ensure(place.path(), &names("localhost"), begun()).unwrap();
        // The announced key has taken over, and nothing has been announced in its place.
        let next = read_key(place.path(), NEXT_FILE).unwrap().unwrap();
        make_authority(place.path(), next, later(1)).unwrap();
        let again = ensure(place.path(), &names("localhost"), later(1)).unwrap();
        assert_eq!(again.pins[0], first.pins[1]);
        assert!(!first.pins.contains(&again.pins[1]));
        // Nor has anything come after the authority.
        fs::remove_file(place.path().join(NEXT_FILE)).unwrap();
        fs::write(place.path().join(SERVER_FILE), "half a fi").unwrap();
        let again = ensure(place.path(), &names("localhost"), later(1)).unwrap();
        assert_eq!(again.pins[0], first.pins[1]);
    }

    #[test]
    fn an_authority_that_cannot_be_read_is_not_replaced() {
        for name in [CA_FILE, NEXT_FILE] {
            let place = tempfile::tempdir().unwrap();
            ensure(place.path(), &names("localhost"), begun()).unwrap();
            fs::write(place.path().join(name), "half a fi").unwrap();
            let error = ensure(place.path(), &names("localhost"), begun()).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            assert_eq!(text(place.path(), name), "half a fi");
        }
    }
}
