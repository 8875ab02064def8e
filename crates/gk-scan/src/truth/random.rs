//! Thousands of random opens and closes of every kind of socket, in several namespaces, by several processes of several
//! accounts that also fork, get killed and come back. Meanwhile nothing is shown that never was; after quiet, the scan,
//! the ledger and `ss` agree, and so do owners and accounts.
//!
//! `GATEKEEPER_SEED` repeats a run; a failure names its seed.
#![expect(unsafe_code, reason = "signals have no safe interface in std")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use gk_model::listener::{Listener, Netns};
use gk_model::port::Protocol::{self, Tcp, Udp};

use super::machine::{Mounted, NOBODY, in_new_machine};
use super::world::{Entry, Spec, address_of, at, check, ss, stop_listening, v6only_of};
use super::{start, wait_until_dead};
use crate::scanner::{Scan, Scanner};

/// How many steps there are in each run: in the one with the first seed, and in fifty, with any seeds, with GATEKEEPER_SOAK.
const STEPS: usize = 3_000;
const RUNS_OF_SOAK: u64 = 50;

/// How often the scanner looks, and after how many steps everything is quiet for a while.
const STEPS_PER_SCAN: usize = 4;
const STEPS_PER_QUIET: usize = 250;

/// More scans than a change in another namespace takes to be seen, and a turn of the slices that find descriptors that
/// were passed on or closed.
const SCANS_OF_QUIET: usize = 70;

/// At most this many sockets are open at once in each worker.
const MOST_OPEN: usize = 12;

const ACCOUNTS: [u32; 3] = [0, NOBODY, NOBODY - 1];

#[test]
fn whatever_opens_and_closes_scan_ledger_and_ss_agree_after_quiet_and_nothing_else_was_ever_shown() {
    let told = std::env::var("GATEKEEPER_SEED").ok().and_then(|seed| seed.parse().ok());
    let soaks = std::env::var_os("GATEKEEPER_SOAK").is_some();
    let seeds = match (told, soaks) {
        (None, true) => {
            let any: u64 = RandomState::new().hash_one(());
            (0..RUNS_OF_SOAK).map(|run| any.wrapping_add(run)).collect()
        }
        (told, _) => vec![told.unwrap_or(1)],
    };
    seeds.into_iter().for_each(run);
}

fn run(seed: u64) {
    println!("GATEKEEPER_SEED={seed} repeats this run");
    in_new_machine("random opens and closes", || {
        let others = ["one", "two"].map(|name| Mounted::new(name, || ()));
        let mut world = World::new(seed, &others);
        let mut scanner = Scanner::of_all_namespaces().unwrap();
        for step in 1..=STEPS {
            world.step();
            if step % STEPS_PER_SCAN == 0 {
                world.check_for_phantoms(&scanner.scan(start()).unwrap());
            }
            if step % STEPS_PER_QUIET == 0 {
                let scan = (0..SCANS_OF_QUIET).map(|_| scanner.scan(start()).unwrap()).last().unwrap();
                world.compare(&scan, step, &others);
            }
        }
        let told = format!("{} listeners came and went, {} are there", world.ever.len(), world.now().len());
        println!("{told}");
        assert!(world.ever.len() > STEPS / 10 && world.now().len() > 20, "{told}");
        world.end();
    });
}

/// The ledger.
struct World {
    random: Random,
    workers: Vec<Worker>,
    open: Vec<Open>,
    /// Everything that ever listened, by namespace, without owners.
    ever: BTreeSet<(Netns, Entry)>,
    next: u32,
}

/// A socket.
struct Open {
    number: u32,
    worker: usize,
    netns: Netns,
    /// `None` while a TCP socket does not listen, and for clients.
    entry: Option<Entry>,
    is_tcp: bool,
    /// Whether its worker still has it, and the children that do.
    held: bool,
    holders: Vec<u32>,
}

impl World {
    fn new(seed: u64, others: &[Mounted<()>]) -> World {
        let mut workers: Vec<Worker> = ACCOUNTS.map(|uid| Worker::start(Netns::Home, uid)).into();
        for other in others {
            workers.extend(ACCOUNTS.map(|uid| other.inside(|| Worker::start(other.netns, uid))));
        }
        World { random: Random(seed), workers, open: Vec::new(), ever: BTreeSet::new(), next: 0 }
    }

