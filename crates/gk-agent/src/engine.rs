//! Asking the container engines of this machine, on a thread of its own: an engine that is slow or hangs delays neither a
//! scan nor a contact.
//!
//! **Owns** `engines.json` and the rhythm of asking: when a scan shows a container, a forwarder or a namespace come or go,
//! then in growing pauses up to half a minute. It sends one kind of request, a `GET` of the list of containers, which
//! Docker and Podman answer alike.
//!
//! **Promises** that silence closes nothing: until an engine answers again, what it told last stays, also when the agent
//! starts anew in the same boot, since what was told is written down before it is used. An engine that answers is believed
//! in full: what it does not tell any more is gone. A published port that a process listened for is gone with the socket,
//! as the kernel says, unless the engine tells twice afterwards that it is still published.
//!
//! **Refuses** to wait for an answer longer than two seconds or to read more than 8 MiB of it, to change anything in an
//! engine, and to send it a token.

mod answer;
mod rhythm;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gk_client::engines::{SavedEngines, load_engines, save_engines};
use gk_client::get_local;
use gk_model::engine::{Containers, Published, Told, forwards};
use gk_model::listener::{Listener, Netns};
use gk_model::time::Timestamp;

use crate::AgentConfig;
use crate::stop::Event;
use crate::view::Snapshot;
use answer::parse;
use rhythm::{Came, Rhythm};

/// Running and paused containers: those whose ports are published. Podman leaves paused ones out unless asked for. The
/// filter is `{"status":["running","paused"]}`; a path without a version means the engine's newest.
const LIST: &str = "/containers/json?filters=%7B%22status%22%3A%5B%22running%22%2C%22paused%22%5D%7D";

/// How long an engine has to answer, connecting and reading included.
const PATIENCE: Duration = Duration::from_secs(2);

/// How much of an answer is read: a few thousand containers, or as many published ports.
const MOST_BYTES: u64 = 8 << 20;

/// How often an engine has to tell of a published port after its socket is gone, to be believed. When a container ends,
/// the socket goes first, and the answer of that moment is old.
const TELLS_AGAIN: u8 = 2;

/// What is not seen without an engine.
const COST: &str = "names of containers, and ports published without a process that listens";

/// The sockets at which engines are found: the system's, and those of an account's own engines in its runtime directory.
/// The path under `/var/run` is for machines where that is no link to `/run`.
pub fn well_known_sockets(runtime_dir: Option<&Path>) -> Vec<PathBuf> {
    let system = ["/run/docker.sock", "/var/run/docker.sock", "/run/podman/podman.sock"].map(PathBuf::from);
    let own = runtime_dir.map(|dir| [dir.join("docker.sock"), dir.join("podman/podman.sock")]);
    system.into_iter().chain(own.into_iter().flatten()).collect()
}

/// What the engines tell now. Those that do not answer tell nothing.
pub fn ask_engines(sockets: &[PathBuf]) -> Containers {
    let told = sockets_of(sockets).filter_map(|socket| ask(socket).ok());
    Containers::of(&told.collect::<Vec<Told>>())
}

