//! Intervals: who held or listened on which port, from when to when.

use gk_model::history::{History, Interval, IntervalKind};
use gk_model::id::{InstanceId, InstanceRef};
use gk_model::listener::Listener;
use gk_model::port::{PortRange, Protocol};
use gk_model::query::{HistoryQuery, Page};
use gk_model::reservation::Reservation;
use gk_model::text::Observed;
use gk_model::time::Timestamp;

use crate::arms::{self, FEW, Whose};
use crate::driver::{Access, Connection};
use crate::error::{Error, StoreError};
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

/// By what a listener is searched for, in lower case.
#[derive(Default)]
struct Words {
    /// Of the first owner that is not the init of the machine, which holds sockets for others; empty when nobody knows.
    process: Option<String>,
    unit: Option<String>,
    container: Option<String>,
    container_id: Option<String>,
    account: Option<String>,
}

impl Words {
    fn of(listener: &Listener) -> Words {
        let lower = |text: &Observed| text.as_str().to_lowercase();
        let owners = &listener.owners;
        let owner = owners.iter().find(|owner| owner.pid != 1).or(owners.first());
        let container = listener.container.as_ref();
        let container_id = container.and_then(|container| arms::short_id(container.id.as_str()));
        // Where an engine has no ids but names, the id is the name.
        let named = container.and_then(|container| match container_id {
            None => Some(container.name.as_ref().unwrap_or(&container.id)),
            Some(_) => container.name.as_ref(),
        });
        Words {
            process: Some(owner.map_or_else(String::new, |owner| lower(&owner.name))),
            unit: listener.unit.as_ref().map(lower),
            container: named.map(lower),
            container_id,
            account: listener.account.as_ref().or(owner.map(|owner| &owner.account)).map(lower),
        }
    }
}

const LEARN: &str = "update interval set listener = $2, process = $3, unit = $4, container = $5, container_id = $6, \
                     account = $7 where seq = $1";

fn learnt(seq: u64, listener: &Listener) -> Vec<Value> {
    let Words { process, unit, container, container_id, account } = Words::of(listener);
    values![seq, Json(listener), process, unit, container, container_id, account].to_vec()
}

/// How many old rows are made searchable at once.
const AT_ONCE: u32 = 1000;

/// Makes what an older version wrote searchable by its words. A listener that cannot be read is left without any.
///
/// Before the store is opened, so that no search ever misses half of history. Several servers may do so at once: each
/// writes the same.
pub(crate) fn search_old(connection: &mut Connection) -> Result<(), StoreError> {
    let unread = "select seq, listener from interval where kind = 'listened' and process is null order by seq limit $1";
    loop {
        let rows = connection.query(unread, values![AT_ONCE])?;
        if rows.is_empty() {
            return Ok(());
        }
        connection.begin(Access::Write)?;
        for mut row in rows {
            let seq: u64 = row.take()?;
            let (sql, values) = match row.take::<Json<Listener>>() {
                Ok(Json(listener)) => (LEARN, learnt(seq, &listener)),
                Err(_) => ("update interval set process = '' where seq = $1", values![seq].to_vec()),
            };
            connection.later(sql, &values)?;
        }
        connection.commit()?;
    }
}

