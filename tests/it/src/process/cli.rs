//! `gkctl` as people type it: the seed's commands, and every mistake with its message.

use std::net::TcpListener;
use std::path::PathBuf;

use super::harness::{Place, Server, gkctl, gkctl_at, stdout};

struct Desk {
    server: Server,
    state: PathBuf,
    _place: Place,
}

impl Desk {
    /// A server, and a state directory that has not joined.
    fn new() -> Desk {
        let place = Place::new();
        let server = Server::start(&place.join("data"));
        Desk { server, state: place.join("state"), _place: place }
    }

    fn joined() -> Desk {
        let desk = Desk::new();
        stdout(&desk.run(&["instance", "join", "--name", "web-1"]));
        desk
    }

    fn run(&self, words: &[&str]) -> std::process::Output {
        gkctl(&self.server, &self.state, words)
    }

    fn ok(&self, words: &[&str]) -> String {
        stdout(&self.run(words))
    }

    /// A command that must fail with this code, nothing on standard output, and all these words in its message.
    fn fails(&self, words: &[&str], code: i32, says: &[&str]) {
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
    assert!(history.contains(&format!("{number}/tcp")) && history.contains("held"), "{history}");
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
    desk.fails(&["port", "list", "--port", "8000-7000"], 2, &["runs backwards", "7000-8000"]);
    desk.fails(&["port", "history", "--since", "yesterday"], 2, &["`yesterday` is not a time"]);
    desk.fails(&["port", "reserve", "--instance", "nowhere"], 4, &["there is no instance nowhere"]);
    desk.fails(&["port", "reserve", "--instance", "no where"], 2, &["may not contain ' '"]);
    desk.fails(&["port", "reserve", "--protocol", "sctp"], 2, &["`sctp` is not a protocol", "tcp, udp"]);
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
    desk.fails(&["port", "reserve", "--port", &taken], 3, &["in use by", "--adopt"]);
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