/// What the engines tell, in lines for people.
pub(crate) fn explain(sockets: &[PathBuf]) -> Vec<String> {
    let line = |socket: &Path| match ask(socket) {
        Ok(told) => Some(format!(
            "Container engine {} at {}: containers: {}; published ports: {}.",
            told.engine,
            socket.display(),
            told.containers.len(),
            told.containers.iter().map(|container| container.published.len()).sum::<usize>(),
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            Some(format!("Container engine at {}: {error}; so not seen: {COST}.", socket.display()))
        }
    };
    let lines: Vec<String> = sockets_of(sockets).filter_map(line).collect();
    match (lines.is_empty(), sockets.is_empty()) {
        (true, true) => vec![format!("Container engines are not asked; so not seen: {COST}.")],
        (true, false) => vec![format!("No container engine found; where one is, not seen: {COST}.")],
        _ => lines,
    }
}

/// Each place once: one engine may be found by several paths, as where podman-docker links Docker's to its own.
fn sockets_of(sockets: &[PathBuf]) -> impl Iterator<Item = &Path> {
    let mut places = BTreeSet::new();
    let place = |socket: &Path| socket.canonicalize().unwrap_or_else(|_| socket.to_owned());
    sockets.iter().map(PathBuf::as_path).filter(move |socket| places.insert(place(socket)))
}

/// Whether nobody but systemd is at the place of a socket, so that a question would start the engine that somebody has
/// stopped. Only the system's Docker is both: stopped on purpose, and started by whoever knocks at `docker.socket`.
/// Containers that it left running keep what it told last. Where nobody can tell, it is asked.
fn is_stopped(place: &Path, is_running: impl Fn(&str) -> Option<bool>) -> bool {
    let is_systems = ["/run/docker.sock", "/var/run/docker.sock"].map(Path::new).contains(&place);
    is_systems && is_running("dockerd") == Some(false)
}

/// One question.
fn ask(socket: &Path) -> io::Result<Told> {
    // Where there is no socket, no process is looked at.
    if is_stopped(&socket.canonicalize()?, gk_scan::is_running) {
        return Err(io::Error::new(io::ErrorKind::NotFound, "it does not run"));
    }
    let answer = get_local(socket, LIST, MOST_BYTES, PATIENCE)?;
    parse(&answer).map_err(|error| {
        let source =
            std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        io::Error::new(io::ErrorKind::InvalidData, format!("its answer is not taken: {error}{source}"))
    })
}

/// What the thread has to say after asking.
#[derive(Clone, Debug)]
pub(crate) struct News {
    containers: Containers,
    /// Those of the engines that answered just now.
    fresh: Containers,
    /// Which engines answer, in a few words.
    summary: String,
    /// Whether any does.
    is_answered: bool,
}

/// What the agent knows of containers, and the way to the thread, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Engines {
    news: News,
    /// What the last scan showed that an engine may know more of.
    hint: u64,
    /// Published ports that had a socket, with how often engines have to tell of them before they are without.
    with_socket: BTreeMap<Published, u8>,
    /// Whether listeners that were completed would be others now, though the kernel's are the same.
    is_news: bool,
    /// None where there is nobody to ask, and in an agent that runs once.
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Engines {
    /// Starts with what an earlier run was told, and asks anew on a thread.
    pub(crate) fn start(config: &AgentConfig, events: Sender<Event>) -> io::Result<Engines> {
        let asker = Asker::open(config);
        let news = asker.news();
        if asker.sockets.is_empty() {
            return Ok(Engines { news, hint: 0, with_socket: BTreeMap::new(), is_news: true, thread: None });
        }
        let (hints, hinted) = mpsc::channel();
        let work = move || serve(asker, &events, &hinted);
        let thread = thread::Builder::new().name("engines".to_owned()).spawn(work)?;
        Ok(Engines {
            news,
            hint: 0,
            with_socket: BTreeMap::new(),
            is_news: true,
            thread: Some((hints, thread)),
        })
    }

    /// Asks and waits, for an agent that runs once.
    pub(crate) fn once(config: &AgentConfig) -> Engines {
        let mut asker = Asker::open(config);
        asker.ask_due(Duration::ZERO);
        Engines { news: asker.news(), hint: 0, with_socket: BTreeMap::new(), is_news: true, thread: None }
    }

    /// Passes a panic of the thread on: containers that are never asked for again would look unchanged.
    ///
    /// # Panics
    /// When the thread has.
    pub(crate) fn assert_alive(&self) {
        let has_ended = self.thread.as_ref().is_some_and(|(_, thread)| thread.is_finished());
        assert!(!has_ended, "the thread that asks container engines panicked");
    }

    /// Adds to a scan what the engines told last, and has them asked when the scan shows that they may have news. A scan that
    /// shows the same listeners as before takes them from `all` when they are to be completed anew.
    pub(crate) fn complete(
        &mut self,
        snapshot: &mut Snapshot,
        now: Timestamp,
        all: impl FnOnce() -> Vec<Listener>,
    ) {
        if self.is_news && snapshot.listeners.is_none() {
            snapshot.listeners = Some(all());
        }
        let known = snapshot.namespaces.as_ref().map(|namespaces| &namespaces.known);
        let Some(listeners) = &mut snapshot.listeners else { return };
        let hint = hint(listeners, known.into_iter().flatten());
        if let Some((hints, _)) = &self.thread
            && std::mem::replace(&mut self.hint, hint) != hint
        {
            // A thread that is gone has panicked, which is noticed elsewhere.
            let _gone = hints.send(());
        }
        let with_socket = &self.with_socket;
        let stands_alone = |port: &Published| !with_socket.contains_key(port);
        let shown = self.news.containers.apply_where(listeners, now, stands_alone);
        self.is_news = false;
        self.with_socket.extend(shown.into_iter().map(|port| (port, TELLS_AGAIN)));
    }

    /// Takes in what they told; whether the summary is another one, which is logged then.
    pub(crate) fn learn(&mut self, news: News) -> bool {
        let silent = self.with_socket.len();
        self.with_socket.retain(|port, tells| {
            *tells -= u8::from(news.fresh.publishes(port));
            *tells > 0 && news.containers.publishes(port)
        });
        let before = std::mem::replace(&mut self.news, news);
        self.is_news |= self.with_socket.len() < silent || self.news.containers != before.containers;
        let is_other = before.summary != self.news.summary;
        match (is_other, self.news.is_answered) {
            (false, _) => {}
            (true, true) => tracing::info!("{}", self.news.summary),
            (true, false) => tracing::info!("{}; not seen: {COST}", self.news.summary),
        }
        is_other
    }

    /// Which engines answer, in a few words.
    pub(crate) fn summary(&self) -> &str {
        &self.news.summary
    }
}

/// A sum over the containers, forwarders and namespaces that a scan shows, before engines add to it. In whatever order.
fn hint<'a>(listeners: &[Listener], namespaces: impl Iterator<Item = &'a Netns>) -> u64 {
    let sum = |hashed: &dyn Fn(&mut DefaultHasher)| {
        let mut hasher = DefaultHasher::new();
        hashed(&mut hasher);
        hasher.finish()
    };
    let telling = listeners.iter().filter(|it| it.container.is_some() || forwards(it));
    let listeners = telling.map(|listener| {
        let id = listener.container.as_ref().map(|container| &container.id);
        sum(&|hasher| (&listener.key, id).hash(hasher))
    });
    let namespaces = namespaces.map(|netns| sum(&|hasher| netns.hash(hasher)));
    listeners.chain(namespaces).fold(0, u64::wrapping_add)
}

