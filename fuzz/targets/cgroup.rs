//! Texts of `/proc` and of cgroup paths, whose names anybody may choose.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| gk_scan::fuzzing::cgroup(bytes));
