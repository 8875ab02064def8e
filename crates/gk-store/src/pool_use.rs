//! How full pools are: one count for each space, protocol and pool, of the claims on the pool's numbers; and one of all
//! spaces together, which a list would else sum up.
//!
//! A batch notes what it claims and gives back, and writes the sums down at its end: each count that changed once, however
//! many reservations did it. Statements in between would also keep the inserts of a batch from travelling together.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use gk_model::id::InstanceId;
use gk_model::instance::InstanceLink;
use gk_model::pool::{Fullest, Pool, PoolStatus};
use gk_model::port::{PortRange, Protocol};
use gk_model::text::PoolName;

use crate::error::{Error, StoreError};
use crate::space::{Space, take_link};
use crate::tx::{Reader, Tx};
use crate::value::{Value, values};

/// How many counts a statement writes: few sizes, because each is another text to prepare.
const AT_ONCE: [usize; 3] = [64, 8, 1];

/// Of each pool and protocol: all that is taken, the most of one instance, and what is fleet-wide.
const FILLS: &str = "select pool, protocol, cast(sum(taken) as bigint), \
                     cast(max(case when space = 'fleet' then 0 else taken end) as bigint), \
                     cast(sum(case when space = 'fleet' then taken else 0 end) as bigint) \
                     from pool_use group by pool, protocol order by pool, protocol";

/// What is counted apart.
type Count = (Space, Protocol, PoolName);

/// How full a pool is for one protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolFill {
    /// Which pool.
    pub pool: PoolName,
    /// How many numbers it has.
    pub size: u32,
    /// The protocol.
    pub protocol: Protocol,
    /// How many of them are claimed on all instances together; what is fleet-wide counts once.
    pub taken: u64,
    /// How many are missing on the instance where fewest are left.
    pub fullest: u64,
}

/// Something in a batch that changes how full pools are.
pub(crate) enum UseChange {
    /// Ports were claimed.
    Claimed(Space, Protocol, PortRange),
    /// Claims ended.
    Freed(Space, Protocol, PortRange),
    /// A pool has other numbers, or is gone.
    Recount(PoolName),
    /// An instance left, and claims nothing any more.
    Left(InstanceId),
}

impl Tx<'_> {
    /// Writes down what the batch changed.
    pub(crate) fn count_uses(&mut self) -> Result<(), StoreError> {
        let changes = std::mem::take(self.uses);
        if changes.is_empty() {
            return Ok(());
        }
        let (mut recounted, mut left) = (BTreeSet::new(), BTreeSet::new());
        for change in &changes {
            match change {
                UseChange::Recount(pool) => drop(recounted.insert(pool)),
                UseChange::Left(instance) => drop(left.insert(*instance)),
                UseChange::Claimed(..) | UseChange::Freed(..) => {}
            }
        }
        recounted.iter().try_for_each(|pool| self.recount(pool))?;
        let mut sums: Vec<_> = self.sum_up(&changes)?.into_iter().collect();
        sums.retain(|((.., pool), _)| !recounted.contains(pool));
        self.add_up_totals(&sums)?;
        sums.retain(|((space, ..), taken)| {
            let is_gone = matches!(space, Space::Instance(instance) if left.contains(instance));
            *taken != 0 && !is_gone
        });
        self.add_up(&sums)?;
        left.iter()
            .try_for_each(|instance| self.later("delete from pool_use where space = $1", values![*instance]))
    }

    /// Adds to the counts, each of which is there once.
    fn add_up(&mut self, mut sums: &[(Count, i64)]) -> Result<(), StoreError> {
        while let Some(size) = AT_ONCE.into_iter().find(|size| *size <= sums.len()) {
            let (some, rest) = sums.split_at(size);
            let row = |row: usize| format!("(${}, ${}, ${}, ${})", row + 1, row + 2, row + 3, row + 4);
            let rows: Vec<String> = (0..size).map(|index| row(4 * index)).collect();
            let sql = format!(
                "insert into pool_use (space, protocol, pool, taken) values {} on conflict (space, protocol, pool) \
                 do update set taken = pool_use.taken + excluded.taken",
                rows.join(", ")
            );
            let values: Vec<Value> = some
                .iter()
                .flat_map(|((space, protocol, pool), taken)| {
                    [Value::from(*space), Value::from(*protocol), Value::from(pool), Value::from(*taken)]
                })
                .collect();
            self.later(&sql, &values)?;
            sums = rest;
        }
        Ok(())
    }

    /// Adds the counts of all spaces to those of the pools; of an instance that left, what it gave back.
    fn add_up_totals(&mut self, sums: &[(Count, i64)]) -> Result<(), StoreError> {
        let mut totals: BTreeMap<(&PoolName, Protocol), i64> = BTreeMap::new();
        for ((_, protocol, pool), taken) in sums {
            *totals.entry((pool, *protocol)).or_default() += taken;
        }
        totals.retain(|_, taken| *taken != 0);
        totals.into_iter().try_for_each(|((pool, protocol), taken)| {
            self.later(
                "insert into pool_total (pool, protocol, taken) values ($1, $2, $3) on conflict (pool, protocol) \
                 do update set taken = pool_total.taken + excluded.taken",
                values![pool, protocol, taken],
            )
        })
    }

    /// What the claims of a batch change about each count.
    fn sum_up(&mut self, changes: &[UseChange]) -> Result<HashMap<Count, i64>, StoreError> {
        let (pools, mut sums) = (self.pools()?, HashMap::new());
        for change in changes {
            let (space, protocol, ports, sign) = match change {
                UseChange::Claimed(space, protocol, ports) => (*space, *protocol, *ports, 1),
                UseChange::Freed(space, protocol, ports) => (*space, *protocol, *ports, -1),
                UseChange::Recount(_) | UseChange::Left(_) => continue,
            };
            for source in pools.iter() {
                let count = i64::from(source.ports.count_in(ports));
                if count > 0 {
                    *sums.entry((space, protocol, source.pool.name.clone())).or_default() += sign * count;
                }
            }
        }
        Ok(sums)
    }

    /// Counts a pool anew, from the claims.
    fn recount(&mut self, pool: &PoolName) -> Result<(), StoreError> {
        self.later("delete from pool_use where pool = $1", values![pool])?;
        self.later(
            "insert into pool_use (space, protocol, pool, taken) select c.space, c.protocol, r.pool, count(*) \
             from pool_range r join claim c on c.protocol in ('tcp', 'udp') \
             and c.port between r.first_port and r.last_port \
             where r.pool = $1 group by c.space, c.protocol, r.pool",
            values![pool],
        )?;
        self.later("delete from pool_total where pool = $1", values![pool])?;
        self.later(
            "insert into pool_total (pool, protocol, taken) \
             select pool, protocol, cast(sum(taken) as bigint) from pool_use where pool = $1 group by pool, protocol",
            values![pool],
        )
    }
}

