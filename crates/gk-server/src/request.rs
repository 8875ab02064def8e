//! Around every request: its id, its span in the log, its time limit, its place among those counted, and the body of its
//! refusal.
//!
//! This is the outermost layer: whatever answers below (handlers, fallbacks, a caught panic), the answer
//! gets an `x-request-id`, and a refusal its body, here.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures_util::FutureExt as _;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::auth::Peer;
use crate::drain::hear_out;
use crate::error::{ApiError, finish};
use crate::headers::protect;
use crate::metrics::Traffic;

/// How long an answer may take, the reading of the body included.
const TIMEOUT: Duration = Duration::from_secs(30);

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What ties an answer to the lines of the log about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestId(String);

impl RequestId {
    const MOST_CHARS: usize = 64;

    /// The caller's own id when it is short and printable, so that it can follow a request through several systems;
    /// else a new one.
    fn of(headers: &HeaderMap) -> RequestId {
        let given = headers.get(X_REQUEST_ID).and_then(|value| value.to_str().ok());
        let is_sane = |id: &&str| {
            (1..=RequestId::MOST_CHARS).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
        };
        match given.filter(is_sane) {
            Some(id) => RequestId(id.to_owned()),
            None => RequestId(Uuid::now_v7().to_string()),
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The layer. Whatever happens inside, the caller gets an answer in time, and a refusal has the shape of a problem.
pub(crate) async fn observe(State(traffic): State<Traffic>, mut request: Request, next: Next) -> Response {
    let id = RequestId::of(request.headers());
    let peer = request.extensions().get::<ConnectInfo<Peer>>();
    // Of the highest level, so that a log that shows only errors still shows which request they belong to. Without the
    // query, which may hold what people search for.
    let span = tracing::error_span!(
        "request",
        request.id = %id,
        http.method = %request.method(),
        http.path = request.uri().path(),
        http.peer = peer.map(|ConnectInfo(peer)| tracing::field::display(peer)),
        actor.subject = tracing::field::Empty, // known when `auth::guard` has let it in
    );
    request.extensions_mut().insert(id.clone());
    answer(&traffic, request, next, &id).instrument(span).await
}

async fn answer(traffic: &Traffic, request: Request, next: Next, id: &RequestId) -> Response {
    let (started, asked) = (Instant::now(), traffic.asked(request.method(), request.extensions()));
    let answering = hear_out(request, |request| survive(request, next));
    let response = match tokio::time::timeout(TIMEOUT, answering).await {
        Ok(response) => response,
        Err(_) => ApiError::TimedOut.into_response(),
    };
    let mut response = finish(response, id);
    let headers = response.headers_mut();
    headers.insert(X_REQUEST_ID, HeaderValue::from_str(&id.0).expect("visible ASCII is header text"));
    protect(headers);
    let took = started.elapsed();
    traffic.count(asked, response.status(), took);
    let duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    tracing::debug!(http.status = response.status().as_u16(), http.duration_us = duration_us, "answered");
    response
}

/// A panic is an answer too.
async fn survive(request: Request, next: Next) -> Response {
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    answered.unwrap_or_else(|payload| ApiError::from_panic(payload.as_ref()).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sane_id_is_kept_and_any_other_replaced() {
        let of = |text: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, HeaderValue::from_bytes(text).unwrap());
            RequestId::of(&headers).0
        };
        assert_eq!(of(b"req-42/a"), "req-42/a");
        assert_eq!(of(&[b'x'; 64]).len(), 64);
        for bad in [&b""[..], b"two words", &[b'x'; 65], &[0xff, 0xfe]] {
            assert!(Uuid::try_parse(&of(bad)).is_ok(), "{bad:?} was kept");
        }
    }
}
