//! What went wrong, as the caller sees it and as the log tells it.
//!
//! [`ApiError`] is the only place where words become status codes, and the only place that logs the source of a
//! failure, once. What the caller reads never holds internals of the server; what the log reads holds the whole chain.

use std::any::Any;
use std::time::Duration;

use axum::Json;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use gk_model::access::{Authority, Permission};
use gk_model::id::{ReservationId, TokenId};
use gk_model::problem::{Code, Problem};
use gk_model::reservation::ReserveRequest;
use gk_store::{Refusal, StoreError};

use crate::admission::whole_seconds;
use crate::document::permission_words;
use crate::hint;
use crate::hosts::HostName;
use crate::request::RequestId;

/// The media type of every refusal.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// Why a request was not done. `Display` is the sentence for the caller; the source is for the log alone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("{what}")]
    Malformed { field: Option<String>, what: String },
    #[error("{what}")]
    Impossible { field: &'static str, what: &'static str },
    #[error("{0}")]
    Unauthenticated(&'static str),
    #[error("this needs {}, and {} does not have it", permission_words(*permission), authority_words(*authority))]
    NotPermitted { permission: Permission, authority: Authority },
    #[error("only an operator, or the instance itself, may do that")]
    NeedsOperator,
    #[error("only an admin deals with other than join tokens")]
    NeedsAdmin,
    #[error("the token {0} was made by this request before, and its secret is shown only once")]
    SecretShownOnce(TokenId),
    #[error("this credential acts for its own instance only")]
    NotThisInstance,
    #[error("the request with this idempotency key is still under way")]
    InFlight,
    #[error("there is no such route")]
    NoSuchRoute,
    #[error("the route exists, and does not take this method")]
    MethodNotAllowed,
    #[error("the body is larger than this route takes: 1 MiB, and for contacts 8 MiB after decompression")]
    TooLarge,
    #[error("path and query are longer than 8 KiB")]
    AddressTooLong,
    #[error("the headers are larger than 32 KiB")]
    HeadersTooLarge,
    #[error("the body came too slowly; nothing was done")]
    TooSlow,
    #[error("this server does not go by the name `{0}`")]
    UnknownHost(HostName),
    #[error("that was too often: this client may ask again in {} s", whole_seconds(*wait))]
    TooOften { wait: Duration },
    #[error("too many requests are being worked on; nothing was done")]
    Crowded,
    #[error(
        "{most} requests with this token are being worked on, and one may not have more; nothing was done"
    )]
    TooManyAtOnce { most: usize },
    #[error("this token has {most} streams open, and one may not have more")]
    TooManyStreams { most: usize },
    #[error("{0}")]
    UnsupportedMediaType(&'static str),
    #[error("the request took too long; it is unknown whether it was done")]
    TimedOut,
    #[error("a fault in the server; its log tells more under this request id")]
    Panicked(#[source] Panic),
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// With a command in the words of the request instead of the usual hint.
    #[error("{0}")]
    Advised(Box<Refusal>, String),
    #[error("{}", outward(.0))]
    Failed(#[source] StoreError),
}

/// What a handler said when it panicked.
#[derive(Debug, thiserror::Error)]
#[error("panicked: {0}")]
pub(crate) struct Panic(String);

impl ApiError {
    pub(crate) fn malformed(field: Option<String>, what: String) -> ApiError {
        ApiError::Malformed { field, what }
    }

    /// The same with a command that would work, where this request was refused and there is one.
    pub(crate) fn advised(self, request: &ReserveRequest) -> ApiError {
        match self {
            ApiError::Refused(refusal) => match hint::instead(&refusal, request) {
                Some(hint) => ApiError::Advised(refusal, hint),
                None => ApiError::Refused(refusal),
            },
            other => other,
        }
    }

    /// The same with what an operator may do, where this change of a reservation is not the caller's.
    pub(crate) fn of_change(self, verb: &str, id: ReservationId) -> ApiError {
        match self {
            ApiError::Refused(refusal) if matches!(*refusal, Refusal::NotTheHolder(_)) => {
                let hint = format!("an operator may, with --force: gkctl reservation {verb} {id}");
                ApiError::Advised(refusal, hint)
            }
            other => other,
        }
    }

    /// Of what a handler panicked with.
    pub(crate) fn from_panic(payload: &(dyn Any + Send)) -> ApiError {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        ApiError::Panicked(Panic(text.unwrap_or_else(|| "without words".to_owned())))
    }

    fn code(&self) -> Code {
        match self {
            ApiError::Malformed { .. } => Code::Malformed,
            ApiError::Impossible { .. } => Code::Impossible,
            ApiError::Unauthenticated(_) => Code::Unauthenticated,
            ApiError::NotPermitted { .. }
            | ApiError::NeedsAdmin
            | ApiError::NeedsOperator
            | ApiError::NotThisInstance => Code::Forbidden,
            ApiError::SecretShownOnce(_) => Code::SecretShownOnce,
            ApiError::InFlight => Code::IdempotencyInFlight,
            ApiError::NoSuchRoute => Code::NoSuchRoute,
            ApiError::MethodNotAllowed => Code::MethodNotAllowed,
            ApiError::TooLarge => Code::TooLarge,
            ApiError::AddressTooLong => Code::AddressTooLong,
            ApiError::HeadersTooLarge => Code::HeadersTooLarge,
            ApiError::TooSlow => Code::TooSlow,
            ApiError::UnknownHost(_) => Code::UnknownHost,
            ApiError::TooOften { .. } | ApiError::TooManyAtOnce { .. } => Code::TooOften,
            ApiError::TooManyStreams { .. } => Code::TooManyStreams,
            ApiError::UnsupportedMediaType(_) => Code::UnsupportedMediaType,
            ApiError::TimedOut | ApiError::Crowded => Code::Unavailable,
            ApiError::Panicked(_) => Code::Internal,
            ApiError::Refused(refusal) | ApiError::Advised(refusal, _) => hint::code(refusal),
            ApiError::Failed(error) => failure_code(error),
        }
    }

    fn hint(&self) -> Option<String> {
        const TOKEN: &str = "log in with `gkctl login`, or put a token into GATEKEEPER_TOKEN; on the server's \
                             machine, root and the server's own account need none";
        match self {
            ApiError::Unauthenticated(_) => Some(TOKEN.to_owned()),
            ApiError::NoSuchRoute | ApiError::MethodNotAllowed => {
                Some("GET /openapi.json lists every route".to_owned())
            }
            ApiError::InFlight => {
                Some("send it again in a second; it gets the first one's answer".to_owned())
            }
            ApiError::UnknownHost(name) => Some(format!(
                "if it should, start it with --allow-host {name} (GATEKEEPER_ALLOW_HOST={name}); else use one of its names, \
                 or its address"
            )),
            ApiError::TooOften { .. } => {
                Some("wait as long as Retry-After says; the server's --rate-limit sets how often is too often".to_owned())
            }
            ApiError::TooManyAtOnce { .. } => {
                Some("ask for less at once, or use another token for other programs".to_owned())
            }
            ApiError::TooManyStreams { .. } => {
                Some("close streams that nobody reads, or use another token for other programs".to_owned())
            }
            // No role helps where only an instance's own credential does.
            ApiError::NotPermitted { permission, .. } if permission.least_role().is_none() => None,
            ApiError::NotPermitted { .. }
            | ApiError::NeedsAdmin
            | ApiError::NeedsOperator => Some(hint::OTHER_ROLE.to_owned()),
            ApiError::SecretShownOnce(token) => {
                Some(format!("if the secret was lost, end it and make another: gkctl token revoke {token}"))
            }
            ApiError::Refused(refusal) => hint::hint(refusal),
            ApiError::Advised(_, hint) => Some(hint.clone()),
            ApiError::Failed(StoreError::Away(_)) => Some(
                "try again shortly: the server goes on by itself when its database is back, and its log tells what it \
                 waits for"
                    .to_owned(),
            ),
            _ => None,
        }
    }

    pub(crate) fn problem(&self) -> Problem {
        let code = self.code();
        let status = status(code);
        let mut problem = Problem {
            kind: format!("urn:gatekeeper:problem:{code}"),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            code,
            detail: self.to_string(),
            field: None,
            holder: None,
            alternatives: Vec::new(),
            hint: self.hint(),
            request_id: None,
        };
        match self {
            ApiError::Malformed { field, .. } => problem.field.clone_from(field),
            ApiError::Impossible { field, .. } => problem.field = Some((*field).to_owned()),
            ApiError::Refused(refusal) | ApiError::Advised(refusal, _) => {
                problem.field = hint::field(refusal).map(str::to_owned);
                problem.holder = hint::holder(refusal);
                problem.alternatives = hint::alternatives(refusal);
            }
            _ => {}
        }
        problem
    }

    /// The header that goes with the status, where there is one.
    fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        let again_in = |seconds: u16| Some((RETRY_AFTER, HeaderValue::from(seconds)));
        match self {
            ApiError::Unauthenticated(_) => Some((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            ApiError::TooOften { wait } => again_in(whole_seconds(*wait)),
            ApiError::InFlight
            | ApiError::Crowded
            | ApiError::TooManyAtOnce { .. }
            | ApiError::Failed(StoreError::QueueFull | StoreError::Away(_)) => again_in(1),
            ApiError::TimedOut | ApiError::TooManyStreams { .. } => again_in(5),
            ApiError::Failed(StoreError::DiskFull) => again_in(30),
            ApiError::Failed(error) if failure_code(error) == Code::Unavailable => again_in(5),
            _ => None,
        }
    }

    fn log(&self) {
        let code = self.code();
        match status(code) {
            StatusCode::INTERNAL_SERVER_ERROR => tracing::error!(error = chain(self), "a request failed"),
            StatusCode::SERVICE_UNAVAILABLE => tracing::warn!(error = chain(self), "a request was put off"),
            _ => tracing::debug!(problem.code = %code, error = chain(self), "a request was refused"),
        }
    }
}

impl From<gk_store::Error> for ApiError {
    fn from(error: gk_store::Error) -> ApiError {
        match error {
            gk_store::Error::Refused(refusal) => ApiError::Refused(refusal),
            gk_store::Error::Failed(error) => ApiError::Failed(error),
            // A closure's own affair, which the store never answers.
            gk_store::Error::Unexplained(open) => ApiError::Failed(StoreError::Corrupt(open.to_string())),
        }
    }
}

/// Logs, and leaves the problem in the extensions of an empty answer: the body is written by [`finish`], because only
/// the outermost layer knows the request id.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.log();
        let mut response = status(self.code()).into_response();
        if let Some((name, value)) = self.header() {
            response.headers_mut().insert(name, value);
        }
        response.extensions_mut().insert(Box::new(self.problem()));
        response
    }
}

/// Writes the body of an answer that carries a problem.
pub(crate) fn finish(mut response: Response, request_id: &RequestId) -> Response {
    let Some(mut problem) = response.extensions_mut().remove::<Box<Problem>>() else { return response };
    problem.request_id = Some(request_id.to_string());
    let (mut head, body) = Json(problem).into_response().into_parts();
    head.status = response.status();
    // What the layers below added, such as `Allow`, stays.
    head.headers.extend(std::mem::take(response.headers_mut()));
    // It would be that of the empty body.
    head.headers.remove(CONTENT_LENGTH);
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    Response::from_parts(head, body)
}

/// An error and everything below it, for a log.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Every code has one status, so that clients may look at either.
pub(crate) fn status(code: Code) -> StatusCode {
    match code {
        Code::Malformed => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::Forbidden | Code::NotTheHolder | Code::BeyondLimits => StatusCode::FORBIDDEN,
        Code::NoSuchRoute
        | Code::NoSuchInstance
        | Code::NoSuchReservation
        | Code::NoSuchPool
        | Code::NoSuchIgnore
        | Code::NoSuchToken => StatusCode::NOT_FOUND,
        Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Code::PortReserved
        | Code::PortInUse
        | Code::SeveralOwners
        | Code::NothingToAdopt
        | Code::PoolExhausted
        | Code::PoolNotForInstance
        | Code::PoolOverlaps
        | Code::EnsureDiffers
        | Code::AlreadyReleased
        | Code::NameTaken
        | Code::CredentialTaken
        | Code::SecretTaken
        | Code::SecretShownOnce
        | Code::TokenEnded
        | Code::AlreadyJoined
        | Code::ReservationsLive
        | Code::IdempotencyInFlight
        | Code::IdentitySuperseded => StatusCode::CONFLICT,
        Code::VersionMismatch => StatusCode::PRECONDITION_FAILED,
        Code::TooSlow => StatusCode::REQUEST_TIMEOUT,
        Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::AddressTooLong => StatusCode::URI_TOO_LONG,
        Code::UnknownHost => StatusCode::MISDIRECTED_REQUEST,
        Code::StaleCursor => StatusCode::GONE,
        Code::TooOften | Code::TooManyStreams => StatusCode::TOO_MANY_REQUESTS,
        Code::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Code::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Code::Impossible | Code::IdempotencyKeyReused => StatusCode::UNPROCESSABLE_ENTITY,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Worth another try, or a fault that stays.
fn failure_code(error: &StoreError) -> Code {
    match error {
        StoreError::Closed
        | StoreError::QueueFull
        | StoreError::DiskFull
        | StoreError::Away(_)
        | StoreError::Unsuitable(_)
        | StoreError::Unknown(_) => Code::Unavailable,
        StoreError::Database(_)
        | StoreError::Corrupt(_)
        | StoreError::ReadOnly(_)
        | StoreError::NotOurs(_)
        | StoreError::Newer { .. }
        | StoreError::Panicked(_) => Code::Internal,
    }
}

/// What the caller is told of a failure: whether it may have happened, and nothing of the inside.
fn outward(error: &StoreError) -> &'static str {
    match error {
        StoreError::Closed => "the server is shutting down; nothing was changed",
        StoreError::QueueFull => "too many changes are waiting; nothing was changed",
        StoreError::DiskFull => "the server's disk is full; nothing was changed",
        StoreError::Away(_) | StoreError::Unsuitable(_) => {
            "the server's database is away; nothing was changed"
        }
        StoreError::Unknown(_) => {
            "the server's database went away while it stored this: repeat it under the same Idempotency-Key, or look \
             before you repeat it"
        }
        StoreError::Database(_)
        | StoreError::Corrupt(_)
        | StoreError::ReadOnly(_)
        | StoreError::NotOurs(_)
        | StoreError::Newer { .. }
        | StoreError::Panicked(_) => {
            "a fault in the server; nothing was changed, and its log tells more under this request id"
        }
    }
}

fn authority_words(authority: Authority) -> String {
    match authority {
        Authority::Role(role) => format!("the role {role}"),
        Authority::Instance(..) => "an instance's credential".to_owned(),
        Authority::Join(_) => "a join token".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_a_refusal_or_a_failure() {
        for code in Code::ALL {
            assert!(status(*code).is_client_error() || status(*code).is_server_error(), "{code}");
        }
    }

    #[test]
    fn a_failure_tells_the_log_what_it_hides_from_the_caller() {
        let error = ApiError::Failed(StoreError::Corrupt("page 7 of /var/lib/secret".to_owned()));
        assert!(!error.problem().detail.contains("page 7"));
        assert!(chain(&error).ends_with("the database is damaged: page 7 of /var/lib/secret"));
        let panic = ApiError::from_panic(&"index out of bounds");
        assert!(!panic.problem().detail.contains("index"));
        assert!(chain(&panic).ends_with("panicked: index out of bounds"));
    }

    #[test]
    fn what_may_be_tried_again_says_when() {
        let again = [StoreError::Closed, StoreError::QueueFull, StoreError::DiskFull];
        let lost = [StoreError::Unknown(String::new()), StoreError::Away(String::new())];
        for error in again.into_iter().chain(lost) {
            let response = ApiError::Failed(error).into_response();
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert!(response.headers().contains_key(RETRY_AFTER));
        }
        for error in [StoreError::Panicked(String::new()), StoreError::Database(String::new())] {
            let stays = ApiError::Failed(error).into_response();
            assert_eq!(stays.status(), StatusCode::INTERNAL_SERVER_ERROR);
            assert!(!stays.headers().contains_key(RETRY_AFTER));
        }
    }
}
