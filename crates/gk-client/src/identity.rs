//! Who this machine is: `instance.json` for everyone, and the credential for its owner.
//!
//! Both are written by `gkctl instance join` and read by `gkctl` and the agent. A crash leaves the old pair or the
//! new one, or the new credential beside the old identity, which the server refuses and the next join repairs; it
//! never leaves half a file.

use std::io;
use std::path::Path;

use gk_model::identity::Identity;
use gk_model::paths::{CREDENTIAL_FILE, IDENTITY_FILE, PENDING_CREDENTIAL_FILE, SESSION_FILE, SPOOL_FILE};
use gk_model::secret::{Secret, SecretKind};

use crate::files::{self, Readers};
use crate::trust;

/// Reads who this machine is; none when it has not joined.
///
/// # Errors
/// When the file is there and cannot be read or understood; the error names it.
pub fn load_identity(state_dir: &Path) -> io::Result<Option<Identity>> {
    let text = files::read(state_dir, IDENTITY_FILE)?;
    text.map(|text| serde_json::from_str(&text))
        .transpose()
        .map_err(|why| files::malformed(state_dir, IDENTITY_FILE, &why))
}

/// Reads the instance's credential; none when there is none.
///
/// # Errors
/// When the file is there and cannot be read (`PermissionDenied` for everyone but its owner) or understood.
pub fn load_credential(state_dir: &Path) -> io::Result<Option<Secret>> {
    let text = files::read(state_dir, CREDENTIAL_FILE)?;
    text.map(|text| text.parse())
        .transpose()
        .map_err(|why: gk_model::secret::SecretError| files::malformed(state_dir, CREDENTIAL_FILE, &why))
}

/// Makes the state directory and tries to write there, so that a join fails before the server hears of it.
///
/// # Errors
/// When the directory cannot be made or written to, or somebody else may have changed what is in it.
pub fn prepare_state_dir(state_dir: &Path) -> io::Result<()> {
    files::ensure_dir(state_dir)?;
    trust::close_to_others(state_dir)?;
    files::probe(state_dir)
}

/// Writes who this machine is, and its credential.
///
/// # Errors
/// When a file cannot be written; the error names it.
pub fn save_identity(state_dir: &Path, identity: &Identity, credential: &Secret) -> io::Result<()> {
    files::ensure_dir(state_dir)?;
    let text = serde_json::to_string_pretty(identity)?;
    files::write(state_dir, CREDENTIAL_FILE, &format!("{}\n", credential.reveal()), Readers::Owner)?;
    files::write(state_dir, IDENTITY_FILE, &format!("{text}\n"), Readers::Everyone)
}

/// Forgets who this machine is: identity, credential and session are removed. What is missing already is fine.
///
/// # Errors
/// When a file is there and cannot be removed.
pub fn forget_identity(state_dir: &Path) -> io::Result<()> {
    // The identity goes first: without it nobody looks for the others.
    for name in [IDENTITY_FILE, CREDENTIAL_FILE, PENDING_CREDENTIAL_FILE, SESSION_FILE, SPOOL_FILE] {
        files::remove(state_dir, name)?;
    }
    Ok(())
}

/// A new secret from the system's random numbers.
pub fn generate_secret(kind: SecretKind) -> Secret {
    Secret::from_random(kind, &random_bytes())
}

/// Random bytes from the kernel. A kernel that has none to give is one on which nothing may be signed up.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use gk_model::id::InstanceId;
    use gk_model::time::Timestamp;

    use super::*;

    fn identity() -> Identity {
        Identity {
            id: InstanceId::generate(Timestamp::from_micros(0)),
            name: "web-1".parse().unwrap(),
            server: "http://127.0.0.1:5000".to_owned(),
            socket: None,
            pins: Vec::new(),
        }
    }

    #[test]
    fn identity_is_for_everyone_and_the_credential_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        let (identity, secret) = (identity(), generate_secret(SecretKind::Instance));
        assert_eq!(load_identity(&state).unwrap(), None);
        assert_eq!(load_credential(&state).unwrap(), None);
        save_identity(&state, &identity, &secret).unwrap();
        assert_eq!(load_identity(&state).unwrap(), Some(identity));
        assert_eq!(load_credential(&state).unwrap(), Some(secret));
        let mode = |name: &str| fs::metadata(state.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(""), mode("instance.json"), mode("credential")), (0o755, 0o644, 0o600));
        assert_eq!(fs::read_dir(&state).unwrap().count(), 2, "no temporary file is left");
        forget_identity(&state).unwrap();
        assert_eq!(load_identity(&state).unwrap(), None);
        forget_identity(&state).unwrap();
    }

    #[test]
    fn a_file_that_is_none_of_ours_is_named_and_never_repeated() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("instance.json"), "{").unwrap();
        fs::write(dir.path().join("credential"), "hunter2").unwrap();
        let identity = load_identity(dir.path()).unwrap_err();
        assert!(identity.to_string().contains("instance.json"), "{identity}");
        let credential = load_credential(dir.path()).unwrap_err();
        assert_eq!(credential.kind(), io::ErrorKind::InvalidData);
        assert!(!credential.to_string().contains("hunter2"), "{credential}");
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_found_before_joining() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(prepare_state_dir(&dir.path().join("file/state")).is_err());
        prepare_state_dir(&dir.path().join("state")).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("state")).unwrap().count(), 0);
    }

    #[test]
    fn secrets_differ() {
        assert_ne!(generate_secret(SecretKind::Subject), generate_secret(SecretKind::Subject));
    }
}
