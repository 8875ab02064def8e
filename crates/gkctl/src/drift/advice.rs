//! What to do about what differs: below the list, for the first few, with commands that work when pasted.

use std::collections::BTreeMap;

use gk_model::drift::{Drift, DriftKind};
use gk_model::instance::InstanceLink;
use gk_model::port::Protocol;
use gk_model::reservation::Reservation;
use gk_model::text::IgnoreName;
use gk_model::time::Timestamp;

use super::{ports, range, who_listens};
use crate::adopt::Proposal;
use crate::output::age;
use crate::port::{expected, held_by};

/// How many of each kind are explained before the rest is counted.
const MOST: usize = 5;

/// The lines about these, none of them ignored. `is_here` tells whether an instance need not be named in a command.
pub(super) fn lines(
    drifts: &[&Drift],
    is_here: impl Fn(&InstanceLink) -> bool,
    now: Timestamp,
) -> Vec<String> {
    let option = |drift: &Drift| match &drift.instance {
        Some(instance) if !is_here(instance) => format!(" --instance {}", instance.name),
        _ => String::new(),
    };
    let of = |kind| drifts.iter().copied().filter(move |drift| drift.kind == kind);
    let mut lines = Vec::new();
    for conflict in of(DriftKind::Conflict).take(MOST) {
        lines.extend(about_conflict(conflict, &option(conflict), now));
    }
    lines.extend(rest(of(DriftKind::Conflict).count(), "conflicts"));
    lines.extend(about_unreserved(&of(DriftKind::Unreserved).collect::<Vec<_>>(), option));
    for idle in of(DriftKind::Idle).take(MOST) {
        lines.push(format!(
            "hint: if {} is not needed any more: {}",
            ports(idle),
            release(idle, &option(idle))
        ));
    }
    lines.extend(rest(of(DriftKind::Idle).count(), "idle reservations"));
    lines
}

fn rest(count: usize, of_what: &str) -> Option<String> {
    let more = count.saturating_sub(MOST);
    (more > 0).then(|| format!("and {more} more {of_what}; narrow it with --port, --instance or --label"))
}

/// Who is there, who should be, and what to do.
fn about_conflict(drift: &Drift, option: &str, now: Timestamp) -> Vec<String> {
    let (Some(instance), Some(held)) = (&drift.instance, &drift.reservation) else { return Vec::new() };
    let who = who_listens(drift).unwrap_or_else(|| "somebody".to_owned());
    let plan = match expected(held, instance.id) {
        Some(expected) => format!("{}, which expects {expected}", held_by(held)),
        None => held_by(held),
    };
    let since = age::exact_in_words(drift.since, now);
    let place = format!("{} on {}", ports(drift), instance.name);
    let first = format!("{place} is held by {plan}; since {since} {who} listens there");
    let is_elsewhere = held.instance.as_ref().is_some_and(|holder| holder.id != instance.id);
    let second = match is_elsewhere {
        true => format!("hint: end that process, or give it another port: gkctl port reserve{option}"),
        false => format!("hint: end that process; {}", expect_it(drift, held, option)),
    };
    vec![first, second]
}

/// The command after which whoever listens now is the rightful one.
fn expect_it(drift: &Drift, held: &Reservation, option: &str) -> String {
    let port = held.first_port;
    let udp = udp_option(drift.protocol);
    let expect = Proposal::of(&drift.listeners).expect.map(|expect| expect.to_string());
    match expect.filter(|expect| is_plain(expect)) {
        Some(expect) => format!(
            "or, if it is the rightful one: gkctl reservation edit {port}{udp} --expect {expect}{option}"
        ),
        None => format!("or see what is expected: gkctl reservation show {port}{udp}{option}"),
    }
}

fn release(drift: &Drift, option: &str) -> String {
    format!("gkctl port release {}{}{option}", range(drift), udp_option(drift.protocol))
}

fn udp_option(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "",
        Protocol::Udp => " --protocol udp",
    }
}

/// One line for each instance, because one command deals with all of its ports.
fn about_unreserved(drifts: &[&Drift], option: impl Fn(&Drift) -> String) -> Vec<String> {
    let mut by_instance: BTreeMap<String, Vec<&Drift>> = BTreeMap::new();
    for drift in drifts {
        by_instance.entry(option(drift)).or_default().push(drift);
    }
    let mut lines: Vec<String> = by_instance.iter().take(MOST).map(|(option, of)| plan(of, option)).collect();
    lines.extend(rest(by_instance.len(), "instances with ports that nobody reserved"));
    lines.extend((!drifts.is_empty()).then(|| ignore(drifts)));
    lines
}

fn plan(drifts: &[&Drift], option: &str) -> String {
    match drifts {
        [one] => format!(
            "hint: if {} is rightly in use: gkctl port adopt {}{}{option}",
            ports(one),
            one.first_port,
            udp_option(one.protocol)
        ),
        several => format!(
            "hint: to go through these {} ports one by one: gkctl port adopt --all{option}",
            several.len()
        ),
    }
}

