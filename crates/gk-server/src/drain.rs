//! Hearing a client out: what a refusal left unread of a request's body is read and dropped before the answer goes.
//!
//! A refusal is often decided by the head alone: who calls, which route, what type. Answering then would close the
//! connection with bytes still in it, the kernel would answer those with a reset, and the client, still writing, would
//! see "broken pipe" instead of the reason.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use hyper::body::{Body as _, Frame, SizeHint};

use crate::error::ApiError;
use crate::pace::Paced;

/// How much is read for the sake of politeness. Whoever sends more learns of it by the reset.
const MOST_BYTES: usize = 9 << 20;

/// How long for the rest of a body, once the answer is decided.
const PATIENCE: Duration = Duration::from_secs(2);

/// The request, answered, and heard out. Its time counts towards the request's.
pub(crate) async fn hear_out<F: Future<Output = Response>>(
    request: Request,
    answer: impl FnOnce(Request) -> F,
) -> Response {
    if request.body().is_end_stream() {
        return answer(request).await;
    }
    let (head, body) = request.into_parts();
    let (body, too_slow) = Paced::new(body);
    let body = Shared(Arc::new(Mutex::new(body)));
    let response = answer(Request::from_parts(head, Body::new(body.clone()))).await;
    if too_slow.load(Ordering::Relaxed) {
        return ApiError::TooSlow.into_response();
    }
    // Whoever sends too slowly gets the answer, and the reset.
    let _in_time = tokio::time::timeout(PATIENCE, drop_rest(body)).await;
    response
}

async fn drop_rest(mut body: Shared) {
    let mut read = 0;
    while read < MOST_BYTES {
        match poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            Some(Ok(frame)) => read += frame.data_ref().map_or(0, Bytes::len),
            // At the end, or the client went away: either way nobody is writing any more.
            Some(Err(_)) | None => return,
        }
    }
}

/// A body that the handler and the layer hold at once; the layer reads when the handler is done.
#[derive(Clone)]
struct Shared(Arc<Mutex<Paced>>);

impl hyper::body::Body for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}
