//! `gkctl` as people type it: the seed's commands, and every mistake with its message.

use std::io::Read;
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use gk_client::lock::AgentLock;

use super::harness::{Place, Process, Server, gkctl, gkctl_at, program, stdout, wait_for};

/// Somebody who types, on a machine with a server.
pub(super) struct Desk {
    pub(super) server: Server,
    pub(super) state: PathBuf,
    _place: Place,
}

impl Desk {
    /// A server, and a state directory that has not joined.
    pub(super) fn new() -> Desk {
        let place = Place::new();
        let server = Server::start(&place.join("data"));
        Desk::at(server, place)
    }

    pub(super) fn at(server: Server, place: Place) -> Desk {
        Desk { server, state: place.join("state"), _place: place }
    }

    pub(super) fn joined() -> Desk {
        let desk = Desk::new();
        stdout(&desk.run(&["instance", "join", "--name", "web-1"]));
        desk
    }

    pub(super) fn run(&self, words: &[&str]) -> std::process::Output {
        gkctl(&self.server, &self.state, words)
    }

    pub(super) fn ok(&self, words: &[&str]) -> String {
        stdout(&self.run(words))
    }

    /// A command that must fail with this code, nothing on standard output, and all these words in its message.
    pub(super) fn fails(&self, words: &[&str], code: i32, says: &[&str]) {
        let output = self.run(words);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {error}");
        assert!(output.stdout.is_empty(), "{words:?} printed something");
        assert!(error.starts_with("error: ") && !error.contains("panicked"), "{words:?}: {error}");
        for said in says {
            assert!(error.contains(said), "{words:?} does not say {said:?}: {error}");
        }
    }
}

#[test]
fn the_seeds_commands_work_word_for_word() {
    let desk = Desk::new();
    desk.ok(&["--help"]);
    desk.ok(&["instance", "join"]);
    assert_eq!(desk.ok(&["instance", "list", "-o", "name"]).lines().count(), 1);
    let number: u16 = desk.ok(&["port", "reserve"]).trim().parse().expect("only the number");
    assert!((8000..=9999).contains(&number));
    if desk.run(&["port", "reserve", "--port", "8080"]).status.success() {
        desk.ok(&["port", "release", "--port", "8080"]);
    }
    desk.ok(&["port", "release", &number.to_string()]);
    let history = desk.ok(&["port", "history", "--port", &number.to_string()]);
    assert!(history.contains(&format!("{number}/tcp")) && history.contains("HELD BY"), "{history}");
}

#[test]
fn mistakes_are_answered_with_what_why_and_what_next() {
    let desk = Desk::new();
    desk.fails(&["port", "list"], 1, &["not joined", "gkctl instance join"]);
    desk.ok(&["instance", "join", "--name", "web-1"]);
    for (port, says) in [
        ("0", "`0` is not a port: a port is a number from 1 to 65535"),
        ("65536", "`65536` is not a port"),
        ("-1", "`-1` is not a port"),
        ("abc", "`abc` is not a port"),
    ] {
        desk.fails(&["port", "reserve", "--port", port], 2, &[says]);
        desk.fails(&["port", "release", port], 2, &[says]);
    }
    desk.fails(&["port", "release", "8000-8001"], 4, &["8000-8001 is not reserved on web-1"]);
    desk.fails(&["port", "list", "--port", "8000-7000"], 2, &["runs backwards", "7000-8000"]);
    desk.fails(&["port", "history", "--since", "yesterday"], 2, &["`yesterday` is not a time"]);
    desk.fails(
        &["port", "reserve", "--instance", "nowhere"],
        4,
        &["there is no instance nowhere", "gkctl instance list"],
    );
    desk.fails(&["port", "reserve", "--instance", "no where"], 2, &["may not contain ' '"]);
    desk.fails(
        &["port", "reserve", "--protocol", "sctp"],
        2,
        &["`sctp` is not a protocol", "tcp, udp, both"],
    );
    desk.fails(&["port", "reserve", "--pool", "web"], 4, &["there is no pool web"]);
    desk.fails(&["port", "release", "9001"], 4, &["9001", "not reserved on web-1"]);
    desk.fails(&["port", "reserve", "--service", "a\nb"], 2, &["a service name may not contain"]);
    desk.fails(
        &["port", "reserve", "--service", &"x".repeat(101)],
        2,
        &["too long: 101 characters, at most 100"],
    );
}

