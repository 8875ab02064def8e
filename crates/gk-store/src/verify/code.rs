//! The checks that a statement cannot make.

use std::collections::BTreeMap;

use gk_model::listener::{Digest, Listener, Netns};
use gk_model::port::{Port, PortRange};
use gk_model::port_set::PortSet;

use super::{Checked, SHOWN};
use crate::arms;
use crate::error::StoreError;
use crate::pool_cache::{Pools, Source};
use crate::rows::Row;
use crate::tx::Reader;
use crate::value::{Json, values};

/// Rows in memory at once; few in tests, whose databases are small.
const PAGE: usize = if cfg!(test) { 2 } else { 1000 };

/// Pages and indexes, as the database itself sees them.
pub(super) fn check_file(reader: &mut Reader<'_>, checked: &mut Checked) -> Result<(), StoreError> {
    checked.looked_at = 1;
    reader.list_damage(SHOWN)?.into_iter().for_each(|line| checked.report(line));
    Ok(())
}

/// Each pool makes sense, its numbers are those written down beside it, and it shares none with one of another scope.
/// The default is there.
pub(super) fn check_pools(reader: &mut Reader<'_>, checked: &mut Checked) -> Result<(), StoreError> {
    let mut ranges: BTreeMap<String, PortSet> = BTreeMap::new();
    for mut row in reader.query("select pool, first_port, last_port from pool_range", &[])? {
        let (pool, first, last): (String, Port, Port) = (row.take()?, row.take()?, row.take()?);
        let range = PortRange::new(first, last);
        range.into_iter().for_each(|range| ranges.entry(pool.clone()).or_default().insert_range(range));
    }
    let pools = Pools::new(reader.list_all_pools()?);
    for Source { pool, ports } in pools.iter().map(|source| &**source) {
        checked.looked_at += 1;
        if let Err(fault) = pool.spec().check() {
            checked.report(format!("pool {} is none: {fault}", pool.name));
        }
        if ranges.remove(pool.name.as_str()).as_ref() != Some(ports) {
            checked.report(format!("pool {} has other numbers beside it than it says", pool.name));
        }
        if let Some((other, both)) = pools.find_overlap(ports, pool.scope, &pool.name) {
            let (ports, other) = (gk_model::pool::list(&both), &other.pool.name);
            checked.report(format!("pool {} shares {ports} with {other}, of another scope", pool.name));
        }
    }
    ranges.keys().for_each(|name| checked.report(format!("there are numbers of pool {name}, and no pool")));
    if pools.get(None).is_err() {
        checked.report("there is no pool default".to_owned());
    }
    Ok(())
}

/// A joined instance that has listeners by a full report of its home namespace has exactly those.
///
/// A report of less leaves the rest of the stored ones alone, so then the digest is only that of what was reported.
pub(super) fn check_digests(reader: &mut Reader<'_>, checked: &mut Checked) -> Result<(), StoreError> {
    let mut after = String::new();
    loop {
        let sql = format!(
            "select id, name, digest from instance where id > $1 and left_at is null and complete = 1 \
             and sequence > 0 order by id limit {PAGE}"
        );
        let rows = reader.query(&sql, values![after.as_str()])?;
        let is_last = rows.len() < PAGE;
        for mut row in rows {
            let (id, name, digest): (String, String, Digest) = (row.take()?, row.take()?, row.take()?);
            let rows = reader.query("select body from listener where instance = $1", values![id.as_str()])?;
            let listeners = rows.into_iter().map(|mut row| row.take().map(|Json(listener)| listener));
            let listeners = listeners.collect::<Result<Vec<Listener>, StoreError>>()?;
            checked.looked_at += 1;
            let only_home = listeners.iter().all(|listener| listener.key.netns == Netns::Home);
            if only_home && Digest::of(&listeners) != digest {
                checked.report(format!(
                    "{name} ({id}) has {} stored listeners that are not those its agent and server agreed on",
                    listeners.len()
                ));
            }
            after = id;
        }
        if is_last {
            return Ok(());
        }
    }
}

