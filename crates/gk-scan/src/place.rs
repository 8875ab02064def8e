//! What the path of a cgroup tells: the systemd unit and the container. Pure.
//!
//! Whoever was given a cgroup may make directories of any name below it. So both are read from the outside in, and the
//! first answer stands: a container cannot pass for another one, nor a user's service for one of the system.
//!
//! Sources: systemd's `CGROUP_DELEGATION` and `cg_path_get_unit`; runc's and crun's systemd and cgroupfs drivers, which
//! containerd, CRI-O, Docker, Podman and nerdctl configure with their own prefixes; LXC's `lxc.cgroup.dir.payload`.

use gk_model::listener::Container;
use gk_model::text::Observed;

/// What a cgroup says of the processes in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) unit: Option<Observed>,
    pub(crate) container: Option<Box<Container>>,
}

/// The unit and the container that a cgroup path such as `/system.slice/nginx.service` belongs to.
///
/// A user's unit keeps the path below its manager (`user@1000.service/app.slice/web.service`), to be told from the
/// system's unit of that name. A scope that exists only for a container is not repeated as a unit.
pub(crate) fn place(path: &str) -> Place {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let unit = unit(&segments).map(|unit| Observed::new(&unit));
    let container = (0..segments.len()).find_map(|index| {
        let parent = index.checked_sub(1).and_then(|parent| segments.get(parent));
        let found = container(parent.copied().unwrap_or_default(), segments[index])?;
        // What a container makes below itself says nothing of where it is.
        Some(Box::new(Container { pod: pod(&segments[..=index]).map(|uid| Observed::new(&uid)), ..found }))
    });
    Place { unit, container }
}

/// The pod's uid: `kubepods-burstable-pod<uid>.slice` with `_` for `-`, `kubepods/burstable/pod<uid>`.
fn pod(segments: &[&str]) -> Option<String> {
    let start = segments.iter().position(|segment| segment.starts_with("kubepods"))?;
    segments[start..].iter().find_map(|segment| {
        let bare = segment.split(':').next().unwrap_or_default();
        let uid = match bare.strip_suffix(".slice") {
            Some(slice) => slice.rsplit_once("-pod")?.1.replace('_', "-"),
            None => bare.strip_prefix("pod")?.to_owned(),
        };
        (!uid.is_empty()).then_some(uid)
    })
}

/// The first segment that is no slice, if it is a unit.
fn unit(segments: &[&str]) -> Option<String> {
    let first = segments.iter().position(|segment| !segment.ends_with(".slice"))?;
    let unit = *segments.get(first)?;
    if unit.starts_with("user@") && unit.ends_with(".service") {
        let below = &segments[first + 1..];
        let inner = below.iter().position(|segment| !segment.ends_with(".slice"));
        let inner = inner.filter(|inner| is_unit(below[*inner]));
        return Some(segments[first..=first + inner.map_or(0, |inner| inner + 1)].join("/"));
    }
    is_unit(unit).then(|| unit.to_owned())
}

fn is_unit(segment: &str) -> bool {
    let kinds = [".service", ".socket", ".scope", ".mount", ".swap"];
    kinds.iter().any(|kind| segment.ends_with(kind))
        && container("", segment).is_none_or(|_| is_nspawn(segment))
}

/// systemd-nspawn's template is a service that an administrator may name, not a scope made up by an engine.
fn is_nspawn(segment: &str) -> bool {
    segment.starts_with("systemd-nspawn@")
}

/// The container that a segment names, given the one before it.
fn container(parent: &str, segment: &str) -> Option<Container> {
    let made_by =
        |engine: &str, id: &str| Container { id: id.into(), name: None, engine: engine.into(), pod: None };
    if let Some((engine, id)) = by_runtime(segment) {
        return Some(made_by(engine, id));
    }
    if let Some(name) = by_lxc(parent, segment) {
        return Some(made_by("lxc", name));
    }
    if let Some(name) = by_machined(parent, segment) {
        return Some(made_by("nspawn", &name));
    }
    // The cgroupfs drivers: /docker/<id>, /kubepods/burstable/pod<uid>/<id>. The latter was Docker's too until
    // Kubernetes 1.24 dropped it.
    let engine = match parent {
        "docker" => "docker",
        "libpod_parent" => "podman",
        _ if parent.starts_with("pod") => "containerd",
        _ => return None,
    };
    is_id(segment).then(|| made_by(engine, segment))
}

/// `docker-<id>.scope` and its like, with or without `.scope`, and containerd's `<slice>:cri-containerd:<id>`.
fn by_runtime(segment: &str) -> Option<(&'static str, &str)> {
    const PREFIXES: [(&str, &str); 5] = [
        ("docker-", "docker"),
        ("cri-containerd-", "containerd"),
        ("crio-", "cri-o"),
        ("libpod-", "podman"),
        ("nerdctl-", "containerd"),
    ];
    let bare = segment.strip_suffix(".scope").unwrap_or(segment);
    let by_prefix = PREFIXES.iter().find_map(|(prefix, engine)| Some((*engine, bare.strip_prefix(prefix)?)));
    by_prefix
        .or_else(|| bare.rsplit_once(":cri-containerd:").map(|(_, id)| ("containerd", id)))
        .filter(|(_, id)| is_id(id))
}

