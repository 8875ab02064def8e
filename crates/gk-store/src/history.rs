//! Intervals: who held or listened on which port, from when to when.

use gk_model::history::{Interval, IntervalKind};
use gk_model::id::{InstanceId, InstanceRef};
use gk_model::listener::Listener;
use gk_model::port::{PortRange, Protocol};
use gk_model::query::{HistoryQuery, Page};
use gk_model::reservation::Reservation;
use gk_model::time::Timestamp;

use crate::error::{Error, Refusal, StoreError};
use crate::page::{self, Filters};
use crate::rows::Row;
use crate::space::{Names, Space};
use crate::tx::{Reader, Tx};
use crate::value::{Json, Value, values};

/// An interval at its beginning.
#[derive(Clone, Copy)]
pub(crate) struct NewInterval<'a> {
    /// The event that begins it.
    pub(crate) seq: u64,
    pub(crate) kind: IntervalKind,
    /// For which instance the ports are held, or where they are listened on.
    pub(crate) instance: Space,
    pub(crate) protocol: Protocol,
    pub(crate) ports: PortRange,
    pub(crate) began_at: Timestamp,
    pub(crate) reservation: Option<&'a Reservation>,
    pub(crate) listener: Option<&'a Listener>,
}

impl Tx<'_> {
    pub(crate) fn begin_interval(&mut self, interval: NewInterval<'_>) -> Result<(), StoreError> {
        let held = interval.reservation;
        self.later(
            "insert into interval (seq, kind, instance, protocol, first_port, last_port, began_at, service, name, \
             holder, reservation, listener) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
            values![
                interval.seq,
                interval.kind,
                interval.instance,
                interval.protocol,
                interval.ports.first(),
                interval.ports.last(),
                interval.began_at,
                held.and_then(|held| held.service.as_ref()),
                held.and_then(|held| held.name.as_ref()),
                held.map(|held| &held.holder),
                held.map(|held| held.id),
                interval.listener.map(Json),
            ],
        )
    }

    /// Tells more of who listens in an interval, without beginning another one.
    pub(crate) fn update_interval_listener(
        &mut self,
        seq: u64,
        listener: &Listener,
    ) -> Result<(), StoreError> {
        self.later("update interval set listener = $2 where seq = $1", values![seq, Json(listener)])
    }

    /// Ends an interval.
    pub(crate) fn end_interval(&mut self, seq: u64, ended_at: Timestamp) -> Result<(), StoreError> {
        self.end_intervals("seq = $2", seq, ended_at)
    }

    /// Ends the open intervals that a condition on `$2` names; where clocks disagree, where they began and not before.
    pub(crate) fn end_intervals(
        &mut self,
        which: &str,
        value: impl Into<Value>,
        ended_at: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = format!(
            "update interval set ended_at = case when began_at > $1 then began_at else $1 end \
             where ended_at is null and {which}"
        );
        self.later(&sql, &[ended_at.into(), value.into()])
    }
}

impl Reader<'_> {
    /// The id of an instance that was named; nothing when none was.
    pub(crate) fn resolve(&mut self, instance: Option<&InstanceRef>) -> Result<Option<InstanceId>, Error> {
        match instance {
            None => Ok(None),
            // The time matters for presence only, which is not asked for.
            Some(instance) => Ok(Some(self.get_instance(instance, Timestamp::from_micros(0))?.id)),
        }
    }

    /// Intervals, the one that began last first.
    ///
    /// # Errors
    /// [`crate::Refusal::NoSuchInstance`], [`crate::Refusal::BadCursor`].
    pub fn list_history(&mut self, query: &HistoryQuery) -> Result<Page<Interval>, Error> {
        let instance = self.resolve(query.instance.as_ref())?;
        let (sql, values) = select(query, instance)?;
        let rows = self.query(&sql, &values)?;
        let names = self.list_names(&rows, INSTANCE)?;
        let read = |row| read_interval(row, &names);
        page::page(rows, query.limit(), read, |last| page::cursor(&[&last.began_at.as_micros(), &last.seq]))
    }
}

const SELECT: &str = "select i.seq, i.kind, i.instance, i.protocol, i.first_port, i.last_port, i.began_at, \
                      i.ended_at, i.service, i.name, i.holder, i.reservation, i.listener from interval i";

/// The place of the instance in it.
const INSTANCE: usize = 2;

/// The statement for one page. An index gives the order whatever the filters are, so no page sorts.
fn select(query: &HistoryQuery, instance: Option<InstanceId>) -> Result<(String, Vec<Value>), Refusal> {
    let (began_at, seq) = match &query.cursor {
        Some(cursor) => {
            let [began_at, seq] = page::parts(cursor)?;
            (page::part(began_at)?, page::part(seq)?)
        }
        None => (i64::MAX, i64::MAX),
    };
    let filters = Filters::new("(i.began_at, i.seq) < ($1, $2)", values![began_at, seq])
        .and("i.instance = $?", instance)
        .and("i.first_port <= $?", query.port.map(PortRange::last))
        .and("i.last_port >= $?", query.port.map(PortRange::first))
        .and("i.protocol = $?", query.protocol)
        .and("i.kind = $?", query.kind)
        .and("(i.ended_at is null or i.ended_at > $?)", query.since)
        .and("i.began_at < $?", query.until)
        .and("(i.began_at <= $? and (i.ended_at is null or i.ended_at > $?))", query.at);
    Ok(filters.finish(SELECT, "i.began_at desc, i.seq desc", query.limit()))
}

fn read_interval(mut row: Row, names: &Names) -> Result<Interval, StoreError> {
    Ok(Interval {
        seq: row.take()?,
        kind: row.take()?,
        instance: names.take_link(&mut row)?,
        protocol: row.take()?,
        first_port: row.take()?,
        last_port: row.take()?,
        began_at: row.take()?,
        ended_at: row.take()?,
        service: row.take()?,
        name: row.take()?,
        holder: row.take()?,
        reservation: row.take()?,
        listener: row.take::<Option<Json<_>>>()?.map(|Json(listener)| listener),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::plan;

    #[test]
    fn no_page_of_history_sorts_or_reads_all_of_it() {
        let now = Timestamp::from_micros(0);
        let id = InstanceId::generate(now);
        for filters in 0..128 {
            let on = |bit: u32| (filters >> bit & 1 == 1).then_some(());
            let query = HistoryQuery {
                port: on(1).map(|()| "8000-8010".parse().unwrap()),
                protocol: on(2).map(|()| Protocol::Tcp),
                kind: on(3).map(|()| IntervalKind::Held),
                since: on(4).map(|()| now),
                until: on(5).map(|()| now),
                at: on(6).map(|()| now),
                ..Default::default()
            };
            let (sql, values) = select(&query, on(0).map(|()| id)).unwrap();
            let plan = plan(&sql, &values);
            assert!(!plan.contains("TEMP B-TREE") && !plan.contains("SCAN"), "{query:?}: {plan}");
        }
    }
}
