//! What container engines told last, kept beside the agent's session.
//!
//! A published port that rests on an engine's word alone must not seem closed because an agent starts while the engine is
//! busy, or before it has answered. So the next agent, and `gkctl` where it reports in an agent's place, begin with what
//! was told last. It counts for one boot: no published port outlives the kernel's rules.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use gk_model::engine::{Containers, Told};
use gk_model::facts::Facts;
use gk_model::paths::ENGINES_FILE;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::files::{self, Readers, at};

/// The contents of `engines.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedEngines {
    /// The boot in which it was told.
    pub boot_id: Option<Uuid>,
    /// The network namespace that ports are published into.
    pub netns_inode: Option<u64>,
    /// What was told, by the socket that was asked.
    pub told: BTreeMap<PathBuf, Told>,
}

impl SavedEngines {
    /// Nothing yet, on a machine with these facts.
    pub fn new(facts: &Facts) -> SavedEngines {
        SavedEngines { boot_id: facts.boot_id, netns_inode: facts.netns_inode, told: BTreeMap::new() }
    }

    /// What all of them told.
    pub fn containers(&self) -> Containers {
        Containers::of(self.told.values())
    }
}

/// Reads what was told in this boot and namespace; nothing when it was another one, or nothing was told.
///
/// # Errors
/// When the file is there and cannot be read or understood; the error names it.
pub fn load_engines(state_dir: &Path, facts: &Facts) -> io::Result<SavedEngines> {
    let nothing = SavedEngines::new(facts);
    let Some(text) = files::read(state_dir, ENGINES_FILE)? else { return Ok(nothing) };
    let damaged = |why| io::Error::new(io::ErrorKind::InvalidData, format!("it is damaged: {why}"));
    let saved: SavedEngines =
        serde_json::from_str(&text).map_err(|why| at(&state_dir.join(ENGINES_FILE), &damaged(why)))?;
    let is_ours = (saved.boot_id, saved.netns_inode) == (nothing.boot_id, nothing.netns_inode);
    Ok(if is_ours { saved } else { nothing })
}

/// Writes it down, for its owner only: names of containers are nobody else's business.
///
/// # Errors
/// When the file cannot be written; the error names it.
pub fn save_engines(state_dir: &Path, saved: &SavedEngines) -> io::Result<()> {
    let text = format!("{}\n", serde_json::to_string(saved)?);
    files::write(state_dir, ENGINES_FILE, &text, Readers::Owner)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use gk_model::engine::Contained;

    use super::*;

    fn facts(boot: u128, netns_inode: u64) -> Facts {
        Facts { boot_id: Some(Uuid::from_u128(boot)), netns_inode: Some(netns_inode), ..Facts::default() }
    }

    #[test]
    fn what_was_told_counts_for_one_boot_and_one_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let nothing = SavedEngines::new(&facts(1, 7));
        assert_eq!(load_engines(dir.path(), &facts(1, 7)).unwrap(), nothing);
        let containers = vec![Contained { id: "c1".into(), name: None, published: Vec::new() }];
        let told = Told { engine: "docker".into(), containers };
        let saved =
            SavedEngines { told: BTreeMap::from([("/run/docker.sock".into(), told)]), ..nothing.clone() };
        save_engines(dir.path(), &saved).unwrap();
        assert_eq!(load_engines(dir.path(), &facts(1, 7)).unwrap(), saved);
        assert!(load_engines(dir.path(), &facts(2, 7)).unwrap().told.is_empty(), "another boot");
        assert!(load_engines(dir.path(), &facts(1, 8)).unwrap().told.is_empty(), "another namespace");
        let file = dir.path().join("engines.json");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&file, "{").unwrap();
        let error = load_engines(dir.path(), &facts(1, 7)).unwrap_err().to_string();
        assert!(error.contains("engines.json: it is damaged"), "{error}");
    }
}
