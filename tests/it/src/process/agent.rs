//! The agent as a process: whatever happens to the server, both mean the same set in the end.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use gk_client::Client;
use gk_model::history::EventKind;
use gk_model::listener::Netns;
use gk_model::port::Protocol;
use gk_model::port_state::State;
use gk_model::query::{EventQuery, PortQuery};

use super::harness::{Place, Process, Server, gkctl, is_root, program, stdout, wait_for};

/// A server, and this machine joined to it as `here`.
pub(crate) struct Joined {
    pub(crate) server: Server,
    pub(crate) state: PathBuf,
    place: Place,
}

impl Joined {
    pub(crate) fn new() -> Joined {
        let place = Place::new();
        let server = Server::start(&place.join("data"));
        let state = place.join("state");
        let joined = gkctl(&server, &state, &["instance", "join", "--name", "here"]);
        assert!(stdout(&joined).contains("here") || !joined.stderr.is_empty());
        Joined { server, state, place }
    }

    pub(crate) fn agent(&self) -> Process {
        start_agent(&self.state, self.place.join("agent.log"))
    }

    pub(crate) fn wait_shown(&self, protocol: Protocol, port: u16, shown: bool) {
        wait_for(&format!("{port}/{protocol} to be shown: {shown}"), || {
            (is_shown(&self.server.admin(), protocol, port) == shown).then_some(())
        });
    }

    fn kinds(&self, port: u16) -> Vec<EventKind> {
        let query = EventQuery { port: Some(port.to_string().parse().unwrap()), ..Default::default() };
        self.server.admin().list_events(&query).unwrap().items.iter().map(|event| event.kind).collect()
    }
}

fn start_agent(state: &Path, log: PathBuf) -> Process {
    Process::start(program("gatekeeper-agent").env("GATEKEEPER_STATE", state), log)
}

fn is_shown(admin: &Client, protocol: Protocol, port: u16) -> bool {
    let query = PortQuery { port: Some(port.to_string().parse().unwrap()), ..Default::default() };
    let states = admin.list_ports(&query).unwrap().items;
    states.iter().any(|state| state.protocol == protocol && !state.listeners.is_empty())
}

pub(crate) fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[test]
fn a_new_listener_shows_and_a_closed_one_goes() {
    let here = Joined::new();
    let _agent = here.agent();
    let (listener, port) = listen();
    here.wait_shown(Protocol::Tcp, port, true);
    let listed = stdout(&gkctl(&here.server, &here.state, &["port", "list"]));
    let line = listed.lines().find(|line| line.starts_with(&format!("{port}/tcp"))).expect("gkctl lists it");
    assert!(line.contains("unreserved") && line.contains(&format!("pid {}", std::process::id())), "{line}");
    drop(listener);
    here.wait_shown(Protocol::Tcp, port, false);
    assert_eq!(here.kinds(port), [EventKind::Opened, EventKind::Closed]);
}

#[test]
fn what_listens_in_another_namespace_is_shown_never_counted_and_closed_when_that_is_gone() {
    const PORT: u16 = 18_099;
    let here = Joined::new();
    let mut agent = here.agent();
    let mut elsewhere = Command::new("unshare");
    elsewhere.args(["--net", "--"]).arg(program("gatekeeper").get_program());
    elsewhere
        .args(["server", "--insecure-http", "--listen", &format!("0.0.0.0:{PORT}"), "--data"])
        .arg(here.place.join("elsewhere"));
    if !is_root() {
        return eprintln!("NOT EXERCISED: a listener in another network namespace, for want of root");
    }
    let mut contained = Process::start(&mut elsewhere, here.place.join("elsewhere.log"));
    here.wait_shown(Protocol::Tcp, PORT, true);
    let query = PortQuery { port: Some(PORT.to_string().parse().unwrap()), ..Default::default() };
    let states = || here.server.admin().list_ports(&query).unwrap().items;
    let state = states().into_iter().find(|state| !state.listeners.is_empty()).unwrap();
    assert_eq!(state.state, State::Free);
    assert_eq!(state.listeners[0].owners[0].pid, contained.id(), "unshare has become the server");
    let shown = stdout(&gkctl(&here.server, &here.state, &["port", "show", &PORT.to_string()]));
    assert!(shown.contains("is free") && shown.contains("(netns "), "{shown}");
    for words in [&["port", "history", "--port"][..], &["events", "--port"]] {
        let told = stdout(&gkctl(&here.server, &here.state, &[words, &[&PORT.to_string()]].concat()));
        assert!(told.contains("(netns "), "not to be taken for the machine's own: {told}");
    }
    // Gone while nobody looks: the next agent has never seen that namespace.
    agent.kill();
    contained.kill();
    let _next = here.agent();
    here.wait_shown(Protocol::Tcp, PORT, false);
    assert_eq!(here.kinds(PORT), [EventKind::Opened, EventKind::Closed]);
}

