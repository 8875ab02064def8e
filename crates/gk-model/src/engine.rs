//! What container engines tell that the kernel does not: names of containers, and ports published into the home namespace.
//!
//! An engine publishes a port by a process that listens (docker-proxy, rootlessport, …), by rewriting packets on their
//! way, which no list of sockets shows, or by both. So a published port is a listener of its own only where no socket is;
//! otherwise the socket's listener gains the container. It has no owners: nobody holds a socket open.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::listener::{Container, Listener, ListenerKey, Netns, Owners};
use crate::port::{Port, Protocol};
use crate::text::Observed;
use crate::time::Timestamp;

/// What one engine told: every container that it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The engine, in the words of [`Container::engine`].
    pub engine: Observed,
    /// Its containers.
    pub containers: Vec<Contained>,
}

/// A container that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contained {
    /// The engine's id, in full.
    pub id: Observed,
    /// Its name.
    pub name: Option<Observed>,
    /// What it publishes.
    #[serde(default)]
    pub published: Vec<Published>,
}

/// A port of the home namespace that leads into a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Published {
    /// The protocol.
    pub protocol: Protocol,
    /// The address; `0.0.0.0` and `::` are the wildcards.
    pub address: IpAddr,
    /// The port.
    pub port: Port,
}

impl Published {
    /// The key of the listener that stands for it where no socket does. Rewriting IPv6 leaves IPv4 alone, so it is never
    /// dual-stack: an engine that publishes both tells two entries.
    fn key(&self) -> ListenerKey {
        ListenerKey {
            netns: Netns::Home,
            protocol: self.protocol,
            port: self.port,
            address: self.address,
            interface: None,
            v6only: self.address.is_ipv6(),
        }
    }

    /// Whether a socket listens at just this place. A dual-stack `::` is at `0.0.0.0` too; a wildcard is not at each
    /// address: somebody else's may well stay beside a port that is published on loopback.
    fn is_at(&self, key: &ListenerKey) -> bool {
        let is_dual_stack = key.address.is_unspecified() && key.address.is_ipv6() && !key.v6only;
        let is_any_v4 = self.address.is_ipv4() && self.address.is_unspecified();
        key.address == self.address || is_dual_stack && is_any_v4
    }
}

/// Programs that listen for a container from outside of it, as the kernel names them: at most 15 characters.
const FORWARDERS: [&str; 12] = [
    "docker-proxy",
    "dockerd",
    "rootlesskit",
    "rootlesskit-doc",
    "rootlessport",
    "slirp4netns",
    "pasta",
    "pasta.avx2",
    "gvproxy",
    "conmon",
    "podman",
    // Programs that start themselves once more, by /proc/self/exe: rootlessport, dockerd of old.
    "exe",
];

/// Whether a program that does so is among its owners.
pub fn forwards(listener: &Listener) -> bool {
    let is_forwarder = |name: &str| FORWARDERS.contains(&name);
    listener.owners.iter().any(|owner| is_forwarder(owner.name.as_str()))
}

/// What all engines of a machine told, ready to be looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Containers {
    names: BTreeMap<Observed, Observed>,
    published: BTreeMap<(Protocol, Port), Vec<(Published, Container)>>,
}

