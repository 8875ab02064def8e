//! What lists can be asked for, and how they are paged.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::history::{EventKind, IntervalKind};
use crate::id::InstanceRef;
use crate::instance::Presence;
use crate::port::{PortRange, Protocol};
use crate::port_state::State;
use crate::text::{ServiceName, Subject};
use crate::time::Timestamp;

/// How many items a page has unless told.
pub const DEFAULT_LIMIT: u32 = 100;

/// How many items a page may have.
pub const MAX_LIMIT: u32 = 1000;

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
            #[param(minimum = 1, maximum = 1000, default = 100)]
            pub limit: Option<u32>,
        }

        impl $name {
            /// How many items the page may have.
            pub fn limit(&self) -> u32 {
                self.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT)
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
