//! Pools: set, deleted, listed. What they mean for a request is in `reserve` and `pick`, how full they are in `pool_use`.
//!
//! Nothing here touches a reservation: what was drawn from a pool stays as it is, whatever becomes of the pool.

use gk_model::access::Actor;
use gk_model::history::EventKind;
use gk_model::pool::{Pool, PoolChange, PoolSpec, PoolStatus};
use gk_model::query::{Page, PoolQuery};
use gk_model::text::PoolName;
use gk_model::time::Timestamp;

use crate::error::{Error, Refusal, StoreError};
use crate::membership::check_version;
use crate::page::{self, Filters};
use crate::pool_cache::default_name;
use crate::pool_use::UseChange;
use crate::rows::Row;
use crate::tx::{Reader, Tx};
use crate::value::{Json, values};

/// How many pools there may be: each reserve looks at all of them.
const MOST: usize = 1000;

const SELECT: &str = "select name, ranges, exclude, scope, pick, quarantine_seconds, instances, ephemeral, note, version from pool";

fn read_pool(mut row: Row) -> Result<Pool, StoreError> {
    let name = row.take()?;
    let (Json(ranges), Json(exclude)) = (row.take()?, row.take()?);
    Ok(Pool {
        name,
        ranges,
        exclude,
        scope: row.take()?,
        pick: row.take()?,
        quarantine_seconds: row.take()?,
        instances: row.take()?,
        ephemeral: row.take()?,
        note: row.take()?,
        version: row.take()?,
    })
}

impl Reader<'_> {
    /// Pools by name, with how full they are.
    ///
    /// # Errors
    /// [`Refusal::BadCursor`].
    pub fn list_pools(&mut self, query: &PoolQuery) -> Result<Page<PoolStatus>, Error> {
        let after = query.cursor.as_deref().map(page::part::<PoolName>).transpose()?;
        let filters = Filters::new("version > 0", &[]).and("name > $?", after.as_ref());
        let (sql, values) = filters.finish(SELECT, "name", query.limit());
        let rows = self.query(&sql, &values)?;
        let read = |row| read_pool(row).and_then(|pool| self.fill_in(pool));
        page::page(rows, query.limit(), read, |last| page::cursor(&[&last.pool.name]))
    }

    /// One pool, with how full it is.
    ///
    /// # Errors
    /// [`Refusal::NoSuchPool`].
    pub fn get_pool(&mut self, name: &PoolName) -> Result<PoolStatus, Error> {
        let row = self.query_one(&format!("{SELECT} where name = $1"), values![name])?;
        let pool = read_pool(row.ok_or_else(|| Refusal::NoSuchPool(name.clone()))?)?;
        Ok(self.fill_in(pool)?)
    }

    pub(crate) fn list_all_pools(&mut self) -> Result<Vec<Pool>, StoreError> {
        let rows = self.query(&format!("{SELECT} order by name"), &[])?;
        rows.into_iter().map(read_pool).collect()
    }

    /// What a change of this pool left outside: live reservations that were drawn from it and have ports it does not give
    /// any more. Looks at all that is live, so it is not for the writer.
    ///
    /// # Errors
    /// [`Error::Failed`] only.
    pub fn find_outside(&mut self, pool: Pool) -> Result<PoolChange, Error> {
        let (outside, first_outside) = self.list_outside(&pool.name, PoolChange::SHOWN)?;
        Ok(PoolChange { pool, outside, first_outside })
    }
}

