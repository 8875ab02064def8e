//! The event log as something to go along: how far it reaches, where a reader stands in it, and what a watch chooses.
//!
//! A number alone does not say where a reader was: after a restore the same numbers stand for other events. So a cursor
//! names the log too. A list, its pages and a stream share one kind of cursor, so that a watcher begins where a list
//! ended.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::history::{Event, EventKind};
use crate::id::{InstanceId, InstanceRef, LogId};
use crate::labels::{Labels, Selector};
use crate::port::{PortRange, Protocol};
use crate::query::Page;
use crate::text::Subject;
use crate::text_form::{WordError, text_form};

/// A place in an event log: behind the event of this number. Written `LOG.SEQ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventCursor {
    /// The log.
    pub log_id: LogId,
    /// The number of the last event before this place; 0 at the beginning.
    pub seq: u64,
}

/// No place in any event log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event cursor is LOG.SEQ, as lists and streams of events tell it")]
pub struct EventCursorError;

impl FromStr for EventCursor {
    type Err = EventCursorError;

    fn from_str(text: &str) -> Result<EventCursor, EventCursorError> {
        let (log_id, seq) = text.split_once('.').ok_or(EventCursorError)?;
        let is_number = (1..=19).contains(&seq.len()) && seq.bytes().all(|byte| byte.is_ascii_digit());
        match (log_id.parse(), seq.parse::<u64>()) {
            (Ok(log_id), Ok(seq)) if is_number && seq <= i64::MAX as u64 => Ok(EventCursor { log_id, seq }),
            _ => Err(EventCursorError),
        }
    }
}

impl fmt::Display for EventCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.log_id, self.seq)
    }
}

text_form!(EventCursor, "0190163d-8694-739b-aea5-966c26f8ad91.4711"; "^[0-9a-f-]{36}\\.[0-9]{1,19}$");

/// Which events there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Log {
    /// The log they belong to. It changes when a database is restored from a backup.
    #[schema(value_type = String)]
    pub log_id: LogId,
    /// Number of the oldest event kept. When there is none yet: of the one that will be the first.
    pub oldest_seq: u64,
    /// Number of the newest event; 0 when there is none yet.
    pub newest_seq: u64,
}

impl Log {
    /// The place behind the event of this number.
    pub fn cursor(&self, seq: u64) -> EventCursor {
        EventCursor { log_id: self.log_id, seq }
    }

    /// The place behind the newest event.
    pub fn end(&self) -> EventCursor {
        self.cursor(self.newest_seq)
    }

    /// Whether every event behind this place is still there. A place behind the newest event is in another log of the
    /// same name: one whose end was lost.
    pub fn reaches(&self, cursor: EventCursor) -> bool {
        cursor.log_id == self.log_id && cursor.seq + 1 >= self.oldest_seq && cursor.seq <= self.newest_seq
    }
}

/// One page of events, and how far the log reached when it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventPage {
    /// The events.
    pub items: Vec<Event>,
    /// The cursor of the next page; none on the last.
    pub next: Option<String>,
    /// The log at that moment. A watch that begins behind its newest event goes on where the last page ended.
    pub log: Log,
}

impl From<EventPage> for Page<Event> {
    fn from(EventPage { items, next, log: _ }: EventPage) -> Page<Event> {
        Page { items, next }
    }
}

/// One kind of event or several, written with commas between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventKinds(BTreeSet<EventKind>);

impl EventKinds {
    /// Whether it is one of these.
    pub fn contains(&self, kind: EventKind) -> bool {
        self.0.contains(&kind)
    }

    /// Each of them, at least one.
    pub fn iter(&self) -> impl Iterator<Item = EventKind> {
        self.0.iter().copied()
    }
}

impl From<EventKind> for EventKinds {
    fn from(kind: EventKind) -> EventKinds {
        EventKinds(BTreeSet::from([kind]))
    }
}

impl FromStr for EventKinds {
    type Err = WordError;

    fn from_str(text: &str) -> Result<EventKinds, WordError> {
        text.split(',').map(|word| word.trim().parse()).collect::<Result<_, _>>().map(EventKinds)
    }
}

impl fmt::Display for EventKinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = self.iter().map(EventKind::as_str).collect();
        f.pad(&words.join(","))
    }
}

text_form!(EventKinds, "opened,closed");

