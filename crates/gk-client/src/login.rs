//! Tokens that `gkctl login` keeps for an account, each for the one server that it was stored for.
//!
//! **Owns** `login.json` in the account's configuration directory: `{"current": URL, "servers": {URL: {"token": …, "pins": […]}}}`.
//! **Promises** that the file is replaced as a whole, for its owner only, and that a token is found under its own server
//! and no other. **Refuses** to use a file that others may read or that belongs to somebody else: whoever reads it may
//! have copied the tokens, and whoever wrote it chose where ours go.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use gk_model::paths::LOGIN_FILE;
use gk_model::pin::Pin;
use gk_model::secret::Secret;
use serde::{Deserialize, Serialize};

use crate::address::ServerAddress;
use crate::files::{self, Readers};

/// No file of tokens is longer.
const MOST_BYTES: u64 = 1 << 20;

/// Why stored tokens cannot be used. No text of the file is repeated.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// Other accounts may read or write it.
    #[error("{} may be used by other accounts (mode {mode:04o}), so its tokens are not used", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It belongs to another account.
    #[error("{} belongs to another account (uid {owner}), so its tokens are not used", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// It is not what was written there.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be read or written.
    #[error("cannot use the stored tokens")]
    Io(#[from] io::Error),
}

/// Stored tokens. `Debug` shows none of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logins {
    /// The server that was logged in to last: the one that is meant where none is named.
    current: Option<ServerAddress>,
    /// By [`key`].
    logins: BTreeMap<String, Login>,
}

/// What is kept for one server.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Login {
    token: Secret,
    /// Who vouches for the server; nobody but the system's authorities, where this is empty.
    pins: Vec<Pin>,
}

/// The contents of the file.
#[derive(Default, Serialize, Deserialize)]
struct Saved {
    current: Option<String>,
    servers: BTreeMap<String, Entry>,
}

/// What is kept for a server. An object, so that more can be kept for it later.
#[derive(Serialize, Deserialize)]
struct Entry {
    token: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pins: Vec<Pin>,
}

impl Logins {
    /// The server that was logged in to last.
    pub fn current(&self) -> Option<&ServerAddress> {
        self.current.as_ref()
    }

    /// The token that was stored for this server.
    pub fn token(&self, server: &ServerAddress) -> Option<&Secret> {
        self.logins.get(&key(server)).map(|login| &login.token)
    }

    /// Who vouched for this server when the token was stored for it.
    pub fn pins(&self, server: &ServerAddress) -> &[Pin] {
        self.logins.get(&key(server)).map_or(&[], |login| &login.pins)
    }

    /// The servers that there is a token for.
    pub fn servers(&self) -> impl Iterator<Item = &str> {
        self.logins.keys().map(String::as_str)
    }

    /// Keeps a token for this server, which is the one that is meant from now on.
    pub fn insert(&mut self, server: ServerAddress, token: Secret, pins: Vec<Pin>) {
        self.logins.insert(key(&server), Login { token, pins });
        self.current = Some(server);
    }

    /// Forgets the token for this server; answers whether there was one.
    pub fn remove(&mut self, server: &ServerAddress) -> bool {
        if self.current.as_ref().is_some_and(|current| key(current) == key(server)) {
            self.current = None;
        }
        self.logins.remove(&key(server)).is_some()
    }
}

/// What a server is known by: letters of a host name have no case, and a path has.
fn key(server: &ServerAddress) -> String {
    match server {
        ServerAddress::Unix(_) => server.to_string(),
        ServerAddress::Http(_) | ServerAddress::Https(_) => server.to_string().to_ascii_lowercase(),
    }
}

/// Reads the stored tokens of the account with this `uid`; none when there is no file.
///
/// # Errors
/// [`LoginError`], which names the file.
pub fn load_logins(config_dir: &Path, uid: u32) -> Result<Logins, LoginError> {
    let path = config_dir.join(LOGIN_FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Logins::default());
        }
        Err(error) => return Err(files::at(&path, &error).into()),
    };
    // Of the open file: what lies at the path may be another one by now.
    let metadata = file.metadata().map_err(|error| files::at(&path, &error))?;
    if metadata.uid() != uid {
        return Err(LoginError::NotOurs { path, owner: metadata.uid() });
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(LoginError::Exposed { path, mode: metadata.mode() & 0o7777 });
    }
    let mut text = String::new();
    file.take(MOST_BYTES).read_to_string(&mut text).map_err(|error| files::at(&path, &error))?;
    parse(&text).ok_or(LoginError::Damaged { path })
}

fn parse(text: &str) -> Option<Logins> {
    let saved: Saved = serde_json::from_str(text).ok()?;
    let current = saved.current.map(|server| server.parse()).transpose().ok()?;
    let login = |(server, entry): (String, Entry)| {
        Some((server, Login { token: entry.token.parse().ok()?, pins: entry.pins }))
    };
    let logins = saved.servers.into_iter().map(login).collect::<Option<_>>()?;
    Some(Logins { current, logins })
}

