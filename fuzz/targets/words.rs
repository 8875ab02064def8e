//! Words of strangers: queries, cursors, tokens, selectors, names, and what headers say.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    gk_model::fuzzing::words(&String::from_utf8_lossy(bytes));
    gk_server::fuzzing::words(bytes);
});
