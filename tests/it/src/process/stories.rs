//! Stories of reservations: a job that dies, a service that moves, two teams that share a fleet.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;

use serde_json::Value;

use super::agent::Joined;
use super::cli::Desk;
use super::crash::{compile, join};
use super::forms::{join as join_labelled, quiet_port};
use super::harness::{Place, Server, wait_for};
use super::tokens::{Desk as Accounts, refused};

/// A server for which time passes when the test says so.
struct Later {
    file: PathBuf,
    seconds: i64,
}

impl Later {
    fn start(place: &Place) -> (Server, Later) {
        let (shim, file) = (compile("later", place.path()), place.join("later"));
        fs::write(&file, 0_i64.to_ne_bytes()).unwrap();
        let server = Server::start_with(&place.join("data"), "127.0.0.1:0", |command| {
            command.env("LD_PRELOAD", &shim).env("LATER", &file);
        });
        (server, Later { file, seconds: 0 })
    }

    fn pass(&mut self, minutes: i64) {
        self.seconds += minutes * 60;
        // In place: the server has it mapped.
        let file = fs::File::options().write(true).open(&self.file).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &self.seconds.to_ne_bytes(), 0).unwrap();
    }
}

#[test]
fn a_job_that_dies_gives_its_number_back_when_its_lease_is_over() {
    let place = Place::new();
    let (server, mut time) = Later::start(&place);
    let desk = Desk::at(server, place);
    desk.ok(&["instance", "join", "--name", "ci-1"]);
    // Numbers that nothing on the machine listens on, and no connection goes out from: each is tested by binding it.
    desk.ok(&["pool", "set", "ci", "--ports", "7321-7322", "--quarantine", "0s"]);
    let job = |service| ["port", "reserve", "--pool", "ci", "--ttl", "10m", "--service", service];
    let dead = desk.ok(&job("dead")).trim().to_owned();
    let alive = desk.ok(&job("alive")).trim().to_owned();
    let id = desk.ok(&["reservation", "list", "--service", "dead", "-o", "name"]).trim().to_owned();
    let listener = TcpListener::bind(format!("0.0.0.0:{dead}")).expect("a number that works");
    desk.fails(&job("next"), 3, &["pool ci of 2 ports has no free tcp port left on ci-1"]);

    drop(listener); // it dies without a word
    time.pass(9);
    let expiring = || desk.ok(&["events", "--kind", "expiring", "--port", &dead]);
    wait_for("the word before the end", || expiring().contains(&dead).then_some(()));
    desk.ok(&["reservation", "renew", &alive, "--ttl", "10m"]);
    desk.fails(&job("next"), 3, &["no free tcp port"]);
    time.pass(2);
    let next = wait_for("the end of the lease", || {
        let output = desk.run(&job("next"));
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    });
    assert_eq!(next.trim(), dead);
    let held: Vec<String> =
        desk.server.live().iter().map(|held| held.service.as_ref().unwrap().to_string()).collect();
    assert_eq!(held, ["next", "alive"], "what was renewed goes on");
    let told = desk.ok(&["events", "--kind", "expired"]);
    assert!(told.contains(&format!("{dead}/tcp expired, held by ")) && !told.contains(&alive), "{told}");
    let history = desk.ok(&["port", "history", "--port", &dead]);
    assert!(history.contains("dead") && history.contains("next"), "{history}");
    // Should it clean up after all, it takes nothing from whoever has the number now.
    desk.fails(&["port", "release", "--id", &id], 4, &["the lease of 7321/tcp on ci-1 is over"]);
    assert_eq!(desk.server.live().len(), 2);
    desk.server.verify();
}

/// `held here ended` of each interval of a port, oldest first.
fn intervals(here: &Joined, port: &str) -> Vec<String> {
    let json = here.ok(&["port", "history", "--all-instances", "--port", port, "-o", "json"]);
    let items: Vec<Value> = serde_json::from_str(&json).unwrap();
    let word = |item: &Value, field: &str| item[field].as_str().unwrap_or_default().to_owned();
    // Nobody watches between joining and the agent's start.
    let intervals = items.iter().filter(|item| item["kind"] != "not_observed");
    let told = intervals.map(|item| {
        let end = if item["ended_at"].is_null() { "goes on" } else { "ended" };
        format!("{} {} {} {end}", word(item, "kind"), word(&item["instance"], "name"), word(item, "service"))
    });
    let mut told: Vec<String> = told.collect();
    told.sort();
    told
}