#[test]
fn a_release_needs_a_reservation_and_its_holder() {
    let desk = Desk::joined();
    let port = desk.ok(&["port", "reserve"]).trim().to_owned();
    desk.ok(&["port", "release", &port]);
    desk.fails(&["port", "release", &port], 4, &["not reserved", "released by"]);
}

#[test]
fn a_refusal_names_the_holder_and_offers_free_ports() {
    let desk = Desk::joined();
    let port = desk.ok(&["port", "reserve", "--service", "billing"]).trim().to_owned();
    desk.fails(
        &["port", "reserve", "--port", &port],
        3,
        &["is reserved", "billing", "free instead: ", "hint: gkctl port reserve --port "],
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().port().to_string();
    desk.ok(&["instance", "join"]); // sends a full report, as no agent runs
    let words = ["port", "reserve", "--port", &taken, "--service", "billing", "--name", "http"];
    let adopt = format!("hint: if that process is the rightful one: gkctl {} --adopt\n", words.join(" "));
    let refused = desk.run(&words);
    let error = String::from_utf8_lossy(&refused.stderr);
    let pid = std::process::id().to_string();
    assert_eq!((refused.status.code(), error.matches(&pid).count()), (Some(3), 1), "{error}");
    assert!(error.contains("\nlistening since ") && !error.contains("held by"), "{error}");
    let free = error.lines().find_map(|line| line.strip_prefix("free instead: ")?.split(',').next());
    let other = format!("hint: gkctl port reserve --port {} --service billing --name http\n", free.unwrap());
    assert!(error.contains(&other) && error.contains(&adopt), "{error}");
    assert_eq!(desk.ok(&["port", "reserve", "--port", &taken, "--adopt"]).trim(), taken);
    assert!(desk.ok(&["port", "show", &taken]).contains("in_use"));
}

#[test]
fn a_pick_avoids_what_this_machine_uses_right_now() {
    let desk = Desk::joined();
    let first: u16 = desk.ok(&["port", "reserve"]).trim().parse().unwrap();
    // No agent runs, so the server cannot know: the busy list and the test bind must.
    let next = (first + 1..=9999).find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok()).unwrap();
    let picked: u16 = desk.ok(&["port", "reserve"]).trim().parse().unwrap();
    assert!(picked > next.local_addr().unwrap().port(), "{picked}");
}

#[test]
fn a_number_that_somebody_listens_on_here_is_given_back() {
    let desk = Desk::joined();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().port().to_string();
    // No agent runs, so the server does not know it.
    desk.fails(&["port", "reserve", "--port", &taken], 3, &["in use by", "given back", "--adopt"]);
    assert_eq!(desk.server.live(), []);
    drop(listener);
    assert_eq!(desk.ok(&["port", "reserve", "--port", &taken]).trim(), taken);
}

#[test]
fn a_server_that_is_away_and_a_token_that_is_wrong() {
    let mut desk = Desk::joined();
    let gone = gkctl_at("http://127.0.0.1:1", &desk.state, &["instance", "list"]);
    let error = String::from_utf8_lossy(&gone.stderr).into_owned();
    assert_eq!(gone.status.code(), Some(6), "{error}");
    assert!(error.contains("http://127.0.0.1:1"), "{error}");

    let address = format!("http://{}", desk.server.address);
    let token = desk.state.join("wrong-token");
    std::fs::write(&token, format!("gkt_{}", "0".repeat(64))).unwrap();
    let words = ["instance", "list", "--token-file", token.to_str().unwrap()];
    let refused = gkctl_at(&address, &desk.state, &words);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(5), "{error}");
    assert!(!error.contains("gkt_0"), "the token is repeated: {error}");

    std::fs::write(&token, "hunter2").unwrap();
    let refused = gkctl_at(&address, &desk.state, &words);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && !error.contains("hunter2"), "{error}");

    desk.server.process.kill();
    let gone = desk.run(&["instance", "list"]);
    assert_eq!(gone.status.code(), Some(6), "{}", String::from_utf8_lossy(&gone.stderr));
}

