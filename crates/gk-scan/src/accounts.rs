//! Names of accounts: `/etc/passwd`, read by hand.
//!
//! `getpwuid` would ask NSS, which may ask the network; a scan must not wait for an LDAP server that is down. An
//! account that is only known elsewhere is therefore told by its number.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use gk_model::text::Observed;

use crate::numbers::NumberMap;
use crate::parse::Uid;

/// Where the accounts of this machine are.
pub(crate) const PASSWD: &str = "/etc/passwd";

/// The name of an account of this machine, or its number as text when `/etc/passwd` has none.
pub fn account_name(uid: u32) -> Observed {
    let mut accounts = Accounts::new(PASSWD);
    accounts.refresh();
    accounts.name(Uid(uid))
}

/// The accounts of one password file, read again when it changes.
#[derive(Debug)]
pub(crate) struct Accounts {
    file: PathBuf,
    read_at: Option<(SystemTime, u64)>,
    names: NumberMap<Uid, Observed>,
}

impl Accounts {
    /// Of this password file, not yet read.
    pub(crate) fn new(file: impl Into<PathBuf>) -> Accounts {
        Accounts { file: file.into(), read_at: None, names: NumberMap::default() }
    }

    /// Reads the file if it changed; whether names may have changed. A file that cannot be read has no names.
    pub(crate) fn refresh(&mut self) -> bool {
        let version = fs::metadata(&self.file)
            .ok()
            .and_then(|metadata| Some((metadata.modified().ok()?, metadata.len())));
        if version == self.read_at {
            return false;
        }
        self.read_at = version;
        self.names = parse(&fs::read(&self.file).unwrap_or_default());
        true
    }

    /// Its name, or its number as text.
    pub(crate) fn name(&self, uid: Uid) -> Observed {
        self.names.get(&uid).cloned().unwrap_or_else(|| Observed::new(&uid.0.to_string()))
    }
}

/// Lines of `name:password:uid:…`; of several names for one number the first counts, as with `getpwuid`.
fn parse(file: &[u8]) -> NumberMap<Uid, Observed> {
    let mut names = NumberMap::default();
    for line in String::from_utf8_lossy(file).lines() {
        let mut fields = line.split(':');
        let (name, uid) = (fields.next(), fields.nth(1).and_then(|uid| uid.parse().ok()));
        if let (Some(name), Some(uid)) = (name.filter(|name| !name.is_empty()), uid) {
            names.entry(Uid(uid)).or_insert_with(|| Observed::new(name));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_file_and_unknown_accounts_are_numbers() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("passwd");
        let mut accounts = Accounts::new(&file);
        assert!(!accounts.refresh());
        assert_eq!(accounts.name(Uid(0)).as_str(), "0");
        fs::write(
            &file,
            "root:x:0:0::/:/bin/sh\ntoor:x:0:0::/:\n# remark\n+nis\nweb:x:33\n:x:7:\nodd:x:-1:\n",
        )
        .unwrap();
        assert!(accounts.refresh());
        let names = [0, 33, 7].map(|uid| accounts.name(Uid(uid)).as_str().to_owned());
        assert_eq!(names, ["root", "web", "7"]);
        assert!(!accounts.refresh());
        fs::write(&file, "admin:x:0:0::/:/bin/sh\n").unwrap();
        assert!(accounts.refresh());
        assert_eq!(accounts.name(Uid(0)).as_str(), "admin");
    }
}
