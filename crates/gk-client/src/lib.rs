//! The typed client of a Gatekeeper server, and the files that say who this machine is.
//!
//! [`Client`] has one blocking method per route of the API, named by the same stem as the route's handler. It speaks
//! HTTP over TCP, over TLS that is always verified, or over the server's Unix socket, keeps one connection open, follows no redirect, asks no proxy, and
//! reads no answer beyond a bound. It never repeats a request that could take effect twice. By itself it repeats two
//! kinds: a read or contact that met a connection the server had closed meanwhile, once; and a request that makes
//! something, which goes under an idempotency key, for a few seconds when its answer is lost or the server is away
//! ([`Client::with_patience`]). A [`Watch`] is told events as they happen, and goes on by itself where it was interrupted.
//!
//! Next to it live the files that `gkctl` and the agent share: the [`identity`] of this machine, the agent's
//! [`session`], what it put into the kernel's list of reserved ports ([`protection`]), what container [`engines`] told it,
//! and the [`lock`] that tells whether an agent runs; and the tokens that `gkctl login` keeps ([`login`]). And [`get_local`], the one request to somebody else's server: a read
//! over a Unix socket of this machine, which no token goes to.
//!
//! This is the only crate that names an HTTP client; its errors speak of servers and sockets instead.

mod address;
mod client;
mod distrust;
pub mod engines;
mod error;
mod exchange;
mod files;
pub mod identity;
pub mod join;
mod local;
pub mod lock;
pub mod login;
mod pages;
pub mod protection;
mod retry;
mod routes;
pub mod session;
mod sse;
mod tls;
mod transport;
mod trust;
mod watch;

#[cfg(test)]
mod canned;
#[cfg(test)]
mod tests;

pub use address::{AddressError, Authority, ServerAddress};
pub use client::Client;
pub use distrust::Distrust;
pub use error::{ClientError, ProtocolFault};
pub use local::{LocalAnswer, get_local};
pub use pages::all_pages;
pub use routes::Joined;
pub use watch::{News, Watch};
