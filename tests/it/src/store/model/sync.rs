//! The reference model's side of the sync with an agent: which contacts count, and what they change (rule 9).
//!
//! It reads the messages as they are, and knows nothing of reservations (rule 1).

use gk_model::contact::{Contact, ContactBody, Family, Session};
use gk_model::history::EventKind;
use gk_model::listener::{Digest, Listener, Netns};
use gk_model::port::Protocol;
use uuid::Uuid;

use super::reference::Machine;

/// How far agent and server have come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sync {
    pub(crate) session: u64,
    opening: Option<Uuid>,
    pub(crate) sequence: u64,
    /// Of what both mean, as long as the model can say.
    agreed: Option<Digest>,
    /// Whether the last report was of everything at home.
    complete: bool,
}

/// What a contact must lead to.
#[derive(Debug)]
pub(crate) enum Expected {
    /// An older session, or another's.
    Superseded,
    /// A session begins with a report.
    OpensWithoutReport,
    Taken {
        session: u64,
        acknowledged: u64,
        /// None where the model cannot say.
        want_report: Option<bool>,
        events: Vec<EventKind>,
    },
}

impl Machine {
    pub(crate) fn apply(&mut self, contact: &Contact) -> Expected {
        let Session(presented) = contact.session;
        let repeats = contact.opening.is_some()
            && contact.opening == self.sync.opening
            && presented + 1 == self.sync.session;
        if presented < self.sync.session && !repeats {
            return Expected::Superseded;
        }
        let is_report = matches!(contact.body, ContactBody::Report { .. });
        if !repeats && !is_report && (contact.opening.is_some() || presented == 0) {
            return Expected::OpensWithoutReport;
        }
        if contact.opening.is_none() && presented == 0 {
            return Expected::OpensWithoutReport;
        }
        if contact.opening.is_some() && !repeats {
            let session = presented + 1;
            self.sync = Sync {
                session,
                opening: contact.opening,
                agreed: Some(Digest::default()),
                ..Sync::default()
            };
        }
        let events = self.take(contact);
        let is_next = self.sync.sequence == contact.sequence;
        let same = self.sync.agreed.map(|agreed| agreed == contact.digest);
        let want_report = if is_next { same.map(|same| !same) } else { Some(true) };
        Expected::Taken { session: self.sync.session, acknowledged: self.sync.sequence, want_report, events }
    }

    /// What is new and fits is applied; all else changes nothing.
    fn take(&mut self, contact: &Contact) -> Vec<EventKind> {
        let before = self.listeners.clone();
        if contact.sequence <= self.sync.sequence {
            return Vec::new();
        }
        match &contact.body {
            ContactBody::Heartbeat => return Vec::new(),
            ContactBody::Delta { base, .. } if *base != self.sync.sequence => return Vec::new(),
            ContactBody::Delta { listeners, closed, occupied, .. } => {
                closed.iter().for_each(|closed| drop(self.listeners.remove(&closed.key)));
                self.listen(listeners);
                if let Some(occupied) = occupied {
                    self.occupied = occupied.iter().map(|it| (it.protocol, it.port.get())).collect();
                }
                self.sync.agreed = self.sync.complete.then(|| Digest::of(self.listeners.values()));
            }
            ContactBody::Report { covered, listeners, occupied, namespaces, .. } => {
                let reported = |key| listeners.iter().any(|listener| listener.key == key);
                let is_there = |netns| namespaces.as_ref().is_none_or(|all| all.contains(&netns));
                self.listeners.retain(|key, _| {
                    reported(key.clone()) || !covered.contains(&key.part()) && is_there(key.netns)
                });
                self.listen(listeners);
                self.occupied = occupied.iter().map(|it| (it.protocol, it.port.get())).collect();
                self.sync.agreed = Some(Digest::of(listeners));
                let home = |protocol: &Protocol| {
                    let parts =
                        covered.iter().filter(|part| part.protocol == *protocol && part.netns == Netns::Home);
                    parts.map(|part| part.family).collect::<std::collections::BTreeSet<Family>>().len() == 2
                };
                self.sync.complete = Protocol::ALL.iter().all(home)
                    && self.sync.agreed == Some(Digest::of(self.listeners.values()));
            }
        }
        self.sync.sequence = contact.sequence;
        self.changes_since(&before)
    }

    fn listen(&mut self, seen: &[Listener]) {
        for listener in seen {
            self.listeners.insert(listener.key.clone(), listener.clone());
        }
    }

    fn changes_since(
        &self,
        before: &std::collections::BTreeMap<gk_model::listener::ListenerKey, Listener>,
    ) -> Vec<EventKind> {
        let closed = before.keys().filter(|key| !self.listeners.contains_key(key)).map(|_| EventKind::Closed);
        let seen = self.listeners.iter().filter_map(|(key, listener)| match before.get(key) {
            None => Some(EventKind::Opened),
            Some(before) if !before.same_but_times(listener) => Some(EventKind::OwnerChanged),
            Some(_) => None,
        });
        closed.chain(seen).collect()
    }
}
