//! The whole fleet in a few numbers. Pools, with their fill levels, are a list of their own.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::time::Timestamp;

/// How the fleet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Who is there.
    pub instances: InstanceCounts,
    /// What is planned.
    pub reservations: ReservationCounts,
    /// Where reality differs from it.
    pub drift: DriftCounts,
    /// How many listeners there are, those of other network namespaces among them.
    pub listeners: u64,
    /// When it was so.
    pub as_of: Timestamp,
}

/// Instances that have joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceCounts {
    /// All that have not left.
    pub joined: u64,
    /// Those of them that are in contact.
    pub online: u64,
    /// Those of them that are not.
    pub offline: u64,
}

/// Reservations that are live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReservationCounts {
    /// All of them.
    pub live: u64,
    /// Those of them that end unless they are renewed.
    pub leases: u64,
}

/// Ports where reality differs from the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DriftCounts {
    /// Listened on by somebody else than expected.
    pub conflict: u64,
    /// Listened on, and not reserved.
    pub unreserved: u64,
    /// Either of them, and ignored by a rule: not counted above.
    pub ignored: u64,
}
