//! What `gkctl port adopt --all` would do with each port of a machine, worked out before anything is done.

use gk_model::expect::Expect;
use gk_model::ignore::{Ignore, IgnoreSpec};
use gk_model::labels::Labels;
use gk_model::listener::{Listener, owner_groups};
use gk_model::port::{Port, Protocol};
use gk_model::port_state::{PortState, State};
use gk_model::text::{IgnoreName, ServiceName};
use serde::Serialize;

use super::{Proposal, is_home};
use crate::output::{Column, List, Tint, exact, or_dash};
use crate::port::unique;

/// One port that is listened on and not reserved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Line {
    pub(super) port: Port,
    pub(super) protocol: Protocol,
    pub(super) who: String,
    #[serde(flatten)]
    pub(super) fate: Fate,
}

/// What becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "fate", rename_all = "snake_case")]
pub(super) enum Fate {
    /// It can be adopted.
    Adopt { service: Option<ServiceName>, expect: Option<Expect> },
    /// A rule ignores it.
    Ignored { by: IgnoreName },
    /// A default rule would, which is not set yet.
    WouldBeIgnored { by: IgnoreName },
    /// It cannot be adopted, for this reason.
    Skipped { reason: String },
}

const COLUMNS: [Column<Line>; 5] = [
    Column::new("PORT", number),
    Column::new("WHO", |line: &Line| line.who.clone()),
    Column::new("SERVICE", |line: &Line| exact(service(line))).shown_as(|line, _| or_dash(service(line))),
    Column::new("EXPECTED", |line: &Line| exact(expect(line))).shown_as(|line, _| or_dash(expect(line))),
    Column::new("REMARK", |line: &Line| exact(remark(line)))
        .shown_as(|line, _| or_dash(remark(line)))
        .tinted(|line| match line.fate {
            Fate::Skipped { .. } => Tint::Odd,
            _ => Tint::Plain,
        }),
];

/// The plan as a list.
pub(super) const LIST: List<'static, Line> = List {
    columns: &COLUMNS,
    name: number,
    when_empty: "Nothing to adopt: whatever is listened on here is reserved.",
};

/// What to do with these ports of an instance with these labels and these rules.
pub(super) fn plan(ports: &[PortState], labels: &Labels, rules: &[Ignore]) -> Vec<Line> {
    let missing = missing(rules);
    let line = |state: &PortState| {
        let home: Vec<Listener> =
            state.listeners.iter().filter(|listener| is_home(listener)).cloned().collect();
        let ignores = |rule: &IgnoreSpec| rule.ignores(labels, state.protocol, state.port, &home);
        let set = rules.iter().find(|rule| ignores(&rule.rule)).map(|rule| rule.name.clone());
        let default = || missing.iter().find(|(_, rule)| ignores(rule)).map(|(name, _)| name.clone());
        let fate = match (set, owner_groups(&home)) {
            (Some(by), _) => Fate::Ignored { by },
            (None, owners) => match default() {
                Some(by) => Fate::WouldBeIgnored { by },
                None if owners.len() > 1 => Fate::Skipped {
                    reason: format!("several listen: {}", Vec::from_iter(owners).join(" and ")),
                },
                None => {
                    let Proposal { service, expect } = Proposal::of(&home);
                    Fate::Adopt { service, expect }
                }
            },
        };
        let who = unique(home.iter().map(Listener::describe)).join("; ");
        Line { port: state.port, protocol: state.protocol, who, fate }
    };
    ports.iter().filter(|state| state.state == State::Unreserved).map(line).collect()
}

/// Default rules that are not set, nor is another rule of their name.
pub(super) fn missing(rules: &[Ignore]) -> Vec<(IgnoreName, IgnoreSpec)> {
    let is_missing = |name: &IgnoreName| rules.iter().all(|rule| rule.name != *name);
    Ignore::defaults().into_iter().filter(|(name, _)| is_missing(name)).collect()
}

/// The default rules that this plan would have set, and the ports that each is about.
pub(super) fn offered(lines: &[Line]) -> Vec<(IgnoreName, Vec<String>)> {
    let mut offered: Vec<(IgnoreName, Vec<String>)> = Vec::new();
    for line in lines {
        let Fate::WouldBeIgnored { by } = &line.fate else { continue };
        match offered.iter_mut().find(|(name, _)| name == by) {
            Some((_, ports)) => ports.push(number(line)),
            None => offered.push((by.clone(), vec![number(line)])),
        }
    }
    offered
}

