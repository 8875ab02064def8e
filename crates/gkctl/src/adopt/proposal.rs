//! What to call what is adopted, and whom to expect there from then on, by what was observed.
//!
//! Both are of everybody who listens on the port: where these differ, or are hidden from the agent, nothing is proposed.

use gk_model::expect::{Expect, Fit};
use gk_model::ignore::Ignore;
use gk_model::labels::Labels;
use gk_model::listener::{Listener, Owner};
use gk_model::port::{Port, Protocol};
use gk_model::text::{Expected, IgnoreName, Observed, ServiceName};

use super::is_home;

/// The first process of a machine holds sockets for others until these start.
const INIT: u32 = 1;

/// What is proposed for a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Proposal {
    /// What it is for.
    pub(crate) service: Option<ServiceName>,
    /// Who should be listening there.
    pub(crate) expect: Option<Expect>,
}

impl Proposal {
    /// By container, else by unit, else by program: the first that all of them share. The container comes first, because a
    /// published port is held by a process of the engine's own unit.
    pub(crate) fn of(listeners: &[Listener]) -> Proposal {
        let home: Vec<&Listener> = listeners.iter().filter(|listener| is_home(listener)).collect();
        let container = shared(home.iter().map(|listener| container(listener)));
        let unit = shared(home.iter().map(|listener| unit(listener)));
        let program = program(&home);
        let names = [container, unit.map(without_suffix), program];
        let service = names.into_iter().flatten().find_map(ServiceName::from_observed);
        let expect = expectation(&home, container, unit, program);
        Proposal { service, expect: expect.filter(|expect| expect.fit(listeners) == Some(Fit::Fits)) }
    }
}

/// The default ignore rule that names whoever listens there, if one does.
pub(super) fn default_rule(protocol: Protocol, port: Port, listeners: &[Listener]) -> Option<IgnoreName> {
    let ignores = |(name, rule): (IgnoreName, gk_model::ignore::IgnoreSpec)| {
        rule.ignores(&Labels::default(), protocol, port, listeners).then_some(name)
    };
    Ignore::defaults().into_iter().find_map(ignores)
}

fn expectation(
    home: &[&Listener],
    container: Option<&str>,
    unit: Option<&str>,
    program: Option<&str>,
) -> Option<Expect> {
    let text = |text: Option<&str>| text.and_then(|text| text.parse::<Expected>().ok());
    if let Some(container) = text(container) {
        return Some(Expect { container: Some(container), ..Expect::default() });
    }
    if let Some(unit) = text(unit) {
        return Some(Expect { unit: Some(unit), ..Expect::default() });
    }
    if owners(home).any(|owner| owner.pid == INIT) {
        return None;
    }
    let process = text(program)?;
    let account = text(shared(owners(home).map(|owner| Some(owner.account.as_str()))));
    Some(Expect { process: Some(process), account, ..Expect::default() })
}

/// Its name; an id is another one after each upgrade.
fn container(listener: &Listener) -> Option<&str> {
    listener.container.as_ref()?.name.as_ref().map(Observed::as_str)
}

/// A service. Scopes and slices are named by the moment, and `user@…` holds everything that somebody runs.
fn unit(listener: &Listener) -> Option<&str> {
    let unit = listener.unit.as_ref()?.as_str();
    (unit.ends_with(SERVICE) && !unit.starts_with("user@")).then_some(unit)
}

const SERVICE: &str = ".service";

fn without_suffix(unit: &str) -> &str {
    unit.strip_suffix(SERVICE).unwrap_or(unit)
}

/// What all owners run; none where the agent does not see them all.
fn program<'a>(home: &[&'a Listener]) -> Option<&'a str> {
    let is_seen = home.iter().all(|listener| !listener.owners.is_empty());
    shared(owners(home).map(|owner| Some(program_name(owner)))).filter(|_| is_seen)
}

/// The executable's file name; or the command name where that is the same without a version, which an upgrade changes:
/// `python3` runs `/usr/bin/python3.11`. The kernel keeps 15 bytes of a command name, so one of that length may be cut.
fn program_name(owner: &Owner) -> &str {
    const MAY_BE_CUT: usize = 15;
    let path = owner.program();
    let file = path.rsplit('/').next().unwrap_or(path);
    let name = owner.name.as_str();
    if !name.is_empty() && name.len() < MAY_BE_CUT && file.starts_with(name) { name } else { file }
}

