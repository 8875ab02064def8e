//! Instances that are known by their credential, in memory: most requests are heartbeats, and asking the database who
//! calls costs far more than the heartbeat itself.
//!
//! Only where no other server writes: there, what ends a credential is committed by this process, and forgotten here
//! before anybody hears of it. So the next request with it is refused. What is read while a credential ends is told apart
//! by a number that grows with every ending. Tokens of people are few, and are always looked up.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use gk_model::access::{Actor, Authority};
use gk_model::id::InstanceId;
use gk_model::secret::SecretHash;

/// How many are remembered: more than a server has instances.
const MOST: usize = 65_536;

/// Who is known.
#[derive(Default)]
pub(crate) struct Door(Mutex<Known>);

#[derive(Default)]
struct Known {
    actors: HashMap<SecretHash, Actor>,
    endings: u64,
}

/// How many credentials had ended when a look-up began.
#[derive(Clone, Copy)]
pub(crate) struct Endings(u64);

impl Door {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who comes with this secret, or what [`Door::remember`] wants to know after the look-up.
    pub(crate) fn find(&self, hash: SecretHash) -> Result<Actor, Endings> {
        let known = self.lock();
        known.actors.get(&hash).cloned().ok_or(Endings(known.endings))
    }

    /// Keeps an instance that was looked up, unless a credential has ended since, which may be this one.
    pub(crate) fn remember(&self, hash: SecretHash, actor: &Actor, since: Endings) {
        let mut known = self.lock();
        if matches!(actor.authority, Authority::Instance(..)) && known.endings == since.0 {
            if known.actors.len() >= MOST {
                known.actors.clear();
            }
            known.actors.insert(hash, actor.clone());
        }
    }

    /// What became of the latest changes is not known: everybody is looked up again.
    pub(crate) fn doubt(&self) {
        let mut known = self.lock();
        known.endings += 1;
        known.actors.clear();
    }

    /// The credentials of this instance have ended.
    pub(crate) fn forget(&self, instance: InstanceId) {
        let mut known = self.lock();
        known.endings += 1;
        known
            .actors
            .retain(|_, actor| !matches!(actor.authority, Authority::Instance(own, _) if own == instance));
    }
}

#[cfg(test)]
mod tests {
    use gk_model::access::Role;
    use gk_model::secret::{Secret, SecretKind};
    use gk_model::time::Timestamp;

    use super::*;

    #[test]
    fn an_ending_is_never_overlooked() {
        let hash = |number: u8| Secret::from_random(SecretKind::Instance, &[number; 32]).hash();
        let instance = InstanceId::generate(Timestamp::from_micros(1));
        let actor = |number| Actor {
            subject: "instance:web-1".parse().unwrap(),
            authority: Authority::Instance(instance, hash(number)),
        };
        let door = Door::default();
        let early = door.find(hash(1)).unwrap_err();
        door.remember(hash(1), &actor(1), early);
        assert_eq!(door.find(hash(1)).ok(), Some(actor(1)));
        door.forget(instance);
        assert!(door.find(hash(1)).is_err());
        door.remember(hash(1), &actor(1), early);
        assert!(door.find(hash(1)).is_err(), "looked up before it ended");
        door.remember(hash(1), &actor(1), door.find(hash(1)).unwrap_err());
        door.doubt();
        assert!(door.find(hash(1)).is_err());
        let late = door.find(hash(2)).unwrap_err();
        door.remember(hash(2), &Actor { authority: Authority::Role(Role::Admin), ..actor(2) }, late);
        assert!(door.find(hash(2)).is_err(), "a person's token is looked up each time");
    }
}