impl Containers {
    /// Of these answers, in whatever order they came.
    pub fn of<'a>(told: impl IntoIterator<Item = &'a Told>) -> Containers {
        let mut containers = Containers::default();
        let mut published = BTreeMap::new();
        for Told { engine, containers: all } in told {
            for Contained { id, name, published: ports } in all {
                if let Some(name) = name {
                    containers.names.insert(id.clone(), name.clone());
                }
                let container =
                    Container { id: id.clone(), name: name.clone(), engine: engine.clone(), pod: None };
                for port in ports {
                    let holder = published.entry(*port).or_insert_with(|| container.clone());
                    // All containers of a Podman pod tell the ports of the pod. One of them stands for it, always the same.
                    if container.name < holder.name {
                        *holder = container.clone();
                    }
                }
            }
        }
        for (port, container) in published {
            containers.published.entry((port.protocol, port.port)).or_default().push((port, container));
        }
        containers
    }

    /// Names the containers of these listeners, and adds those that stand for published ports; `now` dates them.
    pub fn apply(&self, listeners: &mut Vec<Listener>, now: Timestamp) {
        self.apply_where(listeners, now, |_| true);
    }

    /// The same, with a say in which published ports may stand without a socket. Answers those that have one.
    pub fn apply_where(
        &self,
        listeners: &mut Vec<Listener>,
        now: Timestamp,
        stands_alone: impl Fn(&Published) -> bool,
    ) -> BTreeSet<Published> {
        let mut shown = BTreeSet::new();
        for listener in listeners.iter_mut() {
            for (port, container) in self.at(&listener.key) {
                shown.insert(port);
                // Whose socket is known to be somebody else's stays theirs.
                if listener.container.is_none() && (listener.owners.is_empty() || forwards(listener)) {
                    listener.container = Some(Box::new(container.clone()));
                }
            }
            if let Some(container) = &mut listener.container
                && container.name.is_none()
            {
                container.name = self.names.get(&container.id).cloned();
            }
        }
        let unshown = self.published.values().flatten().filter(|(port, _)| !shown.contains(port));
        let alone = unshown.filter(|(port, _)| stands_alone(port));
        listeners.extend(alone.map(|(port, container)| Listener {
            key: port.key(),
            account: None,
            owners: Owners::default(),
            more_owners: 0,
            unit: None,
            container: Some(Box::new(container.clone())),
            first_seen_at: now,
            last_seen_at: now,
        }));
        shown
    }

    /// Whether nothing is known, so that there is nothing to apply.
    pub fn is_empty(&self) -> bool {
        self.published.is_empty() && self.names.is_empty()
    }

    /// Whether this is published.
    pub fn publishes(&self, port: &Published) -> bool {
        let here = self.published.get(&(port.protocol, port.port));
        here.is_some_and(|here| here.iter().any(|(published, _)| published == port))
    }

    /// What is published just where this listener is.
    fn at(&self, key: &ListenerKey) -> impl Iterator<Item = (Published, &Container)> {
        let is_home = key.netns == Netns::Home && key.interface.is_none();
        let here = self.published.get(&(key.protocol, key.port)).filter(|_| is_home);
        let all = here.into_iter().flatten().map(|(port, container)| (*port, container));
        all.filter(|(port, _)| port.is_at(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::tests::listener;

    fn now() -> Timestamp {
        Timestamp::from_micros(7)
    }

    fn published(address: &str, port: u16) -> Published {
        let port = Port::new(port).unwrap();
        Published { protocol: Protocol::Tcp, address: address.parse().unwrap(), port }
    }

    fn contained(id: &str, name: &str, published: &[Published]) -> Contained {
        Contained { id: id.into(), name: Some(name.into()), published: published.to_vec() }
    }

    fn told(containers: &[Contained]) -> Told {
        Told { engine: "docker".into(), containers: containers.to_vec() }
    }

    fn applied(told: &Told, listeners: &[Listener]) -> Vec<Listener> {
        let mut listeners = listeners.to_vec();
        Containers::of([told]).apply(&mut listeners, now());
        listeners
    }

    fn socket(address: &str, v6only: bool, owner: Option<&str>) -> Listener {
        let mut listener = listener(Protocol::Tcp, address, 8_080, 1);
        listener.key.v6only = v6only;
        match owner {
            Some(name) => listener.owners[0].name = name.into(),
            None => listener.owners.clear(),
        }
        listener
    }

    #[test]
    fn a_published_port_is_a_listener_of_its_own_only_where_no_socket_is() {
        let proxy = Some("docker-proxy");
        // (published, socket, v6only, owner; listeners afterwards, whether the socket's one has the container)
        let table = [
            ("0.0.0.0", "0.0.0.0", false, proxy, 1, true),
            ("0.0.0.0", "0.0.0.0", false, None, 1, true), // hidden owners
            ("0.0.0.0", "0.0.0.0", false, Some("nginx"), 1, false),
            ("0.0.0.0", "::", false, Some("rootlessport"), 1, true),
            ("0.0.0.0", "::", true, proxy, 2, false),
            ("::", "::", true, proxy, 1, true),
            ("::", "::", false, proxy, 1, true),
            ("::", "0.0.0.0", false, proxy, 2, false),
            ("127.0.0.1", "127.0.0.1", false, proxy, 1, true),
            ("127.0.0.1", "0.0.0.0", false, Some("nginx"), 2, false),
            ("127.0.0.1", "::", false, Some("nginx"), 2, false),
            ("fd00::1", "fd00::1", false, proxy, 1, true),
        ];
        for row @ (address, at, v6only, owner, count, gains) in table {
            let told = told(&[contained("c1", "web", &[published(address, 8_080)])]);
            let shown = applied(&told, &[socket(at, v6only, owner)]);
            assert_eq!(shown.len(), count, "{row:?}");
            let named = shown[0].container.as_ref().and_then(|container| container.name.clone());
            assert_eq!(named, gains.then(|| "web".into()), "{row:?}");
        }
    }

    #[test]
    fn what_stands_for_a_published_port_has_a_container_and_no_owners() {
        let both = [published("0.0.0.0", 8_080), published("::", 8_080)];
        let shown = applied(&told(&[contained("c1", "web", &both)]), &[]);
        let places: Vec<_> = shown.iter().map(|listener| listener.key.bound_to().to_string()).collect();
        assert_eq!(places, ["0.0.0.0", "[::] v6only"]);
        assert!(shown.iter().all(|listener| listener.owners.is_empty() && listener.first_seen_at == now()));
        assert_eq!(shown[0].describe().to_string(), "docker container web");
        assert_eq!(shown[0].key.netns, Netns::Home);
    }

    #[test]
    fn a_container_is_named_wherever_it_listens_and_only_by_its_own_id() {
        let inside = |id: &str| {
            let mut listener = socket("0.0.0.0", false, Some("nginx"));
            listener.key.netns = Netns::Other(9);
            let id = id.into();
            let container = Container { id, name: None, engine: "podman".into(), pod: None };
            listener.container = Some(Box::new(container));
            listener
        };
        let told = told(&[contained("c1", "web", &[published("0.0.0.0", 8_080)])]);
        let shown = applied(&told, &[inside("c1"), inside("c2")]);
        let names: Vec<_> = shown.iter().map(|listener| listener.container.clone().unwrap().name).collect();
        assert_eq!(names, [Some("web".into()), None, Some("web".into())]);
        assert_eq!(shown.len(), 3, "a port inside of another namespace is not the published one");
        assert_eq!(shown[0].container.as_ref().unwrap().engine.as_str(), "podman", "as the cgroup tells it");
    }

    #[test]
    fn a_port_that_several_tell_has_one_holder_whatever_the_order() {
        let port = [published("0.0.0.0", 8_080)];
        let (one, other) = (contained("c9", "app", &port), contained("c1", "infra", &port));
        for containers in [[one.clone(), other.clone()], [other, one]] {
            let shown = applied(&told(&containers), &[]);
            assert_eq!(shown.len(), 1);
            assert_eq!(shown[0].container.as_ref().unwrap().id.as_str(), "c9");
        }
    }
}
