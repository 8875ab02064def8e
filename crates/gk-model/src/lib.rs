//! What Gatekeeper talks about: words, rules and wire types.
//!
//! Everything here is a value or a pure function. This crate reads no file, opens no socket and knows no database, so
//! that every rule can be stated once and tested by tables and properties. Two functions touch the world, both by
//! design at the very edge: [`time::Timestamp::from_clock`] and the random part of a new id.

// Here, because every other crate is built after this one: so it is the only error that anybody sees.
#[cfg(not(target_os = "linux"))]
compile_error!(
    "Gatekeeper observes listeners through the Linux kernel, which no other system has: build it on Linux"
);

pub mod access;
pub mod contact;
pub mod drift;
pub mod engine;
pub mod expect;
pub mod facts;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod health;
pub mod history;
pub mod id;
pub mod idempotency;
pub mod identity;
pub mod ignore;
pub mod instance;
pub mod labels;
pub mod lease;
pub mod listener;
pub mod paths;
pub mod pin;
pub mod pool;
pub mod port;
pub mod port_set;
pub mod port_state;
pub mod problem;
pub mod protection;
pub mod query;
pub mod reservation;
pub mod secret;
pub mod status;
pub mod text;
mod text_form;
pub mod time;
pub mod token;
pub mod watch;

pub use text_form::WordError;
