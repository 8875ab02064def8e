//! Who this agent is: the lock of the state directory, the identity in it, or a join that makes one.

use std::time::Duration;

use gk_client::identity::{load_credential, load_identity, prepare_state_dir, save_identity};
use gk_client::join::{JoinError, begin_join, finish_join, is_pending};
use gk_client::lock::AgentLock;
use gk_client::{Client, ServerAddress};
use gk_model::facts::Facts;
use gk_model::identity::Identity;
use gk_model::instance::{Instance, JoinRequest};
use gk_model::protection::Protection;
use gk_model::secret::{Secret, SecretHash};
use gk_model::text::{InstanceName, Observed};

use crate::{AgentConfig, AgentError, JoinBy};

/// An agent's place: nobody else works in it as long as this lives.
#[derive(Debug)]
pub(crate) struct Home {
    _lock: AgentLock,
    pub(crate) identity: Identity,
    pub(crate) credential: Secret,
}

impl Home {
    /// Locks the state directory and finds out who this machine is, joining if it is to and has not.
    pub(crate) fn enter(config: &AgentConfig) -> Result<Home, AgentError> {
        let dir = &config.state_dir;
        let lock = AgentLock::acquire(dir)?.ok_or_else(|| AgentError::AlreadyRuns(dir.clone()))?;
        for file in lock.closed() {
            tracing::warn!(file = %file.display(), "other accounts could read this, and cannot any more");
        }
        let (identity, credential) = match (load_identity(dir)?, load_credential(dir)?, &config.join) {
            (Some(identity), Some(credential), _) => {
                // One that was interrupted at its very end is over all the same.
                if is_pending(dir, &credential)? == Some(false) {
                    finish_join(dir)?;
                }
                (identity, credential)
            }
            (_, _, Some(by)) => join(config, by)?,
            _ => return Err(AgentError::NotJoined),
        };
        Ok(Home { _lock: lock, identity, credential })
    }

    /// Whether somebody has joined this machine anew meanwhile: the credential on disk is another one.
    pub(crate) fn is_outdated(&self, config: &AgentConfig) -> bool {
        let on_disk = load_credential(&config.state_dir);
        on_disk.is_ok_and(|on_disk| on_disk.is_some_and(|credential| credential != self.credential))
    }

    /// Whether a new credential was made that the server may know by now: then only showing it tells.
    pub(crate) fn has_pending(&self, config: &AgentConfig) -> bool {
        is_pending(&config.state_dir, &self.credential).is_ok_and(|pending| pending == Some(true))
    }

    /// Keeps a new credential that the server knows.
    pub(crate) fn keep_credential(&mut self, config: &AgentConfig, new: Secret) -> std::io::Result<()> {
        save_identity(&config.state_dir, &self.identity, &new)?;
        self.credential = new;
        finish_join(&config.state_dir)
    }

    /// The same place with the identity that is in it now.
    pub(crate) fn reload(self, config: &AgentConfig) -> Result<Home, AgentError> {
        let dir = &config.state_dir;
        let identity = load_identity(dir)?.ok_or(AgentError::NotJoined)?;
        let credential = load_credential(dir)?.ok_or(AgentError::NotJoined)?;
        Ok(Home { identity, credential, ..self })
    }

    /// A client of the server, with this machine's credential.
    pub(crate) fn client(&self, config: &AgentConfig) -> Result<Client, AgentError> {
        let server = match (&config.server, &self.identity.socket) {
            (Some(server), _) => server.clone(),
            // On the server's own machine the credential never goes to a TCP port: while the server is down, any account
            // could listen there.
            (None, Some(socket)) => ServerAddress::Unix(socket.clone()),
            (None, None) => self.identity.server.parse()?,
        };
        // Wherever it is now, it is the server that this machine joined, and no other one gets the credential.
        let pins = if config.pins.is_empty() { &self.identity.pins } else { &config.pins };
        let client = Client::new(server, Some(self.credential.clone())).with_pins(pins.clone());
        // The agent has a back-off of its own, and its contacts wait behind whatever the client repeats.
        Ok(client.allow_insecure_http(config.insecure_http).with_patience(Duration::ZERO))
    }

    /// What tells the server the newest facts, with what is known of protection and of container engines.
    pub(crate) fn facts_request(
        &self,
        config: &AgentConfig,
        protection: Option<Protection>,
        engines: &str,
    ) -> JoinRequest {
        let mut request = request(config, self.credential.hash(), None);
        request.facts.protection = protection;
        request.facts.sight = Some(Observed::new(&format!("{}; {engines}", gk_scan::privileges())));
        request
    }

    /// Takes over the name that the server knows this machine by, if somebody renamed it, and the keys that it has
    /// announced to this client, so that the next run knows them too.
    pub(crate) fn learn(
        &mut self,
        config: &AgentConfig,
        name: InstanceName,
        client: &Client,
    ) -> std::io::Result<()> {
        let known = &self.identity;
        let pins = if client.pins().is_empty() { known.pins.clone() } else { client.pins() };
        let learned = Identity { name, pins, ..known.clone() };
        if *known != learned {
            save_identity(&config.state_dir, &learned, &self.credential)?;
            self.identity = learned;
        }
        Ok(())
    }
}

fn request(config: &AgentConfig, credential_hash: SecretHash, by: Option<&JoinBy>) -> JoinRequest {
    JoinRequest {
        name: by.and_then(|by| by.name.clone()),
        credential_hash,
        facts: Facts {
            sight: Some(Observed::new(&gk_scan::privileges().to_string())),
            ..gk_scan::facts(config.version.as_str())
        },
        labels: gk_model::labels::Labels::default(),
        replace: None,
    }
}

fn join(config: &AgentConfig, by: &JoinBy) -> Result<(Identity, Secret), AgentError> {
    let server: &ServerAddress = config.server.as_ref().ok_or(AgentError::NoServer)?;
    prepare_state_dir(&config.state_dir)?;
    let client = Client::new(server.clone(), Some(by.token.clone()))
        .allow_insecure_http(config.insecure_http)
        .with_pins(config.pins.clone());
    let ask = |hash| request(config, hash, Some(by));
    let (joined, credential) = begin_join(&client, &config.state_dir, ask).map_err(|error| match error {
        JoinError::State(error) => AgentError::State(error),
        JoinError::Server(error) => AgentError::Join(error),
    })?;
    let Instance { id, name, .. } = joined.instance;
    let identity = Identity { id, name, server: server.to_string(), socket: None, pins: client.pins() };
    save_identity(&config.state_dir, &identity, &credential)?;
    finish_join(&config.state_dir)?;
    tracing::info!(instance.id = %id, instance.name = %identity.name, "joined");
    Ok((identity, credential))
}
