//! The programs under a service manager: ready, alive, stopping, told by the protocol of sd_notify(3).

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::harness::{Place, Process, Server, gkctl, program, stdout, wait_for};

/// The part of a service manager that hears what its services say.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(place: &Place) -> Manager {
        let path = place.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Manager { socket, path }
    }

    /// Makes the command one of its services, which is taken for hung when it is silent for so long.
    fn adopt(&self, command: &mut Command, patience: Duration) {
        command.env("NOTIFY_SOCKET", &self.path);
        command.env("WATCHDOG_USEC", patience.as_micros().to_string());
    }

    /// The next thing that a service says.
    fn hear(&self) -> String {
        let mut buffer = [0; 256];
        let length = self.socket.recv(&mut buffer).expect("the service says something in time");
        String::from_utf8(buffer[..length].to_vec()).unwrap().trim().to_owned()
    }

    /// Waits for a word, over any number of signs of life.
    fn wait_for(&self, word: &str) {
        while self.hear() != word {}
    }
}

#[test]
fn a_server_says_that_it_is_ready_lives_and_stops() {
    let place = Place::new();
    let manager = Manager::new(&place);
    let patience = Duration::from_millis(200);
    let mut server = Server::start_with(&place.join("data"), "127.0.0.1:0", |command| {
        manager.adopt(command, patience);
    });
    assert_eq!(manager.hear(), "READY=1");
    (0..3).for_each(|_| assert_eq!(manager.hear(), "WATCHDOG=1"));
    assert_eq!(server.process.terminate(), Some(0));
    manager.wait_for("STOPPING=1");
}

#[test]
fn an_agent_says_that_it_is_ready_lives_and_stops_also_while_its_server_is_away() {
    let place = Place::new();
    let mut server = Server::start(&place.join("data"));
    let state = place.join("state");
    stdout(&gkctl(&server, &state, &["instance", "join", "--name", "here"]));
    server.process.kill();
    let manager = Manager::new(&place);
    let mut agent = program("gatekeeper-agent");
    agent.env("GATEKEEPER_STATE", &state);
    // It looks twice a second.
    manager.adopt(&mut agent, Duration::from_secs(1));
    let mut agent = Process::start(&mut agent, place.join("agent.log"));
    assert_eq!(manager.hear(), "READY=1");
    (0..2).for_each(|_| assert_eq!(manager.hear(), "WATCHDOG=1"));
    assert_eq!(agent.terminate(), Some(0));
    manager.wait_for("STOPPING=1");
}

#[test]
fn an_agent_that_only_people_can_help_is_told_from_one_to_start_again() {
    let place = Place::new();
    for (name, words) in AGENTS {
        let mut agent = program(name);
        agent.args(words).env("GATEKEEPER_STATE", place.join("state"));
        let not_joined = agent.output().unwrap();
        assert_eq!(not_joined.status.code(), Some(3), "{not_joined:?}");
        assert!(
            String::from_utf8_lossy(&not_joined.stderr).contains("gkctl instance join"),
            "{not_joined:?}"
        );
        let unusable = agent.env("GATEKEEPER_STATE", "/proc/nowhere").output().unwrap();
        assert_eq!(unusable.status.code(), Some(1), "{unusable:?}");
    }
}

/// The two ways to start an agent.
const AGENTS: [(&str, &[&str]); 2] = [("gatekeeper-agent", &[]), ("gatekeeper", &["agent"])];

#[test]
fn the_agents_own_program_is_the_same_agent_without_server_and_database() {
    let place = Place::new();
    let file = place.join("agent.toml");
    let told = |words: &[&str], options: &str| {
        fs::write(&file, options).unwrap();
        AGENTS.map(|(name, role)| {
            let mut agent = program(name);
            let output = agent.args(role).args(words).env("GATEKEEPER_CONFIG", &file).output().unwrap();
            let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
            (output.status.code(), text)
        })
    };
    // Only how it is called differs.
    let [own, other] = told(&["--help"], "").map(|(code, text)| {
        let usage = text.lines().position(|line| line.starts_with("Usage:")).unwrap();
        let options = text.lines().skip(usage + 1).filter(|line| !line.contains("-V, --version"));
        (code, options.map(str::to_owned).collect::<Vec<_>>())
    });
    assert_eq!(own, other);
    assert!(own.1.iter().any(|line| line.contains("--protect")), "{own:?}");
    // The file counts for both, and both judge it alike.
    let table = [
        (&["--explain"][..], "protect = true", Some(0), "Seen: "),
        (&["--explain"], "listen = '127.0.0.1:0'", Some(2), "no option `listen`"),
        (&["--explain"], "report-interval = 1", Some(2), "5 to 300"),
        (&["--name", "web-1"], "", Some(2), "--join-token-file"),
        (&["--once", "--explain"], "", Some(2), "cannot be used with"),
        (&["--state-dir", "/proc/nowhere"], "log = 'debug'", Some(1), "state directory"),
    ];
    for (words, options, code, expected) in table {
        for (ended, text) in told(words, options) {
            assert_eq!(ended, code, "{words:?} {options}: {text}");
            assert!(text.contains(expected), "{words:?} {options}: {text}");
        }
    }
    // What begins every file of SQLite, and a header that only servers read.
    let holds = |name: &str, text: &str| {
        let code = fs::read(program(name).get_program()).unwrap();
        code.windows(text.len()).any(|window| window == text.as_bytes())
    };
    for text in ["SQLite format 3", "sqlite3_", "x-forwarded-for"] {
        assert_eq!(AGENTS.map(|(name, _)| holds(name, text)), [false, true], "{text}");
    }
}

#[test]
fn what_others_could_have_changed_or_read_is_not_started_again_and_again() {
    let place = Place::new();
    let mode = |path: &Path, mode: u32| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let code = |command: &mut Command| {
        let mut process = Process::start(command, place.join("log"));
        let status = wait_for("the end", || process.ended());
        assert!(!process.log().contains("serving"), "{}", process.log());
        status.code()
    };
    let (data, state) = (place.join("data"), place.join("state"));
    let server = Server::start(&data);
    stdout(&gkctl(&server, &state, &["instance", "join", "--name", "here"]));
    drop(server);
    let mut agent = program("gatekeeper");
    agent.args(["agent", "--once", "--state-dir"]).arg(&state);
    let mut server = program("gatekeeper");
    server.args(["server", "--listen", "127.0.0.1:0", "--data"]).arg(&data);
    let of_agent =
        [(state.clone(), 0o755), (state.join("instance.json"), 0o644), (state.join("credential"), 0o600)];
    let of_server = [(data.clone(), 0o700), (data.join("gatekeeper.db"), 0o600)];
    for (command, files) in [(&mut agent, &of_agent[..]), (&mut server, &of_server[..])] {
        for (path, good) in files {
            mode(path, 0o777);
            assert_eq!(code(command), Some(3), "{}", path.display());
            mode(path, *good);
        }
    }
    let (key, shown) = (place.join("key.pem"), place.join("shown.pem"));
    fs::write(&key, "").unwrap();
    fs::write(&shown, "").unwrap();
    mode(&key, 0o644);
    server.arg("--tls-key").arg(&key).arg("--tls-cert").arg(&shown);
    assert_eq!(code(&mut server), Some(3), "a key for everybody");
    mode(&key, 0o600);
    assert_eq!(code(&mut server), Some(1), "a file that may be written in a moment");
    assert_eq!(code(server.args(["--listen", "0.0.0.0:0"]).arg("--tls=auto")), Some(2), "wrong options");
}
