//! The agent against a model of the server, over a network that loses what it likes.

use std::collections::BTreeSet;
use std::time::Duration;

use gk_client::session::SavedSession;
use gk_model::contact::{Part, Session};
use gk_model::id::InstanceId;
use gk_model::listener::Listener;
use gk_model::time::Timestamp;
use proptest::prelude::*;
use uuid::Uuid;

use crate::clock::Mark;
use crate::failure::{Ending, Failure, Verdict};
use crate::model_server::{Entry, Server};
use crate::plan::plan;
use crate::samples::{at, habits, listener, parts, snapshot};
use crate::spool::{Spooled, Write};
use crate::state::{Habits, SyncState};
use crate::view::Snapshot;

/// What becomes of one contact.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    Arrives,
    RequestLost,
    AnswerLost,
    Refused,
}

#[derive(Clone, Debug)]
enum Turn {
    /// The machine has these listeners (bits of a mask; the second one tells who holds them), and the scan covers these
    /// parts.
    Scan { open: u8, owners: u8, covered: u8, fate: Fate },
    /// The server is backed up.
    BackUp,
    /// The server is restored from that backup.
    Restore,
    /// The agent is started anew.
    Restart,
}

pub(crate) const PORTS: [u16; 6] = [80, 81, 82, 8_080, 8_081, 8_082];
const POLL: Duration = Duration::from_millis(500);
/// A change that comes alone is due by then.
const TALK_AFTER: Duration = Duration::from_millis(300);

pub(crate) struct World {
    pub(crate) server: Server,
    backup: Server,
    pub(crate) agent: SyncState,
    pub(crate) elapsed: Duration,
    pub(crate) scanned_at: Timestamp,
    /// What the spool holds, if there is one, and how much of it was written last.
    pub(crate) disk: Option<Vec<u8>>,
    pub(crate) last_write: usize,
    instance: InstanceId,
    pub(crate) contacts: usize,
    nonces: u128,
    /// What the agent saw happen, for the ledger to be compared with.
    pub(crate) history: Vec<Entry>,
    pub(crate) open: BTreeSet<u16>,
}

impl World {
    pub(crate) fn new() -> World {
        let instance = InstanceId::generate(at(0));
        let mut world = World {
            server: Server::default(),
            backup: Server::default(),
            agent: agent(
                SavedSession { session: Session(0), opening: Some(Uuid::from_u128(1)) },
                false,
                instance,
            ),
            elapsed: Duration::ZERO,
            scanned_at: at(0),
            disk: None,
            last_write: 0,
            instance,
            contacts: 0,
            nonces: 1,
            history: Vec::new(),
            open: BTreeSet::new(),
        };
        world.backup = world.server.clone();
        world
    }

    fn now(&self) -> Timestamp {
        at(1_000).plus(self.elapsed)
    }

    fn turn(&mut self, turn: &Turn) {
        match turn {
            Turn::Scan { open, owners, covered, fate } => self.scan(*open, *owners, *covered, *fate),
            Turn::BackUp => self.backup = self.server.clone(),
            Turn::Restore => {
                let contents = self.server.contents.clone();
                self.server = self.backup.clone();
                self.server.contents = contents;
            }
            Turn::Restart => self.restart(),
        }
    }

    pub(crate) fn restart(&mut self) {
        let SavedSession { session, opening } = self.agent.saved();
        self.nonces += 1;
        let nonce = opening.unwrap_or(Uuid::from_u128(self.nonces));
        let saved = SavedSession { session, opening: Some(nonce) };
        self.agent = agent(saved, opening.is_some(), self.instance);
        if let Some(spooled) = self.disk.as_deref().and_then(Spooled::read) {
            self.agent.resume(spooled);
        }
        self.write();
    }

