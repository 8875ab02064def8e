//! Transactions: [`Reader`] sees, [`Tx`] sees and changes.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};

use gk_model::access::Actor;
use gk_model::history::{EventKind, Origin};
use gk_model::id::{InstanceId, ReservationId};
use gk_model::listener::Listener;
use gk_model::port::{PortRange, Protocol};
use gk_model::text::Subject;
use gk_model::time::Timestamp;

use crate::Shared;
use crate::beats::BeatChange;
use crate::counts::Counts;
use crate::driver::Connection;
use crate::error::StoreError;
use crate::follow::{CHANGES_KEPT, Next};
use crate::pool_use::UseChange;
use crate::port_map::PortMaps;
use crate::rows::{Row, Rows};
use crate::space::Space;
use crate::value::{Json, Value, values};

/// A consistent view of the database.
pub struct Reader<'a> {
    connection: &'a mut Connection,
    pub(crate) shared: &'a Shared,
    failed: Option<StoreError>,
    /// Where questions are counted; those of readers keep nobody waiting but themselves.
    asked: Option<&'a AtomicU64>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(connection: &'a mut Connection, shared: &'a Shared) -> Reader<'a> {
        Reader { connection, shared, failed: None, asked: None }
    }

    /// Asks, and waits for the rows.
    ///
    /// After a failed statement every later one of the same closure fails too: one database aborts the transaction
    /// there, so both must.
    pub(crate) fn query(&mut self, sql: &str, values: &[Value]) -> Result<Rows, StoreError> {
        self.check()?;
        if let Some(asked) = self.asked {
            asked.fetch_add(1, Ordering::Relaxed);
        }
        self.connection.query(sql, values).inspect_err(|error| self.failed = Some(error.clone()))
    }

    /// The first row, if there is one.
    pub(crate) fn query_one(&mut self, sql: &str, values: &[Value]) -> Result<Option<Row>, StoreError> {
        Ok(self.query(sql, values)?.first())
    }

    /// See [`Connection::list_damage`].
    pub(crate) fn list_damage(&mut self, most: usize) -> Result<Vec<String>, StoreError> {
        self.check()?;
        self.connection.list_damage(most)
    }

    /// The time that leases go by. The database's, where it has one of its own.
    pub(crate) fn clock(&mut self, now: Timestamp) -> Result<Timestamp, StoreError> {
        self.check()?;
        if self.shared.database_clock { self.connection.clock(now) } else { Ok(now) }
    }

    fn check(&self) -> Result<(), StoreError> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}

/// A change under way: one closure's part of a batch.
pub struct Tx<'a> {
    reader: Reader<'a>,
    pub(crate) maps: &'a mut PortMaps,
    pub(crate) beats: &'a mut Vec<BeatChange>,
    pub(crate) uses: &'a mut Vec<UseChange>,
    next: &'a mut Next,
    wrote: bool,
    /// Whether a savepoint is around this closure, so that its failures must show before it ends.
    pub(crate) alone: bool,
}

/// Who did something, and how it was asked for.
#[derive(Clone, Copy)]
pub(crate) struct By<'a> {
    pub(crate) subject: &'a Subject,
    origin: Option<&'a Origin>,
}

impl<'a> From<&'a Actor> for By<'a> {
    fn from(actor: &'a Actor) -> By<'a> {
        By { subject: &actor.subject, origin: actor.origin.as_deref() }
    }
}

/// What nobody asked for: the server's own jobs, and the reports of agents.
impl<'a> From<&'a Subject> for By<'a> {
    fn from(subject: &'a Subject) -> By<'a> {
        By { subject, origin: None }
    }
}

/// Something that happened, before it has a number.
pub(crate) struct NewEvent<'a> {
    pub(crate) at: Timestamp,
    pub(crate) recorded_at: Timestamp,
    pub(crate) kind: EventKind,
    pub(crate) instance: Option<Space>,
    pub(crate) ports: Option<(Protocol, PortRange)>,
    pub(crate) by: By<'a>,
    pub(crate) reservation: Option<ReservationId>,
    pub(crate) listener: Option<&'a Listener>,
    pub(crate) message: String,
}