impl Tx<'_> {
    pub(crate) fn begin_interval(&mut self, interval: NewInterval<'_>) -> Result<(), StoreError> {
        let held = interval.reservation;
        let words = interval.listener.map(Words::of).unwrap_or_default();
        self.later(
            "insert into interval (seq, kind, instance, protocol, first_port, last_port, began_at, service, name, \
             holder, reservation, listener, process, unit, container, container_id, account) \
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
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
                words.process,
                words.unit,
                words.container,
                words.container_id,
                words.account,
            ],
        )
    }

    /// Tells more of who listens in an interval, without beginning another one.
    pub(crate) fn update_interval_listener(
        &mut self,
        seq: u64,
        listener: &Listener,
    ) -> Result<(), StoreError> {
        self.later(LEARN, &learnt(seq, listener))
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
        // What would end before it began lasts less than nothing, which is the class of the shortest as well.
        let lasting = arms::class_of("$1 - began_at");
        let sql = format!(
            "update interval set ended_at = case when began_at > $1 then began_at else $1 end, lasting = {lasting} \
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

    /// The instances that a list is about; nothing when it is about all of them.
    fn list_asked(&mut self, query: &HistoryQuery) -> Result<Option<Whose>, Error> {
        let one = self.resolve(query.instance.as_ref())?;
        if one.is_none() && query.label.is_none() {
            return Ok(None);
        }
        let chosen = self.choose(query.label.as_ref())?;
        let filters = Filters::new("id is not null", &[]).and("id = $?", one);
        let filters = filters.and_chosen("", chosen.as_ref());
        let (sql, values) = filters.finish("select id from instance", "id", FEW as u32);
        let ids = self.query(&sql, &values)?.into_iter().map(|mut row| row.take());
        let ids = ids.collect::<Result<Vec<InstanceId>, StoreError>>()?;
        if let Some(chosen) = chosen.filter(|_| ids.len() > FEW) {
            return Ok(Some(Whose::Labelled(chosen)));
        }
        let some = self.query("select 1 from instance limit $1", values![FEW as u64 + 1])?;
        Ok(Some(Whose::These { ids, is_of_few: some.len() <= FEW }))
    }

    /// Intervals by the time that they began, the last first unless the oldest are asked for.
    ///
    /// # Errors
    /// [`crate::Refusal::NoSuchInstance`], [`crate::Refusal::BadCursor`].
    pub fn list_history(&mut self, query: &HistoryQuery) -> Result<History, Error> {
        let whose = self.list_asked(query)?;
        let (sql, values) = arms::select(COLUMNS, query, whose.as_ref())?;
        let rows = self.query(&sql, &values)?;
        let names = self.list_names(&rows, INSTANCE)?;
        let read = |row| read_interval(row, &names);
        let cursor_of = |last: &Interval| page::cursor(&[&last.began_at.as_micros(), &last.seq]);
        let Page { items, next } = page::page(rows, query.limit(), read, cursor_of)?;
        let gaps = self.list_gaps(query, whose.as_ref(), items.last().filter(|_| next.is_some()))?;
        Ok(History { items, gaps, next })
    }

    /// What the database says of how it would answer, or did; `how` is its own word for asking that.
    ///
    /// # Errors
    /// As [`Reader::list_history`].
    #[doc(hidden)]
    pub fn explain_history(&mut self, query: &HistoryQuery, how: &str) -> Result<Vec<String>, Error> {
        let whose = self.list_asked(query)?;
        let (sql, values) = arms::select(COLUMNS, query, whose.as_ref())?;
        let lines = self.query(&format!("{how} {sql}"), &values)?;
        Ok(lines.into_iter().map(|mut row| row.take()).collect::<Result<_, StoreError>>()?)
    }
}

const COLUMNS: &str = "i.seq, i.kind, i.instance, i.protocol, i.first_port, i.last_port, i.began_at, \
                       i.ended_at, i.service, i.name, i.holder, i.reservation, i.listener";

/// The place of the instance in it.
const INSTANCE: usize = 2;

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
    use crate::driver::Location;
    use crate::samples::{at, damage, filled};
    use crate::{Store, StoreConfig};

    #[test]
    fn what_an_older_version_wrote_is_searchable_once_the_store_is_open() {
        let directory = filled();
        let config = StoreConfig::embedded(directory.path());
        let old = r#"update interval set process = null, account = null,
            listener = replace(listener, '"account":null', '"account":"Root"') where kind = 'listened';
            update interval set listener = '{' where seq = (select min(seq) from interval where kind = 'listened')"#;
        damage(directory.path(), old);
        Store::open_here(&config, at(40)).unwrap().close();
        let mut connection = Connection::open(&Location::of(&config), Access::Read).unwrap();
        let mut count = |which: &str| -> u64 {
            let sql = format!("select count(*) from interval where kind = 'listened' and {which}");
            connection.query(&sql, &[]).unwrap().first().unwrap().take().unwrap()
        };
        assert_eq!((count("process is null"), count("process = ''"), count("account = 'root'")), (0, 4, 3));
    }
}
