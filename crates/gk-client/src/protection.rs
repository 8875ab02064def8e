//! What the agent put into the kernel's list of reserved ports, kept beside its session.
//!
//! The kernel does not remember who added an entry, so the agent does. It writes an entry down *before* it tells the
//! kernel: an agent that is killed in between has written down too much, which the next one finds out by reading the
//! list; the other way round an entry of ours would look like somebody else's for ever.

use std::io;
use std::path::Path;

use gk_model::id::InstanceId;
use gk_model::paths::PROTECTION_FILE;
use gk_model::port_set::PortSet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::files::{self, Readers, at};

/// The contents of `protection.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedProtection {
    /// The boot in which the kernel was told; the list is empty after each.
    pub boot_id: Option<Uuid>,
    /// The network namespace whose list it is.
    pub netns_inode: Option<u64>,
    /// Entries that are there because of us. Others are somebody else's.
    pub ours: PortSet,
    /// Whose ports [`SavedProtection::reserved`] are.
    pub instance: Option<InstanceId>,
    /// What was reserved when the server last told.
    pub reserved: PortSet,
}

/// Reads what was put there; none when nothing was.
///
/// # Errors
/// When the file is there and cannot be read or understood; the error names it.
pub fn load_protection(state_dir: &Path) -> io::Result<Option<SavedProtection>> {
    let Some(text) = files::read(state_dir, PROTECTION_FILE)? else { return Ok(None) };
    let damaged = |why| io::Error::new(io::ErrorKind::InvalidData, format!("it is damaged: {why}"));
    serde_json::from_str(&text).map(Some).map_err(|why| at(&state_dir.join(PROTECTION_FILE), &damaged(why)))
}

/// Writes it down, for its owner only.
///
/// # Errors
/// When the file cannot be written; the error names it.
pub fn save_protection(state_dir: &Path, saved: &SavedProtection) -> io::Result<()> {
    let text = format!("{}\n", serde_json::to_string(saved)?);
    files::write(state_dir, PROTECTION_FILE, &text, Readers::Owner)
}

/// Forgets it.
///
/// # Errors
/// When the file is there and cannot be removed.
pub fn forget_protection(state_dir: &Path) -> io::Result<()> {
    files::remove(state_dir, PROTECTION_FILE)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_was_put_there_is_for_its_owner_and_survives() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load_protection(dir.path()).unwrap(), None);
        let ours: PortSet = serde_json::from_str(r#"["8000-8009","9100"]"#).unwrap();
        let saved = SavedProtection { ours, netns_inode: Some(7), ..SavedProtection::default() };
        save_protection(dir.path(), &saved).unwrap();
        assert_eq!(load_protection(dir.path()).unwrap(), Some(saved));
        let file = dir.path().join("protection.json");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&file, "{").unwrap();
        let error = load_protection(dir.path()).unwrap_err().to_string();
        assert!(error.contains("protection.json: it is damaged"), "{error}");
        forget_protection(dir.path()).unwrap();
        assert_eq!(load_protection(dir.path()).unwrap(), None);
    }
}
