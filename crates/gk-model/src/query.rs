//! What lists can be asked for, and how they are paged.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::drift::DriftKind;
use crate::history::IntervalKind;
use crate::id::{GroupId, InstanceRef};
use crate::instance::Presence;
use crate::labels::Selector;
use crate::listener::Netns;
use crate::port::{PortRange, Protocol};
use crate::port_state::State;
use crate::text::{PoolName, PortName, ServiceName, Subject};
use crate::text_form::json_by_text;
use crate::time::Timestamp;
use crate::token::TokenKind;
use crate::watch::EventKinds;

/// How many items a page may have: 1 to 1000, 100 unless told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(u32);

impl Limit {
    /// The most that a page may have.
    pub const MAX: Limit = Limit(1000);

    /// This many, or as many as a page may have.
    pub fn at_most(count: u32) -> Limit {
        Limit(count.clamp(1, Limit::MAX.0))
    }

    /// As a number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for Limit {
    fn default() -> Limit {
        Limit(100)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number of items that no page has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a page has 1 to 1000 items")]
pub struct LimitError;

impl FromStr for Limit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Limit, LimitError> {
        match text.parse() {
            Ok(count @ 1..=1000) => Ok(Limit(count)),
            _ => Err(LimitError),
        }
    }
}

json_by_text!(Limit);

/// For how many seconds at least nobody listened: up to ten years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "i64", into = "i64")]
#[schema(value_type = u32, minimum = 0, maximum = 315_360_000, example = 2_592_000)]
pub struct IdleTime(u32);

/// A number of seconds that nobody can have been idle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is idle for 0 s to ten years; {0} s is outside")]
pub struct IdleTimeError(i64);

impl IdleTime {
    /// However short it is.
    pub const ANY: IdleTime = IdleTime(0);

    /// As a span of time.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0.into())
    }
}

impl TryFrom<i64> for IdleTime {
    type Error = IdleTimeError;

    fn try_from(seconds: i64) -> Result<IdleTime, IdleTimeError> {
        match u32::try_from(seconds) {
            Ok(valid @ 0..=315_360_000) => Ok(IdleTime(valid)),
            _ => Err(IdleTimeError(seconds)),
        }
    }
}

impl From<IdleTime> for i64 {
    fn from(time: IdleTime) -> i64 {
        time.0.into()
    }
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// The cursor of the next page; none on the last.
    pub next: Option<String>,
}