/// A socket in front of the server: the first `swallowed` connections lose their answer.
fn lossy_socket(server: &Path, path: &Path, swallowed: usize) {
    let (listener, server) = (UnixListener::bind(path).unwrap(), server.to_owned());
    std::thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let (mut client, mut upstream) = (client.unwrap(), UnixStream::connect(&server).unwrap());
            let (mut from, mut to) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
            std::thread::spawn(move || drop(std::io::copy(&mut from, &mut to)));
            if number < swallowed {
                let mut first_byte_of_the_answer = [0; 1];
                upstream.read_exact(&mut first_byte_of_the_answer).unwrap();
                client.shutdown(std::net::Shutdown::Both).unwrap();
            } else {
                std::thread::spawn(move || drop(std::io::copy(&mut upstream, &mut client)));
            }
        }
    });
}

/// Runs a command that never hears the answer, and kills it once the server has done what it asked for.
fn kill_when_done(desk: &Desk, socket: &Path, words: &[&str], is_done: impl Fn() -> bool) {
    let server = desk.server.data.join("gatekeeper.sock");
    lossy_socket(&server, socket, usize::MAX);
    let mut command = program("gkctl");
    command.args(words).env("GATEKEEPER_SERVER", format!("unix:{}", socket.display()));
    command.env("GATEKEEPER_STATE", &desk.state).env("GATEKEEPER_DATA", desk.state.join("no-data"));
    let mut process = Process::start(&mut command, socket.with_extension("log"));
    wait_for("the request to take effect", || is_done().then_some(()));
    process.kill();
    std::fs::remove_file(socket).unwrap();
    lossy_socket(&server, socket, 0);
}

