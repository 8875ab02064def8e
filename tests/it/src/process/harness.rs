//! Starting the built programs, waiting for conditions, and keeping what a failed test leaves.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use gk_client::{Client, ClientError, ServerAddress};
use gk_model::query::{EventQuery, Limit, Page, ReservationQuery};
use gk_model::reservation::{Reservation, ReserveRequest};
use tempfile::TempDir;

/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(30);

/// A throw-away directory that stays when its test fails, and says where.
pub(crate) struct Place(Option<TempDir>);

impl Place {
    pub(crate) fn new() -> Place {
        Place(Some(TempDir::with_prefix("gatekeeper-it-").unwrap()))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.as_ref().unwrap().path()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept = self.0.take().unwrap().keep();
            eprintln!("the test's directory is kept: {}", kept.display());
        }
    }
}

/// A built program of this workspace, made by the same build as this test.
pub(crate) fn program(name: &str) -> Command {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().and_then(Path::parent).unwrap().join(name);
    assert!(
        path.exists(),
        "{} is not built: run `cargo build --bins` first, as `make test` does",
        path.display()
    );
    let mut command = Command::new(path);
    for (variable, _) in std::env::vars().filter(|(variable, _)| variable.starts_with("GATEKEEPER_")) {
        command.env_remove(variable);
    }
    // Whoever runs the tests may have one of another program, and containers, and may be logged in somewhere.
    command.env_remove("DATABASE_URL").env("GATEKEEPER_ENGINE_SOCKET", "none");
    // Or a server of their own.
    command.env("GATEKEEPER_CONFIG", "none");
    command.env("XDG_CONFIG_HOME", "/nonexistent");
    command
}

/// One of its commands that work on a database: SQLite in the data directory, or this PostgreSQL database.
pub(crate) fn gatekeeper(verb: &str, data: &Path, database: Option<&str>) -> Command {
    let mut command = program("gatekeeper");
    command.args([verb, "--data"]).arg(data);
    if let Some(url) = database {
        command.args(["--database", url]);
    }
    command
}

/// Whether the tests may mount, and are hindered by no permission.
pub(crate) fn is_root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()) == 0
}

/// What a command that must fail says: one line, and no panic.
pub(crate) fn error_of(output: &Output) -> String {
    // 2 for wrong options, 3 for what only people can mend; a test that cares looks itself.
    assert!(matches!(output.status.code(), Some(1..=3)), "{output:?}");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let error =
        text.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("no error in {text}"));
    assert!(!text.contains("panicked"), "{text}");
    error.to_owned()
}

/// What a server says that must not come up. One that comes up is ended.
pub(crate) fn refusal_of(server: &mut Command) -> String {
    let place = Place::new();
    // Unless the command says otherwise, on no port that somebody else may have.
    let mut process = Process::start(server.env("GATEKEEPER_LISTEN", "127.0.0.1:0"), place.join("log"));
    let status = wait_for("the server to refuse", || process.ended());
    error_of(&Output { status, stdout: Vec::new(), stderr: process.log().into_bytes() })
}

/// Waits until `condition` answers something.
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = condition() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// A process that is killed when its test ends.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub(crate) fn start(command: &mut Command, log: PathBuf) -> Process {
        Process::start_at(Stdio::null(), command, log)
    }

    /// With its output to there.
    pub(crate) fn start_at(stdout: impl Into<Stdio>, command: &mut Command, log: PathBuf) -> Process {
        let stderr = File::options().create(true).append(true).open(&log).unwrap();
        let child = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn().unwrap();
        Process { child, log }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// How it ended, once it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Fails the test when it has ended by itself.
    pub(crate) fn assert_running(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("ended by itself with {status}:\n{}", self.log());
        }
    }

    /// SIGKILL, and gone when this returns.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and the exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        // The shell's own `kill`: a fresh machine may have no other.
        let kill = format!("kill {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        wait_for("the process to end", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A server process on a data directory.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) data: PathBuf,
    /// Its TCP address, with the port the kernel chose.
    pub(crate) address: String,
    /// The PostgreSQL database that it works on, if it does.
    database: Option<String>,
}

impl Server {
    /// On a port that the kernel chooses.
    pub(crate) fn start(data: &Path) -> Server {
        Server::start_with(data, "127.0.0.1:0", |_| {})
    }

