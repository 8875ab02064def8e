//! Another credential, now and then: when the server says that the one there is has become old.
//!
//! It goes the way of a join, so that nothing is lost on it: the new secret is on disk before the server hears of it, and
//! only its hash is sent. An agent that ended in between finds it there and shows it again. The credential before goes
//! on for a moment, for other programs of this machine.

use std::path::Path;
use std::time::Duration;

use gk_client::join::{JoinError, begin_join};
use gk_client::{Client, ClientError};
use gk_model::instance::JoinRequest;
use gk_model::problem::Code;
use gk_model::secret::Secret;

/// How long until the next try, after one that failed.
const AGAIN: Duration = Duration::from_secs(30);

/// Whether and when to make another credential.
#[derive(Debug)]
pub(crate) struct Renewal {
    is_wanted: bool,
    next_at: Duration,
}

impl Renewal {
    /// Wanted at once when a new credential is pending that the server may know.
    pub(crate) fn new(has_pending: bool) -> Renewal {
        Renewal { is_wanted: has_pending, next_at: Duration::ZERO }
    }

    /// Asks for one.
    pub(crate) fn want(&mut self) {
        self.is_wanted = true;
    }

    /// The server does not know the credential there is: if another one is wanted, it may know that one already.
    pub(crate) fn hurry(&mut self) {
        self.next_at = Duration::ZERO;
    }

    /// Whether it is to be tried now; then the next try waits.
    pub(crate) fn take_turn(&mut self, elapsed: Duration) -> bool {
        let is_due = self.is_wanted && self.next_at <= elapsed;
        if is_due {
            self.next_at = elapsed + AGAIN;
        }
        is_due
    }
}

/// Makes another credential and shows it to the server, on the authority of the one before; one that is pending is shown
/// again instead.
///
/// # Errors
/// [`JoinError`]; the new credential is pending then, and may be good.
pub(crate) fn renew(client: &Client, state_dir: &Path, request: &JoinRequest) -> Result<Secret, JoinError> {
    let with = |credential_hash| JoinRequest { credential_hash, ..request.clone() };
    begin_join(client, state_dir, with).map(|(_, credential)| credential)
}

/// Whether the server knows neither the credential there is nor the pending one, which the log has been told already.
pub(crate) fn is_stranger(error: &JoinError) -> bool {
    matches!(error, JoinError::Server(ClientError::Refused(problem)) if problem.code == Code::Unauthenticated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_tried_at_once_and_then_now_and_then() {
        let at = Duration::from_secs;
        let mut renewal = Renewal::new(false);
        assert!(!renewal.take_turn(at(1)));
        renewal.want();
        let turns: Vec<bool> = [1, 2, 30, 31, 32].map(|seconds| renewal.take_turn(at(seconds))).to_vec();
        assert_eq!(turns, [true, false, false, true, false]);
        renewal.hurry();
        assert!(renewal.take_turn(at(33)) && !renewal.take_turn(at(34)));
        assert!(Renewal::new(true).take_turn(at(0)));
    }
}
