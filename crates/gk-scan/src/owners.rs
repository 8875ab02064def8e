//! Who holds which listening socket: the search through `/proc/*/fd`, done as seldom as possible.
//!
//! The kernel does not say who holds a socket. The answer lies in the links of every process's descriptors, at 3 to 4
//! microseconds each, of the whole machine. So what was found is kept (by socket cookie) and only kept true:
//!
//! - A process that ended vanishes at once: a process descriptor of each known owner is polled, all in one call.
//! - A process that is new is looked through at once, since it may have inherited sockets that are not new. Whether
//!   there is one, the number given last (`/proc/loadavg`) tells for the price of one read.
//! - A socket that is new is looked for in known owners whose number of descriptors changed, then in other processes
//!   where it changed, newest first, then everywhere; until all are found. Where a known owner has a few descriptors more,
//!   only those are looked at that have the next numbers, if they explain it. A socket without any visible owner is
//!   looked for again after 1, 2, 4, … scans.
//! - A socket may be older than it has been listening, and so have been inherited while nobody asked for it. So whoever is
//!   found, by whatever way, is not taken for the only one: parents, children and siblings are asked for the same
//!   descriptor.
//! - What a known owner holds is verified link by link, a slice at every scan, and completely at the few scans after it was
//!   found: a child between fork and exec holds what it is about to close, under its parent's name.
//! - A slice of all other processes is looked at at every scan, and into when their number of descriptors changed:
//!   descriptors also travel over Unix sockets, and process numbers are used again. Now and then one is looked into
//!   although that number did not change.
//!
//! Not seen: descriptors of a thread that left its process's table (`unshare(CLONE_FILES)`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound::{Excluded, Unbounded};
use std::os::fd::{AsFd, OwnedFd};

use gk_model::listener::Netns;

use crate::accounts::Accounts;
use crate::look::{Look, look_into, look_into_all};
use crate::numbers::NumberMap;
use crate::parse::{Cookie, Inode};
use crate::process::{Description, Pid};
use crate::processes::Processes;
use crate::sys;

/// How many known holdings are at least verified at each scan, about 1 µs each.
const HOLDINGS_PER_SCAN: usize = 8;

/// How many processes are at least looked at at each scan, about 2 µs each unless they must be looked into.
const PROCESSES_PER_SCAN: usize = 4;

/// After at most this many scans the slices have been everywhere.
const SCANS_PER_TURN: usize = 64;

/// After at most this many scans every holding has been verified.
const SCANS_PER_VERIFICATION: usize = 128;

/// In how many scans an owner is verified completely after it was found. A child between fork and exec takes its time on a
/// busy machine, and two scans may follow upon each other at once.
const SCANS_UNTIL_TRUSTED: u8 = 3;

/// How many scans pass until a process is looked into, or an owner asked for its name, without a reason.
const SCANS_PER_LOOK: u64 = 8;

/// So many descriptors more than before may be explained by a look at the next numbers.
const FEW_MORE: u64 = 8;

/// At most this many process descriptors are kept open; further owners are checked by their start time.
const MOST_DESCRIPTORS: usize = 256;

/// The longest pause, in scans, before a socket without a visible owner is looked for again.
const LONGEST_PAUSE: u64 = 256;

/// One socket of the machine. Before Linux 5.4 each network namespace numbered its cookies by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SocketId {
    pub(crate) netns: Netns,
    pub(crate) cookie: Cookie,
}

impl SocketId {
    const FIRST: SocketId = SocketId { netns: Netns::Home, cookie: Cookie(0) };
    const LAST: SocketId = SocketId { netns: Netns::Other(u64::MAX), cookie: Cookie(u64::MAX) };
}

/// What is known of the owners of all listening sockets.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    wanted: NumberMap<Inode, SocketId>,
    inodes: NumberMap<SocketId, Inode>,
    unfound: NumberMap<SocketId, Search>,
    processes: BTreeMap<Pid, Process>,
    /// Which descriptor of the process is the socket.
    holdings: BTreeMap<(Pid, SocketId), u32>,
    /// Owners found lately, each to be verified completely in so many scans.
    fresh: Vec<(Pid, u8)>,
    descriptor_counts: NumberMap<Pid, Option<u64>>,
    next_holding: Option<(Pid, SocketId)>,
    next_process: Option<Pid>,
    next_owner: Option<Pid>,
    scan: u64,
    changed: bool,
    is_idle: bool,
}

