//! `gkctl pool` as people type it: a pool that runs full, and what the refusal says to do about it.

use std::path::PathBuf;
use std::process::Output;

use super::harness::{Place, Server, gkctl, stdout};

struct Desk {
    server: Server,
    state: PathBuf,
    _place: Place,
}

impl Desk {
    fn joined() -> Desk {
        let place = Place::new();
        let server = Server::start(&place.join("data"));
        let desk = Desk { server, state: place.join("state"), _place: place };
        desk.ok("instance join --name web-1");
        desk
    }

    fn run(&self, line: &str) -> Output {
        gkctl(&self.server, &self.state, &line.split(' ').collect::<Vec<_>>())
    }

    fn ok(&self, line: &str) -> String {
        stdout(&self.run(line))
    }

    /// What is said beside the answer, by a command that ends with this code.
    fn says(&self, line: &str, code: i32) -> String {
        let output = self.run(line);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}: {said}");
        assert!(code == 0 || output.stdout.is_empty(), "{line} printed something");
        said
    }
}

/// The command in a hint.
fn command(said: &str, begins: &str) -> String {
    let begin = said.find(begins).unwrap_or_else(|| panic!("no {begins:?} in {said}"));
    let rest = &said[begin + "gkctl ".len()..];
    rest.split(['\n', ';']).next().unwrap().trim().to_owned()
}

#[test]
fn a_pool_that_runs_full_says_what_helps_and_a_release_makes_room() {
    let desk = Desk::joined();
    // Numbers that nothing on the machine listens on, and no connection goes out from: each is tested by binding it.
    let made = desk.says("pool set web --ports 7301-7303 --exclude 7302 --quarantine 0s", 0);
    assert_eq!(made, "pool web: 7301-7303 without 7302, scope instance, pick lowest, quarantine 0s\n");
    assert_eq!(desk.ok("pool list -o name"), "default\nweb\n");
    let ports = [0, 1].map(|_| desk.ok("port reserve --pool web --service billing").trim().to_owned());
    assert_eq!(ports, ["7301", "7303"]);

    let full = desk.says("port reserve --pool web", 3);
    assert!(full.starts_with("error: pool web of 2 ports has no free tcp port left on web-1\n"), "{full}");
    // Each of the three ways out works as it is printed.
    let idle = desk.ok(&command(&full, "gkctl port list"));
    assert!(idle.contains("7301/tcp") && idle.contains("billing"), "{idle}");
    let other: u16 = desk.ok(&command(&full, "gkctl port reserve --pool default")).trim().parse().unwrap();
    assert!((8000..=9999).contains(&other));
    desk.ok("port release 7301");
    assert_eq!(desk.ok("port reserve --pool web").trim(), "7301", "there is room again");
    let enlarge = command(&full, "gkctl pool set web --ports").replace("RANGES", "7301-7305");
    let larger = desk.says(&enlarge, 0);
    assert!(
        larger.contains("7301-7305 without 7302, ") && larger.contains("quarantine 0s"),
        "the rest stays: {larger}"
    );
    assert_eq!(desk.ok("port reserve --pool web").trim(), "7304");

    let table = desk.ok("pool list");
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines[0],
        ["NAME", "PORTS", "SIZE", "SCOPE", "PICK", "QUARANTINE", "FOR", "RESERVED", "FULLEST"]
    );
    assert_eq!(lines[2][..4], ["web", "7301-7305", "without", "7302"]);
    assert_eq!(lines[2][4..], ["4", "instance", "lowest", "0s", "-", "3", "web-1", "tcp:", "1", "left"]);
    let csv = desk.ok("pool list -o csv");
    assert!(
        csv.contains("web,7301-7305 without 7302,4,instance,lowest,0s,,3,web-1 tcp: 1 left\r\n"),
        "{csv}"
    );
    let shown = desk.ok("pool show web");
    assert!(shown.contains("ports       7301-7305 without 7302 (4 in all)\n"), "{shown}");
    let json: serde_json::Value = serde_json::from_str(&desk.ok("pool show web -o json")).unwrap();
    assert_eq!((&json["reserved"], &json["fullest"]["left"]), (&3.into(), &1.into()));
    desk.server.verify();
}

#[test]
fn what_becomes_of_a_pool_is_told_and_touches_nothing_that_was_drawn_from_it() {
    let desk = Desk::joined();
    desk.says("pool set web --ports 7311-7315", 0);
    let ports = ["--service billing", "--protocol udp", "--service search"]
        .map(|option| desk.ok(&format!("port reserve --pool web {option}")).trim().to_owned());
    assert_eq!(ports, ["7311", "7311", "7312"]);
    let smaller = desk.says("pool set web --ports 7312-7315", 0);
    let lines: Vec<&str> = smaller.lines().collect();
    assert_eq!(
        lines[1],
        "2 live reservation(s) drawn from it have ports outside of it now, and stay as they are:"
    );
    assert!(lines[2].starts_with("  7311/tcp on web-1 for billing, held by "), "{smaller}");
    assert!(lines[3].starts_with("  7311/udp on web-1, held by "), "{smaller}");
    desk.says("pool set web --for env=prod", 0);
    let not_for = desk.says("port reserve --pool web", 3);
    assert!(
        not_for.contains("pool web is for instances with env=prod, and web-1 has no labels"),
        "{not_for}"
    );
    desk.ok(&command(&not_for, "gkctl port reserve --pool default"));

    assert!(desk.says("pool delete default", 1).contains("hint: change it instead: gkctl pool set default"));
    let deleted = desk.says("pool delete web", 0);
    assert!(
        deleted.starts_with("deleted pool web\n3 live reservation(s) drawn from it stay as they are:\n"),
        "{deleted}"
    );
    let gone = desk.says("pool show web", 4);
    assert!(gone.contains("there is no pool web") && gone.contains("gkctl pool list"), "{gone}");
    let new = desk.says("pool set web --pick random", 2);
    assert!(new.contains("a new one needs ports") && new.contains("gkctl pool set web --ports"), "{new}");
    assert!(desk.says("pool set web --ports 40000-40009", 2).contains("--ephemeral"));
    desk.says("pool set web --ports 40000-40009 --ephemeral --pick random", 0);
    desk.server.verify();
}
