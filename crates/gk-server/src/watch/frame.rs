//! The text of a stream, in the format of server-sent events (`text/event-stream`, WHATWG HTML 9.2).
//!
//! Each event has an `id`, which is the place behind it: a browser sends it back as `Last-Event-ID`.

use std::fmt;

use axum::body::Bytes;
use gk_model::problem::Problem;
use gk_model::watch::{Bookmark, EventCursor};
use gk_store::Logged;
use serde::Serialize;
use utoipa::ToSchema;

/// One event of a stream.
#[derive(Debug, ToSchema)]
pub(crate) struct Frame {
    /// The place behind it, where to go on after an interruption. `gone` has none.
    id: Option<EventCursor>,
    /// The kind of an event of the log, or `bookmark` (everything up to its place has been delivered or filtered away),
    /// or `gone` (the stream ends and cannot be resumed).
    #[schema(example = "opened")]
    event: &'static str,
    /// As JSON: an `Event`, `{"cursor": …}` or a `Problem`.
    data: String,
}

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

fn frame(event: &'static str, id: Option<EventCursor>, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).expect("wire types have string keys and no failing serializers");
    Frame { id, event, data }.to_string().into()
}

impl fmt::Display for Frame {
    /// JSON has no line ends outside of its strings, and none unescaped inside, so that `data` is one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(id) = self.id {
            writeln!(f, "id: {id}")?;
        }
        write!(f, "event: {}\ndata: {}\n\n", self.event, self.data)
    }
}
