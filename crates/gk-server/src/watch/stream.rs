//! One stream: a place in the log that moves on as the client reads.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use futures_util::stream::unfold;
use gk_model::access::Actor;
use gk_model::secret::SecretHash;
use gk_model::watch::{EventCursor, EventFilter, Log};
use gk_store::{Error, Refusal};
use tokio::sync::watch;
use tokio::time::Instant;

use super::feed::Seat;
use super::frame;
use super::ring::Following;
use crate::app::App;
use crate::auth::{Caller, Guarded, Pass};
use crate::error::ApiError;
use crate::pace::PATIENCE;
use crate::permits::Permit;
use crate::serve::stopped;

/// How often a stream says how far it has come.
pub(crate) const BOOKMARK_EVERY: Duration = Duration::from_secs(15);

/// How often it is asked whether the token is still good. With the second that the door may remember what another
/// server has ended (`door.rs` in the store), a stream ends within the two that the domain allows.
const ASK_EVERY: Duration = Duration::from_millis(800);

/// How many events go out at once. A client that does not read holds this many, and no more.
const AT_ONCE: usize = 64;

/// Whether the server stops; without one, as in tests that have no server, it never does.
#[derive(Clone, Debug)]
pub(crate) struct Stopping(pub(crate) watch::Receiver<bool>);

/// Who opens a stream, and what ends it.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) actor: Actor,
    pass: Option<SecretHash>,
    stopping: Option<Stopping>,
}

impl FromRequestParts<Guarded> for Opening {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &Guarded) -> Result<Opening, Infallible> {
        let Caller(actor) = Caller::from_request_parts(parts, state).await?;
        let pass = parts.extensions.get::<Pass>().and_then(|Pass(hash)| *hash);
        Ok(Opening { actor, pass, stopping: parts.extensions.get().cloned() })
    }
}

/// A stream of what passes, from a place that the log reaches.
pub(crate) fn open(
    app: &App,
    opening: Opening,
    permit: Permit,
    log: Log,
    at: EventCursor,
    filter: EventFilter,
) -> Body {
    let seat = app.feed.enter(log, at);
    let now = Instant::now();
    let watcher = Watcher {
        grown: seat.subscribe(),
        seat,
        _permit: permit,
        app: app.clone(),
        filter,
        cursor: at,
        pass: opening.pass,
        stopping: opening.stopping,
        bookmark_at: now,
        ask_at: now + ASK_EVERY,
        unread_since: None,
        stalled_at: None,
        has_ended: false,
    };
    let stream = unfold(watcher, async |mut watcher| {
        let chunk = watcher.next().await?;
        Some((Ok::<Bytes, Infallible>(chunk), watcher))
    });
    Body::from_stream(stream)
}

/// The state of a stream. It is polled only when the client has taken what came before.
struct Watcher {
    seat: Seat,
    _permit: Permit,
    app: App,
    filter: EventFilter,
    cursor: EventCursor,
    grown: watch::Receiver<u64>,
    pass: Option<SecretHash>,
    stopping: Option<Stopping>,
    bookmark_at: Instant,
    ask_at: Instant,
    /// Since when the client has something to read.
    unread_since: Option<Instant>,
    stalled_at: Option<Instant>,
    has_ended: bool,
}

/// What a look brought.
enum Look {
    /// This much to send; nothing when all of it was filtered away.
    Chunk(Bytes),
    /// The log has not grown.
    Nothing,
}