    /// What the agent's edge does after everything that happens.
    fn write(&mut self) {
        let mark = Mark { boot_id: None, at: at(0), wall: at(0), since_boot_micros: 0 };
        for write in self.agent.take_writes(|| mark) {
            match write {
                Write::Append(bytes) => {
                    self.last_write = bytes.len();
                    self.disk.as_mut().expect("a base comes first").extend(bytes);
                }
                Write::Replace(bytes) => (self.disk, self.last_write) = (Some(bytes), 0),
                Write::Remove => (self.disk, self.last_write) = (None, 0),
            }
        }
    }

    /// The agent is killed while it wrote these last bytes, and started anew.
    pub(crate) fn kill_within_a_write(&mut self, lost_bytes: usize) {
        if let Some(disk) = &mut self.disk {
            disk.truncate(disk.len() - lost_bytes.min(self.last_write));
        }
        self.restart();
    }

    pub(crate) fn scan(&mut self, open: u8, owners: u8, covered: u8, fate: Fate) {
        self.elapsed += POLL - TALK_AFTER;
        let now = self.now();
        self.scanned_at = now;
        let is_set = |mask: u8, bit: usize| mask >> bit & 1 == 1;
        let held = (0..PORTS.len()).filter(|bit| is_set(open, *bit));
        let listeners: Vec<Listener> =
            held.map(|bit| listener(PORTS[bit], 1 + u32::from(is_set(owners, bit)))).collect();
        self.note(listeners.iter().map(|listener| listener.key.port.get()).collect(), now);
        let scan = snapshot(listeners, now);
        let covered: Vec<Part> = (0..2).filter(|bit| is_set(covered, *bit)).map(|bit| parts()[bit]).collect();
        self.agent.observe(Snapshot { covered, ..scan }, now, self.elapsed);
        self.write();
        self.elapsed += TALK_AFTER;
        self.talk(fate);
        self.write();
    }

    fn note(&mut self, open: BTreeSet<u16>, now: Timestamp) {
        self.history.extend(self.open.difference(&open).map(|port| (*port, false, now)));
        self.history.extend(open.difference(&self.open).map(|port| (*port, true, now)));
        self.open = open;
    }

    fn talk(&mut self, fate: Fate) {
        let (now, action) = (self.now(), plan(&self.agent, self.elapsed));
        let Some(flight) = self.agent.compose(action, now, self.elapsed) else { return };
        self.write();
        self.contacts += 1;
        self.server.witness(&flight.contact);
        let result = match fate {
            Fate::Arrives => self.server.contact(&flight.contact, now),
            Fate::RequestLost => Err(Failure::Away),
            Fate::AnswerLost => self.server.contact(&flight.contact, now).and(Err(Failure::Away)),
            Fate::Refused => Err(Failure::Refused),
        };
        match result {
            Ok(answer) => self.agent.answered(flight, &answer, self.elapsed),
            Err(failure) => {
                let verdict = self.agent.failed(flight, failure, self.elapsed);
                assert_eq!(verdict, Verdict::TryAgain, "nobody else uses this identity");
            }
        }
    }

    /// Nothing changes and nothing is lost for ten minutes; how many contacts the last five needed.
    pub(crate) fn quiet(&mut self, open: u8) -> usize {
        let turns = |world: &mut World| {
            for _ in 0..600 {
                world.scan(open, 0, 3, Fate::Arrives);
            }
        };
        turns(self);
        let before = self.contacts;
        turns(self);
        self.contacts - before
    }

    /// Nothing changes and nothing is lost until all is told.
    pub(crate) fn settle(&mut self, open: u8) {
        (0..200).for_each(|_| self.scan(open, 0, 3, Fate::Arrives));
        assert_eq!(self.disk, None, "the spool ends when all is told");
    }

    pub(crate) fn assert_equal_views(&self) {
        let seen: Vec<Listener> = self.agent.view.listeners().collect();
        assert_eq!(self.server.set.len(), seen.len());
        for listener in seen {
            assert!(self.server.set[&listener.key].same_but_times(&listener), "{listener:?}");
        }
    }
}

