//! Built programs as real processes: what only shows when something is killed, restarted or typed.

mod agent;
mod backup;
mod cli;
mod config;
mod contract;
pub(crate) mod crash;
mod disk;
mod doctor;
mod drift;
mod forms;
pub(crate) mod harness;
mod history;
mod host;
mod monitoring;
mod pools;
mod postgres;
mod protect;
mod retries;
mod server;
mod service;
mod stories;
mod sync;
mod tls;
mod tokens;
mod truth;
mod watch;
