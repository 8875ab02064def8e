//! What can go wrong in the store: refusals, which are answers, and failures, which are not.

use std::collections::BTreeSet;

use gk_model::contact::{ContactKind, Session};
use gk_model::id::{InstanceRef, ReservationId, TokenId};
use gk_model::instance::InstanceLink;
use gk_model::labels::{Labels, Selector};
use gk_model::listener::Listener;
use gk_model::pool;
use gk_model::port::{Port, PortRange, Protocol};
use gk_model::port_set::PortSet;
use gk_model::reservation::{Contradiction, PortCount, Reservation, Scope};
use gk_model::text::{IdempotencyKey, IgnoreName, InstanceName, PoolName};
use gk_model::watch::{EventCursor, Log};

use crate::explain::Unexplained;

/// Why an operation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rules say no. Nothing was written.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// The rules say no, and the reason has still to be told in full. [`Store::write`](crate::Store::write) does that, so
    /// that it is only ever seen inside of a closure.
    #[error("{0}")]
    Unexplained(Box<Unexplained>),
    /// The store could not do it.
    #[error(transparent)]
    Failed(#[from] StoreError),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        Error::Refused(Box::new(refusal))
    }
}

/// The rules say no, and why. The sentences are complete: they name the thing and the reason.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No joined instance of that name, or no instance of that id.
    #[error("there is no instance {0}")]
    NoSuchInstance(InstanceRef),
    /// No joined instance has such labels.
    #[error("no joined instance is labelled {0}")]
    NobodyChosen(Selector),
    /// The instance has left.
    #[error("instance {} has left", .0.name)]
    InstanceLeft(InstanceLink),
    /// No reservation of that id.
    #[error("there is no reservation {0}")]
    NoSuchReservation(ReservationId),
    /// No pool of that name.
    #[error("there is no pool {0}")]
    NoSuchPool(PoolName),
    /// No ignore rule of that name.
    #[error("there is no ignore rule {0}")]
    NoSuchIgnore(IgnoreName),
    /// The request contradicts itself.
    #[error(transparent)]
    Contradiction(Contradiction),
    /// An instance's own credential asked for more than what concerns that instance alone.
    #[error("this credential reserves on its own instance only, and nothing fleet-wide")]
    BeyondOwnInstance,
    /// Somebody holds the port.
    #[error("{port}/{protocol} {} is reserved", in_place(holder))]
    PortReserved {
        /// The port asked for.
        port: Port,
        /// Its protocol.
        protocol: Protocol,
        /// The reservation that holds it.
        holder: Box<Reservation>,
        /// Who listens there now.
        listeners: Vec<Listener>,
        /// How many contiguous ports were wanted in all.
        wanted: u16,
        /// Where as many are free instead.
        alternatives: Vec<Port>,
    },
    /// Somebody listens on the port without a reservation.
    #[error("{port}/{protocol} on {} is in use by {}", instance.name, describe(listeners))]
    PortInUse {
        /// The port asked for.
        port: Port,
        /// Its protocol.
        protocol: Protocol,
        /// The instance.
        instance: InstanceLink,
        /// Who listens there.
        listeners: Vec<Listener>,
        /// How many contiguous ports were wanted in all.
        wanted: u16,
        /// Where as many are free instead.
        alternatives: Vec<Port>,
    },
    /// Adopting needs one owner.
    #[error("{port}/{protocol} is listened on by several owners: {}", owners.join("; "))]
    SeveralOwners {
        /// The port asked for.
        port: Port,
        /// Its protocol.
        protocol: Protocol,
        /// The owner groups, in words.
        owners: Vec<String>,
    },
    /// Adopting needs a listener.
    #[error("nobody listens on {port}/{protocol} on {}, so there is nothing to adopt", instance.name)]
    NothingToAdopt {
        /// The port asked for.
        port: Port,
        /// Its protocol.
        protocol: Protocol,
        /// The instance.
        instance: InstanceLink,
    },
    /// The pool has too few ports that are not reserved, listened on, in quarantine, or busy.
    #[error(
        "pool {pool} of {} has {} left {}{}", ports(*size), lacking(*count, *runs, protocols), on(instances), rest(*resting)
    )]
    PoolExhausted {
        /// The pool.
        pool: PoolName,
        /// How many ports it has.
        size: u32,
        /// The protocols.
        protocols: Vec<Protocol>,
        /// The instances; none for all of them.
        instances: Vec<InstanceLink>,
        /// How many contiguous ports were wanted.
        count: PortCount,
        /// How many times as many.
        runs: usize,
        /// How many of its ports only rest after a release, and could be had by number.
        resting: usize,
        /// Pools that have room for it, at most three.
        others: Vec<PoolName>,
    },
    /// The pool is for other instances than the one that was to draw from it.
    #[error("pool {pool} is for instances with {selector}, and {}", unlike(place.as_deref()))]
    PoolNotForInstance {
        /// The pool.
        pool: PoolName,
        /// The instances that it is for.
        selector: Selector,
        /// The first instance that is none of them, and its labels; none for what is held for all of them.
        place: Option<Box<(InstanceLink, Labels)>>,
        /// Pools that would do.
        others: Vec<PoolName>,
    },
    /// Pools that share numbers must exclude each other's reservations.
    #[error(
        "{} of pool {name} are in pool {other} too, and its scope is {other_scope}, not {scope}: pools share numbers only \
         where their scope is the same",
        pool::list(ports)
    )]
    PoolOverlaps {
        /// The pool that was to be set.
        name: PoolName,
        /// The scope that it was to have.
        scope: Scope,
        /// The pool that has the same numbers.
        other: PoolName,
        /// Its scope.
        other_scope: Scope,
        /// The numbers.
        ports: PortSet,
    },
    /// What everybody draws from who names no pool.
    #[error("the pool default cannot be deleted: whoever names no pool draws from it")]
    DefaultPoolStays,
    /// The reservation was released before.
    #[error("{}", gone(.0))]
    AlreadyReleased(Box<Reservation>),
    /// The reservation is somebody else's.
    #[error("{} is reserved by {}, not by you", ports_of(.0), .0.holder)]
    NotTheHolder(Box<Reservation>),
    /// A part was to be released that is not all in the reservation.
    #[error("{part} is not all in the reservation of {}", ports_of(held))]
    NotInReservation {
        /// The part.
        part: PortRange,
        /// The reservation.
        held: Box<Reservation>,
    },
    /// What is held until it is released has no lease to renew.
    #[error("the reservation of {} is no lease: it is held until it is released", ports_of(.0))]
    NoLease(Box<Reservation>),
    /// What `ensure` found is another thing than what was asked for.
    #[error("{} is reserved for this already, and differs in `{field}`", ports_of(held))]
    EnsureDiffers {
        /// What is held.
        held: Box<Reservation>,
        /// The field of the request that it does not fit.
        field: &'static str,
    },
    /// Another joined instance has that name.
    #[error("another instance is already named {}", .0)]
    NameTaken(InstanceName),
    /// The same network stack has joined before.
    #[error("this machine has already joined as {}", .0.name)]
    AlreadyJoined(InstanceLink),
    /// The instance still holds reservations.
    #[error("{} still holds {count} reservation(s)", instance.name)]
    ReservationsLive {
        /// The instance.
        instance: InstanceLink,
        /// How many.
        count: u64,
    },
    /// The instance got another credential while this request was under way.
    #[error("this credential was replaced by another one")]
    CredentialReplaced,
    /// Another instance has a credential with that hash.
    #[error("that credential hash is another instance's")]
    CredentialTaken,
    /// No token of that id, or none that the caller may see.
    #[error("there is no token {0}")]
    NoSuchToken(TokenId),
    /// The token was revoked, used up or expired before.
    #[error("the token {0} has ended before")]
    TokenEnded(TokenId),
    /// The secret of the token stands for something already.
    #[error("a secret with that hash is known already: make another one")]
    SecretTaken,
    /// The caller's own limits do not reach so far.
    #[error("this token does not reach so far: {0}")]
    BeyondLimits(String),
    /// Taking over, by anybody but an operator.
    #[error("only an operator may take over an instance's id with `replace`")]
    TakeOverNotYours,
    /// Labels that a machine gave itself.
    #[error("an instance may not say its own labels: limits of tokens go by them")]
    LabelsNotYours,
    /// The join token was used by another machine.
    #[error("this join token was used before: each lets one machine join")]
    JoinTokenUsed,
    /// The session presented is not the last one.
    #[error(
        "this identity is used elsewhere: session {} was presented, and session {} is the last one issued",
        presented.0, current.0
    )]
    IdentitySuperseded {
        /// The session the caller knows.
        presented: Session,
        /// The session the server issued last.
        current: Session,
    },
    /// A new session begins with a full report.
    #[error("a new session begins with a full report, not with a {0}")]
    OpensWithoutReport(ContactKind),
    /// The row has changed since the caller read it.
    #[error("this was changed meanwhile: it has version {current}")]
    VersionMismatch {
        /// The version it has now.
        current: u64,
    },
    /// What was asked for has more targets than Prometheus is told of at once.
    #[error("that is more than {most} targets")]
    TooManyTargets {
        /// How many there may be.
        most: usize,
    },
    /// Another request was made under that key.
    #[error("the idempotency key {0} was used for another request within the last 24 hours")]
    IdempotencyKeyReused(IdempotencyKey),
    /// The cursor was not made by this list.
    #[error("that cursor does not belong to this list")]
    BadCursor,
    /// What follows the cursor is not all there.
    #[error("{}", what_is_missing(cursor, log))]
    StaleCursor {
        /// The cursor.
        cursor: EventCursor,
        /// The events that there are.
        log: Log,
    },
}