#[derive(Debug)]
struct Process {
    description: Description,
    descriptor: Option<OwnedFd>,
}

/// When a socket without an owner is to be looked for again.
#[derive(Debug)]
struct Search {
    due_at_scan: u64,
    pause: u64,
}

impl Owners {
    /// Of nobody: no process is looked at, and no socket has an owner.
    pub(crate) fn idle() -> Owners {
        Owners { is_idle: true, ..Owners::default() }
    }

    /// Whether no owner is ever looked for.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_idle
    }

    /// A socket is there whose owners are wanted. One that no process ever held is not looked for.
    pub(crate) fn appear(&mut self, socket: SocketId, inode: Option<Inode>) {
        if let Some(inode) = inode.filter(|_| !self.is_idle) {
            self.wanted.insert(inode, socket);
            self.inodes.insert(socket, inode);
            self.unfound.insert(socket, Search { due_at_scan: self.scan, pause: 1 });
        }
    }

    /// The socket is gone.
    pub(crate) fn vanish(&mut self, socket: SocketId) {
        let inode = self.inodes.remove(&socket);
        if let Some(inode) = inode.filter(|inode| self.wanted.get(inode) == Some(&socket)) {
            self.wanted.remove(&inode);
        }
        self.unfound.remove(&socket);
        let holders: Vec<Pid> = self.processes.keys().copied().collect();
        for pid in holders {
            self.drop_holding(pid, socket);
        }
    }

    /// Brings everything up to date as the module says; whether any answer changed.
    ///
    /// `new` are the processes that were listed for the first time since the last call; `None` when none were listed.
    pub(crate) fn refresh(
        &mut self,
        processes: &Processes,
        new: Option<&[Pid]>,
        accounts: &Accounts,
    ) -> bool {
        self.bury_the_dead();
        // Then everybody is new, and asked for everything.
        let is_first = self.scan == 0;
        // Before anybody is looked into: whoever holds one of these is asked for relatives, however he was found.
        let mut due = if is_first { HashSet::new() } else { self.due() };
        let fresh = std::mem::take(&mut self.fresh);
        let mut visited = HashSet::new();
        if let Some(new) = new {
            self.descriptor_counts.retain(|pid, _| processes.contains(*pid));
            self.visit_all(new, accounts);
            visited.extend(new);
        }
        if !is_first {
            self.verify_completely(fresh, accounts);
            self.verify_a_slice(accounts);
            self.visit_a_slice(processes, accounts);
        }
        if self.any_due() {
            self.search(processes, &mut visited, accounts);
        }
        due.retain(|socket| self.inodes.contains_key(socket) && !self.unfound.contains_key(socket));
        self.ask_relatives(&due, accounts);
        if is_first {
            // At first that is every socket, and later none or a few, which are gone through in every scan.
            self.unfound.shrink_to_fit();
        }
        self.scan += 1;
        std::mem::take(&mut self.changed)
    }

    /// Every owner of every socket, by socket, each lowest pid first.
    pub(crate) fn by_socket(&self) -> Vec<(SocketId, &Description)> {
        let owner = |pid| self.processes.get(pid).map(|process| &process.description);
        let held = self.holdings.keys();
        let mut owners: Vec<_> = held.filter_map(|(pid, socket)| Some((*socket, owner(pid)?))).collect();
        owners.sort_unstable_by(|(one, by), (other, by_other)| {
            one.cmp(other).then_with(|| by.owner().pid.cmp(&by_other.owner().pid))
        });
        owners
    }

    /// Whether a process that can be seen holds one of these sockets.
    pub(crate) fn any_held(&self, mut sockets: impl Iterator<Item = SocketId>) -> bool {
        sockets.any(|socket| self.processes.keys().any(|pid| self.holdings.contains_key(&(*pid, socket))))
    }

    /// Names accounts anew, after the password file changed.
    pub(crate) fn rename_accounts(&mut self, accounts: &Accounts) {
        for process in self.processes.values_mut() {
            process.description.alone[0].account = accounts.name(process.description.uid);
        }
    }

    fn bury_the_dead(&mut self) {
        let watched: Vec<(Pid, _)> = self
            .processes
            .iter()
            .filter_map(|(pid, process)| Some((*pid, process.descriptor.as_ref()?.as_fd())))
            .collect();
        let descriptors: Vec<_> = watched.iter().map(|(_, descriptor)| *descriptor).collect();
        let ended = sys::have_ended(&descriptors);
        let mut dead: Vec<Pid> =
            watched.iter().zip(ended).filter(|(_, ended)| *ended).map(|((pid, _), _)| *pid).collect();
        dead.extend(self.processes.iter().filter_map(|(pid, process)| {
            let started = process.description.owner().started_ticks;
            (process.descriptor.is_none() && pid.started_ticks() != Some(started)).then_some(*pid)
        }));
        for pid in dead {
            self.bury(pid);
        }
    }

    fn bury(&mut self, pid: Pid) {
        for socket in self.held_by(pid) {
            self.drop_holding(pid, socket);
        }
        self.processes.remove(&pid);
        self.descriptor_counts.remove(&pid);
    }

    /// Looks through all descriptors of these processes.
    fn visit_all(&mut self, pids: &[Pid], accounts: &Accounts) {
        for (pid, look) in look_into_all(pids, &self.wanted) {
            self.take_in(pid, look, accounts);
        }
    }

    /// Looks through all descriptors of a process.
    fn visit(&mut self, pid: Pid, accounts: &Accounts) {
        self.take_in(pid, look_into(pid, &self.wanted), accounts);
    }

    fn take_in(&mut self, pid: Pid, look: Look, accounts: &Accounts) {
        let Look { count, held } = look;
        self.descriptor_counts.insert(pid, count);
        for socket in self.held_by(pid) {
            if !held.contains_key(&socket) {
                self.drop_holding(pid, socket);
            }
        }
        if held.is_empty() || !self.meet(pid, accounts) {
            self.processes.remove(&pid);
            return;
        }
        for (socket, descriptor) in held {
            self.unfound.remove(&socket);
            self.changed |= self.holdings.insert((pid, socket), descriptor).is_none();
        }
    }

    /// Makes sure that an owner is known; false when it just ended.
    fn meet(&mut self, pid: Pid, accounts: &Accounts) -> bool {
        if self.processes.contains_key(&pid) {
            return true;
        }
        let watched = self.processes.values().filter(|process| process.descriptor.is_some()).count();
        let descriptor = (watched < MOST_DESCRIPTORS).then(|| sys::open_process(pid.0).ok()).flatten();
        let Some(description) = pid.describe(accounts) else {
            return false;
        };
        self.processes.insert(pid, Process { description, descriptor });
        self.fresh.push((pid, SCANS_UNTIL_TRUSTED));
        true
    }

    /// Verifies all that these processes hold, and who they are: that first, since exec changes both.
    fn verify_completely(&mut self, fresh: Vec<(Pid, u8)>, accounts: &Accounts) {
        for (pid, scans) in fresh {
            self.describe_again(pid, accounts);
            self.verify(pid, &self.held_by(pid), accounts);
            let is_to_be_seen_again = scans > 1 && self.processes.contains_key(&pid);
            self.fresh.extend(is_to_be_seen_again.then_some((pid, scans - 1)));
        }
    }

    /// Verifies the next few holdings in turn, and now and then who the process of the first is.
    fn verify_a_slice(&mut self, accounts: &Accounts) {
        let start = self.next_holding.map_or(Unbounded, Excluded);
        let length = HOLDINGS_PER_SCAN.max(self.holdings.len().div_ceil(SCANS_PER_VERIFICATION));
        let slice: Vec<(Pid, SocketId)> =
            self.holdings.range((start, Unbounded)).map(|(key, _)| *key).take(length).collect();
        self.next_holding = slice.last().copied().filter(|_| slice.len() == length);
        for of_one in slice.chunk_by(|one, next| one.0 == next.0) {
            let sockets: Vec<SocketId> = of_one.iter().map(|(_, socket)| *socket).collect();
            self.verify(of_one[0].0, &sockets, accounts);
        }
        if self.scan.is_multiple_of(SCANS_PER_LOOK) {
            self.describe_the_next(accounts);
        }
    }

    /// Asks a few owners in turn who they are. By a place of its own: that of the slices moves in step with the scans, and
    /// would come by the same owners each time.
    fn describe_the_next(&mut self, accounts: &Accounts) {
        let start = self.next_owner.map_or(Unbounded, Excluded);
        let length = self.processes.len().div_ceil(SCANS_PER_TURN);
        let few: Vec<Pid> =
            self.processes.range((start, Unbounded)).map(|(pid, _)| *pid).take(length).collect();
        // At the end it begins anew, with the next look.
        self.next_owner = few.last().copied();
        for pid in few {
            self.describe_again(pid, accounts);
        }
    }

    fn verify(&mut self, pid: Pid, sockets: &[SocketId], accounts: &Accounts) {
        let descriptors: Vec<(u32, Inode)> = sockets
            .iter()
            .filter_map(|socket| Some((*self.holdings.get(&(pid, *socket))?, *self.inodes.get(socket)?)))
            .collect();
        if pid.holds(&descriptors).contains(&false) {
            // It may hold the socket by another descriptor.
            self.visit(pid, accounts);
        }
    }

    /// Reads again who an owner is: exec changes name and executable, and a process may change its account.
    fn describe_again(&mut self, pid: Pid, accounts: &Accounts) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        match pid.describe(accounts) {
            Some(now) if now.owner().started_ticks == process.description.owner().started_ticks => {
                self.changed |= now != process.description;
                process.description = now;
            }
            _ => self.bury(pid),
        }
    }

    /// Looks at the next few processes in turn, and into those whose number of descriptors changed or is not told.
    fn visit_a_slice(&mut self, processes: &Processes, accounts: &Accounts) {
        let slice = processes.slice(&mut self.next_process, PROCESSES_PER_SCAN, SCANS_PER_TURN);
        // Another place of the slice each time, because the slices come by in step with the scans.
        let (turn, look) = (self.scan % SCANS_PER_LOOK, self.scan / SCANS_PER_LOOK);
        let place = (look as usize).checked_rem(slice.len()).filter(|_| turn == look % SCANS_PER_LOOK);
        let anyway = place.and_then(|place| slice.get(place)).copied();
        for pid in slice {
            if self.count_changed(pid) || anyway == Some(pid) {
                self.visit(pid, accounts);
            }
        }
    }

    fn count_changed(&self, pid: Pid) -> bool {
        let before = self.descriptor_counts.get(&pid).copied().flatten();
        pid.open_descriptors().is_none_or(|count| before != Some(count))
    }

    /// Looks for sockets without an owner, as far as they are due, where they most likely are first.
    fn search(&mut self, processes: &Processes, visited: &mut HashSet<Pid>, accounts: &Accounts) {
        let known: Vec<Pid> = self.processes.keys().rev().copied().collect();
        let others: Vec<Pid> = processes.pids().iter().rev().copied().collect();
        let mut unlikely = Vec::new();
        for pid in known.into_iter().chain(others) {
            if !self.any_due() {
                return;
            }
            match visited.insert(pid) {
                true if self.count_changed(pid) => {
                    if !self.glance(pid) {
                        self.visit(pid, accounts);
                    }
                }
                true => unlikely.push(pid),
                false => {}
            }
        }
        for pid in unlikely {
            if !self.any_due() {
                return;
            }
            self.visit(pid, accounts);
        }
        self.postpone();
    }

    /// Asks the relatives of whoever holds these sockets, and those of whoever does among them, whether they have it under
    /// the same number.
    fn ask_relatives(&mut self, found: &HashSet<SocketId>, accounts: &Accounts) {
        let is_found = |(holding, descriptor): (&(Pid, SocketId), &u32)| {
            found.contains(&holding.1).then_some((holding.0, holding.1, *descriptor))
        };
        let mut holders: Vec<(Pid, SocketId, u32)> = match found.is_empty() {
            true => return,
            false => self.holdings.iter().filter_map(is_found).collect(),
        };
        // A process may have opened a thousand sockets at once.
        let mut relatives: HashMap<Pid, Vec<Pid>> = HashMap::new();
        let mut asked: HashSet<(Pid, SocketId)> =
            holders.iter().map(|(pid, socket, _)| (*pid, *socket)).collect();
        while let Some((pid, socket, descriptor)) = holders.pop() {
            let Some(inode) = self.inodes.get(&socket).copied() else { continue };
            for relative in relatives.entry(pid).or_insert_with(|| pid.relatives()).clone() {
                let is_new = asked.insert((relative, socket));
                if is_new && relative.holds(&[(descriptor, inode)]) == [true] && self.meet(relative, accounts)
                {
                    self.holdings.insert((relative, socket), descriptor);
                    self.changed = true;
                    holders.push((relative, socket, descriptor));
                }
            }
        }
    }

    /// Looks at the descriptors that a known owner has more than before, where they are if it has no gaps: behind the others.
    /// Whether each of them is a socket that is looked for, which then is found; if not, nothing has changed here.
    fn glance(&mut self, pid: Pid) -> bool {
        let before = self.descriptor_counts.get(&pid).copied().flatten();
        let (Some(before), Some(count)) = (before, pid.open_descriptors()) else { return false };
        if !self.processes.contains_key(&pid) || count <= before || count - before > FEW_MORE {
            return false;
        }
        let Some(found) = pid.sockets_at(before as u32..count as u32) else { return false };
        let is_looked_for = |(number, inode): (u32, Inode)| {
            let socket = *self.wanted.get(&inode)?;
            self.unfound.contains_key(&socket).then_some((socket, number))
        };
        let Some(found) = found.into_iter().map(is_looked_for).collect::<Option<Vec<_>>>() else {
            return false;
        };
        for (socket, descriptor) in found {
            self.unfound.remove(&socket);
            self.holdings.insert((pid, socket), descriptor);
        }
        self.descriptor_counts.insert(pid, Some(count));
        self.changed = true;
        true
    }

    fn due(&self) -> HashSet<SocketId> {
        let due = self.unfound.iter().filter(|(_, search)| search.due_at_scan <= self.scan);
        due.map(|(socket, _)| *socket).collect()
    }

    fn any_due(&self) -> bool {
        self.unfound.values().any(|search| search.due_at_scan <= self.scan)
    }

    /// Those looked for in vain are looked for again after twice the pause.
    fn postpone(&mut self) {
        let scan = self.scan;
        for search in self.unfound.values_mut().filter(|search| search.due_at_scan <= scan) {
            search.due_at_scan = scan + search.pause;
            search.pause = (search.pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn held_by(&self, pid: Pid) -> Vec<SocketId> {
        let all = (pid, SocketId::FIRST)..=(pid, SocketId::LAST);
        self.holdings.range(all).map(|((_, socket), _)| *socket).collect()
    }

    /// Forgets that a process holds a socket, and looks for another owner when it was the last and the socket is there.
    fn drop_holding(&mut self, pid: Pid, socket: SocketId) {
        if self.holdings.remove(&(pid, socket)).is_none() {
            return;
        }
        self.changed = true;
        let held_elsewhere = self.processes.keys().any(|pid| self.holdings.contains_key(&(*pid, socket)));
        if !held_elsewhere && self.inodes.contains_key(&socket) {
            self.unfound.insert(socket, Search { due_at_scan: self.scan, pause: 1 });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn sockets_of_two_namespaces_are_two_also_where_their_cookies_are_equal() {
        let sockets = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let [one, other] = [Netns::Home, Netns::Other(7)].map(|netns| SocketId { netns, cookie: Cookie(1) });
        let (mut owners, mut processes) = (Owners::default(), Processes::default());
        for (id, socket) in [one, other].into_iter().zip(&sockets) {
            let directory = std::fs::File::open("/proc/self/fd").unwrap();
            let descriptor = u32::try_from(socket.as_raw_fd()).unwrap();
            owners.appear(id, sys::socket_behind(&directory, descriptor).unwrap());
        }
        let new = processes.refresh();
        owners.refresh(&processes, new.as_deref(), &Accounts::new("/nonexistent"));
        let me = std::process::id();
        let is_mine = |owners: &Owners, id| {
            owners.by_socket().iter().any(|(held, by)| *held == id && by.owner().pid == me)
        };
        assert!(is_mine(&owners, one) && is_mine(&owners, other));
        owners.vanish(one);
        assert!(!is_mine(&owners, one) && is_mine(&owners, other));
        assert!(owners.any_held([one, other].into_iter()) && !owners.any_held([one].into_iter()));
        drop(sockets);
        // One turn of the slices.
        for _ in 0..=SCANS_PER_TURN {
            owners.refresh(&processes, None, &Accounts::new("/nonexistent"));
        }
        assert!(!is_mine(&owners, other));
    }
}
