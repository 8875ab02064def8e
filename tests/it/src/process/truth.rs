//! History against what happened: ports open, close and change hands by a random schedule, agent and server are killed
//! at random moments, and afterwards `at` is asked for random times.
//!
//! The schedule is written down by the machine's own clock, as it happens. What is closer to a change than an agent needs
//! to see it is not compared, and neither is a time of which the answer says that nobody watched; that this is the lesser
//! part, and that it was said for a reason, is.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gk_model::history::{Gap, History, IntervalKind};
use gk_model::listener::Netns;
use gk_model::port::Port;
use gk_model::query::{HistoryQuery, Limit};
use gk_model::time::Timestamp;

use super::agent::Joined;
use super::harness::{Process, wait_for};
use super::protect::in_new_namespace;

const PORTS: std::ops::Range<u16> = 21_000..21_016;

/// How long an agent may need to see a change: it looks twice a second, and a loaded machine makes it late.
const TO_SEE: Duration = Duration::from_secs(3);

/// How far the offset of a clock is mismeasured at most: as long as a contact travels.
const TO_TRAVEL: Duration = Duration::from_millis(250);

const QUESTIONS: usize = 1000;

/// How often the schedule goes on at most, when the dice had nobody watch for most of the time.
const ROUNDS: u32 = 5;

fn lasts() -> Duration {
    Duration::from_secs(if std::env::var_os("GATEKEEPER_SOAK").is_some() { 600 } else { 16 })
}

/// Numbers that look random (xorshift), the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A listening socket that this process keeps open, and the one other process that has it too.
struct Open {
    socket: OwnedFd,
    owner: Child,
}

impl Open {
    fn new(port: u16) -> Open {
        let socket = OwnedFd::from(TcpListener::bind(("127.0.0.1", port)).unwrap());
        Open { owner: own(&socket), socket }
    }
}