impl Tx<'_> {
    /// Makes a pool what the request says, whether it was there before or not; the same again changes nothing. Answers
    /// whether it is new.
    ///
    /// # Errors
    /// [`Refusal::Contradiction`], [`Refusal::NoSuchPool`] and [`Refusal::VersionMismatch`] where a version is insisted
    /// on, [`Refusal::PoolOverlaps`].
    pub fn set_pool(
        &mut self,
        actor: &Actor,
        name: &PoolName,
        spec: &PoolSpec,
        if_version: Option<u64>,
        now: Timestamp,
    ) -> Result<(Pool, bool), Error> {
        spec.check().map_err(Refusal::Contradiction)?;
        let pools = self.pools()?;
        let before = pools.find(name).map(|source| &source.pool);
        match before {
            Some(before) => check_version(if_version, before.version)?,
            None if if_version.is_some() => return Err(Refusal::NoSuchPool(name.clone()).into()),
            None if pools.iter().count() >= MOST => {
                return Err(Refusal::contradiction("name", "there are 1000 pools: delete one first").into());
            }
            None => {}
        }
        if let Some((other, ports)) = pools.find_overlap(&spec.ports(), spec.scope, name) {
            let (other, other_scope) = (other.pool.name.clone(), other.pool.scope);
            let name = name.clone();
            return Err(Refusal::PoolOverlaps { name, scope: spec.scope, other, other_scope, ports }.into());
        }
        if let Some(same) = before.filter(|before| before.spec() == *spec) {
            return Ok((same.clone(), false));
        }
        let pool = spec.clone().named(name.clone(), before.map_or(1, |before| before.version + 1));
        self.insert_pool(&pool)?;
        if before.is_none_or(|before| before.ports() != pool.ports()) {
            self.insert_ranges(&pool)?;
        }
        let message = format!("pool {name} set by {}: {}", actor.subject, pool.describe());
        self.record_pool(EventKind::PoolSet, actor, message, now)?;
        Ok((pool, before.is_none()))
    }

    /// Deletes a pool. Answers what it was.
    ///
    /// # Errors
    /// [`Refusal::DefaultPoolStays`], [`Refusal::NoSuchPool`], [`Refusal::VersionMismatch`].
    pub fn delete_pool(
        &mut self,
        actor: &Actor,
        name: &PoolName,
        if_version: Option<u64>,
        now: Timestamp,
    ) -> Result<Pool, Error> {
        if *name == default_name() {
            return Err(Refusal::DefaultPoolStays.into());
        }
        let pool = self.pools()?.get(Some(name))?.pool.clone();
        check_version(if_version, pool.version)?;
        self.later("delete from pool where name = $1", values![name])?;
        self.later("delete from pool_range where pool = $1", values![name])?;
        self.uses.push(UseChange::Recount(name.clone()));
        let message = format!("pool {name} deleted by {}: {}", actor.subject, pool.describe());
        self.record_pool(EventKind::PoolDeleted, actor, message, now)?;
        Ok(pool)
    }

    fn insert_pool(&mut self, pool: &Pool) -> Result<(), StoreError> {
        self.later(
            "insert into pool (name, ranges, exclude, scope, pick, quarantine_seconds, instances, ephemeral, note, \
             version) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
             on conflict (name) do update set ranges = excluded.ranges, exclude = excluded.exclude, \
             scope = excluded.scope, pick = excluded.pick, quarantine_seconds = excluded.quarantine_seconds, \
             instances = excluded.instances, ephemeral = excluded.ephemeral, note = excluded.note, \
             version = excluded.version",
            values![
                &pool.name,
                Json(&pool.ranges),
                Json(&pool.exclude),
                pool.scope,
                pool.pick,
                pool.quarantine_seconds,
                pool.instances.as_ref(),
                pool.ephemeral,
                pool.note.as_ref(),
                pool.version,
            ],
        )
    }

    fn insert_ranges(&mut self, pool: &Pool) -> Result<(), StoreError> {
        self.later("delete from pool_range where pool = $1", values![&pool.name])?;
        for range in pool.ports().ranges() {
            self.later(
                "insert into pool_range (pool, first_port, last_port) values ($1, $2, $3)",
                values![&pool.name, range.first(), range.last()],
            )?;
        }
        self.uses.push(UseChange::Recount(pool.name.clone()));
        Ok(())
    }

    /// Whoever has the pools cached forgets them: this server here, the others by the event.
    fn record_pool(
        &mut self,
        kind: EventKind,
        actor: &Actor,
        message: String,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.maps.pools = None;
        self.record_change(kind, actor, message, now)
    }
}
