//! The agent as people start it: its options, its signals, and how it ends.
//!
//! **Owns** the program `gatekeeper-agent`, which runs on every machine, and as root on most. `gatekeeper agent` is the same.
//!
//! **Promises** that there is nothing in the program that an agent does not need: no server, no database, no runtime for
//! them. It is a third of the other one's size on the way to five thousand machines, takes two thirds of the memory, and
//! there is less to be trusted.

mod args;
mod run;

pub use args::{AgentArgs, EngineArgs};
pub use run::{needs_people, run};

/// The configuration file of agents.
pub const CONFIG_FILE: &str = "/etc/gatekeeper/agent.toml";