fn what_is_missing(cursor: &EventCursor, log: &Log) -> String {
    let EventCursor { log_id, seq } = cursor;
    match log {
        log if *log_id != log.log_id => format!(
            "the cursor is of event log {log_id}, and this is {}: the database was restored, or is another one",
            log.log_id
        ),
        log if *seq > log.newest_seq => {
            format!(
                "the cursor is behind event {seq}, and the log ends with {}: its end was lost",
                log.newest_seq
            )
        }
        log => format!("the cursor is behind event {seq}, and the oldest that is kept is {}", log.oldest_seq),
    }
}

impl Refusal {
    /// A request that contradicts itself.
    pub(crate) fn contradiction(field: &'static str, what: &'static str) -> Refusal {
        Refusal::Contradiction(Contradiction { field, what })
    }
}

/// `8080/tcp on web-1`.
/// Only what expires is released by the server itself.
fn gone(held: &Reservation) -> String {
    match &held.released_by {
        Some(by) if *by == crate::leases::server() => format!("the lease of {} is over", ports_of(held)),
        _ => format!("the reservation of {} was released before", ports_of(held)),
    }
}

fn ports_of(held: &Reservation) -> String {
    format!("{}/{} {}", held.ports(), held.protocol, in_place(held))
}

/// `on web-1`, or `(fleet-wide for web-1)`, which is no part of the sentence around it.
fn in_place(held: &Reservation) -> String {
    match held.scope {
        Scope::Instance => held.place(),
        Scope::Fleet => format!("({})", held.place()),
    }
}

