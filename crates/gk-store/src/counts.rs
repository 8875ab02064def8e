//! Counts of what there is, kept in the row of the event counter: each batch that changes anything writes that row, so
//! keeping them costs no statement, and reading them costs one row however large the fleet is.

use gk_model::drift::DriftKind;
use gk_model::reservation::Reservation;

use crate::error::StoreError;
use crate::tx::Reader;
use crate::value::{Value, values};

/// The columns, in the order of [`Counts`].
pub(crate) const COLUMNS: [&str; 7] =
    ["instances", "reservations", "leases", "listeners", "conflicts", "unreserved", "ignored"];

/// How many there are; or in a batch, how many more than before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Joined instances.
    pub(crate) instances: i64,
    /// Live reservations.
    pub(crate) reservations: i64,
    /// Those of them that are leases.
    pub(crate) leases: i64,
    /// Listeners in any namespace.
    pub(crate) listeners: i64,
    /// Ports in conflict that no rule ignores.
    pub(crate) conflicts: i64,
    /// Unreserved ports that no rule ignores.
    pub(crate) unreserved: i64,
    /// Ports that differ from the plan and are ignored.
    pub(crate) ignored: i64,
}

impl Counts {
    /// One live reservation more, or one less.
    pub(crate) fn add_reservation(&mut self, reservation: &Reservation, by: i64) {
        self.reservations += by;
        self.leases += if reservation.expires_at.is_some() { by } else { 0 };
    }

    /// One drifting port more, or one less.
    pub(crate) fn add_drift(&mut self, kind: DriftKind, is_ignored: bool, by: i64) {
        match (is_ignored, kind) {
            (true, _) => self.ignored += by,
            (false, DriftKind::Conflict) => self.conflicts += by,
            (false, DriftKind::Unreserved) => self.unreserved += by,
            (false, DriftKind::Idle) => {}
        }
    }

    fn numbers(self) -> [i64; 7] {
        let Counts { instances, reservations, leases, listeners, conflicts, unreserved, ignored } = self;
        [instances, reservations, leases, listeners, conflicts, unreserved, ignored]
    }

    pub(crate) fn values(self) -> [Value; 7] {
        self.numbers().map(Value::from)
    }

    /// Each with its name.
    pub(crate) fn named(self) -> impl Iterator<Item = (&'static str, i64)> {
        COLUMNS.into_iter().zip(self.numbers())
    }
}

impl Reader<'_> {
    /// What the counters say.
    pub(crate) fn get_counts(&mut self) -> Result<Counts, StoreError> {
        let sql = format!("select {} from event_seq where id = 0", COLUMNS.join(", "));
        self.read_counts(&sql)
    }

    /// The same, counted anew: takes as long as there is much.
    pub(crate) fn count_all(&mut self) -> Result<Counts, StoreError> {
        self.read_counts(
            "select (select count(*) from instance where left_at is null), \
             (select count(*) from reservation where released_at is null), \
             (select count(*) from reservation where released_at is null and expires_at is not null), \
             (select count(*) from listener), \
             (select count(*) from drift where kind = 'conflict' and ignored = 0), \
             (select count(*) from drift where kind = 'unreserved' and ignored = 0), \
             (select count(*) from drift where ignored = 1)",
        )
    }

    fn read_counts(&mut self, sql: &str) -> Result<Counts, StoreError> {
        let row = self.query_one(sql, values![])?;
        let mut row = row.ok_or_else(|| StoreError::Corrupt("no event counter".to_owned()))?;
        Ok(Counts {
            instances: row.take()?,
            reservations: row.take()?,
            leases: row.take()?,
            listeners: row.take()?,
            conflicts: row.take()?,
            unreserved: row.take()?,
            ignored: row.take()?,
        })
    }
}
