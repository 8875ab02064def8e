//! Following other servers: what they wrote since our last batch is applied to what we have cached.
//!
//! Two counters in one row tell whether there is anything: the number of the newest event, and the number of the newest
//! *change*, which is for what caches depend on and history does not tell (ports occupied without a listener, facts,
//! sessions). A batch takes that row before anything else, so nothing can change between following and picking.

use gk_model::history::EventKind;
use gk_model::port::{Port, PortRange, Protocol};
use gk_model::reservation::Scope;
use gk_model::time::Timestamp;

use crate::Shared;
use crate::counts::Counts;
use crate::driver::Connection;
use crate::error::StoreError;
use crate::port_map::PortMaps;
use crate::rows::Row;
use crate::space::Space;
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
        Next { seen: self, counts: Counts::default() }
    }
}

/// The numbers that a batch gives out, and what it changes about how many there are.
#[derive(Clone, Copy)]
pub(crate) struct Next {
    seen: Seen,
    pub(crate) counts: Counts,
}

impl Next {
    pub(crate) fn take_seq(&mut self) -> u64 {
        self.seen.seq += 1;
        self.seen.seq
    }

    pub(crate) fn take_change(&mut self) -> u64 {
        self.seen.changes += 1;
        self.seen.changes
    }

    /// The newest numbers given out.
    pub(crate) fn last(self) -> Seen {
        self.seen
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
        shared.beats.doubt();
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

/// Claims and their ends are applied to the maps one by one. Everything else about an instance drops its maps, which are
/// loaded anew when they are needed.
fn follow_events(connection: &mut Connection, seq: u64, maps: &mut PortMaps) -> Result<(), StoreError> {
    // The ports of one release rest equally long, so the first one tells; if it was released once more in between, the
    // others rest a moment too long in this map.
    //
    // Look-ups for each event and a limit, and no joins: PostgreSQL makes one plan for every `$1`, expects a third of
    // the log after it, and would read all reservations for the few events there are.
    let sql = "select e.kind, e.instance, e.protocol, e.first_port, e.last_port, \
               (select r.scope from reservation r where r.id = e.reservation), \
               (select q.until_at from quarantine q \
               where q.space = e.instance and q.protocol = e.protocol and q.port = e.first_port), \
               (select q.until_at from quarantine q \
               where q.space = 'fleet' and q.protocol = e.protocol and q.port = e.first_port) \
               from event e where e.seq > $1 order by e.seq limit $2";
    for mut row in connection.query(sql, values![seq, MOST_EVENTS])? {
        let (kind, place): (EventKind, Option<Space>) = (row.take()?, row.take()?);
        let ports = Ports::take(&mut row)?;
        let (scope, here, anywhere): (Option<Scope>, Option<Timestamp>, Option<Timestamp>) =
            (row.take()?, row.take()?, row.take()?);
        let (space, until) = match scope {
            Some(Scope::Fleet) => (Some(Space::Fleet), anywhere),
            _ => (place, here),
        };
        match (kind, space, ports) {
            (EventKind::Reserved | EventKind::Adopted, Some(space), Some(Ports { protocol, range })) => {
                maps.claim(space, protocol, range);
            }
            (EventKind::Released | EventKind::Expired, Some(space), Some(Ports { protocol, range })) => {
                maps.release(space, protocol, range, until.unwrap_or(Timestamp::from_micros(0)));
            }
            (
                EventKind::Renewed
                | EventKind::Edited
                | EventKind::Split
                | EventKind::Expiring
                | EventKind::ConflictBegan
                | EventKind::ConflictEnded
                | EventKind::Offline
                | EventKind::Online,
                ..,
            ) => {}
            (EventKind::IgnoreSet | EventKind::IgnoreDeleted, ..) => maps.ignores = None,
            (EventKind::PoolSet | EventKind::PoolDeleted, ..) => maps.pools = None,
            _ => {
                if let Some(Space::Instance(instance)) = place {
                    maps.forget(instance);
                }
            }
        }
    }
    Ok(())
}

/// The ports that an event is about.
struct Ports {
    protocol: Protocol,
    range: PortRange,
}

impl Ports {
    fn take(row: &mut Row) -> Result<Option<Ports>, StoreError> {
        let (protocol, first, last): (Option<Protocol>, Option<Port>, Option<Port>) =
            (row.take()?, row.take()?, row.take()?);
        let range = first.zip(last).and_then(|(first, last)| PortRange::new(first, last).ok());
        Ok(protocol.zip(range).map(|(protocol, range)| Ports { protocol, range }))
    }
}
