//! Other accounts of the same machine: what they may read and write of ours, and that no secret is told anywhere.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;

use gk_model::secret::{Secret, SecretKind};

use super::harness::{Place, Process, Server, gkctl, is_root, program, refusal_of, stdout, wait_for};

const UMASKS: [&str; 3] = ["000", "022", "077"];

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// The same command under this umask.
fn under_umask(command: &Command, umask: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask $0; exec \"$@\"", umask]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

/// Everything below a directory, itself included.
fn tree(top: &Path) -> Vec<PathBuf> {
    let mut found = vec![top.to_owned()];
    if fs::symlink_metadata(top).unwrap().is_dir() {
        found.extend(fs::read_dir(top).unwrap().flat_map(|entry| tree(&entry.unwrap().path())));
    }
    found
}

fn agent(state: &Path) -> Command {
    let mut agent = program("gatekeeper-agent");
    agent.args(["--log", "trace"]).env("GATEKEEPER_STATE", state);
    agent
}

fn told(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat()
}

/// What the server says of this data directory that it must not use.
fn refused(data: &Path) -> String {
    refusal_of(program("gatekeeper").args(["server", "--data"]).arg(data))
}

#[test]
fn what_the_server_makes_is_its_own_whatever_the_umask() {
    let place = Place::new();
    for umask in UMASKS {
        let data = place.join(umask).join("gatekeeper/server");
        fs::create_dir(place.join(umask)).unwrap();
        let log = place.join(&format!("{umask}.log"));
        let mut server = program("gatekeeper");
        server.args(["server", "--listen", "127.0.0.1:0", "--tls", "auto", "--data"]).arg(&data);
        let mut server = Process::start(&mut under_umask(&server, umask), log);
        wait_for("the server to serve", || {
            server.assert_running();
            server.log().contains("serving").then_some(())
        });
        let backup = place.join(&format!("{umask}.backup"));
        let mut copy = program("gatekeeper");
        copy.args(["backup", "--data"]).arg(&data).arg(&backup);
        stdout(&under_umask(&copy, umask).output().unwrap());
        assert_eq!(mode(&backup), 0o600, "umask {umask}");
        assert_eq!(mode(data.parent().unwrap()), 0o755, "an agent's identity may lie beside it");
        let all = tree(&data);
        for name in
            ["gatekeeper.db", "gatekeeper.db-wal", "gatekeeper.db-shm", "gatekeeper.sock", "tls/ca.pem"]
        {
            assert!(all.contains(&data.join(name)), "{name} in {all:?}");
        }
        for path in all {
            let wanted = if path.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(mode(&path), wanted, "{} under umask {umask}", path.display());
        }
    }
}

#[test]
fn what_a_joined_machine_keeps_is_public_or_its_own_whatever_the_umask() {
    let place = Place::new();
    for umask in UMASKS {
        // A server for each, because no machine may join one three times.
        let server = Server::start(&place.join(&format!("{umask}-data")));
        let state = place.join(umask).join("gatekeeper/agent");
        let mut join = program("gkctl");
        let socket = format!("unix:{}", server.data.join("gatekeeper.sock").display());
        join.args(["instance", "join", "--server", &socket]);
        join.env("GATEKEEPER_STATE", &state);
        stdout(&under_umask(&join, umask).output().unwrap());
        stdout(&under_umask(agent(&state).arg("--once"), umask).output().unwrap());
        let all = tree(&state);
        for path in &all {
            let wanted = match path.file_name().and_then(|name| name.to_str()) {
                Some("agent") => 0o755,
                Some("instance.json") => 0o644,
                _ => 0o600,
            };
            assert_eq!(mode(path), wanted, "{} under umask {umask}", path.display());
        }
        for name in ["instance.json", "agent.lock", "credential", "session.json"] {
            assert!(all.contains(&state.join(name)), "{name} in {all:?}");
        }
        assert_eq!(mode(state.parent().unwrap()), 0o755, "others pass through it to the identity");
    }
}

