//! The text of a stream, in the format of server-sent events (`text/event-stream`, WHATWG HTML 9.2).
//!
//! Each event has an `id`, which is the place behind it: a browser sends it back as `Last-Event-ID`.

use axum::body::Bytes;
use gk_model::problem::Problem;
use gk_model::watch::{Bookmark, EventCursor};
use gk_store::Logged;
use serde::Serialize;

/// An event of the log.
pub(crate) fn event(cursor: EventCursor, logged: &Logged) -> Bytes {
    frame(logged.event.kind.as_str(), Some(cursor), &logged.event)
}

/// How far the stream has come.
pub(crate) fn bookmark(cursor: EventCursor) -> Bytes {
    frame("bookmark", Some(cursor), &Bookmark { cursor })
}

/// Why the stream ends and cannot be resumed. It has no id, so that a browser keeps the last one and is told the same
/// again, by a 410.
pub(crate) fn gone(problem: &Problem) -> Bytes {
    frame("gone", None, problem)
}

/// JSON has no line ends outside of its strings, and none unescaped inside, so that `data` is one line.
fn frame(kind: &str, cursor: Option<EventCursor>, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).expect("wire types have string keys and no failing serializers");
    let id = cursor.map(|cursor| format!("id: {cursor}\n")).unwrap_or_default();
    Bytes::from(format!("{id}event: {kind}\ndata: {data}\n\n"))
}
