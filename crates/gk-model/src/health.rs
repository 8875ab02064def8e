//! What a server says of itself to whoever asks.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// That a server is there, and ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// Always `ok`; whatever is not is answered by a problem.
    #[schema(example = "ok")]
    pub status: String,
    /// The server's version.
    #[schema(example = "0.1.0")]
    pub version: String,
    /// Where programs on the server's own machine reach it by HTTP. Whoever came by the Unix socket learns it here.
    #[schema(value_type = Option<String>, example = "127.0.0.1:5000")]
    pub address: Option<SocketAddr>,
}
