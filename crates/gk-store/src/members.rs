//! What the writer remembers of instances, so that a reserve asks the database nothing: which have joined, under which
//! names, and whose credential counts.
//!
//! It lives and dies with the maps of ports: what is forgotten there is forgotten here, and every change of an instance,
//! by this server or another one, forgets it. Only what was looked up under the writer's lock is in it.

use std::collections::HashMap;

use gk_model::access::{Actor, Authority};
use gk_model::id::{InstanceId, InstanceRef};
use gk_model::instance::InstanceLink;
use gk_model::labels::Labels;
use gk_model::secret::SecretHash;
use gk_model::time::Timestamp;

use crate::error::{Error, Refusal, StoreError};
use crate::instances::{link, name_key};
use crate::tx::Tx;
use crate::value::{Json, values};

/// How many instances are remembered; a few hundred bytes each.
const MOST: usize = 1 << 16;

/// Joined instances.
#[derive(Default)]
pub(crate) struct Members {
    links: HashMap<InstanceId, InstanceLink>,
    /// May name an instance that was forgotten or renamed meanwhile; the link tells.
    names: HashMap<String, InstanceId>,
    credentials: HashMap<InstanceId, SecretHash>,
    labels: HashMap<InstanceId, Labels>,
}

impl Members {
    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        *self = Members::default();
    }

    /// Drops everything, if it has become too much.
    pub(crate) fn keep(&mut self) {
        if self.names.len().max(self.credentials.len()).max(self.labels.len()) > MOST {
            self.clear();
        }
    }

    /// Drops what is known of an instance.
    pub(crate) fn forget(&mut self, instance: InstanceId) {
        self.links.remove(&instance);
        self.credentials.remove(&instance);
        self.labels.remove(&instance);
    }

    fn find(&self, instance: &InstanceRef) -> Option<&InstanceLink> {
        match instance {
            InstanceRef::Id(id) => self.links.get(id),
            InstanceRef::Name(name) => {
                let key = name_key(name);
                self.links.get(self.names.get(&key)?).filter(|link| name_key(&link.name) == key)
            }
        }
    }

    fn remember(&mut self, link: &InstanceLink) {
        self.names.insert(name_key(&link.name), link.id);
        self.links.insert(link.id, link.clone());
    }
}

impl Tx<'_> {
    /// Id and name of an instance that has not left.
    ///
    /// # Errors
    /// [`Refusal::NoSuchInstance`], [`Refusal::InstanceLeft`].
    pub(crate) fn get_member(
        &mut self,
        instance: &InstanceRef,
        now: Timestamp,
    ) -> Result<InstanceLink, Error> {
        if let Some(known) = self.maps.members.find(instance) {
            return Ok(known.clone());
        }
        let found = link(&self.get_joined(instance, now)?);
        self.maps.members.remember(&found);
        Ok(found)
    }

    /// What an instance is labelled with; none if there is no such instance.
    pub(crate) fn find_labels(&mut self, instance: InstanceId) -> Result<Option<Labels>, StoreError> {
        if let Some(known) = self.maps.members.labels.get(&instance) {
            return Ok(Some(known.clone()));
        }
        let row = self.query_one("select labels from instance where id = $1", values![instance])?;
        let Some(mut row) = row else { return Ok(None) };
        let Json(labels): Json<Labels> = row.take()?;
        self.maps.members.labels.insert(instance, labels.clone());
        Ok(Some(labels))
    }

    /// An actor that came with an instance's credential may have lost it since the door let it in.
    ///
    /// # Errors
    /// [`Refusal::CredentialReplaced`].
    pub(crate) fn check_credential(&mut self, actor: &Actor) -> Result<(), Error> {
        let Authority::Instance(own, credential) = actor.authority else { return Ok(()) };
        if self.maps.members.credentials.get(&own) == Some(&credential) {
            return Ok(());
        }
        if self.find_by_credential(credential)? != Some(own) {
            return Err(Refusal::CredentialReplaced.into());
        }
        self.maps.members.credentials.insert(own, credential);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_nobody_that_was_forgotten_or_renamed() {
        let now = Timestamp::from_micros(0);
        let link = |name: &str| InstanceLink { id: InstanceId::generate(now), name: name.parse().unwrap() };
        let by_name = |name: &str| InstanceRef::Name(name.parse().unwrap());
        let mut members = Members::default();
        let (first, second) = (link("Web-1"), link("web-2"));
        members.remember(&first);
        assert_eq!(members.find(&by_name("web-1")), Some(&first), "without regard to case");
        assert_eq!(members.find(&first.id.into()), Some(&first));
        members.forget(first.id);
        assert_eq!((members.find(&by_name("web-1")), members.find(&first.id.into())), (None, None));
        let renamed = InstanceLink { id: first.id, ..link("other") };
        members.remember(&renamed);
        assert_eq!(members.find(&by_name("web-1")), None, "that is another name now");
        members.remember(&InstanceLink { id: second.id, ..link("web-1") });
        assert_eq!(members.find(&by_name("web-1")).map(|link| link.id), Some(second.id));
    }
}
