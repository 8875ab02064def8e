//! Every form of reserving, releasing, editing and renewing, as people type it.

use std::net::{TcpListener, UdpSocket};

use gk_model::facts::Facts;
use gk_model::instance::JoinRequest;
use gk_model::labels::Label;
use gk_model::secret::SecretKind;
use serde_json::Value;

use super::cli::Desk;
use super::harness::stdout;

/// What was printed by a command that must succeed, and what was said beside it.
fn both(desk: &Desk, words: &[&str]) -> (String, String) {
    let output = desk.run(words);
    (stdout(&output), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn json(desk: &Desk, words: &[&str]) -> Value {
    serde_json::from_str(&desk.ok(&[words, &["-o", "json"]].concat())).unwrap()
}

/// `8000-8009/tcp` of every live reservation.
fn live(desk: &Desk) -> Vec<String> {
    desk.server.live().iter().map(|held| format!("{}/{}", held.ports(), held.protocol)).collect()
}

/// Another machine that has joined, with a label.
fn join(desk: &Desk, name: &str, label: &str) {
    let secret = gk_client::identity::generate_secret(SecretKind::Instance);
    let request = JoinRequest {
        name: name.parse().ok(),
        credential_hash: secret.hash(),
        facts: Facts::default(),
        labels: vec![label.parse::<Label>().unwrap()].try_into().unwrap(),
        replace: None,
    };
    desk.server.admin().join(&request).unwrap();
}

#[test]
fn one_number_is_free_on_every_machine_that_a_selector_chooses() {
    let desk = Desk::joined();
    for number in 1..=40 {
        join(&desk, &format!("node-{number}"), if number == 40 { "env=test" } else { "env=prod" });
    }
    desk.ok(&["port", "reserve", "--port", "8000", "--instance", "node-7"]);
    desk.ok(&["port", "reserve", "--port", "8001", "--instance", "node-40"]);
    let (number, said) = both(&desk, &["port", "reserve", "--on", "env=prod", "--service", "mesh"]);
    assert_eq!(number, "8001\n", "the number once");
    assert!(
        said.starts_with("reserved 8001/tcp on node-1, node-10, node-11 and 36 more from pool default"),
        "{said}"
    );
    assert_eq!(desk.server.live().len(), 41);
    desk.fails(&["port", "reserve", "--on", "env", "--port", "8001"], 3, &["free instead: 8002, 8003, 8004"]);
    let all = ["reservation", "list", "--on", "env=prod", "--service", "mesh"];
    assert_eq!(desk.ok(&all).lines().count(), 40);
    let (_, release) = said.trim().rsplit_once("release with: gkctl ").unwrap();
    desk.ok(&release.split(' ').collect::<Vec<_>>());
    assert_eq!(desk.server.live().len(), 2);
}

#[test]
fn only_numbers_go_to_stdout_whatever_is_reserved() {
    let desk = Desk::joined();
    let (port, said) = both(&desk, &["port", "reserve"]);
    let number: u16 = port.trim().parse().expect("only the number");
    assert!(said.contains(&format!("release with: gkctl port release {number}\n")), "{said}");
    let (range, said) = both(&desk, &["port", "reserve", "--count", "10", "--ttl", "2h"]);
    let (first, last) = range.trim().split_once('-').unwrap();
    assert_eq!(last.parse::<u16>().unwrap() - first.parse::<u16>().unwrap(), 9);
    assert!(said.contains(" until 2"), "{said}");
    let (named, said) =
        both(&desk, &["port", "reserve", "--service", "web", "--name", "http", "--name", "grpc"]);
    let lines: Vec<(&str, &str)> = named.lines().map(|line| line.split_once('=').unwrap()).collect();
    assert_eq!((lines[0].0, lines[1].0, lines.len()), ("http", "grpc", 2));
    assert!(lines.iter().all(|(_, number)| number.parse::<u16>().is_ok()));
    assert_eq!(said.lines().count(), 2, "{said}");
    // What is told is a command that works.
    let release = said.trim().rsplit_once("release with: gkctl ").unwrap().1;
    let words: Vec<&str> = release.split(' ').collect();
    desk.ok(&words);
    let (number, _) = both(&desk, &["port", "reserve", "--protocol", "both", "--name", "dns"]);
    assert_eq!(desk.ok(&["port", "list", "--port", number.trim(), "--state", "reserved"]).lines().count(), 3);
    let (number, said) = both(&desk, &["port", "reserve", "--fleet", "-A"]);
    assert!(said.contains(&format!("reserved {}/tcp fleet-wide from", number.trim())), "{said}");
    let all =
        json(&desk, &["port", "reserve", "--count", "2", "--label", "team=web", "--expect", "process=nginx"]);
    assert_eq!((&all["dry_run"], &all["items"][0]["expect"]["process"]), (&false.into(), &"nginx".into()));
}

#[test]
fn every_number_of_an_answer_can_be_bound_here() {
    let desk = Desk::joined();
    // No agent runs, so the server cannot know: the busy list and the test bind must.
    let first: u16 = desk.ok(&["port", "reserve"]).trim().parse().unwrap();
    let tcp = (first + 2..9000).find_map(|port| TcpListener::bind(("0.0.0.0", port)).ok()).unwrap();
    let udp = (first + 6..9000).find_map(|port| UdpSocket::bind(("0.0.0.0", port)).ok()).unwrap();
    let taken = [tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port()];
    for words in [&["--count", "20"][..], &["--count", "20", "--name", "a", "--name", "b"]] {
        let all = [&["port", "reserve", "--protocol", "both"], words].concat();
        for held in json(&desk, &all)["items"].as_array().unwrap() {
            let ports = held["first_port"].as_u64().unwrap()..=held["last_port"].as_u64().unwrap();
            assert!(taken.iter().all(|port| !ports.contains(&u64::from(*port))), "{ports:?} and {taken:?}");
        }
    }
    // By number, who listens anywhere in a range is found, and all is given back.
    let before = live(&desk);
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let taken = listener.local_addr().unwrap().port();
    let range = format!("{}-{taken}", taken - 1);
    let says = [&format!("{taken}/tcp is in use by"), "given back", "--adopt"];
    desk.fails(&["port", "reserve", "--port", &range], 3, &says);
    assert_eq!(live(&desk), before);
}

/// A number that nobody else in these tests asks for.
fn quiet_port() -> String {
    TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port().to_string()
}

#[test]
fn a_service_asks_at_each_start_and_gets_the_same() {
    let desk = Desk::joined();
    let number = quiet_port();
    let words = ["port", "reserve", "--service", "shop", "--ensure"];
    let first = desk.ok(&[&words[..], &["--port", &number]].concat());
    // It listens when it asks again: nobody takes its port from it for that.
    let _listener = TcpListener::bind(format!("0.0.0.0:{number}")).unwrap();
    for more in [&[][..], &["--port", &number]] {
        let (again, said) = both(&desk, &[&words[..], more].concat());
        assert_eq!(again, first);
        assert!(said.starts_with(&format!("kept {number}/tcp on web-1; release with: ")), "{said}");
    }
    // What is missing is made, and what was there stays.
    let (both, said) = both(&desk, &[&words[..], &["--port", &number, "--protocol", "both"]].concat());
    assert_eq!(both, first, "{said}");
    assert_eq!(live(&desk), [format!("{number}/tcp"), format!("{number}/udp")]);
    desk.fails(&["port", "reserve", "--ensure"], 2, &["--service"]);
}

#[test]
fn a_lease_is_renewed_and_an_edit_says_what_it_is() {
    let desk = Desk::joined();
    let port = desk.ok(&["port", "reserve", "--ttl", "10m", "--service", "ci"]).trim().to_owned();
    let (_, said) = both(&desk, &["reservation", "renew", &port, "--ttl", "2h"]);
    assert!(said.contains(&format!("renewed {port}/tcp on web-1 (ci); it ends in 2h")), "{said}");
    let shown = json(&desk, &["reservation", "show", &port]);
    let id = shown["id"].as_str().unwrap();
    assert_eq!(shown["version"], 2);
    let words = [
        "reservation",
        "edit",
        id,
        "--service",
        "build",
        "--note",
        "it's",
        "--label",
        "a=b",
        "--label",
        "c=d",
    ];
    desk.ok(&words);
    let words = ["--expect", "process=make", "--note", "", "--label", "a-", "--name", "x"];
    desk.ok(&[&["reservation", "edit", &port], &words[..]].concat());
    let shown = desk.ok(&["reservation", "show", &port]);
    let shown: Vec<String> =
        shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for said in ["service build", "name x", "labels c=d", "expected process=make"] {
        assert!(shown.iter().any(|line| line == said), "{said}: {shown:?}");
    }
    let shown = shown.join("\n");
    assert!(!shown.contains("note"), "{shown}");
    let list = desk.ok(&["reservation", "list", "--service", "build", "--expires-within", "3h"]);
    assert!(list.starts_with("PORTS") && list.contains("build:x") && !list.contains(id), "{list}");
    assert_eq!(desk.ok(&["reservation", "list", "-o", "name"]).trim(), id);
    assert!(desk.ok(&["reservation", "list", "-o", "csv"]).contains(id));
    assert!(both(&desk, &["reservation", "list", "--idle", "1h"]).1.contains("No reservation matches"));
    desk.fails(&["reservation", "edit", &port], 2, &["nothing to change", "--note"]);
    desk.fails(&["reservation", "show", "1"], 4, &["1 is not reserved on web-1"]);
    let forever = desk.ok(&["port", "reserve"]).trim().to_owned();
    desk.fails(&["reservation", "renew", &forever, "--ttl", "1h"], 1, &["no lease", "gkctl port release"]);
}

#[test]
fn releases_take_what_is_meant_and_ask_where_it_is_much() {
    let desk = Desk::joined();
    let next = |more: &[&str]| desk.ok(&[&["port", "reserve", "--port"], more].concat());
    next(&["8800-8809", "--service", "a"]);
    let (_, said) = both(&desk, &["port", "release", "8800-8804"]);
    assert_eq!(said, "released 8800-8804/tcp on web-1 (a); 8805-8809 stays reserved\n");
    let (_, said) = both(&desk, &["port", "release", "--port", "8807"]);
    assert_eq!(said, "released 8807/tcp on web-1 (a); 8805-8806 and 8808-8809 stays reserved\n");
    assert_eq!(live(&desk), ["8805-8806/tcp", "8808-8809/tcp"]);
    // Several are asked for, and here is nobody to ask.
    let nobody =
        ["8805-8806/tcp on web-1 for a, held by ", "8808-8809/tcp", "these 2 reservations", "add --yes"];
    for words in [&["8805-8809"][..], &["--service", "a"], &["--idle", "0s"]] {
        let refused = desk.run(&[&["port", "release"], words].concat());
        let error = String::from_utf8_lossy(&refused.stderr);
        assert_eq!((refused.status.code(), refused.stdout.len()), (Some(2), 0), "{words:?}: {error}");
        assert!(nobody.iter().all(|said| error.contains(said)), "{words:?}: {error}");
    }
    assert_eq!(live(&desk).len(), 2);
    desk.fails(
        &["port", "release", "--service", "b", "--yes"],
        4,
        &["nothing like that is reserved by local:"],
    );
    desk.fails(&["port", "release", "--idle", "30d", "--yes"], 4, &["nothing like that"]);
    desk.ok(&["port", "release", "8806-8808", "--yes"]);
    assert_eq!(live(&desk), ["8805/tcp", "8809/tcp"]);
    desk.ok(&["port", "release", "--idle", "0s", "--yes"]);
    assert_eq!(live(&desk), Vec::<String>::new());

    next(&["8810", "--protocol", "both"]);
    desk.fails(&["port", "release", "8810"], 2, &["8810 is reserved for tcp and udp", "--protocol tcp"]);
    desk.ok(&["port", "release", "8810", "--protocol", "udp"]);
    let id = json(&desk, &["reservation", "show", "8810"])["id"].as_str().unwrap().to_owned();
    let released = json(&desk, &["port", "release", "--id", &id]);
    assert_eq!((&released[0]["id"], released[0]["released_at"].is_string()), (&id.as_str().into(), true));
    next(&["8811", "--fleet", "--all-instances"]);
    let (_, said) = both(&desk, &["port", "release", "8811"]);
    assert_eq!(said, "released 8811/tcp fleet-wide\n");
}

#[test]
fn a_check_says_whether_and_why() {
    let desk = Desk::joined();
    let check = |words: &[&str]| {
        let output = desk.run(&[&["port", "check"], words].concat());
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), said)
    };
    let free = quiet_port();
    assert_eq!(check(&[&free]), (0, format!("yes: {free}/tcp on web-1, it is free\n")));
    desk.ok(&["port", "reserve", "--port", &free, "--service", "shop"]);
    let (code, said) = check(&[&free]);
    assert!(
        code == 0 && said.starts_with(&format!("yours: {free}/tcp on web-1, reserved for shop since ")),
        "{said}"
    );

    // Another one's.
    let token = desk.ok(&["token", "create", "--subject", "ci", "--role", "user"]);
    let file = desk.state.with_extension("token");
    std::fs::write(&file, token).unwrap();
    let with = ["--token-file", file.to_str().unwrap()];
    let (code, said) = check(&[&[free.as_str()], &with[..]].concat());
    let held = format!("no: {free}/tcp on web-1, held by shop (local:");
    assert!(code == 3 && said.starts_with(&held) && said.contains("; free instead: "), "{said}");
    assert_eq!(check(&[&[free.as_str(), "--protocol", "udp"], &with[..]].concat()).0, 0);

    // Nobody's, but somebody listens, as the server knows or not.
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let taken = listener.local_addr().unwrap().port().to_string();
    let in_use = format!("(pid {}", std::process::id());
    for _ in 0..2 {
        let (code, said) = check(&[&taken]);
        assert!(
            code == 3 && said.starts_with("no: ") && said.contains("in use by ") && said.contains(&in_use),
            "{said}"
        );
        desk.ok(&["instance", "join"]); // sends a full report, as no agent runs
    }
    let verdict = desk.run(&["port", "check", &taken, "-o", "json"]);
    let verdict: Value = serde_json::from_slice(&verdict.stdout).unwrap();
    assert_eq!((&verdict["may_use"], verdict["alternatives"].as_array().unwrap().len()), (&false.into(), 3));
    desk.fails(&["port", "check", "80", "--instance", "nowhere"], 4, &["there is no instance nowhere"]);
    assert_eq!(desk.server.live().len(), 1, "looking takes nothing");
}

