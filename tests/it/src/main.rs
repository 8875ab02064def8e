//! The workspace's integration tests: one binary, real databases, real sockets, real processes.

mod process;
mod store;
