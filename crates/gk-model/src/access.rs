//! Who may do what: roles, and the permissions that routes demand.

use crate::id::InstanceId;
use crate::secret::SecretHash;
use crate::text::Subject;
use crate::text_form::words;

words! {
    /// What a token lets its subject do. Each role may do everything the ones before it may.
    Role, "a role" {
        /// Reads everything but secrets.
        Viewer = "viewer",
        /// Reserves, and releases its own.
        User = "user",
        /// Every reservation, every instance.
        Operator = "operator",
        /// Everything.
        Admin = "admin",
    }
}

/// What a route demands of whoever calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permission {
    /// To read instances, ports, reservations, history and events.
    Read,
    /// To reserve, and to release one's own.
    Reserve,
    /// To change instances and other people's reservations.
    Operate,
    /// To bring an instance in: a join token, an operator, or the instance itself coming back.
    Join,
    /// To speak for an instance: its own credential only.
    Contact,
}

impl Permission {
    /// The least role that has it; `None` when no role does, only an instance's own credential.
    pub fn least_role(self) -> Option<Role> {
        match self {
            Permission::Read => Some(Role::Viewer),
            Permission::Reserve => Some(Role::User),
            Permission::Operate | Permission::Join => Some(Role::Operator),
            Permission::Contact => None,
        }
    }
}

/// Whoever makes a request, after authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// Who it is.
    pub subject: Subject,
    /// What it may do.
    pub authority: Authority,
}

/// What an actor's secret, or its place at the Unix socket, lets it do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// A role over the whole fleet.
    Role(Role),
    /// An instance's own credential: a user limited to that instance. The hash says which credential it was, because it
    /// may be replaced while a request is under way.
    Instance(InstanceId, SecretHash),
    /// A join token: lets one machine join, once, and nothing else.
    Join(SecretHash),
}

impl Actor {
    /// Whether a route that demands `permission` lets it in at all.
    pub fn has(&self, permission: Permission) -> bool {
        match (self.authority, permission) {
            (Authority::Role(role), _) => permission.least_role().is_some_and(|least| role >= least),
            (Authority::Instance(..), Permission::Operate) => false,
            (Authority::Instance(..), _) => true,
            (Authority::Join(_), _) => permission == Permission::Join,
        }
    }

    /// Whether it may change what others hold.
    pub fn is_operator(&self) -> bool {
        matches!(self.authority, Authority::Role(role) if role >= Role::Operator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{Secret, SecretKind};
    use crate::time::Timestamp;

    #[test]
    fn who_may_what() {
        use Permission::{Contact, Join, Operate, Read, Reserve};
        let own = InstanceId::generate(Timestamp::from_micros(0));
        let hash = Secret::from_random(SecretKind::Join, &[0; 32]).hash();
        let table: [(Authority, &[Permission]); 6] = [
            (Authority::Role(Role::Viewer), &[Read]),
            (Authority::Role(Role::User), &[Read, Reserve]),
            (Authority::Role(Role::Operator), &[Read, Reserve, Operate, Join]),
            (Authority::Role(Role::Admin), &[Read, Reserve, Operate, Join]),
            (Authority::Instance(own, hash), &[Read, Reserve, Join, Contact]),
            (Authority::Join(hash), &[Join]),
        ];
        for (authority, allowed) in table {
            let actor = Actor { subject: "somebody".parse().unwrap(), authority };
            for permission in [Read, Reserve, Operate, Join, Contact] {
                assert_eq!(
                    actor.has(permission),
                    allowed.contains(&permission),
                    "{authority:?} {permission:?}"
                );
            }
        }
    }
}
