//! A model of the server: the protocol of `gk_model::contact` in the fewest words.
//!
//! It also keeps what real servers throw away: a ledger of everything it applied, and what every sequence number stood
//! for.

use std::collections::{BTreeMap, BTreeSet};

use gk_model::contact::{Closed, Contact, ContactAnswer, ContactBody, Part, Piece, Session};
use gk_model::listener::{Digest, Listener, ListenerKey};
use gk_model::time::Timestamp;
use uuid::Uuid;

use crate::failure::{Ending, Failure};
use crate::samples::at;

/// Port, whether it opened, and when.
pub(crate) type Entry = (u16, bool, Timestamp);

#[derive(Clone, Default)]
pub(crate) struct Server {
    pub(crate) session: Session,
    nonce: Option<Uuid>,
    previous: Option<u64>,
    pub(crate) acknowledged: u64,
    pub(crate) set: BTreeMap<ListenerKey, Listener>,
    covered: BTreeSet<Part>,
    /// How far a report was told that goes in pieces.
    told_to: Option<ListenerKey>,
    pub(crate) ledger: Vec<Entry>,
    pub(crate) contents: BTreeMap<(Session, u64), String>,
}

impl Server {
    pub(crate) fn contact(&mut self, contact: &Contact, now: Timestamp) -> Result<ContactAnswer, Failure> {
        self.enter(contact)?;
        let known = contact.sequence <= self.acknowledged;
        let gap = match &contact.body {
            _ if known => false,
            ContactBody::Heartbeat => true,
            ContactBody::Delta { base, .. } if *base != self.acknowledged => true,
            ContactBody::Delta { listeners, closed, .. } => {
                self.apply(listeners, closed);
                self.acknowledged = contact.sequence;
                false
            }
            ContactBody::Report { piece: Piece { base: Some(base), .. }, .. }
                if *base != self.acknowledged =>
            {
                true
            }
            ContactBody::Report { seen_at, covered, listeners, closed, piece, .. } => {
                self.replace(covered, piece, listeners, closed, seen_at.unwrap_or(now));
                self.acknowledged = contact.sequence;
                false
            }
        };
        Ok(ContactAnswer {
            session: self.session,
            acknowledged: self.acknowledged,
            want_report: gap || self.digest() != contact.digest,
            heartbeat_seconds: 30,
            previous: self.previous.filter(|_| contact.opening.is_some()),
            renew_credential: false,
        })
    }

    fn enter(&mut self, contact: &Contact) -> Result<(), Failure> {
        let is_repeated = contact.opening.is_some() && contact.opening == self.nonce;
        if !is_repeated && contact.session < self.session {
            return Err(Failure::Ended(Ending::Superseded));
        }
        if contact.opening.is_some() && !is_repeated {
            self.previous = Some(if contact.session == self.session { self.acknowledged } else { 0 });
            (self.session, self.nonce, self.acknowledged) =
                (Session(contact.session.0 + 1), contact.opening, 0);
        } else if contact.session > self.session {
            (self.session, self.acknowledged) = (contact.session, 0);
        }
        Ok(())
    }

    fn digest(&self) -> Digest {
        let told = |key: &ListenerKey| self.told_to.as_ref().is_none_or(|told_to| key <= told_to);
        let covers =
            |listener: &&Listener| self.covered.contains(&listener.key.part()) && told(&listener.key);
        Digest::of(self.set.values().filter(covers))
    }

    fn apply(&mut self, listeners: &[Listener], closed: &[Closed]) {
        for Closed { key, at } in closed {
            self.close(key, *at);
        }
        for listener in listeners {
            if self.set.insert(listener.key.clone(), listener.clone()).is_none() {
                self.ledger.push((listener.key.port.get(), true, listener.first_seen_at));
            }
        }
    }

    fn replace(
        &mut self,
        covered: &[Part],
        piece: &Piece,
        listeners: &[Listener],
        closed: &[Closed],
        now: Timestamp,
    ) {
        self.covered = covered.iter().copied().collect();
        self.told_to = piece.until.clone();
        let told: BTreeSet<&ListenerKey> = listeners.iter().map(|listener| &listener.key).collect();
        for Closed { key, at } in closed.iter().filter(|closed| !told.contains(&closed.key)) {
            self.close(key, *at);
        }
        let is_gone =
            |key: &ListenerKey| !told.contains(key) && covered.contains(&key.part()) && piece.holds(key);
        let gone: Vec<_> = self.set.keys().filter(|key| is_gone(key)).cloned().collect();
        gone.iter().for_each(|key| self.close(key, now));
        self.apply(listeners, &[]);
    }

    fn close(&mut self, key: &ListenerKey, at: Timestamp) {
        if self.set.remove(key).is_some() {
            self.ledger.push((key.port.get(), false, at));
        }
    }

    /// A number must never stand for two contents. `sent_at` is not part of what is told.
    pub(crate) fn witness(&mut self, contact: &Contact) {
        if contact.opening.is_some() || matches!(contact.body, ContactBody::Heartbeat) {
            return;
        }
        let content = serde_json::to_string(&Contact { sent_at: at(0), ..contact.clone() }).unwrap();
        let before = self.contents.insert((contact.session, contact.sequence), content.clone());
        assert!(before.is_none_or(|before| before == content), "{:?} was told twice", contact.sequence);
    }
}
