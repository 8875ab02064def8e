//! What lists can be asked for, and how they are paged.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::history::{EventKind, IntervalKind};
use crate::id::InstanceRef;
use crate::instance::Presence;
use crate::labels::Selector;
use crate::port::{PortRange, Protocol};
use crate::port_state::State;
use crate::text::{ServiceName, Subject};
use crate::text_form::json_by_text;
use crate::time::Timestamp;
use crate::token::TokenKind;

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

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// The cursor of the next page; none on the last.
    pub next: Option<String>,
}

/// Declares the query of a list: the given filters, all optional and ANDed, then cursor and limit.
macro_rules! query {
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
    }
}

query! {
    /// Filters for port states.
    PortQuery {
        /// Only ports in this range. A range of at most 256 ports also answers its free ones.
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
    }
}

impl PortQuery {
    /// The widest range whose free ports are answered too.
    pub const WIDEST_WITH_FREE: u16 = 256;
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
        /// Only held by this subject.
        holder: Subject,
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
    /// Filters for events, oldest first.
    EventQuery {
        /// Only on this instance.
        instance: InstanceRef,
        /// Only those that touch this port or range.
        port: PortRange,
        /// Only this kind.
        kind: EventKind,
        /// Only by this subject.
        actor: Subject,
        /// Only those that happened at this time or later.
        since: Timestamp,
        /// Only those that happened before this time.
        until: Timestamp,
    }
}