#[test]
fn a_command_whose_answer_was_lost_goes_on_by_itself() {
    let desk = Desk::new();
    for (name, words) in [("join", &["instance", "join"][..]), ("reserve", &["port", "reserve"])] {
        let socket = desk.state.with_extension(name);
        lossy_socket(&desk.server.data.join("gatekeeper.sock"), &socket, 1);
        let output = gkctl_at(&format!("unix:{}", socket.display()), &desk.state, words);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(desk.server.live().len(), 1);
    assert_eq!(desk.ok(&["instance", "list", "-o", "name"]).lines().count(), 1);
}

#[test]
fn a_join_whose_answer_was_lost_is_finished_by_joining_again() {
    let desk = Desk::new();
    let socket = desk.state.with_extension("sock");
    let words = ["instance", "join", "--name", "web-1", "--label", "env=prod"];
    kill_when_done(&desk, &socket, &words, || desk.ok(&["instance", "list", "-o", "name"]) == "web-1\n");
    let again = gkctl_at(&format!("unix:{}", socket.display()), &desk.state, &words);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(desk.ok(&["instance", "list", "-o", "name"]), "web-1\n");
    assert!(!desk.state.join("credential.pending").exists());
    assert!(desk.ok(&["instance", "list"]).contains("env=prod"));
    desk.ok(&["port", "reserve"]);
}

#[test]
fn a_take_over_whose_answer_was_lost_is_repeated() {
    let desk = Desk::joined();
    std::fs::remove_dir_all(&desk.state).unwrap();
    let socket = desk.state.with_extension("sock");
    let words = ["instance", "join", "--replace", "web-1"];
    kill_when_done(&desk, &socket, &words, || desk.ok(&["events"]).contains("in place of the lost identity"));
    let again = gkctl_at(&format!("unix:{}", socket.display()), &desk.state, &words);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    desk.ok(&["port", "reserve"]);
}

#[test]
fn outputs_are_for_programs_too() {
    let desk = Desk::joined();
    desk.ok(&["port", "reserve", "--service", "billing"]);
    let json: serde_json::Value = serde_json::from_str(&desk.ok(&["port", "list", "-o", "json"])).unwrap();
    let mine: Vec<_> = json.as_array().unwrap().iter().filter(|state| state["state"] == "reserved").collect();
    assert_eq!(mine.len(), 1);
    assert_eq!(mine[0]["reservation"]["service"], "billing");
    let csv = desk.ok(&["port", "list", "-o", "csv"]);
    assert!(csv.lines().next().unwrap().to_lowercase().starts_with("port,"), "{csv}");
    assert_eq!(desk.ok(&["instance", "list", "-o", "name"]), "web-1\n");
}

#[test]
fn joining_twice_refreshes_and_leaving_needs_free_hands() {
    let desk = Desk::joined();
    let again = desk.run(&["instance", "join"]);
    let told =
        format!("{}{}", String::from_utf8_lossy(&again.stdout), String::from_utf8_lossy(&again.stderr));
    assert!(told.contains("already joined as web-1; facts refreshed"), "{told}");
    desk.ok(&["port", "reserve"]);
    desk.fails(&["instance", "leave"], 3, &["still holds 1 reservation", "--release"]);
    desk.ok(&["instance", "leave", "--release"]);
    desk.fails(&["port", "list"], 1, &["not joined", "gkctl instance join"]);
    desk.ok(&["instance", "join", "--name", "web-1"]);
}

/// Both outputs of a command that must succeed.
fn told(output: &std::process::Output) -> String {
    stdout(output) + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_join_under_another_name_says_so() {
    let desk = Desk::joined();
    let renamed = told(&desk.run(&["instance", "join", "--name", "web-2"]));
    assert!(renamed.contains("renamed from web-1 to web-2; facts refreshed"), "{renamed}");
    let again = told(&desk.run(&["instance", "join", "--name", "web-2"]));
    assert!(again.contains("already joined as web-2; facts refreshed"), "{again}");
}

#[test]
fn an_empty_history_says_of_what_time_it_is_true() {
    let desk = Desk::joined();
    let never = told(&desk.run(&["port", "history", "--port", "2"]));
    assert!(never.starts_with("nobody held or listened on 2 on web-1 since it joined at "), "{never}");
    let before = told(&desk.run(&["port", "history", "--port", "2", "--at", "2h"]));
    assert!(before.starts_with("the history of web-1 begins when it joined, at "), "{before}");
    let then = told(&desk.run(&["port", "history", "--port", "2", "--at", "0s"]));
    assert!(then.starts_with("nobody held or listened on 2 on web-1 at "), "{then}");
}

#[test]
fn what_is_only_read_finds_an_instance_that_left_by_its_name() {
    let desk = Desk::joined();
    let port = desk.ok(&["port", "reserve"]).trim().to_owned();
    desk.ok(&["instance", "leave", "--release"]);
    for words in [
        vec!["port", "history", "--port", &port, "--instance", "WEB-1"],
        vec!["events", "--kind", "reserved", "--instance", "web-1"],
        vec!["instance", "show", "web-1"],
    ] {
        let read = desk.run(&words);
        assert!(stdout(&read).contains("web-1") || stdout(&read).contains(&port), "{words:?}");
        let note = String::from_utf8_lossy(&read.stderr);
        assert!(note.starts_with("note: web-1 left at "), "{words:?}: {note}");
    }
    let refused = "there is no instance web-1";
    desk.fails(&["port", "reserve", "--instance", "web-1"], 4, &[refused, "gkctl instance list"]);
    desk.fails(&["instance", "show", "web-9"], 4, &["there is no instance web-9", "gkctl instance list"]);
}

#[test]
fn a_server_that_is_missing_is_what_is_told_to_be_started() {
    let mut desk = Desk::new();
    let nowhere = gkctl_at("http://127.0.0.1:1", &desk.state, &["port", "reserve"]);
    let error = String::from_utf8_lossy(&nowhere.stderr).into_owned();
    assert_eq!(nowhere.status.code(), Some(6), "{error}");
    assert!(
        error.contains("`gatekeeper server --listen 127.0.0.1:1`") && error.contains("--server"),
        "{error}"
    );

    desk.ok(&["instance", "join", "--name", "web-1"]);
    desk.server.process.kill();
    let address = format!("http://{}", desk.server.address);
    let status = gkctl_at(&address, &desk.state, &["status"]);
    let error = String::from_utf8_lossy(&status.stderr).into_owned();
    let shown = String::from_utf8_lossy(&status.stdout).into_owned();
    assert_eq!(status.status.code(), Some(6), "{error}");
    assert!(
        shown.contains(&address) && shown.contains("does not answer") && shown.contains("web-1"),
        "{shown}"
    );
    assert!(!shown.contains("gatekeeper-agent") && error.contains("gatekeeper server --listen"), "{error}");
}

#[test]
fn ids_are_for_programs_and_for_those_who_ask() {
    let desk = Desk::joined();
    let instances: serde_json::Value =
        serde_json::from_str(&desk.ok(&["instance", "list", "-o", "json"])).unwrap();
    let id = instances[0]["id"].as_str().unwrap();
    assert!(!desk.ok(&["instance", "list"]).contains(id));
    assert!(desk.ok(&["instance", "list", "--wide"]).contains(id));
    assert!(desk.ok(&["instance", "list", "-o", "csv"]).contains(id));
}

#[test]
fn the_scan_and_the_list_say_the_same_of_a_listener() {
    let desk = Desk::joined();
    let listeners = ["127.0.0.1:0", "[::1]:0", "[::]:0"].map(TcpListener::bind);
    // A child that another test starts holds our listeners, too, until it runs a program of its own.
    let is_shared = |table: &str| table.contains(&format!("(pid {} and ", std::process::id()));
    let (scanned, listed) = wait_for("a look between two children of this process", || {
        desk.ok(&["instance", "join"]); // sends a full report, as no agent runs
        let scanned = stdout(&program("gatekeeper").arg("scan").output().unwrap());
        let listed = desk.ok(&["port", "list"]);
        (!is_shared(&scanned) && !is_shared(&listed)).then_some((scanned, listed))
    });
    // A machine without IPv6 has only the first.
    for listener in listeners.into_iter().flatten() {
        let address = listener.local_addr().unwrap();
        let written = match address.ip() {
            std::net::IpAddr::V4(ip) => ip.to_string(),
            std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        };
        let owner = format!("(pid {})", std::process::id());
        for table in [&scanned, &listed] {
            let line = table.lines().find(|line| line.starts_with(&format!("{}/tcp ", address.port())));
            let line = line.unwrap_or_else(|| panic!("{address} is missing in\n{table}"));
            assert!(line.contains(&format!("{owner}  ")) && line.contains(&format!(" {written} ")), "{line}");
        }
    }
}

#[test]
fn both_programs_take_the_same_options_and_variables() {
    let desk = Desk::joined();
    let _lock = AgentLock::acquire(&desk.state).unwrap().expect("no agent runs");
    let second = program("gatekeeper").args(["agent", "--state-dir"]).arg(&desk.state).output().unwrap();
    let error = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && error.contains("another agent runs"), "{error}");
    assert!(error.contains("`gkctl status`"), "{error}");
    let state = desk.state.to_str().unwrap();
    let mut status = program("gkctl");
    let status = stdout(&status.args(["status", "--state-dir", state]).output().unwrap());
    assert!(status.contains("web-1") && status.contains("running"), "{status}");

    let explained = program("gatekeeper")
        .args(["agent", "--explain"])
        .env("GATEKEEPER_INSECURE_HTTP", "1")
        .env("GATEKEEPER_STATE", &desk.state)
        .output();
    stdout(&explained.unwrap());
    // Not the machine's own address, as far as anybody can tell by looking at it; and nobody listens there.
    let ask = |insecure: &str| {
        let mut command = program("gkctl");
        command.args(["instance", "list", "--server", "http://0.0.0.0:1", "--state-dir", state]);
        command.env("GATEKEEPER_TOKEN", format!("gkt_{}", "0".repeat(64)));
        command.env("GATEKEEPER_INSECURE_HTTP", insecure).output().unwrap().status.code()
    };
    assert_eq!((ask("1"), ask("0"), ask(""), ask("nope")), (Some(6), Some(5), Some(5), Some(2)));
}

#[test]
fn a_privileged_port_comes_with_a_warning() {
    let desk = Desk::joined();
    let start = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    let start: u16 = start.trim().parse().unwrap();
    let low = desk.run(&["port", "reserve", "--port", "1"]);
    assert_eq!(stdout(&low), "1\n");
    let said = String::from_utf8_lossy(&low.stderr);
    assert_eq!(said.contains("only privileged programs can bind 1 here"), start > 1, "{said}");
    let high = desk.run(&["port", "reserve"]);
    assert!(!String::from_utf8_lossy(&high.stderr).contains("privileged"));
}
