//! The kernel keeps off reserved ports: server, agent and `gkctl` in a network namespace of their own.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::harness::{Place, Process, Server, gkctl, program, stdout, wait_for};

const LIST: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
const INSIDE: &str = "IT_TEST_INSIDE";

/// Runs the test that calls it, by the name of its thread, once more in a process with a network namespace of its own,
/// where `lo` is up. Where that is not permitted it fails under CI, and elsewhere says what was not exercised.
pub(super) fn in_new_namespace(what: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let enter = |program: &Path, args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"]);
        command.arg(program).args(args).env(INSIDE, "1").output()
    };
    if !enter(Path::new("true"), &[]).is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "no network namespace for {what}");
        // Past the capture of the test harness, which would swallow what a passing test prints.
        let line = format!("NOT EXERCISED: {what}, for want of a network namespace\n");
        return std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
    let name = std::thread::current().name().expect("the harness names the threads of tests").to_owned();
    let output = enter(&std::env::current_exe().unwrap(), &["--exact", &name, "--nocapture"]).unwrap();
    let inside = stdout(&output);
    assert!(inside.contains("1 passed"), "{inside}");
}

fn list() -> String {
    fs::read_to_string(LIST).unwrap().trim().to_owned()
}

fn wait_for_list(expected: &str, why: &str) {
    wait_for(&format!("the list to be {expected}: {why}"), || (list() == expected).then_some(()));
}

/// A server, and this machine joined to it.
struct Here {
    server: Server,
    state: PathBuf,
    place: Place,
}

impl Here {
    fn gkctl(&self, words: &str) -> String {
        stdout(&gkctl(&self.server, &self.state, &words.split(' ').collect::<Vec<_>>()))
    }

    fn agent(&self) -> Process {
        let mut agent = program("gatekeeper-agent");
        agent.env("GATEKEEPER_STATE", &self.state).env("GATEKEEPER_PROTECT", "1");
        Process::start(&mut agent, self.place.join("agent.log"))
    }

    fn wait_shown(&self, expected: &str) {
        wait_for(&format!("`{expected}` to be shown"), || {
            let shown = self.gkctl("instance show");
            let line = shown.lines().find_map(|line| line.strip_prefix("kernel keeps off reserved ports"))?;
            (line.trim() == expected).then_some(())
        });
    }
}

#[test]
fn reserved_ports_come_into_the_kernels_list_and_go_again() {
    in_new_namespace("that reserved ports come into the kernel's list and go again", || {
        let place = Place::new();
        let (server, state) = (Server::start(&place.join("data")), place.join("state"));
        let here = Here { server, state, place };
        fs::write(LIST, "7000").unwrap();
        here.gkctl("instance join --name here");
        here.gkctl("port reserve --port 8123");
        here.gkctl("port reserve --port 8124 --protocol udp");
        let mut agent = here.agent();
        wait_for_list("7000,8123-8124", "both are reserved");
        here.wait_shown("enforced, 2 ports");
        here.gkctl("instance join");
        here.wait_shown("enforced, 2 ports");

        // One is released, another reserved, and somebody sets a list that knows nothing of it.
        here.gkctl("port release 8124");
        here.gkctl("port reserve --port 8125");
        fs::write(LIST, "7001").unwrap();
        wait_for_list("7001,8123,8125", "theirs stays, what is reserved is there");
        wait_for("the drift to be told", || {
            agent.log().contains(": drifted, 2 ports: somebody").then_some(())
        });
        assert_eq!(agent.terminate(), Some(0), "{}", agent.log());
        assert_eq!(list(), "7001,8123,8125", "an upgrade opens no window");

        // Leaving frees them: the running agent does it, or `gkctl` where none runs.
        let agent = here.agent();
        wait_for("the agent to start", || {
            let count = agent.log().matches("in contact with the server").count();
            (count == 2).then_some(())
        });
        here.gkctl("instance leave --release");
        wait_for_list("7001", "the instance has left");
        drop(agent);
        here.gkctl("instance join --name again");
        here.gkctl("port reserve --port 8126");
        let mut agent = here.agent();
        wait_for_list("7001,8126", "it has joined again");
        assert_eq!(agent.terminate(), Some(0), "{}", agent.log());
        here.gkctl("instance leave --release");
        assert_eq!(list(), "7001", "at once");
    });
}
