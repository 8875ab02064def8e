//! As whom this process runs.

use std::os::unix::fs::MetadataExt as _;

/// Whether this process acts for the whole machine.
pub fn is_root() -> bool {
    own_uid() == 0
}

/// Its effective account.
pub fn own_uid() -> u32 {
    // The owner of /proc/self is the effective uid of the process.
    std::fs::metadata("/proc/self").map_or(u32::MAX, |metadata| metadata.uid())
}
