//! Instances: joining, refreshing, renaming, leaving, finding.

use gk_model::access::{Actor, Authority};
use gk_model::facts::Facts;
use gk_model::history::EventKind;
use gk_model::id::{InstanceId, InstanceRef};
use gk_model::instance::{Instance, InstanceLink, JoinRequest, Presence};
use gk_model::listener::Digest;
use gk_model::query::{InstanceQuery, Page};
use gk_model::text::{InstanceName, Subject};
use gk_model::time::Timestamp;

use crate::error::{Error, Refusal, StoreError};
use crate::page;
use crate::tx::{NewEvent, Reader, Tx};
use crate::value::{Json, Row, values};

const COLUMNS: &str = "id, name, facts, joined_at, left_at, last_contact_at, observed_at, version";

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
        let left = query.presence == Some(Presence::Left);
        let mut found: Vec<Instance> = Vec::new();
        let (mut key, mut id) = (after_key, after_id);
        // Presence is computed, so it cannot be asked for in SQL: read on until the page is full.
        loop {
            let rows = self.query(
                &format!(
                    "select {COLUMNS} from instance where (name_key, id) > ($1, $2) \
                     and (left_at is null) = (cast($3 as bigint) = 0) \
                     and (cast($4 as text) is null or name_key = $4) \
                     and (cast($5 as text) is null or name_key like $5 escape '~') order by name_key, id limit $6"
                ),
                values![
                    key.clone(),
                    id.clone(),
                    left,
                    query.name.as_ref().map(|name| name.to_lowercase()),
                    query.q.as_ref().map(|text| page::contains(text)),
                    query.limit() + 1,
                ],
            )?;
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

    fn read_instance(&self, mut row: Row, now: Timestamp) -> Result<Instance, StoreError> {
        let id: InstanceId = row.take()?;
        let name = row.take()?;
        let Json(facts): Json<Facts> = row.take()?;
        let (joined_at, left_at): (Timestamp, Option<Timestamp>) = (row.take()?, row.take()?);
        let mut last_contact_at: Option<Timestamp> = row.take()?;
        let mut observed_at: Option<Timestamp> = row.take()?;
        let version = row.take()?;
        if let Some(times) = self.shared.beats.times(id).filter(|_| left_at.is_none()) {
            last_contact_at = last_contact_at.max(Some(times.last_contact_at));
            observed_at = observed_at.max(times.observed_at);
        }
        let presence = match left_at {
            Some(_) => Presence::Left,
            None => Presence::of(last_contact_at, self.shared.started_at, now),
        };
        Ok(Instance { id, name, presence, facts, joined_at, left_at, last_contact_at, observed_at, version })
    }

    /// The joined instance with the same boot and network namespace, but for `except`.
    fn find_same_stack(
        &mut self,
        facts: &Facts,
        except: Option<InstanceId>,
    ) -> Result<Option<InstanceLink>, StoreError> {
        let (Some(boot_id), Some(inode)) = (facts.boot_id, facts.netns_inode) else { return Ok(None) };
        let rows = self.query(
            "select id, name from instance where boot_id = $1 and netns_inode = $2 and left_at is null",
            values![boot_id, inode],
        )?;
        let links = rows.into_iter().map(|mut row| Ok(InstanceLink { id: row.take()?, name: row.take()? }));
        let links = links.collect::<Result<Vec<_>, StoreError>>()?;
        Ok(links.into_iter().find(|link| Some(link.id) != except))
    }

    fn check_name_is_free(&mut self, name: &InstanceName, except: Option<InstanceId>) -> Result<(), Error> {
        let sql = "select id from instance where name_key = $1 and left_at is null";
        let taken_by = self.query_one(sql, values![name_key(name)])?.map(|mut row| row.take()).transpose()?;
        if taken_by.is_some() && taken_by != except {
            return Err(Refusal::NameTaken(name.clone()).into());
        }
        Ok(())
    }

    /// A subject for a new instance that no joined one has: names can be reused after a rename.
    fn choose_subject(&mut self, name: &InstanceName, id: InstanceId) -> Result<Subject, StoreError> {
        let plain = format!("instance:{name}");
        let taken = "select id from instance where subject = $1 and left_at is null";
        let text = match self.query_one(taken, values![plain.as_str()])? {
            Some(_) => format!("{plain}+{id}"),
            None => plain,
        };
        text.parse().map_err(|_| StoreError::Corrupt(format!("{text} is no subject")))
    }
}

/// Id and name of an instance.
pub(crate) fn link(instance: &Instance) -> InstanceLink {
    InstanceLink { id: instance.id, name: instance.name.clone() }
}

