//! One process, as `/proc/PID` tells of it. Formats: proc_pid_stat(5), proc_pid_status(5).

use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom};
use std::ops::Range;
use std::sync::LazyLock;

use gk_model::listener::{Owner, Owners};
use gk_model::text::Observed;

use crate::accounts::Accounts;
use crate::cgroup::best_path;
use crate::parse::{Inode, Uid};
use crate::place::{Place, place};
use crate::sys;

/// The number of a process in our `/proc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Pid(pub(crate) u32);

/// Whether a process of this command name runs, of any account; `None` where processes of others are hidden (`hidepid`),
/// so that nobody can tell.
pub fn is_running(name: &str) -> Option<bool> {
    let name_of = |pid: Pid| fs::read_to_string(format!("/proc/{}/comm", pid.0)).ok();
    let found = Pid::list().into_iter().filter_map(name_of).any(|comm| comm.trim_end() == name);
    // The first process is root's, and never ends.
    (found || name_of(Pid(1)).is_some()).then_some(found)
}

/// Whether the kernel says how many descriptors a process has. Before Linux 6.2 it says 0 of every one, so of this one, too.
static KERNEL_COUNTS: LazyLock<bool> =
    LazyLock::new(|| fs::metadata("/proc/self/fd").is_ok_and(|descriptors| descriptors.len() > 0));

/// More than `stat`, `status` and `cgroup` usually hold.
const USUAL_BYTES: usize = 4 * 1024;

/// More than they ever hold: 65,536 groups are most of it.
const MOST_BYTES: u64 = 1 << 20;

/// What a process says of itself besides its descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Description {
    /// The process alone, as most listeners have it: those share this list.
    pub(crate) alone: Owners,
    pub(crate) uid: Uid,
    pub(crate) place: Place,
}

impl Description {
    /// The process.
    pub(crate) fn owner(&self) -> &Owner {
        &self.alone[0]
    }
}

impl Pid {
    /// Every process of our `/proc`, lowest first.
    pub(crate) fn list() -> Vec<Pid> {
        let mut pids = Vec::new();
        if let Ok(directory) = File::open("/proc") {
            sys::for_each_number(&directory, |number| pids.push(Pid(number)));
        }
        pids.sort_unstable();
        pids
    }

    /// Reads who it is; `None` when it is gone.
    pub(crate) fn describe(self, accounts: &Accounts) -> Option<Description> {
        let stat = self.read("stat")?;
        let (name, started_ticks) = name_and_start(&stat)?;
        let uid = effective_uid(&self.read("status")?)?;
        let exe = fs::read_link(format!("/proc/{}/exe", self.0)).ok();
        let place = self.read("cgroup").as_deref().and_then(best_path).map(place).unwrap_or_default();
        let owner = Owner {
            pid: self.0,
            started_ticks,
            name: Observed::new(name),
            exe: exe.map(|exe| Observed::new(&exe.to_string_lossy())),
            account: accounts.name(uid),
        };
        Some(Description { alone: vec![owner].into(), uid, place })
    }

    /// When it started, in clock ticks since boot; `None` when it is gone or a zombie.
    pub(crate) fn started_ticks(self) -> Option<u64> {
        let stat = self.read("stat")?;
        let zombie = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']));
        (!zombie).then(|| name_and_start(&stat).map(|(_, started)| started)).flatten()
    }

    /// How many descriptors it holds, which are none of a thread of the kernel; `None` when it is gone, not ours to see, or
    /// the kernel does not count.
    pub(crate) fn open_descriptors(self) -> Option<u64> {
        let count = fs::metadata(format!("/proc/{}/fd", self.0)).ok()?.len();
        (count > 0 || *KERNEL_COUNTS).then_some(count)
    }

    /// Names every socket that it holds, with the number of the descriptor. One whose descriptors may be counted and not
    /// looked at holds none, as far as can be seen.
    ///
    /// # Errors
    /// When it is gone, or not ours to see.
    pub(crate) fn for_each_socket(self, mut each: impl FnMut(u32, Inode)) -> io::Result<()> {
        let mut directory = File::open(format!("/proc/{}/fd", self.0))?;
        // The lowest free number is given first, so most processes leave no gap. To try the numbers one after the other
        // spares the kernel a list of them, which takes half as long as all the links.
        let mut next = 0;
        loop {
            match sys::socket_behind(&directory, next) {
                Ok(inode) => inode.into_iter().for_each(|inode| each(next, inode)),
                // What is denied for one is denied for all, and there may be thousands.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
                Err(_) => break,
            }
            next += 1;
        }
        // Those after the gap. In this directory a descriptor stands at its number, after `.` and `..`.
        directory.seek(SeekFrom::Start(u64::from(next) + 2))?;
        sys::for_each_number(&directory, |number| {
            if let Ok(Some(inode)) = sys::socket_behind(&directory, number) {
                each(number, inode);
            }
        });
        Ok(())
    }

    /// Its parent, its children, and its parent's: whoever may have a descriptor under the same number. Few where the kernel
    /// does not list children (`CONFIG_PROC_CHILDREN`), and none of those of the first process, which has everybody's.
    pub(crate) fn relatives(self) -> Vec<Pid> {
        let parent = self.read("stat").as_deref().and_then(parent).filter(|parent| parent.0 > 1);
        let children = parent.into_iter().chain([self]).flat_map(Pid::children);
        parent.into_iter().chain(children).filter(|relative| *relative != self).collect()
    }

