//! Stories of drift, with real sockets: a busy machine is brought under the plan, a squatter is found and named, and what
//! nobody plans is ignored.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Output;

use gk_model::history::EventKind;
use gk_model::port::Port;
use gk_model::query::EventQuery;
use gk_model::reservation::{ReserveRequest, Scope};
use serde_json::Value;

use super::agent::{Joined, listen};
use super::crash::join;
use super::harness::{Server, gkctl, program, stdout, wait_for};
use super::tokens::terminal;

impl Joined {
    pub(super) fn run(&self, words: &[&str]) -> Output {
        gkctl(&self.server, &self.state, words)
    }

    pub(super) fn ok(&self, words: &[&str]) -> String {
        stdout(&self.run(words))
    }

    /// What is printed by a command that must end with this code.
    pub(super) fn ends(&self, code: i32, words: &[&str]) -> (String, String) {
        let output = self.run(words);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{words:?}: {out}{err}");
        assert!(!err.contains("panicked"), "{err}");
        (out, err)
    }

    /// The ports that are reserved here, of these.
    fn held(&self, of: &[u16]) -> Vec<(u16, Option<String>)> {
        let live = self.server.live().into_iter();
        let mut held: Vec<_> = live
            .map(|held| (held.first_port.get(), held.service.map(|service| service.to_string())))
            .filter(|(port, _)| of.contains(port))
            .collect();
        held.sort();
        held
    }

    /// The lines of the plan for these ports.
    fn planned(&self, of: &[u16]) -> Vec<Value> {
        let plan = self.ok(&["port", "adopt", "--all", "--dry-run", "-o", "json"]);
        let lines: Vec<Value> = serde_json::from_str(&plan).unwrap();
        let is_wanted = |line: &Value| of.iter().any(|port| line["port"] == *port);
        lines.into_iter().filter(is_wanted).collect()
    }

    /// Goes through `gkctl port adopt --all` at a terminal, and answers each question as `answers` says. What the terminal
    /// showed.
    fn onboard(&self, answers: impl Fn(&str) -> String) -> String {
        let (mut ours, theirs) = terminal();
        let socket = format!("unix:{}", self.server.data.join("gatekeeper.sock").display());
        let mut command = program("gkctl");
        command.args(["port", "adopt", "--all"]).env("GATEKEEPER_SERVER", socket);
        command.env("GATEKEEPER_STATE", &self.state);
        command.stdin(theirs.try_clone().unwrap()).stderr(theirs.try_clone().unwrap()).stdout(theirs);
        let mut child = command.spawn().unwrap();
        // Our copies of its end are to be closed when it ends.
        drop(command);
        let shown = converse(&mut ours, answers);
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}: {shown}");
        shown
    }
}

fn converse(ours: &mut File, answers: impl Fn(&str) -> String) -> String {
    let (mut shown, mut answered) = (String::new(), 0);
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = ours.read(&mut buffer) {
        shown += &String::from_utf8_lossy(&buffer[..count]);
        let open = shown[answered..].lines().last().unwrap_or_default().to_owned();
        if open.ends_with("] ") || open.ends_with("name: ") {
            answered = shown.len();
            ours.write_all(format!("{}\n", answers(&open)).as_bytes()).unwrap();
        }
    }
    shown
}

#[test]
fn a_busy_machine_is_brought_under_the_plan_port_by_port() {
    let here = Joined::new();
    let listeners: Vec<(TcpListener, u16)> = (0..3).map(|_| listen()).collect();
    let mut ports: Vec<u16> = listeners.iter().map(|(_, port)| *port).collect();
    ports.sort_unstable();
    here.ok(&["instance", "join"]); // a report, since no agent runs

    // Nothing happens before somebody said so.
    let (plan, error) = here.ends(2, &["port", "adopt", "--all"]);
    assert!(ports.iter().all(|port| plan.contains(&format!("{port}/tcp"))), "{plan}");
    assert!(error.contains("--yes") && error.contains("--dry-run"), "{error}");
    let planned = here.planned(&ports);
    assert!(planned.len() == 3 && planned.iter().all(|line| line["fate"] == "adopt"), "{planned:?}");
    let server = here.server.address.rsplit(':').next().unwrap().parse().unwrap();
    assert_eq!(here.planned(&[server])[0]["by"], "gatekeeper", "its own server is offered to be ignored");
    assert_eq!(here.server.live(), []);

    // Answered one by one: the first as proposed, the second by another name, and then it is interrupted.
    let (first, second, third) = (ports[0], ports[1], ports[2]);
    let shown = here.onboard(|question| {
        let about = |port: u16| question.starts_with(&format!("{port}/tcp"));
        let answer = match question {
            question if question.contains("on all machines?") => "n",
            question if question.contains("service name:") => "shop",
            _ if about(first) => "y",
            _ if about(second) => "e",
            _ if about(third) => "q",
            _ => "n",
        };
        answer.to_owned()
    });
    let proposed = planned[0]["service"].as_str().unwrap().to_owned();
    let adopted = [(first, Some(proposed.clone())), (second, Some("shop".to_owned()))];
    assert_eq!(here.held(&ports), adopted, "{shown}");
    assert_eq!(here.ok(&["ignore", "list", "-o", "name"]), "");

    // Again: it goes on with what is left, and does nothing twice.
    let names = here.ok(&["port", "adopt", "--all", "--yes", "-o", "name"]);
    assert!(names.lines().any(|name| name == format!("{third}/tcp")), "{names}");
    assert!(!names.contains(&format!("{first}/tcp")), "{names}");
    assert_eq!(here.held(&ports)[2], (third, Some(proposed)));
    assert_eq!(here.ok(&["ignore", "list", "-o", "name"]), "gatekeeper\n");
    for port in ports {
        let port = port.to_string();
        let (_, said) = here.ends(0, &["drift", "--port", &port]);
        assert!(said.contains("differs from the plan"), "{said}");
        assert!(here.ok(&["port", "list", "--port", &port]).contains("in_use"));
    }
}

