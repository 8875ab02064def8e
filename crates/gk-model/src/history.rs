//! History: the event log, and the intervals made from it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::{ReservationId, TokenId};
use crate::instance::InstanceLink;
use crate::listener::Listener;
use crate::port::{Port, Protocol};
use crate::text::{PortName, ServiceName, Subject};
use crate::text_form::words;
use crate::time::Timestamp;

words! {
    /// What happened.
    EventKind, "an event kind" {
        /// An instance joined.
        Joined = "joined",
        /// An instance left.
        Left = "left",
        /// An instance got another name.
        Renamed = "renamed",
        /// An instance got other labels.
        Labelled = "labelled",
        /// A port was reserved.
        Reserved = "reserved",
        /// A port somebody already listened on was reserved for that listener.
        Adopted = "adopted",
        /// What a reservation is for, its name, its remark, its labels or its expectation changed.
        Edited = "edited",
        /// A lease was prolonged.
        Renewed = "renewed",
        /// A reservation, or a part of it, ended by release.
        Released = "released",
        /// What remains of a reservation after a part of it was released goes on; one event for each remaining range.
        Split = "split",
        /// A lease ended.
        Expired = "expired",
        /// A listener appeared.
        Opened = "opened",
        /// A listener disappeared.
        Closed = "closed",
        /// A listener stayed, and its owners, unit or container changed.
        OwnerChanged = "owner_changed",
        /// A lease is about to end, unless it is renewed.
        Expiring = "expiring",
        /// A reserved port is listened on by somebody else than expected, or on another instance than it is held for.
        ConflictBegan = "conflict_began",
        /// That is over.
        ConflictEnded = "conflict_ended",
        /// An ignore rule was made or changed.
        IgnoreSet = "ignore_set",
        /// An ignore rule was taken away.
        IgnoreDeleted = "ignore_deleted",
        /// A token was made.
        TokenCreated = "token_created",
        /// A token was revoked.
        TokenRevoked = "token_revoked",
        /// A pool was made or changed.
        PoolSet = "pool_set",
        /// A pool was deleted.
        PoolDeleted = "pool_deleted",
        /// A listener came, went or changed hands so often that this is told by its number; the message has the counts.
        Churn = "churn",
        /// An instance was heard of no more.
        Offline = "offline",
        /// An instance that was offline was heard of again.
        Online = "online",
    }
}

/// Where a request came from that changed something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Origin {
    /// The token it came with, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenId>,
    /// The address it came from, if it came over the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// Its `x-request-id`, as in the log and in the answer.
    pub request: String,
}

// The listener is boxed: most lines have none, and a page is a thousand lines.
/// One immutable line of history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Its number: consecutive, in commit order.
    pub seq: u64,
    /// When it happened, corrected by the measured offset of the agent's clock; never later than `recorded_at`.
    pub at: Timestamp,
    /// When the server wrote it down.
    pub recorded_at: Timestamp,
    /// What happened.
    pub kind: EventKind,
    /// The instance it happened on.
    pub instance: Option<InstanceLink>,
    /// The protocol of the ports.
    pub protocol: Option<Protocol>,
    /// The lowest port.
    pub first_port: Option<Port>,
    /// The highest port.
    pub last_port: Option<Port>,
    /// Who did it.
    pub actor: Subject,
    /// How it was asked for; none for what the server or an agent's report did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Box<Origin>>,
    /// The reservation it is about.
    pub reservation: Option<ReservationId>,
    /// The listener it is about, as it was then.
    pub listener: Option<Box<Listener>>,
    /// The same in words.
    pub message: String,
}

words! {
    /// What an interval tells.
    IntervalKind, "an interval kind" {
        /// Somebody had reserved the ports.
        Held = "held",
        /// Somebody listened on the port.
        Listened = "listened",
    }
}

/// Who held or listened on which ports, from when to when. The owner is the same from one end to the other: when the
/// owner of a listener changes, one interval ends and the next begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Interval {
    /// Number of the event that began it.
    pub seq: u64,
    /// Held or listened on.
    pub kind: IntervalKind,
    /// The instance; none for what was held for all of them.
    pub instance: Option<InstanceLink>,
    /// The protocol.
    pub protocol: Protocol,
    /// The lowest port.
    pub first_port: Port,
    /// The highest port.
    pub last_port: Port,
    /// When it began, by observed time.
    pub began_at: Timestamp,
    /// When it ended; none while it lasts.
    pub ended_at: Option<Timestamp>,
    /// For held ones: what for.
    pub service: Option<ServiceName>,
    /// For held ones: which of the service's ports.
    pub name: Option<PortName>,
    /// For held ones: by whom.
    pub holder: Option<Subject>,
    /// For held ones: the reservation.
    pub reservation: Option<ReservationId>,
    /// For listened ones: the listener.
    pub listener: Option<Box<Listener>>,
}

/// From when to when nobody watched the listeners of an instance: its agent did not run, or has not told yet. What is
/// said to have been listened on then is what was seen before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Gap {
    /// The instance.
    pub instance: InstanceLink,
    /// When its listeners were last confirmed.
    pub from: Timestamp,
    /// When they were seen again; none while it is offline.
    pub until: Option<Timestamp>,
}

impl Gap {
    /// The most that one page of history tells.
    pub const MOST: u32 = 1000;

    /// Whether a moment is in it.
    pub fn contains(&self, at: Timestamp) -> bool {
        self.from < at && self.until.is_none_or(|until| at < until)
    }
}

/// One page of history: intervals, and in which part of that time nobody watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct History {
    /// The intervals.
    pub items: Vec<Interval>,
    /// The gaps that began in the time of this page, the last first; of all pages together, those of the whole time that
    /// was asked for. A page tells the newest 1000 of its time.
    pub gaps: Vec<Gap>,
    /// The cursor of the next page; none on the last.
    pub next: Option<String>,
}
