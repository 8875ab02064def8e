//! Spaces: where a number is exclusive, on one instance or in the whole fleet.
//!
//! The same column form serves for whom a reservation is held: for one instance, or for all of them.

use std::fmt;
use std::str::FromStr;

use gk_model::id::{FLEET, InstanceId};
use gk_model::instance::InstanceLink;
use gk_model::reservation::{Reservation, Scope};

use crate::error::StoreError;
use crate::rows::Row;

/// An instance, or the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    Instance(InstanceId),
    Fleet,
}

impl Space {
    /// Where the ports of a reservation are claimed.
    pub(crate) fn of(scope: Scope, instance: Option<&InstanceLink>) -> Space {
        match scope {
            Scope::Instance => Space::held_for(instance),
            Scope::Fleet => Space::Fleet,
        }
    }

    pub(crate) fn of_reservation(reservation: &Reservation) -> Space {
        Space::of(reservation.scope, reservation.instance.as_ref())
    }

    /// For whom something is held.
    pub(crate) fn held_for(instance: Option<&InstanceLink>) -> Space {
        instance.map_or(Space::Fleet, |instance| Space::Instance(instance.id))
    }
}

impl From<InstanceId> for Space {
    fn from(id: InstanceId) -> Space {
        Space::Instance(id)
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Space::Instance(id) => id.fmt(f),
            Space::Fleet => f.write_str(FLEET),
        }
    }
}

impl FromStr for Space {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Space, uuid::Error> {
        if text == FLEET { Ok(Space::Fleet) } else { text.parse().map(Space::Instance) }
    }
}

/// Reads an instance and its name, from two columns that a left join with `instance` gives; none for the fleet, and for
/// what is about no instance.
pub(crate) fn take_link(row: &mut Row) -> Result<Option<InstanceLink>, StoreError> {
    let (space, name): (Option<Space>, Option<_>) = (row.take()?, row.take()?);
    match (space, name) {
        (Some(Space::Instance(id)), Some(name)) => Ok(Some(InstanceLink { id, name })),
        (Some(Space::Instance(id)), None) => Err(StoreError::Corrupt(format!("instance {id} is gone"))),
        (Some(Space::Fleet) | None, _) => Ok(None),
    }
}