#[test]
fn one_port_is_adopted_with_what_is_known_of_it() {
    let here = Joined::new();
    let (_listener, port) = listen();
    let word = port.to_string();
    // Without an agent the server has not heard of it, and says what to do.
    let (_, error) = here.ends(3, &["port", "adopt", &word]);
    assert!(error.contains("has not heard of it") && error.contains("gatekeeper-agent"), "{error}");
    here.ok(&["instance", "join"]);
    let program = std::env::current_exe().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    let output = here.run(&["port", "adopt", &word]);
    assert_eq!(stdout(&output).trim(), word);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains(&format!("adopted {port}/tcp on here for {program}")), "{told}");
    // It is reserved now; whoever adopts it again hears by whom.
    let (_, error) = here.ends(3, &["port", "adopt", &word]);
    assert!(error.contains("is reserved") && error.contains(&program), "{error}");
}

#[test]
fn a_squatter_on_a_reserved_port_is_found_and_named() {
    let here = Joined::new();
    let _agent = here.agent();
    let admin = here.server.admin();
    let away = join(&admin, "away", 7);
    let (squatter, port) = listen();
    let word = port.to_string();
    let drift = |more: &[&str]| here.run(&[&["drift", "--port", &word], more].concat());
    let kinds = |kind| {
        let query = EventQuery { port: word.parse().ok(), kind: Some(kind), ..EventQuery::default() };
        admin.list_events(&query).unwrap().items.len()
    };

    wait_for("the listener to be told", || (drift(&[]).status.code() == Some(3)).then_some(()));
    let (list, said) = here.ends(3, &["drift", "--port", &word]);
    assert!(
        list.contains("unreserved") && said.contains(&format!("gkctl port adopt {port}\n")),
        "{list}{said}"
    );

    // The number is exclusive everywhere, and held for another machine.
    let request = ReserveRequest {
        port: Port::new(port),
        scope: Scope::Fleet,
        service: "web".parse().ok(),
        ..ReserveRequest::next_free(away)
    };
    admin.reserve(&request).unwrap();
    let (list, said) = here.ends(3, &["drift", "--port", &word, "--kind", "conflict"]);
    let pid = format!("(pid {})", std::process::id());
    for part in ["conflict", "here", &format!("{port}/tcp"), &pid, "nobody but away", "web ("] {
        assert!(list.contains(part), "{part}: {list}");
    }
    assert!(said.contains(&format!("{port}/tcp on here is held by web (")) && said.contains(&pid), "{said}");
    assert!(said.contains("1 difference from the plan: 1 conflict"), "{said}");
    assert_eq!(here.ends(3, &["drift", "--port", &word, "-o", "name"]).0, format!("here {port}/tcp\n"));
    assert_eq!((kinds(EventKind::ConflictBegan.into()), kinds(EventKind::ConflictEnded.into())), (1, 0));
    let shown = here.ok(&["port", "list", "--port", &word, "--state", "conflict"]);
    assert!(shown.contains("nobody but away") && shown.contains("differs"), "{shown}");
    assert!(here.ok(&["status"]).contains("see: gkctl drift"));

    drop(squatter);
    wait_for("the conflict to end", || (drift(&[]).status.code() == Some(0)).then_some(()));
    assert_eq!((kinds(EventKind::ConflictBegan.into()), kinds(EventKind::ConflictEnded.into())), (1, 1));
}

