//! Which processes there are, listed as seldom as possible.

use crate::polled::Polled;
use crate::process::Pid;

/// Every process at the last listing.
#[derive(Debug)]
pub(crate) struct Processes {
    /// Lowest first.
    pids: Vec<Pid>,
    /// The number given last before that listing.
    last_given: Option<Pid>,
    load: Polled,
}

impl Default for Processes {
    fn default() -> Processes {
        Processes { pids: Vec::new(), last_given: None, load: Polled::new("/proc/loadavg") }
    }
}

impl Processes {
    /// Lists them anew if a process was made since; those that are new, the highest number first. `None` when nothing
    /// was listed: processes may have ended all the same.
    pub(crate) fn refresh(&mut self) -> Option<Vec<Pid>> {
        let last_given = self.last_given();
        if last_given.is_some() && last_given == self.last_given {
            return None;
        }
        // Read before the listing: a process made in between is found again, not lost.
        self.last_given = last_given;
        let before = std::mem::replace(&mut self.pids, Pid::list());
        Some(self.pids.iter().rev().filter(|pid| before.binary_search(pid).is_err()).copied().collect())
    }

    /// The number given last, in our pid namespace: as long as it stays, no process was made. Threads count too.
    fn last_given(&mut self) -> Option<Pid> {
        self.load.refresh();
        self.load.text().trim_end().rsplit(' ').next()?.parse().ok().map(Pid)
    }

    /// Lowest first.
    pub(crate) fn pids(&self) -> &[Pid] {
        &self.pids
    }

    /// Whether it was there.
    pub(crate) fn contains(&self, pid: Pid) -> bool {
        self.pids.binary_search(&pid).is_ok()
    }

    /// The next few after the last one of the slice before, at least `least` and so many that `scans` of them go all
    /// the way round; the next slice begins where this one ends.
    pub(crate) fn slice(&self, next: &mut Option<Pid>, least: usize, scans: usize) -> Vec<Pid> {
        let start = next.map_or(0, |next| self.pids.partition_point(|pid| *pid <= next));
        let length = least.max(self.pids.len().div_ceil(scans));
        let slice: Vec<Pid> = self.pids.iter().skip(start).take(length).copied().collect();
        *next = slice.last().copied().filter(|_| slice.len() == length);
        slice
    }
}