impl<'a> NewEvent<'a> {
    /// Something that happens now, and is about no instance, port, reservation or listener.
    pub(crate) fn of(kind: EventKind, by: By<'a>, message: String, now: Timestamp) -> NewEvent<'a> {
        NewEvent {
            at: now,
            recorded_at: now,
            kind,
            instance: None,
            ports: None,
            by,
            reservation: None,
            listener: None,
            message,
        }
    }
}

impl<'a> Tx<'a> {
    pub(crate) fn new(
        connection: &'a mut Connection,
        shared: &'a Shared,
        maps: &'a mut PortMaps,
        beats: &'a mut Vec<BeatChange>,
        uses: &'a mut Vec<UseChange>,
        next: &'a mut Next,
    ) -> Tx<'a> {
        let reader = Reader { asked: Some(&shared.statements.asked), ..Reader::new(connection, shared) };
        Tx { reader, maps, beats, uses, next, wrote: false, alone: false }
    }

    /// Says something whose result nobody waits for.
    pub(crate) fn later(&mut self, sql: &str, values: &[Value]) -> Result<(), StoreError> {
        self.reader.check()?;
        self.wrote = true;
        self.reader.shared.statements.said.fetch_add(1, Ordering::Relaxed);
        let said = self.reader.connection.later(sql, values);
        said.inspect_err(|error| self.reader.failed = Some(error.clone()))
    }

    /// Writes an event down and answers its number: consecutive, because the writer holds the counter's row.
    pub(crate) fn record(&mut self, event: NewEvent<'_>) -> Result<u64, StoreError> {
        let seq = self.next.take_seq();
        let (protocol, range) = event.ports.unzip();
        self.later(
            "insert into event (seq, at, recorded_at, kind, instance, protocol, first_port, last_port, actor, \
             reservation, listener, message, origin) \
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
            values![
                seq,
                event.at.min(event.recorded_at),
                event.recorded_at,
                event.kind,
                event.instance,
                protocol,
                range.map(PortRange::first),
                range.map(PortRange::last),
                event.by.subject,
                event.reservation,
                event.listener.map(Json),
                event.message,
                event.by.origin.map(Json),
            ],
        )?;
        Ok(seq)
    }

    /// How many there are more, or fewer.
    pub(crate) fn counts(&mut self) -> &mut Counts {
        &mut self.next.counts
    }

    /// Writes down what somebody changed that is of no instance.
    pub(crate) fn record_change(
        &mut self,
        kind: EventKind,
        actor: &Actor,
        message: String,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.record(NewEvent::of(kind, actor.into(), message, now)).map(drop)
    }

    /// Tells the other servers that what they may have cached about an instance has changed, though history has nothing
    /// to say about it.
    pub(crate) fn note_change(&mut self, instance: InstanceId) -> Result<(), StoreError> {
        let number = self.next.take_change();
        self.later(
            "insert into instance_change (number, instance) values ($1, $2)",
            values![number, instance],
        )?;
        if number.is_multiple_of(CHANGES_KEPT) {
            let oldest = number.saturating_sub(CHANGES_KEPT);
            self.later("delete from instance_change where number < $1", values![oldest])?;
        }
        Ok(())
    }

    /// Where a savepoint is around this closure: waits until everything that it said is done.
    pub(crate) fn settle_alone(&mut self) -> Result<(), StoreError> {
        if !self.alone || !self.wrote {
            return Ok(());
        }
        let settled = self.reader.connection.settle();
        settled.inspect_err(|error| self.reader.failed = Some(error.clone()))
    }

    /// Whether anything was written, or a statement failed: what a refusal must not have done.
    pub(crate) fn is_dirty(&self) -> bool {
        self.wrote || self.reader.failed.is_some()
    }

    pub(crate) fn failure(&self) -> Option<StoreError> {
        self.reader.failed.clone()
    }
}

impl<'a> Deref for Tx<'a> {
    type Target = Reader<'a>;

    fn deref(&self) -> &Reader<'a> {
        &self.reader
    }
}

impl DerefMut for Tx<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.reader
    }
}
