//! Pruning: what is older than the retention, or more of it than it allows, goes, in batches so small that the other writers do not notice.
//!
//! Never lost: anything that lasts (open intervals, live reservations, quarantine under way), and the newest event. The
//! log loses its beginning only, so its numbers stay without a gap and `oldest_seq` says all about what is gone.
//!
//! What a clock that is wrong for a minute took away would be gone for good. So whoever prunes by age asks the log first
//! whether it has gone on for a day by that clock ([`Tx::believe`]). What is too much goes whatever the time is.

use std::time::Duration;

use gk_model::idempotency::KEPT_FOR;
use gk_model::time::Timestamp;

use crate::error::{Error, StoreError};
use crate::tx::Tx;
use crate::value::values;

/// How long what only serves retries and picks is kept after it ended: a clock may step by hours, not by more.
const SHORT: Duration = Duration::from_secs(86_400);

/// For how long the log must have gone on by a clock that is believed.
const TRIAL: Duration = Duration::from_secs(86_400);

/// Whether anything was written down then. The time at which it happened has the index; it alone proves nothing, because
/// agents tell of yesterday by the clock of the server.
const RECORDED: &str = "select seq from event where at >= $1 and at < $2 and recorded_at >= $1 and recorded_at < $2 \
                        order by at, seq limit 1";

/// How much history is kept: what is too old goes, and of what is too much the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// For how long.
    pub age: Duration,
    /// How many events at most. What ended before the oldest of them was recorded goes with those before it.
    pub most_events: Option<u64>,
}

impl From<Duration> for Retention {
    fn from(age: Duration) -> Retention {
        Retention { age, most_events: None }
    }
}

/// What one batch took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Events.
    pub events: u64,
    /// Rows of other tables.
    pub rows: u64,
    /// Whether there may be more to take.
    pub is_partial: bool,
}

/// What is too much.
#[derive(Clone, Copy)]
struct Surplus {
    /// The events with lower numbers.
    below: u64,
    /// The rest of what had ended by then.
    before: Timestamp,
}

/// Rows that are done with when a time in them is long past.
struct Aged {
    table: &'static str,
    key: &'static str,
    /// What may go, by the time `$1`; an index begins with the column.
    past: &'static str,
    by: &'static str,
    keep: Keep,
}

impl Aged {
    /// The keys of the oldest that may go: what is older than `$1`, at most `$2` of them.
    fn oldest(&self) -> String {
        let Aged { table, key, past, by, .. } = self;
        format!("select {key} from {table} where {past} order by {by} limit $2")
    }
}

/// How long something is of use.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// As long as history goes back.
    Retention,
    /// A day.
    Short,
    /// As long as an answer may be asked for again.
    Answers,
}

/// The order matters: a reservation goes after its interval. Events may still name it, and need nothing of it: what
/// there is to tell is in their message.
const AGED: &[Aged] = &[
    Aged { table: "interval", key: "seq", past: "ended_at < $1", by: "ended_at", keep: Keep::Retention },
    Aged {
        table: "reservation",
        key: "id",
        past: "released_at < $1 and not exists (select 1 from interval where interval.seq = reservation.began_seq)",
        by: "released_at",
        keep: Keep::Retention,
    },
    Aged {
        table: "gap",
        key: "instance, from_at",
        past: "until_at < $1",
        by: "until_at",
        keep: Keep::Retention,
    },
    Aged { table: "token", key: "hash", past: "expires_at < $1", by: "expires_at", keep: Keep::Retention },
    Aged { table: "token", key: "hash", past: "revoked_at < $1", by: "revoked_at", keep: Keep::Retention },
    Aged {
        table: "quarantine",
        key: "space, protocol, port",
        past: "until_at < $1",
        by: "until_at",
        keep: Keep::Short,
    },
    Aged {
        table: "idempotency",
        key: "subject, key",
        past: "created_at < $1",
        by: "created_at",
        keep: Keep::Answers,
    },
];

