//! Contacts: the messages of an agent, and what the server answers.
//!
//! The protocol, so that nothing is applied twice, out of order, or from a clone (rule 9 of the domain):
//!
//! - An agent opens a **session** by presenting the last session it held and a nonce of its own, together with a full
//!   report. The server issues the next number. The same nonce again (a lost answer) gets the same number; any older
//!   session is refused, because somebody else has gone on with this identity.
//! - Within a session every contact that may change something carries the next **sequence** number. A number that was
//!   acknowledged before is acknowledged again and changes nothing. A delta names the number it builds on (`base`); when
//!   that is not the last acknowledged one, the server asks for a report.
//! - Every contact carries the **digest** of the agent's whole set after it. A mismatch asks for a report.
//! - A report says which parts it **covered**; a listener that is missing is closed only in a covered part, or when its
//!   namespace is not among all the **namespaces** that there are. One that is too large for a contact comes in **pieces**,
//!   each of which covers its keys only and names the one before as a base.
//! - An agent that was killed while the server was away still has history to tell. It opens with a report that covers
//!   nothing, learns from the answer (`previous`) how far the session before had come, and tells the rest as deltas.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::listener::{Digest, Listener, ListenerKey, Netns};
use crate::port::{Port, Protocol};
use crate::text::Observed;
use crate::text_form::words;
use crate::time::Timestamp;

words! {
    /// The version of IP a socket was made for.
    Family, "a family" {
        /// IPv4.
        V4 = "v4",
        /// IPv6, dual-stack sockets included.
        V6 = "v6",
    }
}

words! {
    /// What a contact is.
    ContactKind, "a kind of contact" {
        /// Nothing changed.
        Heartbeat = "heartbeat",
        /// What changed.
        Delta = "delta",
        /// Everything, or a piece of it.
        Report = "report",
    }
}

/// One part of a scan: all sockets of a protocol and family in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub struct Part {
    /// The namespace.
    pub netns: Netns,
    /// The protocol.
    pub protocol: Protocol,
    /// The family.
    pub family: Family,
}

impl ListenerKey {
    /// The part of a scan that shows it.
    pub fn part(&self) -> Part {
        let family = if self.address.is_ipv4() { Family::V4 } else { Family::V6 };
        Part { netns: self.netns, protocol: self.protocol, family }
    }
}

/// A port that is taken by something other than a listener: a UDP client, or a socket that is bound but does not
/// listen. It is no listener, but nobody else could bind it either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub struct Occupied {
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: Port,
}

/// A listener that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Closed {
    /// Which one.
    pub key: ListenerKey,
    /// When it was found gone, by the agent's clock.
    pub at: Timestamp,
}

/// What happened to a listener and is told by its number only: so many changes came together that they were counted
/// instead of kept. What became of the listener is told beside it, like any other change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Churn {
    /// Which one.
    pub key: ListenerKey,
    /// When the first of them happened, by the agent's clock.
    pub from: Timestamp,
    /// When the last of them happened.
    pub until: Timestamp,
    /// How often it appeared, those told one by one not counted.
    pub opened: u64,
    /// How often it disappeared.
    pub closed: u64,
    /// How often its owners changed while it stayed.
    pub changed: u64,
}

/// Which of a report's listeners a contact tells: all, unless it says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Piece {
    /// The sequence number of the piece before; none for the first one, which also tells everything but listeners.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<u64>,
    /// Only those above this key, which the pieces before told up to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<ListenerKey>,
    /// Only those up to this key; none for the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<ListenerKey>,
}

impl Piece {
    /// Whether it would tell of this listener if it were there.
    pub fn holds(&self, key: &ListenerKey) -> bool {
        self.after.as_ref().is_none_or(|after| key > after)
            && self.until.as_ref().is_none_or(|until| key <= until)
    }

    /// Whether nothing follows it.
    pub fn is_last(&self) -> bool {
        self.until.is_none()
    }

    /// Whether it is the whole report.
    pub fn is_whole(&self) -> bool {
        *self == Piece::default()
    }