/// Engines number containers with 64 hexadecimal digits.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// `lxc.payload.<name>` since LXC 4, `lxc.payload/<name>` and `lxc/<name>` before; the monitor runs outside.
fn by_lxc<'a>(parent: &str, segment: &'a str) -> Option<&'a str> {
    let name = match parent {
        "lxc" | "lxc.payload" => Some(segment),
        _ => segment.strip_prefix("lxc.payload."),
    };
    name.filter(|name| !name.is_empty())
}

/// `systemd-nspawn@<name>.service`, and `machine-<name>.scope` in machine.slice unless libvirt runs a VM there.
fn by_machined(parent: &str, segment: &str) -> Option<String> {
    let service = segment.strip_prefix("systemd-nspawn@").and_then(|rest| rest.strip_suffix(".service"));
    let scope = || segment.strip_prefix("machine-").and_then(|rest| rest.strip_suffix(".scope"));
    let name = unescape(service.or_else(|| scope().filter(|_| parent == "machine.slice"))?);
    (!name.is_empty() && !name.starts_with("qemu-") && !name.starts_with("lxc-")).then_some(name)
}

/// Undoes systemd's `\x2d`.
fn unescape(text: &str) -> String {
    let mut pieces = text.split("\\x");
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let code = piece.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match code.filter(u8::is_ascii) {
            Some(code) => plain.extend([char::from(code).to_string().as_str(), &piece[2..]]),
            None => plain.extend(["\\x", piece]),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "3f2a91c05b7e4d6f8a1b2c3d4e5f60713f2a91c05b7e4d6f8a1b2c3d4e5f6071";
    const OTHER: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";

    /// Path, unit, engine and id of the container.
    const FORMS: &[(&str, &str, &str)] = &[
        ("/", "", ""),
        ("", "", ""),
        ("/init.scope", "init.scope", ""),
        ("/system.slice/nginx.service", "nginx.service", ""),
        ("/system.slice/cups.socket", "cups.socket", ""),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service", ""),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope", ""),
        ("/user.slice/user-1000.slice/user@1000.service", "user@1000.service", ""),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/web.service",
            "user@1000.service/app.slice/web.service",
            "",
        ),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", "user@1000.service/init.scope", ""),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container",
            "user@1000.service",
            "podman ID",
        ),
        ("/system.slice/docker-ID.scope", "", "docker ID"),
        ("/docker/ID", "", "docker ID"),
        ("/docker/ID/system.slice/nginx.service", "", "docker ID"),
        ("/system.slice/docker-ID.scope/init.scope", "", "docker ID"),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1a_2b.slice/cri-containerd-ID.scope",
            "",
            "containerd ID pod 1a-2b",
        ),
        (
            "/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:ID",
            "containerd.service",
            "containerd ID pod 1",
        ),
        ("/kubepods.slice/kubepods-pod1.slice/crio-ID.scope", "", "cri-o ID pod 1"),
        ("/kubepods.slice/kubepods-pod1.slice/crio-conmon-ID.scope", "crio-conmon-ID.scope", ""),
        ("/kubepods/burstable/pod1a-2b/ID", "", "containerd ID pod 1a-2b"),
        ("/kubepods/burstable/podaa/docker-ID.scope", "", "docker ID pod aa"),
        ("/kubepods.slice/kubepods-pod1.slice", "", ""),
        ("/machine.slice/libpod-ID.scope/container", "", "podman ID"),
        ("/machine.slice/libpod-conmon-ID.scope", "libpod-conmon-ID.scope", ""),
        ("/libpod_parent/ID", "", "podman ID"),
        ("/system.slice/nerdctl-ID.scope", "", "containerd ID"),
        ("/lxc.payload.web", "", "lxc web"),
        ("/lxc.payload.web/system.slice/nginx.service", "", "lxc web"),
        ("/lxc.payload/web", "", "lxc web"),
        ("/lxc/web", "", "lxc web"),
        ("/lxc.monitor.web", "", ""),
        ("/machine.slice/machine-deb\\x2d12.scope/payload", "machine-deb\\x2d12.scope", "nspawn deb-12"),
        ("/machine.slice/systemd-nspawn@deb.service/payload", "systemd-nspawn@deb.service", "nspawn deb"),
        ("/machine.slice/machine-qemu\\x2d1\\x2dvm.scope", "machine-qemu\\x2d1\\x2dvm.scope", ""),
        // Not what they pretend to be.
        ("/docker/ID/docker/OTHER", "", "docker ID"),
        ("/docker/ID/kubepods/podaa/OTHER", "", "docker ID"),
        ("/system.slice/a.service/nginx.service", "a.service", ""),
        ("/system.slice/docker-3f2a.scope", "docker-3f2a.scope", ""),
        ("/ID", "", ""),
        ("/process_api/2addcf80599c6d0137290f737d8cb285", "", ""),
    ];

    #[test]
    fn every_form_of_path_is_known() {
        for (path, unit, container) in FORMS {
            let real = |text: &str| text.replace("ID", ID).replace("OTHER", OTHER);
            let Place { unit: found_unit, container: found } = place(&real(path));
            let pod =
                |found: &Container| found.pod.as_ref().map(|pod| format!(" pod {pod}")).unwrap_or_default();
            let found = found
                .map(|found| format!("{} {}{}", found.engine, found.id, pod(&found)))
                .unwrap_or_default();
            let found_unit = found_unit.as_ref().map_or("", Observed::as_str);
            assert_eq!((found_unit, found), (real(unit).as_str(), real(container)), "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_path_makes_it_panic(path in "(/|\\.slice|user@|\\.service|machine-|\\\\x|machine\\.slice/|é|[a-f0-9]){0,12}") {
            place(&path);
        }
    }
}
