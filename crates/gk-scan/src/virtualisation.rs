//! What the machine runs in: `none`, a container engine or a hypervisor.
//!
//! A container inside of a virtual machine is a container: that is what an operator asks to find it. Names are those of
//! the products. Sources: systemd's detect-virt (`src/basic/virt.c`) for the markers; written from memory of it, not compared line by line.

use std::fs;

/// What may tell, as read; empty where there is nothing.
#[derive(Debug, Default)]
struct Evidence {
    has_containerenv: bool,
    has_dockerenv: bool,
    /// `/run/systemd/container`, which a container's manager writes.
    run_systemd_container: String,
    /// The variable `container` of process 1, readable by root only.
    container_variable: String,
    /// Vendor and product of the machine as its firmware says, one a line.
    dmi: String,
    hypervisor_type: String,
    cpu_flags: String,
    clock_sources: String,
    kernel: String,
}

/// What this machine runs in; `/proc/cpuinfo` was read already.
pub(crate) fn virtualisation(cpuinfo: &str) -> &'static str {
    let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let exists = |path: &str| fs::exists(path).unwrap_or(false);
    let dmi = ["product_name", "sys_vendor", "board_vendor", "bios_vendor", "product_version"];
    let flags = |line: &&str| line.starts_with("flags") || line.starts_with("Features");
    conclude(&Evidence {
        has_containerenv: exists("/run/.containerenv"),
        has_dockerenv: exists("/.dockerenv"),
        run_systemd_container: read("/run/systemd/container"),
        container_variable: container_variable(&fs::read("/proc/1/environ").unwrap_or_default()),
        dmi: dmi.map(|field| read(&format!("/sys/class/dmi/id/{field}"))).join("\n"),
        hypervisor_type: read("/sys/hypervisor/type"),
        cpu_flags: cpuinfo.lines().find(flags).unwrap_or_default().to_owned(),
        clock_sources: read("/sys/devices/system/clocksource/clocksource0/available_clocksource"),
        kernel: read("/proc/sys/kernel/osrelease"),
    })
}

fn container_variable(environment: &[u8]) -> String {
    let value = environment.split(|byte| *byte == 0).find_map(|line| line.strip_prefix(b"container="));
    String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
}

fn conclude(evidence: &Evidence) -> &'static str {
    container(evidence).or_else(|| hypervisor(evidence)).unwrap_or("none")
}

fn container(evidence: &Evidence) -> Option<&'static str> {
    if evidence.has_containerenv {
        return Some("podman");
    }
    if evidence.has_dockerenv {
        return Some("docker");
    }
    [&evidence.run_systemd_container, &evidence.container_variable].into_iter().find_map(|name| {
        Some(match name.as_str() {
            "" => return None,
            "systemd-nspawn" => "nspawn",
            "docker" => "docker",
            "podman" => "podman",
            "lxc" => "lxc",
            "lxc-libvirt" => "libvirt-lxc",
            "rkt" => "rkt",
            "wsl" => "wsl",
            _ => "container",
        })
    })
}

fn hypervisor(evidence: &Evidence) -> Option<&'static str> {
    // Firmware first: it names the product, where the rest only names its technique.
    by_firmware(&evidence.dmi, &evidence.cpu_flags)
        .or_else(|| (evidence.hypervisor_type == "xen").then_some("xen"))
        .or_else(|| evidence.kernel.to_ascii_lowercase().contains("microsoft").then_some("wsl"))
        .or_else(|| is_guest(&evidence.cpu_flags).then(|| by_clock(&evidence.clock_sources)))
}

/// Only x86 has this flag, so elsewhere its absence says nothing.
fn is_guest(cpu_flags: &str) -> bool {
    cpu_flags.split_ascii_whitespace().any(|flag| flag == "hypervisor")
}