impl Watcher {
    /// What the client gets next; none at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.is_stalling() {
            self.stalled_at = Some(Instant::now());
        }
        self.unread_since = None;
        let chunk = self.find_next().await?;
        self.unread_since = Some(Instant::now());
        Some(chunk)
    }

    /// Whether the client has had something to read for so long that its connection ends, or would soon: the connection
    /// begins to count when the kernel's buffers are full, a little before the server's own are.
    fn is_stalling(&self) -> bool {
        self.unread_since.is_some_and(|since| since.elapsed() >= PATIENCE / 2)
    }

    async fn find_next(&mut self) -> Option<Bytes> {
        while !self.has_ended {
            if self.is_stopping() {
                self.has_ended = true;
                return Some(frame::bookmark(self.cursor));
            }
            let look = if Instant::now() >= self.bookmark_at {
                if !self.seat.is_fed() {
                    return None;
                }
                self.bookmark_at = Instant::now() + BOOKMARK_EVERY;
                Look::Chunk(frame::bookmark(self.cursor))
            } else {
                self.look().await?
            };
            // After the look, which may have waited: nothing goes to whoever is not let in any more.
            if Instant::now() >= self.ask_at && !self.is_let_in().await {
                return None;
            }
            match look {
                Look::Chunk(chunk) if chunk.is_empty() => {}
                Look::Chunk(chunk) => return Some(chunk),
                Look::Nothing => self.wait().await,
            }
        }
        None
    }

    fn is_stopping(&self) -> bool {
        self.stopping.as_ref().is_some_and(|Stopping(stop)| *stop.borrow())
    }

    /// Shows the token again. Where that cannot be done the stream ends, too: its client comes back.
    async fn is_let_in(&mut self) -> bool {
        self.ask_at = Instant::now() + ASK_EVERY;
        let Some(hash) = self.pass else { return true };
        matches!(self.app.store.find_actor(hash, self.app.now()).await, Ok(Some(_)))
    }

    /// Takes what follows, and moves on; none when there can be nothing more.
    async fn look(&mut self) -> Option<Look> {
        // Before the look, so that nothing comes between it and the wait unnoticed.
        self.grown.mark_unchanged();
        match self.seat.after(self.cursor.seq, AT_ONCE) {
            Following::Nothing => Some(Look::Nothing),
            Following::Entries(entries) => {
                let last = entries.last().map_or(self.cursor.seq, |entry| entry.seq());
                let passing = entries
                    .iter()
                    .filter(|entry| self.filter.passes(&entry.logged.event, entry.logged.labels.as_ref()));
                let frames: Vec<Bytes> = passing.map(|entry| entry.frame.clone()).collect();
                Some(self.take(last, frames))
            }
            // Boxed: few watchers are behind, and the others need not have room for it.
            Following::Elsewhere => Box::pin(self.look_behind()).await,
        }
    }

    async fn look_behind(&mut self) -> Option<Look> {
        match self.seat.read_after(self.cursor).await {
            Ok(logged) => {
                let last = logged.last().map_or(self.cursor.seq, |logged| logged.event.seq);
                let passing =
                    logged.iter().filter(|logged| self.filter.passes(&logged.event, logged.labels.as_ref()));
                let cursor = |seq| EventCursor { seq, ..self.cursor };
                let frames = passing.map(|logged| frame::event(cursor(logged.event.seq), logged)).collect();
                Some(self.take(last, frames))
            }
            Err(Error::Refused(refusal)) if matches!(*refusal, Refusal::StaleCursor { .. }) => {
                self.has_ended = true;
                self.seat.counters().overtaken.fetch_add(1, Ordering::Relaxed);
                Some(Look::Chunk(frame::gone(&ApiError::Refused(refusal).problem())))
            }
            // The client comes back, and is told what is wrong.
            Err(_) => None,
        }
    }

    /// Moves on to the event of this number, with the texts of those that pass up to there.
    fn take(&mut self, seq: u64, mut frames: Vec<Bytes>) -> Look {
        self.cursor.seq = seq;
        self.seat.note(seq);
        self.seat.counters().sent.fetch_add(frames.len() as u64, Ordering::Relaxed);
        Look::Chunk(match frames.len() {
            // The usual case, in which all watchers share one text.
            1 => frames.remove(0),
            _ => frames.concat().into(),
        })
    }

    /// Until the log has grown, or something else is due.
    async fn wait(&mut self) {
        let due = self.bookmark_at.min(if self.pass.is_some() { self.ask_at } else { self.bookmark_at });
        let stop = async {
            match &mut self.stopping {
                Some(Stopping(stop)) => stopped(stop).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.grown.changed() => {}
            () = tokio::time::sleep_until(due) => {}
            () = stop => {}
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // A connection that is being cut off first asks for more once or twice.
        let just_now = |at: Instant| at.elapsed() < Duration::from_secs(1);
        if self.is_stalling() || self.stalled_at.is_some_and(just_now) {
            self.seat.counters().stalled.fetch_add(1, Ordering::Relaxed);
        }
    }
}