/// A held interval, as far as it matters for overlaps.
#[derive(Clone)]
struct Held {
    seq: u64,
    instance: String,
    protocol: String,
    first: u64,
    last: u64,
    began_at: i64,
    ended_at: Option<i64>,
    reservation: Option<String>,
}

fn read_held(mut row: Row) -> Result<Held, StoreError> {
    Ok(Held {
        seq: row.take()?,
        instance: row.take()?,
        protocol: row.take()?,
        first: row.take()?,
        last: row.take()?,
        began_at: row.take()?,
        ended_at: row.take()?,
        reservation: row.take()?,
    })
}

/// The newest interval of each stretch of ports that one instance had, by the lowest port.
type Stretches = BTreeMap<u64, Held>;

/// Walks through all held intervals in the order in which they began, with those at hand that may still last.
pub(super) fn check_held_once(reader: &mut Reader<'_>, checked: &mut Checked) -> Result<(), StoreError> {
    let columns = "seq, instance, protocol, first_port, last_port, began_at, ended_at, reservation";
    let sql = arms::select_held(columns, PAGE);
    let mut lasting: BTreeMap<(String, String), Stretches> = BTreeMap::new();
    let mut after = (i64::MIN, 0);
    loop {
        let rows = reader.query(&sql, values![after.0, after.1])?;
        let is_last = rows.len() < PAGE;
        for row in rows {
            let held = read_held(row)?;
            after = (held.began_at, held.seq);
            checked.looked_at += 1;
            let stretches = lasting.entry((held.instance.clone(), held.protocol.clone())).or_default();
            for other in take_overlapped(stretches, &held) {
                if !is_explained_by_the_clock(reader, &other, &held)? {
                    checked.report(format!(
                        "intervals {} and {} hold {}-{} and {}-{}/{} of instance {} at the same time",
                        other.seq,
                        held.seq,
                        other.first,
                        other.last,
                        held.first,
                        held.last,
                        held.protocol,
                        held.instance
                    ));
                }
            }
            stretches.insert(held.first, held);
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Removes what shares a port with `held`, and answers what of that still lasted when it began.
fn take_overlapped(stretches: &mut Stretches, held: &Held) -> Vec<Held> {
    // Stretches do not overlap each other, so going down from the last port ends at the first that is too low.
    let touched = stretches.range(..=held.last).rev().take_while(|(_, other)| other.last >= held.first);
    let keys: Vec<u64> = touched.map(|(first, _)| *first).collect();
    let taken = keys.into_iter().filter_map(|first| stretches.remove(&first));
    taken.filter(|other| other.ended_at.is_none_or(|ended_at| ended_at > held.began_at)).collect()
}

/// When the clock stepped back between the end of one and the beginning of the other, or one request came before another
/// that was quicker, their times overlap though they never did. The numbers of events tell: the first of the two ended
/// before the second began. It did when a part or an edit of its reservation began another interval; else, when there is
/// no event of it any more.
fn is_explained_by_the_clock(reader: &mut Reader<'_>, one: &Held, other: &Held) -> Result<bool, StoreError> {
    let (first, second) = if one.seq < other.seq { (one, other) } else { (other, one) };
    let (Some(_), Some(reservation)) = (first.ended_at, &first.reservation) else { return Ok(false) };
    let (instance, reservation) = (first.instance.as_str(), reservation.as_str());
    let sql = "select seq from interval where kind = 'held' and instance = $1 and seq > $2 and reservation = $3 \
               order by seq limit 1";
    if let Some(mut next) = reader.query_one(sql, values![instance, first.seq, reservation])? {
        return Ok(next.take::<u64>()? < second.seq);
    }
    let sql = "select seq from event where instance = $1 and seq > $2 and reservation = $3 limit 1";
    Ok(reader.query_one(sql, values![instance, second.seq, reservation])?.is_none())
}
