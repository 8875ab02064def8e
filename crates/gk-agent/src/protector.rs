//! Keeping the kernel off reserved ports, done: on a thread of its own, because the server may be slow and the disk too.
//!
//! **Owns** `protection.json` and our part of the kernel's list. Every ten seconds it asks the server what is reserved,
//! reads the list, and does what `protect` decides. It asks by itself, so that a heartbeat need not carry the answer.
//!
//! **Promises** that what is ours is written down before the kernel is told, and that a server that is away changes
//! nothing: what it told last still counts, also after a restart or a reboot. At a plain stop the list stays as it is,
//! so that an upgrade opens no window. Ours are taken out when the instance leaves, and when an agent runs that does not
//! protect.
//!
//! **Refuses** to touch the list of another network namespace than the agent's own: `/proc/sys/net` shows the calling
//! thread's, and this thread never enters another.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gk_client::identity::load_identity;
use gk_client::protection::{SavedProtection, forget_protection, load_protection, save_protection};
use gk_client::{Client, ClientError};
use gk_model::facts::Facts;
use gk_model::id::InstanceId;
use gk_model::port_set::PortSet;
use gk_model::protection::{Protection, ProtectionState, ReservedPorts};
use gk_scan::ReservedList;

use crate::AgentConfig;
use crate::failure::{Ending, Failure};
use crate::protect::{Plan, judge, not_told_yet, plan, why_not};
use crate::stop::Event;

/// How often the server is asked and the list is read.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How long the server has to refuse the credential before the instance counts as left. A server that was started on
/// the wrong database is mended sooner.
const LEFT_AFTER: Duration = Duration::from_secs(600);

/// The way to the thread. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Protector {
    keeper: Arc<Mutex<Keeper>>,
    /// None where nothing is to be done.
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Protector {
    /// Starts the thread if the agent protects; otherwise takes out what an earlier run left in the list.
    pub(crate) fn start(
        config: &AgentConfig,
        client: Client,
        instance: InstanceId,
        events: Sender<Event>,
    ) -> io::Result<Protector> {
        let mut keeper = Keeper::open(config, instance);
        if !config.protect {
            let off = Protection::off(keeper.clear().map(|why| why.as_str().into()));
            // An agent that ends already wants to hear nothing.
            let _ended = events.send(Event::Protected(off));
            return Ok(Protector { keeper: Arc::new(Mutex::new(keeper)), thread: None });
        }
        let keeper = Arc::new(Mutex::new(keeper));
        let (running, end) = mpsc::channel();
        let shared = Arc::clone(&keeper);
        let work = move || serve(&shared, &client, &events, &end);
        let thread = thread::Builder::new().name("protect".to_owned()).spawn(work)?;
        Ok(Protector { keeper, thread: Some((running, thread)) })
    }

    /// Passes a panic of the thread on: an agent that protects no more would go on saying that it does.
    ///
    /// # Panics
    /// When the thread has.
    pub(crate) fn assert_alive(&self) {
        let has_ended = self.thread.as_ref().is_some_and(|(_, thread)| thread.is_finished());
        assert!(!has_ended, "the thread that keeps the kernel off reserved ports panicked");
    }

    /// A single look, for an agent that runs once; none if it does not protect.
    pub(crate) fn once(config: &AgentConfig, client: &Client, instance: InstanceId) -> Option<Protection> {
        let told = config.protect.then(|| client.get_reserved_ports(&instance.into()))?;
        Some(Keeper::open(config, instance).look(told.ok().map(|told| told.ports)))
    }

    /// The instance has left: takes ours out of the list.
    pub(crate) fn take_all_out(&self) {
        let mut keeper = lock(&self.keeper);
        keeper.is_over = true;
        keeper.clear();
    }
}

impl Drop for Protector {
    fn drop(&mut self) {
        // The thread may be waiting for the server; whatever it hears is nothing any more.
        lock(&self.keeper).is_over = true;
    }
}

