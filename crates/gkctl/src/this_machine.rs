//! "This machine": which instance this is, by the identity file that `instance join` wrote.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use gk_client::identity::load_identity;
use gk_model::id::InstanceRef;
use gk_model::identity::Identity;
use gk_model::paths;

/// What is known of this machine without asking anybody.
#[derive(Clone, Debug)]
pub(crate) struct ThisMachine {
    /// Where this account keeps the identity, or would keep it.
    pub(crate) own_dir: PathBuf,
    /// Where the identity was found: the account's own directory, or that of the system's agent.
    pub(crate) state_dir: PathBuf,
    /// The identity; none when the machine has not joined.
    pub(crate) identity: Option<Identity>,
}

impl ThisMachine {
    /// Looks in `chosen`, or else in the account's own directory and then in the system's.
    ///
    /// Whoever chose a directory meant that one, so nothing else is looked at then. The system's directory is a guess:
    /// where it may not be entered, it is as good as absent.
    pub(crate) fn find(
        chosen: Option<&Path>,
        is_root: bool,
        env: impl Fn(&str) -> Option<PathBuf>,
    ) -> Result<ThisMachine> {
        let is_chosen =
            chosen.is_some() || env("GATEKEEPER_STATE").is_some_and(|dir| !dir.as_os_str().is_empty());
        let own_dir = chosen.map_or_else(|| paths::state_dir(is_root, env), Path::to_path_buf);
        let system_dir = (!is_chosen).then(paths::system_state_dir);
        ThisMachine::look(own_dir, system_dir, load_identity).context("cannot tell which instance this is")
    }

    fn look(
        own_dir: PathBuf,
        system_dir: Option<PathBuf>,
        load: impl Fn(&Path) -> io::Result<Option<Identity>>,
    ) -> io::Result<ThisMachine> {
        if let Some(identity) = load(&own_dir)? {
            return Ok(ThisMachine { state_dir: own_dir.clone(), own_dir, identity: Some(identity) });
        }
        if let Some(system_dir) = system_dir {
            let found = match load(&system_dir) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
                found => found?,
            };
            if let Some(identity) = found {
                return Ok(ThisMachine { own_dir, state_dir: system_dir, identity: Some(identity) });
            }
        }
        Ok(ThisMachine { state_dir: own_dir.clone(), own_dir, identity: None })
    }

    /// Whether this machine is meant by `instance`.
    pub(crate) fn is(&self, instance: &InstanceRef) -> bool {
        self.identity.as_ref().is_some_and(|identity| match instance {
            InstanceRef::Id(id) => *id == identity.id,
            InstanceRef::Name(name) => name.as_str().eq_ignore_ascii_case(identity.name.as_str()),
        })
    }
}

#[cfg(test)]
mod tests {
    use gk_client::identity::{generate_secret, save_identity};
    use gk_model::id::InstanceId;
    use gk_model::secret::SecretKind;
    use gk_model::time::Timestamp;

    use super::*;

    #[test]
    fn a_chosen_directory_is_the_only_one_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let (own, chosen) = (dir.path().join("gatekeeper/agent"), dir.path().join("chosen"));
        let id = InstanceId::generate(Timestamp::from_micros(0));
        let name = "web-1".parse().unwrap();
        let identity =
            Identity { id, name, server: "http://127.0.0.1:5000".to_owned(), socket: None, pins: Vec::new() };
        save_identity(&own, &identity, &generate_secret(SecretKind::Instance)).unwrap();
        let env = |name: &str| (name == "XDG_STATE_HOME").then(|| dir.path().to_owned());

        let machine = ThisMachine::find(None, false, env).unwrap();
        assert_eq!((&machine.state_dir, machine.identity.as_ref()), (&own, Some(&identity)));
        assert!(machine.is(&id.into()) && machine.is(&"WEB-1".parse().unwrap()));
        assert!(!machine.is(&"web-2".parse().unwrap()));

        let elsewhere = ThisMachine::find(Some(&chosen), false, env).unwrap();
        assert_eq!((elsewhere.identity, elsewhere.own_dir), (None, chosen));
    }

    #[test]
    fn the_systems_directory_may_be_closed_and_the_own_one_may_not() {
        let (open, closed) = (PathBuf::from("/open"), PathBuf::from("/closed"));
        let load = |dir: &Path| match dir == closed {
            true => Err(io::Error::from(io::ErrorKind::PermissionDenied)),
            false => Ok(None),
        };
        let machine = ThisMachine::look(open.clone(), Some(closed.clone()), load).unwrap();
        assert_eq!((machine.identity, machine.state_dir), (None, open.clone()));
        let error = ThisMachine::look(closed.clone(), Some(open), load).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}
