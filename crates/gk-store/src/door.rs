//! Who is known by a secret, in memory: most requests are heartbeats, and asking the database who calls costs far more
//! than the heartbeat itself.
//!
//! What ends a secret here is committed by this process, and forgotten here before anybody hears of it. So the next
//! request with it is refused. What is read while a secret ends is told apart by a number that grows with every ending.
//! Where other servers write to the same database, nobody is remembered longer than [`TRUSTED_FOR`].

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gk_model::access::{Actor, Authority};
use gk_model::id::{InstanceId, TokenId};
use gk_model::secret::SecretHash;
use gk_model::time::Timestamp;

use crate::tokens::Known;

/// How many are remembered: more than a server has instances.
const MOST: usize = 65_536;

/// How long a secret may go on after another server ended it, half of what the domain allows.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// How much newer a token's last use must be before it is written down again.
const USES_EVERY: Duration = Duration::from_mins(1);

/// Who is known.
#[derive(Default)]
pub(crate) struct Door(Mutex<State>);

#[derive(Default)]
struct State {
    remembered: HashMap<SecretHash, Remembered>,
    endings: u64,
    uses: HashMap<TokenId, Use>,
}

struct Remembered {
    known: Known,
    since: Instant,
}

/// When a token was last used, and when that was last written down.
struct Use {
    last_at: Timestamp,
    written_at: Option<Timestamp>,
}

/// How many secrets had ended when a look-up began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endings(u64);

impl Door {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who comes with this secret, nobody if it has expired; or what [`Door::remember`] wants to know after the look-up.
    /// `is_shared` says that other servers may have ended it.
    pub(crate) fn find(
        &self,
        hash: SecretHash,
        is_shared: bool,
        now: Timestamp,
    ) -> Result<Option<Actor>, Endings> {
        let state = self.lock();
        let remembered = state.remembered.get(&hash);
        let trusted = remembered.filter(|it| !is_shared || it.since.elapsed() < TRUSTED_FOR);
        let Some(Remembered { known, .. }) = trusted else { return Err(Endings(state.endings)) };
        let has_expired = known.expires_at.is_some_and(|end| end <= now);
        Ok((!has_expired).then(|| known.actor.clone()))
    }

    /// Keeps who was looked up, unless a secret has ended since, which may be this one.
    pub(crate) fn remember(&self, hash: SecretHash, known: Known, since: Endings) {
        let mut state = self.lock();
        if state.endings == since.0 {
            if state.remembered.len() >= MOST {
                state.remembered.clear();
            }
            state.remembered.insert(hash, Remembered { known, since: Instant::now() });
        }
    }

    /// What became of the latest changes is not known: everybody is looked up again.
    pub(crate) fn doubt(&self) {
        let mut state = self.lock();
        state.endings += 1;
        state.remembered.clear();
    }

    /// The credentials of this instance have ended.
    pub(crate) fn forget(&self, instance: InstanceId) {
        self.end(|actor| matches!(actor.authority, Authority::Instance(own, _) if own == instance));
    }

    /// This token has ended.
    pub(crate) fn forget_token(&self, token: TokenId) {
        self.end(|actor| actor.token == Some(token));
    }

    fn end(&self, has_ended: impl Fn(&Actor) -> bool) {
        let mut state = self.lock();
        state.endings += 1;
        state.remembered.retain(|_, it| !has_ended(&it.known.actor));
    }

    /// Notes that a token was used.
    pub(crate) fn note_use(&self, token: TokenId, now: Timestamp) {
        let mut state = self.lock();
        let used = state.uses.entry(token).or_insert(Use { last_at: now, written_at: None });
        used.last_at = used.last_at.max(now);
    }

    /// When a token was last used, as far as is known here.
    pub(crate) fn last_use(&self, token: TokenId) -> Option<Timestamp> {
        self.lock().uses.get(&token).map(|used| used.last_at)
    }

    /// The uses that are worth writing down by now.
    pub(crate) fn list_unwritten(&self) -> Vec<(TokenId, Timestamp)> {
        let is_news = |used: &Use| match used.written_at {
            Some(written) => used.last_at.since(written) >= USES_EVERY,
            None => true,
        };
        let state = self.lock();
        state.uses.iter().filter(|(_, used)| is_news(used)).map(|(id, used)| (*id, used.last_at)).collect()
    }

    /// They were written down.
    pub(crate) fn mark_written(&self, uses: &[(TokenId, Timestamp)]) {
        let mut state = self.lock();
        if state.uses.len() > MOST {
            state.uses.clear();
        }
        for (id, at) in uses {
            if let Some(used) = state.uses.get_mut(id) {
                used.written_at = Some(*at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use gk_model::access::Role;
    use gk_model::secret::{Secret, SecretKind};

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn hash(number: u8) -> SecretHash {
        Secret::from_random(SecretKind::Instance, &[number; 32]).hash()
    }

    fn known(actor: &Actor) -> Known {
        Known { actor: actor.clone(), expires_at: None }
    }

    #[test]
    fn an_ending_is_never_overlooked() {
        let (instance, token) = (InstanceId::generate(at(1)), TokenId::generate(at(1)));
        let machine = Actor::new("instance:web-1".parse().unwrap(), Authority::Instance(instance, hash(1)));
        let ada = Actor::new("ada".parse().unwrap(), Authority::Role(Role::Admin));
        let ada = Actor { token: Some(token), ..ada };
        type Ending<'a> = &'a dyn Fn(&Door);
        let endings: [(&Actor, Ending<'_>); 4] = [
            (&machine, &|door| door.forget(instance)),
            (&ada, &|door| door.forget_token(token)),
            (&machine, &Door::doubt),
            (&ada, &Door::doubt),
        ];
        for (actor, end) in endings {
            let door = Door::default();
            let find = || door.find(hash(1), false, at(2));
            let early = find().unwrap_err();
            door.remember(hash(1), known(actor), early);
            assert_eq!(find().unwrap().as_ref(), Some(actor));
            end(&door);
            assert!(find().is_err());
            door.remember(hash(1), known(actor), early);
            assert!(find().is_err(), "looked up before it ended");
            door.remember(hash(1), known(actor), find().unwrap_err());
            assert!(find().is_ok());
        }
    }

    #[test]
    fn what_has_expired_is_nobody() {
        let door = Door::default();
        let ada = Actor::new("ada".parse().unwrap(), Authority::Role(Role::User));
        let since = door.find(hash(1), false, at(0)).unwrap_err();
        door.remember(hash(1), Known { actor: ada.clone(), expires_at: Some(at(60)) }, since);
        assert_eq!(door.find(hash(1), false, at(59)).unwrap(), Some(ada));
        assert_eq!(door.find(hash(1), false, at(60)).unwrap(), None);
    }

    #[test]
    fn uses_are_written_once_a_minute() {
        let (door, token) = (Door::default(), TokenId::generate(at(1)));
        let table = [(0, Some(0)), (59, None), (30, None), (60, Some(60)), (61, None)];
        for (used, written) in table {
            door.note_use(token, at(used));
            let unwritten = door.list_unwritten();
            let expected: Vec<_> = written.map(|seconds| (token, at(seconds))).into_iter().collect();
            assert_eq!(unwritten, expected, "{used}");
            door.mark_written(&unwritten);
        }
        assert_eq!(door.last_use(token), Some(at(61)));
    }
}