fn serve(mut asker: Asker, events: &Sender<Event>, hints: &Receiver<()>) {
    let begun = Instant::now();
    loop {
        if asker.ask_due(begun.elapsed()) && events.send(Event::Contained(asker.news())).is_err() {
            return;
        }
        match hints.recv_timeout(asker.due().saturating_sub(begun.elapsed())) {
            Ok(()) => asker.sockets.iter_mut().for_each(|socket| socket.rhythm.hurry()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// A place where an engine may be.
#[derive(Debug)]
struct Socket {
    path: PathBuf,
    rhythm: Rhythm,
    /// What came of the last question; none before the first. What the log said of it, too.
    standing: Option<Standing>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Answers,
    Fails(io::ErrorKind),
}

/// Asks, and keeps what was told.
#[derive(Debug)]
struct Asker {
    state_dir: PathBuf,
    sockets: Vec<Socket>,
    saved: SavedEngines,
    /// Who answered in the last round.
    heard: Vec<PathBuf>,
    save_failed: bool,
}

impl Asker {
    fn open(config: &AgentConfig) -> Asker {
        let facts = gk_scan::facts(config.version.as_str());
        let mut saved = load_engines(&config.state_dir, &facts).unwrap_or_else(|error| {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "what container engines told an earlier run is not known");
            SavedEngines::new(&facts)
        });
        // Whoever is not asked any more will never say that its ports are closed.
        saved.told.retain(|path, _| config.engine_sockets.contains(path));
        let socket =
            |path: &PathBuf| Socket { path: path.clone(), rhythm: Rhythm::default(), standing: None };
        let sockets = config.engine_sockets.iter().map(socket).collect();
        Asker { state_dir: config.state_dir.clone(), sockets, saved, heard: Vec::new(), save_failed: false }
    }

    /// Asks those whose time has come; whether there were any.
    fn ask_due(&mut self, elapsed: Duration) -> bool {
        let is_due = |socket: &&Socket| socket.rhythm.due() <= elapsed;
        let due: Vec<PathBuf> =
            self.sockets.iter().filter(is_due).map(|socket| socket.path.clone()).collect();
        let all: Vec<PathBuf> = self.sockets.iter().map(|socket| socket.path.clone()).collect();
        let distinct: BTreeSet<&Path> = sockets_of(&all).collect();
        let before = self.saved.told.clone();
        self.heard.clear();
        for path in &due {
            let answer = if distinct.contains(path.as_path()) {
                ask(path)
            } else {
                // Asked by its other path. What it told by this one, before the link was made, is told by that one now.
                self.saved.told.remove(path);
                Err(io::ErrorKind::NotFound.into())
            };
            self.take_in(path, answer, elapsed);
        }
        if self.saved.told != before {
            self.save();
        }
        !due.is_empty()
    }

    fn take_in(&mut self, path: &Path, answer: io::Result<Told>, elapsed: Duration) {
        let Some(socket) = self.sockets.iter_mut().find(|socket| socket.path == path) else { return };
        let standing = match &answer {
            Ok(_) => Standing::Answers,
            Err(error) => Standing::Fails(error.kind()),
        };
        socket.rhythm.asked(elapsed, came_of(&answer));
        if socket.standing.replace(standing) != Some(standing) {
            log(path, &answer, self.saved.told.contains_key(path));
        }
        if let Ok(told) = answer {
            self.heard.push(path.to_owned());
            self.saved.told.insert(path.to_owned(), told);
        }
    }

    /// Before it is used: an agent that is killed in between has told nothing that the next one does not know.
    fn save(&mut self) {
        match save_engines(&self.state_dir, &self.saved) {
            Ok(()) => self.save_failed = false,
            Err(error) if !std::mem::replace(&mut self.save_failed, true) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot write down what container engines told");
            }
            Err(_) => {}
        }
    }

    /// When the next one is to be asked.
    fn due(&self) -> Duration {
        self.sockets.iter().map(|socket| socket.rhythm.due()).min().unwrap_or(Duration::MAX)
    }

    fn news(&self) -> News {
        let is_answered = self.sockets.iter().any(|socket| socket.standing == Some(Standing::Answers));
        let fresh = Containers::of(self.heard.iter().filter_map(|path| self.saved.told.get(path)));
        News { containers: self.saved.containers(), fresh, summary: self.summary(), is_answered }
    }

    fn summary(&self) -> String {
        if self.sockets.is_empty() {
            return "container engines: not asked".to_owned();
        }
        if self.sockets.iter().all(|socket| socket.standing.is_none()) {
            return "container engines: not asked yet".to_owned();
        }
        let tell = |socket: &Socket| match (socket.standing?, self.saved.told.get(&socket.path)) {
            (Standing::Fails(io::ErrorKind::NotFound), None) => None,
            (Standing::Fails(kind), _) => Some(format!("{} ({kind})", socket.path.display())),
            (Standing::Answers, told) => Some(format!("{} at {}", told?.engine, socket.path.display())),
        };
        let told: Vec<String> = self.sockets.iter().filter_map(tell).collect();
        format!(
            "container engines: {}",
            if told.is_empty() { "none found".to_owned() } else { told.join(", ") }
        )
    }
}

fn came_of(answer: &io::Result<Told>) -> Came {
    use io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
    match answer {
        Ok(told) if told.engine.as_str() == "podman" => Came::OnDemand,
        Ok(_) => Came::Cheap,
        Err(error) if matches!(error.kind(), NotFound | PermissionDenied | ConnectionRefused) => Came::Cheap,
        Err(_) => Came::Trouble,
    }
}

fn log(path: &Path, answer: &io::Result<Told>, has_told: bool) {
    let socket = path.display();
    match answer {
        Ok(told) => tracing::debug!(
            engine.socket = %socket,
            engine.name = %told.engine,
            containers.count = told.containers.len(),
            "a container engine answers"
        ),
        Err(error) if has_told => tracing::warn!(
            error = error as &dyn std::error::Error,
            engine.socket = %socket,
            "a container engine answers no more; what it published stays as it told last"
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            tracing::debug!(engine.socket = %socket, "no container engine here");
        }
        Err(error) => tracing::warn!(
            error = error as &dyn std::error::Error,
            engine.socket = %socket,
            "a container engine cannot be asked; not seen: {COST}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use gk_model::listener::{Container, Netns};
    use gk_model::port::Port;

    use super::*;
    use crate::fake_engine::{FakeEngine, published};
    use crate::samples::{at, listener, snapshot};

    fn config(dir: &Path, sockets: &[&Path]) -> AgentConfig {
        let engine_sockets = sockets.iter().map(|path| path.to_path_buf()).collect();
        AgentConfig { engine_sockets, ..AgentConfig::new(dir.to_owned(), "0.1.0".into()) }
    }

    /// Engines, and what their thread says.
    struct Running {
        engines: Engines,
        events: Receiver<Event>,
    }

    impl Running {
        fn start(config: &AgentConfig) -> Running {
            let (sender, events) = mpsc::channel();
            Running { engines: Engines::start(config, sender).unwrap(), events }
        }

        fn hear(&mut self) {
            let event = self.events.recv_timeout(Duration::from_secs(20)).unwrap();
            let Event::Contained(news) = event else { unreachable!("{event:?}") };
            self.engines.learn(news);
        }

        /// Hears until the summary says so.
        fn hear_that(&mut self, words: &str) {
            while !self.engines.summary().contains(words) {
                self.hear();
            }
        }

        /// The ports that a scan without any socket shows.
        fn shown(&mut self) -> Vec<u16> {
            let mut empty = snapshot([], at(1));
            self.engines.complete(&mut empty, at(1), || unreachable!());
            empty.listeners.iter().flatten().map(|listener| listener.key.port.get()).collect()
        }
    }

    #[test]
    fn silence_closes_nothing_not_even_over_a_restart_and_an_answer_does() {
        let dir = tempfile::tempdir().unwrap();
        let engine = FakeEngine::start(&dir.path().join("docker.sock"));
        let config = config(dir.path(), &[&engine.socket]);
        engine.answer(200, &published(&[8_080, 8_081]));
        let mut running = Running::start(&config);
        running.hear_that("docker at");
        assert_eq!(running.shown(), [8_080, 8_081]);
        for (status, body) in [(500, "[]"), (200, "no JSON"), (200, r#"[{"Names":["/web"]}]"#)] {
            engine.answer(status, body);
            running.hear_that("(invalid data)");
            assert_eq!(running.shown(), [8_080, 8_081], "{status} {body}");
            running = Running::start(&config);
            assert_eq!(running.shown(), [8_080, 8_081], "before the first answer");
        }
        engine.answer(200, &published(&[8_081]));
        running = Running::start(&config);
        running.hear_that("docker at");
        assert_eq!(running.shown(), [8_081]);
        drop(engine);
        running = Running::start(&config);
        running.hear_that("(entity not found)");
        assert_eq!(running.shown(), [8_081], "an engine that was taken away has not closed anything");
        let mut off = Running::start(&self::config(dir.path(), &[]));
        assert_eq!((off.shown().len(), off.engines.summary()), (0, "container engines: not asked"));
    }

    #[test]
    fn an_engine_by_two_paths_is_asked_once_and_one_that_is_not_there_is_no_trouble() {
        let dir = tempfile::tempdir().unwrap();
        let engine = FakeEngine::start(&dir.path().join("podman.sock"));
        engine.answer(200, &published(&[8_080]));
        let (link, missing) = (dir.path().join("docker.sock"), dir.path().join("missing.sock"));
        std::os::unix::fs::symlink(&engine.socket, &link).unwrap();
        let mut running = Running::start(&config(dir.path(), &[&missing, &link, &engine.socket]));
        running.hear();
        assert_eq!(engine.asked(), 1);
        let summary = format!("container engines: docker at {}", link.display());
        assert_eq!(running.engines.summary(), summary);
        assert_eq!(running.shown(), [8_080]);
        let lines = explain(&[missing.clone(), link.clone(), engine.socket.clone()]);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("containers: 1; published ports: 1"), "{lines:?}");
        engine.answer(500, "");
        assert!(explain(&[link])[0].contains("status 500; so not seen: names of containers"));
        assert!(explain(&[missing])[0].starts_with("No container engine found"));
        assert!(explain(&[])[0].starts_with("Container engines are not asked"));
    }

    #[test]
    fn an_engine_is_asked_for_running_and_paused_containers_and_given_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let engine = FakeEngine::start(&dir.path().join("docker.sock"));
        engine.answer(200, &published(&[8_080]));
        let told = ask_engines(std::slice::from_ref(&engine.socket));
        let mut listeners = Vec::new();
        told.apply(&mut listeners, at(1));
        assert_eq!(listeners[0].key.port, Port::new(8_080).unwrap());
        let head = engine.last_request();
        assert!(head.starts_with(&format!("GET {LIST} HTTP/1.1\r\n")), "{head}");
        assert!(!head.to_ascii_lowercase().contains("authorization"), "{head}");
    }

    #[test]
    fn a_docker_that_was_stopped_is_not_started_by_a_question() {
        let docker = Path::new("/run/docker.sock");
        for (socket, is_running, expected) in [
            (docker, Some(false), true),
            (docker, Some(true), false),
            (docker, None, false),
            (Path::new("/run/podman/podman.sock"), Some(false), false),
            (Path::new("/srv/engine.sock"), Some(false), false),
        ] {
            assert_eq!(is_stopped(socket, |_| is_running), expected, "{socket:?} {is_running:?}");
        }
    }

    #[test]
    fn a_published_port_goes_with_its_socket_unless_the_engine_insists() {
        let told = |ports: &[u16]| {
            let body = published(ports).into_bytes();
            Containers::of([&parse(&gk_client::LocalAnswer { server: None, body }).unwrap()])
        };
        let news = |fresh| News { containers: told(&[80]), fresh, summary: String::new(), is_answered: true };
        let mut engines = Engines {
            news: news(told(&[80])),
            hint: 0,
            with_socket: BTreeMap::new(),
            is_news: true,
            thread: None,
        };
        let shown = |engines: &mut Engines, socket: bool| {
            let mut proxy = listener(80, 1);
            proxy.owners[0].name = "docker-proxy".into();
            let mut scan = snapshot(socket.then_some(proxy), at(1));
            engines.complete(&mut scan, at(1), || unreachable!());
            scan.listeners.unwrap().iter().map(|listener| listener.owners.len()).collect::<Vec<_>>()
        };
        // In a scan that has no news.
        let told_anew = |engines: &mut Engines| {
            let mut scan = Snapshot { listeners: None, ..snapshot([], at(1)) };
            engines.complete(&mut scan, at(1), Vec::new);
            scan.listeners.map(|listeners| listeners.iter().map(|one| one.key.port.get()).collect::<Vec<_>>())
        };
        assert_eq!(shown(&mut engines, false), [0], "by rewriting alone");
        assert_eq!(shown(&mut engines, true), [1]);
        assert!(shown(&mut engines, false).is_empty(), "the kernel says so");
        engines.learn(news(Containers::default()));
        assert_eq!(told_anew(&mut engines), None);
        assert!(shown(&mut engines, false).is_empty(), "nobody answered, or another one");
        engines.learn(news(told(&[80])));
        assert!(shown(&mut engines, false).is_empty(), "an answer of that moment");
        engines.learn(news(told(&[80])));
        assert_eq!(told_anew(&mut engines), Some(vec![80]));
        assert_eq!((shown(&mut engines, false), told_anew(&mut engines)), (vec![0], None));
        engines.learn(News { containers: told(&[80, 81]), ..news(Containers::default()) });
        assert_eq!((told_anew(&mut engines), told_anew(&mut engines)), (Some(vec![80, 81]), None));
    }

    #[test]
    fn containers_forwarders_and_namespaces_are_hints_and_other_listeners_are_not() {
        let plain = || listener(80, 1);
        let mut forwarder = listener(81, 2);
        forwarder.owners[0].name = "docker-proxy".into();
        let mut contained = listener(82, 3);
        let engine = "docker".into();
        contained.container = Some(Box::new(Container { id: "c1".into(), name: None, engine, pod: None }));
        let of = |listeners: &[&Listener], known: &[Netns]| {
            let listeners: Vec<Listener> = listeners.iter().map(|listener| (*listener).clone()).collect();
            hint(&listeners, known.iter())
        };
        let home = [Netns::Home];
        let base = of(&[&plain()], &home);
        assert_eq!(of(&[], &home), base);
        assert_ne!(of(&[&forwarder], &home), base);
        assert_ne!(of(&[&contained], &home), base);
        assert_ne!(of(&[], &[Netns::Home, Netns::Other(7)]), base);
        assert_eq!(of(&[&forwarder, &contained], &home), of(&[&contained, &plain(), &forwarder], &home));

        let (hints, hinted) = mpsc::channel();
        let none = Containers::default;
        let news = News { containers: none(), fresh: none(), summary: String::new(), is_answered: false };
        let mut engines = Engines {
            news,
            hint: 0,
            with_socket: BTreeMap::new(),
            is_news: true,
            thread: Some((hints, thread::spawn(|| {}))),
        };
        for _ in 0..3 {
            engines.complete(&mut snapshot([contained.clone()], at(1)), at(1), || unreachable!());
        }
        assert_eq!(hinted.try_iter().count(), 1, "once for each change");
    }
}
