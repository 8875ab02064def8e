//! Memory of a process that needs much once and little afterwards.
//!
//! The agent's first scan and its reports take several times what it holds from one scan to the next. The allocator of
//! glibc keeps what is freed, and for each thread apart.
#![expect(unsafe_code, reason = "std has no interface to the allocator's settings")]

use std::cell::Cell;

/// So many turns from one return to the next: eight seconds at two scans a second, at 0.1 ms each.
const TURNS: u32 = 16;

/// Gives back what is free, now and then.
#[derive(Debug)]
pub(crate) struct Thrift {
    turns: Cell<u32>,
}

impl Thrift {
    /// Makes all threads share one heap from now on. They hardly ever allocate at the same time.
    pub(crate) fn start() -> Thrift {
        #[cfg(target_env = "gnu")]
        // SAFETY: takes plain numbers; no other thread was started yet.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 1);
        }
        Thrift { turns: Cell::new(0) }
    }

    /// To be called after each scan.
    pub(crate) fn turn(&self) {
        self.turns.set((self.turns.get() + 1) % TURNS);
        if self.turns.get() != 0 {
            return;
        }
        #[cfg(target_env = "gnu")]
        // SAFETY: takes a plain number, and touches free memory only.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}
