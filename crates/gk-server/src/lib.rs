//! Gatekeeper's HTTP API: who may ask what, and how answers and refusals look.
//!
//! Owns everything about HTTP: routes, authentication, the shape of errors, connections and their limits, and the
//! OpenAPI document. It holds no rule of the domain (those are in `gk-model`) and no state (that is in `gk-store`).
//!
//! Promises:
//! - No route is reachable without a decision about who may use it: see `routes.rs`.
//! - Every refusal, whoever made it, is an RFC 9457 problem with a stable code and a request id: see `error.rs`.
//! - A handler never sees an invalid value: see `extract`.
//! - No token is ever logged or echoed.

mod access;
mod admission;
mod app;
mod auth;
mod contacts;
mod crowd;
mod docs;
mod document;
mod drain;
mod drift;
mod error;
mod events;
mod extract;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod headers;
mod health;
mod hint;
mod history;
mod hosts;
mod idempotency;
mod instances;
mod jobs;
mod metrics;
mod pace;
mod pages;
mod permits;
mod places;
mod pools;
mod ports;
mod proxy;
mod rates;
mod refusals;
mod request;
mod reservations;
mod routes;
mod serve;
mod targets;
mod tls;
mod tokens;
mod watch;

/// What does not compile, and that it does not. No part of the API: nothing in it can be made outside of this crate.
///
/// Who calls can be extracted behind a door:
///
/// ```
/// use axum::extract::FromRequestParts;
/// use gk_server::proof::{App, Caller, Guarded};
/// fn extracts<T: FromRequestParts<S>, S: Send + Sync>() {}
/// extracts::<Caller, Guarded>();
/// ```
///
/// and on no open route:
///
/// ```compile_fail,E0277
/// use axum::extract::FromRequestParts;
/// use gk_server::proof::{App, Caller, Guarded};
/// fn extracts<T: FromRequestParts<S>, S: Send + Sync>() {}
/// extracts::<Caller, App>();
/// ```
///
/// So a handler that takes a caller makes a guarded route:
///
/// ```
/// use axum::handler::Handler;
/// use gk_server::proof::{App, Caller, Guarded};
/// async fn handler(_: Caller) {}
/// fn serves<T, S>(_: impl Handler<T, S>) {}
/// serves::<_, Guarded>(handler);
/// ```
///
/// and no open one:
///
/// ```compile_fail,E0277
/// use axum::handler::Handler;
/// use gk_server::proof::{App, Caller, Guarded};
/// async fn handler(_: Caller) {}
/// fn serves<T, S>(_: impl Handler<T, S>) {}
/// serves::<_, App>(handler);
/// ```
///
/// Nor can anybody make the state that stands for a door:
///
/// ```compile_fail,E0423
/// use gk_server::proof::{App, Guarded};
/// fn door(app: App) -> Guarded {
///     Guarded(app)
/// }
/// ```
#[doc(hidden)]
pub mod proof {
    pub use crate::app::App;
    pub use crate::auth::{Caller, Guarded};
}

#[cfg(test)]
mod tests;

pub use app::{Clock, Config};
pub use auth::Peer;
pub use health::health_of;
pub use hosts::{HostName, HostNameError, Hosts};
pub use proxy::{Cidr, CidrError};
pub use rates::{RateLimit, RateLimitError};
pub use routes::router;
pub use serve::{Listeners, ServeError, run};
pub use tls::{Tls, TlsError, TlsName, TlsNameError, TlsSource};
