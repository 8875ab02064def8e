//! What a fuzzer drives: the messages of agents, whatever bytes they are.
//!
//! Compiled for the fuzzer (`cfg(fuzzing)`) and for the tests, which replay its corpus.

use crate::contact::{Contact, ContactBody};
use crate::listener::Digest;

/// A contact that can be read says the same when it is written and read again, and its set has a digest.
pub fn contact(bytes: &[u8]) {
    let Ok(read) = serde_json::from_slice::<Contact>(bytes) else { return };
    let written = serde_json::to_vec(&read).expect("what was read can be written");
    let again: Contact = serde_json::from_slice(&written).expect("what we write can be read");
    assert_eq!(read, again);
    if let ContactBody::Report { listeners, .. } | ContactBody::Delta { listeners, .. } = &read.body {
        Digest::of(listeners);
        listeners.iter().for_each(|listener| drop((listener.describe(), listener.key.bound_to())));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    #[test]
    fn what_the_fuzzer_kept_is_read() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/contact");
        let files: Vec<_> = fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
        let is_contact = |bytes: &Vec<u8>| serde_json::from_slice::<super::Contact>(bytes).is_ok();
        let read = files.iter().filter(|file| is_contact(&fs::read(file).unwrap())).count();
        assert!(read >= 3, "a heartbeat, a delta and a report are among them");
        files.iter().for_each(|file| super::contact(&fs::read(file).unwrap()));
    }
}