    fn children(self) -> Vec<Pid> {
        let Ok(tasks) = File::open(format!("/proc/{}/task", self.0)) else { return Vec::new() };
        let mut found = Vec::new();
        sys::for_each_number(&tasks, |task| {
            let of_task = self.read(&format!("task/{task}/children")).unwrap_or_default();
            found.extend(of_task.split_ascii_whitespace().filter_map(|pid| pid.parse().ok().map(Pid)));
        });
        found
    }

    /// The sockets behind descriptors with these numbers; `None` when one of them is no socket, or not there.
    pub(crate) fn sockets_at(self, numbers: Range<u32>) -> Option<Vec<(u32, Inode)>> {
        let directory = File::open(format!("/proc/{}/fd", self.0)).ok()?;
        numbers.map(|number| Some((number, sys::socket_behind(&directory, number).ok()??))).collect()
    }

    /// Which of these descriptors still are these sockets, in the same order; none when it is gone.
    pub(crate) fn holds(self, descriptors: &[(u32, Inode)]) -> Vec<bool> {
        let directory = File::open(format!("/proc/{}/fd", self.0)).ok();
        let holds = |(number, inode): &(u32, Inode)| {
            let socket = directory.as_ref().and_then(|directory| sys::socket_behind(directory, *number).ok());
            socket.flatten() == Some(*inode)
        };
        descriptors.iter().map(holds).collect()
    }

    /// A file of its directory, with what is no UTF-8 replaced: a process may call itself anything.
    fn read(self, file: &str) -> Option<String> {
        // The kernel tells no length: without room std would read a few bytes at a time, and without a limit ask for it.
        let mut bytes = Vec::with_capacity(USUAL_BYTES);
        File::open(format!("/proc/{}/{file}", self.0)).ok()?.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Fields 2 and 22 of `stat`. The name stands in parentheses and may hold any, so the last one ends it.
fn name_and_start(stat: &str) -> Option<(&str, u64)> {
    let (before, after) = stat.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    let started_ticks = after.split_ascii_whitespace().nth(19)?.parse().ok()?;
    Some((name, started_ticks))
}

/// Field 4 of `stat`.
fn parent(stat: &str) -> Option<Pid> {
    let (_, after) = stat.rsplit_once(')')?;
    after.split_ascii_whitespace().nth(1)?.parse().ok().map(Pid)
}

/// `Uid:` holds the real, effective, saved and file system's account; what a process may do goes by the second.
fn effective_uid(status: &str) -> Option<Uid> {
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    uids.split_ascii_whitespace().nth(1)?.parse().ok().map(Uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_runs_is_found_by_its_name() {
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(is_running(own.trim_end()), Some(true));
        assert_ne!(is_running("no such process"), Some(true));
    }

    #[test]
    fn a_name_may_hold_anything() {
        let numbers = (1..=40).map(|number| number.to_string()).collect::<Vec<_>>().join(" ");
        for name in ["cat", "a) S 1 (b", "", ") R 9", "(sd-pam)", "two\nlines"] {
            let stat = format!("812 ({name}) S {numbers}");
            assert_eq!(name_and_start(&stat), Some((name, 19)), "{stat}");
        }
        for bad in ["", "1", "1 (a", "1 (a)", "1 (a) S 1 2 3"] {
            assert_eq!(name_and_start(bad), None);
        }
    }

    #[test]
    fn the_effective_account_counts() {
        assert_eq!(effective_uid("Name:\tUid: 7\nUid:\t1000\t33\t1000\t1000\n"), Some(Uid(33)));
        assert_eq!(effective_uid("Gid:\t1\t2\n"), None);
    }

    #[test]
    fn descriptors_are_found_before_and_after_gaps_each_once() {
        use std::net::UdpSocket;
        use std::os::fd::{AsRawFd as _, OwnedFd};

        // A process of its own, with descriptors at chosen numbers; other tests open and close ours all the time.
        let socket: OwnedFd = UdpSocket::bind("127.0.0.1:0").unwrap().into();
        let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let script = "exec 3<&0 4<&0 5</dev/null 7<&0 9<&0; echo; kill -STOP $$";
        let mut command = std::process::Command::new("bash");
        command.args(["-c", script]).stdin(socket).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut told = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut told).unwrap();
        let mut found = Vec::new();
        let is_ours = |inode: Inode| link.to_str() == Some(&format!("socket:[{}]", inode.0));
        let pid = Pid(child.id());
        pid.for_each_socket(|number, inode| found.extend(is_ours(inode).then_some(number))).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, [0, 3, 4, 7, 9]);
    }

    #[test]
    fn we_can_tell_of_ourselves() {
        let me = Pid(std::process::id());
        let description = me.describe(&Accounts::new("/nonexistent")).unwrap();
        assert_eq!(Some(description.owner().started_ticks), me.started_ticks());
        let exe = std::env::current_exe().unwrap();
        assert_eq!(description.owner().exe.clone().unwrap().as_str(), exe.to_str().unwrap());
        assert!(Pid::list().contains(&me));
        assert!(Pid(u32::MAX).describe(&Accounts::new("/nonexistent")).is_none());
    }
}