    /// Cuts a report's listeners, in the order of their keys, so that each piece fits into a contact with room to spare.
    /// There is at least one piece. Bases are for whoever sends them to fill in.
    pub fn cut(mut listeners: Vec<Listener>, most_bytes: usize) -> Vec<(Piece, Vec<Listener>)> {
        listeners.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        let mut pieces: Vec<(Piece, Vec<Listener>)> = vec![(Piece::default(), Vec::new())];
        let mut bytes = 0;
        for listener in listeners {
            let (piece, told) = pieces.last_mut().expect("there is at least one");
            bytes += listener.about_bytes();
            if bytes > most_bytes && !told.is_empty() {
                bytes = listener.about_bytes();
                piece.until = told.last().map(|last| last.key.clone());
                let next = Piece { after: piece.until.clone(), ..Piece::default() };
                pieces.push((next, vec![listener]));
            } else {
                told.push(listener);
            }
        }
        pieces
    }
}

/// What a piece of a report, or a delta, should hold at most; [`Listener::about_bytes`] may be wrong by a factor of four.
pub const PIECE_BYTES: usize = 2 << 20;

/// The number of a session; 0 before the first. At most [`MAX_COUNT`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(transparent)]
pub struct Session(#[serde(deserialize_with = "count")] pub u64);

/// The highest session or sequence number that is taken: every JSON reader can hold it, and counting up to it takes
/// longer than a machine lives. Without a bound, one absurd number would be the last one ever.
pub const MAX_COUNT: u64 = 1 << 53;

fn count<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let count = u64::deserialize(deserializer)?;
    if count > MAX_COUNT {
        return Err(serde::de::Error::custom(format!("{count} is too high: at most {MAX_COUNT}")));
    }
    Ok(count)
}

/// A message from an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Contact {
    /// The session it belongs to; with `opening`, the last session held before.
    pub session: Session,
    /// Present when a new session is asked for: a nonce that stays the same when the request is repeated.
    pub opening: Option<Uuid>,
    /// Its place in the session. A heartbeat repeats the last acknowledged one.
    #[serde(deserialize_with = "count")]
    pub sequence: u64,
    /// The agent's clock when it was sent; the server measures the clock's offset by it.
    pub sent_at: Timestamp,
    /// Of every listener in the covered parts, after this contact.
    pub digest: Digest,
    /// The agent's version.
    pub agent_version: Observed,
    /// What it tells.
    #[serde(flatten)]
    pub body: ContactBody,
}

/// What a contact tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum ContactBody {
    /// Nothing changed.
    Heartbeat,
    /// What changed since `base`.
    Delta {
        /// The sequence number this builds on.
        base: u64,
        /// Listeners that are new, or whose owners changed.
        #[serde(default)]
        listeners: Vec<Listener>,
        /// Listeners that are gone.
        #[serde(default)]
        closed: Vec<Closed>,
        /// All occupied ports; left out when they did not change.
        occupied: Option<Vec<Occupied>>,
        /// What is told by its number only.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        churned: Vec<Churn>,
    },
    /// Everything the agent sees.
    Report {
        /// When the agent saw it so, by its clock: what is missing was gone by then. The contact may be much later.
        seen_at: Option<Timestamp>,
        /// The parts it is complete for.
        covered: Vec<Part>,
        /// Every listener in them.
        listeners: Vec<Listener>,
        /// Listeners that are gone, as far as the agent knows when.
        #[serde(default)]
        closed: Vec<Closed>,
        /// All occupied ports.
        #[serde(default)]
        occupied: Vec<Occupied>,
        /// What is told by its number only.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        churned: Vec<Churn>,
        /// Which of the listeners this contact tells.
        #[serde(default, skip_serializing_if = "Piece::is_whole")]
        piece: Piece,
        /// Every namespace of the machine, when the agent knows them all: any other one is gone, and its listeners
        /// with it. Left out by an agent that may not see all processes.
        #[serde(default)]
        namespaces: Option<Vec<Netns>>,
    },
}