    fn step(&mut self) {
        let worker = self.random.below(self.workers.len());
        let mine: Vec<usize> =
            (0..self.open.len()).filter(|index| self.open[*index].worker == worker).collect();
        let held: Vec<usize> = mine.iter().copied().filter(|index| self.open[*index].held).collect();
        let one = (!held.is_empty()).then(|| held[self.random.below(held.len())]);
        match (self.random.below(100), one) {
            (0..50, _) if held.len() < MOST_OPEN => self.open_one(worker),
            (0..80, Some(one)) => self.close(one),
            (80..88, Some(one)) if self.open[one].is_tcp => self.stop_or_listen(one),
            (88..93, Some(one)) => self.fork(one),
            (93..98, _) => self.end_a_holder(&mine),
            (98, _) if self.random.below(5) == 0 => self.kill(worker),
            _ => {}
        }
    }

    fn open_one(&mut self, worker: usize) {
        let words = KINDS[self.random.below(KINDS.len())];
        // Away from the ports that the kernel gives, so that UDP servers are known to be servers; few, so that they meet.
        let port = if words.contains("any") { 0 } else { 10_000 + self.random.below(300) };
        self.next += 1;
        let netns = self.workers[worker].netns;
        let answer = self.workers[worker].ask(&format!("open {} {port} {words}", self.next));
        if answer == "no" {
            return;
        }
        let is_tcp = words.starts_with("tcp");
        let entry = (!words.contains("client")).then(|| entry(words, &answer));
        self.open.push(Open {
            number: self.next,
            worker,
            netns,
            entry: None,
            is_tcp,
            held: true,
            holders: Vec::new(),
        });
        self.listens(self.open.len() - 1, entry);
    }

    fn listens(&mut self, one: usize, entry: Option<Entry>) {
        self.ever.extend(entry.iter().map(|entry| (self.open[one].netns, entry.clone())));
        self.open[one].entry = entry;
    }

    fn close(&mut self, one: usize) {
        let open = &mut self.open[one];
        assert_eq!(self.workers[open.worker].ask(&format!("close {}", open.number)), "ok");
        open.held = false;
        self.open.retain(|open| open.held || !open.holders.is_empty());
    }

    fn stop_or_listen(&mut self, one: usize) {
        let open = &self.open[one];
        let worker = &mut self.workers[open.worker];
        if open.entry.is_some() {
            assert_eq!(worker.ask(&format!("stop {}", open.number)), "ok");
            self.open[one].entry = None;
            return;
        }
        let answer = worker.ask(&format!("listen {}", open.number));
        if answer != "no" {
            self.listens(one, Some(entry("tcp", &answer)));
        }
    }

    fn fork(&mut self, one: usize) {
        let open = &mut self.open[one];
        let pid = self.workers[open.worker].ask(&format!("fork {}", open.number)).parse().unwrap();
        open.holders.push(pid);
    }

    fn end_a_holder(&mut self, mine: &[usize]) {
        let Some(one) = mine.iter().find(|one| !self.open[**one].holders.is_empty()) else { return };
        let holder = self.open[*one].holders.pop().unwrap();
        kill(holder);
        self.open.retain(|open| open.held || !open.holders.is_empty());
    }

    /// A worker dies and another takes its place; what its children hold lives on.
    fn kill(&mut self, worker: usize) {
        kill(self.workers[worker].child.id());
        self.workers[worker].child.wait().unwrap();
        for open in self.open.iter_mut().filter(|open| open.worker == worker) {
            open.held = false;
        }
        self.open.retain(|open| open.held || !open.holders.is_empty());
        let (netns, uid) = (self.workers[worker].netns, self.workers[worker].uid);
        // From where one of its namespace is: through a neighbour's door.
        let neighbour = self.workers.iter().find(|one| one.netns == netns && one.uid != uid).unwrap();
        let door = std::fs::File::open(format!("/proc/{}/ns/net", neighbour.child.id())).unwrap();
        let inside = || {
            crate::sys::enter(&door).unwrap();
            Worker::start(netns, uid)
        };
        self.workers[worker] = std::thread::scope(|scope| scope.spawn(inside).join().unwrap());
    }

