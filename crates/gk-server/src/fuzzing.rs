//! What a fuzzer drives: queries, and the headers that say whom a request is meant for and from whom it comes.
//!
//! Compiled for the fuzzer (`cfg(fuzzing)`) and for the tests, which replay its corpus.

use std::fmt::Debug;
use std::net::SocketAddr;

use axum::http::header::{FORWARDED, HOST};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, Version};
use gk_model::query::{
    DriftQuery, EventQuery, HistoryQuery, InstanceQuery, PortQuery, ReservationQuery, TokenQuery,
};
use gk_model::watch::WatchQuery;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::extract::decode::from_query;
use crate::hosts::{Head, HostName, Hosts};
use crate::proxy::{Cidr, forwarded_for};

/// The same bytes as everything that a stranger may write: each is refused, or means one thing.
pub fn words(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    query(&text);
    name(&text);
    range(&text);
    if let Ok(value) = HeaderValue::from_bytes(bytes) {
        forwarded(&value);
        host(&value);
    }
}

/// Of each list, whether it was read.
fn query(text: &str) -> [bool; 8] {
    [
        says_the_same::<InstanceQuery>(text),
        says_the_same::<PortQuery>(text),
        says_the_same::<DriftQuery>(text),
        says_the_same::<TokenQuery>(text),
        says_the_same::<ReservationQuery>(text),
        says_the_same::<HistoryQuery>(text),
        says_the_same::<EventQuery>(text),
        says_the_same::<WatchQuery>(text),
    ]
}

fn says_the_same<T: DeserializeOwned + Serialize + PartialEq + Debug>(text: &str) -> bool {
    let Ok(read) = from_query::<T>(text) else { return false };
    let written = serde_urlencoded::to_string(&read).expect("what was read can be written");
    assert_eq!(from_query::<T>(&written).ok().as_ref(), Some(&read), "{written}");
    true
}

fn name(text: &str) -> bool {
    let Ok(name) = text.parse::<HostName>() else { return false };
    let written = name.to_string();
    assert!(!written.contains([':', '[', '@', '/', ' ']), "{written}");
    assert_eq!(written.parse(), Ok(name));
    true
}

fn range(text: &str) -> bool {
    let Ok(range) = text.parse::<Cidr>() else { return false };
    assert_eq!(range.to_string().parse(), Ok(range));
    true
}

/// Whether it names a client; nobody is believed but the proxy, and of two headers that differ neither.
fn forwarded(value: &HeaderValue) -> bool {
    let trusted = ["10.0.0.0/8", "fd00::/8"].map(|range| range.parse().expect("it is one"));
    let [proxy, stranger] =
        ["10.0.0.1:1", "192.0.2.1:1"].map(|peer| peer.parse::<SocketAddr>().expect("it is one"));
    let lines = |names: &[HeaderName]| -> HeaderMap {
        names.iter().map(|name| (name.clone(), value.clone())).collect()
    };
    let names = [HeaderName::from_static("x-forwarded-for"), FORWARDED];
    let each = names.clone().map(|name| forwarded_for(&trusted, proxy, &lines(&[name])));
    let both = forwarded_for(&trusted, proxy, &lines(&names));
    assert_eq!(forwarded_for(&trusted, stranger, &lines(&names)), None);
    match each {
        [Some(one), Some(other)] if one != other => assert_eq!(both, None),
        [one, other] => assert_eq!(both, one.or(other)),
    }
    both.is_some()
}

/// Whether it is let in: by any name whatever is a host at all, and by none if it is none.
fn host(value: &HeaderValue) -> bool {
    let headers = HeaderMap::from_iter([(HOST, value.clone())]);
    let uri = Uri::from_static("/");
    let head = Head { version: Version::HTTP_11, uri: &uri, headers: &headers };
    let [ours, any] = [None, Some("*".parse().expect("any name"))].map(|name| Hosts::new("web-1", name));
    let is_ours = ours.check(&head).is_ok();
    assert!(!is_ours || any.check(&head).is_ok());
    is_ours
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn what_the_fuzzer_kept_is_read() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/words");
        let files = fs::read_dir(corpus).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap());
        let kept: Vec<Vec<u8>> = files.collect();
        kept.iter().for_each(|bytes| words(bytes));
        let texts = || kept.iter().filter_map(|bytes| std::str::from_utf8(bytes).ok());
        let values = || kept.iter().filter_map(|bytes| HeaderValue::from_bytes(bytes).ok());
        // The empty query is every list's.
        let queries: Vec<[bool; 8]> = texts().filter(|text| !text.is_empty()).map(query).collect();
        for list in 0..8 {
            assert!(queries.iter().any(|read| read[list]), "a query of list {list} is among them");
        }
        assert!(texts().any(name) && texts().any(range), "a name and a range are among them");
        assert!(values().any(|value| forwarded(&value)), "a client is named");
        assert!(values().any(|value| host(&value)), "a host is let in");
    }
}
