//! Protection: the kernel of an instance keeps off its reserved ports when it picks ports by itself.
//!
//! The kernel has a list for that, `net.ipv4.ip_local_reserved_ports`. It knows numbers, not protocols, so neither does
//! anything here.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::port_set::PortSet;
use crate::text::Observed;
use crate::text_form::words;

/// The numbers that are reserved on an instance, over TCP and UDP, for itself or for all instances.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReservedPorts {
    /// As few ranges as possible: `["8000-8009", "9100"]`.
    pub ports: PortSet,
}

words! {
    /// How far the kernel keeps off reserved ports.
    ProtectionState, "a state of protection" {
        /// All of them are in the kernel's list; it was read to be sure.
        Enforced = "enforced",
        /// Some of them are not, or some are still there that are not reserved any more.
        Partial = "partial",
        /// All of them are, but somebody had taken some out, and they were put back.
        Drifted = "drifted",
        /// The agent does not protect.
        Off = "off",
    }
}

/// How far the kernel of an instance keeps off its reserved ports. Displays as people read it: `enforced, 12 ports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Protection {
    /// The state.
    pub state: ProtectionState,
    /// How many reserved ports the kernel keeps off.
    pub ports: u32,
    /// How many reserved ports it does not.
    pub missing: u32,
    /// Why it is so, or what else to know of it.
    pub reason: Option<Observed>,
}

impl Protection {
    /// Of an agent that does not protect.
    pub fn off(reason: Option<Observed>) -> Protection {
        Protection { state: ProtectionState::Off, ports: 0, missing: 0, reason }
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Protection { state, ports, missing, reason } = self;
        write!(f, "{state}")?;
        match (state, missing) {
            (ProtectionState::Off, _) => {}
            (_, 0) => write!(f, ", {ports} {}", if *ports == 1 { "port" } else { "ports" })?,
            (_, missing) => write!(f, ", {ports} of {} ports", ports + missing)?,
        }
        match reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_it_in_one_line() {
        let told = |state, ports, missing, reason: Option<&str>| {
            Protection { state, ports, missing, reason: reason.map(Observed::new) }.to_string()
        };
        assert_eq!(told(ProtectionState::Enforced, 12, 0, None), "enforced, 12 ports");
        assert_eq!(told(ProtectionState::Drifted, 1, 0, Some("why")), "drifted, 1 port: why");
        assert_eq!(told(ProtectionState::Partial, 3, 9, Some("why")), "partial, 3 of 12 ports: why");
        assert_eq!(told(ProtectionState::Off, 0, 0, None), "off");
    }
}
