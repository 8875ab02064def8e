//! Watching: the event log told as it grows, to any number of clients, each at its own pace.
//!
//! Nobody is pushed to. The writer's commit wakes the one [`Feed`] of the process, which reads what is new from the
//! database once, turns each event into text once, and keeps the newest few thousand in a [`Ring`](ring::Ring). A
//! [`Watcher`] holds a place in the log and nothing else: it takes what follows from the ring, or, while it is further
//! behind, page by page from the database. So a client that does not read costs its own connection, until `pace.rs` cuts
//! that off, and nobody else anything: it comes back with its place and misses nothing.
//!
//! Promises: a stream tells each event behind its place that passes its filters, once and in the order of the log, after
//! its commit; it says every [`BOOKMARK_EVERY`](stream::BOOKMARK_EVERY) how far it has come; when it cannot go on
//! without a gap it says that and ends; and it ends soon after the token that it was opened with.

mod feed;
mod frame;
mod ring;
mod stream;

pub(crate) use feed::{Feed, WatchMetrics};
pub(crate) use frame::Frame;
pub(crate) use stream::{Opening, Stopping, open};
