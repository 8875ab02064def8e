//! `gkctl port history`, as it is typed: who it was, since when, in whose hands the port was then, and what nobody saw.

use gk_model::port::Protocol;
use gk_model::time::{Timestamp, Zone};

use super::agent::{Joined, listen};
use super::harness::{gkctl, program, stdout};

fn told(here: &Joined, words: &[&str]) -> String {
    stdout(&gkctl(&here.server, &here.state, &[&["port", "history"], words].concat()))
}

#[test]
fn who_used_a_port_then_and_who_held_it_is_told() {
    let here = Joined::new();
    let mut agent = here.agent();
    let (listener, port) = listen();
    let number = port.to_string();
    here.wait_shown(Protocol::Tcp, port, true);
    let adopt = ["port", "reserve", "--port", &number, "--adopt", "--service", "billing"];
    stdout(&gkctl(&here.server, &here.state, &adopt));
    let comm = std::fs::read_to_string("/proc/self/comm").unwrap().trim().to_owned();
    let me = format!("{comm} (pid {})", std::process::id());

    let table = told(&here, &[&number]);
    let line = table.lines().find(|line| line.contains(&me)).expect("who listens is told");
    assert!(line.contains("billing (local:") && line.contains(&format!("{number}/tcp")), "{table}");
    assert!(table.starts_with("FROM") && table.lines().next().unwrap().contains("HELD BY"), "{table}");
    for filter in [&["--process", &comm.to_uppercase()][..], &["--kind", "listened"], &["-A", "--at", "-0s"]]
    {
        let table = told(&here, &[&[number.as_str()], filter].concat());
        assert!(table.contains(&me) && table.contains("billing (local:"), "{filter:?}: {table}");
    }
    assert_eq!(told(&here, &[&number, "--process", "nobody-is-called-this"]), "");
    assert!(told(&here, &["-A", "--service", "billing"]).contains(&number));
    let summary = told(&here, &[&number, "--kind", "listened", "--summary"]);
    assert!(summary.starts_with("first used") && summary.contains("now, since"), "{summary}");
    assert_eq!(summary.matches(&me).count(), 2, "{summary}");

    // The port closes while no agent runs: that it was open before is known, and what was in between is not.
    agent.kill();
    let unseen_at = Timestamp::from_clock();
    drop(listener);
    let _next = here.agent();
    here.wait_shown(Protocol::Tcp, port, false);
    // As people write it nine hours west of Greenwich, where it is earlier.
    let soon = unseen_at.plus(std::time::Duration::from_secs(1)).in_zone(&Zone::ahead(-9));
    let mut command = program("gkctl");
    let socket = format!("unix:{}", here.server.data.join("gatekeeper.sock").display());
    command.args(["port", "history", &number, "--kind", "held", "--until", &soon]);
    command.env("GATEKEEPER_SERVER", socket).env("GATEKEEPER_STATE", &here.state).env("TZ", "<-09>9");
    let there = stdout(&command.output().unwrap());
    assert!(there.contains("billing"), "{there}");
    let json: serde_json::Value = serde_json::from_str(&told(&here, &[&number, "-o", "json"])).unwrap();
    let gaps: Vec<_> =
        json.as_array().unwrap().iter().filter(|line| line["kind"] == "not_observed").collect();
    assert!(!gaps.is_empty() && gaps.iter().all(|gap| gap["instance"]["name"] == "here"), "{json}");
    let middle = unseen_at.to_string();
    let then = gkctl(&here.server, &here.state, &["port", "history", &number, "--at", &middle]);
    let note = String::from_utf8(then.stderr).unwrap();
    assert!(note.contains("nobody watched here from "), "{note}");
    let ended = told(&here, &[&number, "--kind", "listened", "--summary"]);
    assert!(ended.contains("last used") && !ended.contains("now, since"), "{ended}");
    here.server.verify();
}
