//! The loop: scan, plan, send; and the edges of it, clocks and logs.

mod talk;

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use gk_client::session::{SavedSession, begin_opening, load_session};
use gk_client::{Client, ClientError};
use gk_model::facts::Facts;
use gk_model::instance::HEARTBEAT_EVERY;
use gk_model::protection::Protection;
use gk_model::time::Timestamp;
use gk_scan::{Coverage, Scanner};

use crate::backoff::Backoff;
use crate::clock::{Clock, read_mark, read_since_boot};
use crate::engine::Engines;
use crate::failure::{Ending, Failure};
use crate::join::Home;
use crate::plan::{Action, plan};
use crate::protector::Protector;
use crate::renew::{Renewal, renew};
use crate::send::{Mailer, Outcome, renew_pins};
use crate::spool_file::SpoolFile;
use crate::state::{Habits, SyncState};
use crate::stop::{Event, StopSignal};
use crate::view::{Namespaces, Snapshot};
use crate::{AgentConfig, AgentError};

/// How long from one scan to the next. With the moment that a change waits for company, it is so
/// told within about a second.
const SCAN_EVERY: Duration = Duration::from_millis(500);

/// How long an agent that is to end tries to deliver what just changed.
const FAREWELL: Duration = Duration::from_secs(2);

/// How many contacts a single run makes at most beside those that tell what was spooled, or pieces of a report: the
/// report, and two that the server may ask for.
const MOST_CONTACTS_ONCE: usize = 3;

/// Runs until it is stopped. Calls `looked` after each look at the kernel, the sign that it lives.
///
/// # Errors
/// When it cannot start, and when the server ends it. An unreachable server is no error: the agent waits for it.
pub fn run(config: &AgentConfig, stop: &StopSignal, looked: &dyn Fn()) -> Result<(), AgentError> {
    let mut home = Home::enter(config)?;
    loop {
        let engines = Engines::start(config, stop.sender.clone())?;
        let mut agent = Agent::start(config.clone(), home, engines)?;
        let mailer = Mailer::start(agent.client.clone(), agent.home.identity.id, stop.sender.clone())?;
        let (client, instance) = (agent.client.clone(), agent.home.identity.id);
        let protector = Protector::start(config, client, instance, stop.sender.clone())?;
        tracing::info!(
            instance.id = %agent.home.identity.id,
            instance.name = %agent.home.identity.name,
            server.address = %agent.client.server(),
            "agent started; {}",
            gk_scan::privileges(),
        );
        let course = agent.work(&mailer, &protector, &stop.inbox, looked);
        if matches!(course, Err(AgentError::Ended(Ending::Left))) {
            protector.take_all_out();
        }
        match course? {
            Course::Stopped => {
                agent.take_leave(&mailer, &stop.inbox);
                tracing::info!("agent stopped");
                return Ok(());
            }
            Course::Rejoined => {
                tracing::info!("this machine has joined anew; starting over");
                home = agent.home.reload(config)?;
            }
            Course::Renewed => {
                tracing::info!("this machine has a new credential; starting over with it");
                home = agent.home;
            }
        }
    }
}

/// Why the loop ended.
enum Course {
    /// It was told to.
    Stopped,
    /// Somebody joined this machine anew under the running agent.
    Rejoined,
    /// It has another credential, which all its threads have to take up.
    Renewed,
}

/// Scans once, delivers one full report, and returns.
///
/// # Errors
/// When it cannot start, or the report is not delivered.
pub fn once(config: &AgentConfig) -> Result<(), AgentError> {
    let home = Home::enter(config)?;
    let mut agent = Agent::start(config.clone(), home, Engines::once(config))?;
    agent.look(true)?;
    agent.state.make_haste(agent.elapsed());
    let mut contacts = 0;
    while contacts < MOST_CONTACTS_ONCE {
        let action = plan(&agent.state, agent.elapsed());
        let Some(flight) = agent.compose(action) else { break };
        contacts += usize::from(matches!(action, Action::Report { .. }));
        match agent.client.contact(agent.home.identity.id, &flight.contact) {
            Ok(answer) => agent.answered(flight, &answer),
            Err(error) => return Err(undelivered(error)),
        }
    }
    if agent.renewal.take_turn(agent.elapsed()) {
        let renewed = renew(&agent.client, &config.state_dir, &agent.facts_request());
        if agent.renewed(renewed) {
            agent.client = agent.home.client(config)?;
        }
    }
    let protection = Protector::once(config, &agent.client, agent.home.identity.id);
    agent.protection = protection;
    let request = agent.facts_request();
    let told = agent.client.join(&request);
    renew_pins(&agent.client);
    agent.facts_told(request, told);
    Ok(())
}

