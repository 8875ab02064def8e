//! Instances that are silent for longer than their join token allows leave by themselves.
//!
//! Presence never frees anything (rule 1 of the domain): one that holds a reservation stays until that is released. How
//! long is long enough after a start, or a step of the clock, is for the caller to say, who knows time that never steps.

use gk_model::access::{Actor, Authority, Role};
use gk_model::id::InstanceId;
use gk_model::time::Timestamp;

use crate::Store;
use crate::error::{Error, StoreError};
use crate::leases::server;
use crate::tx::{Reader, Tx};
use crate::value::values;

/// How many are told at once.
const MOST: u32 = 1000;

impl Reader<'_> {
    /// The instances that may leave by themselves at `now`: silent for too long, and without reservations.
    ///
    /// # Errors
    /// Only when the database fails.
    pub fn list_silent(&mut self, now: Timestamp) -> Result<Vec<InstanceId>, Error> {
        let sql = "select i.id from instance i where i.left_at is null and i.forget_after is not null \
                   and coalesce(i.last_contact_at, i.joined_at) + i.forget_after * 1000000 <= $1 \
                   and not exists (select 1 from reservation r where r.instance = i.id and r.released_at is null) \
                   order by i.id limit $2";
        let rows = self.query(sql, values![now, MOST])?;
        Ok(rows.into_iter().map(|mut row| row.take()).collect::<Result<_, StoreError>>()?)
    }
}

impl Store {
    /// Lets those of these instances leave that are still silent, and answers how many.
    ///
    /// # Errors
    /// Only when the database fails.
    pub async fn forget_silent(&self, instances: Vec<InstanceId>, now: Timestamp) -> Result<u64, Error> {
        let actor = Actor::new(server(), Authority::Role(Role::Admin));
        let forget = move |tx: &mut Tx<'_>| {
            let mut silent = tx.list_silent(now)?;
            silent.retain(|id| instances.contains(id));
            for id in &silent {
                tx.leave(&actor, &(*id).into(), false, None, now)?;
            }
            Ok(silent.len() as u64)
        };
        self.write(forget).await
    }
}