#[test]
fn a_refusal_offers_the_command_that_was_meant() {
    let desk = Desk::joined();
    // On another machine nobody looks at what listens here.
    join(&desk, "db-1", "env=prod");
    desk.ok(&["port", "reserve", "--port", "8905", "--service", "billing", "--instance", "db-1"]);
    let words = ["port", "reserve", "--port", "8900-8909", "--protocol", "both", "--service", "my-web"];
    let words = [&words[..], &["--label", "a=b", "--instance", "db-1"]].concat();
    let refused = desk.run(&words);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(3), "{error}");
    assert!(
        error.contains("held by billing (") && error.contains("\nfree instead: 8000, 8010, 8020\n"),
        "{error}"
    );
    let hint = error.lines().find_map(|line| line.strip_prefix("hint: gkctl ")).unwrap();
    let meant =
        "port reserve --port 8000 --count 10 --protocol both --service my-web --label a=b --instance db-1";
    assert_eq!(hint, meant);
    assert_eq!(desk.ok(&hint.split(' ').collect::<Vec<_>>()), "8000-8009\n");
    let number = quiet_port();
    desk.ok(&["port", "reserve", "--port", &number]);
    let refused = desk.run(&["port", "reserve", "--port", &number, "--fleet"]);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    let hint = error.lines().find_map(|line| line.strip_prefix("hint: gkctl ")).unwrap();
    assert!(hint.ends_with(" --fleet") && !hint.contains("--instance"), "{hint}");
    desk.fails(&["port", "reserve", "--port", "8900-8909", "--count", "2"], 2, &["leave out --count"]);
    desk.fails(&["port", "reserve", "--on", "env=dev"], 4, &["no joined instance is labelled env=dev"]);
    desk.fails(&["port", "reserve", "--on", "env=prod", "--fleet"], 2, &["exclusive everywhere"]);
    desk.fails(&["port", "reserve", "--on", "env=prod", "--instance", "web-1"], 2, &["give one of them"]);
    desk.fails(&["port", "reserve", "--name", "a", "--name", "a"], 2, &["two of the names are the same"]);
}
