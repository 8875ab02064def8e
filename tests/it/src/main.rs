//! The workspace's integration tests: one binary, real databases, real sockets, real processes.

mod house;
mod process;
mod store;