fn by_firmware(dmi: &str, cpu_flags: &str) -> Option<&'static str> {
    const MARKS: [(&str, &str); 15] = [
        ("KVM", "kvm"),
        ("OpenStack", "kvm"),
        ("KubeVirt", "kvm"),
        ("DigitalOcean", "kvm"),
        ("Google Compute Engine", "google"),
        ("VMware", "vmware"),
        ("VMW", "vmware"),
        ("VirtualBox", "virtualbox"),
        ("innotek GmbH", "virtualbox"),
        ("Xen", "xen"),
        ("Parallels", "parallels"),
        ("BHYVE", "bhyve"),
        ("Apple Virtualization", "apple"),
        ("Bochs", "bochs"),
        ("QEMU", "qemu"),
    ];
    let line_with = |mark: &str| dmi.lines().any(|line| line.starts_with(mark));
    if line_with("Microsoft Corporation") && line_with("Virtual Machine") {
        return Some("hyper-v");
    }
    // The vendor of bare-metal instances too; those run no hypervisor.
    if line_with("Amazon EC2") {
        return is_guest(cpu_flags).then_some("amazon").or((!dmi.contains(".metal")).then_some("amazon"));
    }
    MARKS.iter().find(|(mark, _)| line_with(mark)).map(|(_, name)| *name)
}

/// Small hypervisors such as Firecracker have no firmware, but a guest keeps time by its hypervisor.
fn by_clock(clock_sources: &str) -> &'static str {
    let has = |source: &str| clock_sources.split_ascii_whitespace().any(|one| one == source);
    match () {
        () if has("kvm-clock") => "kvm",
        () if has("hyperv_clocksource_tsc_page") => "hyper-v",
        () if has("xen") => "xen",
        () => "vm",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_evidence_has_its_name() {
        let guest = || "flags : fpu hypervisor lahf_lm".to_owned();
        let some = Evidence::default;
        let dmi = |text: &str| Evidence { dmi: text.to_owned(), cpu_flags: guest(), ..some() };
        let table = [
            (some(), "none"),
            (Evidence { dmi: "PowerEdge R640\nDell Inc.".to_owned(), ..some() }, "none"),
            (Evidence { has_containerenv: true, ..dmi("KVM") }, "podman"),
            (Evidence { has_dockerenv: true, ..dmi("KVM") }, "docker"),
            (Evidence { run_systemd_container: "systemd-nspawn".to_owned(), ..some() }, "nspawn"),
            (Evidence { container_variable: "lxc".to_owned(), ..some() }, "lxc"),
            (Evidence { container_variable: "my-own".to_owned(), ..some() }, "container"),
            (dmi("Standard PC (Q35 + ICH9, 2009)\nQEMU\n\nSeaBIOS"), "qemu"),
            (dmi("KVM\nRed Hat"), "kvm"),
            (dmi("VMware7,1\nVMware, Inc."), "vmware"),
            (dmi("VirtualBox\ninnotek GmbH"), "virtualbox"),
            (dmi("Virtual Machine\nMicrosoft Corporation"), "hyper-v"),
            (dmi("Google Compute Engine\nGoogle"), "google"),
            (dmi("c5.large\nAmazon EC2"), "amazon"),
            (Evidence { dmi: "c5.metal\nAmazon EC2".to_owned(), ..some() }, "none"),
            (Evidence { dmi: "m6g.large\nAmazon EC2".to_owned(), ..some() }, "amazon"),
            (Evidence { hypervisor_type: "xen".to_owned(), ..some() }, "xen"),
            (Evidence { cpu_flags: guest(), clock_sources: "kvm-clock tsc".to_owned(), ..some() }, "kvm"),
            (Evidence { cpu_flags: guest(), clock_sources: "tsc".to_owned(), ..some() }, "vm"),
            (
                Evidence {
                    kernel: "5.15.90.1-microsoft-standard-WSL2".to_owned(),
                    cpu_flags: guest(),
                    ..some()
                },
                "wsl",
            ),
        ];
        for (evidence, name) in table {
            assert_eq!(conclude(&evidence), name, "{evidence:?}");
        }
        assert_eq!(container_variable(b"PATH=/bin\0container=lxc\0container_ttys=x\0"), "lxc");
    }
}
