//! `gkctl doctor`, in each state that somebody may be in.

use std::fs;
use std::process::Command;

use serde_json::Value;

use super::harness::{Process, program, stdout, wait_for};
use super::tokens::Desk;

/// Each check with its verdict, and the exit code.
pub(super) fn ask_the_doctor(command: &mut Command) -> (Vec<(String, String)>, Option<i32>) {
    let output = command.args(["doctor", "-o", "json"]).output().unwrap();
    let checks: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    for check in &checks {
        assert_eq!(
            check["verdict"] == "ok",
            check["remedy"].is_null(),
            "each trouble has its remedy: {check}"
        );
    }
    let text = |check: &Value, field: &str| check[field].as_str().unwrap().to_owned();
    (
        checks.iter().map(|check| (text(check, "check"), text(check, "verdict"))).collect(),
        output.status.code(),
    )
}

fn verdict<'a>(checks: &'a [(String, String)], name: &str) -> &'a str {
    checks.iter().find(|(check, _)| check == name).map_or("missing", |(_, verdict)| verdict)
}

#[test]
fn the_doctor_finds_what_is_wrong() {
    let mut desk = Desk::new();
    let http = desk.http();

    // No server: whatever else there is to say is said.
    let (checks, code) = ask_the_doctor(desk.command(&[]).env("GATEKEEPER_SERVER", "http://127.0.0.1:1"));
    assert_eq!((verdict(&checks, "server"), code), ("bad", Some(1)), "{checks:?}");
    assert_eq!((verdict(&checks, "login"), verdict(&checks, "this machine")), ("ok", "warn"), "{checks:?}");

    // A server, and a token that is none.
    let wrong = format!("gkt_{}", "0".repeat(64));
    let mut command = desk.command(&[]);
    let (checks, code) =
        ask_the_doctor(command.env("GATEKEEPER_SERVER", &http).env("GATEKEEPER_TOKEN", &wrong));
    assert_eq!(
        (verdict(&checks, "server"), verdict(&checks, "you"), code),
        ("ok", "bad", Some(1)),
        "{checks:?}"
    );

    // What is no token at all.
    let (checks, code) = ask_the_doctor(desk.command(&[]).env("GATEKEEPER_TOKEN", "hunter2"));
    assert_eq!((verdict(&checks, "server"), code), ("bad", Some(1)), "{checks:?}");

    // Not joined.
    let at_socket = |desk: &Desk| {
        let mut command = desk.command(&[]);
        command.env("GATEKEEPER_SERVER", desk.socket());
        command
    };
    let (checks, code) = ask_the_doctor(&mut at_socket(&desk));
    assert_eq!((verdict(&checks, "you"), verdict(&checks, "this machine"), code), ("ok", "warn", Some(1)));

    // Joined, without an agent.
    stdout(&desk.admin(&["instance", "join", "--name", "web-1"]));
    let (checks, code) = ask_the_doctor(&mut at_socket(&desk));
    assert_eq!((verdict(&checks, "agent"), code), ("bad", Some(1)), "{checks:?}");
    let others: Vec<_> =
        checks.iter().filter(|(check, verdict)| check != "agent" && verdict != "ok").collect();
    assert!(others.is_empty(), "{others:?}");

    // All is well, but for what the agent may not see where the tests run.
    let mut agent = program("gatekeeper-agent");
    agent.env("GATEKEEPER_STATE", desk.place.join("state"));
    let agent = Process::start(&mut agent, desk.place.join("agent.log"));
    let (checks, code) = wait_for("the agent to be well", || {
        let (checks, code) = ask_the_doctor(&mut at_socket(&desk));
        (verdict(&checks, "agent") == "ok" && verdict(&checks, "privileges") != "missing")
            .then_some((checks, code))
    });
    let troubles: Vec<_> = checks.iter().filter(|(_, verdict)| verdict != "ok").collect();
    assert_eq!(code, Some(i32::from(!troubles.is_empty())), "{checks:?}");
    assert!(troubles.iter().all(|(check, _)| check == "privileges"), "{troubles:?}");
    let table = at_socket(&desk).arg("doctor").output().unwrap();
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.lines().skip(1).filter(|line| line.starts_with("ok ")).count() >= 9, "{table}");
    drop(agent);

    // Somebody has taken its place.
    let state = desk.place.join("state");
    fs::rename(&state, desk.place.join("old")).unwrap();
    stdout(&desk.admin(&["instance", "join", "--replace", "web-1"]));
    fs::remove_dir_all(&state).unwrap();
    fs::rename(desk.place.join("old"), &state).unwrap();
    let (checks, _) = ask_the_doctor(&mut at_socket(&desk));
    assert_eq!(verdict(&checks, "credential"), "bad", "{checks:?}");

    // The server is killed.
    desk.server.process.kill();
    let (checks, code) = ask_the_doctor(&mut at_socket(&desk));
    assert_eq!((verdict(&checks, "server"), verdict(&checks, "this machine"), code), ("bad", "ok", Some(1)));
}
