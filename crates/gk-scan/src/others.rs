//! The network namespaces of the machine beside the home one: when each is looked at, and when one counts as gone.
//!
//! Each is looked at when it is found, when a process appears in it, and otherwise in every third scan: a dump costs
//! about 0.1 ms, and there may be hundreds. One that denies itself is asked ever more seldom.
//!
//! When no door leads into a namespace any more, it may be gone, or be held by something that cannot be seen: an open
//! descriptor, a socket, a process that tells nothing. So it counts as gone only when we may see all processes, none is
//! in it, no mount leads there, no visible process holds one of its listening sockets, and all of that twice. Until
//! then its parts are not covered.

use std::collections::BTreeMap;
use std::io;

use gk_model::listener::Netns;
use gk_model::time::Timestamp;

use crate::doors::Doors;
use crate::namespace::Namespace;
use crate::owners::Owners;
use crate::privileges::privileges;
use crate::process::Pid;
use crate::processes::Processes;
use crate::visitor::{Errand, Outcome, Visitor};

/// After how many scans a namespace is looked at again without a reason: 1.5 s at the agent's two scans a second.
const SCANS_PER_LOOK: u64 = 3;

/// The longest pause, in scans, before a namespace that denied itself is tried again.
const LONGEST_PAUSE: u64 = 192;

/// All namespaces but the home one.
#[derive(Debug)]
pub(crate) struct Others {
    doors: Doors,
    visitor: Visitor,
    known: BTreeMap<u64, Other>,
    /// Whether no process can be hidden from us.
    sees_all_processes: bool,
    scan: u64,
}

#[derive(Debug)]
struct Other {
    namespace: Namespace,
    due_at_scan: u64,
    pause: u64,
    /// How many times in a row no door led there.
    lost: u32,
}

impl Others {
    /// Those of the machine, seen from the calling thread's namespaces.
    pub(crate) fn start() -> io::Result<Others> {
        Ok(Others {
            doors: Doors::open()?,
            visitor: Visitor::default(),
            known: BTreeMap::new(),
            sees_all_processes: privileges().sys_ptrace,
            scan: 0,
        })
    }

    /// These processes were listed for the first time.
    pub(crate) fn meet(&mut self, new: &[Pid]) {
        self.doors.meet(new);
    }

    /// Looks at every namespace that is due. Those that turned out to be gone are forgotten, with their sockets.
    pub(crate) fn look(
        &mut self,
        processes: &Processes,
        was_listed: bool,
        owners: &mut Owners,
        now: Timestamp,
    ) {
        self.scan += 1;
        for inode in self.doors.refresh(processes, was_listed) {
            let scan = self.scan;
            let other = self.known.entry(inode).or_insert_with(|| Other::new(inode));
            other.due_at_scan = scan;
        }
        let due = self.known.iter().filter(|(_, other)| other.due_at_scan <= self.scan);
        let lost = self.visit(due.map(|(inode, _)| *inode).collect(), now);
        if lost.is_empty() {
            return;
        }
        self.doors.refresh_all(processes);
        for inode in self.visit(lost, now) {
            self.miss(inode, owners);
        }
    }

    /// Looks at these; those to which no door leads.
    fn visit(&mut self, inodes: Vec<u64>, now: Timestamp) -> Vec<u64> {
        let errands = inodes.into_iter().filter_map(|inode| {
            let other = self.known.get_mut(&inode)?;
            let namespace = std::mem::replace(&mut other.namespace, Namespace::new(Netns::Other(inode)));
            Some(Errand { namespace, inode, doors: self.doors.leading_to(inode), outcome: Outcome::NoDoor })
        });
        let errands: Vec<Errand> = errands.collect();
        if errands.is_empty() {
            return Vec::new();
        }
        let mut lost = Vec::new();
        for errand in self.visitor.visit(errands) {
            let Some(other) = self.known.get_mut(&errand.inode) else { continue };
            other.namespace = errand.namespace;
            match errand.outcome {
                Outcome::Seen(identity) => {
                    self.doors.learn(identity);
                    other.seen(self.scan, errand.inode, now);
                }
                Outcome::Denied => other.put_off(self.scan),
                Outcome::NoDoor => lost.push(errand.inode),
            }
        }
        lost
    }

    /// No door led there, and all processes were asked for one.
    fn miss(&mut self, inode: u64, owners: &mut Owners) {
        let Some(other) = self.known.get_mut(&inode) else { return };
        other.lost += 1;
        let is_sure = self.sees_all_processes && !self.doors.are_some_nowhere();
        let is_gone = is_sure && other.lost > 1 && !other.namespace.is_held(owners);
        if !is_gone && !other.namespace.is_empty() {
            other.put_off(self.scan);
            if other.lost == 1 {
                other.due_at_scan = self.scan + 1;
            }
        } else if let Some(other) = self.known.remove(&inode) {
            other.namespace.forget_all(owners);
            self.doors.forget(inode);
        }
    }

    /// Takes in what the last look showed; whether any listening socket changed.
    pub(crate) fn sort_out(&mut self, owners: &mut Owners, now: Timestamp) -> bool {
        let sort_out = |changed, other: &mut Other| changed | other.namespace.sort_out(owners, now);
        self.known.values_mut().fold(false, sort_out)
    }

    /// Those that are there, or may be, by inode.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.known.values().map(|other| &other.namespace)
    }

    /// Whether there can be no others.
    pub(crate) fn are_all(&self) -> bool {
        self.sees_all_processes && self.doors.hidden() == 0
    }
}

#[cfg(test)]
impl Others {
    /// As if what it may do had changed to what the calling thread may do now.
    pub(crate) fn change_powers(&mut self) {
        self.visitor = Visitor::default();
        self.known.values_mut().for_each(|other| other.due_at_scan = 0);
    }
}

impl Other {
    fn new(inode: u64) -> Other {
        Other {
            namespace: Namespace::new(Netns::Other(inode)),
            due_at_scan: 0,
            pause: SCANS_PER_LOOK,
            lost: 0,
        }
    }

    fn seen(&mut self, scan: u64, inode: u64, now: Timestamp) {
        self.namespace.note_seen(now);
        (self.lost, self.pause) = (0, SCANS_PER_LOOK);
        // By its number, so that those found together are not all due in the same scan for ever.
        let next = scan + 1;
        self.due_at_scan = next + (inode + SCANS_PER_LOOK - next % SCANS_PER_LOOK) % SCANS_PER_LOOK;
    }

    fn put_off(&mut self, scan: u64) {
        self.namespace.lose_sight();
        self.due_at_scan = scan + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}
