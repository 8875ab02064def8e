//! A look through the descriptors of processes, by several threads where there are many to look into.
//!
//! The kernel takes 3 to 4 microseconds for each descriptor, and looks into several processes at once as quickly as
//! into one: it is the first scan that takes long, and whoever typed `gatekeeper scan` waits for it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::numbers::NumberMap;
use crate::owners::SocketId;
use crate::parse::Inode;
use crate::process::Pid;

/// Fewer processes than this are not worth a thread, which costs as much as a few hundred descriptors.
const PROCESSES_PER_THREAD: usize = 32;

/// At most so many threads, the calling one included: on a large machine a scan is not to take every processor.
const MOST_THREADS: usize = 4;

/// What a look into one process showed.
#[derive(Debug)]
pub(crate) struct Look {
    /// How many descriptors it has; `None` when that is not told, or they could not be read.
    pub(crate) count: Option<u64>,
    /// Which of the sockets it holds, and by which descriptor.
    pub(crate) held: NumberMap<SocketId, u32>,
}

/// Looks for these sockets through all descriptors of a process.
pub(crate) fn look_into(pid: Pid, wanted: &NumberMap<Inode, SocketId>) -> Look {
    let count = pid.open_descriptors();
    let mut held = NumberMap::default();
    // Most processes of some machines are threads of the kernel.
    if count == Some(0) {
        return Look { count, held };
    }
    let read = pid.for_each_socket(|descriptor, inode| {
        if let Some(socket) = wanted.get(&inode) {
            held.entry(*socket).or_insert(descriptor);
        }
    });
    Look { count: count.filter(|_| read.is_ok()), held }
}

/// The same for many processes, in any order. Each thread takes the next one as soon as it is done with one, because a
/// single process may hold most of the descriptors of a machine.
pub(crate) fn look_into_all(pids: &[Pid], wanted: &NumberMap<Inode, SocketId>) -> Vec<(Pid, Look)> {
    let next = AtomicUsize::new(0);
    let take_turns = || -> Vec<(Pid, Look)> {
        let mine = std::iter::from_fn(|| pids.get(next.fetch_add(1, Ordering::Relaxed)).copied());
        mine.map(|pid| (pid, look_into(pid, wanted))).collect()
    };
    let helpers = (pids.len() / PROCESSES_PER_THREAD).min(MOST_THREADS - 1);
    thread::scope(|scope| {
        let start = |_| thread::Builder::new().name("look".to_owned()).spawn_scoped(scope, take_turns);
        // Where no more threads are to be had, those that there are do it all.
        let helpers: Vec<_> = (0..helpers).map_while(|index| start(index).ok()).collect();
        let mut looks = take_turns();
        for helper in helpers {
            looks.extend(helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        looks
    })
}
