//! How much of one kind may go on at once: in all, and for each token or instance, so that none of them takes every place.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use gk_model::access::{Actor, Authority};
use gk_model::id::{InstanceId, TokenId};

/// Who has permits. Accounts at the Unix socket are counted with all others only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Token(TokenId),
    Instance(InstanceId),
}

impl Holder {
    fn of(actor: &Actor) -> Option<Holder> {
        match (actor.token, actor.authority) {
            (Some(token), _) => Some(Holder::Token(token)),
            (None, Authority::Instance(id, _)) => Some(Holder::Instance(id)),
            (None, Authority::Role(_) | Authority::Join(_)) => None,
        }
    }
}

/// The places of one kind.
#[derive(Debug)]
pub(crate) struct Permits {
    most: usize,
    most_each: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    each: HashMap<Holder, usize>,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// All are taken.
    All,
    /// This one has so many, and none may have more.
    Own { most: usize },
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    permits: Arc<Permits>,
    holder: Option<Holder>,
}

impl Permits {
    pub(crate) fn new(most: usize, most_each: usize) -> Arc<Permits> {
        Arc::new(Permits { most, most_each, taken: Mutex::default() })
    }

    /// A place for this actor.
    pub(crate) fn take(self: &Arc<Permits>, actor: &Actor) -> Result<Permit, Full> {
        let holder = Holder::of(actor);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= self.most {
            return Err(Full::All);
        }
        if let Some(holder) = holder {
            let count = taken.each.entry(holder).or_default();
            if *count >= self.most_each {
                return Err(Full::Own { most: self.most_each });
            }
            *count += 1;
        }
        taken.all += 1;
        Ok(Permit { permits: Arc::clone(self), holder })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = self.permits.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        let Some(holder) = self.holder else { return };
        let left = taken.each.get_mut(&holder).map(|count| {
            *count -= 1;
            *count
        });
        if left == Some(0) {
            taken.each.remove(&holder);
        }
    }
}

#[cfg(test)]
mod tests {
    use gk_model::access::Role;
    use gk_model::time::Timestamp;

    use super::*;

    #[test]
    fn one_token_leaves_places_for_others() {
        let permits = Permits::new(4, 2);
        let local = Actor::new("ada".parse().unwrap(), Authority::Role(Role::Admin));
        let token = TokenId::generate(Timestamp::from_micros(0));
        let with_token = Actor { token: Some(token), ..local.clone() };
        let mut held: Vec<Permit> = (0..2).map(|_| permits.take(&with_token).unwrap()).collect();
        assert_eq!(permits.take(&with_token).err(), Some(Full::Own { most: 2 }));
        held.extend((0..2).map(|_| permits.take(&local).unwrap()));
        assert_eq!(permits.take(&local).err(), Some(Full::All));
        held.remove(0);
        held.push(permits.take(&with_token).expect("a place is given back"));
        drop(held);
        let taken = permits.taken.lock().unwrap();
        assert!(taken.all == 0 && taken.each.is_empty());
    }
}