/// Changes the stored tokens: reads, changes, and replaces the file as a whole. Two that change it at once take turns.
/// Answers what `change` does.
///
/// # Errors
/// [`LoginError`]; the file is as it was then.
pub fn change_logins<T>(
    config_dir: &Path,
    uid: u32,
    change: impl FnOnce(&mut Logins) -> T,
) -> Result<T, LoginError> {
    if !config_dir.is_dir() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(config_dir);
        made.map_err(|error| files::at(config_dir, &error))?;
    }
    let turn = File::open(config_dir).map_err(|error| files::at(config_dir, &error))?;
    // Some file systems of a network lock no directory. There two at once may lose one of both tokens, and that is all.
    let _ = turn.lock();
    let mut logins = load_logins(config_dir, uid)?;
    let answer = change(&mut logins);
    let entry = |(server, login): (&String, &Login)| {
        (server.clone(), Entry { token: login.token.reveal().to_owned(), pins: login.pins.clone() })
    };
    let saved = Saved {
        current: logins.current.as_ref().map(ToString::to_string),
        servers: logins.logins.iter().map(entry).collect(),
    };
    let text = serde_json::to_string_pretty(&saved).map_err(io::Error::from)?;
    files::write(config_dir, LOGIN_FILE, &format!("{text}\n"), Readers::Owner)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use gk_model::secret::SecretKind;

    use super::*;

    fn server(text: &str) -> ServerAddress {
        text.parse().unwrap()
    }

    fn secret(byte: u8) -> Secret {
        Secret::from_random(SecretKind::Subject, &[byte; 32])
    }

    /// A directory with one login in it, and whose it is.
    fn stored() -> (tempfile::TempDir, PathBuf, u32) {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("a/gatekeeper");
        let uid = fs::metadata(place.path()).unwrap().uid();
        change_logins(&dir, uid, |logins| logins.insert(server("http://web-1:5000"), secret(1), vec![]))
            .unwrap();
        (place, dir, uid)
    }

    #[test]
    fn a_token_is_found_under_its_own_server_and_no_other() {
        let (_place, dir, uid) = stored();
        change_logins(&dir, uid, |logins| logins.insert(server("unix:/A"), secret(2), vec![])).unwrap();
        let logins = load_logins(&dir, uid).unwrap();
        let table = [
            ("http://web-1:5000", Some(1)),
            ("http://WEB-1:5000/", Some(1)),
            ("http://web-1", None),
            ("http://web-1:5001", None),
            ("http://web-10:5000", None),
            ("https://web-1:5000", None),
            ("unix:/A", Some(2)),
            ("unix:/a", None),
        ];
        for (asked, found) in table {
            assert_eq!(logins.token(&server(asked)), found.map(secret).as_ref(), "{asked}");
        }
        assert_eq!(logins.current(), Some(&server("unix:/A")), "the last one");
        assert!(change_logins(&dir, uid, |logins| logins.remove(&server("unix:/A"))).unwrap());
        let logins = load_logins(&dir, uid).unwrap();
        assert_eq!((logins.current(), logins.token(&server("unix:/A"))), (None, None));
        assert_eq!(logins.servers().collect::<Vec<_>>(), ["http://web-1:5000"]);
    }

    #[test]
    fn the_file_is_for_its_owner_and_shows_in_no_debug() {
        let (_place, dir, uid) = stored();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&dir.join("login.json"))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "no temporary file is left");
        let shown = format!("{:?}", load_logins(&dir, uid).unwrap());
        assert!(!shown.contains(secret(1).reveal()), "{shown}");
    }

    #[test]
    fn a_file_that_others_can_read_or_own_is_refused_and_left_alone() {
        let (_place, dir, uid) = stored();
        let file = dir.join("login.json");
        for mode in [0o644, 0o640, 0o602, 0o601] {
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            let refused = load_logins(&dir, uid).unwrap_err();
            assert!(matches!(refused, LoginError::Exposed { .. }), "{mode:o}");
            assert!(
                refused
                    .to_string()
                    .contains(&format!("login.json may be used by other accounts (mode {mode:04o})"))
            );
            change_logins(&dir, uid, |logins| logins.insert(server("http://x:1"), secret(3), vec![]))
                .unwrap_err();
        }
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(load_logins(&dir, uid + 1), Err(LoginError::NotOurs { .. })));
        assert_eq!(load_logins(&dir, uid).unwrap().servers().count(), 1);
    }

    #[test]
    fn a_file_that_is_none_of_ours_is_named_and_never_repeated() {
        let (_place, dir, uid) = stored();
        let entry = r#"{"current":null,"servers":{"http://x":{"token":"hunter2"}}}"#;
        for text in ["", "hunter2", entry] {
            fs::write(dir.join("login.json"), text).unwrap();
            let refused = load_logins(&dir, uid).unwrap_err();
            let shown = format!("{refused} {refused:?}");
            assert!(shown.contains("login.json is damaged") && !shown.contains("hunter2"), "{shown}");
        }
        assert_eq!(load_logins(&dir.join("nowhere"), uid).unwrap(), Logins::default());
    }
}