impl Tx<'_> {
    /// The time, if the log bears it out: something happened, and was recorded, from two days ago to one day ago.
    ///
    /// By a clock that has just leapt ahead, by days or by years, the newest event is too old for that, and everything
    /// would be. Was the server off for so long, the log bears it out a day later; and where nothing happens for days,
    /// nothing is pruned until a day after something did. A leap of less than two days passes: what it costs is at most
    /// two days of the oldest history.
    ///
    /// # Errors
    /// Only when the database fails.
    pub fn believe(&mut self, now: Timestamp) -> Result<Option<Timestamp>, Error> {
        let now = self.clock(now)?;
        let yesterday = values![now.minus(TRIAL + TRIAL), now.minus(TRIAL)];
        Ok(self.query_one(RECORDED, yesterday)?.map(|_| now))
    }

    /// Takes away what is more than `retention`, at most so many rows of each table. Without a time that is believed,
    /// only what is too much of the log, not what is too old.
    ///
    /// # Errors
    /// Only when the database fails.
    pub fn prune(
        &mut self,
        now: impl Into<Option<Timestamp>>,
        retention: impl Into<Retention>,
        most: u32,
    ) -> Result<Pruned, Error> {
        let Retention { age, most_events } = retention.into();
        // Of several servers, one whose clock is far ahead must not take away what the others still need.
        let now = now.into().map(|now| self.clock(now)).transpose()?;
        let surplus = most_events.map_or(Ok(None), |most_events| self.find_surplus(most_events))?;
        let aged = now.map(|now| now.minus(age));
        let cutoff = surplus.map(|surplus| surplus.before).max(aged);
        let events = cutoff.map_or(Ok(0), |cutoff| self.prune_events(cutoff, surplus, most))?;
        let mut pruned = Pruned { events, rows: 0, is_partial: events == u64::from(most) };
        for aged in AGED {
            let before = match aged.keep {
                Keep::Retention => cutoff,
                Keep::Short => now.map(|now| now.minus(SHORT)),
                Keep::Answers => now.map(|now| now.minus(KEPT_FOR)),
            };
            let rows = before.map_or(Ok(0), |before| self.prune_aged(aged, before, most))?;
            pruned.rows += rows;
            pruned.is_partial |= rows == u64::from(most);
        }
        Ok(pruned)
    }

    /// What is more than so many events, if there are more.
    fn find_surplus(&mut self, most_events: u64) -> Result<Option<Surplus>, StoreError> {
        // Numbers have no gap: the oldest event to keep is found by counting back from the newest one.
        let sql = "select seq, recorded_at from event where seq = (select max(seq) from event) - $1 + 1";
        let row = self.query_one(sql, values![most_events.max(1)])?;
        row.map(|mut row| Ok(Surplus { below: row.take()?, before: row.take()? })).transpose()
    }

    /// The oldest events up to the first that is young, whatever follows it: where the clock stepped back, older ones
    /// wait behind younger ones, because a hole in the numbers would look like a loss.
    fn prune_events(
        &mut self,
        cutoff: Timestamp,
        surplus: Option<Surplus>,
        most: u32,
    ) -> Result<u64, StoreError> {
        let sql = "select seq, recorded_at from event order by seq limit $1";
        let rows = self.query(sql, values![most + 1])?;
        let oldest = rows.into_iter().map(|mut row| Ok((row.take::<u64>()?, row.take::<Timestamp>()?)));
        let oldest = oldest.collect::<Result<Vec<_>, StoreError>>()?;
        // The last one read either is the newest event or stays for the next batch.
        let candidates = oldest.len().saturating_sub(1);
        let is_old = |seq: u64, recorded_at: Timestamp| {
            recorded_at < cutoff || surplus.is_some_and(|surplus| seq < surplus.below)
        };
        let old = oldest.iter().take(candidates).take_while(|(seq, recorded_at)| is_old(*seq, *recorded_at));
        let (last, count) = old.fold((None, 0), |(_, count), (seq, _)| (Some(*seq), count + 1));
        if let Some(last) = last {
            self.later("delete from event where seq <= $1", values![last])?;
        }
        Ok(count)
    }

    fn prune_aged(&mut self, aged: &Aged, before: Timestamp, most: u32) -> Result<u64, StoreError> {
        let (Aged { table, key, .. }, oldest) = (aged, aged.oldest());
        let counted = format!("select count(*) from ({oldest}) as oldest");
        let rows = self.query_one(&counted, values![before, most])?.map_or(Ok(0), |mut row| row.take())?;
        if rows > 0 {
            self.later(&format!("delete from {table} where ({key}) in ({oldest})"), values![before, most])?;
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::driver::{Access, Connection, Location};
    use crate::samples::{at, filled};
    use crate::schema::plan;
    use crate::{Store, StoreConfig, verify};

    const YEAR: Duration = Duration::from_secs(365 * 86_400);

    #[test]
    fn a_batch_begins_at_the_oldest_row() {
        for aged in AGED {
            let plan = plan(&aged.oldest(), values![0_i64, 500_i64]);
            assert!(!plan.contains("SCAN") && !plan.contains("TEMP B-TREE"), "{}: {plan}", aged.table);
        }
        let plan = plan(RECORDED, values![0_i64, 500_i64]);
        assert!(plan.contains("event_at") && !plan.contains("TEMP B-TREE"), "{plan}");
    }

    fn rows(directory: &Path, what: &str) -> u64 {
        let mut connection =
            Connection::open(&Location::of(&StoreConfig::embedded(directory)), Access::Read).unwrap();
        let mut row =
            connection.query(&format!("select count(*) from {what}"), &[]).unwrap().first().unwrap();
        row.take().unwrap()
    }

    /// One batch after the other until nothing is left; answers what all of them took.
    fn prune(directory: &Path, now: Timestamp, most: u32) -> Pruned {
        let store = Store::open_here(&StoreConfig::embedded(directory), now).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut all = Pruned::default();
        loop {
            let pruned = runtime.block_on(store.write(move |tx| tx.prune(now, YEAR, most))).unwrap();
            assert!(pruned.events <= u64::from(most));
            (all.events, all.rows) = (all.events + pruned.events, all.rows + pruned.rows);
            if !pruned.is_partial {
                break;
            }
        }
        store.close();
        assert_eq!(
            verify(&StoreConfig::embedded(directory), now, &mut |_| {}).unwrap().problems(),
            Vec::<String>::new()
        );
        all
    }

    #[test]
    fn what_lasts_stays_and_what_has_ended_goes() {
        let directory = filled();
        let count = |what: &str| rows(directory.path(), what);
        let tables = ["claim", "listener", "instance", "token"];
        let (kept, events) = (tables.map(count), count("event"));
        assert_eq!((count("interval where ended_at is not null"), count("quarantine")), (1, 1));

        let same_day = prune(directory.path(), at(3600), 500);
        assert_eq!(same_day, Pruned::default());
        let next_day = prune(directory.path(), at(3 * 86_400), 500);
        assert_eq!((next_day.events, next_day.rows), (0, 1), "the quarantine");
        let next_year = prune(directory.path(), at(0).plus(YEAR + YEAR), 2);
        assert_eq!((next_year.events, next_year.rows), (events - 1, 4), "interval, reservation, two gaps");

        assert_eq!(tables.map(count), kept);
        assert_eq!((count("event"), count("quarantine")), (1, 0));
        assert_eq!((count("interval"), count("interval where ended_at is null")), (8, 8));
        assert_eq!((count("reservation"), count("reservation where released_at is null")), (4, 4));
    }

    #[test]
    fn a_reservation_stays_as_long_as_its_interval() {
        let directory = filled();
        // Ended so far in the future that it is not old, as by a clock that was set wrong.
        let late =
            format!("update interval set ended_at = {} where ended_at is not null", at(1 << 32).as_micros());
        crate::samples::damage(directory.path(), &late);
        prune(directory.path(), at(0).plus(YEAR + YEAR), 500);
        assert_eq!(rows(directory.path(), "reservation where released_at is not null"), 1);
    }
}
