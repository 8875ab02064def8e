//! Before anything is asked: whether a request is one that this server should look at.
//!
//! One layer around all routes, in the order of cost: the size of the head, the name it is meant for, and how often its
//! sender has asked. The Unix socket is not limited: whoever may open it could as well stop the server.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use gk_model::secret::SecretHash;

use crate::app::App;
use crate::auth::{Peer, bearer};
use crate::error::ApiError;
use crate::headers::check_size;
use crate::hosts::{Head, HostFault};
use crate::rates::Client;

/// Answered whatever happens: it touches nothing, and to refuse it costs as much.
const ALWAYS: &str = "/healthz";

/// The layer.
pub(crate) async fn admit(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    check_size(&head)?;
    let Some(address) = address(&head) else { return Ok(next.run(Request::from_parts(head, body)).await) };
    let asked = Head { version: head.version, uri: &head.uri, headers: &head.headers };
    app.hosts.check(&asked).map_err(refusal)?;
    if head.uri.path() == ALWAYS {
        return Ok(next.run(Request::from_parts(head, body)).await);
    }
    // A header that cannot be read is no token; the door says so.
    let token: Option<SecretHash> = bearer(&head.headers).unwrap_or_default();
    let client = Client::new(address, token);
    app.rates.enter(client, app.now()).map_err(|wait| ApiError::TooOften { wait })?;
    let response = next.run(Request::from_parts(head, body)).await;
    app.rates.leave(client, response.status(), app.now());
    Ok(response)
}

/// Where a request comes from; none at the Unix socket. One that nobody vouches for is a stranger's.
fn address(head: &Parts) -> Option<IpAddr> {
    match head.extensions.get::<ConnectInfo<Peer>>() {
        Some(ConnectInfo(Peer::Unix { .. })) => None,
        Some(ConnectInfo(Peer::Tcp(address))) => Some(address.ip()),
        Some(ConnectInfo(Peer::Proxied(client))) => Some(*client),
        None => Some(Ipv4Addr::UNSPECIFIED.into()),
    }
}

fn refusal(fault: HostFault) -> ApiError {
    match fault {
        HostFault::Unknown(name) => ApiError::UnknownHost(name),
        HostFault::Missing | HostFault::Several | HostFault::Unreadable => {
            ApiError::malformed(Some("Host".to_owned()), fault.to_string())
        }
    }
}

/// As `Retry-After` has it: whole seconds, and never none.
pub(crate) fn whole_seconds(wait: Duration) -> u16 {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    u16::try_from(seconds.max(1)).unwrap_or(u16::MAX)
}