fn ports(size: u32) -> String {
    if size == 1 { "1 port".to_owned() } else { format!("{size} ports") }
}

fn lacking(count: PortCount, runs: usize, protocols: &[Protocol]) -> String {
    let words: Vec<&str> = protocols.iter().map(|protocol| protocol.as_str()).collect();
    let protocols = words.join(" and ");
    match (count.get(), runs) {
        (1, 1) => format!("no free {protocols} port"),
        (count, 1) => format!("no {count} contiguous free {protocols} ports"),
        (1, runs) => format!("no {runs} free {protocols} ports"),
        (count, runs) => format!("no {runs} times {count} contiguous free {protocols} ports"),
    }
}

fn on(instances: &[InstanceLink]) -> String {
    match instances {
        [] => "on every instance".to_owned(),
        [one] => format!("on {}", one.name),
        [one, others @ ..] => format!("on {} and {} more", one.name, others.len()),
    }
}

fn rest(resting: usize) -> String {
    match resting {
        0 => String::new(),
        1 => "; one of its ports rests after its release, and can be had by number".to_owned(),
        count => format!("; {count} of its ports rest after their release, and can be had by number"),
    }
}

/// `web-1 has no labels`.
pub(crate) fn unlike(place: Option<&(InstanceLink, Labels)>) -> String {
    match place {
        Some((instance, labels)) if labels.is_empty() => format!("{} has no labels", instance.name),
        Some((instance, labels)) => format!("{} has {labels}", instance.name),
        None => "this is to be held for all of them".to_owned(),
    }
}

fn describe(listeners: &[Listener]) -> String {
    let words: BTreeSet<String> = listeners.iter().map(|listener| listener.describe().to_string()).collect();
    words.into_iter().collect::<Vec<String>>().join(" and ")
}

/// The store could not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
    /// More writes wait than the queue holds.
    #[error("too many writes are waiting")]
    QueueFull,
    /// The disk is full. Nothing was written.
    #[error("the disk that holds the database is full")]
    DiskFull,
    /// The database cannot be written to.
    #[error("the database cannot be written to: {0}")]
    ReadOnly(&'static str),
    /// The commit failed in a way that leaves open whether it happened.
    #[error("it is unknown whether the change was stored: {0}")]
    Unknown(String),
    /// The database is not there, is held by somebody else for too long, or let go of us before the commit. Nothing was
    /// written; try again later.
    #[error("the database is out of reach: {0}")]
    Away(String),
    /// The database may not be used as it is set up.
    #[error("{0}")]
    Unsuitable(String),
    /// The database is there and refused a statement, as it will again. Nothing was written.
    #[error("the database failed: {0}")]
    Database(String),
    /// The database holds what it cannot hold.
    #[error("the database is damaged: {0}")]
    Corrupt(String),
    /// The file is something else.
    #[error("this is not a Gatekeeper database: {0}")]
    NotOurs(String),
    /// A newer Gatekeeper wrote the database.
    #[error(
        "the database has schema version {found}, and this Gatekeeper knows versions up to {known}: use the newer one"
    )]
    Newer {
        /// The version found.
        found: u64,
        /// The newest version known here.
        known: u64,
    },
    /// A closure panicked. Nothing of it was written.
    #[error("a fault in the server: {0}")]
    Panicked(String),
}