fn undelivered(error: ClientError) -> AgentError {
    match Failure::of(&error) {
        Failure::Ended(ending) => ending.into(),
        _ => AgentError::Deliver(error),
    }
}

struct Agent {
    config: AgentConfig,
    home: Home,
    client: Client,
    scanner: Scanner,
    state: SyncState,
    saved: SavedSession,
    clock: Clock,
    spool: SpoolFile,
    occupied_at: Option<Duration>,
    facts: Option<Facts>,
    facts_at: Duration,
    protection: Option<Protection>,
    engines: Engines,
    /// What the log last said of the talk with the server, so that it says everything once.
    trouble: Option<Failure>,
    is_blind: bool,
    renewal: Renewal,
}

impl Agent {
    fn start(config: AgentConfig, home: Home, engines: Engines) -> Result<Agent, AgentError> {
        let client = home.client(&config)?;
        let renewal = Renewal::new(home.has_pending(&config));
        let scanner = Scanner::of_all_namespaces()?;
        let repeats = load_session(&config.state_dir)?.opening.is_some();
        let (session, nonce) = begin_opening(&config.state_dir)?;
        let saved = SavedSession { session, opening: Some(nonce) };
        let (least, most) = AgentConfig::REPORT_INTERVALS.into_inner();
        let interval = config.report_interval.clamp(least, most);
        let report_every = Backoff::new(nonce.as_u64_pair().1).between(interval.mul_f64(0.9), interval);
        let instance = home.identity.id;
        let habits = Habits { report_every, version: config.version.clone(), instance };
        let mut state = SyncState::new(saved, repeats, habits);
        let spool = SpoolFile::of(&config.state_dir);
        let spooled = spool.load(instance);
        let boot_id = home.facts_request(&config, None, "").facts.boot_id;
        let (clock, earlier) = Clock::start(read_mark(boot_id), spooled.as_ref().map(|spooled| spooled.mark));
        if let Some(spooled) = spooled {
            tracing::info!(
                steps.count = spooled.steps.len(),
                "going on with what an earlier run could not tell"
            );
            state.resume(spooled.on_line(earlier));
        }
        let mut agent = Agent {
            state,
            saved,
            config,
            home,
            client,
            scanner,
            clock,
            spool,
            occupied_at: None,
            facts: None,
            facts_at: Duration::ZERO,
            protection: None,
            engines,
            trouble: None,
            is_blind: false,
            renewal,
        };
        agent.write_spool(false);
        Ok(agent)
    }

    fn elapsed(&self) -> Duration {
        self.clock.elapsed(read_since_boot())
    }

    fn now(&self) -> Timestamp {
        self.clock.at(self.elapsed())
    }

