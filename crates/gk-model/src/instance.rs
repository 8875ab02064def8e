//! Instances: machines that have joined, and how they come and go.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::facts::Facts;
use crate::id::{InstanceId, InstanceRef};
use crate::labels::Labels;
use crate::secret::SecretHash;
use crate::text::InstanceName;
use crate::text_form::words;
use crate::time::Timestamp;
use crate::token::ForgetAfter;

/// How long without a contact until an instance counts as offline.
pub const OFFLINE_AFTER: Duration = Duration::from_secs(90);

/// How long an agent waits between two heartbeats.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(30);

/// How old an instance's credential becomes before its agent makes another one.
pub const RENEW_CREDENTIAL_AFTER: Duration = Duration::from_hours(30 * 24);

/// How long the credential before goes on when an instance makes itself another one.
pub const OVERLAP: Duration = Duration::from_mins(10);

words! {
    /// Whether an instance is there. Computed from its last contact, never stored.
    Presence, "a presence" {
        /// In contact.
        Online = "online",
        /// No contact for [`OFFLINE_AFTER`].
        Offline = "offline",
        /// Has left.
        Left = "left",
    }
}

impl Presence {
    /// Of an instance that has not left.
    ///
    /// Counted from the later of its last contact and the server's start, so that a restarted server does not call
    /// its whole fleet offline. An instance that never made contact is offline.
    pub fn of(last_contact_at: Option<Timestamp>, server_started_at: Timestamp, now: Timestamp) -> Presence {
        match last_contact_at {
            Some(contact) if now.since(contact.max(server_started_at)) < OFFLINE_AFTER => Presence::Online,
            _ => Presence::Offline,
        }
    }
}

/// Id and name of an instance, where another thing belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceLink {
    /// Its id.
    pub id: InstanceId,
    /// Its name now.
    pub name: InstanceName,
}

/// A machine (or container, or virtual machine) that has joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// Its id, given by the server.
    pub id: InstanceId,
    /// Its name, unique among the joined ones.
    pub name: InstanceName,
    /// Whether it is there.
    pub presence: Presence,
    /// What people say of it.
    #[serde(default)]
    pub labels: Labels,
    /// What it says of itself.
    pub facts: Facts,
    /// When it joined.
    pub joined_at: Timestamp,
    /// When it left.
    pub left_at: Option<Timestamp>,
    /// When its agent was last heard of.
    pub last_contact_at: Option<Timestamp>,
    /// When its listeners were last confirmed.
    pub observed_at: Option<Timestamp>,
    /// How long it may be silent before it leaves by itself, provided that it holds no reservation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forget_after_seconds: Option<ForgetAfter>,
    /// Grows with every change of this row; the `ETag`.
    pub version: u64,
}

/// Asks to join, or to refresh the facts of an instance that has joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinRequest {
    /// The name to join under; the host name when left out.
    pub name: Option<InstanceName>,
    /// SHA-256 of the credential that the client made for itself. The credential never travels at join.
    pub credential_hash: SecretHash,
    /// What it says of itself.
    pub facts: Facts,
    /// What it is to be labelled with. For operators; with a join token, the token says.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Take over this instance's id, because its credential was lost. For operators.
    pub replace: Option<InstanceRef>,
}

/// Changes to an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstancePatch {
    /// The new name.
    pub name: Option<InstanceName>,
    /// All its labels from now on. For operators, because limits of tokens go by them.
    pub labels: Option<Labels>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presence_counts_from_the_later_of_contact_and_server_start() {
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let table = [
            // (last contact, server start, now, expected)
            (None, 0, 10, Presence::Offline),
            (Some(0), 0, 89, Presence::Online),
            (Some(0), 0, 90, Presence::Offline),
            (Some(0), 1_000, 1_089, Presence::Online),
            (Some(0), 1_000, 1_090, Presence::Offline),
            (Some(100), 0, 50, Presence::Online), // the clock stepped back
        ];
        for (contact, start, now, expected) in table {
            assert_eq!(
                Presence::of(contact.map(at), at(start), at(now)),
                expected,
                "{contact:?} {start} {now}"
            );
        }
    }
}
