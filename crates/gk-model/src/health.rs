//! What a server says of itself to whoever asks.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::pin::Pin;
use crate::time::Timestamp;

/// That a server is there, and ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// Always `ok`; whatever is not is answered by a problem.
    #[schema(example = "ok")]
    pub status: String,
    /// The server's version.
    #[schema(example = "0.1.0")]
    pub version: String,
    /// Where programs on the server's own machine reach it by HTTP or HTTPS. Whoever came by the Unix socket learns it
    /// here. Absent where its certificate is not for this address; then `url` is the one.
    #[schema(value_type = Option<String>, example = "127.0.0.1:5000")]
    pub address: Option<SocketAddr>,
    /// Where other machines reach it, as far as the server can tell: what to give to `--server` there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "https://gatekeeper.example:5000")]
    pub url: Option<String>,
    /// The keys that vouch for it by TLS: the current one, which `--ca-pin` takes, and the one announced to follow it.
    /// Empty: it speaks plain HTTP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Pin>,
    /// When the certificate ends that it shows now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_ends_at: Option<Timestamp>,
}

impl Health {
    /// Its URL for programs on its own machine.
    pub fn local_url(&self) -> Option<String> {
        let scheme = if self.pins.is_empty() { "http" } else { "https" };
        let by_address = self.address.map(|address| format!("{scheme}://{address}"));
        by_address.or_else(|| self.url.clone().filter(|_| !self.pins.is_empty()))
    }
}