impl Tx<'_> {
    /// Brings a machine in, refreshes the facts of one that comes with its own credential, or lets it take over the
    /// identity it lost. The second value says whether it joined anew.
    ///
    /// # Errors
    /// [`Refusal::NameTaken`]; [`Refusal::JoinTokenUsed`]; [`Refusal::AlreadyJoined`] when the same network stack is known under another identity.
    pub fn join(
        &mut self,
        actor: &Actor,
        request: &JoinRequest,
        now: Timestamp,
    ) -> Result<(Instance, bool), Error> {
        let known = match (actor.authority, &request.replace) {
            (Authority::Instance(own), _) => Some((own, false)),
            (_, Some(replaced)) => Some((self.get_joined(replaced, now)?.id, true)),
            (_, None) => None,
        };
        if let Authority::Join(token) = actor.authority {
            self.check_join_token(token)?;
        }
        let except = known.map(|(id, _)| id);
        if let Some(other) = self.find_same_stack(&request.facts, except)? {
            return Err(Refusal::AlreadyJoined(other).into());
        }
        match known {
            Some((id, replaced)) => Ok((self.refresh(actor, id, replaced, request, now)?, false)),
            None => Ok((self.create_instance(actor, request, now)?, true)),
        }
    }

    fn create_instance(
        &mut self,
        actor: &Actor,
        request: &JoinRequest,
        now: Timestamp,
    ) -> Result<Instance, Error> {
        let from_host = || InstanceName::from_host_name(request.facts.host_name.as_str());
        let name = request.name.clone().unwrap_or_else(from_host);
        self.check_name_is_free(&name, None)?;
        let id = InstanceId::generate(now);
        let subject = self.choose_subject(&name, id)?;
        self.later(
            "insert into instance (id, name, name_key, subject, credential, facts, boot_id, netns_inode, joined_at, \
             version, session, sequence, digest, occupied) \
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, 1, 0, 0, $10, '[]')",
            values![
                id,
                &name,
                name_key(&name),
                &subject,
                request.credential_hash,
                Json(&request.facts),
                request.facts.boot_id,
                request.facts.netns_inode,
                now,
                Digest::default(),
            ],
        )?;
        if let Authority::Join(token) = actor.authority {
            self.use_join_token(token, now)?;
        }
        self.record_instance(EventKind::Joined, id, actor, format!("{name} joined"), now)?;
        self.get_instance(&id.into(), now)
    }

    fn refresh(
        &mut self,
        actor: &Actor,
        id: InstanceId,
        replaced: bool,
        request: &JoinRequest,
        now: Timestamp,
    ) -> Result<Instance, Error> {
        if let Some(name) = &request.name {
            self.rename_instance(actor, &id.into(), name, None, now)?;
        }
        self.later(
            "update instance set credential = $2, facts = $3, boot_id = $4, netns_inode = $5, version = version + 1 \
             where id = $1",
            values![
                id,
                request.credential_hash,
                Json(&request.facts),
                request.facts.boot_id,
                request.facts.netns_inode,
            ],
        )?;
        self.maps.forget(id);
        if replaced {
            self.later(
                "update instance set session = 0, opening = null, sequence = 0 where id = $1",
                values![id],
            )?;
            self.shared.beats.forget(id);
            let message = "joined again in place of the lost identity".to_owned();
            self.record_instance(EventKind::Joined, id, actor, message, now)?;
        }
        self.get_instance(&id.into(), now)
    }

    /// Gives an instance another name; the same name again changes nothing.
    ///
    /// # Errors
    /// [`Refusal::NoSuchInstance`], [`Refusal::NameTaken`], [`Refusal::VersionMismatch`].
    pub fn rename_instance(
        &mut self,
        actor: &Actor,
        instance: &InstanceRef,
        name: &InstanceName,
        if_version: Option<u64>,
        now: Timestamp,
    ) -> Result<Instance, Error> {
        let before = self.get_joined(instance, now)?;
        check_version(if_version, before.version)?;
        if before.name == *name {
            return Ok(before);
        }
        self.check_name_is_free(name, Some(before.id))?;
        self.later(
            "update instance set name = $2, name_key = $3, version = version + 1 where id = $1",
            values![before.id, name, name_key(name)],
        )?;
        let message = format!("{} renamed to {name}", before.name);
        self.record_instance(EventKind::Renamed, before.id, actor, message, now)?;
        self.get_instance(&before.id.into(), now)
    }

    /// Lets an instance leave. Its history stays; what was open closes at its last contact.
    ///
    /// # Errors
    /// [`Refusal::VersionMismatch`]; [`Refusal::ReservationsLive`] unless `release`, which ends them in the same transaction.
    pub fn leave(
        &mut self,
        actor: &Actor,
        instance: &InstanceRef,
        release: bool,
        if_version: Option<u64>,
        now: Timestamp,
    ) -> Result<(), Error> {
        let leaving = self.get_joined(instance, now)?;
        check_version(if_version, leaving.version)?;
        let live = self.list_live_of(leaving.id)?;
        if !live.is_empty() && !release {
            let count = live.len() as u64;
            return Err(Refusal::ReservationsLive { instance: link(&leaving), count }.into());
        }
        for reservation in &live {
            self.end_reservation(actor, reservation, now)?;
        }
        let last_seen_at = leaving.last_contact_at.unwrap_or(now);
        self.later(
            "update interval set ended_at = $2 where ended_at is null and seq in \
             (select began_seq from listener where instance = $1)",
            values![leaving.id, last_seen_at],
        )?;
        self.later("delete from listener where instance = $1", values![leaving.id])?;
        self.later(
            "update instance set left_at = $2, credential = null, last_contact_at = $3, version = version + 1 \
             where id = $1",
            values![leaving.id, now, leaving.last_contact_at],
        )?;
        self.maps.forget(leaving.id);
        self.shared.beats.forget(leaving.id);
        self.record_instance(EventKind::Left, leaving.id, actor, format!("{} left", leaving.name), now)?;
        Ok(())
    }

    fn record_instance(
        &mut self,
        kind: EventKind,
        instance: InstanceId,
        actor: &Actor,
        message: String,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        self.record(NewEvent {
            at: now,
            recorded_at: now,
            kind,
            instance,
            ports: None,
            actor: &actor.subject,
            reservation: None,
            listener: None,
            message,
        })
    }
}

/// Refuses a change that builds on an older version of the row.
pub(crate) fn check_version(expected: Option<u64>, current: u64) -> Result<(), Refusal> {
    match expected {
        Some(version) if version != current => Err(Refusal::VersionMismatch { current }),
        _ => Ok(()),
    }
}
