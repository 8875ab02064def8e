//! Targets: where Prometheus finds a port, and what it is told of it (`http_sd`).
//!
//! A target is an address and a port that others can reach, with labels in the words of Prometheus: they begin with
//! `__meta_gatekeeper_` and are gone after relabelling, unless a rule keeps them. What is unknown has no label.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::instance::Instance;
use crate::labels::Labels;
use crate::listener::{Listener, ListenerKey, Netns};
use crate::port_state::PortState;

/// One target, in the form of a group as Prometheus takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TargetGroup {
    /// Address and port, `10.0.0.5:9100` or `[2001:db8::5]:9100`: always one.
    #[schema(min_items = 1, max_items = 1, example = json!(["10.0.0.5:9100"]))]
    pub targets: Vec<String>,
    /// What is known of it.
    pub labels: BTreeMap<String, String>,
}

impl TargetGroup {
    /// How many an answer may have.
    pub const MOST: usize = 10_000;

    /// The port of this instance as a target; none where it is listened on and nobody else could reach it.
    pub fn of(instance: &Instance, state: &PortState) -> Option<TargetGroup> {
        let host = find_host(instance, &state.listeners)?;
        Some(TargetGroup {
            targets: vec![format!("{host}:{}", state.port)],
            labels: labels_of(instance, state),
        })
    }
}

/// Where the port is reached: at the address somebody listens on; where that is any, or nobody listens, at the
/// instance's own.
fn find_host(instance: &Instance, listeners: &[Listener]) -> Option<String> {
    let home = listeners.iter().map(|listener| &listener.key).filter(|key| key.netns == Netns::Home);
    let bound: Vec<&ListenerKey> = home.collect();
    if bound.is_empty() {
        return Some(own_host(instance, |_| true));
    }
    let reachable = bound.iter().filter(|key| is_reachable(key));
    let (any, particular): (Vec<_>, Vec<_>) =
        reachable.map(|key| (key, key.address.to_canonical())).partition(|(_, to)| to.is_unspecified());
    if let Some((_, address)) = particular.first() {
        return Some(bracketed(*address));
    }
    let (key, _) = any.first()?;
    Some(own_host(
        instance,
        |own| if key.address.is_ipv4() { own.is_ipv4() } else { !key.v6only || own.is_ipv6() },
    ))
}