/// Declares the query of a list: the given filters, all optional and ANDed, then cursor and limit. And the same without
/// these two, where an answer that is not paged takes the filters of that list.
macro_rules! query {
    // The same filters once more, for an answer that comes whole.
    ($(#[$doc:meta])* $name:ident, $(#[$whole_doc:meta])* whole $whole:ident {
        $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
    }) => {
        query! { $(#[$doc])* $name { $($(#[$field_doc])* $field: $type,)* } }

        $(#[$whole_doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
        #[serde(deny_unknown_fields)]
        #[into_params(parameter_in = Query)]
        pub struct $whole {
            $(
                $(#[$field_doc])*
                #[param(inline)]
                pub $field: Option<$type>,
            )*
        }

        impl From<$whole> for $name {
            fn from(whole: $whole) -> $name {
                $name { $($field: whole.$field,)* cursor: None, limit: None }
            }
        }
    };
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
        #[serde(deny_unknown_fields)]
        #[into_params(parameter_in = Query)]
        pub struct $name {
            $(
                $(#[$field_doc])*
                #[param(inline)]
                pub $field: Option<$type>,
            )*
            /// Where to go on: `next` of the page before.
            pub cursor: Option<String>,
            /// How many items at most: 1 to 1000, 100 when left out.
            #[param(value_type = Option<u32>, minimum = 1, maximum = 1000, default = 100)]
            pub limit: Option<Limit>,
        }

        impl $name {
            /// How many items the page may have.
            pub fn limit(&self) -> u32 {
                self.limit.unwrap_or_default().get()
            }
        }
    };
}

query! {
    /// Filters for instances.
    InstanceQuery {
        /// Only the one with this name.
        name: String,
        /// Only those with this presence; left out, all that have not left.
        presence: Presence,
        /// Only those whose name contains this text.
        q: String,
        /// Only those with these labels.
        label: Selector,
    }
}

query! {
    /// Filters for port states.
    PortQuery,
    /// Filters for targets: those for port states.
    whole TargetQuery {
        /// Only ports in this range. A list of a range of at most 256 ports also answers its free ones.
        port: PortRange,
        /// Only this protocol.
        protocol: Protocol,
        /// Only this state.
        state: State,
        /// Only ports reserved for this service.
        service: ServiceName,
        /// Only ports reserved by this subject.
        holder: Subject,
        /// Only ports listened on by a process whose name or executable contains this text.
        process: String,
        /// Only ports listened on by this systemd unit.
        unit: String,
        /// Only ports listened on by a container whose id begins with, or whose name is, this text.
        container: String,
        /// Only ports with this text in service, note, process, unit or container.
        q: String,
        /// Only on instances with these labels.
        label: Selector,
        /// Only ports listened on in this network namespace.
        netns: Netns,
    }
}

impl PortQuery {
    /// The widest range whose free ports are answered too.
    pub const WIDEST_WITH_FREE: u16 = 256;
}

query! {
    /// Filters for drift: ports by instance, protocol and port, then idle reservations, the longest idle first.
    DriftQuery {
        /// Only on this instance.
        instance: InstanceRef,
        /// Only on instances with these labels.
        label: Selector,
        /// Only ports in this range, or reservations that touch it.
        port: PortRange,
        /// Only this protocol.
        protocol: Protocol,
        /// Only this kind.
        kind: DriftKind,
        /// Only what is reserved for this service.
        service: ServiceName,
        /// Only what is reserved by this subject.
        holder: Subject,
        /// Reservations too that have been idle for so many seconds. Left out, idle ones are told for `kind=idle` only.
        idle_for_seconds: IdleTime,
        /// What a rule ignores, too.
        ignored: bool,
    }
}

query! {
    /// Filters for ignore rules, by name.
    IgnoreQuery {
    }
}

query! {
    /// Filters for tokens, newest first.
    TokenQuery {
        /// Only this kind.
        kind: TokenKind,
        /// Only those that stand for this subject.
        subject: Subject,
        /// Those that have ended too.
        ended: bool,
    }
}

query! {
    /// Pages of pools, by name.
    PoolQuery {}
}

query! {
    /// Filters for live reservations.
    ReservationQuery {
        /// Only on this instance.
        instance: InstanceRef,
        /// Only those that touch this port or range.
        port: PortRange,
        /// Only this protocol.
        protocol: Protocol,
        /// Only for this service.
        service: ServiceName,
        /// Only with this name among the service's ports.
        name: PortName,
        /// Only held by this subject.
        holder: Subject,
        /// Only drawn from this pool.
        pool: PoolName,
        /// Only on instances with such labels, as in `env=prod,team in (web,api)`.
        label: Selector,
        /// Only those that one request made.
        group: GroupId,
        /// Only those on whose ports nobody has listened for at least so many seconds.
        idle_for_seconds: IdleTime,
        /// Only leases that end before this time.
        expires_before: Timestamp,
    }
}

query! {
    /// Filters for intervals, newest first.
    HistoryQuery {
        /// Only on this instance.
        instance: InstanceRef,
        /// Only those that touch this port or range.
        port: PortRange,
        /// Only this protocol.
        protocol: Protocol,
        /// Held or listened on.
        kind: IntervalKind,
        /// Only those that lasted beyond this time.
        since: Timestamp,
        /// Only those that began before this time.
        until: Timestamp,
        /// Only those that lasted at this time.
        at: Timestamp,
        /// Only what was held for this service.
        service: ServiceName,
        /// Only what was held by this subject.
        holder: Subject,
        /// Only what was listened on by a process of this name, without regard to case. Of several processes that share
        /// a socket the first one counts that is not the init of the machine.
        process: String,
        /// Only what was listened on by this systemd unit.
        unit: String,
        /// Only what was listened on by the container of this name, or whose id begins with these 12 characters or more.
        container: String,
        /// Only what was listened on by a socket that this account had opened.
        account: String,
        /// Only on instances with these labels now.
        label: Selector,
        /// Whether the oldest come first.
        oldest: bool,
    }
}

query! {
    /// Filters for events, in the order of their numbers.
    EventQuery {
        /// Only on this instance.
        instance: InstanceRef,
        /// Only on instances with these labels, as they are now.
        label: Selector,
        /// Only those that touch this port or range.
        port: PortRange,
        /// Only about this protocol.
        protocol: Protocol,
        /// Only this kind, or these, with commas between.
        kind: EventKinds,
        /// Only by this subject.
        actor: Subject,
        /// Only those that happened at this time or later.
        since: Timestamp,
        /// Only those that happened before this time.
        until: Timestamp,
        /// Whether the newest come first.
        newest: bool,
    }
}
