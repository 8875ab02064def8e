//! Instances, read: one, or a list. How they come and go is in `membership`.

use gk_model::facts::Facts;
use gk_model::id::{InstanceId, InstanceRef};
use gk_model::instance::{Instance, InstanceLink, Presence};
use gk_model::labels::{Labels, Selector};
use gk_model::query::{InstanceQuery, Page};
use gk_model::text::InstanceName;
use gk_model::time::Timestamp;

use crate::error::{Error, Refusal, StoreError};
use crate::page::{self, Filters};
use crate::rows::Row;
use crate::tx::Reader;
use crate::value::{Json, values};

const COLUMNS: &str =
    "id, name, labels, facts, joined_at, left_at, last_contact_at, observed_at, forget_after, version";

/// Names are unique without regard to case; this is what is compared.
pub(crate) fn name_key(name: &InstanceName) -> String {
    name.as_str().to_lowercase()
}

impl Reader<'_> {
    /// One instance, by id or by the name of a joined one.
    ///
    /// # Errors
    /// [`Refusal::NoSuchInstance`].
    pub fn get_instance(&mut self, instance: &InstanceRef, now: Timestamp) -> Result<Instance, Error> {
        let found = match instance {
            InstanceRef::Id(id) => {
                self.query_one(&format!("select {COLUMNS} from instance where id = $1"), values![*id])?
            }
            InstanceRef::Name(name) => self.query_one(
                &format!("select {COLUMNS} from instance where name_key = $1 and left_at is null"),
                values![name_key(name)],
            )?,
        };
        let row = found.ok_or_else(|| Refusal::NoSuchInstance(instance.clone()))?;
        Ok(self.read_instance(row, now)?)
    }

    /// One instance that has not left.
    ///
    /// # Errors
    /// [`Refusal::NoSuchInstance`], [`Refusal::InstanceLeft`].
    pub(crate) fn get_joined(&mut self, instance: &InstanceRef, now: Timestamp) -> Result<Instance, Error> {
        let found = self.get_instance(instance, now)?;
        match found.left_at {
            None => Ok(found),
            Some(_) => Err(Refusal::InstanceLeft(link(&found)).into()),
        }
    }

    /// Instances by name; those that have left only when asked for.
    ///
    /// # Errors
    /// [`Refusal::BadCursor`].
    pub fn list_instances(&mut self, query: &InstanceQuery, now: Timestamp) -> Result<Page<Instance>, Error> {
        let (after_key, after_id) = match &query.cursor {
            Some(cursor) => {
                let [key, id] = page::parts(cursor)?;
                (key.to_owned(), page::part::<InstanceId>(id)?.to_string())
            }
            None => (String::new(), String::new()),
        };
        let members = match query.presence {
            Some(Presence::Left) => "left_at is not null and (name_key, id) > ($1, $2)",
            _ => "left_at is null and (name_key, id) > ($1, $2)",
        };
        let chosen = self.choose(query.label.as_ref())?;
        let mut found: Vec<Instance> = Vec::new();
        let (mut key, mut id) = (after_key, after_id);
        // Presence is computed, so it cannot be asked for in SQL: read on until the page is full.
        loop {
            let filters = Filters::new(members, values![key.as_str(), id.as_str()])
                .and("name_key = $?", query.name.as_ref().map(|name| name.to_lowercase()))
                .and("name_key like $? escape '~'", query.q.as_ref().map(|text| page::contains(text)))
                .and_chosen("", chosen.as_ref());
            let select = format!("select {COLUMNS} from instance");
            let (sql, values) = filters.finish(&select, "name_key, id", query.limit());
            let rows = self.query(&sql, &values)?;
            let complete = rows.len() as u64 <= u64::from(query.limit());
            for row in rows {
                let instance = self.read_instance(row, now)?;
                (key, id) = (name_key(&instance.name), instance.id.to_string());
                if query.presence.is_none_or(|presence| presence == instance.presence) {
                    found.push(instance);
                }
            }
            if complete || found.len() > query.limit() as usize {
                let cursor_of = |last: &Instance| page::cursor(&[&name_key(&last.name), &last.id]);
                return page::page(found, query.limit(), Ok, cursor_of);
            }
        }
    }

    /// The first joined instances with such labels, by name.
    pub(crate) fn list_chosen(
        &mut self,
        selector: &Selector,
        most: u16,
    ) -> Result<Vec<InstanceLink>, StoreError> {
        let chosen = self.choose(Some(selector))?;
        let filters = Filters::new("left_at is null", &[]).and_chosen("", chosen.as_ref());
        let (sql, values) = filters.finish("select id, name from instance", "name_key, id", most.into());
        let rows = self.query(&sql, &values)?;
        rows.into_iter().map(|mut row| Ok(InstanceLink { id: row.take()?, name: row.take()? })).collect()
    }

    fn read_instance(&self, mut row: Row, now: Timestamp) -> Result<Instance, StoreError> {
        let id: InstanceId = row.take()?;
        let name = row.take()?;
        let Json(labels): Json<Labels> = row.take()?;
        let Json(facts): Json<Facts> = row.take()?;
        let (joined_at, left_at): (Timestamp, Option<Timestamp>) = (row.take()?, row.take()?);
        let mut last_contact_at: Option<Timestamp> = row.take()?;
        let mut observed_at: Option<Timestamp> = row.take()?;
        let (forget_after_seconds, version) = (row.take()?, row.take()?);
        if let Some(times) = self.shared.beats.times(id).filter(|_| left_at.is_none()) {
            last_contact_at = last_contact_at.max(Some(times.last_contact_at));
            observed_at = observed_at.max(times.observed_at);
        }
        let presence = match left_at {
            Some(_) => Presence::Left,
            None => Presence::of(last_contact_at, self.shared.started_at, now),
        };
        Ok(Instance {
            id,
            name,
            presence,
            labels,
            facts,
            joined_at,
            left_at,
            last_contact_at,
            observed_at,
            forget_after_seconds,
            version,
        })
    }
}

/// Id and name of an instance.
pub(crate) fn link(instance: &Instance) -> InstanceLink {
    InstanceLink { id: instance.id, name: instance.name.clone() }
}
