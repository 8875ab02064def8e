//! Network namespaces that are mounted somewhere: `/run/netns`, `/run/docker/netns`, and wherever else.
//!
//! A mount keeps a namespace alive without any process in it. The table of mounts names the namespace of each by
//! number, so no directory needs to be known or read. The kernel tells when the table changed (proc_pid_mounts(5)), so
//! it is read again only then: on machines with many containers it has thousands of lines.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::PathBuf;

use crate::cgroup::unescape;
use crate::sys;

/// The mounted network namespaces of one mount namespace.
#[derive(Debug)]
pub(crate) struct Mounts {
    /// Stays open, since the kernel tells changes to whoever has it open. `None` when it cannot be opened.
    table: Option<File>,
    paths: BTreeMap<u64, Vec<PathBuf>>,
    was_read: bool,
}

impl Mounts {
    /// Those of the calling thread's mount namespace, not yet read.
    pub(crate) fn open() -> Mounts {
        let table = File::open("/proc/thread-self/mountinfo").ok();
        Mounts { table, paths: BTreeMap::new(), was_read: false }
    }

    /// Reads them if they changed; those that are mounted and were not before.
    pub(crate) fn refresh(&mut self) -> Vec<u64> {
        let Some(table) = &mut self.table else { return Vec::new() };
        // Asked before reading: what is mounted in between is told again, not lost.
        let is_due = sys::has_changed(table) || !self.was_read;
        let mut text = Vec::new();
        if !is_due || table.rewind().is_err() || table.read_to_end(&mut text).is_err() {
            return Vec::new();
        }
        self.was_read = true;
        let before = std::mem::replace(&mut self.paths, parse(&String::from_utf8_lossy(&text)));
        self.paths.keys().filter(|inode| !before.contains_key(inode)).copied().collect()
    }

    /// Where each of them is mounted, by inode.
    pub(crate) fn paths(&self) -> &BTreeMap<u64, Vec<PathBuf>> {
        &self.paths
    }
}

/// Lines such as `66 64 0:4 net:[4026532316] /run/netns/y rw shared:3 - nsfs nsfs rw`; see proc_pid_mountinfo(5).
fn parse(mountinfo: &str) -> BTreeMap<u64, Vec<PathBuf>> {
    let mut paths: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    for line in mountinfo.lines().filter(|line| line.contains(" - nsfs ")) {
        let mut fields = line.split(' ').skip(3);
        let inode =
            fields.next().and_then(|root| root.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok());
        if let (Some(inode), Some(point)) = (inode, fields.next()) {
            paths.entry(inode).or_default().push(PathBuf::from(unescape(point)));
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounted_network_namespaces_are_told_from_all_else() {
        let mountinfo = "22 27 0:21 / /proc rw,relatime - proc proc rw\n\
                         66 64 0:4 net:[4026532316] /run/netns/a\\040b rw shared:3 - nsfs nsfs rw\n\
                         67 64 0:4 net:[4026532316] /run/docker/netns/default rw - nsfs nsfs rw\n\
                         68 64 0:4 mnt:[4026532317] /run/snapd/ns/x.mnt rw - nsfs nsfs rw\n\
                         69 64 0:4 net:[many] /run/netns/odd rw - nsfs nsfs rw\n\
                         70 64 0:5 net:[4026532318] /tmp/no rw - tmpfs tmpfs rw\n - nsfs \n";
        let paths = ["/run/netns/a b", "/run/docker/netns/default"].map(PathBuf::from);
        assert_eq!(parse(mountinfo), BTreeMap::from([(4_026_532_316, paths.to_vec())]));
    }
}
