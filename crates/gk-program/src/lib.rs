//! What Gatekeeper's services have in common as programs: where their options come from, their logs, and what they tell the
//! service manager that started them.
//!
//! **Owns** the configuration file, the options of every command, and the conventions of the environment: a variable
//! `GATEKEEPER_…` for each option, of which an empty one is as good as none.
//!
//! **Promises** that one parser judges what is written in any of these places, that no secret is repeated in an error, a
//! log or a print of the configuration, and that a service manager that does not listen is no reason to end.
//!
//! **Refuses** to know any role: whose options they are is the program's concern.

mod account;
pub mod config;
mod config_file;
mod logs;
mod mask;
pub mod service;

pub use account::{is_root, own_uid};
pub use config::{env, switch};
pub use logs::{LogArgs, start_logs};
