//! What a fuzzer drives: the messages of agents, and words in queries, headers and files, whatever bytes they are.
//!
//! Compiled for the fuzzer (`cfg(fuzzing)`) and for the tests, which replay its corpus.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use crate::contact::{Contact, ContactBody};
use crate::expect::Expect;
use crate::labels::Selector;
use crate::listener::Digest;
use crate::port::PortRange;
use crate::secret::{Secret, SecretHash};
use crate::time::Timestamp;
use crate::watch::{EventCursor, EventKinds};

/// A contact that can be read says the same when it is written and read again, and its set has a digest.
pub fn contact(bytes: &[u8]) {
    let Ok(read) = serde_json::from_slice::<Contact>(bytes) else { return };
    let written = serde_json::to_vec(&read).expect("what was read can be written");
    let again: Contact = serde_json::from_slice(&written).expect("what we write can be read");
    assert_eq!(read, again);
    if let ContactBody::Report { listeners, .. } | ContactBody::Delta { listeners, .. } = &read.body {
        Digest::of(listeners);
        listeners
            .iter()
            .for_each(|listener| drop(format!("{} {}", listener.describe(), listener.key.bound_to())));
    }
}

/// A word of each kind: one that can be read says the same when it is written and read again. And a secret is what was
/// given, as long as all are, and shown by no message.
pub fn words(text: &str) {
    says_the_same::<EventCursor>(text);
    says_the_same::<EventKinds>(text);
    says_the_same::<Selector>(text);
    says_the_same::<Expect>(text);
    says_the_same::<PortRange>(text);
    says_the_same::<Timestamp>(text);
    says_the_same::<SecretHash>(text);
    // Of what is none, the error says nothing: by its type, which has no field.
    if let Ok(secret) = text.parse::<Secret>() {
        assert_eq!((secret.reveal(), secret.reveal().len()), (text.trim(), 68));
        assert!(secret.reveal().starts_with(secret.kind().prefix()));
        assert!(!format!("{secret:?}").contains(&secret.reveal()[4..]));
        says_the_same::<SecretHash>(&secret.hash().to_string());
    }
}

/// Whether it was read.
fn says_the_same<T: FromStr + Display + PartialEq + Debug>(text: &str) -> bool {
    let Ok(read) = text.parse::<T>() else { return false };
    let written = read.to_string();
    assert_eq!(written.parse::<T>().ok().as_ref(), Some(&read), "{written}");
    true
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn what_the_fuzzer_kept_of_words_is_read() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/words");
        let files = fs::read_dir(corpus).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap());
        let texts: Vec<String> = files.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect();
        texts.iter().for_each(|text| words(text));
        for (kind, is_read) in [
            ("cursor", says_the_same::<EventCursor> as fn(&str) -> bool),
            ("selector", says_the_same::<Selector>),
            ("secret", |text| text.parse::<Secret>().is_ok()),
        ] {
            assert!(texts.iter().any(|text| is_read(text)), "a {kind} is among them");
        }
    }

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
