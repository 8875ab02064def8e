//! The workspace's integration tests: one binary, real databases, real sockets, real processes.

#![expect(clippy::unwrap_used, reason = "every line here is a test, where a panic is the verdict")]

mod cluster;
mod house;
mod postgres;
mod process;
mod store;
