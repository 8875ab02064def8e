//! The kernel view of a Linux machine: which sockets accept traffic, who holds them, and what the machine is.
//!
//! **Owns** everything that is asked of the kernel: sock_diag dumps over netlink, `/proc`, cgroups, and the facts that
//! an instance tells of itself; and the one thing that the kernel is told, its list of reserved ports. It is the only
//! crate that names netlink.
//!
//! **Promises** that a scan shows exactly what the kernel has, as far as it may be seen: every TCP socket in LISTEN, and
//! every UDP server as `ephemeral` decides. What could not be read is left out and said to be left out
//! ([`Coverage::parts`]), never guessed. No text of a process reaches a caller unescaped, no byte of the kernel makes it
//! panic, and without any privilege it shows everything of its own network namespace but the processes of other
//! accounts. It keeps no other namespace alive.
//!
//! **Refuses** to keep time (`now` is an argument), and to talk to a container engine.
//!
//! ```text
//! Scanner ┬ Namespace ─ Tables ─ Netlink ┬ Dump       the sockets of one network namespace
//!         │                              └ parse
//!         ├ Others ┬ Doors ─ Mounts                   which other ones there are
//!         │        └ Visitor ─ Namespace              the thread that looks into them
//!         ├ Processes
//!         ├ Owners ─ look ─ Process ─ sys             who holds the sockets
//!         ├ Cgroups ─ place                           unit and container
//!         └ Accounts                                  names of accounts
//! ```

mod accounts;
mod cgroup;
mod doors;
mod dump;
mod ephemeral;
mod error;
mod facts;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod look;
mod machine_id;
mod mounts;
mod namespace;
mod netlink;
mod numbers;
mod others;
mod owners;
mod parse;
mod part_sockets;
mod place;
mod polled;
mod ports;
mod privileges;
mod process;
mod processes;
mod reserved;
mod scanner;
mod sys;
mod tables;
#[cfg(test)]
mod truth;
mod virtualisation;
mod visitor;

pub use accounts::account_name;
pub use ephemeral::ephemeral_range;
pub use error::ScanError;
pub use facts::facts;
pub use ports::{busy_ports, test_bind};
pub use privileges::{Privileges, privileges};
pub use process::is_running;
pub use reserved::{ReservedList, reserved_ports};
pub use scanner::{Coverage, Scan, Scanner};