#[test]
fn a_server_refuses_what_others_could_have_changed_and_says_what_mends_it() {
    let place = Place::new();
    let data = place.join("data");
    Server::start(&data).process.terminate();
    let file = |name: &str| data.join(name);
    for (path, bad, good) in [
        (data.clone(), 0o777, 0o700),
        (data.clone(), 0o1777, 0o700),
        (data.clone(), 0o770, 0o700),
        (file("gatekeeper.db"), 0o666, 0o600),
        (file("gatekeeper.lock"), 0o620, 0o600),
    ] {
        set_mode(&path, bad);
        let error = refused(&data);
        let mend = format!("chmod go-w {}", path.display());
        assert!(error.contains("others may write to") && error.ends_with(&mend), "{error}");
        assert_eq!(mode(&path), bad, "it is not hidden");
        assert!(Command::new("sh").args(["-c", &mend]).status().unwrap().success());
        let mut server = Server::start(&data);
        assert_eq!(mode(&path), good, "{} after {mend}", path.display());
        server.process.terminate();
    }
    fs::remove_file(file("gatekeeper.lock")).unwrap();
    fs::write(place.join("elsewhere"), "").unwrap();
    set_mode(&place.join("elsewhere"), 0o644);
    symlink(place.join("elsewhere"), file("gatekeeper.lock")).unwrap();
    assert!(refused(&data).contains("gatekeeper.lock is a link"));
    assert_eq!(mode(&place.join("elsewhere")), 0o644, "what it leads to is let alone");
    fs::remove_file(file("gatekeeper.lock")).unwrap();
    if is_root() {
        for path in [data.clone(), file("gatekeeper.db")] {
            chown(&path, Some(12_345), None).unwrap();
            let error = refused(&data);
            assert!(error.contains("belongs to uid 12345, and this is uid 0"), "{error}");
            chown(&path, Some(0), None).unwrap();
        }
    }
    Server::start(&data);
}

#[test]
fn what_others_could_only_read_is_closed_to_them() {
    let place = Place::new();
    let data = place.join("data");
    Server::start(&data).process.terminate();
    set_mode(&data, 0o755);
    set_mode(&data.join("gatekeeper.db"), 0o644);
    let server = Server::start(&data);
    assert_eq!((mode(&data), mode(&data.join("gatekeeper.db"))), (0o700, 0o600));
    assert_eq!(server.process.log().matches("other accounts could read this").count(), 2);
    // Never a directory that other things lie in: with `--data /` that would be the end of the machine.
    let shared = place.join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("diary"), "").unwrap();
    set_mode(&shared, 0o755);
    assert!(refused(&shared).contains("\"diary\" in it is not Gatekeeper's"));
    assert_eq!(mode(&shared), 0o755);
}

#[test]
fn a_machine_believes_no_identity_that_others_could_have_written() {
    let place = Place::new();
    let server = Server::start(&place.join("data"));
    let state = place.join("state");
    stdout(&gkctl(&server, &state, &["instance", "join", "--name", "here"]));
    let (identity, credential) = (state.join("instance.json"), state.join("credential"));
    let refused = |by: &str| {
        let (output, code) = match by {
            "agent" => (agent(&state).arg("--once").output().unwrap(), 3),
            _ => (gkctl(&server, &state, &["status"]), 1),
        };
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        told(&output)
    };
    set_mode(&identity, 0o666);
    for by in ["agent", "gkctl"] {
        let error = refused(by);
        assert!(
            error.contains("instance.json: others may write to it") && error.contains("chmod go-w"),
            "{error}"
        );
    }
    set_mode(&identity, 0o644);
    if is_root() {
        chown(&identity, Some(12_345), None).unwrap();
        assert!(refused("gkctl").contains("uid 12345, who is a stranger here"));
        chown(&identity, Some(0), None).unwrap();
        chown(&state, Some(12_345), None).unwrap();
        assert!(refused("agent").contains("run it as that account"));
        chown(&state, Some(0), None).unwrap();
    }
    set_mode(&state, 0o777);
    assert!(refused("agent").contains("others may write to it"));
    set_mode(&state, 0o755);
    set_mode(&credential, 0o644);
    let mended = agent(&state).arg("--once").output().unwrap();
    assert_eq!((mended.status.code(), mode(&credential)), (Some(0), 0o600), "{mended:?}");
    assert!(told(&mended).contains("other accounts could read this"), "{mended:?}");
}

/// Whoever may read a file may lock it, too.
#[test]
fn another_account_cannot_keep_an_agent_from_starting() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    set_mode(place.path(), 0o755);
    let server = Server::start(&place.join("data"));
    let state = place.join("state");
    stdout(&gkctl(&server, &state, &["instance", "join", "--name", "here"]));
    let mut stranger = Command::new("flock");
    stranger.uid(12_345).gid(12_345).args(["--nonblock"]).arg(state.join("agent.lock")).arg("cat");
    let mut stranger = stranger.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It is ended by the end of its input, if it had its way.
    let input = stranger.stdin.take();
    wait_for("the stranger to be refused, or to hold the lock", || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let holds =
            locks.lines().any(|line| line.split_whitespace().nth(4) == Some(&stranger.id().to_string()));
        (holds || stranger.try_wait().unwrap().is_some()).then_some(())
    });
    stdout(&agent(&state).arg("--once").output().unwrap());
    drop(input);
    assert!(!stranger.wait().unwrap().success());
}

