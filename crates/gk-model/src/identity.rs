//! The identity file: how everyone on a joined machine knows which instance "this machine" is.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::id::InstanceId;
use crate::pin::Pin;
use crate::text::InstanceName;

/// The contents of `instance.json`. World-readable, so it holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The instance's id.
    pub id: InstanceId,
    /// Its name when it joined, or last refreshed its facts.
    pub name: InstanceName,
    /// The server it joined: `http://127.0.0.1:5000`.
    pub server: String,
    /// The server's Unix socket, when the server runs on this machine.
    pub socket: Option<PathBuf>,
    /// Who vouches for the server: one of these keys has to be behind its certificate. Empty: the system's authorities.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Pin>,
}