    fn is_mine(&self, listener: &Listener) -> bool {
        self.workers.iter().any(|worker| worker.netns == listener.key.netns)
    }

    fn check_for_phantoms(&self, scan: &Scan) {
        for listener in scan.listeners.iter().filter(|listener| self.is_mine(listener)) {
            let shown = Entry { owners: BTreeSet::new(), ..Entry::from(listener) };
            assert!(self.ever.contains(&(listener.key.netns, shown)), "never was: {listener:#?}");
        }
    }

    /// What listens now, with all owners, by namespace.
    fn now(&self) -> BTreeSet<(Netns, Entry)> {
        let mut merged: BTreeMap<(Netns, Entry), BTreeSet<u32>> = BTreeMap::new();
        for open in &self.open {
            let Some(entry) = &open.entry else { continue };
            let owners = merged.entry((open.netns, entry.clone())).or_default();
            owners.extend(open.held.then(|| self.workers[open.worker].child.id()));
            owners.extend(&open.holders);
        }
        merged.into_iter().map(|((netns, entry), owners)| (netns, Entry { owners, ..entry })).collect()
    }

    fn compare(&self, scan: &Scan, step: usize, others: &[Mounted<()>]) {
        let mine = || scan.listeners.iter().filter(|listener| self.is_mine(listener));
        let shown: BTreeSet<_> = mine().map(|one| (one.key.netns, Entry::from(one))).collect();
        let ledger = self.now();
        let (missing, more) = (ledger.difference(&shown), shown.difference(&ledger));
        let (missing, more): (Vec<_>, Vec<_>) = (missing.collect(), more.collect());
        assert!(
            missing.is_empty() && more.is_empty(),
            "step {step}: missing {missing:#?}, too much {more:#?}"
        );
        for listener in mine() {
            let of_owners: BTreeSet<_> =
                listener.owners.iter().map(|owner| Some(owner.account.clone())).collect();
            assert_eq!(of_owners, BTreeSet::from([listener.account.clone()]), "step {step}: {listener:#?}");
        }
        let inside = |netns| match others.iter().find(|other| other.netns == netns) {
            Some(other) => other.inside(ss),
            None => ss(),
        };
        for netns in BTreeSet::from_iter(self.workers.iter().map(|worker| worker.netns)) {
            let told = ledger.iter().filter(|(of, _)| *of == netns).map(|(_, entry)| entry.as_in_ss());
            if let Some(mut seen_by_ss) = inside(netns) {
                // `ss` cannot tell UDP clients from servers; those of this test have ports that the kernel gave.
                seen_by_ss.retain(|line| {
                    !(line.starts_with("udp") && line.rsplit(':').next().unwrap().starts_with('2'))
                });
                assert_eq!(BTreeSet::from_iter(told), seen_by_ss, "step {step}, {netns}");
            }
        }
    }

    fn end(self) {
        self.open.iter().flat_map(|open| &open.holders).for_each(|holder| kill(*holder));
        for mut worker in self.workers {
            worker.child.kill().unwrap();
            worker.child.wait().unwrap();
        }
    }
}

/// What a worker can be asked to open: protocol, address, options.
const KINDS: [&str; 16] = [
    "tcp 0.0.0.0",
    "tcp 127.0.0.1",
    "tcp 127.9.9.9",
    "tcp ::",
    "tcp :: v6only",
    "tcp ::1",
    "tcp 0.0.0.0 reuse",
    "tcp 0.0.0.0 reuse",
    "tcp 0.0.0.0 any",
    "tcp :: any unbound",
    "udp 0.0.0.0",
    "udp 127.0.0.1",
    "udp ::",
    "udp ::1 v6only",
    "udp 0.0.0.0 reuse",
    "udp 0.0.0.0 any client",
];

fn spec(words: &str, port: u16) -> Spec {
    let mut fields = words.split(' ');
    let protocol: Protocol = fields.next().unwrap().parse().unwrap();
    let address = fields.next().unwrap();
    // Lives as long as the worker, which opens a few thousand at most.
    let address = String::leak(address.to_owned());
    let has = |word| words.split(' ').any(|one| one == word);
    Spec { port, v6only: has("v6only"), reuse_port: has("reuse"), ..at(protocol, address) }
}

