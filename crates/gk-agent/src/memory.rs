//! Little memory, and what is free of it goes back to the machine.
//!
//! The first scan and each full report take several times what an agent at rest needs. glibc keeps what was freed, as long as
//! anything behind it is in use: a third of five MiB with a thousand listeners, for as long as the agent runs.
#![cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "std has neither malloc_trim nor mallopt"))]

/// Lets all threads of the process share one heap, for a process that runs an agent and nothing else. glibc would make one for
/// each, so that threads that allocate at the same time need not wait for each other; ours seldom do. With another
/// allocator it does nothing.
pub fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes plain numbers, and touches no memory that anybody has.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back what is free now. It walks through all of that, and so belongs behind large work only; with another allocator
/// than glibc's it does nothing.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a plain number, and touches only memory that nobody has.
    unsafe {
        libc::malloc_trim(0);
    }
}