fn agent(saved: SavedSession, repeats: bool, instance: InstanceId) -> SyncState {
    SyncState::new(saved, repeats, Habits { instance, ..habits(Duration::from_secs(300)) })
}

fn fates(with_refusals: bool) -> impl Strategy<Value = Fate> {
    prop_oneof![
        3 => Just(Fate::Arrives),
        2 => Just(Fate::RequestLost),
        2 => Just(Fate::AnswerLost),
        u32::from(with_refusals) => Just(Fate::Refused),
    ]
}

fn any_turn() -> impl Strategy<Value = Turn> {
    let covered = prop_oneof![4 => Just(3_u8), 1 => 0..4_u8];
    let scan = (0..64_u8, 0..64_u8, covered, fates(true))
        .prop_map(|(open, owners, covered, fate)| Turn::Scan { open, owners, covered, fate });
    // A machine that rests lets the back-off pass, so that contacts happen at all.
    prop_oneof![12 => scan, 1 => Just(Turn::BackUp), 1 => Just(Turn::Restore), 1 => Just(Turn::Restart)]
}

/// How long a run of equal scans is: long ones let back-offs pass.
fn spells() -> impl Strategy<Value = Vec<(Turn, usize)>> {
    prop::collection::vec((any_turn(), prop_oneof![Just(1_usize), Just(5), Just(80)]), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever is lost, refused, restored or restarted: both sides agree in the end, and fall silent.
    #[test]
    fn views_agree_in_the_end(spells in spells(), last in 0..64_u8) {
        let mut world = World::new();
        for (turn, times) in &spells {
            let times = if matches!(turn, Turn::Scan { .. }) { *times } else { 1 };
            (0..times).for_each(|_| world.turn(turn));
        }
        let contacts = world.quiet(last);
        world.assert_equal_views();
        prop_assert!(contacts <= 13, "{contacts} contacts in five quiet minutes");
        for port in PORTS {
            let entries = world.server.ledger.iter().filter(|entry| entry.0 == port);
            let alternate = entries.map(|entry| entry.1).collect::<Vec<bool>>();
            prop_assert!(alternate.windows(2).all(|pair| pair[0] != pair[1]));
        }
    }

    /// A network that loses requests and answers loses no history: the server's ledger is what the agent saw, in order,
    /// each entry once, with its time.
    #[test]
    fn nothing_is_lost_or_told_twice(
        scans in prop::collection::vec((0..64_u8, 0..64_u8, fates(false), prop_oneof![Just(1_usize), Just(80)]), 1..40),
        last in 0..64_u8,
    ) {
        let mut world = World::new();
        for (open, owners, fate, times) in scans {
            (0..times).for_each(|_| world.scan(open, owners, 3, fate));
        }
        world.quiet(last);
        world.assert_equal_views();
        let of = |entries: &[Entry], port: u16| {
            entries.iter().filter(|entry| entry.0 == port).copied().collect::<Vec<Entry>>()
        };
        for port in PORTS {
            prop_assert_eq!(of(&world.server.ledger, port), of(&world.history, port));
        }
    }
}

/// In contact, with ports 80 and 81 open.
pub(crate) fn in_contact() -> World {
    let mut world = World::new();
    world.scan(3, 0, 3, Fate::Arrives);
    world
}

/// Scans until the back-off is over and one more contact was made.
fn next_contact(world: &mut World, open: u8, fate: Fate) {
    let before = world.contacts;
    while world.contacts == before {
        world.scan(open, 0, 3, fate);
    }
}

#[test]
fn a_lost_request_and_a_lost_answer_make_no_difference() {
    for fate in [Fate::RequestLost, Fate::AnswerLost] {
        let mut world = in_contact();
        world.scan(7, 0, 3, fate);
        let opened_at = world.scanned_at;
        world.scan(3, 0, 3, fate);
        let closed_at = world.scanned_at;
        next_contact(&mut world, 3, Fate::Arrives);
        assert_eq!(world.server.acknowledged, 2, "{fate:?}: the same number again");
        world.scan(3, 0, 3, Fate::Arrives);
        let ledger = &world.server.ledger[world.server.ledger.len() - 2..];
        assert_eq!(ledger, [(82, true, opened_at), (82, false, closed_at)], "{fate:?}");
    }
}

#[test]
fn a_server_that_only_restarted_notices_nothing() {
    let mut world = in_contact();
    world.turn(&Turn::BackUp);
    world.turn(&Turn::Restore);
    world.scan(7, 0, 3, Fate::Arrives);
    assert_eq!((world.server.acknowledged, world.contacts), (2, 2));
}

#[test]
fn a_server_restored_to_an_older_state_gets_a_report_with_a_higher_number() {
    let mut world = in_contact();
    world.turn(&Turn::BackUp);
    world.scan(7, 0, 3, Fate::Arrives);
    world.scan(15, 0, 3, Fate::Arrives);
    assert_eq!(world.server.acknowledged, 3);
    world.turn(&Turn::Restore);
    world.scan(13, 0, 3, Fate::Arrives);
    let closed_at = world.scanned_at;
    assert_eq!(world.server.acknowledged, 1, "the delta names a base it does not have");
    world.scan(13, 0, 3, Fate::Arrives);
    assert_eq!(world.server.acknowledged, 5);
    assert!(world.server.ledger.contains(&(81, false, closed_at)), "{:?}", world.server.ledger);
    world.assert_equal_views();
}

#[test]
fn a_server_with_a_higher_number_gets_a_report_above_it() {
    let mut world = in_contact();
    world.server.acknowledged = 40;
    world.scan(7, 0, 3, Fate::Arrives);
    world.scan(7, 0, 3, Fate::Arrives);
    assert_eq!(world.server.acknowledged, 41);
    world.assert_equal_views();
}

#[test]
fn an_opening_of_an_earlier_run_is_followed_by_history_and_a_report() {
    let mut world = World::new();
    world.scan(1, 0, 3, Fate::AnswerLost);
    world.turn(&Turn::Restart);
    world.scan(2, 0, 3, Fate::Arrives);
    let closed_at = world.scanned_at;
    assert_eq!((world.server.session, world.server.acknowledged), (Session(1), 1));
    for acknowledged in 2..=4 {
        world.scan(2, 0, 3, Fate::Arrives);
        assert_eq!(world.server.acknowledged, acknowledged);
    }
    world.assert_equal_views();
    assert_eq!(world.server.ledger[1..], [(80, false, closed_at), (81, true, closed_at)]);
}

#[test]
fn a_refused_contact_is_told_anew_with_its_times() {
    let mut world = in_contact();
    world.scan(1, 0, 3, Fate::Refused);
    let closed_at = world.scanned_at;
    next_contact(&mut world, 1, Fate::Arrives);
    assert_eq!(world.server.acknowledged, 3);
    assert_eq!(world.server.ledger.last(), Some(&(81, false, closed_at)));
}

#[test]
fn an_agent_whose_identity_was_taken_over_ends() {
    let mut world = in_contact();
    world.server.session = Session(7);
    world.elapsed += Duration::from_secs(30);
    let flight = world.agent.compose(plan(&world.agent, world.elapsed), at(0), world.elapsed).unwrap();
    let failure = world.server.contact(&flight.contact, at(0)).unwrap_err();
    let verdict = world.agent.failed(flight, failure, world.elapsed);
    assert_eq!(verdict, Verdict::End(Ending::Superseded));
}

#[test]
fn an_unknown_credential_is_tried_again_slowly() {
    let mut world = in_contact();
    world.elapsed += Duration::from_secs(30);
    let flight = world.agent.compose(plan(&world.agent, world.elapsed), at(0), world.elapsed).unwrap();
    assert_eq!(world.agent.failed(flight, Failure::Unknown, world.elapsed), Verdict::TryAgain);
    assert!(world.agent.backoff.until() >= world.elapsed + Duration::from_secs(30));
}
