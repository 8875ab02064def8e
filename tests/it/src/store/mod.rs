//! The store, called directly: every promise that does not need a process or a socket.

mod allocation;
mod contacts;
mod history;
mod instances;
mod world;
