//! When a request that is safe to repeat is sent again, and how long to wait before.
//!
//! Only a request under an idempotency key comes here, so a repetition can never take effect twice. What is worth
//! another attempt: the connection broke, time ran out, the server says that it is away for now (503) or asked
//! too often (429), or that the first attempt is still under way. What is not: any other answer, and a server that nobody could connect to at the
//! *first* attempt. Then nothing was sent, most likely nothing runs there, and whoever typed the command should hear so
//! at once. Later, a refused connection is a server that is being restarted.

use std::io;
use std::time::Duration;

use gk_model::problem::Code;

use crate::error::{ClientError, ProtocolFault};
use crate::identity::random_bytes;

/// How long after the first attempt another one may begin, unless told otherwise.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// The first wait is drawn from at most this; the ceiling doubles with each attempt.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// A watch is in no hurry: many of them come back to a server that has just started.
const LONGEST_RECONNECT: Duration = Duration::from_secs(10);

const UNAVAILABLE: u16 = 503;
const TOO_OFTEN: u16 = 429;

/// An attempt that came to nothing.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: ClientError,
    /// What the server asked for by `Retry-After`.
    pub(crate) retry_after: Option<Duration>,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        Failure { error, retry_after: None }
    }
}

/// How long to wait before the next attempt; none when there is to be none.
///
/// `attempt` counts from one and `elapsed` since the first attempt began. `share`, from 0 to 1, is the luck of this
/// wait: callers that failed together come back apart.
pub(crate) fn wait_before_next(
    failure: &Failure,
    attempt: u32,
    elapsed: Duration,
    patience: Duration,
    share: f64,
) -> Option<Duration> {
    if !is_worth_another(&failure.error, attempt) {
        return None;
    }
    let ceiling = FIRST_WAIT.saturating_mul(1 << attempt.saturating_sub(1).min(10)).min(LONGEST_WAIT);
    let wait = ceiling.mul_f64(0.5 + share / 2.0) + failure.retry_after.unwrap_or_default();
    (elapsed + wait < patience).then_some(wait)
}

fn is_worth_another(error: &ClientError, attempt: u32) -> bool {
    match error {
        ClientError::Unreachable { source, .. } => attempt > 1 || !is_nobody_there(source),
        ClientError::Refused(problem) => {
            [UNAVAILABLE, TOO_OFTEN].contains(&problem.status) || problem.code == Code::IdempotencyInFlight
        }
        ClientError::Protocol { fault, .. } => {
            matches!(**fault, ProtocolFault::Status { status: UNAVAILABLE, .. })
        }
        ClientError::InsecureHttp { .. } | ClientError::Untrusted { .. } | ClientError::Gone(_) => false,
    }
}

/// How long a watch waits before it connects again; `failures` counts from one.
pub(crate) fn wait_before_reconnecting(failures: u32, retry_after: Option<Duration>, share: f64) -> Duration {
    let ceiling = FIRST_WAIT.saturating_mul(1 << failures.min(10)).min(LONGEST_RECONNECT);
    ceiling.mul_f64(0.5 + share / 2.0) + retry_after.unwrap_or_default()
}

/// Whether no connection came about, so that nothing was sent.
fn is_nobody_there(error: &io::Error) -> bool {
    use io::ErrorKind::{
        AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable, NotFound, PermissionDenied,
    };
    matches!(
        error.kind(),
        AddrNotAvailable
            | ConnectionRefused
            | HostUnreachable
            | NetworkUnreachable
            | NotFound
            | PermissionDenied
    )
}

/// Evenly from 0 to 1.
pub(crate) fn draw() -> f64 {
    f64::from(u32::from_ne_bytes(random_bytes())) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use gk_model::problem::Problem;

    use super::*;

    fn unreachable(kind: io::ErrorKind) -> Failure {
        let server = "http://127.0.0.1:5000".parse().unwrap();
        ClientError::Unreachable { server, source: kind.into() }.into()
    }

    fn refused(status: u16, code: Code, retry_after: Option<u64>) -> Failure {
        let body = format!(
            r#"{{"type":"urn:gatekeeper:problem:{code}","title":"x","status":{status},"code":"{code}","detail":"x"}}"#
        );
        let problem: Problem = serde_json::from_str(&body).unwrap();
        let retry_after = retry_after.map(Duration::from_secs);
        Failure { error: ClientError::Refused(Box::new(problem)), retry_after }
    }

    #[test]
    fn only_what_may_end_well_is_tried_again() {
        use io::ErrorKind::{
            BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, TimedOut, UnexpectedEof,
        };
        let table = [
            (unreachable(ConnectionReset), [true, true]),
            (unreachable(BrokenPipe), [true, true]),
            (unreachable(UnexpectedEof), [true, true]),
            (unreachable(TimedOut), [true, true]),
            (unreachable(ConnectionRefused), [false, true]),
            (unreachable(NotFound), [false, true]),
            (refused(503, Code::Unavailable, None), [true, true]),
            (refused(429, Code::TooOften, None), [true, true]),
            (refused(409, Code::IdempotencyInFlight, None), [true, true]),
            (refused(409, Code::PortReserved, None), [false, false]),
            (refused(422, Code::IdempotencyKeyReused, None), [false, false]),
            (refused(500, Code::Internal, None), [false, false]),
        ];
        for (failure, expected) in table {
            let again =
                |attempt| wait_before_next(&failure, attempt, Duration::ZERO, PATIENCE, 0.0).is_some();
            assert_eq!([again(1), again(2)], expected, "{failure:?}");
        }
    }

    #[test]
    fn waits_grow_follow_the_server_and_end_with_patience() {
        let ms = Duration::from_millis;
        let broken = unreachable(io::ErrorKind::ConnectionReset);
        let wait = |attempt, share| wait_before_next(&broken, attempt, ms(0), PATIENCE, share).unwrap();
        assert_eq!([wait(1, 0.0), wait(1, 1.0)], [ms(50), ms(100)]);
        assert_eq!([wait(3, 0.0), wait(3, 1.0)], [ms(200), ms(400)]);
        assert_eq!([wait(99, 0.0), wait(99, 1.0)], [ms(1_000), ms(2_000)]);
        let busy = refused(503, Code::Unavailable, Some(5));
        let after = |elapsed| wait_before_next(&busy, 1, elapsed, PATIENCE, 0.0);
        assert_eq!(after(ms(0)), Some(ms(5_050)), "never earlier than asked");
        assert_eq!(after(ms(4_950)), None, "it would be too late");
        assert_eq!(wait_before_next(&broken, 1, ms(0), Duration::ZERO, 0.0), None, "no patience, no retry");
        for _ in 0..1_000 {
            assert!((0.0..=1.0).contains(&draw()));
        }
    }
}