/// A process with the socket as its standard input, which it never reads.
fn own(socket: &OwnedFd) -> Child {
    let stdin = Stdio::from(socket.try_clone().unwrap());
    Command::new("sleep").arg("3600").stdin(stdin).stdout(Stdio::null()).spawn().unwrap()
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Who listened on a port from when on; while it changed, both is true.
struct Change {
    begun_at: Timestamp,
    done_at: Timestamp,
    owner: Option<u32>,
}

#[derive(Default)]
struct Ledger(BTreeMap<u16, Vec<Change>>);

impl Ledger {
    fn note(&mut self, port: u16, begun_at: Timestamp, owner: Option<u32>) {
        let change = Change { begun_at, done_at: Timestamp::from_clock(), owner };
        self.0.entry(port).or_default().push(change);
    }

    /// Who it was at a time; nothing while that is too close to a change to be known.
    fn owner_at(&self, port: u16, at: Timestamp) -> Option<Option<u32>> {
        let changes = self.0.get(&port).map_or(&[][..], Vec::as_slice);
        let unsure =
            |change: &Change| (change.begun_at.minus(TO_TRAVEL)..=change.done_at.plus(TO_SEE)).contains(&at);
        if changes.iter().any(unsure) {
            return None;
        }
        let before = changes.iter().rfind(|change| change.done_at < at);
        Some(before.and_then(|change| change.owner))
    }
}

/// What goes on: the sockets, and the programs that are to see them.
struct World {
    here: Joined,
    agent: Option<Process>,
    is_served: bool,
    open: BTreeMap<u16, Open>,
    ledger: Ledger,
    /// From when to when no agent ran.
    away: Vec<(Timestamp, Timestamp)>,
    gone_at: Timestamp,
}

impl World {
    /// The schedule for a while, with one kill of each kind at least, whatever the dice say.
    fn happen(&mut self, dice: &mut Dice) {
        let begun = Instant::now();
        while begun.elapsed() < lasts() {
            self.step(dice);
            // The schedule has its own pace.
            let next = Instant::now() + Duration::from_millis(200 + dice.below(600));
            wait_for("the next moment of the schedule", || (Instant::now() >= next).then_some(()));
        }
        self.serve();
        self.watch();
        self.here.server.process.kill();
        self.is_served = false;
        self.change(PORTS.start, dice);
        self.agent.take().unwrap().kill();
        self.gone_at = Timestamp::from_clock();
        self.change(PORTS.start + 1, dice);
        self.settle();
    }

    /// One step of the schedule.
    fn step(&mut self, dice: &mut Dice) {
        match dice.below(40) {
            0..=2 if self.is_served => {
                self.here.server.process.kill();
                self.is_served = false;
            }
            0..=9 if !self.is_served => self.serve(),
            // What an agent that is killed has not told yet is in a gap that began with its last contact.
            10 | 11 if self.agent.is_some() && self.is_served => {
                self.agent.take().unwrap().kill();
                self.gone_at = Timestamp::from_clock();
            }
            10..=34 if self.agent.is_none() => self.watch(),
            _ => self.change(PORTS.start + dice.below(PORTS.len() as u64) as u16, dice),
        }
    }

    fn serve(&mut self) {
        if !self.is_served {
            self.here.server.restart();
            self.is_served = true;
        }
    }

    fn watch(&mut self) {
        if self.agent.is_none() {
            self.away.push((self.gone_at, Timestamp::from_clock()));
            self.agent = Some(self.here.agent());
        }
    }

    fn change(&mut self, port: u16, dice: &mut Dice) {
        let begun_at = Timestamp::from_clock();
        let owner = match self.open.remove(&port) {
            None => {
                let open = self.open.entry(port).or_insert_with(|| Open::new(port));
                Some(open.owner.id())
            }
            Some(open) if dice.below(2) == 0 => {
                let Open { socket, owner } = open;
                let next = own(&socket);
                end(owner);
                let id = next.id();
                self.open.insert(port, Open { socket, owner: next });
                Some(id)
            }
            Some(open) => {
                end(open.owner);
                None
            }
        };
        self.ledger.note(port, begun_at, owner);
    }

    fn history(&self, at: Timestamp) -> History {
        let query = HistoryQuery {
            port: Some(format!("{}-{}", PORTS.start, PORTS.end - 1).parse().unwrap()),
            kind: Some(IntervalKind::Listened),
            instance: Some("here".parse().unwrap()),
            at: Some(at),
            limit: Some(Limit::MAX),
            ..Default::default()
        };
        self.here.server.admin().list_history(&query).unwrap()
    }

    /// Waits until server and agent are there and what is shown is what is open.
    fn settle(&mut self) {
        self.serve();
        self.watch();
        wait_for("the server to show what is open", || {
            let now = Timestamp::from_clock();
            let owners = |port| self.open.get(&port).map(|open: &Open| open.owner.id());
            let shown = shown(&self.history(now));
            PORTS.clone().all(|port| shown.get(&port).copied() == owners(port)).then_some(())
        });
    }

    /// Of all pages: each tells those of its own time.
    fn gaps(&self) -> Vec<Gap> {
        let mut query = HistoryQuery { instance: Some("here".parse().unwrap()), ..Default::default() };
        query.limit = Some(Limit::MAX);
        let mut gaps = Vec::new();
        loop {
            let page = self.here.server.admin().list_history(&query).unwrap();
            gaps.extend(page.gaps);
            match page.next {
                Some(next) => query.cursor = Some(next),
                None => return gaps,
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        std::mem::take(&mut self.open).into_values().for_each(|open| end(open.owner));
    }
}

/// By port, the process that is not this one; the agent sees the namespaces of other tests too.
fn shown(history: &History) -> BTreeMap<u16, u32> {
    let owner = |listener: &gk_model::listener::Listener| {
        let mut owners = listener.owners.iter().map(|owner| owner.pid);
        owners.find(|pid| *pid != std::process::id()).unwrap_or_default()
    };
    let listeners = history.items.iter().filter_map(|interval| interval.listener.as_deref());
    let at_home = listeners.filter(|listener| listener.key.netns == Netns::Home);
    at_home.map(|listener| (Port::get(listener.key.port), owner(listener))).collect()
}

#[test]
fn history_tells_what_happened() {
    in_new_namespace("that history tells what happened", || {
        let here = Joined::new();
        let began_at = Timestamp::from_clock();
        let seed = began_at.as_micros() as u64;
        println!("seed {seed}");
        let mut dice = Dice(seed);
        let mut world = World {
            agent: Some(here.agent()),
            here,
            is_served: true,
            open: BTreeMap::new(),
            ledger: Ledger::default(),
            away: Vec::new(),
            gone_at: began_at,
        };
        world.settle();
        let from = Timestamp::from_clock();
        let is_told = (0..ROUNDS).any(|_| {
            world.happen(&mut dice);
            compare(&world, &mut dice, from, Timestamp::from_clock())
        });
        assert!(is_told, "most of the time nobody watched");
        account_for_gaps(&world, from);
    });
}

/// Whether the greater part of the questions had an answer; each one is the truth.
fn compare(world: &World, dice: &mut Dice, from: Timestamp, until: Timestamp) -> bool {
    let span = until.since(from).as_micros() as u64;
    let (mut compared, mut close, mut unwatched) = (0, 0, 0);
    for _ in 0..QUESTIONS {
        let at = from.plus(Duration::from_micros(dice.below(span)));
        let history = world.history(at);
        if history.gaps.iter().any(|gap| gap.contains(at)) {
            unwatched += 1;
            continue;
        }
        let shown = shown(&history);
        for port in PORTS {
            match world.ledger.owner_at(port, at) {
                None => close += 1,
                Some(owner) => {
                    compared += 1;
                    assert_eq!(shown.get(&port).copied(), owner, "{port} at {at}: {history:?}");
                }
            }
        }
    }
    let watched = (QUESTIONS - unwatched) * PORTS.len();
    println!("{compared} of {watched} compared, {close} close to a change, {unwatched} questions in gaps");
    compared > watched / 2 && unwatched < QUESTIONS / 2
}

/// Nobody watched while no agent ran, and is said to have watched nearly all the rest of the time.
fn account_for_gaps(world: &World, from: Timestamp) {
    let gaps = world.gaps();
    assert!(!world.away.is_empty());
    for (gone_at, back_at) in &world.away {
        let is_told = |gap: &Gap| gap.from <= *gone_at && gap.until.is_some_and(|until| until >= *back_at);
        assert!(gaps.iter().any(is_told), "no agent from {gone_at} until {back_at}: {gaps:?}");
    }
    for gap in gaps.iter().filter(|gap| gap.from > from) {
        let until = gap.until.expect("the agent is back");
        let is_true = |(gone_at, back_at): &(Timestamp, Timestamp)| *gone_at < until && gap.from < *back_at;
        assert!(world.away.iter().any(is_true), "an agent ran: {gap:?}");
    }
}
