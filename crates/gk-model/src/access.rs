//! Who may do what: roles, and the permissions that routes demand.

use std::sync::Arc;

use crate::history::Origin;
use crate::id::{InstanceId, TokenId};
use crate::secret::SecretHash;
use crate::text::Subject;
use crate::text_form::words;
use crate::token::Limits;

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
    /// To make, list and revoke tokens; of operators, join tokens only.
    Tokens,
    /// To change the pools that everybody draws from.
    Pools,
    /// To ask who one is; everybody with a valid secret.
    Whoami,
    /// To bring an instance in: a join token, an operator, or the instance itself coming back.
    Join,
    /// To speak for an instance: its own credential only.
    Contact,
}

impl Permission {
    /// The least role that has it; `None` when no role does, only an instance's own credential.
    pub fn least_role(self) -> Option<Role> {
        match self {
            Permission::Read | Permission::Whoami => Some(Role::Viewer),
            Permission::Reserve => Some(Role::User),
            Permission::Operate | Permission::Join | Permission::Tokens => Some(Role::Operator),
            Permission::Pools => Some(Role::Admin),
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
    /// What it may not, within that. Shared, because most have none and every request has an actor.
    pub limits: Option<Arc<Limits>>,
    /// The token it came with.
    pub token: Option<TokenId>,
    /// Where the request came from; goes into history with what it changes.
    pub origin: Option<Arc<Origin>>,
}

/// What an actor's secret, or its place at the Unix socket, lets it do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// A role over the whole fleet.
    Role(Role),
    /// An instance's own credential: a user limited to that instance. The hash says which credential it was, because it
    /// may be replaced while a request is under way.
    Instance(InstanceId, SecretHash),
    /// A join token: lets machines join, one or several, and nothing else.
    Join(SecretHash),
}

impl Actor {
    /// A subject with all that its authority gives, of unknown origin.
    pub fn new(subject: Subject, authority: Authority) -> Actor {
        Actor { subject, authority, limits: None, token: None, origin: None }
    }

    /// Whether a route that demands `permission` lets it in at all.
    pub fn has(&self, permission: Permission) -> bool {
        match (self.authority, permission) {
            (Authority::Role(role), _) => permission.least_role().is_some_and(|least| role >= least),
            (Authority::Instance(..), Permission::Operate | Permission::Tokens | Permission::Pools) => false,
            (Authority::Instance(..), _) => true,
            (Authority::Join(_), _) => matches!(permission, Permission::Join | Permission::Whoami),
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
        use Permission::{Contact, Join, Operate, Pools, Read, Reserve, Tokens, Whoami};
        let own = InstanceId::generate(Timestamp::from_micros(0));
        let hash = Secret::from_random(SecretKind::Join, &[0; 32]).hash();
        let table: [(Authority, &[Permission]); 6] = [
            (Authority::Role(Role::Viewer), &[Read, Whoami]),
            (Authority::Role(Role::User), &[Read, Whoami, Reserve]),
            (Authority::Role(Role::Operator), &[Read, Whoami, Reserve, Operate, Join, Tokens]),
            (Authority::Role(Role::Admin), &[Read, Whoami, Reserve, Operate, Join, Tokens, Pools]),
            (Authority::Instance(own, hash), &[Read, Whoami, Reserve, Join, Contact]),
            (Authority::Join(hash), &[Join, Whoami]),
        ];
        for (authority, allowed) in table {
            let actor = Actor::new("somebody".parse().unwrap(), authority);
            for permission in [Read, Reserve, Operate, Join, Contact, Tokens, Pools, Whoami] {
                assert_eq!(
                    actor.has(permission),
                    allowed.contains(&permission),
                    "{authority:?} {permission:?}"
                );
            }
        }
    }
}
