//! Facts: what an instance says of itself when it joins, and again when they change.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::port::PortRange;
use crate::protection::Protection;
use crate::text::Observed;

/// What an instance says of itself. A machine that cannot tell something leaves it out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Facts {
    /// The kernel's host name.
    pub host_name: Observed,
    /// The distribution, as `/etc/os-release` names it: `Debian GNU/Linux 12 (bookworm)`.
    pub os: Option<Observed>,
    /// The kernel release: `6.18.44`.
    pub kernel: Option<Observed>,
    /// The hardware architecture: `x86_64`.
    pub architecture: Option<Observed>,
    /// The processor's model name.
    pub cpu_model: Option<Observed>,
    /// How many processors are online.
    pub cpu_count: Option<u32>,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Addresses of its interfaces, loopback and link-local ones left out.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// What it runs in: `none`, `kvm`, `docker`, `lxc`, ….
    pub virtualisation: Option<Observed>,
    /// Where the kernel picks ports by itself (`net.ipv4.ip_local_port_range`).
    pub ephemeral_ports: Option<PortRange>,
    /// `/proc/sys/kernel/random/boot_id`; new at every boot, shared by the containers of a machine.
    pub boot_id: Option<Uuid>,
    /// Inode of the home network namespace; with `boot_id` it names one network stack.
    pub netns_inode: Option<u64>,
    /// An id derived from the machine id: a hint that this machine was seen before, never a proof.
    pub machine: Option<Uuid>,
    /// Version of the program that tells these facts.
    pub agent_version: Option<Observed>,
    /// How far its kernel keeps off its reserved ports; only an agent that runs can tell.
    pub protection: Option<Protection>,
    /// What the agent may see of the machine, and what not for want of which capability; told by agents only.
    pub sight: Option<Observed>,
}

impl Facts {
    /// Whether both tell of the same network stack in the same boot; unknown is not the same.
    pub fn same_network_stack(&self, other: &Facts) -> bool {
        self.boot_id.is_some()
            && self.netns_inode.is_some()
            && (self.boot_id, self.netns_inode) == (other.boot_id, other.netns_inode)
    }
}