#[test]
fn whoever_takes_the_place_of_the_adopted_is_found_and_named() {
    let here = Joined::new();
    let _agent = here.agent();
    let (rightful, port) = listen();
    let word = port.to_string();
    wait_for("the listener to be told", || {
        here.run(&["port", "adopt", &word, "--service", "web"]).status.success().then_some(())
    });
    let program = std::env::current_exe().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    let shown = here.ok(&["port", "show", &word]);
    assert!(shown.contains(&format!("expects process={program}")) && shown.contains("is in_use"), "{shown}");

    drop(rightful);
    let data = here.server.data.with_file_name("squatter");
    let squatter = Server::start_with(&data, &format!("127.0.0.1:{port}"), |_| {});
    let drift = || here.run(&["drift", "--port", &word, "--kind", "conflict"]);
    wait_for("the squatter to be found", || (drift().status.code() == Some(3)).then_some(()));
    let (list, said) = here.ends(3, &["drift", "--port", &word]);
    let pid = format!("gatekeeper (pid {})", squatter.process.id());
    for part in [pid.as_str(), &format!("process={program}"), "web ("] {
        assert!(list.contains(part), "{part}: {list}");
    }
    assert!(said.contains(&format!("gkctl reservation edit {port} --expect process=gatekeeper")), "{said}");

    // It is made the rightful one by the very command.
    here.ok(&["reservation", "edit", &word, "--expect", "process=gatekeeper"]);
    here.ends(0, &["drift", "--port", &word]);
    here.ok(&["reservation", "edit", &word, "--expect", &format!("process={program}")]);
    here.ends(3, &["drift", "--port", &word]);
    drop(squatter);
    wait_for("the conflict to end", || (drift().status.code() == Some(0)).then_some(()));
    assert!(here.ok(&["port", "show", &word]).contains("is reserved"));
}

#[test]
fn what_a_rule_ignores_is_shown_and_does_not_count() {
    let here = Joined::new();
    let (_listener, port) = listen();
    let word = port.to_string();
    here.ok(&["instance", "join"]);
    here.ends(3, &["drift", "--port", &word]);

    here.ok(&["ignore", "set", "mine", "--ports", &word, "--protocol", "udp"]);
    here.ends(3, &["drift", "--port", &word]);
    here.ok(&["ignore", "set", "mine", "--ports", &word, "--note", "a test"]);
    let (list, said) = here.ends(0, &["drift", "--port", &word]);
    assert!(list.is_empty() && said.contains("differs from the plan"), "{list}{said}");
    let (list, _) = here.ends(0, &["drift", "--port", &word, "--ignored"]);
    assert!(list.contains("IGNORED BY") && list.contains("mine") && list.contains("unreserved"), "{list}");
    assert!(here.ok(&["status"]).contains(" ignored)"));
    let shown = here.ok(&["ignore", "show", "mine"]);
    assert!(shown.contains(&format!("anything on {port}\n")) && shown.contains("a test"), "{shown}");

    here.ok(&["ignore", "delete", "mine"]);
    here.ends(3, &["drift", "--port", &word]);
    let (_, error) = here.ends(4, &["ignore", "delete", "mine"]);
    assert!(error.contains("mine") && error.contains("gkctl ignore list"), "{error}");
    here.ends(2, &["ignore", "set", "all", "--instances", "env=prod"]);

    let set = here.run(&["ignore", "defaults", "--set", "-o", "name"]);
    let names = stdout(&set);
    assert_eq!(here.ok(&["ignore", "list", "-o", "name"]).lines().count(), names.lines().count());
    let again = here.run(&["ignore", "defaults", "--set"]);
    assert!(again.stderr.is_empty(), "{again:?}");
}

#[test]
fn a_service_is_found_over_the_whole_fleet() {
    let here = Joined::new();
    let admin = here.server.admin();
    for (name, seed) in [("zeta", 8), ("away", 9)] {
        let instance = join(&admin, name, seed);
        let request = ReserveRequest { service: "web".parse().ok(), ..ReserveRequest::next_free(instance) };
        admin.reserve(&request).unwrap();
    }
    here.ok(&["port", "reserve", "--service", "web"]);
    here.ok(&["port", "reserve", "--service", "other"]);
    let found = |words: &[&str]| {
        let names = here.ok(&[&["port", "list", "-o", "name"], words].concat());
        let names = names.lines().map(|line| line.split(' ').next().unwrap_or_default().to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(found(&["--service", "web"]), ["away", "here", "zeta"]);
    assert_eq!(found(&["--service", "web", "--instance", "away"]).len(), 1);
    here.ok(&["instance", "label", "zeta", "env=prod"]);
    assert_eq!(found(&["--service", "web", "--label", "env=prod"]), ["zeta"]);
    assert_eq!(here.ok(&["instance", "list", "--label", "env=prod", "-o", "name"]), "zeta\n");
    // Whoever asks needs not have joined.
    let table = gkctl(&here.server, &here.state.join("nowhere"), &["port", "list", "--service", "web"]);
    assert!(stdout(&table).contains("INSTANCE"), "{table:?}");
}
