//! What a fuzzer drives: each parser of foreign bytes with what must hold whatever it is given.
//!
//! Compiled for the fuzzer (`cfg(fuzzing)`) and for the tests, which replay its corpus.

use gk_model::port::Protocol;

use crate::cgroup::{best_path, cgroup2_mount};
use crate::parse::{Message, messages};
use crate::place::{Place, place};

/// A datagram of sock_diag: what is read of it ends, and is of the protocol that was asked for.
pub fn netlink(bytes: &[u8]) {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let said: Vec<_> = messages(bytes).collect();
        assert!(said.len() <= bytes.len() / 16 + 1, "more messages than headers fit");
        for envelope in &said {
            if let Message::Socket(told) = envelope.message
                && let Some(socket) = told.read(protocol)
            {
                assert_eq!(socket.protocol, protocol);
                assert_ne!(socket.inode.map(|inode| inode.0), Some(0));
            }
        }
    }
}

/// Mounts, a process's cgroups, and the path of one: a unit of the system is one directory, and no container has an empty id.
pub fn cgroup(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    cgroup2_mount(&text);
    for path in [Some(&*text), best_path(&text)].into_iter().flatten() {
        let Place { unit, container } = place(path);
        // Only that of a user has a path, below the user's manager.
        let unit = unit.as_ref().map(gk_model::text::Observed::as_str);
        let is_sane = |unit: &str| !unit.is_empty() && (unit.starts_with("user@") || !unit.contains('/'));
        assert!(unit.is_none_or(is_sane), "{path}");
        assert!(container.is_none_or(|container| !container.id.as_str().is_empty()), "{path}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    fn replay(target: &str, run: fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
        let mut count = 0;
        for entry in fs::read_dir(corpus).unwrap() {
            run(&fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 3, "the corpus of {target} is there");
    }

    #[test]
    fn what_the_fuzzer_kept_is_read() {
        replay("netlink", super::netlink);
        replay("cgroup", super::cgroup);
    }
}