#[test]
fn a_published_port_is_the_machines_until_its_engine_says_otherwise() {
    let here = Joined::new();
    // Numbers that nobody else has; no socket stands for them.
    let [kept, dropped] = [listen(), listen()].map(|(_, port)| port);
    let engine = FakeEngine::start(&here.place.join("docker.sock"));
    let start = || {
        let mut command = program("gatekeeper-agent");
        command.arg("--engine-socket").arg(&engine.socket);
        Process::start(command.env("GATEKEEPER_STATE", &here.state), here.place.join("agent.log"))
    };
    engine.answer(200, &[kept, dropped]);
    let mut agent = start();
    here.wait_shown(Protocol::Tcp, kept, true);
    here.wait_shown(Protocol::Tcp, dropped, true);
    let query = PortQuery { port: Some(kept.to_string().parse().unwrap()), ..Default::default() };
    let state = here.server.admin().list_ports(&query).unwrap().items.remove(0);
    assert_eq!((state.state, state.listeners.len()), (State::Unreserved, 1));
    let listener = &state.listeners[0];
    let container = listener.container.as_ref().unwrap();
    assert_eq!((listener.key.netns, listener.owners.len()), (Netns::Home, 0));
    assert_eq!((container.name.as_ref().unwrap().as_str(), container.engine.as_str()), ("web", "docker"));
    let listed = stdout(&gkctl(&here.server, &here.state, &["port", "list"]));
    assert!(listed.contains("docker container web"), "{listed}");

    engine.answer(200, &[kept]);
    here.wait_shown(Protocol::Tcp, dropped, false);
    assert_eq!(here.kinds(dropped), [EventKind::Opened, EventKind::Closed]);

    // An engine that does not answer, agents that come and go, and a report in an agent's place: nothing has closed.
    agent.kill();
    stdout(&gkctl(&here.server, &here.state, &["instance", "join"]));
    engine.answer(500, &[]);
    agent = start();
    wait_for("the agent to be refused by the engine", || agent.log().contains("status 500").then_some(()));
    let (_listener, port) = listen();
    here.wait_shown(Protocol::Tcp, port, true);
    assert!(is_shown(&here.server.admin(), Protocol::Tcp, kept));
    assert_eq!(here.kinds(kept), [EventKind::Opened]);

    agent.kill();
    engine.answer(200, &[]);
    let _last = start();
    here.wait_shown(Protocol::Tcp, kept, false);
    assert_eq!(here.kinds(kept), [EventKind::Opened, EventKind::Closed]);
    here.server.verify();
}

/// A container engine that runs `web`, on a socket that answers whatever it is asked with the ports that it publishes.
struct FakeEngine {
    socket: PathBuf,
    answer: Arc<Mutex<String>>,
}

impl FakeEngine {
    fn start(socket: &Path) -> FakeEngine {
        let listener = UnixListener::bind(socket).unwrap();
        let answer = Arc::new(Mutex::new(String::new()));
        let said = Arc::clone(&answer);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map(Result::unwrap) {
                // One read: the whole request is one short write.
                let _asked = stream.read(&mut [0; 4096]);
                let _heard = stream.write_all(said.lock().unwrap().as_bytes());
            }
        });
        FakeEngine { socket: socket.to_owned(), answer }
    }

    fn answer(&self, status: u16, ports: &[u16]) {
        let told = |port: &u16| serde_json::json!({"IP": "0.0.0.0", "PublicPort": port, "Type": "tcp"});
        let ports: Vec<_> = ports.iter().map(told).collect();
        let id = "3f2a91c05b7e4d6f".repeat(4);
        let body = serde_json::json!([{"Id": id, "Names": ["/web"], "Ports": ports}]).to_string();
        let length = body.len();
        let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\nconnection: close\r\n");
        *self.answer.lock().unwrap() = format!("{head}\r\n{body}");
    }
}

#[test]
fn an_instance_tells_what_its_agent_sees() {
    let here = Joined::new();
    let agent = here.agent();
    let line = wait_for("the agent's facts", || {
        let shown = stdout(&gkctl(&here.server, &here.state, &["instance", "show", "here"]));
        shown.lines().find(|line| line.contains("sees: ")).map(str::to_owned)
    });
    assert!(line.contains("listeners of its own network namespace"), "{line}");
    assert_eq!(line.contains("not seen: "), !is_root(), "{line}");
    let log = agent.log();
    assert!(log.contains("agent started; sees: listeners of its own network namespace"), "{log}");
}

