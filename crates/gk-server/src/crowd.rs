//! How many requests may be worked on at once, and how many streams may be open.
//!
//! Each kind of work has places of its own, so that a crowd of one kind leaves room for the others: agents are heard
//! while people list, and people may list while a fleet comes back. And no token or instance has more than a share of
//! them, so that one that is out of hand keeps nobody else out. A request that finds no place is refused at once (503 or
//! 429, with `Retry-After`) rather than kept waiting, because a queue in front of the store's own would only hide that
//! there is one. `/healthz` and the other open routes need no place.

use std::sync::Arc;

use gk_model::access::{Actor, Authority, Permission};

use crate::error::ApiError;
use crate::permits::{Full, Permit, Permits};

/// Places for agents, and how many of them one instance may have, which works on a few things by itself: with a body of
/// 8 MiB in each, which takes a very odd fleet, that is 8 GiB.
const AGENTS: (usize, usize) = (1024, 64);

/// Places for those who read. The store reads for far fewer of them at once.
const READS: (usize, usize) = (256, 64);

/// Places for those who change something. They travel in one commit, so many of them are good.
const CHANGES: (usize, usize) = (1024, 256);

/// How many streams one token may have open: a person's terminals and dashboards, or a program's threads.
const STREAMS_EACH: usize = 128;

/// The places.
#[derive(Debug)]
pub(crate) struct Crowd {
    agents: Arc<Permits>,
    reads: Arc<Permits>,
    changes: Arc<Permits>,
    streams: Arc<Permits>,
}

impl Crowd {
    /// Where there may be so many connections. Streams take no place of requests, since nobody works on them; but each
    /// keeps a connection, and half of those are left to who asks something.
    pub(crate) fn of_connections(connections: usize) -> Crowd {
        Crowd::new([AGENTS, READS, CHANGES, ((connections / 2).max(1), STREAMS_EACH)])
    }

    fn new(places: [(usize, usize); 4]) -> Crowd {
        let [agents, reads, changes, streams] = places.map(|(most, each)| Permits::new(most, each));
        Crowd { agents, reads, changes, streams }
    }

    /// A place for this actor's request.
    pub(crate) fn enter(&self, actor: &Actor, permission: Permission) -> Result<Permit, ApiError> {
        let places = match (actor.authority, permission) {
            (Authority::Instance(..), _) => &self.agents,
            (_, Permission::Read) => &self.reads,
            _ => &self.changes,
        };
        places.take(actor).map_err(|full| match full {
            Full::All => ApiError::Crowded,
            Full::Own { most } => ApiError::TooManyAtOnce { most },
        })
    }

    /// A place for a stream of this actor.
    pub(crate) fn watch(&self, actor: &Actor) -> Result<Permit, ApiError> {
        self.streams.take(actor).map_err(|full| match full {
            Full::All => ApiError::Crowded,
            Full::Own { most } => ApiError::TooManyStreams { most },
        })
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
        let crowd = Crowd::new([(1, 1), (2, 2), (1, 1), (1, 1)]);
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
