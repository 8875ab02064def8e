//! Drift: where reality differs from the plan, and how much of it there is.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::expect::Fit;
use crate::instance::{InstanceLink, Presence};
use crate::listener::Listener;
use crate::port::{Port, Protocol};
use crate::port_state::State;
use crate::reservation::Reservation;
use crate::text::IgnoreName;
use crate::text_form::words;
use crate::time::Timestamp;

words! {
    /// How reality differs from the plan.
    DriftKind, "a kind of drift" {
        /// A reserved port is listened on by somebody else than expected, or on another instance than it is held for.
        Conflict = "conflict",
        /// A port is listened on, and nobody reserved it.
        Unreserved = "unreserved",
        /// A port is reserved, and nobody has listened on it for long.
        Idle = "idle",
    }
}

impl DriftKind {
    /// Of a port in this state; none where nothing is amiss.
    pub fn of(state: State) -> Option<DriftKind> {
        match state {
            State::Conflict => Some(DriftKind::Conflict),
            State::Unreserved => Some(DriftKind::Unreserved),
            State::Free | State::Reserved | State::InUse => None,
        }
    }
}

/// One difference between reality and the plan: a port, or an idle reservation with all of its ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Drift {
    /// What is amiss.
    pub kind: DriftKind,
    /// Where; none for an idle reservation that is held for all instances.
    pub instance: Option<InstanceLink>,
    /// The protocol.
    pub protocol: Protocol,
    /// The lowest port.
    pub first_port: Port,
    /// The highest port; equal to `first_port` but for idle ranges.
    pub last_port: Port,
    /// Since when it has been like this.
    pub since: Timestamp,
    /// The plan, where there is one.
    pub reservation: Option<Reservation>,
    /// The reality: every listener on the port.
    pub listeners: Vec<Listener>,
    /// How these fit the plan.
    pub fit: Option<Fit>,
    /// The rule by which nobody needs to care; none for what counts as drift.
    pub ignored_by: Option<IgnoreName>,
    /// When the instance's listeners were last confirmed; what is shown was true then.
    pub observed_at: Option<Timestamp>,
    /// Whether the instance is there now; none where it is about all of them.
    pub presence: Option<Presence>,
}
