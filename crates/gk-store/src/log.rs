//! The identity of the event log, and how far back and forth it reaches.
//!
//! A number alone does not say where a reader was: after a restore the same numbers are given to other events. So a
//! cursor names the log too, and every log has an id of its own.

use gk_model::id::LogId;
use gk_model::time::Timestamp;
use gk_model::watch::{EventCursor, Log};

use crate::Store;
use crate::driver::{Access, Connection};
use crate::error::{Error, Refusal, StoreError};
use crate::tx::Reader;
use crate::value::values;

impl Reader<'_> {
    /// The event log: its id, and the numbers it has.
    ///
    /// # Errors
    /// Only when the database fails.
    pub fn log(&mut self) -> Result<Log, Error> {
        let sql = "select l.log_id, c.seq, (select min(seq) from event) \
                   from log l join event_seq c on c.id = l.id where l.id = 0";
        let row = self.query_one(sql, &[])?;
        let mut row = row.ok_or_else(|| StoreError::Corrupt("the event log has no id".to_owned()))?;
        let (log_id, newest_seq, oldest) = (row.take()?, row.take()?, row.take::<Option<u64>>()?);
        Ok(Log { log_id, oldest_seq: oldest.unwrap_or(newest_seq + 1), newest_seq })
    }

    /// Number of the newest event, and nothing else.
    pub(crate) fn newest_seq(&mut self) -> Result<u64, Error> {
        let row = self.query_one("select seq from event_seq where id = 0", &[])?;
        Ok(row.ok_or_else(|| StoreError::Corrupt("no event counter".to_owned()))?.take()?)
    }
}

/// The number at a place from which every later event is there.
pub(crate) fn check(log: Log, cursor: EventCursor) -> Result<u64, Refusal> {
    if log.reaches(cursor) { Ok(cursor.seq) } else { Err(Refusal::StaleCursor { cursor, log }) }
}

impl Store {
    /// The event log; see [`Reader::log`].
    ///
    /// # Errors
    /// Only when the database fails.
    #[expect(clippy::redundant_closure_for_method_calls, reason = "the method itself is not general enough")]
    pub async fn log(&self) -> Result<Log, Error> {
        self.read(|reader| reader.log()).await
    }
}

/// Gives the log its id, if it has none. Two servers may do so at once: one of them wins, and both read the same.
pub(crate) fn ensure_log(connection: &mut Connection, now: Timestamp) -> Result<(), StoreError> {
    if !connection.query("select id from log where id = 0", &[])?.is_empty() {
        return Ok(());
    }
    connection.begin(Access::Write)?;
    connection.later(
        "insert into log (id, log_id, began_at) values (0, $1, $2) on conflict (id) do nothing",
        values![LogId::generate(now), now],
    )?;
    connection.commit()
}

/// Makes the log another one, inside the transaction under way.
pub(crate) fn renew_log(connection: &mut Connection, now: Timestamp) -> Result<(), StoreError> {
    connection.later("delete from log", &[])?;
    connection.later(
        "insert into log (id, log_id, began_at) values (0, $1, $2)",
        values![LogId::generate(now), now],
    )
}
