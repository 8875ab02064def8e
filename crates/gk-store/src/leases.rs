//! Leases: renewing them, and ending those whose time is over (rule 13 of the domain).
//!
//! What a tick may do is decided by [`judge`]; this file finds what is due and writes it down. A lease is live until its
//! end is written, so whoever renews in time by the database's view keeps it.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gk_model::access::Actor;
use gk_model::history::EventKind;
use gk_model::id::ReservationId;
use gk_model::lease::{ClockVerdict, LeaseTime, Quiet, Tick, judge};
use gk_model::reservation::Reservation;
use gk_model::text::Subject;
use gk_model::time::Timestamp;

use crate::Store;
use crate::error::{Error, Refusal, StoreError};
use crate::space::Space;
use crate::tx::{NewEvent, Reader, Tx};
use crate::value::values;

/// How many leases one transaction ends: others wait for it.
const BATCH: u32 = 500;

/// What a tick has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpiryReport {
    /// How many leases ended.
    pub expired: u32,
    /// By how many microseconds every deadline was moved, because the wall clock stepped.
    pub shifted_micros: Option<i64>,
    /// More may be due: tick again at once.
    pub more: bool,
}

/// What the server's own doings are recorded as done by.
fn server() -> Subject {
    "server".parse().expect("a word is a subject")
}

impl Store {
    /// Looks at the leases once, and ends what is due. Costs the writer nothing while no lease is live.
    ///
    /// # Errors
    /// [`Error::Failed`]; the same tick may then be repeated with a later time.
    pub async fn expire_leases(&self, tick: Tick) -> Result<ExpiryReport, Error> {
        let look = move |reader: &mut Reader<'_>| {
            let (is_any, last_at) = reader.find_leases()?;
            Ok((!is_any).then_some(Quiet { at: reader.clock(tick.now)?, last_at }))
        };
        let asked = Instant::now();
        if let quiet @ Some(_) = self.read(look).await? {
            *self.quiet() = quiet;
            return Ok(ExpiryReport::default());
        }
        let tick = Tick { quiet: *self.quiet(), ..tick };
        let expire = move |tx: &mut Tx<'_>| {
            // The database tells its time when it is this closure's turn, so the wait counts as passed too.
            let waited = if tx.shared.database_clock { asked.elapsed() } else { Duration::ZERO };
            let elapsed = tick.elapsed.map(|elapsed| elapsed.saturating_add(waited));
            tx.expire_leases(&Tick { elapsed, ..tick }, BATCH)
        };
        let report = self.write(expire).await?;
        // Only now: after a failure the next tick builds on the same look.
        *self.quiet() = None;
        Ok(report)
    }

    fn quiet(&self) -> MutexGuard<'_, Option<Quiet>> {
        self.0.shared.quiet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader<'_> {
    /// The time that a new deadline counts from: never before the last tick. Where the wall clock has stepped back since
    /// then, the next tick moves this deadline along with all others; and a request that was stamped before a step
    /// forward, and came to its turn after the tick that answered it, is not short of the difference.
    pub(crate) fn lease_begins(&mut self, now: Timestamp) -> Result<Timestamp, StoreError> {
        let row = self.query_one("select last_at from lease_clock where id = 0", &[])?;
        let last_at: Option<Timestamp> = row.map(|mut row| row.take()).transpose()?;
        // A look that found no lease is written nowhere else.
        let quiet = *self.shared.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(last_at.max(quiet.map(|quiet| quiet.at)).max(Some(self.clock(now)?)).unwrap_or(now))
    }

    /// Whether any lease is live, and what the wall clock said at the last tick that found one.
    fn find_leases(&mut self) -> Result<(bool, Option<Timestamp>), StoreError> {
        let sql = "select last_at, (select min(expires_at) from reservation \
                   where released_at is null and expires_at is not null) from lease_clock where id = 0";
        let row = self.query_one(sql, &[])?;
        let mut row = row.ok_or_else(|| StoreError::Corrupt("no lease clock".to_owned()))?;
        let last_at = Some(row.take()?).filter(|last_at: &Timestamp| last_at.as_micros() != 0);
        Ok((row.take::<Option<Timestamp>>()?.is_some(), last_at))
    }
}

impl Tx<'_> {
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
        self.set_deadline(EventKind::Renewed, &actor.subject, held, deadline, now)
    }

    /// Writes a new end of a lease down, and answers the reservation with it.
    pub(crate) fn set_deadline(
        &mut self,
        kind: EventKind,
        actor: &Subject,
        held: Reservation,
        deadline: Timestamp,
        now: Timestamp,
    ) -> Result<Reservation, Error> {
        let (ports, protocol) = (held.ports(), held.protocol);
        self.record(NewEvent {
            at: now,
            recorded_at: now,
            kind,
            instance: Space::held_for(held.instance.as_ref()),
            ports: Some((protocol, ports)),
            actor,
            reservation: Some(held.id),
            listener: None,
            message: format!("{ports}/{protocol} {kind} by {actor}, until {deadline}"),
        })?;
        self.later(
            "update reservation set expires_at = $2, version = version + 1 where id = $1",
            values![held.id, deadline],
        )?;
        Ok(Reservation { expires_at: Some(deadline), version: held.version + 1, ..held })
    }

    /// One tick: ends at most `most` leases that are due, or moves every deadline when the wall clock stepped.
    ///
    /// # Errors
    /// [`Error::Failed`] only.
    pub fn expire_leases(&mut self, tick: &Tick, most: u32) -> Result<ExpiryReport, Error> {
        let (_, last_at) = self.find_leases()?;
        let tick = Tick { now: self.clock(tick.now)?, ..*tick };
        let report = match judge(last_at, &tick) {
            ClockVerdict::Wait => ExpiryReport::default(),
            ClockVerdict::Stepped(micros) => {
                self.later(
                    "update reservation set expires_at = expires_at + $1, version = version + 1 \
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

    fn end_due(&mut self, now: Timestamp, most: u32) -> Result<ExpiryReport, Error> {
        let due = self.list_due(now, most)?;
        let expired = u32::try_from(due.len()).unwrap_or(u32::MAX);
        for held in due {
            self.end_reservation(EventKind::Expired, &server(), &held, now)?;
        }
        Ok(ExpiryReport { expired, shifted_micros: None, more: expired == most })
    }
}
