//! What the machine says of itself. Every fact stands alone: one that cannot be read is left out.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;

use gk_model::facts::Facts;
use gk_model::text::Observed;

use crate::ephemeral::ephemeral_range;
use crate::machine_id::machine;
use crate::sys;
use crate::virtualisation::virtualisation;

/// The facts of this machine and of the calling thread's network namespace, told by a program of this version.
pub fn facts(agent_version: &str) -> Facts {
    let uname = sys::uname();
    let known = |text: &str| (!text.is_empty()).then(|| Observed::new(text));
    let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
    Facts {
        host_name: uname.as_ref().map(|uname| Observed::new(&uname.host_name)).unwrap_or_default(),
        os: read("/etc/os-release").or_else(|| read("/usr/lib/os-release")).as_deref().and_then(pretty_name),
        kernel: uname.as_ref().and_then(|uname| known(&uname.kernel)),
        architecture: uname.as_ref().and_then(|uname| known(&uname.architecture)),
        cpu_model: cpu_model(&cpuinfo),
        cpu_count: read("/sys/devices/system/cpu/online").as_deref().and_then(count_listed),
        memory_bytes: read("/proc/meminfo").as_deref().and_then(total_memory_bytes),
        addresses: telling_addresses(sys::interface_addresses()),
        virtualisation: Some(Observed::new(virtualisation(&cpuinfo))),
        ephemeral_ports: ephemeral_range(),
        boot_id: read("/proc/sys/kernel/random/boot_id").and_then(|id| id.trim().parse().ok()),
        netns_inode: fs::metadata("/proc/thread-self/ns/net").ok().map(|namespace| namespace.ino()),
        machine: machine(),
        agent_version: known(agent_version),
        protection: None,
        // Of the agent's process, and the caller may be another program.
        sight: None,
    }
}

fn read(path: &str) -> Option<String> {
    fs::read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// `PRETTY_NAME` of os-release(5), whose values may be quoted as in a shell.
fn pretty_name(os_release: &str) -> Option<Observed> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?.trim();
    let bare = ['"', '\'']
        .iter()
        .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote))
        .unwrap_or(value);
    let plain = ["\\\"", "\\$", "\\`", "\\\\"]
        .iter()
        .fold(bare.to_owned(), |text, escaped| text.replace(escaped, &escaped[1..]));
    (!plain.is_empty()).then(|| Observed::new(&plain))
}

/// x86 calls it `model name`, ARM gives a `Model` of the board, MIPS a `cpu model`, POWER a `cpu`.
fn cpu_model(cpuinfo: &str) -> Option<Observed> {
    ["model name", "cpu model", "cpu", "Model"].iter().find_map(|wanted| {
        cpuinfo.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == *wanted && !value.trim().is_empty()).then(|| Observed::new(value.trim()))
        })
    })
}

/// How many numbers a kernel list such as `0-3,6` holds.
fn count_listed(list: &str) -> Option<u32> {
    list.trim().split(',').try_fold(0u32, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

/// `MemTotal:  32824428 kB`, where a kB is 1024 bytes.
fn total_memory_bytes(meminfo: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// In order and once each, without those that every machine has or that mean nothing to others.
fn telling_addresses(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.retain(|address| match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    });
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_in_all_their_forms() {
        let os = |text| pretty_name(text).map(|name| name.to_string());
        assert_eq!(
            os("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n").unwrap(),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(os("PRETTY_NAME='Arch'\n").unwrap(), "Arch");
        assert_eq!(os("PRETTY_NAME=Alpine\n").unwrap(), "Alpine");
        assert_eq!(os("PRETTY_NAME=\"a \\\"b\\\" \\$c\"\n").unwrap(), "a \"b\" $c");
        assert_eq!((os("PRETTY_NAME=\"\"\n"), os("NAME=x\n")), (None, None));
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: Xeon\n").unwrap().as_str(), "Xeon");
        assert_eq!(
            cpu_model("processor\t: 0\nModel\t\t: Raspberry Pi 4\n").unwrap().as_str(),
            "Raspberry Pi 4"
        );
        assert_eq!(["0-3,6\n", "0", "3-1", "", "x"].map(count_listed), [Some(5), Some(1), None, None, None]);
        assert_eq!(total_memory_bytes("MemTotal:       2 kB\nMemFree: 1 kB\n"), Some(2048));
        assert_eq!(total_memory_bytes("MemTotal: much\n"), None);
    }

    #[test]
    fn only_addresses_that_mean_something_to_others_are_told() {
        let all = ["fe80::1", "10.0.0.2", "127.0.0.1", "::1", "169.254.9.9", "2001:db8::1", "10.0.0.2"];
        let told = telling_addresses(all.iter().map(|address| address.parse().unwrap()).collect());
        assert_eq!(told.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.2", "2001:db8::1"]);
    }

    #[test]
    fn this_machine_has_facts() {
        let facts = facts("1.2.3");
        let host_name = read("/proc/sys/kernel/hostname").unwrap();
        assert_eq!(facts.host_name.as_str(), host_name.trim());
        assert_eq!(facts.cpu_count.map(|count| count > 0), Some(true));
        assert!(facts.boot_id.is_some() && facts.kernel.is_some() && facts.ephemeral_ports.is_some());
        assert!(facts.memory_bytes.is_some_and(|bytes| bytes > 1 << 20));
        assert!(facts.same_network_stack(&facts));
        assert_eq!(facts.agent_version.unwrap().as_str(), "1.2.3");
    }
}
