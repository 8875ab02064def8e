//! Long histories for the benchmarks: what years of use leave, written in seconds.
//!
//! Here and not in the benchmarks, because only this crate knows the tables and names a database; through the API ten
//! million events would take half an hour. Not for use on data that anybody needs.

use gk_model::time::Timestamp;

use crate::StoreConfig;
use crate::arms::class_of;
use crate::driver::{Access, Connection, Location};
use crate::error::{Error, StoreError};
use crate::migrate::STEPS;
use crate::value::values;

/// Rows of one transaction: far fewer than a statement may take time for.
const CHUNK: u64 = 250_000;

/// What to write.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filling {
    /// Rows of the event log, a microsecond apart.
    Events,
    /// Intervals, of which nearly all have ended.
    Intervals,
}

/// When the first of them happened: 2023-11-14T22:13:20Z. The others follow, a millisecond apart.
#[doc(hidden)]
pub fn filled_from() -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000)
}

/// Writes so many rows about the instances that there are, in turn. For a database whose store is closed, and where
/// nothing has happened since they joined: the rows are numbered from 1,000,001.
///
/// # Errors
/// Only when the database fails.
#[doc(hidden)]
pub fn fill_history(config: &StoreConfig, filling: Filling, rows: u64) -> Result<(), Error> {
    let mut connection = Connection::open(&Location::of(config), Access::Write)?;
    connection.write_at_once()?;
    connection.take_all_time()?;
    // Sorted at once afterwards, an index costs a fraction of what it does row by row.
    let indexes = list_indexes(filling);
    for (name, _) in &indexes {
        connection.script(&format!("drop index {name}"))?;
    }
    let first = 1_000_001;
    for begin in (0..rows).step_by(CHUNK as usize) {
        let end = (begin + CHUNK).min(rows);
        write(&mut connection, filling, first + begin, first + end - 1)?;
    }
    for (_, statement) in &indexes {
        connection.script(statement)?;
    }
    Ok(())
}

/// Name and statement of each index that the migrations make on the table.
fn list_indexes(filling: Filling) -> Vec<(&'static str, &'static str)> {
    let table = match filling {
        Filling::Events => "event",
        Filling::Intervals => "interval",
    };
    let statements = STEPS.iter().flat_map(|step| step.split(';')).filter_map(|statement| {
        let begin = statement.find("create index ")?;
        let statement = &statement[begin..];
        let mut words = statement.split_whitespace().skip(2);
        let (name, _, on) = (words.next()?, words.next(), words.next()?);
        (on == table).then_some((name, statement))
    });
    statements.collect()
}

fn write(connection: &mut Connection, filling: Filling, first: u64, last: u64) -> Result<(), StoreError> {
    let sql = match filling {
        Filling::Events => {
            "insert into event (seq, at, recorded_at, kind, instance, protocol, first_port, last_port, actor, message) \
             select n.x, n.x * 1000 + $3, n.x * 1000 + $3, case when n.x % 2 = 0 then 'reserved' else 'released' end, \
             i.id, 'tcp', 8000 + n.x % 2000, 8000 + n.x % 2000, 'ada', '8000/tcp reserved by ada'"
                .to_owned()
        }
        Filling::Intervals => intervals(),
    };
    let numbers = "with recursive numbers (x) as (select cast($1 as bigint) union all \
                   select x + 1 from numbers where x < cast($2 as bigint)), \
                   instances (id, number, total) as (select id, row_number() over (order by id) - 1, count(*) over () \
                   from instance)";
    // What few rows of the kind have in common is to be found on every instance.
    let instance = if filling == Filling::Intervals { "(n.x / 10)" } else { "n.x" };
    let text = format!(
        "{numbers} {} from numbers n join instances i on i.number = {instance} % i.total",
        sql.replace("$3", "cast($3 as bigint)")
    );
    connection.begin(Access::Write)?;
    connection.later(&text, values![first, last, filled_from().as_micros()])?;
    if filling == Filling::Events {
        connection.later("update event_seq set seq = $1 where id = 0", values![last])?;
    }
    connection.commit()
}

/// One of three is held, by one of 200 services; the others are listened on by one of 500 processes. Most last half a
/// millisecond, one of ten five seconds, one of 1,000 hundred seconds, and one of 5,000 lasts still.
fn intervals() -> String {
    let lasted = "(case when n.x % 5000 = 2 then null when n.x % 1000 = 1 then 100000000 \
                  when n.x % 10 = 0 then 5000000 else 500 end)";
    let lasting = class_of(lasted);
    let listened = |value: &str| format!("case when n.x % 3 = 0 then null else {value} end");
    let [process, unit, container, account, listener] = [
        "'worker-' || (n.x % 500)",
        "'unit-' || (n.x % 100) || '.service'",
        "'web-' || (n.x % 300)",
        "case when n.x % 100 = 1 then 'www-data' else 'root' end",
        LISTENER,
    ]
    .map(listened);
    format!(
        "insert into interval (seq, kind, instance, protocol, first_port, last_port, began_at, ended_at, lasting, service, \
         holder, process, unit, container, account, listener) \
         select n.x, case when n.x % 3 = 0 then 'held' else 'listened' end, i.id, 'tcp', 8000 + n.x % 2000, \
         8000 + n.x % 2000, n.x * 1000 + $3, n.x * 1000 + $3 + {lasted}, {lasting}, \
         case when n.x % 3 = 0 then 'service-' || (n.x % 200) end, case when n.x % 3 = 0 then 'ada' end, \
         {process}, {unit}, {container}, {account}, {listener}"
    )
}

/// The same listener in every row: what is read is as long as in life, whatever it says.
const LISTENER: &str = "'{\"netns\":\"home\",\"protocol\":\"tcp\",\"address\":\"0.0.0.0\",\"interface\":null,\
                        \"port\":8000,\"v6only\":false,\"account\":\"root\",\"owners\":[{\"pid\":812,\
                        \"started_ticks\":7,\"name\":\"worker\",\"exe\":\"/usr/bin/worker\",\
                        \"account\":\"root\"}],\"unit\":null,\"container\":null,\
                        \"first_seen_at\":\"2023-11-14T22:13:20.000000Z\",\
                        \"last_seen_at\":\"2023-11-14T22:13:20.000000Z\"}'";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_of_the_long_tables_is_found() {
        let names = |filling| list_indexes(filling).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(Filling::Events), ["event_instance", "event_kind", "event_actor", "event_at"]);
        assert_eq!(names(Filling::Intervals).len(), 14, "{:?}", names(Filling::Intervals));
    }
}
