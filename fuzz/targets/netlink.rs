//! Datagrams as sock_diag might send them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| gk_scan::fuzzing::netlink(bytes));
