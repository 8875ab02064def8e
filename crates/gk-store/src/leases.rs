//! Leases: renewing them, and ending those whose time is over (rule 13 of the domain).
//!
//! What a tick may do is decided by [`judge`]; this file finds what is due and writes it down. A lease is live until its
//! end is written, so whoever renews in time by the database's view keeps it.

use std::time::{Duration, Instant};

use gk_model::access::Actor;
use gk_model::history::EventKind;
use gk_model::id::ReservationId;
use gk_model::lease::{ClockVerdict, LeaseTime, Tick, judge};
use gk_model::reservation::Reservation;
use gk_model::text::Subject;
use gk_model::time::Timestamp;

use crate::Store;
use crate::error::{Error, Refusal, StoreError};
use crate::space::Space;
use crate::tx::{By, NewEvent, Reader, Tx};
use crate::value::values;

/// How many leases one transaction ends: others wait for it.
const BATCH: u32 = 500;

/// What a tick has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpiryReport {
    /// How many leases ended.
    pub expired: u32,
    /// How many were renewed, because somebody listens there.
    pub renewed: u32,
    /// By how many microseconds every deadline was moved, because the wall clock stepped.
    pub shifted_micros: Option<i64>,
    /// More may be due: tick again at once.
    pub more: bool,
}

/// What the server's own doings are recorded as done by.
pub(crate) fn server() -> Subject {
    "server".parse().expect("a word is a subject")
}

impl Store {
    /// Looks at the leases once, and ends what is due. Costs the writer nothing while no lease is live: who makes the
    /// first one notes the time.
    ///
    /// # Errors
    /// [`Error::Failed`]; the same tick may then be repeated with a later time.
    pub async fn expire_leases(&self, tick: Tick) -> Result<ExpiryReport, Error> {
        let asked = Instant::now();
        if !self.read(|reader| Ok(reader.is_any_lease_live()?)).await? {
            return Ok(ExpiryReport::default());
        }
        let expire = move |tx: &mut Tx<'_>| {
            // The database tells its time when it is this closure's turn, so the wait counts as passed too.
            let waited = if tx.shared.database_clock { asked.elapsed() } else { Duration::ZERO };
            let elapsed = tick.elapsed.map(|elapsed| elapsed.saturating_add(waited));
            tx.expire_leases(&Tick { elapsed, ..tick }, BATCH)
        };
        self.write(expire).await
    }
}

impl Reader<'_> {
    /// The time that a new deadline counts from: while leases are live, never before the last tick. Where the wall clock
    /// has stepped back since then, the next tick moves this deadline along with all others; and a request that was
    /// stamped before a step forward, and came to its turn after the tick that answered it, is not short of the
    /// difference. The first lease counts from its own time, which [`Tx::begin_leases`] notes.
    pub(crate) fn lease_begins(&mut self, now: Timestamp) -> Result<Timestamp, StoreError> {
        let now = self.clock(now)?;
        let last_at = if self.is_any_lease_live()? { self.find_last_tick()? } else { None };
        Ok(last_at.max(Some(now)).unwrap_or(now))
    }

    fn is_any_lease_live(&mut self) -> Result<bool, StoreError> {
        let sql =
            "select min(expires_at) from reservation where released_at is null and expires_at is not null";
        let row = self.query_one(sql, &[])?;
        Ok(row.map_or(Ok(None), |mut row| row.take::<Option<Timestamp>>())?.is_some())
    }

    /// What the wall clock said at the last tick that found a lease, or since then when the first of all was made.
    fn find_last_tick(&mut self) -> Result<Option<Timestamp>, StoreError> {
        let row = self.query_one("select last_at from lease_clock where id = 0", &[])?;
        let mut row = row.ok_or_else(|| StoreError::Corrupt("no lease clock".to_owned()))?;
        Ok(Some(row.take()?).filter(|last_at: &Timestamp| last_at.as_micros() != 0))
    }
}

impl Tx<'_> {
    /// Comes before a lease is made. While none is live, nobody writes down what the clock says; so what it says when
    /// the first one is made is what the next tick compares with, on whichever server. What it did before is none of
    /// this lease's business.
    pub(crate) fn begin_leases(&mut self, now: Timestamp) -> Result<(), StoreError> {
        if self.is_any_lease_live()? {
            return Ok(());
        }
        let now = self.clock(now)?;
        self.later("update lease_clock set last_at = $1 where id = 0", values![now])
    }

    /// Sets the end of a lease to `ttl` from now, also when that is sooner. For its holder; an operator may for others
    /// with `force`.
    ///
    /// # Errors
    /// [`Refusal::NoSuchReservation`], [`Refusal::AlreadyReleased`], [`Refusal::NotTheHolder`],
    /// [`Refusal::VersionMismatch`], [`Refusal::NoLease`].
    pub fn renew(
        &mut self,
        actor: &Actor,
        id: ReservationId,
        ttl: LeaseTime,
        force: bool,
        if_version: Option<u64>,
        now: Timestamp,
    ) -> Result<Reservation, Error> {
        let held = self.get_changeable(actor, id, force, if_version)?;
        if held.expires_at.is_none() {
            return Err(Refusal::NoLease(Box::new(held)).into());
        }
        let deadline = ttl.deadline(self.lease_begins(now)?);
        self.set_deadline(EventKind::Renewed, actor.into(), held, (ttl, deadline), now)
    }

    /// Writes a new end of a lease down, and answers the reservation with it.
    pub(crate) fn set_deadline(
        &mut self,
        kind: EventKind,
        by: By<'_>,
        held: Reservation,
        (ttl, deadline): (LeaseTime, Timestamp),
        now: Timestamp,
    ) -> Result<Reservation, Error> {
        let (ports, protocol) = (held.ports(), held.protocol);
        self.record(NewEvent {
            at: now,
            recorded_at: now,
            kind,
            instance: Some(Space::held_for(held.instance.as_ref())),
            ports: Some((protocol, ports)),
            by,
            reservation: Some(held.id),
            listener: None,
            message: format!("{ports}/{protocol} {kind} by {}, until {deadline}", by.subject),
        })?;
        self.later(
            "update reservation set expires_at = $2, ttl_seconds = $3, warn_at = $4, awaited_since = null, \
             version = version + 1 where id = $1",
            values![held.id, deadline, ttl, ttl.warns_at(deadline)],
        )?;
        let (expires_at, ttl_seconds) = (Some(deadline), Some(ttl));
        Ok(Reservation { expires_at, ttl_seconds, version: held.version + 1, ..held })
    }

    /// One tick: ends at most `most` leases that are due, or moves every deadline when the wall clock stepped.
    ///
    /// # Errors
    /// [`Error::Failed`] only.
    pub fn expire_leases(&mut self, tick: &Tick, most: u32) -> Result<ExpiryReport, Error> {
        let last_at = self.find_last_tick()?;
        let tick = Tick { now: self.clock(tick.now)?, ..*tick };
        let report = match judge(last_at, &tick) {
            ClockVerdict::Wait => ExpiryReport::default(),
            ClockVerdict::Stepped(micros) => {
                self.later(
                    "update reservation set expires_at = expires_at + $1, warn_at = warn_at + $1, \
                     awaited_since = awaited_since + $1, version = version + 1 \
                     where released_at is null and expires_at is not null",
                    values![micros],
                )?;
                ExpiryReport { shifted_micros: Some(micros), ..ExpiryReport::default() }
            }
            ClockVerdict::Expire => self.end_due(tick.now, most)?,
        };
        self.later("update lease_clock set last_at = $1 where id = 0", values![tick.now])?;
        Ok(report)
    }
}