/// Of an answer such as `[::]:8080 true`.
fn entry(words: &str, answer: &str) -> Entry {
    let (address, v6only) = answer.split_once(' ').unwrap();
    Entry {
        protocol: if words.starts_with("tcp") { Tcp } else { Udp },
        address: address.parse().unwrap(),
        interface: String::new(),
        v6only: v6only == "true",
        owners: BTreeSet::new(),
    }
}

/// Ends a process by force, and returns when it is dead.
fn kill(pid: u32) {
    // SAFETY: a process that this test has started and that has not ended, so the number is still its own.
    check(unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) }).unwrap();
    wait_until_dead(pid);
}

/// A process that opens and closes sockets as it is told.
struct Worker {
    child: Child,
    netns: Netns,
    uid: u32,
    answers: BufReader<std::process::ChildStdout>,
}

impl Worker {
    /// In the calling thread's network namespace.
    fn start(netns: Netns, uid: u32) -> Worker {
        // A copy that any account may run.
        let program = "/run/worker";
        if !std::fs::exists(program).unwrap() {
            std::fs::copy(std::env::current_exe().unwrap(), program).unwrap();
        }
        let mut child = Command::new(program)
            .args(["--exact", "truth::random::work", "--ignored", "--nocapture"])
            .uid(uid)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut worker = Worker { child, netns, uid, answers };
        assert_eq!(worker.answer(), "ready");
        worker
    }

    fn ask(&mut self, question: &str) -> String {
        writeln!(self.child.stdin.as_mut().unwrap(), "{question}").unwrap();
        self.answer()
    }

    fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "the worker has ended");
            if let Some(answer) = line.strip_prefix('@') {
                return answer.trim_end().to_owned();
            }
        }
    }
}

#[test]
#[ignore = "is run by the test above, as a process of its own"]
fn work() {
    let mut sockets: HashMap<u32, OwnedFd> = HashMap::new();
    println!("\n@ready");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (verb, rest) = line.split_once(' ').unwrap();
        let (number, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let number: u32 = number.parse().unwrap();
        let answer = match verb {
            "open" => open(rest).map(|socket| {
                let told = told(&socket);
                sockets.insert(number, socket);
                told
            }),
            "close" => sockets.remove(&number).map(|_| "ok".to_owned()),
            "stop" => {
                stop_listening(&sockets[&number]);
                Some("ok".to_owned())
            }
            "listen" => listen_if_possible(&sockets[&number]).then(|| told(&sockets[&number])),
            "fork" => Some(spawn_sleeper(&sockets[&number]).to_string()),
            _ => unreachable!("{line}"),
        };
        println!("@{}", answer.as_deref().unwrap_or("no"));
    }
}

/// `None` when somebody is in the way.
fn open(words: &str) -> Option<OwnedFd> {
    let (port, words) = words.split_once(' ').unwrap();
    let spec = spec(words, port.parse().unwrap());
    let socket = spec.open();
    if words.contains("client") {
        let client = UdpSocket::from(socket.try_clone().unwrap());
        client.send_to(b"x", "127.0.0.1:9").unwrap();
        return Some(socket);
    }
    if !words.contains("unbound") {
        spec.try_bind(&socket).ok()?;
    }
    (spec.protocol == Udp || listen_if_possible(&socket)).then_some(socket)
}

fn listen_if_possible(socket: &OwnedFd) -> bool {
    // SAFETY: takes plain numbers.
    check(unsafe { libc::listen(socket.as_raw_fd(), 16) }).is_ok()
}

fn told(socket: &OwnedFd) -> String {
    let address: SocketAddr = address_of(socket);
    format!("{address} {}", address.is_ipv6() && v6only_of(socket))
}

/// A child that has this socket and no other, and outlives its parent.
fn spawn_sleeper(socket: &OwnedFd) -> u32 {
    let fd = socket.as_raw_fd();
    let mut command = Command::new("sleep");
    command.arg("300").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: fcntl is async-signal-safe and changes only the child's own table of descriptors.
    unsafe { command.pre_exec(move || check(libc::fcntl(fd, libc::F_SETFD, 0))) };
    command.spawn().unwrap().id()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ mixed >> 31) % bound as u64).unwrap()
    }
}