/// How to ignore the first of them whose process can be named.
fn ignore(drifts: &[&Drift]) -> String {
    let owners = drifts.iter().flat_map(|drift| &drift.listeners).flat_map(|listener| &listener.owners);
    let mut names = owners.map(|owner| owner.name.as_str());
    match names.find(|name| is_plain(name) && name.parse::<IgnoreName>().is_ok()) {
        Some(name) => {
            format!("hint: what nobody plans can be ignored, as in: gkctl ignore set {name} --process {name}")
        }
        None => "hint: what nobody plans can be ignored: gkctl ignore set --help".to_owned(),
    }
}

/// Whether a shell takes it as it is. A process may call itself anything, and these lines are there to be pasted.
fn is_plain(text: &str) -> bool {
    !text.starts_with('-') && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:/@+,=".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn every_difference_comes_with_what_to_do() {
        let (here, away) = (samples::instance("web-1"), samples::instance("web-2"));
        let now = Timestamp::from_micros(samples::AT);
        let nc = |port| samples::listener(port, "/usr/bin/nc", "ada");
        let unreserved = |on, port| samples::drift(samples::state(on, port, None, vec![nc(port)]));
        let held = Reservation { expect: "process=nginx".parse().ok(), ..samples::reservation(&away, 8080) };
        let conflict = samples::drift(samples::state(&away, 8080, Some(held.clone()), vec![nc(8080)]));
        let fleet = Reservation { scope: gk_model::reservation::Scope::Fleet, expect: None, ..held };
        let elsewhere = samples::drift(samples::state(&here, 8080, Some(fleet), vec![nc(8080)]));
        let idle = Drift { kind: DriftKind::Idle, protocol: Protocol::Udp, ..elsewhere.clone() };
        let since = "since 2023-11-14 22:13:20 UTC (just now)";
        let ignore = "hint: what nobody plans can be ignored, as in: gkctl ignore set nc --process nc";
        let table: [(&[&Drift], Vec<String>); 5] = [
            (
                &[&conflict],
                vec![
                    format!(
                        "8080/tcp on web-2 is held by web (ci), which expects process=nginx; {since} nc (pid 77), as \
                         ada listens there"
                    ),
                    "hint: end that process; or, if it is the rightful one: gkctl reservation edit 8080 --expect \
                     process=nc,account=ada --instance web-2"
                        .to_owned(),
                ],
            ),
            (
                &[&elsewhere],
                vec![
                    format!(
                        "8080/tcp on web-1 is held by web (ci), which expects nobody but web-2; {since} nc (pid 77), as \
                         ada listens there"
                    ),
                    "hint: end that process, or give it another port: gkctl port reserve".to_owned(),
                ],
            ),
            (
                &[&unreserved(&here, 9000)],
                vec!["hint: if 9000/tcp is rightly in use: gkctl port adopt 9000".to_owned(), ignore.to_owned()],
            ),
            (
                &[&unreserved(&away, 1), &unreserved(&away, 2)],
                vec![
                    "hint: to go through these 2 ports one by one: gkctl port adopt --all --instance web-2"
                        .to_owned(),
                    ignore.to_owned(),
                ],
            ),
            (
                &[&idle],
                vec![
                    "hint: if 8080/udp is not needed any more: gkctl port release 8080 --protocol udp".to_owned(),
                ],
            ),
        ];
        for (drifts, said) in table {
            assert_eq!(lines(drifts, |instance| *instance == here, now), said);
        }
    }

    #[test]
    fn no_process_gets_its_name_into_a_command() {
        let here = samples::instance("web-1");
        let evil = samples::listener(80, "/tmp/x; rm -rf ~", "ada");
        let unreserved = samples::drift(samples::state(&here, 80, None, vec![evil.clone()]));
        let held = Reservation { expect: "process=x".parse().ok(), ..samples::reservation(&here, 80) };
        let conflict = samples::drift(samples::state(&here, 80, Some(held), vec![evil]));
        let said = lines(&[&unreserved, &conflict], |_| true, Timestamp::from_micros(samples::AT));
        let commands: Vec<&String> = said.iter().filter(|line| line.starts_with("hint: ")).collect();
        assert!(commands.len() == 3 && commands.iter().all(|line| !line.contains("rm")), "{said:?}");
    }

    #[test]
    fn a_long_list_is_not_explained_to_its_end() {
        let here = samples::instance("web-1");
        let conflict = samples::drift(samples::state(
            &here,
            80,
            Some(Reservation { expect: "process=x".parse().ok(), ..samples::reservation(&here, 80) }),
            vec![samples::listener(80, "/usr/bin/nc", "ada")],
        ));
        let said = lines(&[&conflict; 7], |_| true, Timestamp::from_micros(samples::AT));
        assert_eq!(said.len(), 2 * MOST + 1);
        assert!(said.last().unwrap().starts_with("and 2 more conflicts"), "{said:?}");
    }
}
