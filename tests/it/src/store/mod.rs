//! The store, called directly: every promise that does not need a process or a socket, on each database alike.

pub(crate) mod world;

#[path = "suite.rs"]
mod postgres;
#[path = "suite.rs"]
#[expect(clippy::duplicate_mod, reason = "the point: the same tests once more, on the other database")]
mod sqlite;
