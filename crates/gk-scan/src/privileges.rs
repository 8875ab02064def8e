//! What this process may see of others.

use std::fmt;
use std::fs;

const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_DAC_READ_SEARCH: u32 = 2;
const CAP_SYS_PTRACE: u32 = 19;

/// Whether the owners of sockets can be told when they belong to other accounts. Without it, listeners are still seen,
/// with account, unit and container. Displays as one sentence for logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privileges {
    /// CAP_SYS_PTRACE: may ask which file a descriptor of another account's process is.
    pub sys_ptrace: bool,
    /// CAP_DAC_READ_SEARCH, or CAP_DAC_OVERRIDE which includes it: may list the descriptors at all.
    pub dac_read_search: bool,
}

impl Privileges {
    /// Whether processes of all accounts can be seen; either capability alone shows only our own.
    pub fn sees_other_accounts(self) -> bool {
        self.sys_ptrace && self.dac_read_search
    }
}

impl fmt::Display for Privileges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.sys_ptrace, self.dac_read_search) {
            (true, true) => "The processes of all accounts can be seen.",
            (true, false) => "Only processes of this account can be seen: CAP_DAC_READ_SEARCH is missing.",
            (false, true) => "Only processes of this account can be seen: CAP_SYS_PTRACE is missing.",
            (false, false) => {
                "Only processes of this account can be seen: CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH are missing."
            }
        })
    }
}

/// The effective capabilities of the calling thread; none when they cannot be read.
pub fn privileges() -> Privileges {
    parse(&fs::read_to_string("/proc/thread-self/status").unwrap_or_default())
}

/// `CapEff:` is 64 bits in hexadecimal, see proc_pid_status(5).
fn parse(status: &str) -> Privileges {
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or(0);
    let has = |capability: u32| effective >> capability & 1 == 1;
    Privileges {
        sys_ptrace: has(CAP_SYS_PTRACE),
        dac_read_search: has(CAP_DAC_READ_SEARCH) || has(CAP_DAC_OVERRIDE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_capabilities_are_needed() {
        let of = |bits: u64| parse(&format!("Name:\tx\nCapPrm:\t{:016x}\nCapEff:\t{bits:016x}\n", u64::MAX));
        let table = [
            (0, false),
            (1 << 19, false),
            (1 << 2, false),
            (1 << 19 | 1 << 2, true),
            (1 << 19 | 1 << 1, true),
        ];
        for (bits, all) in table {
            assert_eq!(of(bits).sees_other_accounts(), all, "{bits:x}");
        }
        assert!(!parse("nonsense").sees_other_accounts());
        assert!(of(0).to_string().contains("CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"));
    }
}