    /// The same on a PostgreSQL database, which several may share.
    pub(crate) fn start_on(database: &str, data: &Path) -> Server {
        Server::launch(data, "127.0.0.1:0", Some(database.to_owned()), |_| {})
    }

    /// On this address, with what else the command should have.
    pub(crate) fn start_with(data: &Path, listen: &str, prepare: impl FnOnce(&mut Command)) -> Server {
        Server::launch(data, listen, None, prepare)
    }

    fn launch(
        data: &Path,
        listen: &str,
        database: Option<String>,
        prepare: impl FnOnce(&mut Command),
    ) -> Server {
        let mut command = gatekeeper("server", data, database.as_deref());
        command.args(["--log-format", "json", "--listen", listen]);
        prepare(&mut command);
        let log = data.with_extension("log");
        let already = std::fs::metadata(&log).map_or(0, |metadata| metadata.len()) as usize;
        let mut process = Process::start(&mut command, log);
        let address = wait_for("the server to serve", || {
            process.assert_running();
            served_address(&process.log()[already..])
        });
        let server = Server { process, data: data.to_owned(), address, database };
        wait_for("the server to answer", || server.admin().ready().ok());
        server
    }

    /// The same again after a kill: same data, same address.
    pub(crate) fn restart(&mut self) {
        let (data, address) = (self.data.clone(), self.address.clone());
        *self = Server::launch(&data, &address, self.database.clone(), |_| {});
    }

    /// `gatekeeper verify`, as it is typed beside a server that works, finds nothing.
    pub(crate) fn verify(&self) {
        let verdict = gatekeeper("verify", &self.data, self.database.as_deref()).output().unwrap();
        assert!(!stdout(&verdict).contains("WRONG"), "{verdict:?}");
    }

    /// A client that is admin by its place at the Unix socket.
    pub(crate) fn admin(&self) -> Client {
        Client::new(ServerAddress::Unix(self.data.join("gatekeeper.sock")), None)
    }

    /// Reserves as the admin.
    pub(crate) fn reserve(&self, request: &ReserveRequest) -> Result<Reservation, ClientError> {
        reserve(&self.admin(), request)
    }

    /// Every live reservation.
    pub(crate) fn live(&self) -> Vec<Reservation> {
        let query = ReservationQuery { limit: Some(Limit::MAX), ..Default::default() };
        let client = self.admin();
        gk_client::all_pages(|cursor| client.list_reservations(&ReservationQuery { cursor, ..query.clone() }))
            .collect::<Result<_, _>>()
            .unwrap()
    }

    /// The number of every event, in the order of the log.
    pub(crate) fn event_numbers(&self) -> Vec<u64> {
        let query = EventQuery { limit: Some(Limit::MAX), ..Default::default() };
        let client = self.admin();
        gk_client::all_pages(|cursor| {
            client.list_events(&EventQuery { cursor, ..query.clone() }).map(Page::from)
        })
        .map(|event| event.unwrap().seq)
        .collect()
    }
}

/// The one reservation that this request makes.
pub(crate) fn reserve(client: &Client, request: &ReserveRequest) -> Result<Reservation, ClientError> {
    client.reserve(request).map(|mut made| {
        assert_eq!(made.items.len(), 1, "{made:?}");
        made.items.remove(0)
    })
}

fn served_address(log: &str) -> Option<String> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut fields = lines.map(|line| line["fields"].clone());
    let serving = fields.find(|fields| fields["message"] == "serving")?;
    Some(serving["server.address"].as_str()?.to_owned())
}

/// `gkctl`, as somebody with this state directory types it against this server.
pub(crate) fn gkctl(server: &Server, state: &Path, words: &[&str]) -> Output {
    let socket = format!("unix:{}", server.data.join("gatekeeper.sock").display());
    gkctl_at(&socket, state, words)
}

pub(crate) fn gkctl_at(server: &str, state: &Path, words: &[&str]) -> Output {
    let mut command = program("gkctl");
    command.args(words).env("GATEKEEPER_SERVER", server).env("GATEKEEPER_STATE", state);
    command.env("GATEKEEPER_DATA", state.join("no-data")).output().unwrap()
}

/// Standard output of a command that must succeed.
pub(crate) fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}
