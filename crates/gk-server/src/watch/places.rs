//! How many streams there may be.
//!
//! They are no requests that somebody works on, so they take no place of those (`crowd.rs`). But each keeps a connection,
//! and connections must be left for those who ask something.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use gk_model::access::{Actor, Authority};
use gk_model::id::{InstanceId, TokenId};

use crate::error::ApiError;

/// How many streams one token may have open: a person's terminals and dashboards, or a program's threads.
const MOST_EACH: usize = 128;

/// Who has streams open. Accounts at the Unix socket are counted with all others only.
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

/// The places.
#[derive(Debug)]
pub(crate) struct Places {
    most: usize,
    most_each: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    each: HashMap<Holder, usize>,
}

/// Lets a stream be open: a place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct StreamPermit {
    places: Arc<Places>,
    holder: Option<Holder>,
}

impl Places {
    /// Half of the connections that there may be.
    pub(crate) fn of_connections(connections: usize) -> Arc<Places> {
        Places::new((connections / 2).max(1), MOST_EACH)
    }

    fn new(most: usize, most_each: usize) -> Arc<Places> {
        Arc::new(Places { most, most_each, taken: Mutex::default() })
    }

    /// A place for a stream of this actor.
    pub(crate) fn take(self: &Arc<Places>, actor: &Actor) -> Result<StreamPermit, ApiError> {
        let holder = Holder::of(actor);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= self.most {
            return Err(ApiError::Crowded);
        }
        if let Some(holder) = holder {
            let count = taken.each.entry(holder).or_default();
            if *count >= self.most_each {
                return Err(ApiError::TooManyStreams { most: self.most_each });
            }
            *count += 1;
        }
        taken.all += 1;
        Ok(StreamPermit { places: Arc::clone(self), holder })
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
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
    fn one_token_leaves_places_for_others_and_all_together_leave_connections() {
        let places = Places::new(4, 2);
        let local = Actor::new("ada".parse().unwrap(), Authority::Role(Role::Admin));
        let token = TokenId::generate(Timestamp::from_micros(0));
        let with_token = Actor { token: Some(token), ..local.clone() };
        let mut held: Vec<StreamPermit> = (0..2).map(|_| places.take(&with_token).unwrap()).collect();
        assert!(matches!(places.take(&with_token), Err(ApiError::TooManyStreams { most: 2 })));
        held.extend((0..2).map(|_| places.take(&local).unwrap()));
        assert!(matches!(places.take(&local), Err(ApiError::Crowded)));
        held.remove(0);
        held.push(places.take(&with_token).expect("a place is given back"));
        drop(held);
        let taken = places.taken.lock().unwrap();
        assert!(taken.all == 0 && taken.each.is_empty());
    }
}