/// Whoever listens on a port of this machine: hears what is said, and answers as a server that wants to know more.
fn squat(address: &str) -> (JoinHandle<Vec<u8>>, TcpListener) {
    let listener = TcpListener::bind(address).unwrap();
    let theirs = listener.try_clone().unwrap();
    let heard = std::thread::spawn(move || {
        let mut heard = Vec::new();
        // The end is a connection that says so.
        while !heard.ends_with(b"enough") {
            let (mut stream, _) = theirs.accept().unwrap();
            let mut part = [0; 16 << 10];
            let length = stream.read(&mut part).unwrap_or(0);
            heard.extend_from_slice(&part[..length]);
            let _ = stream.write_all(
                b"HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Bearer\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            );
        }
        heard
    });
    (heard, listener)
}

/// Any account may take the server's port while it is down.
#[test]
fn a_squatter_on_the_servers_port_is_told_no_secret() {
    let place = Place::new();
    let mut server = Server::start(&place.join("data"));
    let state = place.join("state");
    stdout(&gkctl(&server, &state, &["instance", "join", "--name", "here"]));
    let credential = fs::read_to_string(state.join("credential")).unwrap();
    server.process.kill();
    let (heard, _listener) = squat(&server.address);
    for words in
        [&["port", "list"][..], &["port", "reserve"], &["instance", "join"], &["whoami"], &["doctor"]]
    {
        // Where the socket was, and as it is found by itself.
        assert!(!gkctl(&server, &state, words).status.success(), "{words:?}");
        let mut by_itself = program("gkctl");
        by_itself.args(words).env("GATEKEEPER_STATE", &state).env("GATEKEEPER_DATA", place.join("none"));
        assert!(!by_itself.output().unwrap().status.success(), "{words:?}");
    }
    // It goes to that port in clear, as told; but not with this.
    let mut told = program("gkctl");
    told.args(["port", "list", "--server", &format!("http://{}", server.address)])
        .env("GATEKEEPER_STATE", &state);
    assert!(!told.output().unwrap().status.success());
    assert!(!agent(&state).arg("--once").output().unwrap().status.success());
    TcpStream::connect(&server.address).unwrap().write_all(b"enough").unwrap();
    let heard = String::from_utf8_lossy(&heard.join().unwrap()).to_lowercase();
    assert!(heard.contains("get /v1/"), "it was asked, at least when told so: {heard}");
    assert!(!heard.contains("authorization") && !heard.contains(&credential.trim()[4..36]), "{heard}");
}

/// Asks the server at its socket for a token with this secret; the request and the answer hold no secret.
fn make_token(server: &Server, secret: &Secret, more: &str) {
    let body = format!("{{\"hash\": \"{}\", {more}}}", secret.hash());
    let mut socket = UnixStream::connect(server.data.join("gatekeeper.sock")).unwrap();
    let head =
        "POST /v1/tokens HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json";
    write!(socket, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}

/// What every account may know of a process, and which processes it has started.
fn seen_of(process: &Process) -> (String, String) {
    let of = |what: &str| {
        fs::read(format!("/proc/{}/{what}", process.id()))
            .map(|read| String::from_utf8_lossy(&read).into_owned())
    };
    let children = fs::read_dir(format!("/proc/{}/task", process.id()))
        .unwrap()
        .filter_map(|task| fs::read_to_string(task.unwrap().path().join("children")).ok());
    (of("cmdline").unwrap(), children.collect())
}

/// `gkctl`, with what is typed into it.
fn typed(state: &Path, words: &[&str], env: Option<&Secret>, input: &str) -> Output {
    let mut command = program("gkctl");
    command.args(words).env("GATEKEEPER_STATE", state).env("GATEKEEPER_DATA", state.join("no-data"));
    if let Some(secret) = env {
        command.env("GATEKEEPER_TOKEN", secret.reveal());
    }
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    // One that does not want to know may have ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// A server that speaks TLS and logs everything, with the tokens and the agent that it knows.
struct Scene {
    place: Place,
    server: Server,
    watcher: Process,
    /// How `gkctl` is told where the server is.
    there: [String; 4],
    admin: Secret,
    join: Secret,
    credential: Secret,
    /// A token that the server does not know.
    unknown: Secret,
}

impl Scene {
    fn set() -> Scene {
        let place = Place::new();
        let server = Server::start_with(&place.join("data"), "127.0.0.1:0", |command| {
            command.args(["--tls", "auto"]).env("GATEKEEPER_LOG", "trace");
        });
        let by = |kind, byte| Secret::from_random(kind, &[byte; 32]);
        let (admin, join) = (by(SecretKind::Subject, 0xa1), by(SecretKind::Join, 0xb2));
        make_token(&server, &admin, r#""kind": "subject", "subject": "ada", "role": "admin""#);
        make_token(&server, &join, r#""kind": "join""#);
        let (state, join_file) = (place.join("state"), place.join("join-token"));
        fs::write(&join_file, join.reveal()).unwrap();
        let url = format!("https://{}", server.address);
        let pin = server.admin().health().unwrap().pins[0].to_string();
        let there = ["--server".to_owned(), url, "--ca-pin".to_owned(), pin];
        let mut watcher = agent(&state);
        watcher.args(&there).args(["--name", "here", "--join-token-file"]).arg(&join_file);
        let watcher = Process::start(&mut watcher, place.join("agent.log"));
        let credential = wait_for("the agent to join", || {
            fs::read_to_string(state.join("credential")).ok().filter(|_| watcher.log().contains("in contact"))
        });
        let credential = credential.parse().unwrap();
        Scene {
            place,
            server,
            watcher,
            there,
            admin,
            join,
            credential,
            unknown: by(SecretKind::Subject, 0xc3),
        }
    }

    /// What our programs say when they are given secrets, rightly and wrongly.
    fn say(&self) -> Vec<(&'static str, String)> {
        let (state, admin) = (self.place.join("state"), &self.admin);
        let admin_file = self.place.join("admin-token");
        fs::write(&admin_file, admin.reveal()).unwrap();
        let file = admin_file.to_str().unwrap();
        let gkctl = |words: &[&str], env: Option<&Secret>, input: &str| {
            let there = self.there.iter().map(String::as_str);
            typed(&state, &there.chain(words.iter().copied()).collect::<Vec<_>>(), env, input)
        };
        let reserve = ["port", "reserve", "--service", "web"];
        let list = ["--token-file", "-", "port", "list"];
        let events = ["--token-file", file, "events", "--output", "json"];
        let mut misplaced = agent(&self.place.join("nowhere"));
        misplaced.args(&self.there).args(["--join-token-file", self.join.reveal()]);
        let mut database = program("gatekeeper");
        let address = format!("postgres://ada:{PASSWORD}@127.0.0.1:1/gatekeeper");
        database.args(["verify", "--log", "trace"]).env("DATABASE_URL", address);
        let outputs = [
            ("by the environment", gkctl(&reserve, Some(admin), ""), 0),
            ("by stdin", gkctl(&list, None, admin.reveal()), 0),
            ("by a file", gkctl(&events, None, ""), 0),
            ("to an unknown token", gkctl(&reserve, Some(&self.unknown), ""), 5),
            ("to half a token", gkctl(&list, None, &admin.reveal()[..60]), 2),
            ("to the name of a file", gkctl(&["--token-file", admin.reveal(), "status"], None, ""), 2),
            ("to the name of the agent's file", misplaced.output().unwrap(), 1),
            ("to the database's password", database.output().unwrap(), 1),
        ];
        outputs
            .map(|(how, output, code)| {
                assert_eq!(output.status.code(), Some(code), "{how}: {}", told(&output));
                (how, told(&output))
            })
            .into()
    }

    /// Where a secret could be seen, and what is there.
    fn seen(&self) -> Vec<(String, String)> {
        let state = self.place.join("state");
        let mut seen = vec![
            ("the server's log".to_owned(), self.server.process.log()),
            ("the agent's log".to_owned(), self.watcher.log()),
            ("events".to_owned(), stdout(&gkctl(&self.server, &state, &["events", "--output", "json"]))),
        ];
        for process in [&self.server.process, &self.watcher] {
            let (cmdline, children) = seen_of(process);
            assert!(cmdline.contains("gatekeeper"), "{cmdline}");
            assert_eq!(children, "", "a child would have the environment too");
            seen.push(("the list of processes".to_owned(), cmdline));
        }
        for path in fs::read_dir(&self.server.data).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_file() {
                let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
                seen.push((path.display().to_string(), text));
            }
        }
        seen
    }
}

const PASSWORD: &str = "c0ffee5e5a3e";

#[test]
fn no_secret_is_told_in_a_log_an_error_an_event_or_the_list_of_processes() {
    let scene = Scene::set();
    let said = scene.say();
    assert!(said[2].1.contains("\"reserved\""), "the events are there: {}", said[2].1);
    let said = said.into_iter().map(|(how, text)| (format!("what was said {how}"), text));
    let key = fs::read_to_string(scene.server.data.join("tls/ca.pem")).unwrap();
    let key = key.lines().skip_while(|line| !line.contains("PRIVATE KEY")).nth(1).unwrap();
    // Half of it is too much as well.
    let half = |secret: &Secret| secret.reveal()[4..36].to_owned();
    let secrets = [
        ("the password", PASSWORD.to_owned()),
        ("the authority's key", key.to_owned()),
        ("the admin's token", half(&scene.admin)),
        ("the join token", half(&scene.join)),
        ("the unknown token", half(&scene.unknown)),
        ("the credential", half(&scene.credential)),
    ];
    for (place, text) in scene.seen().into_iter().chain(said) {
        for (what, secret) in &secrets {
            assert!(!text.contains(secret), "{place} tells {what}");
        }
    }
}
