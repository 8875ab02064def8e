//! Ids: UUIDs of version 7, made by the server, so that they sort by age.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::text::{InstanceName, NameError};
use crate::text_form::text_form;
use crate::time::Timestamp;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id: 48 bits of `now` in milliseconds, the rest random.
            pub fn generate(now: Timestamp) -> Self {
                let micros = u64::try_from(now.as_micros()).unwrap_or(0);
                let nanos = u32::try_from(micros % 1_000_000).unwrap_or(0) * 1_000;
                let time = uuid::Timestamp::from_unix(uuid::NoContext, micros / 1_000_000, nanos);
                Self(Uuid::new_v7(time))
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Uuid {
                id.0
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                Uuid::try_parse(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id! {
    /// Names one instance for ever, also after it was renamed or has left.
    InstanceId
}
id! {
    /// Names one reservation for ever, also after its release.
    ReservationId
}
id! {
    /// Names one event log. It changes when a database is restored from a backup, because numbers that were given after
    /// the backup are then given again.
    LogId
}
id! {
    /// Joins the reservations that one request made.
    GroupId
}

id! {
    /// Names one token, which is not secret: that is what it stands for in lists and in history.
    TokenId
}

impl ReservationId {
    /// Stands where the id would, for what a dry run would make. Never an id itself.
    pub const UNMADE: ReservationId = ReservationId(Uuid::nil());
}

/// Stands where an instance's id would, for what is held for all of them. Never an id itself.
pub const FLEET: &str = "fleet";

/// What people and programs write where an instance is meant: its id, or the name of a joined one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum InstanceRef {
    /// By id; also finds an instance that has left.
    Id(InstanceId),
    /// By name, without regard to case; finds joined instances only.
    Name(InstanceName),
}

impl FromStr for InstanceRef {
    type Err = NameError;

    fn from_str(text: &str) -> Result<InstanceRef, NameError> {
        match text.parse() {
            Ok(id) => Ok(InstanceRef::Id(id)),
            Err(_) => text.parse().map(InstanceRef::Name),
        }
    }
}

impl fmt::Display for InstanceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InstanceRef::Id(id) => id.fmt(f),
            InstanceRef::Name(name) => name.fmt(f),
        }
    }
}

impl From<InstanceId> for InstanceRef {
    fn from(id: InstanceId) -> InstanceRef {
        InstanceRef::Id(id)
    }
}

text_form!(InstanceRef, "web-1"; "^[A-Za-z0-9._-]{1,253}$");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_age() {
        let at = |seconds: i64| InstanceId::generate(Timestamp::from_micros(seconds * 1_000_000));
        assert!(at(1_700_000_000) < at(1_700_000_001));
        assert_ne!(at(5), at(5));
        assert!(!at(-5).to_string().is_empty(), "a clock before 1970 is survived");
    }

    #[test]
    fn a_uuid_is_an_id_and_anything_else_a_name() {
        let id = InstanceId::generate(Timestamp::from_micros(0));
        assert_eq!(id.to_string().parse(), Ok(InstanceRef::Id(id)));
        assert!(matches!("web-1".parse(), Ok(InstanceRef::Name(_))));
        assert!("no spaces".parse::<InstanceRef>().is_err());
    }
}