pub(super) fn number(line: &Line) -> String {
    format!("{}/{}", line.port, line.protocol)
}

fn service(line: &Line) -> Option<&ServiceName> {
    match &line.fate {
        Fate::Adopt { service, .. } => service.as_ref(),
        _ => None,
    }
}

fn expect(line: &Line) -> Option<&Expect> {
    match &line.fate {
        Fate::Adopt { expect, .. } => expect.as_ref(),
        _ => None,
    }
}

fn remark(line: &Line) -> Option<String> {
    match &line.fate {
        Fate::Adopt { .. } => None,
        Fate::Ignored { by } => Some(format!("ignored by {by}")),
        Fate::WouldBeIgnored { by } => Some(format!("ignored by {by}, once that is set")),
        Fate::Skipped { reason } => Some(format!("skipped: {reason}")),
    }
}

#[cfg(test)]
mod tests {
    use gk_model::reservation::Reservation;
    use gk_model::time::Timestamp;

    use super::*;
    use crate::samples::{instance, listener, reservation, state};

    fn rule(name: &str, json: &str) -> Ignore {
        Ignore {
            name: name.parse().unwrap(),
            rule: serde_json::from_str(json).unwrap(),
            created_at: Timestamp::from_micros(0),
            version: 1,
        }
    }

    fn remarks(lines: &[Line]) -> Vec<String> {
        lines
            .iter()
            .map(|line| {
                let service = service(line).map(|service| format!("→ {service}"));
                format!("{} {}", number(line), service.or_else(|| remark(line)).unwrap_or_default())
            })
            .collect()
    }

    #[test]
    fn every_port_that_nobody_reserved_has_one_fate() {
        let here = instance("web-1");
        let nginx = |port| listener(port, "/usr/sbin/nginx", "www-data");
        let sshd = || listener(22, "/usr/sbin/sshd", "root");
        let held: Reservation = reservation(&here, 443);
        let ports = [
            state(&here, 22, None, vec![sshd()]),
            state(&here, 80, None, vec![nginx(80)]),
            state(&here, 81, None, vec![nginx(81), listener(81, "/usr/bin/nc", "ada")]),
            state(&here, 443, Some(held), vec![nginx(443)]),
            state(&here, 9000, None, vec![listener(9000, "/usr/bin/java", "ci")]),
        ];
        let labels: Labels = vec!["env=dev".parse().unwrap()].try_into().unwrap();
        let builds = rule("builds", r#"{"account":"ci","instances":"env=dev"}"#);
        let lines = plan(&ports, &labels, std::slice::from_ref(&builds));
        assert_eq!(
            remarks(&lines),
            [
                "22/tcp ignored by sshd, once that is set",
                "80/tcp → nginx",
                "81/tcp skipped: several listen: /usr/bin/nc of ada and /usr/sbin/nginx of www-data",
                "9000/tcp ignored by builds",
            ]
        );
        let offers = offered(&lines);
        assert_eq!(offers.len(), 1);
        assert_eq!((offers[0].0.as_str(), offers[0].1.as_slice()), ("sshd", &["22/tcp".to_owned()][..]));
        // On another machine that rule says nothing, and a rule of the same name is not set again.
        let own = rule("sshd", r#"{"ports":["1"]}"#);
        let lines = plan(&ports, &Labels::default(), &[builds, own]);
        assert_eq!(remarks(&lines)[0], "22/tcp → sshd");
        assert_eq!(remarks(&lines)[3], "9000/tcp → java");
        assert!(offered(&lines).is_empty());
    }

    #[test]
    fn programs_read_the_same_plan() {
        let here = instance("web-1");
        let ports = [state(&here, 80, None, vec![listener(80, "/usr/sbin/nginx", "www-data")])];
        let lines = plan(&ports, &Labels::default(), &[]);
        assert_eq!(
            serde_json::to_value(&lines).unwrap(),
            serde_json::json!([{
                "port": 80, "protocol": "tcp", "who": "nginx (pid 77)", "fate": "adopt", "service": "nginx",
                "expect": {"process": "nginx", "account": "www-data"},
            }])
        );
    }
}