/// What a stream of events tells: those that pass all filters, from a place on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WatchQuery {
    /// Only on this instance.
    #[param(inline)]
    pub instance: Option<InstanceRef>,
    /// Only on instances with these labels.
    #[param(inline)]
    pub label: Option<Selector>,
    /// Only those that touch this port or range.
    #[param(inline)]
    pub port: Option<PortRange>,
    /// Only about this protocol.
    #[param(inline)]
    pub protocol: Option<Protocol>,
    /// Only this kind, or these, with commas between.
    #[param(inline)]
    pub kind: Option<EventKinds>,
    /// Only by this subject.
    #[param(inline)]
    pub actor: Option<Subject>,
    /// Begin behind this place instead of now. The header `Last-Event-ID` goes before it.
    #[param(inline)]
    pub after: Option<EventCursor>,
}

/// Which events a stream tells, once its instance has been found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// The instance, by its id, whatever it is called later.
    pub instance: Option<InstanceId>,
    /// What its labels must be when the event is told.
    pub label: Option<Selector>,
    /// A port that must be touched.
    pub port: Option<PortRange>,
    /// The protocol.
    pub protocol: Option<Protocol>,
    /// The kinds.
    pub kind: Option<EventKinds>,
    /// Who did it.
    pub actor: Option<Subject>,
}

impl EventFilter {
    /// What was asked for, about the instance of this id if about one.
    pub fn of(query: WatchQuery, instance: Option<InstanceId>) -> EventFilter {
        let WatchQuery { instance: _, label, port, protocol, kind, actor, after: _ } = query;
        EventFilter { instance, label, port, protocol, kind, actor }
    }

    /// Whether an event passes, the instance of which has these labels. What is about no instance has no labels, and
    /// passes no selector.
    pub fn passes(&self, event: &Event, labels: Option<&Labels>) -> bool {
        let touches = |wanted: PortRange| match (event.first_port, event.last_port) {
            (Some(first), Some(last)) => first <= wanted.last() && last >= wanted.first(),
            _ => false,
        };
        self.instance.is_none_or(|wanted| event.instance.as_ref().is_some_and(|its| its.id == wanted))
            && self.label.as_ref().is_none_or(|wanted| labels.is_some_and(|labels| wanted.matches(labels)))
            && self.port.is_none_or(touches)
            && self.protocol.is_none_or(|wanted| event.protocol == Some(wanted))
            && self.kind.as_ref().is_none_or(|wanted| wanted.contains(event.kind))
            && self.actor.as_ref().is_none_or(|wanted| event.actor == *wanted)
    }
}

/// What the event `bookmark` of a stream tells: everything up to here has been delivered or filtered away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bookmark {
    /// Where to go on after an interruption; also the `id` of the event.
    pub cursor: EventCursor,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    #[test]
    fn a_cursor_is_a_log_and_a_number_and_nothing_else() {
        let log_id = LogId::generate(Timestamp::from_micros(0));
        for seq in [0, 1, i64::MAX as u64] {
            let cursor = EventCursor { log_id, seq };
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
        let table =
            ["", "7", ".", "7.7", &format!("{log_id}"), &format!("{log_id}."), &format!("{log_id}.-1")];
        let more = ["+1", " 1", "1x", "18446744073709551615", "9223372036854775808"];
        let more = more.map(|seq| format!("{log_id}.{seq}"));
        for bad in table.into_iter().chain(more.iter().map(String::as_str)) {
            assert_eq!(bad.parse::<EventCursor>(), Err(EventCursorError), "{bad:?}");
        }
    }

    #[test]
    fn a_log_reaches_from_before_its_oldest_event_to_behind_its_newest() {
        let log_id = LogId::generate(Timestamp::from_micros(0));
        let log = |oldest_seq, newest_seq| Log { log_id, oldest_seq, newest_seq };
        let table = [
            (log(1, 0), 0, true),
            (log(1, 0), 1, false),
            (log(1, 9), 0, true),
            (log(5, 9), 3, false),
            (log(5, 9), 4, true),
            (log(5, 9), 9, true),
            (log(5, 9), 10, false),
        ];
        for (log, seq, expected) in table {
            assert_eq!(log.reaches(log.cursor(seq)), expected, "{seq} of {log:?}");
        }
        let other = EventCursor { log_id: LogId::generate(Timestamp::from_micros(0)), seq: 9 };
        assert!(!log(5, 9).reaches(other), "another log");
    }

    #[test]
    fn kinds_are_words_with_commas_between() {
        let kinds: EventKinds = "opened, closed,opened".parse().unwrap();
        assert_eq!(kinds.to_string(), "opened,closed");
        assert!(kinds.contains(EventKind::Closed) && !kinds.contains(EventKind::Joined));
        for bad in ["", ",", "opened,", "opened closed", "all"] {
            assert!(bad.parse::<EventKinds>().is_err(), "{bad:?}");
        }
    }
}
