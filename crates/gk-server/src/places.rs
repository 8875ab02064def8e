//! Who has how many of a listener's connections, and who makes room when there are no more.
//!
//! As long as there is room, anybody may have any number. When there is none, whoever has the most makes room for those who
//! have fewer: so one address, however many idle connections it opens, keeps nobody else out. What is closed is its oldest
//! connection; a client that means well connects again.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use tokio::task::{AbortHandle, Id};

use crate::auth::Peer;
use crate::rates::network;

/// Who is at the other end, as far as the kernel can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    Network(IpAddr),
    Account(u32),
}

impl Owner {
    pub(crate) fn of(peer: Peer) -> Owner {
        match peer {
            Peer::Tcp(address) => Owner::Network(network(address.ip())),
            Peer::Proxied(address) => Owner::Network(network(address)),
            Peer::Unix { uid } => Owner::Account(uid),
        }
    }
}

/// The connections of one listener.
#[derive(Debug)]
pub(crate) struct Places {
    most: usize,
    /// Of each owner, the oldest first.
    taken: HashMap<Owner, BTreeMap<u64, AbortHandle>>,
    by_task: HashMap<Id, (Owner, u64)>,
    next: u64,
}

impl Places {
    pub(crate) fn new(most: usize) -> Places {
        Places { most, taken: HashMap::new(), by_task: HashMap::new(), next: 0 }
    }

    /// Whether there is a place for one more of this owner; at the cost of whoever has the most, if need be.
    pub(crate) fn make_room(&mut self, owner: Owner) -> bool {
        if self.by_task.len() < self.most {
            return true;
        }
        let own = self.taken.get(&owner).map_or(0, BTreeMap::len);
        let greediest = self.taken.iter().max_by_key(|(_, theirs)| theirs.len());
        // With one more it would have no fewer, and the two would push each other out for ever.
        let Some(oldest) = greediest.filter(|(_, theirs)| theirs.len() > own + 1).and_then(|(_, theirs)| {
            let (_, oldest) = theirs.first_key_value()?;
            Some(oldest.clone())
        }) else {
            return false;
        };
        oldest.abort();
        self.leave(oldest.id());
        true
    }

    pub(crate) fn take(&mut self, owner: Owner, task: AbortHandle) {
        self.by_task.insert(task.id(), (owner, self.next));
        self.taken.entry(owner).or_default().insert(self.next, task);
        self.next += 1;
    }

    /// A connection has ended. One that was closed for others has left before.
    pub(crate) fn leave(&mut self, task: Id) {
        let Some((owner, number)) = self.by_task.remove(&task) else { return };
        if let Some(theirs) = self.taken.get_mut(&owner) {
            theirs.remove(&number);
            if theirs.is_empty() {
                self.taken.remove(&owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    /// Connections that last, of owners by number.
    struct Scene {
        places: Places,
        tasks: JoinSet<()>,
    }

    impl Scene {
        fn of(most: usize) -> Scene {
            Scene { places: Places::new(most), tasks: JoinSet::new() }
        }

        fn come(&mut self, uid: u32) -> bool {
            let owner = Owner::Account(uid);
            let is_let_in = self.places.make_room(owner);
            if is_let_in {
                self.places.take(owner, self.tasks.spawn(std::future::pending()));
            }
            is_let_in
        }

        fn has(&self, uid: u32) -> usize {
            self.places.taken.get(&Owner::Account(uid)).map_or(0, BTreeMap::len)
        }

        async fn cut_off(&mut self) -> Id {
            let ended = self.tasks.join_next_with_id().await.unwrap().unwrap_err();
            assert!(ended.is_cancelled());
            ended.id()
        }
    }

    #[tokio::test]
    async fn whoever_has_the_most_makes_room_for_those_who_have_fewer() {
        let mut scene = Scene::of(10);
        assert!((0..10).all(|_| scene.come(1)), "nobody else wants them");
        assert!(!scene.come(1), "there is nobody with more");
        let first = scene.places.taken[&Owner::Account(1)].values().next().unwrap().id();
        assert!(scene.come(2));
        assert_eq!(scene.cut_off().await, first, "the oldest one");
        assert!((0..4).all(|_| scene.come(2)));
        assert_eq!((scene.has(1), scene.has(2)), (5, 5));
        assert!(!scene.come(2) && !scene.come(1), "both have as many");
        assert!(scene.come(3));
        assert_eq!(scene.has(1) + scene.has(2) + scene.has(3), 10);
        let left = scene.places.taken[&Owner::Account(3)].values().next().unwrap().id();
        scene.places.leave(left);
        scene.places.leave(left);
        assert!(scene.come(2), "a place that somebody has left");
        assert_eq!(scene.has(3), 0);
    }
}