impl Reader<'_> {
    /// How full every pool is, by name and protocol. Reads the counts once, which are as many as instances that claim
    /// anything, whatever listens there.
    ///
    /// # Errors
    /// Only when the database fails.
    pub fn list_pool_fills(&mut self) -> Result<Vec<PoolFill>, Error> {
        let mut counts: HashMap<(PoolName, Protocol), [u64; 3]> = HashMap::new();
        for mut row in self.query(FILLS, &[])? {
            let key = (row.take()?, row.take()?);
            counts.insert(key, [row.take()?, row.take()?, row.take()?]);
        }
        let mut fills = Vec::new();
        for pool in self.list_all_pools()? {
            let size = pool.ports().len();
            for protocol in Protocol::ALL {
                let key = (pool.name.clone(), *protocol);
                let [taken, most, everywhere] = counts.get(&key).copied().unwrap_or_default();
                // What is fleet-wide is missing on each instance.
                fills.push(PoolFill {
                    pool: key.0,
                    size,
                    protocol: *protocol,
                    taken,
                    fullest: most + everywhere,
                });
            }
        }
        Ok(fills)
    }

    /// A pool, with how full it is.
    pub(crate) fn fill_in(&mut self, pool: Pool) -> Result<PoolStatus, StoreError> {
        let size = pool.ports().len();
        let sql = "select cast(coalesce(sum(taken), 0) as bigint) from pool_total where pool = $1";
        let reserved = self.query_one(sql, values![&pool.name])?.map_or(Ok(0), |mut row| row.take())?;
        let mut fullest: Option<Fullest> = None;
        for protocol in Protocol::ALL {
            let found = self.find_fullest(&pool.name, size, *protocol)?;
            if found.as_ref().is_some_and(|new| fullest.as_ref().is_none_or(|old| new.left < old.left)) {
                fullest = found;
            }
        }
        Ok(PoolStatus { pool, size, reserved, fullest })
    }

    /// Fleet-wide claims are missing everywhere, so the instance with most claims of its own has the fewest ports left.
    fn find_fullest(
        &mut self,
        pool: &PoolName,
        size: u32,
        protocol: Protocol,
    ) -> Result<Option<Fullest>, StoreError> {
        let sql = "select taken from pool_use where space = 'fleet' and protocol = $1 and pool = $2";
        let everywhere = self.query_one(sql, values![protocol, pool])?;
        let everywhere: u64 = everywhere.map_or(Ok(0), |mut row| row.take())?;
        let sql = "select u.taken, u.space, n.name from pool_use u left join instance n on n.id = u.space \
                   where u.pool = $1 and u.protocol = $2 and u.taken > 0 and u.space <> 'fleet' \
                   order by u.taken desc, u.space desc limit 1";
        let (mut own, mut instance): (u64, Option<InstanceLink>) = (0, None);
        if let Some(mut row) = self.query_one(sql, values![pool, protocol])? {
            own = row.take()?;
            instance = take_link(&mut row)?;
        }
        let left = u64::from(size).saturating_sub(own + everywhere);
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        Ok((own + everywhere > 0).then_some(Fullest { instance, protocol, left }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::plan;

    #[test]
    fn how_full_all_pools_are_is_read_from_the_index_alone_and_in_its_order() {
        let plan = plan(FILLS, &[]);
        assert!(plan.contains("COVERING INDEX pool_use_fullest") && !plan.contains("TEMP B-TREE"), "{plan}");
    }

    #[test]
    fn the_fullest_instance_is_found_without_a_look_at_the_others() {
        let sql = "select u.taken, u.space from pool_use u where u.pool = $1 and u.protocol = $2 and u.taken > 0 \
                   and u.space <> 'fleet' order by u.taken desc, u.space desc limit 1";
        let plan = plan(sql, values!["web", "tcp"]);
        assert!(plan.contains("pool_use_fullest") && !plan.contains("TEMP B-TREE"), "{plan}");
    }
}
