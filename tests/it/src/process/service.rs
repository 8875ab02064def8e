//! The programs under a service manager: ready, alive, stopping, told by the protocol of sd_notify(3).

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::harness::{Place, Process, Server, gkctl, program, stdout};

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
    let mut agent = program("gatekeeper");
    agent.arg("agent").env("GATEKEEPER_STATE", &state);
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
    let mut agent = program("gatekeeper");
    agent.arg("agent").env("GATEKEEPER_STATE", place.join("state"));
    let not_joined = agent.output().unwrap();
    assert_eq!(not_joined.status.code(), Some(3), "{not_joined:?}");
    assert!(String::from_utf8_lossy(&not_joined.stderr).contains("gkctl instance join"), "{not_joined:?}");
    let unusable = agent.env("GATEKEEPER_STATE", "/proc/nowhere").output().unwrap();
    assert_eq!(unusable.status.code(), Some(1), "{unusable:?}");
}