/// Whether another machine could get there: neither loopback nor an address of one link only.
fn is_reachable(key: &ListenerKey) -> bool {
    let is_bound_to_loopback = key.interface.as_ref().is_some_and(|interface| interface.as_str() == "lo");
    let is_near = match key.address.to_canonical() {
        IpAddr::V4(address) => address.is_loopback() || address.is_link_local(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unicast_link_local(),
    };
    !is_bound_to_loopback && !is_near
}

/// The first address that the instance tells and `accepts` lets through, those of bridges last; its name where there is
/// none, which is its host name unless somebody renamed it.
fn own_host(instance: &Instance, accepts: impl Fn(&IpAddr) -> bool) -> String {
    let own = || instance.facts.addresses.iter().filter(|address| accepts(address));
    let found = own().find(|address| !is_bridge(address)).or_else(|| own().next());
    found.map_or_else(|| instance.name.to_string(), |address| bracketed(*address))
}

/// What Docker, Podman and libvirt give to the bridges that they make unless told otherwise: the same on each machine, so
/// that no other one reaches it there.
fn is_bridge(address: &IpAddr) -> bool {
    let IpAddr::V4(address) = address else { return false };
    let [first, second, third, fourth] = address.octets();
    let docker = first == 172 && (17..32).contains(&second) && third == 0 && fourth == 1;
    docker || [Ipv4Addr::new(10, 88, 0, 1), Ipv4Addr::new(192, 168, 122, 1)].contains(address)
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

fn labels_of(instance: &Instance, state: &PortState) -> BTreeMap<String, String> {
    let held = state.reservation.as_ref();
    let addresses: Vec<String> = instance.facts.addresses.iter().map(ToString::to_string).collect();
    let known = [
        ("instance", Some(instance.name.to_string())),
        ("instance_id", Some(instance.id.to_string())),
        ("presence", Some(instance.presence.to_string())),
        // With a comma at both ends, so that a pattern for one of them needs no special cases.
        ("addresses", (!addresses.is_empty()).then(|| format!(",{},", addresses.join(",")))),
        ("protocol", Some(state.protocol.to_string())),
        ("port", Some(state.port.to_string())),
        ("state", Some(state.state.to_string())),
        ("service", held.and_then(|held| held.service.as_ref()).map(ToString::to_string)),
        ("name", held.and_then(|held| held.name.as_ref()).map(ToString::to_string)),
        ("holder", held.map(|held| held.holder.to_string())),
    ];
    let known =
        known.into_iter().filter_map(|(name, value)| Some((format!("__meta_gatekeeper_{name}"), value?)));
    let mut labels: BTreeMap<String, String> = known.collect();
    add_labels(&mut labels, "label", &instance.labels);
    if let Some(held) = held {
        add_labels(&mut labels, "reservation_label", &held.labels);
    }
    labels
}

/// Adds labels of ours under names that Prometheus allows. Where two keys become one name, the first of them counts in
/// the order of keys, so that it is always the same.
fn add_labels(labels: &mut BTreeMap<String, String>, kind: &str, ours: &Labels) {
    for label in ours.iter() {
        let key: String =
            label.key.as_str().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        labels.entry(format!("__meta_gatekeeper_{kind}_{key}")).or_insert_with(|| label.value.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Facts;
    use crate::id::InstanceId;
    use crate::instance::{InstanceLink, Presence};
    use crate::labels::Label;
    use crate::listener::tests::listener;
    use crate::port::{Port, Protocol};
    use crate::port_state::State;
    use crate::time::Timestamp;

    fn instance(addresses: &[&str], labels: &[&str]) -> Instance {
        let at = Timestamp::from_micros(0);
        let labels = labels.iter().map(|label| label.parse::<Label>().unwrap());
        Instance {
            id: InstanceId::generate(at),
            name: "web-1".parse().unwrap(),
            presence: Presence::Online,
            labels: labels.fold(Labels::default(), |labels, label| labels.with(label).unwrap()),
            facts: Facts {
                addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
                ..Facts::default()
            },
            joined_at: at,
            left_at: None,
            last_contact_at: None,
            observed_at: None,
            forget_after_seconds: None,
            version: 1,
        }
    }

    fn target(instance: &Instance, listeners: Vec<Listener>) -> Option<TargetGroup> {
        let state = PortState {
            instance: InstanceLink { id: instance.id, name: instance.name.clone() },
            protocol: Protocol::Tcp,
            port: Port::new(9100).unwrap(),
            state: State::InUse,
            fit: None,
            reservation: None,
            listeners,
            observed_at: None,
            presence: Presence::Online,
        };
        TargetGroup::of(instance, &state)
    }

    #[test]
    fn a_target_is_where_others_reach_the_port() {
        let both = instance(&["172.17.0.1", "192.168.7.5", "2001:db8::5"], &[]);
        let nothing = instance(&[], &[]);
        let (only_bridge, only_v4) = (instance(&["172.17.0.1"], &[]), instance(&["10.0.0.5"], &[]));
        let on = |address: &str| listener(Protocol::Tcp, address, 9100, 1);
        let only_v6 = || {
            let mut seen = on("::");
            seen.key.v6only = true;
            seen
        };
        let elsewhere = || {
            let mut seen = on("127.0.0.1");
            seen.key.netns = Netns::Other(7);
            seen
        };
        let mut on_lo = on("0.0.0.0");
        on_lo.key.interface = Some("lo".into());
        let table = [
            (&both, vec![], Some("192.168.7.5:9100")),
            (&both, vec![elsewhere()], Some("192.168.7.5:9100")),
            (&both, vec![on("0.0.0.0")], Some("192.168.7.5:9100")),
            (&both, vec![on("::")], Some("192.168.7.5:9100")),
            (&both, vec![only_v6()], Some("[2001:db8::5]:9100")),
            (&only_v4, vec![only_v6()], Some("web-1:9100")),
            (&only_bridge, vec![on("0.0.0.0")], Some("172.17.0.1:9100")),
            (&nothing, vec![on("0.0.0.0")], Some("web-1:9100")),
            (&both, vec![on("10.9.9.9")], Some("10.9.9.9:9100")),
            (&both, vec![on("127.0.0.1"), on("10.9.9.9"), on("::")], Some("10.9.9.9:9100")),
            (&both, vec![on("2001:db8::9")], Some("[2001:db8::9]:9100")),
            (&both, vec![on("::ffff:10.9.9.9")], Some("10.9.9.9:9100")),
            (&both, vec![on("127.0.0.1"), on("::1")], None),
            (&both, vec![on("::ffff:127.0.0.1")], None),
            (&both, vec![on("169.254.3.3"), on("fe80::3")], None),
            (&both, vec![on_lo], None),
        ];
        for (instance, listeners, expected) in table {
            let found = target(instance, listeners.clone()).map(|found| found.targets.join(" "));
            assert_eq!(found.as_deref(), expected, "{listeners:?}");
        }
    }

    #[test]
    fn labels_have_names_that_are_allowed_and_the_first_of_two_that_become_one_counts() {
        let instance =
            instance(&["10.0.0.5", "2001:db8::5"], &["env=prod", "team.x=b", "team-x=a", "0=zero"]);
        let labels = target(&instance, vec![]).unwrap().labels;
        let of = |name: &str| labels.get(&format!("__meta_gatekeeper_{name}")).map(String::as_str);
        assert_eq!(of("label_env"), Some("prod"));
        assert_eq!(of("label_team_x"), Some("a"));
        assert_eq!(of("label_0"), Some("zero"));
        assert_eq!(of("addresses"), Some(",10.0.0.5,2001:db8::5,"));
        assert_eq!((of("instance"), of("port"), of("state")), (Some("web-1"), Some("9100"), Some("in_use")));
        assert_eq!((of("service"), of("holder"), of("name")), (None, None, None));
        for name in labels.keys() {
            let rest = name.strip_prefix("__meta_gatekeeper_").unwrap();
            assert!(rest.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{name}");
        }
    }
}