#[test]
fn a_service_moves_to_another_machine_and_keeps_its_number() {
    let here = Joined::new();
    let _agent = here.agent();
    join(&here.server.admin(), "there", 7);
    let port = quiet_port();
    // The number is the service's everywhere, so that nobody has it at the other end already.
    let reserve = ["port", "reserve", "--service", "web", "--fleet", "--port", &port];
    here.ok(&reserve);
    let listener = TcpListener::bind(format!("0.0.0.0:{port}")).unwrap();
    let list = || here.ok(&["port", "list", "--service", "web"]);
    wait_for("the service to be seen", || list().contains("in_use").then_some(()));
    assert!(list().contains("here") && !list().contains("there"), "{}", list());

    let there = [&reserve[..], &["--instance", "there"]].concat();
    let (_, error) = here.ends(3, &there);
    assert!(error.contains("held by web (") && error.contains("here"), "{error}");
    here.ok(&["port", "release", &port]);
    // At once, though it rests: whoever asks by number means it. What still runs here has no right to it any more.
    assert_eq!(here.ok(&there).trim(), port);
    let conflict = || here.run(&["drift", "--port", &port, "--kind", "conflict"]).status.code();
    wait_for("what still runs here to be in conflict", || (conflict() == Some(3)).then_some(()));
    drop(listener);
    wait_for("it to stop", || (conflict() == Some(0)).then_some(()));

    let list = list();
    let line = list.lines().last().unwrap_or_default();
    assert!(list.lines().count() == 2 && line.starts_with("there") && line.contains("reserved"), "{list}");
    let expected = ["held here web ended", "held there web goes on", "listened here  ended"];
    assert_eq!(intervals(&here, &port), expected);
    assert_eq!(here.ok(&["port", "list", "--service", "web", "-o", "name"]), format!("there {port}/tcp\n"));
    here.server.verify();
}

/// A token for the machines of a team and those of all, and for its own pool.
fn limited(desk: &Accounts, team: &str) -> String {
    let machines = format!("team in ({team},all)");
    desk.create(&["--subject", team, "--role", "user", "--limit-instances", &machines, "--limit-pool", team])
}

#[test]
fn two_teams_take_and_release_nothing_of_each_other() {
    let desk = Accounts::new();
    for (name, label) in [("red-1", "team=red"), ("blue-1", "team=blue"), ("shared-1", "team=all")] {
        join_labelled(&desk.server, name, label);
    }
    for (pool, ports) in [("red", "7331-7334"), ("blue", "7341-7344")] {
        assert!(desk.admin(&["pool", "set", pool, "--ports", ports]).status.success());
    }
    let (red, blue) = (limited(&desk, "red"), limited(&desk, "blue"));
    let ok = |token: &str, words: &str| {
        super::harness::stdout(&desk.with(token, &words.split(' ').collect::<Vec<_>>()))
    };
    let never = |token: &str, words: &str, code: i32, says: &[&str]| {
        refused(&desk.with(token, &words.split(' ').collect::<Vec<_>>()), code, says);
    };
    // Each draws from its own without saying so; on the machine that they share, too.
    assert_eq!(ok(&red, "port reserve --instance red-1 --service shop"), "7331\n");
    assert_eq!(ok(&blue, "port reserve --instance blue-1 --service shop"), "7341\n");
    assert_eq!(ok(&red, "port reserve --instance shared-1"), "7331\n");
    assert_eq!(ok(&blue, "port reserve --instance shared-1"), "7341\n");
    let before = desk.server.live();

    // Neither takes what is the other's: machines, pools, numbers, or all at once.
    let machines = "it is for instances with team in (all,red), and ";
    let not_there = &[machines, "blue-1 has team=blue"];
    never(&red, "port reserve --instance blue-1", 5, not_there);
    never(&red, "port reserve --on team", 5, not_there);
    never(&red, "port reserve --instance red-1 --fleet", 5, &[machines, "nothing fleet-wide"]);
    never(&red, "port reserve --instance red-1 --pool blue", 5, &["pool blue is not one of its pools, red"]);
    never(
        &red,
        "port reserve --instance shared-1 --pool default",
        5,
        &["pool default is not one of its pools, red"],
    );
    never(&red, "port reserve --instance shared-1 --port 7342", 5, &["7342 is in none of its pools, red"]);
    // By number, where it may, it hears who has it; and it cannot give that back.
    never(&blue, "port reserve --instance shared-1 --port 7341 --service mine", 3, &["reserved", "blue"]);
    never(&red, "port release 7341 --instance shared-1", 5, &["held by blue"]);
    never(&red, "port release 7341 --instance shared-1 --force", 5, &["held by blue"]);
    never(&red, "port release 7341 --instance blue-1", 5, &["blue"]);
    never(&red, "reservation edit 7341 --instance shared-1 --note mine", 5, &["held by blue"]);
    never(&red, "reservation edit 7341 --instance shared-1 --note mine --force", 5, &["held by blue"]);
    let nothing = &["nothing like that is reserved by red"];
    never(&red, "port release --service shop --instance blue-1 --yes", 4, nothing);
    assert_eq!(desk.server.live(), before, "nothing of this changed anything");

    // Both see where everything is, and give back what is their own.
    for token in [&red, &blue] {
        let shop = ok(token, "port list --service shop -o name");
        assert_eq!(shop, "blue-1 7341/tcp\nred-1 7331/tcp\n");
    }
    ok(&red, "port release 7331 --instance shared-1");
    ok(&blue, "port release 7341 --instance shared-1");
    assert_eq!(desk.server.live().len(), 2);
    desk.server.verify();
}
