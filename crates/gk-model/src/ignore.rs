//! Ignore rules: what differs from the plan and need not be told, as everybody's `sshd`.
//!
//! What a rule ignores is shown as ignored, and counted apart; nothing is hidden.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::expect::{Expect, Fit};
use crate::labels::{Labels, Selector};
use crate::listener::{Listener, Netns};
use crate::port::{Port, PortRange, Protocol};
use crate::text::{Expected, IgnoreName, Note};
use crate::time::Timestamp;

/// What a rule ignores. Everything given must hold, and at least one thing beside `instances` must be given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IgnoreSpec {
    /// Only on instances with these labels; on all of them when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<Selector>,
    /// Only these ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortRange>,
    /// Only this protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Only where every process that listens has this command name, or this executable by path or by file name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Expected>,
    /// Only where everybody who listens is of this systemd unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<Expected>,
    /// Only where everybody who listens is of this container: its name, or its id or how that begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Expected>,
    /// Only where everybody who listens runs as this account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<Expected>,
    /// Only where everybody who listens is bound to a loopback address.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub loopback: bool,
    /// A remark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<Note>,
}

impl IgnoreSpec {
    /// How many ranges of ports a rule may have.
    pub const MOST_RANGES: usize = 100;

    /// Whether it would ignore everything that there is on some instances.
    pub fn is_too_wide(&self) -> bool {
        let names_listeners = self.loopback || !self.expect().is_none();
        self.ports.is_empty() && self.protocol.is_none() && !names_listeners
    }

    /// Whether it goes by who listens, so that it says nothing of ports that nobody listens on.
    pub fn is_about_listeners(&self) -> bool {
        self.loopback || !self.expect().is_none()
    }

    fn expect(&self) -> Expect {
        Expect {
            process: self.process.clone(),
            account: self.account.clone(),
            unit: self.unit.clone(),
            container: self.container.clone(),
            address: None,
        }
    }

    /// Whether a port of an instance with these labels is ignored. Everybody who listens there in the home namespace
    /// must be named by the rule: of whom the agent may not see enough, it says nothing.
    pub fn ignores(&self, labels: &Labels, protocol: Protocol, port: Port, listeners: &[Listener]) -> bool {
        let is_loopback = |listener: &Listener| {
            listener.key.netns != Netns::Home || listener.key.address.to_canonical().is_loopback()
        };
        self.concerns(labels, protocol, port.into())
            && (!self.is_about_listeners() || self.expect().fit(listeners) == Some(Fit::Fits))
            && (!self.loopback || listeners.iter().all(is_loopback))
    }

    /// Whether idle ports of an instance with these labels are ignored, all of them.
    pub fn ignores_idle(&self, labels: &Labels, protocol: Protocol, ports: PortRange) -> bool {
        !self.is_about_listeners() && self.concerns(labels, protocol, ports)
    }

    fn concerns(&self, labels: &Labels, protocol: Protocol, ports: PortRange) -> bool {
        self.instances.as_ref().is_none_or(|selector| selector.matches(labels))
            && self.protocol.is_none_or(|only| only == protocol)
            && (self.ports.is_empty() || self.ports.iter().any(|range| range.covers(ports)))
    }
}

/// An ignore rule, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ignore {
    /// Its name.
    pub name: IgnoreName,
    /// What it ignores.
    pub rule: IgnoreSpec,
    /// When it was made.
    pub created_at: Timestamp,
    /// Grows with every change; the `ETag`.
    pub version: u64,
}

