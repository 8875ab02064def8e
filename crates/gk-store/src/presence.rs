//! The edges of presence: each instance that goes offline, and each that is back, is one event.
//!
//! Presence itself is computed when somebody asks. `offline` is found by a job of every server, and written by whichever
//! is first: under the writer's lock the others find that it is done. `online` is written with the contact that ends it,
//! which goes through the database because the job made everybody forget that it need not.

use gk_model::history::EventKind;
use gk_model::id::InstanceId;
use gk_model::instance::OFFLINE_AFTER;
use gk_model::text::Subject;
use gk_model::time::Timestamp;

use crate::Store;
use crate::beats::BeatChange;
use crate::error::{Error, StoreError};
use crate::leases::server;
use crate::tx::{NewEvent, Reader, Tx};
use crate::value::values;

/// An instance that counts as online, and of which nothing is heard.
struct Silent {
    id: InstanceId,
    name: String,
    last_contact_at: Timestamp,
}

/// What is known of those that count as online. One that was never in contact has never been online.
const ONLINE: &str = "select id, name, last_contact_at from instance \
                      where left_at is null and offline_since is null and last_contact_at is not null";

impl Reader<'_> {
    /// The instances that are offline at `now` and still count as online. Asked every few seconds only: PostgreSQL, whose
    /// statistics of a time are always old, reads every joined one for it.
    fn list_gone(&mut self, now: Timestamp) -> Result<Vec<InstanceId>, Error> {
        let sql = format!("{ONLINE} and last_contact_at <= $1 order by id");
        let rows = self.query(&sql, values![now.minus(OFFLINE_AFTER)])?;
        let mut gone = Vec::new();
        for row in rows {
            gone.extend(self.read_silent(row, now)?.map(|silent| silent.id));
        }
        Ok(gone)
    }

    fn read_silent(&self, mut row: crate::rows::Row, now: Timestamp) -> Result<Option<Silent>, StoreError> {
        let (id, name, stored): (InstanceId, String, Timestamp) = (row.take()?, row.take()?, row.take()?);
        let last_contact_at =
            stored.max(self.shared.beats.times(id).map_or(stored, |times| times.last_contact_at));
        let since = last_contact_at.max(self.shared.started_at);
        let is_silent = now.since(since) >= OFFLINE_AFTER;
        Ok(is_silent.then_some(Silent { id, name, last_contact_at }))
    }
}

impl Tx<'_> {
    /// Writes down that an instance is offline, unless it was heard of or somebody else has done so meanwhile.
    fn mark_offline(&mut self, id: InstanceId, now: Timestamp) -> Result<bool, Error> {
        let Some(row) = self.query_one(&format!("{ONLINE} and id = $1"), values![id])? else {
            return Ok(false);
        };
        let Some(Silent { name, last_contact_at, .. }) = self.read_silent(row, now)? else {
            return Ok(false);
        };
        let at = last_contact_at.max(self.shared.started_at).plus(OFFLINE_AFTER);
        let message = format!("{name} is offline: last heard of at {last_contact_at}");
        self.record_edge(EventKind::Offline, id, &server(), message, (at, now))?;
        // What memory knows better than the database goes with what is forgotten.
        let times = self.shared.beats.times(id).map(|times| (id, times));
        self.update_contact_times(times.as_slice())?;
        self.later("update instance set offline_since = $2 where id = $1", values![id, last_contact_at])?;
        self.beats.push(BeatChange::Silent(id));
        // Other servers may answer its heartbeats from memory.
        self.note_change(id)?;
        Ok(true)
    }

    /// Writes down that an instance is heard of again.
    pub(crate) fn record_online(
        &mut self,
        id: InstanceId,
        subject: &Subject,
        offline_since: Timestamp,
        now: Timestamp,
    ) -> Result<(), Error> {
        let message = format!("online again; it was last heard of at {offline_since}");
        Ok(self.record_edge(EventKind::Online, id, subject, message, (now, now))?)
    }

    fn record_edge(
        &mut self,
        kind: EventKind,
        id: InstanceId,
        by: &Subject,
        message: String,
        (at, recorded_at): (Timestamp, Timestamp),
    ) -> Result<(), StoreError> {
        let edge = NewEvent {
            at,
            recorded_at,
            kind,
            instance: Some(id.into()),
            ports: None,
            by: by.into(),
            reservation: None,
            listener: None,
            message,
        };
        self.record(edge).map(|_seq| ())
    }
}

impl Store {
    /// Writes an event for each instance that has become offline, and answers how many there were. While there is none,
    /// this only reads.
    ///
    /// # Errors
    /// Only when the database fails.
    pub async fn mark_offline(&self, now: Timestamp) -> Result<u64, Error> {
        let gone = self.read(move |reader| reader.list_gone(now)).await?;
        let mut marked = 0;
        // Some at a time: a whole fleet may be gone at once.
        for some in gone.chunks(500) {
            let some = some.to_vec();
            marked += self
                .write(move |tx| {
                    let mut marked = 0;
                    for id in &some {
                        marked += u64::from(tx.mark_offline(*id, now)?);
                    }
                    Ok(marked)
                })
                .await?;
        }
        Ok(marked)
    }
}