    /// Does what the state wants written, and syncs it when that is due or asked for. An agent whose disk refuses goes
    /// on without a spool.
    fn write_spool(&mut self, sync: bool) {
        let (elapsed, was_refused) = (self.elapsed(), self.spool.is_refused());
        let mark = || self.clock.mark(elapsed, Timestamp::from_clock());
        match self.spool.follow(&mut self.state, mark, elapsed, sync) {
            Err(error) if !was_refused => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot spool: what is not told yet would not survive the agent");
            }
            Ok(()) if was_refused && !self.spool.is_refused() => {
                tracing::info!("the disk takes the spool again: nothing is missing");
            }
            _ => {}
        }
    }

    fn work(
        &mut self,
        mailer: &Mailer,
        protector: &Protector,
        inbox: &Receiver<Event>,
        looked: &dyn Fn(),
    ) -> Result<Course, AgentError> {
        let mut scan_at = Duration::ZERO;
        loop {
            if scan_at <= self.elapsed() {
                mailer.assert_alive();
                protector.assert_alive();
                self.engines.assert_alive();
                self.observe();
                looked();
                scan_at = self.elapsed() + SCAN_EVERY;
            }
            self.send_renewal(mailer);
            let until = self.send_next(mailer).min(scan_at);
            match inbox.recv_timeout(until.saturating_sub(self.elapsed())) {
                Ok(Event::Sent(Outcome::Renewed(result))) => {
                    if self.renewed(result) {
                        return Ok(Course::Renewed);
                    }
                }
                Ok(Event::Sent(outcome)) => self.take_back(outcome)?,
                Ok(Event::Protected(protection)) => self.protected(protection),
                Ok(Event::Contained(news)) => {
                    self.contained(news);
                    // A scan takes it in.
                    scan_at = Duration::ZERO;
                }
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(Course::Stopped),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.trouble == Some(Failure::Unknown) && self.home.is_outdated(&self.config) {
                return Ok(Course::Rejoined);
            }
        }
    }

    /// Tells what just changed, if it can be told at once. Whatever is left is in the next run's opening report.
    fn take_leave(&mut self, mailer: &Mailer, inbox: &Receiver<Event>) {
        self.observe();
        self.state.make_haste(self.elapsed());
        self.write_spool(false);
        let end = self.elapsed() + FAREWELL;
        loop {
            let action = plan(&self.state, self.elapsed());
            // What cannot be told as a change, as in a namespace that is new, takes a report.
            let tells = match action {
                Action::Again | Action::Delta { .. } | Action::Piece => true,
                Action::Report { opening } => !opening && !self.state.journal.is_empty(),
                Action::Nothing { .. } | Action::Heartbeat => false,
            };
            if tells {
                self.send(action, mailer);
            }
            if !self.state.is_sending {
                return;
            }
            match inbox.recv_timeout(end.saturating_sub(self.elapsed())) {
                Ok(Event::Sent(outcome)) => {
                    if let Err(error) = self.take_back(outcome) {
                        tracing::warn!(error = &error as &dyn std::error::Error, "the last contact failed");
                        return;
                    }
                }
                Ok(Event::Protected(_) | Event::Contained(_) | Event::Stop) => {}
                Err(_) => return,
            }
        }
    }

    /// Scans. An agent that sees nothing goes on and says so: its next report covers nothing.
    fn observe(&mut self) {
        let is_due = self.occupied_at.is_none_or(|at| at + HEARTBEAT_EVERY <= self.elapsed());
        match self.look(is_due) {
            Ok(()) => {
                if std::mem::take(&mut self.is_blind) {
                    tracing::info!("listeners are seen again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_blind, true) {
                    tracing::error!(error = &error as &dyn std::error::Error, "listeners are not seen");
                }
                let elapsed = self.elapsed();
                self.state.observe(Snapshot::blind(), self.clock.at(elapsed), elapsed);
                self.write_spool(false);
            }
        }
    }

    /// One scan, taken in. Sockets that are bound and do not listen cost much to find, so they are looked for seldom.
    fn look(&mut self, for_occupied: bool) -> Result<(), gk_scan::ScanError> {
        let now = self.now();
        let has_changed = self.scanner.look(now)?;
        let listeners = has_changed.then(|| self.scanner.listeners());
        let occupied = for_occupied.then(|| self.scanner.occupied());
        let elapsed = self.clock.elapsed(read_since_boot());
        if for_occupied {
            self.occupied_at = Some(elapsed);
        }
        let Coverage { parts, namespaces, knows_all_namespaces } = self.scanner.coverage().clone();
        let mut snapshot = Snapshot {
            covered: parts,
            listeners,
            namespaces: Some(Namespaces {
                known: namespaces.keys().copied().collect(),
                are_all: knows_all_namespaces,
            }),
            seen_at: namespaces,
            occupied,
        };
        self.engines.complete(&mut snapshot, now, || self.scanner.listeners());
        self.state.observe(snapshot, self.clock.at(elapsed), elapsed);
        self.write_spool(false);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Instant;

    use gk_client::identity::{generate_secret, load_credential, load_identity};
    use gk_client::join::is_pending;
    use gk_model::contact::Session;
    use gk_model::listener::ListenerKey;
    use gk_model::paths;
    use gk_model::port_set::PortSet;
    use gk_model::protection::ProtectionState;
    use gk_model::secret::{Secret, SecretKind};

    use super::*;
    use crate::fake_engine::{FakeEngine, published};
    use crate::fake_server::{FakeServer, Known};
    use crate::namespace::{As, in_new_namespace};
    use crate::spool::Spooled;
    use crate::{JoinBy, Stopper, stop_channel};

    fn config(server: &FakeServer, state_dir: &Path) -> AgentConfig {
        let token = generate_secret(SecretKind::Join);
        AgentConfig {
            server: Some(server.address.clone()),
            join: Some(JoinBy { token, name: None }),
            ..AgentConfig::new(state_dir.to_owned(), "0.1.0".into())
        }
    }

    /// An agent on a thread of its own.
    struct Running {
        stopper: Stopper,
        end: Receiver<Result<(), AgentError>>,
    }

    impl Running {
        fn start(config: AgentConfig) -> Running {
            let ((stopper, stop), (sender, end)) = (stop_channel(), mpsc::channel());
            thread::spawn(move || sender.send(run(&config, &stop, &|| {})));
            Running { stopper, end }
        }

        fn end(&self) -> Result<(), AgentError> {
            self.end.recv_timeout(Duration::from_secs(20)).expect("the agent ends, and not by a panic")
        }
    }

    fn here() -> (TcpListener, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    fn knows(known: &Known, port: u16) -> bool {
        known.model.set.keys().any(|key: &ListenerKey| key.port.get() == port)
    }

    #[test]
    fn an_agent_joins_tells_what_comes_and_goes_and_says_goodbye() {
        let (server, dir) = (FakeServer::start(), tempfile::tempdir().unwrap());
        let (first, first_port) = here();
        let agent = Running::start(config(&server, dir.path()));
        server.wait(|known| knows(known, first_port).then_some(()));
        assert_eq!(load_identity(dir.path()).unwrap().unwrap().name.as_str(), "web-1");
        let (_second, second_port) = here();
        server.wait(|known| knows(known, second_port).then_some(()));
        drop(first);
        server.wait(|known| (!knows(known, first_port)).then_some(()));
        let told = server.wait(|known| known.joins.get(1).cloned());
        assert_eq!(told.credential_hash, server.wait(|known| known.joins.first().cloned()).credential_hash);
        let refused = once(&config(&server, dir.path())).unwrap_err();
        assert!(refused.to_string().contains(dir.path().to_str().unwrap()), "{refused}");
        let (_third, third_port) = here();
        agent.stopper.stop();
        agent.end().unwrap();
        assert!(server.wait(|known| Some(knows(known, third_port))));
        assert_eq!(load_session(dir.path()).unwrap(), SavedSession { session: Session(1), opening: None });
    }

    #[test]
    fn an_agent_that_may_not_protect_says_so_and_does_everything_else() {
        in_new_namespace("that an agent that may not protect works", As::Nobody, || {
            let (server, dir) = (FakeServer::start(), tempfile::tempdir().unwrap());
            let reserved: PortSet = serde_json::from_str(r#"["8000-8001"]"#).unwrap();
            server.change(|known| known.reserved = Some(reserved));
            let agent = Running::start(AgentConfig { protect: true, ..config(&server, dir.path()) });
            let (_listener, port) = here();
            server.wait(|known| knows(known, port).then_some(()));
            let told = server.wait(|known| known.joins.iter().find_map(|join| join.facts.protection.clone()));
            let expected =
                "partial, 0 of 2 ports: the kernel's list may not be written: CAP_NET_ADMIN is missing";
            assert_eq!(told.to_string(), expected);
            agent.stopper.stop();
            agent.end().unwrap();
        });
    }

    #[test]
    fn the_end_of_an_instance_is_the_end_of_its_protection_and_a_stop_is_not() {
        in_new_namespace("that ports are freed when an instance leaves", As::Root, || {
            let (server, dir) = (FakeServer::start(), tempfile::tempdir().unwrap());
            let reserved: PortSet = serde_json::from_str(r#"["8000-8001"]"#).unwrap();
            server.change(|known| known.reserved = Some(reserved.clone()));
            let protecting = AgentConfig { protect: true, ..config(&server, dir.path()) };
            let is_told = |known: &mut Known, state| {
                let mut told = known.joins.iter().filter_map(|join| join.facts.protection.as_ref());
                told.any(|told: &Protection| told.state == state).then_some(())
            };
            let agent = Running::start(protecting.clone());
            server.wait(|known| is_told(known, ProtectionState::Enforced));
            agent.stopper.stop();
            agent.end().unwrap();
            assert_eq!(gk_scan::reserved_ports().unwrap(), reserved, "an upgrade opens no window");

            let agent = Running::start(AgentConfig { protect: false, ..protecting.clone() });
            server.wait(|known| is_told(known, ProtectionState::Off));
            assert!(gk_scan::reserved_ports().unwrap().is_empty());
            agent.stopper.stop();
            agent.end().unwrap();

            once(&protecting).unwrap();
            assert_eq!(gk_scan::reserved_ports().unwrap(), reserved);
            server.change(|known| known.has_left = true);
            let ended = Running::start(protecting).end().unwrap_err();
            assert!(matches!(ended, AgentError::Ended(Ending::Left)), "{ended:?}");
            assert!(gk_scan::reserved_ports().unwrap().is_empty());
        });
    }

    /// What there is in the state directory of the machine's credentials.
    fn credentials(state_dir: &Path) -> (Secret, bool) {
        let credential = load_credential(state_dir).unwrap().unwrap();
        (credential.clone(), is_pending(state_dir, &credential).unwrap().is_some())
    }

    #[test]
    fn an_old_credential_is_replaced_even_if_the_answer_is_lost() {
        for loses_an_answer in [false, true] {
            let (server, dir) = (FakeServer::start(), tempfile::tempdir().unwrap());
            once(&config(&server, dir.path())).unwrap();
            let (old, _) = credentials(dir.path());
            server.change(|known| {
                known.lets_in = Some(vec![old.hash()]);
                (known.wants_another, known.loses_an_answer) = (true, loses_an_answer);
            });
            let agent = Running::start(config(&server, dir.path()));
            // Only the new one counts from the moment that the server knows it.
            server.wait(|known| {
                let valid = known.lets_in.as_mut().unwrap();
                let knows_another = valid.iter().any(|hash| *hash != old.hash());
                valid.retain(|hash| !knows_another || *hash != old.hash());
                knows_another.then_some(())
            });
            let (_listener, port) = here();
            server.wait(|known| knows(known, port).then_some(()));
            let (new, is_pending) = credentials(dir.path());
            assert!(new != old && !is_pending, "loses an answer: {loses_an_answer}");
            agent.stopper.stop();
            agent.end().unwrap();
        }
    }

    #[test]
    fn a_new_credential_that_was_not_kept_any_more_is_found_again() {
        let (server, dir) = (FakeServer::start(), tempfile::tempdir().unwrap());
        once(&config(&server, dir.path())).unwrap();
        // Killed after the server took it: it is pending, and the old one may have ended meanwhile.
        let new = generate_secret(SecretKind::Instance);
        let pending = format!("{}\n{}\n", new.reveal(), server.address);
        std::fs::write(dir.path().join(paths::PENDING_CREDENTIAL_FILE), pending).unwrap();
        server.change(|known| known.lets_in = Some(vec![new.hash()]));
        let agent = Running::start(config(&server, dir.path()));
        let (_listener, port) = here();
        server.wait(|known| knows(known, port).then_some(()));
        assert_eq!(credentials(dir.path()), (new, false));
        agent.stopper.stop();
        agent.end().unwrap();
    }

    #[test]
    fn all_contacts_of_an_agent_go_over_one_connection() {
        let (server, dir) = (FakeServer::start(), tempfile::tempdir().unwrap());
        once(&config(&server, dir.path())).unwrap();
        let before = server.wait(|known| Some((known.contacts, known.connections)));
        let agent = Running::start(config(&server, dir.path()));
        server.wait(|known| (known.contacts > before.0).then_some(()));
        for _ in 0..4 {
            let (_listener, port) = here();
            server.wait(|known| knows(known, port).then_some(()));
        }
        agent.stopper.stop();
        agent.end().unwrap();
        let (contacts, connections) = server.wait(|known| Some((known.contacts, known.connections)));
        assert!(contacts >= before.0 + 5, "{contacts}");
        assert_eq!(connections, before.1 + 1);
        assert!(!dir.path().join("spool").exists(), "and an agent whose server answers writes no spool");
    }

    /// An agent that has told its server something, and gets no answer.
    fn start_at_hung_server(server: &FakeServer, state_dir: &Path) -> Running {
        once(&config(server, state_dir)).unwrap();
        server.wait(|known| {
            known.hangs = true;
            Some(())
        });
        let agent = Running::start(config(server, state_dir));
        server.wait(|known| (known.contacts == 2).then_some(()));
        agent
    }

    #[test]
    fn a_published_port_is_told_stays_while_the_engine_is_silent_and_goes_when_it_says_so() {
        let (server, dir) = (FakeServer::start(), tempfile::tempdir().unwrap());
        let engine = FakeEngine::start(&dir.path().join("docker.sock"));
        engine.answer(200, &published(&[61, 62]));
        let asks = || AgentConfig {
            engine_sockets: vec![engine.socket.clone()],
            ..config(&server, &dir.path().join("state"))
        };
        once(&asks()).unwrap();
        server.wait(|known| (knows(known, 61) && knows(known, 62)).then_some(()));
        engine.answer(500, "");
        let mut agent = Running::start(asks());
        let (_listener, port) = here();
        server.wait(|known| knows(known, port).then_some(()));
        engine.wait_asked();
        assert!(server.wait(|known| Some(knows(known, 61) && knows(known, 62))));
        agent.stopper.stop();
        agent.end().unwrap();
        engine.answer(200, &published(&[62]));
        agent = Running::start(asks());
        server.wait(|known| (!knows(known, 61)).then_some(()));
        assert!(server.wait(|known| Some(knows(known, 62))));
        let wanted = |known: &mut Known| known.joins.iter().rev().find_map(|join| join.facts.sight.clone());
        let said = "container engines: docker at";
        server.wait(|known| wanted(known).filter(|sight| sight.as_str().contains(said)));
        agent.stopper.stop();
        agent.end().unwrap();
    }

    #[test]
    fn an_engine_that_hangs_delays_neither_scans_nor_contacts() {
        let (server, dir) = (FakeServer::start(), tempfile::tempdir().unwrap());
        // Asked one after the other, in ten seconds.
        let sockets: Vec<_> = (0..5).map(|number| dir.path().join(format!("{number}.sock"))).collect();
        let bind = |socket| std::os::unix::net::UnixListener::bind(socket).unwrap();
        let _hang: Vec<_> = sockets.iter().map(bind).collect();
        let state = dir.path().join("state");
        let agent = Running::start(AgentConfig { engine_sockets: sockets, ..config(&server, &state) });
        let begun = Instant::now();
        let (_listener, port) = here();
        server.wait(|known| knows(known, port).then_some(()));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        agent.stopper.stop();
        agent.end().unwrap();
    }

    #[test]
    fn what_a_hung_server_was_not_told_is_spooled_for_its_owner_only() {
        let (server, dir) = (FakeServer::start(), tempfile::tempdir().unwrap());
        let agent = start_at_hung_server(&server, dir.path());
        let begun = Instant::now();
        let spool = SpoolFile::of(dir.path());
        while spool.read().unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(20), "waited in vain");
            thread::park_timeout(Duration::from_millis(20));
        }
        let mode = std::fs::metadata(dir.path().join("spool")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        agent.stopper.stop();
        agent.end().unwrap();
        assert!(
            Spooled::read(&spool.read().unwrap().unwrap()).is_some_and(|spooled| spooled.torn_bytes == 0)
        );
    }

    #[test]
    fn a_single_run_reports_in_a_session_of_its_own() {
        let (server, dir) = (FakeServer::start(), tempfile::tempdir().unwrap());
        let (_listener, port) = here();
        for session in 1..=2 {
            once(&config(&server, dir.path())).unwrap();
            let saved = load_session(dir.path()).unwrap();
            assert_eq!(saved, SavedSession { session: Session(session), opening: None });
        }
        server.wait(|known| (knows(known, port) && known.contacts == 2).then_some(()));
    }

    #[test]
    fn a_hung_server_stops_neither_observation_nor_the_end() {
        let (server, dir) = (FakeServer::start(), tempfile::tempdir().unwrap());
        let agent = start_at_hung_server(&server, dir.path());
        let asked = Instant::now();
        agent.stopper.stop();
        agent.end().unwrap();
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
        assert!(load_session(dir.path()).unwrap().opening.is_some(), "the next run repeats the nonce");
    }

    #[test]
    fn an_agent_that_was_superseded_ends_by_itself() {
        let (server, dir) = (FakeServer::start(), tempfile::tempdir().unwrap());
        once(&config(&server, dir.path())).unwrap();
        server.wait(|known| {
            known.model.session = Session(9);
            Some(())
        });
        let agent = Running::start(config(&server, dir.path()));
        let ended = agent.end().unwrap_err();
        assert!(matches!(ended, AgentError::Ended(Ending::Superseded)), "{ended:?}");
    }

    #[test]
    fn a_machine_that_has_not_joined_is_told_how() {
        let dir = tempfile::tempdir().unwrap();
        let lonely = AgentConfig::new(dir.path().to_owned(), "0.1.0".into());
        let error = once(&lonely).unwrap_err();
        assert!(error.to_string().contains("`gkctl instance join`"), "{error}");
        let token = generate_secret(SecretKind::Join);
        let nowhere = AgentConfig { join: Some(JoinBy { token, name: None }), ..lonely };
        assert!(matches!(once(&nowhere), Err(AgentError::NoServer)));
    }
}
