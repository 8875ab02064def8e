//! Port states: where intent and fact meet.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::InstanceId;
use crate::instance::{InstanceLink, Presence};
use crate::listener::{Listener, Netns};
use crate::port::{Port, Protocol};
use crate::reservation::Reservation;
use crate::text_form::words;
use crate::time::Timestamp;

words! {
    /// What intent and fact together say of a port on an instance.
    State, "a port state" {
        /// Neither reserved nor listened on; answered only for ports that were asked for.
        Free = "free",
        /// Reserved, and nobody listens.
        Reserved = "reserved",
        /// Reserved and listened on.
        InUse = "in_use",
        /// Reserved, and listened on by somebody else than expected.
        Conflict = "conflict",
        /// Listened on, and nobody reserved it.
        Unreserved = "unreserved",
    }
}

impl State {
    /// The state of a port with or without a reservation, and with these listeners.
    ///
    /// Only listeners of the home namespace count. Without an expectation, any listener fits a reservation.
    pub fn of(reserved: bool, listeners: &[Listener]) -> State {
        let listened = listeners.iter().any(|listener| listener.key.netns == Netns::Home);
        match (reserved, listened) {
            (false, false) => State::Free,
            (false, true) => State::Unreserved,
            (true, false) => State::Reserved,
            (true, true) => State::InUse,
        }
    }

    /// The state on one instance. A number that is fleet-wide another instance's is in conflict where it is used here.
    pub fn on(instance: InstanceId, reservation: Option<&Reservation>, listeners: &[Listener]) -> State {
        let is_elsewhere = |held: &Reservation| held.instance.is_some() && !held.is_held_for(instance);
        match State::of(reservation.is_some(), listeners) {
            State::InUse if reservation.is_some_and(is_elsewhere) => State::Conflict,
            state => state,
        }
    }
}

/// One port of one instance: who may use it, and who does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortState {
    /// The instance.
    pub instance: InstanceLink,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: Port,
    /// Intent and fact joined.
    pub state: State,
    /// The intent.
    pub reservation: Option<Reservation>,
    /// The fact: every listener on the port.
    pub listeners: Vec<Listener>,
    /// When the instance's listeners were last confirmed; what is shown was true then.
    pub observed_at: Option<Timestamp>,
    /// Whether the instance is there now.
    pub presence: Presence,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::tests::listener;

    #[test]
    fn the_table_of_the_domain() {
        let home = listener(Protocol::Tcp, "0.0.0.0", 80, 1);
        let mut elsewhere = home.clone();
        elsewhere.key.netns = Netns::Other(4_026_532_000);
        let table: [(bool, &[&Listener], State); 8] = [
            (false, &[], State::Free),
            (true, &[], State::Reserved),
            (true, &[&home], State::InUse),
            (false, &[&home], State::Unreserved),
            (false, &[&elsewhere], State::Free),
            (true, &[&elsewhere], State::Reserved),
            (true, &[&elsewhere, &home], State::InUse),
            (false, &[&home, &elsewhere], State::Unreserved),
        ];
        for (reserved, listeners, expected) in table {
            let listeners: Vec<Listener> = listeners.iter().copied().cloned().collect();
            assert_eq!(State::of(reserved, &listeners), expected, "{reserved} {listeners:?}");
        }
    }
}