impl ContactBody {
    /// What it is.
    pub fn kind(&self) -> ContactKind {
        match self {
            ContactBody::Heartbeat => ContactKind::Heartbeat,
            ContactBody::Delta { .. } => ContactKind::Delta,
            ContactBody::Report { .. } => ContactKind::Report,
        }
    }

    /// Since when the agent has known what it tells, by its own clock: the oldest of it. None where nothing is told.
    fn known_since(&self) -> Option<Timestamp> {
        let (seen_at, changed, closed, churned) = match self {
            ContactBody::Heartbeat => return None,
            ContactBody::Delta { listeners, closed, churned, .. } => (None, &listeners[..], closed, churned),
            // What it shows was all seen at once.
            ContactBody::Report { seen_at, closed, churned, .. } => (*seen_at, &[][..], closed, churned),
        };
        let changed = changed.iter().map(|listener| listener.last_seen_at);
        let closed = closed.iter().map(|closed| closed.at);
        let churned = churned.iter().map(|churn| churn.until);
        seen_at.into_iter().chain(changed).chain(closed).chain(churned).min()
    }
}

impl Contact {
    /// How long the agent had known what it tells when it was sent. Both times are the agent's, so that it does not matter
    /// by how much its clock is wrong; what the network takes, which is milliseconds, is not in it.
    pub fn lag(&self) -> Option<Duration> {
        self.body.known_since().map(|since| self.sent_at.since(since))
    }
}

/// The server's answer to a contact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContactAnswer {
    /// The session to go on with.
    pub session: Session,
    /// The last sequence number that is stored.
    pub acknowledged: u64,
    /// Whether the server wants a full report next: its set differs, or a delta was missing.
    pub want_report: bool,
    /// How long until the next heartbeat is expected, in seconds.
    pub heartbeat_seconds: u32,
    /// For an opening: the last sequence number that was stored in the session before, so that nothing of it that the
    /// agent still has is told twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<u64>,
    /// Whether the credential is old by now, and the agent should make another one and join with it again.
    #[serde(default)]
    pub renew_credential: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::tests::listener;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn lag(sent_at: i64, body: ContactBody) -> Option<u64> {
        let contact = Contact {
            session: Session(1),
            opening: None,
            sequence: 1,
            sent_at: at(sent_at),
            digest: Digest::default(),
            agent_version: "1".into(),
            body,
        };
        contact.lag().map(|lag| lag.as_secs())
    }

    #[test]
    fn what_a_contact_tells_is_as_old_as_the_oldest_of_it_by_the_agents_own_clock() {
        let seen = |seconds: i64| {
            let new = listener(Protocol::Tcp, "0.0.0.0", 80, 1);
            Listener { first_seen_at: at(1), last_seen_at: at(seconds), ..new }
        };
        let gone = |seconds: i64| Closed { key: seen(0).key, at: at(seconds) };
        let delta = |listeners: Vec<Listener>, closed: Vec<Closed>| ContactBody::Delta {
            base: 0,
            listeners,
            closed,
            occupied: None,
            churned: vec![],
        };
        let report = |seen_at: Option<i64>, closed: Vec<Closed>| ContactBody::Report {
            seen_at: seen_at.map(at),
            covered: vec![],
            listeners: vec![seen(7)],
            closed,
            occupied: vec![],
            churned: vec![],
            piece: Piece::default(),
            namespaces: None,
        };
        let table = [
            (lag(100, ContactBody::Heartbeat), None),
            (lag(100, delta(vec![], vec![])), None),
            (lag(100, delta(vec![seen(99), seen(40)], vec![gone(60)])), Some(60)),
            (lag(100, delta(vec![seen(99)], vec![gone(30)])), Some(70)),
            (lag(100, delta(vec![seen(130)], vec![])), Some(0)), // its clock stepped back
            (lag(100, report(None, vec![])), None),
            (lag(100, report(Some(98), vec![])), Some(2)),
            (lag(100, report(Some(98), vec![gone(10)])), Some(90)),
        ];
        for (number, (found, expected)) in table.into_iter().enumerate() {
            assert_eq!(found, expected, "row {number}");
        }
    }
}
