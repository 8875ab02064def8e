//! Following other servers: what they wrote since our last batch is applied to what we have cached.
//!
//! Two counters in one row tell whether there is anything: the number of the newest event, and the number of the newest
//! *change*, which is for what caches depend on and history does not tell (ports occupied without a listener, facts,
//! sessions). A batch takes that row before anything else, so nothing can change between following and picking.

use std::collections::BTreeSet;

use gk_model::history::EventKind;
use gk_model::id::InstanceId;

use crate::Shared;
use crate::driver::Connection;
use crate::error::StoreError;
use crate::port_map::PortMaps;
use crate::value::values;

/// How many changes are kept at least; who is further behind forgets everything.
pub(crate) const CHANGES_KEPT: u64 = 4096;

/// How many events are followed one by one; beyond that, loading anew is cheaper.
const MOST_EVENTS: u64 = 4096;

/// How far somebody has followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) seq: u64,
    pub(crate) changes: u64,
}

impl Seen {
    pub(crate) fn next(self) -> Next {
        Next(self)
    }
}

/// The numbers that a batch gives out.
#[derive(Clone, Copy)]
pub(crate) struct Next(Seen);

impl Next {
    pub(crate) fn take_seq(&mut self) -> u64 {
        self.0.seq += 1;
        self.0.seq
    }

    pub(crate) fn take_change(&mut self) -> u64 {
        self.0.changes += 1;
        self.0.changes
    }

    /// The newest numbers given out.
    pub(crate) fn last(self) -> Seen {
        self.0
    }
}

/// Brings the caches from `seen` to `found`.
pub(crate) fn follow(
    connection: &mut Connection,
    seen: Seen,
    found: Seen,
    maps: &mut PortMaps,
    shared: &Shared,
) -> Result<(), StoreError> {
    let is_near = |seen: u64, found: u64, most: u64| (seen..=seen.saturating_add(most)).contains(&found);
    if !is_near(seen.seq, found.seq, MOST_EVENTS) || !is_near(seen.changes, found.changes, CHANGES_KEPT) {
        maps.clear();
        shared.beats.clear();
        return Ok(());
    }
    if found.seq > seen.seq {
        follow_events(connection, seen.seq, maps)?;
    }
    if found.changes > seen.changes {
        let sql = "select instance from instance_change where number > $1 order by number";
        for mut row in connection.query(sql, values![seen.changes])? {
            let instance = row.take()?;
            maps.forget(instance);
            shared.beats.forget(instance);
        }
    }
    Ok(())
}

fn follow_events(connection: &mut Connection, seq: u64, maps: &mut PortMaps) -> Result<(), StoreError> {
    let sql = "select kind, instance from event where seq > $1 order by seq";
    let mut touched = BTreeSet::new();
    for mut row in connection.query(sql, values![seq])? {
        let (kind, instance): (EventKind, Option<InstanceId>) = (row.take()?, row.take()?);
        let _ = kind;
        touched.extend(instance);
    }
    touched.into_iter().for_each(|instance| maps.forget(instance));
    Ok(())
}