impl Ignore {
    /// Rules for what nearly every machine runs and nobody plans: offered to whoever adopts a machine, never set unasked.
    /// None is for a port alone: a stranger on port 22 is worth telling.
    pub fn defaults() -> Vec<(IgnoreName, IgnoreSpec)> {
        // (name, process, ports, protocol, loopback only)
        let table: [(&str, &str, &str, Option<Protocol>, bool); 15] = [
            ("sshd", "sshd", "", Some(Protocol::Tcp), false),
            ("resolved-stub", "systemd-resolved", "53", None, true),
            ("resolved-names", "systemd-resolved", "5353,5355", None, false),
            ("chronyd", "chronyd", "123,323", Some(Protocol::Udp), false),
            ("ntpd", "ntpd", "123", Some(Protocol::Udp), false),
            ("timesyncd", "systemd-timesyncd", "123", Some(Protocol::Udp), false),
            ("dhclient", "dhclient", "68,546", Some(Protocol::Udp), false),
            ("networkd", "systemd-networkd", "68,546", Some(Protocol::Udp), false),
            ("network-manager", "NetworkManager", "68,546", Some(Protocol::Udp), false),
            ("rpcbind", "rpcbind", "111", None, false),
            ("rpc-statd", "rpc.statd", "", None, false),
            ("cups", "cupsd", "631", Some(Protocol::Tcp), true),
            ("cups-browsed", "cups-browsed", "631", Some(Protocol::Udp), false),
            ("avahi", "avahi-daemon", "", Some(Protocol::Udp), false),
            ("gatekeeper", "gatekeeper", "", Some(Protocol::Tcp), false),
        ];
        let rule = |(name, process, ports, protocol, loopback): (&str, &str, &str, _, _)| {
            let ranges = ports.split(',').filter(|range| !range.is_empty());
            let spec = IgnoreSpec {
                ports: ranges.map(|range| range.parse().expect("the table has ranges")).collect(),
                protocol,
                process: Some(process.parse().expect("the table has names of processes")),
                loopback,
                ..IgnoreSpec::default()
            };
            (name.parse().expect("the table has names"), spec)
        };
        table.into_iter().map(rule).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::tests::listener;

    fn rule(json: &str) -> IgnoreSpec {
        serde_json::from_str(json).unwrap()
    }

    fn nginx(address: &str) -> Listener {
        listener(Protocol::Tcp, address, 80, 1)
    }

    #[test]
    fn everything_that_a_rule_says_must_hold_of_everybody_who_listens() {
        let prod: Labels = vec!["env=prod".parse().unwrap()].try_into().unwrap();
        let (wide, local) = (nginx("0.0.0.0"), nginx("127.0.0.1"));
        let (mut other, mut hidden, mut inner) = (nginx("::1"), nginx("::"), nginx("10.0.0.1"));
        other.owners[0].name = "nc".into();
        other.owners[0].exe = None;
        hidden.owners.clear();
        inner.key.netns = Netns::Other(1);
        inner.owners.clear();
        let table: [(&str, &[&Listener], bool); 19] = [
            (r#"{"ports":["80"]}"#, &[&wide, &hidden], true),
            (r#"{"ports":["81","8000-9000"]}"#, &[&wide], false),
            (r#"{"ports":["1-100"],"protocol":"udp"}"#, &[&wide], false),
            (r#"{"protocol":"tcp"}"#, &[&wide], true),
            (r#"{"process":"nginx"}"#, &[&wide, &local], true),
            (r#"{"process":"nginx"}"#, &[&wide, &inner], true),
            (r#"{"process":"nginx"}"#, &[&wide, &other], false),
            (r#"{"process":"nginx"}"#, &[&wide, &hidden], false),
            (r#"{"process":"nginx"}"#, &[], false),
            (r#"{"process":"nginx","ports":["81"]}"#, &[&wide], false),
            (r#"{"account":"www-data"}"#, &[&wide], true),
            (r#"{"unit":"nginx.service"}"#, &[&wide], false),
            (r#"{"container":"web"}"#, &[&wide], false),
            (r#"{"process":"nginx","loopback":true}"#, &[&local], true),
            (r#"{"process":"nginx","loopback":true}"#, &[&local, &inner], true),
            (r#"{"process":"nginx","loopback":true}"#, &[&local, &wide], false),
            (r#"{"loopback":true}"#, &[&local, &other], true),
            (r#"{"instances":"env=prod","protocol":"tcp"}"#, &[&wide], true),
            (r#"{"instances":"env=test","protocol":"tcp"}"#, &[&wide], false),
        ];
        let port = Port::new(80).unwrap();
        for (text, listeners, expected) in table {
            let listeners: Vec<Listener> = listeners.iter().copied().cloned().collect();
            let found = rule(text).ignores(&prod, Protocol::Tcp, port, &listeners);
            assert_eq!(found, expected, "{text} {listeners:?}");
        }
    }

    #[test]
    fn idle_ports_are_ignored_by_rules_that_are_not_about_listeners() {
        let table = [
            (r#"{"ports":["8000-8010"]}"#, true),
            (r#"{"ports":["8000-8004"]}"#, false),
            (r#"{"ports":["8000-8010"],"process":"nginx"}"#, false),
        ];
        for (text, expected) in table {
            let found =
                rule(text).ignores_idle(&Labels::default(), Protocol::Tcp, "8000-8005".parse().unwrap());
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn a_rule_says_more_than_where() {
        assert!(rule("{}").is_too_wide());
        assert!(rule(r#"{"instances":"env=prod","note":"x"}"#).is_too_wide());
        assert!(!rule(r#"{"loopback":true}"#).is_too_wide());
        assert!(serde_json::from_str::<IgnoreSpec>(r#"{"port":"80"}"#).is_err());
    }

    #[test]
    fn the_rules_that_are_offered_name_the_program_and_no_port_alone() {
        let defaults = Ignore::defaults();
        let names: std::collections::BTreeSet<_> = defaults.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), defaults.len());
        assert!(defaults.iter().all(|(_, rule)| rule.process.is_some() && !rule.is_too_wide()));
        let mut sshd = nginx("0.0.0.0");
        sshd.owners[0].exe = Some("/usr/sbin/sshd".into());
        let port = Port::new(22).unwrap();
        let ignored = |seen: &Listener| {
            let seen = std::slice::from_ref(seen);
            defaults.iter().any(|(_, rule)| rule.ignores(&Labels::default(), Protocol::Tcp, port, seen))
        };
        assert!(ignored(&sshd));
        sshd.owners[0].exe = Some("/tmp/x".into());
        assert!(!ignored(&sshd), "whoever else listens on 22 is told");
    }
}