fn owners<'a>(home: &[&'a Listener]) -> impl Iterator<Item = &'a Owner> {
    home.iter().flat_map(|listener| &listener.owners)
}

/// What all of them say, where all say something and the same.
fn shared<'a>(mut texts: impl Iterator<Item = Option<&'a str>>) -> Option<&'a str> {
    let first = texts.next()??;
    texts.all(|text| text == Some(first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{hidden, in_container, in_unit, listener};

    #[test]
    fn names_and_expectations_come_from_what_was_observed() {
        let nginx = || listener(80, "/usr/sbin/nginx", "www-data");
        let proxy = || in_unit(listener(80, "/usr/bin/docker-proxy", "root"), "docker.service");
        let mut init = listener(22, "/usr/lib/systemd/systemd", "root");
        init.owners[0].pid = 1;
        let mut both = init.clone();
        both.owners.push(listener(22, "/usr/sbin/sshd", "root").owners.remove(0));
        let mut elsewhere = listener(80, "/usr/bin/nc", "ada");
        elsewhere.key.netns = gk_model::listener::Netns::Other(1);
        let mut python = listener(8000, "/usr/bin/python3.11", "ada");
        python.owners[0].name = "python3".into();
        let mut node = listener(3000, "/usr/bin/node", "ada");
        node.owners[0].name = "MainThread".into();
        let mut replaced = listener(53, "/usr/lib/systemd/systemd-resolved (deleted)", "systemd-resolve");
        replaced.owners[0].name = "systemd-resolve".into();
        let table = [
            // (listeners, service, expectation)
            (vec![nginx()], Some("nginx"), Some("process=nginx,account=www-data")),
            (vec![nginx(), elsewhere], Some("nginx"), Some("process=nginx,account=www-data")),
            (vec![in_unit(nginx(), "web@1.service")], Some("web@1"), Some("unit=web@1.service")),
            (
                vec![in_unit(nginx(), "session-3.scope")],
                Some("nginx"),
                Some("process=nginx,account=www-data"),
            ),
            (
                vec![in_unit(nginx(), "user@1000.service")],
                Some("nginx"),
                Some("process=nginx,account=www-data"),
            ),
            (vec![in_container(proxy(), "shop")], Some("shop"), Some("container=shop")),
            (vec![in_container(hidden(nginx()), "shop")], Some("shop"), Some("container=shop")),
            (vec![in_container(nginx(), "")], Some("nginx"), Some("process=nginx,account=www-data")),
            (
                vec![replaced],
                Some("systemd-resolved"),
                Some("process=systemd-resolved,account=systemd-resolve"),
            ),
            (vec![python], Some("python3"), Some("process=python3,account=ada")),
            (vec![node], Some("node"), Some("process=node,account=ada")),
            (vec![nginx(), listener(80, "/usr/sbin/nginx", "ada")], Some("nginx"), Some("process=nginx")),
            (vec![nginx(), listener(80, "/usr/bin/nc", "ada")], None, None),
            (vec![nginx(), hidden(nginx())], None, None),
            (vec![hidden(nginx())], None, None),
            (vec![init], Some("systemd"), None),
            (vec![both], None, None),
            (vec![listener(80, "/opt/my app", "ada")], Some("my-app"), Some("process=my app,account=ada")),
            (vec![], None, None),
        ];
        for (listeners, service, expect) in table {
            let proposal = Proposal::of(&listeners);
            let said = (proposal.service.map(|s| s.to_string()), proposal.expect.map(|e| e.to_string()));
            assert_eq!((said.0.as_deref(), said.1.as_deref()), (service, expect), "{listeners:?}");
        }
    }

    #[test]
    fn what_runs_everywhere_is_known_by_its_program() {
        let port = Port::new(22).unwrap();
        let rule = |exe: &str| default_rule(Protocol::Tcp, port, &[listener(22, exe, "root")]);
        assert_eq!(rule("/usr/sbin/sshd").unwrap().as_str(), "sshd");
        assert_eq!(rule("/tmp/x"), None);
    }
}
