//! Headers: how much of them a request may have, and what each answer tells browsers.
//!
//! No answer ever carries `Access-Control-Allow-Origin`: there is no page of another origin that may read one, and a
//! preflight (`OPTIONS`) is a method that no route takes.

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::error::ApiError;

/// The most that path and query may have together. hyper itself gives up at 64 KiB, with an empty 414.
const MOST_ADDRESS_BYTES: usize = 8 << 10;

/// The most that all headers may have together. hyper gives up a little later, with an empty 431.
const MOST_HEADER_BYTES: usize = 32 << 10;

/// What hyper reads of a head before it gives up: line and headers with room to spare, so that a head which is only
/// somewhat too large is answered by a problem. Somebody without a token may have so much of our memory for each connection.
pub(crate) const HEAD_BUFFER_BYTES: usize = 56 << 10;

/// The most headers that hyper takes; more are an empty 431.
pub(crate) const MOST_HEADERS: usize = 100;

const CORP: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// Refuses a head that is larger than anybody needs.
pub(crate) fn check_size(head: &Parts) -> Result<(), ApiError> {
    let address = head.uri.path_and_query().map_or(0, |address| address.as_str().len());
    if address > MOST_ADDRESS_BYTES {
        return Err(ApiError::AddressTooLong);
    }
    let headers: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if headers > MOST_HEADER_BYTES {
        return Err(ApiError::HeadersTooLarge);
    }
    Ok(())
}

// As constants, so that nobody looks through these texts for bad characters at each answer.
const ALWAYS: [(HeaderName, HeaderValue); 4] = [
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (CORP, HeaderValue::from_static("same-origin")),
];

const UNLESS_SAID: [(HeaderName, HeaderValue); 2] = [
    (
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; base-uri 'none'"),
    ),
    // What somebody may see does not stay in a cache for the next one.
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

/// Tells browsers to do as little as possible with an answer. A page that needs more has said so before.
pub(crate) fn protect(headers: &mut HeaderMap) {
    headers.reserve(ALWAYS.len() + UNLESS_SAID.len());
    for (name, value) in ALWAYS {
        headers.insert(name, value);
    }
    for (name, value) in UNLESS_SAID {
        headers.entry(name).or_insert(value);
    }
}