#[test]
fn the_agent_starts_before_the_server_and_outlives_it() {
    let mut here = Joined::new();
    here.server.process.kill();
    let mut agent = here.agent();
    let (early, early_port) = listen();
    here.server.restart();
    here.wait_shown(Protocol::Tcp, early_port, true);

    // Restarted under it.
    here.server.process.kill();
    here.server.restart();
    let (_between, between_port) = listen();
    here.wait_shown(Protocol::Tcp, between_port, true);

    // Away while things change.
    here.server.process.kill();
    let (_late, late_port) = listen();
    drop(early);
    here.server.restart();
    here.wait_shown(Protocol::Tcp, late_port, true);
    here.wait_shown(Protocol::Tcp, early_port, false);
    assert!(is_shown(&here.server.admin(), Protocol::Tcp, between_port));
    agent.assert_running();
    assert_eq!(here.kinds(early_port), [EventKind::Opened, EventKind::Closed], "each told once");
    assert_eq!(agent.terminate(), Some(0), "{}", agent.log());
}

#[test]
fn beside_its_server_the_agents_credential_goes_to_no_tcp_port() {
    let here = Joined::new();
    let identity = std::fs::read_to_string(here.state.join("instance.json")).unwrap();
    assert!(
        identity.contains(&format!("http://{}", here.server.address)),
        "others learn the address: {identity}"
    );
    let agent = here.agent();
    wait_for("the agent to start", || agent.log().contains("agent started").then_some(()));
    assert!(agent.log().contains("server.address=unix:"), "{}", agent.log());
}

#[test]
fn a_reservation_without_a_listener_survives_any_number_of_reports() {
    let here = Joined::new();
    let port = stdout(&gkctl(&here.server, &here.state, &["port", "reserve", "--service", "quiet"]));
    let before = here.server.live();
    assert_eq!(before.len(), 1);
    for _ in 0..5 {
        let mut once = program("gatekeeper-agent");
        let told = once.arg("--once").env("GATEKEEPER_STATE", &here.state).output().unwrap();
        stdout(&told);
        assert_eq!(here.server.live(), before, "reservation of {port}");
    }
}

#[test]
fn an_agent_tells_udp_servers_from_clients() {
    let here = Joined::new();
    // A server's port lies outside the range the kernel picks from.
    let server = (20_000..30_000).find_map(|port| UdpSocket::bind(("127.0.0.1", port)).ok()).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(server.local_addr().unwrap()).unwrap();
    let _agent = here.agent();
    here.wait_shown(Protocol::Udp, server.local_addr().unwrap().port(), true);
    assert!(!is_shown(&here.server.admin(), Protocol::Udp, client.local_addr().unwrap().port()));
}

#[test]
fn a_clone_ends_the_older_session_and_says_so() {
    let here = Joined::new();
    let first = here.agent();
    // Copied in the middle of opening, it would be the same agent that repeats itself.
    wait_for("the session to be kept", || {
        let kept = std::fs::read_to_string(here.state.join("session.json")).unwrap_or_default();
        kept.contains(r#""session":2,"opening":null"#).then_some(())
    });
    let copy = here.place.join("copy");
    std::fs::create_dir(&copy).unwrap();
    for file in ["instance.json", "credential", "session.json"] {
        std::fs::copy(here.state.join(file), copy.join(file)).unwrap();
    }
    let mut clone = start_agent(&copy, here.place.join("clone.log"));
    wait_for("the clone to be in contact", || clone.log().contains("in contact").then_some(()));
    let (_listener, port) = listen();
    here.wait_shown(Protocol::Tcp, port, true);
    wait_for("the first agent to be refused", || {
        first.log().contains("something else has gone on with this identity").then_some(())
    });
    clone.assert_running();
}

#[test]
fn an_agent_goes_on_when_its_machine_joins_anew_under_it() {
    let here = Joined::new();
    let mut agent = here.agent();
    wait_for("the first contact", || agent.log().contains("in contact").then_some(()));
    stdout(&gkctl(&here.server, &here.state, &["instance", "join", "--replace", "here"]));
    let (_listener, port) = listen();
    here.wait_shown(Protocol::Tcp, port, true);
    agent.assert_running();
}

#[test]
fn one_agent_per_state_directory() {
    let here = Joined::new();
    let first = here.agent();
    wait_for("the first contact", || first.log().contains("in contact").then_some(()));
    let second = program("gatekeeper-agent").env("GATEKEEPER_STATE", &here.state).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let error = String::from_utf8(second.stderr).unwrap();
    assert!(error.contains("another agent runs") && error.contains(here.state.to_str().unwrap()), "{error}");
}
