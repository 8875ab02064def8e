//! Membership: how instances join, come back, are taken over, renamed, and leave.

use gk_model::access::{Actor, Authority};
use gk_model::facts::Facts;
use gk_model::history::EventKind;
use gk_model::id::{InstanceId, InstanceRef};
use gk_model::instance::{Instance, InstanceLink, InstancePatch, JoinRequest, OVERLAP, Presence};
use gk_model::labels::Labels;
use gk_model::listener::Digest;
use gk_model::secret::SecretHash;
use gk_model::text::{InstanceName, Subject};
use gk_model::time::Timestamp;
use gk_model::token::JoinTerms;

use crate::beats::BeatChange;
use crate::error::{Error, Refusal, StoreError};
use crate::instances::{link, name_key};
use crate::limits::check_labels;
use crate::pool_use::UseChange;
use crate::tx::{By, NewEvent, Reader, Tx};
use crate::value::{Json, values};

/// What a request to join is.
enum Joining {
    /// An instance that nobody knows yet.
    New,
    /// One that has joined tells its facts again; also a join whose answer was lost, and which is therefore repeated.
    Refresh(InstanceId),
    /// A machine whose credential was lost takes its old identity over.
    TakeOver(InstanceId),
}

impl Joining {
    /// The instance that has joined before.
    fn known(&self) -> Option<InstanceId> {
        match self {
            Joining::New => None,
            Joining::Refresh(known) | Joining::TakeOver(known) => Some(*known),
        }
    }
}

impl Reader<'_> {
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

    pub(crate) fn find_by_credential(
        &mut self,
        credential: SecretHash,
    ) -> Result<Option<InstanceId>, StoreError> {
        // How long the one before goes on, the door has looked at.
        let sql =
            "select id from instance where (credential = $1 or previous_credential = $1) and left_at is null";
        self.query_one(sql, values![credential])?.map(|mut row| row.take()).transpose()
    }
}

