//! Refusals on the wire: RFC 9457 problem details, with what the caller can do next.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::port::Port;
use crate::text::{ServiceName, Subject};
use crate::text_form::words;
use crate::time::Timestamp;

words! {
    /// Stable words for what went wrong; clients decide by these, never by the sentences.
    Code, "a problem code" {
        /// The request is not well-formed.
        Malformed = "malformed",
        /// No token, or one that is unknown, expired or revoked.
        Unauthenticated = "unauthenticated",
        /// The token is good, and does not allow this.
        Forbidden = "forbidden",
        /// No such route.
        NoSuchRoute = "no_such_route",
        /// No such instance, or it has left.
        NoSuchInstance = "no_such_instance",
        /// No such reservation.
        NoSuchReservation = "no_such_reservation",
        /// No such pool.
        NoSuchPool = "no_such_pool",
        /// No such ignore rule.
        NoSuchIgnore = "no_such_ignore",
        /// No such token, or none that the caller may see.
        NoSuchToken = "no_such_token",
        /// The token has ended before.
        TokenEnded = "token_ended",
        /// The secret stands for something already.
        SecretTaken = "secret_taken",
        /// A secret is shown when it is made, and never again.
        SecretShownOnce = "secret_shown_once",
        /// The limits of the caller's token do not reach so far.
        BeyondLimits = "beyond_limits",
        /// The route exists, the method does not.
        MethodNotAllowed = "method_not_allowed",
        /// The port is reserved by somebody.
        PortReserved = "port_reserved",
        /// The port is listened on, and nobody reserved it.
        PortInUse = "port_in_use",
        /// Adopting needs one owner, and there are several.
        SeveralOwners = "several_owners",
        /// Nobody listens there, so there is nothing to adopt.
        NothingToAdopt = "nothing_to_adopt",
        /// The pool has no free port left.
        PoolExhausted = "pool_exhausted",
        /// The pool is for other instances.
        PoolNotForInstance = "pool_not_for_instance",
        /// Another pool of another scope has some of the numbers.
        PoolOverlaps = "pool_overlaps",
        /// The reservation that `ensure` found is another one than asked for.
        EnsureDiffers = "ensure_differs",
        /// The reservation was released before.
        AlreadyReleased = "already_released",
        /// The reservation is somebody else's.
        NotTheHolder = "not_the_holder",
        /// Another instance has that name.
        NameTaken = "name_taken",
        /// Another instance uses that credential.
        CredentialTaken = "credential_taken",
        /// This network stack has joined under another name.
        AlreadyJoined = "already_joined",
        /// The instance still holds reservations.
        ReservationsLive = "reservations_live",
        /// Somebody else has gone on with this identity.
        IdentitySuperseded = "identity_superseded",
        /// That `Idempotency-Key` was used for another request.
        IdempotencyKeyReused = "idempotency_key_reused",
        /// The request with that `Idempotency-Key` is still under way.
        IdempotencyInFlight = "idempotency_in_flight",
        /// `If-Match` names another version.
        VersionMismatch = "version_mismatch",
        /// The body is too large.
        TooLarge = "too_large",
        /// Path and query are too long.
        AddressTooLong = "address_too_long",
        /// The headers are too large.
        HeadersTooLarge = "headers_too_large",
        /// The body came too slowly.
        TooSlow = "too_slow",
        /// The server does not go by the name in `Host`.
        UnknownHost = "unknown_host",
        /// The cursor is of another event log, or what follows it is not kept any more.
        StaleCursor = "stale_cursor",
        /// This token has as many streams open as one may have.
        TooManyStreams = "too_many_streams",
        /// This client asks too often.
        TooOften = "too_often",
        /// The body is of a type the route does not take.
        UnsupportedMediaType = "unsupported_media_type",
        /// Well-formed, and impossible.
        Impossible = "impossible",
        /// The store is away or its queue is full.
        Unavailable = "unavailable",
        /// A fault of the server.
        Internal = "internal",
    }
}

/// Who stands in the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Holder {
    /// The subject that reserved the port.
    pub subject: Option<Subject>,
    /// What it reserved it for.
    pub service: Option<ServiceName>,
    /// Since when the port is reserved, or listened on.
    pub since: Option<Timestamp>,
    /// Who listens there, in words.
    pub listener: Option<String>,
}

/// Why a request was refused (RFC 9457, `application/problem+json`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A URI for the kind of problem, to compare and not to open: `urn:gatekeeper:problem:CODE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The HTTP status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The stable word for it.
    pub code: Code,
    /// What is wrong with this request, in a sentence.
    pub detail: String,
    /// The offending field of the body, the query or the path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Who stands in the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
    /// Ports that were free instead, at most three.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Port>,
    /// What to do next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The `x-request-id` of the answer, to find it in the server's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}
