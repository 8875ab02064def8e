//! Contacts as anybody with a credential might send them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| gk_model::fuzzing::contact(bytes));
