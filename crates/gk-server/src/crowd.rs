//! How many requests may be worked on at once.
//!
//! Each kind of work has places of its own, so that a crowd of one kind leaves room for the others: agents are heard
//! while people list, and people may list while a fleet comes back. A request that finds no place is refused at once
//! (503 with `Retry-After`) rather than kept waiting, because a queue in front of the store's own would only hide that
//! there is one. `/healthz` and the other open routes need no place.

use std::sync::Arc;

use gk_model::access::{Actor, Authority, Permission};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ApiError;

/// Places for agents: with a body of 8 MiB in each, which takes a very odd fleet, that is 8 GiB.
const AGENTS: usize = 1024;

/// Places for those who read. The store reads for far fewer of them at once.
const READS: usize = 256;

/// Places for those who change something. They travel in one commit, so many of them are good.
const CHANGES: usize = 1024;

/// The places.
#[derive(Debug)]
pub(crate) struct Crowd {
    agents: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    changes: Arc<Semaphore>,
}

/// Lets a request be worked on: a place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct RequestPermit(#[expect(dead_code, reason = "it is held, not used")] OwnedSemaphorePermit);

impl Default for Crowd {
    fn default() -> Crowd {
        Crowd::new(AGENTS, READS, CHANGES)
    }
}

impl Crowd {
    fn new(agents: usize, reads: usize, changes: usize) -> Crowd {
        let places = |count| Arc::new(Semaphore::new(count));
        Crowd { agents: places(agents), reads: places(reads), changes: places(changes) }
    }

    /// A place for this actor's request.
    pub(crate) fn enter(&self, actor: &Actor, permission: Permission) -> Result<RequestPermit, ApiError> {
        let places = match (actor.authority, permission) {
            (Authority::Instance(..), _) => &self.agents,
            (_, Permission::Read) => &self.reads,
            _ => &self.changes,
        };
        Arc::clone(places).try_acquire_owned().map(RequestPermit).map_err(|_| ApiError::Crowded)
    }
}

#[cfg(test)]
mod tests {
    use gk_model::access::Role;
    use gk_model::id::InstanceId;
    use gk_model::secret::{Secret, SecretKind};
    use gk_model::time::Timestamp;

    use super::*;

    #[test]
    fn a_crowd_of_one_kind_leaves_room_for_the_others() {
        let crowd = Crowd::new(1, 2, 1);
        let actor = |authority| Actor::new("somebody".parse().unwrap(), authority);
        let ada = actor(Authority::Role(Role::Admin));
        let hash = Secret::from_random(SecretKind::Instance, &[0; 32]).hash();
        let agent = actor(Authority::Instance(InstanceId::generate(Timestamp::from_micros(0)), hash));
        let lists = [(); 2].map(|()| crowd.enter(&ada, Permission::Read).unwrap());
        assert!(matches!(crowd.enter(&ada, Permission::Read), Err(ApiError::Crowded)));
        let _contact = crowd.enter(&agent, Permission::Contact).expect("agents are heard while people list");
        let _change = crowd.enter(&ada, Permission::Reserve).expect("nor do lists keep changes out");
        assert!(
            matches!(crowd.enter(&agent, Permission::Read), Err(ApiError::Crowded)),
            "an agent's own place"
        );
        drop(lists);
        assert!(crowd.enter(&ada, Permission::Read).is_ok(), "a place is given back");
    }
}
