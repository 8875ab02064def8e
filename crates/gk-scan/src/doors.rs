//! Which network namespaces there are beside the home one, and which ways lead into each.
//!
//! A namespace is kept alive by the processes in it, or by a mount. Processes are asked one by one, for about 2 µs
//! each, so this is done when it can matter: each process when it is new and in the scans right after (it may be about
//! to leave its parent's namespace), all others a slice at every scan, and all of them when every known way into a
//! namespace is closed.
//!
//! Two files tell the namespace of a process. `/proc/PID/ns/net` has the number that everybody knows it by, and needs
//! CAP_SYS_PTRACE for other accounts' processes. Some processes deny it to root as well. `/proc/PID/net/dev` is open to
//! all, and its inode is another number that is unique to the namespace, since each has files of its own there.
//!
//! Not seen: namespaces of single threads, those that are held only by an open descriptor or socket, and those without
//! processes that are mounted only where we cannot see the mount.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::mounts::Mounts;
use crate::process::Pid;
use crate::processes::Processes;

/// How many processes are at least asked at each scan.
const PROCESSES_PER_SCAN: usize = 4;

/// After at most this many scans, all were asked.
const SCANS_PER_TURN: usize = 64;

/// In how many scans a process is asked as a new one.
const SCANS_OF_YOUTH: u8 = 4;

/// How many ways into one namespace are tried: a container may have thousands of processes.
const MOST_DOORS: usize = 8;

/// The two numbers of a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Of the namespace itself, as `lsns` and `ip netns` show it.
    pub(crate) inode: u64,
    /// Of its `/proc/PID/net/dev`; 0 when that could not be read.
    pub(crate) file_inode: u64,
}

impl Identity {
    /// That of the calling thread's namespace.
    pub(crate) fn own() -> io::Result<Identity> {
        let inode = fs::metadata("/proc/thread-self/ns/net")?.ino();
        Ok(Identity {
            inode,
            file_inode: fs::metadata("/proc/thread-self/net/dev").map_or(0, |file| file.ino()),
        })
    }
}

/// Where a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Home,
    Other(u64),
    /// In a namespace whose number may not be read; with the inode of its `net/dev`, or 0.
    Hidden(u64),
}

/// The network namespaces of the machine beside the home one.
#[derive(Debug)]
pub(crate) struct Doors {
    home: Identity,
    mounts: Mounts,
    /// All processes that are not at home.
    places: HashMap<Pid, Place>,
    members: BTreeSet<(u64, Pid)>,
    /// Which namespace a `net/dev` belongs to, as far as somebody was inside.
    by_file: HashMap<u64, u64>,
    /// In how many more scans they are asked.
    young: HashMap<Pid, u8>,
    next: Option<Pid>,
}

impl Doors {
    /// Of the machine as seen from the calling thread's namespaces, which are home.
    pub(crate) fn open() -> io::Result<Doors> {
        Ok(Doors {
            home: Identity::own()?,
            mounts: Mounts::open(),
            places: HashMap::new(),
            members: BTreeSet::new(),
            by_file: HashMap::new(),
            young: HashMap::new(),
            next: None,
        })
    }

    /// These processes are new; they are asked at the next refresh.
    pub(crate) fn meet(&mut self, new: &[Pid]) {
        self.young.extend(new.iter().map(|pid| (*pid, SCANS_OF_YOUTH)));
    }

    /// Asks whom it is time to ask. The namespaces into which a way was found that was not known before.
    pub(crate) fn refresh(&mut self, processes: &Processes, was_listed: bool) -> BTreeSet<u64> {
        if was_listed {
            self.forget_the_dead(processes);
        }
        let mut found = BTreeSet::new();
        let due: Vec<Pid> = self.young.keys().copied().collect();
        self.young.retain(|_, scans| {
            *scans -= 1;
            *scans > 0
        });
        let slice = processes.slice(&mut self.next, PROCESSES_PER_SCAN, SCANS_PER_TURN);
        for pid in due.into_iter().chain(slice) {
            found.extend(self.ask(pid));
        }
        found.extend(self.mounts.refresh().into_iter().filter(|inode| *inode != self.home.inode));
        found
    }

