//! What this process may see of others.

use std::fmt;
use std::fs;

const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_DAC_READ_SEARCH: u32 = 2;
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_ADMIN: u32 = 21;

/// The capabilities that decide what a scan shows, and what of it can be acted upon. Displays as one line for logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Privileges {
    /// CAP_SYS_PTRACE: may ask which file a descriptor of another account's process is, and where that process is.
    pub sys_ptrace: bool,
    /// CAP_DAC_READ_SEARCH, or CAP_DAC_OVERRIDE which includes it: may list the descriptors at all.
    pub dac_read_search: bool,
    /// CAP_SYS_ADMIN: may enter other network namespaces.
    pub sys_admin: bool,
    /// CAP_NET_ADMIN: may keep the kernel off reserved ports.
    pub net_admin: bool,
}

/// Something that takes capabilities, all of them.
struct Ability {
    what: &'static str,
    takes: &'static [Capability],
}

/// Its name, and whether it is there.
type Capability = (&'static str, fn(Privileges) -> bool);

const SYS_PTRACE: Capability = ("CAP_SYS_PTRACE", |privileges| privileges.sys_ptrace);
const DAC_READ_SEARCH: Capability = ("CAP_DAC_READ_SEARCH", |privileges| privileges.dac_read_search);
const SYS_ADMIN: Capability = ("CAP_SYS_ADMIN", |privileges| privileges.sys_admin);

/// What needs no capability.
const ALWAYS: &str = "listeners of its own network namespace with account, systemd unit and container";

/// What a scan shows with capabilities only, in the order in which they are usually given.
const ABILITIES: [Ability; 2] = [
    Ability { what: "processes of other accounts", takes: &[SYS_PTRACE, DAC_READ_SEARCH] },
    Ability { what: "other network namespaces", takes: &[SYS_ADMIN, SYS_PTRACE] },
];

impl Privileges {
    /// Whether processes of all accounts can be seen; either capability alone shows only our own.
    pub fn sees_other_accounts(self) -> bool {
        self.sys_ptrace && self.dac_read_search
    }

    /// Whether other network namespaces can be found and entered. CAP_SYS_ADMIN alone enters those that are mounted, as
    /// under `/run/netns`, and those of our own account.
    pub fn enters_other_namespaces(self) -> bool {
        self.sys_ptrace && self.sys_admin
    }

    /// What a scan shows.
    pub fn seen(self) -> Vec<&'static str> {
        let given = ABILITIES.iter().filter(|ability| ability.lacks(self).is_empty());
        std::iter::once(ALWAYS).chain(given.map(|ability| ability.what)).collect()
    }

    /// What a scan does not show, with the capabilities that it lacks for it: `(what, "CAP_A and CAP_B")`.
    pub fn unseen(self) -> Vec<(&'static str, String)> {
        let lacking = |ability: &Ability| (ability.what, ability.lacks(self).join(" and "));
        ABILITIES.iter().map(lacking).filter(|(_, lacks)| !lacks.is_empty()).collect()
    }
}

impl Ability {
    fn lacks(&self, privileges: Privileges) -> Vec<&'static str> {
        self.takes.iter().filter(|(_, has)| !has(privileges)).map(|(name, _)| *name).collect()
    }
}

impl fmt::Display for Privileges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sees: {}", self.seen().join(", "))?;
        for (index, (what, lacks)) in self.unseen().iter().enumerate() {
            let before = if index == 0 { "; not seen: " } else { ", " };
            write!(f, "{before}{what} ({lacks} missing)")?;
        }
        Ok(())
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
        sys_admin: has(CAP_SYS_ADMIN),
        net_admin: has(CAP_NET_ADMIN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_what_it_costs() {
        let of = |bits: u64| parse(&format!("Name:\tx\nCapPrm:\t{:016x}\nCapEff:\t{bits:016x}\n", u64::MAX));
        let (ptrace, read, over, admin, net) = (1 << 19, 1 << 2, 1 << 1, 1 << 21, 1 << 12);
        let (accounts, namespaces) = ("processes of other accounts", "other network namespaces");
        let table: [(u64, &[(&str, &str)]); 7] = [
            (u64::MAX, &[]),
            (ptrace | over | admin, &[]),
            (ptrace | read, &[(namespaces, "CAP_SYS_ADMIN")]),
            (read | admin, &[(accounts, "CAP_SYS_PTRACE"), (namespaces, "CAP_SYS_PTRACE")]),
            (ptrace | admin, &[(accounts, "CAP_DAC_READ_SEARCH")]),
            (admin, &[(accounts, "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"), (namespaces, "CAP_SYS_PTRACE")]),
            (
                net,
                &[
                    (accounts, "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"),
                    (namespaces, "CAP_SYS_ADMIN and CAP_SYS_PTRACE"),
                ],
            ),
        ];
        for (bits, unseen) in table {
            let privileges = of(bits);
            let told = privileges.unseen();
            let told: Vec<_> = told.iter().map(|(what, lacks)| (*what, lacks.as_str())).collect();
            assert_eq!(told, unseen, "{bits:x}");
            assert_eq!(privileges.seen().len(), 3 - unseen.len(), "{bits:x}");
            assert_eq!(privileges.sees_other_accounts(), !unseen.iter().any(|(what, _)| *what == accounts));
            assert_eq!(
                privileges.enters_other_namespaces(),
                !unseen.iter().any(|(what, _)| *what == namespaces)
            );
        }
        assert_eq!(parse("nonsense"), Privileges::default());
        assert!(of(net).net_admin && !of(0).net_admin);
    }

    #[test]
    fn it_is_told_in_one_line() {
        let none = "sees: listeners of its own network namespace with account, systemd unit and container; not seen: \
                    processes of other accounts (CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH missing), other network \
                    namespaces (CAP_SYS_ADMIN and CAP_SYS_PTRACE missing)";
        assert_eq!(Privileges::default().to_string(), none);
        let all = Privileges { sys_ptrace: true, dac_read_search: true, sys_admin: true, net_admin: true };
        assert_eq!(
            all.to_string(),
            "sees: listeners of its own network namespace with account, systemd unit and container, processes of other \
             accounts, other network namespaces"
        );
    }
}