/// Whoever panicked had not left anything half done that reading the list would not show.
fn lock(keeper: &Mutex<Keeper>) -> MutexGuard<'_, Keeper> {
    keeper.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(keeper: &Mutex<Keeper>, client: &Client, events: &Sender<Event>, end: &Receiver<()>) {
    // What was told last is good for now: after a boot, before other services make connections.
    let (instance, is_told) = {
        let keeper = lock(keeper);
        (keeper.instance, keeper.is_told())
    };
    if is_told && !look(keeper, None, events) {
        return;
    }
    let mut refused_since = None;
    loop {
        let told = client.get_reserved_ports(&instance.into());
        let reserved = believe(told, &mut refused_since, Instant::now(), || lock(keeper).is_forgotten());
        if !look(keeper, reserved, events) {
            return;
        }
        if end.recv_timeout(LOOK_EVERY) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// Looks, and tells when something changed; whether there is anybody left to look for.
fn look(keeper: &Mutex<Keeper>, reserved: Option<PortSet>, events: &Sender<Event>) -> bool {
    let mut keeper = lock(keeper);
    if keeper.is_over {
        return false;
    }
    let before = keeper.last.clone();
    let now = keeper.look(reserved);
    before.as_ref() == Some(&now) || events.send(Event::Protected(now)).is_ok()
}

/// What is reserved by the server's answer; none when the answer says nothing about it.
fn believe(
    told: Result<ReservedPorts, ClientError>,
    refused_since: &mut Option<Instant>,
    now: Instant,
    is_forgotten: impl Fn() -> bool,
) -> Option<PortSet> {
    let failure = match told {
        Ok(told) => {
            *refused_since = None;
            return Some(told.ports);
        }
        Err(error) => Failure::of(&error),
    };
    let has_left = match failure {
        Failure::Ended(Ending::Left) => true,
        // Whoever leaves has no credential any more, and a server cannot tell it from one that it never knew.
        Failure::Unknown => {
            let since = *refused_since.get_or_insert(now);
            is_forgotten() || now.duration_since(since) >= LEFT_AFTER
        }
        Failure::Away | Failure::Refused | Failure::Ended(Ending::Superseded) => {
            *refused_since = None;
            false
        }
    };
    has_left.then(PortSet::default)
}

/// Our part of the kernel's list.
#[derive(Debug)]
struct Keeper {
    state_dir: PathBuf,
    instance: InstanceId,
    saved: SavedProtection,
    /// What is in the file; none when there is none.
    on_disk: Option<SavedProtection>,
    /// What the last look came to.
    last: Option<Protection>,
    is_over: bool,
}

impl Keeper {
    fn open(config: &AgentConfig, instance: InstanceId) -> Keeper {
        let on_disk = load_protection(&config.state_dir).unwrap_or_else(|error| {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "what an earlier run put into the kernel's list stays there");
            None
        });
        let Facts { boot_id, netns_inode, .. } = gk_scan::facts(config.version.as_str());
        let mut saved = on_disk.clone().unwrap_or_default();
        if (saved.boot_id, saved.netns_inode) != (boot_id, netns_inode) {
            // Another list: there is nothing of ours in it.
            saved = SavedProtection { boot_id, netns_inode, ours: PortSet::default(), ..saved };
        }
        if saved.instance != Some(instance) {
            saved = SavedProtection { instance: None, reserved: PortSet::default(), ..saved };
        }
        let state_dir = config.state_dir.clone();
        Keeper { state_dir, instance, saved, on_disk, last: None, is_over: false }
    }

    /// Whether it is known what is reserved for this instance.
    fn is_told(&self) -> bool {
        self.saved.instance.is_some()
    }

    /// Whether this machine itself has forgotten that it joined, as `gkctl instance leave` makes it.
    fn is_forgotten(&self) -> bool {
        load_identity(&self.state_dir).is_ok_and(|identity| identity.is_none())
    }

    /// Brings the list to what is reserved, or was when the server last told, and answers how well that went.
    fn look(&mut self, reserved: Option<PortSet>) -> Protection {
        if let Some(reserved) = reserved {
            self.saved = SavedProtection { instance: Some(self.instance), reserved, ..self.saved.clone() };
        }
        let now = if self.is_told() { self.enforce() } else { not_told_yet() };
        let what = |protection: &Protection| (protection.state, protection.reason.clone());
        if self.last.as_ref().map(what) != Some(what(&now)) {
            match (now.state, &now.reason) {
                (ProtectionState::Enforced, None) => tracing::info!("kernel keeps off reserved ports: {now}"),
                _ => tracing::warn!("kernel keeps off reserved ports: {now}"),
            }
        }
        self.last = Some(now.clone());
        now
    }

    fn enforce(&mut self) -> Protection {
        let reserved = self.saved.reserved.clone();
        let (plan, list, failure) = match gk_scan::reserved_ports() {
            Ok(list) => {
                let plan = plan(&reserved, &self.saved.ours, &list);
                let (list, failure) = self.carry_out(&plan, list);
                (plan, list, failure)
            }
            Err(error) => (
                Plan::default(),
                PortSet::default(),
                Some(format!("the kernel's list cannot be read: {error}")),
            ),
        };
        judge(&plan, &reserved, &list, failure.as_deref(), gk_scan::ephemeral_range())
    }

    /// Changes the list and reads it back; also answers why it could not be changed, or not wholly.
    fn carry_out(&mut self, plan: &Plan, before: PortSet) -> (PortSet, Option<String>) {
        let (read_back, failure) = match self.change(plan) {
            Ok(changed) => (Some(changed.unwrap_or_else(|| before.clone())), None),
            Err(why) => (gk_scan::reserved_ports().ok(), Some(why)),
        };
        // If it cannot be read, everything that may be ours stays written down.
        if let Some(list) = &read_back {
            self.saved.ours = plan.ours_in(list);
        }
        let unkept = self.keep().err().map(|error| error.to_string());
        (read_back.unwrap_or(before), failure.or(unkept))
    }

    /// Answers the list as it was read back; none when there was nothing to change.
    fn change(&mut self, plan: &Plan) -> Result<Option<PortSet>, String> {
        if plan.is_done() {
            return Ok(None);
        }
        // Opened first: whoever may not write the list need not write down what would be ours.
        let list = ReservedList::open().map_err(|error| why_not(&error))?;
        self.saved.ours = plan.ours.clone();
        self.keep().map_err(|error| format!("what would be ours cannot be written down: {error}"))?;
        let mut read_back = None;
        if !plan.add.is_empty() {
            read_back = Some(list.add(&plan.add).map_err(|error| why_not(&error))?);
        }
        if !plan.take_out.is_empty() {
            read_back = Some(list.take_out(&plan.take_out).map_err(|error| why_not(&error))?);
        }
        Ok(read_back)
    }

    fn keep(&mut self) -> io::Result<()> {
        if self.on_disk.as_ref() != Some(&self.saved) {
            save_protection(&self.state_dir, &self.saved)?;
            self.on_disk = Some(self.saved.clone());
        }
        Ok(())
    }

    /// Takes everything of ours out, and forgets it; answers why when that fails.
    fn clear(&mut self) -> Option<String> {
        self.on_disk.as_ref()?;
        let count = self.saved.ours.len();
        self.saved.reserved = PortSet::default();
        let cleared = gk_scan::reserved_ports().map_err(|error| why_not(&error)).and_then(|list| {
            let plan = plan(&PortSet::default(), &self.saved.ours, &list);
            self.carry_out(&plan, list).1.map_or(Ok(()), Err)
        });
        if let Err(why) = cleared {
            let what = format!("{} ports stay in the kernel's list: {why}", self.saved.ours.len());
            tracing::warn!("{what}");
            return Some(what);
        }
        tracing::info!(ports.count = count, "the kernel keeps off reserved ports no more");
        self.on_disk = None;
        forget_protection(&self.state_dir).err().map(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use gk_model::problem::Code;

    use super::*;
    use crate::namespace::{As, in_new_namespace};
    use crate::samples::{at, problem};

    const LIST: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

    fn set(ranges: &str) -> PortSet {
        let mut set = PortSet::default();
        ranges.split(',').for_each(|range| set.insert_range(range.parse().unwrap()));
        set
    }

    fn some(ranges: &str) -> Option<PortSet> {
        Some(set(ranges))
    }

    fn config(state_dir: &Path) -> AgentConfig {
        AgentConfig { protect: true, ..AgentConfig::new(state_dir.to_owned(), "0.1.0".into()) }
    }

    fn instance(seconds: i64) -> InstanceId {
        InstanceId::generate(at(seconds))
    }

    fn list() -> String {
        fs::read_to_string(LIST).unwrap().trim().to_owned()
    }

    fn told(protection: &Protection) -> (ProtectionState, u32, u32) {
        (protection.state, protection.ports, protection.missing)
    }

    const ENFORCED: ProtectionState = ProtectionState::Enforced;

    #[test]
    fn entries_of_others_survive_additions_releases_and_restarts() {
        in_new_namespace("that entries of others survive protection", As::Root, || {
            let (dir, id) = (tempfile::tempdir().unwrap(), instance(1));
            fs::write(LIST, "7000,8001,9000-9010").unwrap();
            let mut first = Keeper::open(&config(dir.path()), id);
            assert_eq!(told(&first.look(some("8000-8002,9011"))), (ENFORCED, 4, 0));
            assert_eq!(list(), "7000,8000-8002,9000-9011");
            fs::write(LIST, "7000,7002,8000-8002,9000-9011").unwrap();
            drop(first);
            let mut second = Keeper::open(&config(dir.path()), id);
            assert!(second.is_told(), "what was reserved is remembered");
            assert_eq!(told(&second.look(None)), (ENFORCED, 4, 0));
            assert_eq!(told(&second.look(some("8002,8003"))), (ENFORCED, 2, 0));
            assert_eq!(list(), "7000,7002,8001-8003,9000-9010");
            drop(second);
            // One that does not protect any more.
            assert_eq!(Keeper::open(&config(dir.path()), id).clear(), None);
            assert_eq!(list(), "7000,7002,8001,9000-9010", "exactly ours are gone");
            assert_eq!(load_protection(dir.path()).unwrap(), None);
        });
    }

    #[test]
    fn what_somebody_takes_out_is_told_and_put_back() {
        in_new_namespace("that drift of the kernel's list is found", As::Root, || {
            let dir = tempfile::tempdir().unwrap();
            let mut keeper = Keeper::open(&config(dir.path()), instance(1));
            keeper.look(some("8000-8009"));
            fs::write(LIST, "\n").unwrap();
            let drifted = keeper.look(None);
            assert_eq!(told(&drifted), (ProtectionState::Drifted, 10, 0));
            assert!(drifted.to_string().contains("somebody took reserved ports out"), "{drifted}");
            assert_eq!(list(), "8000-8009");
            assert_eq!(told(&keeper.look(None)), (ENFORCED, 10, 0));
            fs::write(LIST, "8000-8004").unwrap();
            drop(keeper);
            let mut next = Keeper::open(&config(dir.path()), instance(2));
            assert!(!next.is_told(), "another identity knows nothing of its ports");
            assert_eq!(told(&next.look(None)), (ProtectionState::Partial, 0, 0));
            assert_eq!(list(), "8000-8004", "and changes nothing before it does");
            assert_eq!(told(&next.look(some("8004"))), (ENFORCED, 1, 0));
            assert_eq!(list(), "8004", "but remembers what it put there");
        });
    }

    #[test]
    fn a_kill_at_any_moment_leaves_nothing_of_ours_that_looks_like_theirs() {
        in_new_namespace("that a kill leaves no trace in the kernel's list", As::Root, || {
            let (dir, id) = (tempfile::tempdir().unwrap(), instance(1));
            let (reserved, theirs) = (set("8000-8004"), set("7000"));
            fs::write(LIST, "7000").unwrap();
            for killed in ["before the kernel is told", "while it is told", "before that is written down"] {
                let mut keeper = Keeper::open(&config(dir.path()), id);
                let plan = plan(&reserved, &keeper.saved.ours, &theirs);
                // What `change` does, up to where it is killed.
                keeper.saved.ours = plan.ours.clone();
                keeper.keep().unwrap();
                let file = ReservedList::open().unwrap();
                match killed {
                    "before the kernel is told" => {}
                    "while it is told" => drop(file.add(&set("8000-8001")).unwrap()),
                    _ => drop(file.add(&plan.add).unwrap()),
                }
                drop(keeper);
                let mut next = Keeper::open(&config(dir.path()), id);
                assert_eq!(next.look(some("8001")).ports, 1, "{killed}");
                assert_eq!(list(), "7000,8001", "{killed}");
                next.clear();
                assert_eq!(list(), "7000", "{killed}");
            }
        });
    }

    #[test]
    fn the_kernel_is_told_nothing_that_is_not_written_down() {
        in_new_namespace("that ours is written down before the kernel is told", As::Root, || {
            let dir = tempfile::tempdir().unwrap();
            let mut keeper = Keeper::open(&config(&dir.path().join("gone")), instance(1));
            let partial = keeper.look(some("8000-8001"));
            assert_eq!(told(&partial), (ProtectionState::Partial, 0, 2));
            assert!(partial.to_string().contains("cannot be written down"), "{partial}");
            assert_eq!(list(), "");
        });
    }

    #[test]
    fn a_thread_that_comes_late_changes_nothing() {
        in_new_namespace("that protection ends when it is over", As::Root, || {
            let dir = tempfile::tempdir().unwrap();
            let (events, _heard) = mpsc::channel();
            let keeper = Arc::new(Mutex::new(Keeper::open(&config(dir.path()), instance(1))));
            let protector = Protector { keeper: Arc::clone(&keeper), thread: None };
            assert!(look(&keeper, some("8000"), &events));
            drop(protector);
            assert!(!look(&keeper, some("8000-8009"), &events));
            assert_eq!(list(), "8000");
        });
    }

    #[test]
    fn another_boot_or_namespace_has_another_list() {
        in_new_namespace("that what is ours is ours in one list", As::Root, || {
            let (dir, id) = (tempfile::tempdir().unwrap(), instance(1));
            Keeper::open(&config(dir.path()), id).look(some("8000"));
            let saved = load_protection(dir.path()).unwrap().unwrap();
            assert!(saved.boot_id.is_some() && saved.netns_inode.is_some());
            let elsewhere = SavedProtection { boot_id: Some(uuid::Uuid::nil()), ..saved };
            save_protection(dir.path(), &elsewhere).unwrap();
            // As sysctl.d would have it after a boot.
            fs::write(LIST, "8000").unwrap();
            let mut keeper = Keeper::open(&config(dir.path()), id);
            assert_eq!(told(&keeper.look(some("8000-8001"))), (ENFORCED, 2, 0));
            assert_eq!(told(&keeper.look(Some(PortSet::default()))), (ENFORCED, 0, 0));
            assert_eq!(list(), "8000", "it is theirs");
        });
    }

    fn is_partial_because(expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::open(&config(dir.path()), instance(1));
        for _ in 0..2 {
            let partial = keeper.look(some("8000-8001"));
            assert_eq!(told(&partial), (ProtectionState::Partial, 0, 2));
            assert!(partial.to_string().contains(expected), "{partial}");
        }
        let saved = load_protection(dir.path()).unwrap().unwrap();
        assert_eq!((saved.ours, saved.reserved), (PortSet::default(), set("8000-8001")));
        assert_eq!(list(), "");
    }

    #[test]
    fn without_the_capability_it_is_said_which_is_missing() {
        in_new_namespace("that protection says what it lacks", As::Nobody, || {
            is_partial_because("CAP_NET_ADMIN is missing");
        });
    }

    #[test]
    fn where_the_settings_are_read_only_it_is_said_so() {
        in_new_namespace("that protection names a read-only /proc/sys", As::RootWithReadOnlySettings, || {
            is_partial_because("/proc/sys is read-only here");
        });
    }

    #[test]
    fn a_list_of_thousands_is_complete() {
        in_new_namespace("that protection of thousands of ports is complete", As::Root, || {
            let dir = tempfile::tempdir().unwrap();
            let scattered = |first: u16, count: u16| -> PortSet {
                (0..count).filter_map(|index| gk_model::port::Port::new(first + 2 * index)).collect()
            };
            let mut keeper = Keeper::open(&config(dir.path()), instance(1));
            assert_eq!(told(&keeper.look(Some(scattered(10_000, 2_000)))), (ENFORCED, 2_000, 0));
            assert_eq!(gk_scan::reserved_ports().unwrap(), scattered(10_000, 2_000));
            assert_eq!(told(&keeper.look(Some(scattered(10_000, 1_500)))), (ENFORCED, 1_500, 0));
            assert_eq!(gk_scan::reserved_ports().unwrap(), scattered(10_000, 1_500));
        });
    }

    #[test]
    fn only_a_server_that_says_so_frees_the_ports() {
        let start = Instant::now();
        let refused = |status, code| Err(ClientError::Refused(Box::new(problem(status, code))));
        let mut since = None;
        let mut ask = |told, seconds, is_forgotten| {
            believe(told, &mut since, start + Duration::from_secs(seconds), || is_forgotten)
        };
        assert_eq!(ask(Ok(ReservedPorts { ports: set("8000") }), 0, false), some("8000"));
        assert_eq!(ask(refused(503, Code::Unavailable), 1, true), None, "it is away");
        assert_eq!(ask(refused(404, Code::NoSuchRoute), 2, false), None, "it is an old one");
        assert_eq!(ask(refused(409, Code::IdentitySuperseded), 3, false), None);
        assert_eq!(ask(refused(401, Code::Unauthenticated), 10, false), None, "it may be a mistake");
        assert_eq!(ask(refused(503, Code::Unavailable), 300, false), None);
        assert_eq!(ask(refused(401, Code::Unauthenticated), 610, false), None, "it was away in between");
        assert_eq!(ask(refused(401, Code::Unauthenticated), 1_209, false), None);
        assert_eq!(ask(refused(401, Code::Unauthenticated), 1_210, false), Some(PortSet::default()));
        assert_eq!(ask(Ok(ReservedPorts { ports: set("8000") }), 1_220, false), some("8000"));
        assert_eq!(
            ask(refused(401, Code::Unauthenticated), 1_230, true),
            Some(PortSet::default()),
            "left here"
        );
        assert_eq!(ask(refused(404, Code::NoSuchInstance), 1_240, false), Some(PortSet::default()));
    }
}
