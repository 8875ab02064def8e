//! What a failed contact means for the agent: wait, tell it anew, or end.

use gk_client::ClientError;
use gk_model::problem::{Code, Problem};

/// Why a contact has no answer, as far as the agent decides by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It may have been taken or not: nobody answered, or not in a way that tells.
    Away,
    /// The server does not know the credential.
    Unknown,
    /// It was understood and not taken.
    Refused,
    /// There is nothing left to talk about.
    Ended(Ending),
}

/// Why an agent ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ending {
    /// Somebody else has opened a session with this identity.
    #[error(
        "something else has gone on with this identity: another agent, a clone of this machine, or a copy of it that \
         was restored from an old backup; stop that one, then take the identity back with `gkctl instance join \
         --replace NAME` (a clone that is to be a machine of its own: remove its state directory and join)"
    )]
    Superseded,
    /// The instance has left.
    #[error("the server says that this instance has left; join again with `gkctl instance join`")]
    Left,
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The state knows when and what.
    TryAgain,
    /// The agent ends.
    End(Ending),
}

impl Failure {
    /// Of a contact.
    pub(crate) fn of(error: &ClientError) -> Failure {
        match error {
            ClientError::Refused(problem) => Failure::of_problem(problem),
            // An answer that makes no sense comes from a proxy, or from a server that stumbled after it committed; and
            // what was not sent at all may be sent when a person has mended it.
            _ => Failure::Away,
        }
    }

    fn of_problem(problem: &Problem) -> Failure {
        match (problem.code, problem.status) {
            (Code::IdentitySuperseded, _) => Failure::Ended(Ending::Superseded),
            (Code::NoSuchInstance, _) | (_, 410) => Failure::Ended(Ending::Left),
            (Code::Unauthenticated | Code::Forbidden, _) => Failure::Unknown,
            // The server may work on it still; a proxy may have lost it; a route may be back after an upgrade, and a name
            // that the server does not go by after a change of its configuration.
            (_, 404 | 408 | 421 | 425 | 429) => Failure::Away,
            (_, 400..=499) => Failure::Refused,
            _ => Failure::Away,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::problem;

    #[test]
    fn every_refusal_has_its_meaning() {
        let table = [
            (409, Code::IdentitySuperseded, Failure::Ended(Ending::Superseded)),
            (404, Code::NoSuchInstance, Failure::Ended(Ending::Left)),
            (410, Code::NoSuchInstance, Failure::Ended(Ending::Left)),
            (401, Code::Unauthenticated, Failure::Unknown),
            (403, Code::Forbidden, Failure::Unknown),
            (404, Code::NoSuchRoute, Failure::Away),
            (408, Code::TooSlow, Failure::Away),
            (421, Code::UnknownHost, Failure::Away),
            (429, Code::TooOften, Failure::Away),
            (400, Code::Malformed, Failure::Refused),
            (413, Code::TooLarge, Failure::Refused),
            (422, Code::Impossible, Failure::Refused),
            (500, Code::Internal, Failure::Away),
            (503, Code::Unavailable, Failure::Away),
        ];
        for (status, code, expected) in table {
            let error = ClientError::Refused(Box::new(problem(status, code)));
            assert_eq!(Failure::of(&error), expected, "{status} {code}");
        }
    }

    #[test]
    fn the_way_out_is_named() {
        for ending in [Ending::Superseded, Ending::Left] {
            assert!(ending.to_string().contains("`gkctl instance join"), "{ending}");
        }
    }
}