impl Tx<'_> {
    /// Tells what a request to join is, refusing what it cannot be and what this actor may not.
    fn find_joining(
        &mut self,
        actor: &Actor,
        request: &JoinRequest,
        now: Timestamp,
    ) -> Result<Joining, Error> {
        if request.replace.is_some() && !actor.is_operator() {
            return Err(Refusal::TakeOverNotYours.into());
        }
        if !request.labels.is_empty() {
            check_may_label(actor, &request.labels)?;
        }
        let joining = self.find_meant(actor, request, now)?;
        match joining.known() {
            // Whoever joins as an instance acts for it from then on, and is believed what it says of it.
            Some(known) => self.check_reach(actor, Some(known))?,
            None => check_labels(actor, &request.labels)?,
        }
        Ok(joining)
    }

    /// The same by its credential, and by what it asks to replace, whoever asks.
    fn find_meant(&mut self, actor: &Actor, request: &JoinRequest, now: Timestamp) -> Result<Joining, Error> {
        let user_of_hash = self.find_by_credential(request.credential_hash)?;
        self.check_credential(actor)?;
        if let Authority::Instance(own, _) = actor.authority {
            return match user_of_hash {
                Some(other) if other != own => Err(Refusal::CredentialTaken.into()),
                _ => Ok(Joining::Refresh(own)),
            };
        }
        match (user_of_hash, &request.replace) {
            (Some(known), None) if self.is_same_stack(known, &request.facts, now)? => {
                Ok(Joining::Refresh(known))
            }
            (Some(_), _) => Err(Refusal::CredentialTaken.into()),
            (None, Some(replaced)) => Ok(Joining::TakeOver(self.get_joined(replaced, now)?.id)),
            (None, None) => Ok(Joining::New),
        }
    }

    fn is_same_stack(&mut self, known: InstanceId, facts: &Facts, now: Timestamp) -> Result<bool, Error> {
        Ok(self.get_instance(&known.into(), now)?.facts.same_network_stack(facts))
    }

    /// Brings a machine in, refreshes the facts of one that is known by its credential, or lets it take over the
    /// identity it lost. The second value says whether it joined anew.
    ///
    /// # Errors
    /// [`Refusal::TakeOverNotYours`], [`Refusal::LabelsNotYours`], [`Refusal::BeyondLimits`], [`Refusal::NameTaken`],
    /// [`Refusal::JoinTokenUsed`], [`Refusal::CredentialTaken`], [`Refusal::CredentialReplaced`];
    /// [`Refusal::AlreadyJoined`] when the same network stack is known under another identity.
    pub fn join(
        &mut self,
        actor: &Actor,
        request: &JoinRequest,
        now: Timestamp,
    ) -> Result<(Instance, bool), Error> {
        let joining = self.find_joining(actor, request, now)?;
        if let Some(other) = self.find_same_stack(&request.facts, joining.known())? {
            return Err(Refusal::AlreadyJoined(other).into());
        }
        match joining {
            Joining::New => Ok((self.create_instance(actor, request, now)?, true)),
            Joining::Refresh(known) => Ok((self.refresh(actor, known, request, now)?, false)),
            Joining::TakeOver(known) => Ok((self.take_over(actor, known, request, now)?, false)),
        }
    }

    fn create_instance(
        &mut self,
        actor: &Actor,
        request: &JoinRequest,
        now: Timestamp,
    ) -> Result<Instance, Error> {
        let token = match actor.authority {
            Authority::Join(token) => Some(token),
            Authority::Role(_) | Authority::Instance(..) => None,
        };
        let terms = match token {
            Some(token) => self.get_join_terms(token)?,
            None => JoinTerms { labels: request.labels.clone(), ..JoinTerms::default() },
        };
        let from_host = || InstanceName::from_host_name(request.facts.host_name.as_str());
        let name = request.name.clone().unwrap_or_else(from_host);
        self.check_name_is_free(&name, None)?;
        let id = InstanceId::generate(now);
        let subject = self.choose_subject(&name, id)?;
        // The number of its event, which nothing else begins with: a version that was read of an instance of this name
        // that has left is not that of this one.
        let version =
            self.record_instance(EventKind::Joined, id, actor.into(), format!("{name} joined"), now)?;
        self.later(
            "insert into instance (id, name, name_key, subject, credential, facts, boot_id, netns_inode, joined_at, \
             version, session, sequence, digest, complete, occupied, labels, forget_after, credential_at) \
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 0, 0, $11, 0, '[]', $12, $13, $9)",
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
                version,
                Digest::default(),
                Json(&terms.labels),
                terms.forget_after_seconds,
            ],
        )?;
        self.index_labels(id, None, (&name, &terms.labels))?;
        self.counts().instances += 1;
        token.map_or(Ok(()), |token| self.use_join_token(token, now))?;
        self.get_instance(&id.into(), now)
    }

    fn refresh(
        &mut self,
        actor: &Actor,
        known: InstanceId,
        request: &JoinRequest,
        now: Timestamp,
    ) -> Result<Instance, Error> {
        if let Some(name) = &request.name {
            self.rename_instance(actor, &known.into(), name, None, now)?;
        }
        if !request.labels.is_empty() {
            self.label_instance(actor, &known.into(), &request.labels, None, now)?;
        }
        self.replace_credential(actor, known, request.credential_hash, now)?;
        self.later(
            "update instance set facts = $2, boot_id = $3, netns_inode = $4, version = version + 1 where id = $1",
            values![
                known,
                Json(&request.facts),
                request.facts.boot_id,
                request.facts.netns_inode,
            ],
        )?;
        self.maps.forget(known);
        self.note_change(known)?;
        self.get_instance(&known.into(), now)
    }

    /// Another credential from now on. The one before goes on for [`OVERLAP`] if the instance itself asks, because other
    /// programs of that machine may just be using it; from whoever takes an instance over it is taken at once.
    fn replace_credential(
        &mut self,
        actor: &Actor,
        instance: InstanceId,
        new: SecretHash,
        now: Timestamp,
    ) -> Result<(), Error> {
        let sql = "select credential, previous_credential from instance where id = $1";
        let row = self.query_one(sql, values![instance])?;
        let mut row = row.ok_or(Refusal::NoSuchInstance(instance.into()))?;
        let (current, previous): (Option<SecretHash>, Option<SecretHash>) = (row.take()?, row.take()?);
        let is_own = matches!(actor.authority, Authority::Instance(..));
        if current == Some(new) || is_own && previous == Some(new) {
            return Ok(());
        }
        let kept = current.filter(|_| is_own);
        self.later(
            "update instance set credential = $2, credential_at = $3, previous_credential = $4, \
             previous_until = $5 where id = $1",
            values![instance, new, now, kept, kept.map(|_| now.plus(OVERLAP))],
        )?;
        self.beats.push(BeatChange::Ended(instance));
        Ok(())
    }

    fn take_over(
        &mut self,
        actor: &Actor,
        known: InstanceId,
        request: &JoinRequest,
        now: Timestamp,
    ) -> Result<Instance, Error> {
        let taken_over = self.refresh(actor, known, request, now)?;
        // The new credential begins without a session; whoever still has the old one is not let in any more.
        self.later(
            "update instance set session = 0, opening = null, sequence = 0 where id = $1",
            values![known],
        )?;
        self.beats.push(BeatChange::Ended(known));
        let message = "joined again in place of the lost identity".to_owned();
        self.record_instance(EventKind::Joined, known, actor.into(), message, now)?;
        Ok(taken_over)
    }

    /// Gives an instance another name; the same name again changes nothing.
    ///
    /// # Errors
    /// [`Refusal::NoSuchInstance`], [`Refusal::BeyondLimits`], [`Refusal::NameTaken`], [`Refusal::VersionMismatch`].
    pub fn rename_instance(
        &mut self,
        actor: &Actor,
        instance: &InstanceRef,
        name: &InstanceName,
        if_version: Option<u64>,
        now: Timestamp,
    ) -> Result<Instance, Error> {
        let before = self.get_manageable(actor, instance, if_version, now)?;
        if before.name == *name {
            return Ok(before);
        }
        self.check_name_is_free(name, Some(before.id))?;
        self.later(
            "update instance set name = $2, name_key = $3, version = version + 1 where id = $1",
            values![before.id, name, name_key(name)],
        )?;
        self.maps.members.forget(before.id);
        self.rename_drift(before.id, name)?;
        self.index_labels(before.id, Some((&before.name, &before.labels)), (name, &before.labels))?;
        let message = format!("{} renamed to {name}", before.name);
        self.record_instance(EventKind::Renamed, before.id, actor.into(), message, now)?;
        self.get_instance(&before.id.into(), now)
    }

    /// Gives an instance these labels, and no others; the same again change nothing.
    ///
    /// # Errors
    /// [`Refusal::NoSuchInstance`], [`Refusal::VersionMismatch`], [`Refusal::LabelsNotYours`]; [`Refusal::BeyondLimits`]
    /// for labels, before or after, that the actor does not reach.
    pub fn label_instance(
        &mut self,
        actor: &Actor,
        instance: &InstanceRef,
        labels: &Labels,
        if_version: Option<u64>,
        now: Timestamp,
    ) -> Result<Instance, Error> {
        check_may_label(actor, labels)?;
        let before = self.get_manageable(actor, instance, if_version, now)?;
        if before.labels == *labels {
            return Ok(before);
        }
        self.later(
            "update instance set labels = $2, version = version + 1 where id = $1",
            values![before.id, Json(labels)],
        )?;
        self.index_labels(before.id, Some((&before.name, &before.labels)), (&before.name, labels))?;
        self.maps.members.forget(before.id);
        self.settle_labels(before.id, now)?;
        let message = match labels.is_empty() {
            true => format!("{} has no labels any more", before.name),
            false => format!("{} labelled {labels}", before.name),
        };
        self.record_instance(EventKind::Labelled, before.id, actor.into(), message, now)?;
        self.get_instance(&before.id.into(), now)
    }

    /// Changes an instance as a patch says: all of it, or nothing.
    ///
    /// # Errors
    /// Those of [`Tx::rename_instance`] and [`Tx::label_instance`].
    pub fn update_instance(
        &mut self,
        actor: &Actor,
        instance: &InstanceRef,
        patch: &InstancePatch,
        if_version: Option<u64>,
        now: Timestamp,
    ) -> Result<Instance, Error> {
        let before = self.get_manageable(actor, instance, if_version, now)?;
        // Checked before anything is written.
        patch.labels.as_ref().map_or(Ok(()), |labels| check_may_label(actor, labels))?;
        let id = InstanceRef::Id(before.id);
        let renamed = match &patch.name {
            Some(name) => self.rename_instance(actor, &id, name, None, now)?,
            None => before,
        };
        match &patch.labels {
            Some(labels) => self.label_instance(actor, &id, labels, None, now),
            None => Ok(renamed),
        }
    }

    /// A joined instance, of this version, that this actor reaches.
    fn get_manageable(
        &mut self,
        actor: &Actor,
        instance: &InstanceRef,
        if_version: Option<u64>,
        now: Timestamp,
    ) -> Result<Instance, Error> {
        self.check_credential(actor)?;
        let found = self.get_joined(instance, now)?;
        self.check_reach(actor, Some(found.id))?;
        check_version(if_version, found.version)?;
        Ok(found)
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
        let leaving = self.get_manageable(actor, instance, if_version, now)?;
        let live = self.list_live_of(leaving.id)?;
        if !live.is_empty() && !release {
            let count = live.len() as u64;
            return Err(Refusal::ReservationsLive { instance: link(&leaving), count }.into());
        }
        live.iter().try_for_each(|held| self.check_held(actor, held))?;
        let last_seen_at = leaving.last_contact_at.unwrap_or(now);
        self.end_intervals(
            "seq in (select began_seq from listener where instance = $2)",
            leaving.id,
            last_seen_at,
        )?;
        if leaving.presence == Presence::Offline {
            self.record_gap(leaving.id, leaving.observed_at.unwrap_or(last_seen_at), now)?;
        }
        self.end_listeners(leaving.id, now)?;
        // As they are without anybody who listens.
        for reservation in &self.list_live_of(leaving.id)? {
            self.end_reservation(EventKind::Released, actor.into(), reservation, now)?;
        }
        self.later(
            "update instance set left_at = $2, credential = null, previous_credential = null, last_contact_at = $3, \
             offline_since = null, version = version + 1 where id = $1",
            values![leaving.id, now, leaving.last_contact_at],
        )?;
        self.counts().instances -= 1;
        self.maps.forget(leaving.id);
        self.beats.push(BeatChange::Ended(leaving.id));
        self.uses.push(UseChange::Left(leaving.id));
        self.note_change(leaving.id)?;
        self.record_instance(
            EventKind::Left,
            leaving.id,
            actor.into(),
            format!("{} left", leaving.name),
            now,
        )?;
        Ok(())
    }

    fn record_instance(
        &mut self,
        kind: EventKind,
        instance: InstanceId,
        actor: By<'_>,
        message: String,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        self.record(NewEvent {
            at: now,
            recorded_at: now,
            kind,
            instance: Some(instance.into()),
            ports: None,
            by: actor,
            reservation: None,
            listener: None,
            message,
        })
    }
}

/// Limits of tokens go by labels, so that no machine says its own.
fn check_may_label(actor: &Actor, labels: &Labels) -> Result<(), Refusal> {
    match actor.is_operator() {
        true => check_labels(actor, labels),
        false => Err(Refusal::LabelsNotYours),
    }
}

/// Refuses a change that builds on an older version of the row.
pub(crate) fn check_version(expected: Option<u64>, current: u64) -> Result<(), Refusal> {
    match expected {
        Some(version) if version != current => Err(Refusal::VersionMismatch { current }),
        _ => Ok(()),
    }
}
