//! The agent as people start it: its options, its signals, and how it ends.
//!
//! **Owns** the program `gatekeeper-agent`, which runs on every machine, and as root on most. `gatekeeper agent` is the same.
//!
//! **Promises** that there is nothing in the program that an agent does not need: no server, no database, no runtime for
//! them. It is a quarter of the other one's size, in memory and on the way to five thousand machines, and so is what has
//! to be trusted there.

mod args;
mod run;

pub use args::{AgentArgs, EngineArgs};
pub use run::{needs_people, run};

/// The configuration file of agents.
pub const CONFIG_FILE: &str = "/etc/gatekeeper/agent.toml";
