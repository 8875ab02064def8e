//! Reservations: claims on ports, and the requests that make them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::{InstanceRef, ReservationId};
use crate::instance::InstanceLink;
use crate::port::{Port, PortRange, Protocol};
use crate::port_set::PortSet;
use crate::text::{Note, PoolName, PortName, ServiceName, Subject};
use crate::text_form::words;
use crate::time::Timestamp;

words! {
    /// Where a reservation excludes others.
    Scope, "a scope" {
        /// On its instance.
        Instance = "instance",
        /// Everywhere.
        Fleet = "fleet",
    }
}

/// A claim on a port, or on a contiguous range of ports, of one protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reservation {
    /// Its id.
    pub id: ReservationId,
    /// The instance it is held for.
    pub instance: InstanceLink,
    /// Where it excludes others.
    pub scope: Scope,
    /// The protocol.
    pub protocol: Protocol,
    /// The lowest port.
    pub first_port: Port,
    /// The highest port; equal to `first_port` for a single one.
    pub last_port: Port,
    /// Which of the service's ports this is.
    pub name: Option<PortName>,
    /// What it is for.
    pub service: Option<ServiceName>,
    /// The subject that made it, and may release it.
    pub holder: Subject,
    /// A remark.
    pub note: Option<Note>,
    /// The pool it was drawn from; none when the port was asked for by number.
    pub pool: Option<PoolName>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was released; the list shows live ones only.
    pub released_at: Option<Timestamp>,
    /// Who released it.
    pub released_by: Option<Subject>,
    /// Grows with every change; the `ETag`.
    pub version: u64,
}

impl Reservation {
    /// Its ports as a range.
    pub fn ports(&self) -> PortRange {
        PortRange::new(self.first_port, self.last_port).unwrap_or_else(|_| self.first_port.into())
    }
}

/// Asks for a port: the next free one of a pool, or one by number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReserveRequest {
    /// The instance to reserve on: id or name.
    pub instance: InstanceRef,
    /// The protocol; TCP when left out.
    #[serde(default)]
    pub protocol: Protocol,
    /// The port to reserve. Left out: the next free one of the pool.
    pub port: Option<Port>,
    /// The pool to draw from; `default` when left out. Not together with `port`.
    pub pool: Option<PoolName>,
    /// What it is for.
    pub service: Option<ServiceName>,
    /// Which of the service's ports it is.
    pub name: Option<PortName>,
    /// A remark.
    pub note: Option<Note>,
    /// Ports the caller found taken on that machine just now. Not picked this time, and never stored.
    #[serde(default)]
    pub busy: PortSet,
    /// With `port`: whoever listens there now is the rightful one.
    #[serde(default)]
    pub adopt: bool,
}

impl ReserveRequest {
    /// The next free TCP port of the default pool on `instance`.
    pub fn next_free(instance: impl Into<InstanceRef>) -> ReserveRequest {
        ReserveRequest {
            instance: instance.into(),
            protocol: Protocol::Tcp,
            port: None,
            pool: None,
            service: None,
            name: None,
            note: None,
            busy: PortSet::default(),
            adopt: false,
        }
    }
}