    /// Asks every process that was listed.
    pub(crate) fn refresh_all(&mut self, processes: &Processes) {
        self.forget_the_dead(processes);
        for pid in processes.pids() {
            self.ask(*pid);
        }
        self.mounts.refresh();
    }

    fn forget_the_dead(&mut self, processes: &Processes) {
        self.young.retain(|pid, _| processes.contains(*pid));
        let dead: Vec<Pid> = self.places.keys().filter(|pid| !processes.contains(**pid)).copied().collect();
        for pid in dead {
            self.put(pid, Place::Home);
        }
    }

    /// Asks one process where it is; the other namespace that it was not known to be in.
    fn ask(&mut self, pid: Pid) -> Option<u64> {
        // One that ended is nowhere, which is as good as home: it leads into no other namespace.
        let place = self.place_of(pid).unwrap_or(Place::Home);
        let is_new = self.put(pid, place) != place;
        match place {
            Place::Other(inode) if is_new => Some(inode),
            _ => None,
        }
    }

    fn place_of(&self, pid: Pid) -> Option<Place> {
        match fs::metadata(format!("/proc/{}/ns/net", pid.0)) {
            Ok(namespace) if namespace.ino() == self.home.inode => Some(Place::Home),
            Ok(namespace) => Some(Place::Other(namespace.ino())),
            Err(error) if has_ended(&error) => None,
            Err(_) => match fs::metadata(format!("/proc/{}/net/dev", pid.0)) {
                Ok(file) if file.ino() == self.home.file_inode => Some(Place::Home),
                Ok(file) => Some(
                    self.by_file
                        .get(&file.ino())
                        .map_or(Place::Hidden(file.ino()), |inode| Place::Other(*inode)),
                ),
                Err(error) if has_ended(&error) => None,
                Err(_) => Some(Place::Hidden(0)),
            },
        }
    }

    /// Writes down where a process is; where it was.
    fn put(&mut self, pid: Pid, place: Place) -> Place {
        let before = match place {
            Place::Home => self.places.remove(&pid),
            _ => self.places.insert(pid, place),
        };
        let before = before.unwrap_or(Place::Home);
        if let (true, Place::Other(inode)) = (before != place, before) {
            self.members.remove(&(inode, pid));
        }
        if let Place::Other(inode) = place {
            self.members.insert((inode, pid));
        }
        before
    }

    /// Somebody was inside, and so knows both numbers. Either may have been another namespace's before.
    pub(crate) fn learn(&mut self, identity: Identity) {
        let Identity { inode, file_inode } = identity;
        if file_inode == 0 || self.by_file.get(&file_inode) == Some(&inode) {
            return;
        }
        self.forget(inode);
        self.by_file.insert(file_inode, inode);
        let hidden = |(pid, place): (&Pid, &Place)| (*place == Place::Hidden(file_inode)).then_some(*pid);
        let members: Vec<Pid> = self.places.iter().filter_map(hidden).collect();
        for pid in members {
            self.put(pid, Place::Other(inode));
        }
    }

    /// The namespace is gone, and with it the number of its `net/dev`.
    pub(crate) fn forget(&mut self, inode: u64) {
        self.by_file.retain(|_, of| *of != inode);
    }

    /// The ways into a namespace, those that need fewer privileges first; none when none is known.
    pub(crate) fn leading_to(&self, inode: u64) -> Vec<PathBuf> {
        let mounts = self.mounts.paths().get(&inode).into_iter().flatten().cloned();
        let members = self.members.range((inode, Pid(0))..=(inode, Pid(u32::MAX)));
        let members = members.map(|(_, pid)| PathBuf::from(format!("/proc/{}/ns/net", pid.0)));
        mounts.chain(members).take(MOST_DOORS).collect()
    }

    /// How many namespaces there are whose numbers may not be read.
    pub(crate) fn hidden(&self) -> usize {
        let hidden = self.places.values().filter_map(|place| match place {
            Place::Hidden(file_inode) => Some(*file_inode),
            _ => None,
        });
        hidden.collect::<BTreeSet<u64>>().len()
    }

    /// Whether some process is in a namespace of which neither number may be read.
    pub(crate) fn are_some_nowhere(&self) -> bool {
        self.places.values().any(|place| *place == Place::Hidden(0))
    }
}

fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}
