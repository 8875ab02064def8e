//! Agents of the histories: what a short word of theirs is as a message.

use gk_model::contact::{Closed, Contact, ContactBody, Family, Occupied, Part, Piece, Session};
use gk_model::listener::{Digest, Listener, Netns};
use gk_model::port::Protocol;
use gk_model::time::Timestamp;
use uuid::Uuid;

use super::history::Say;
use super::reference::Machine;
use crate::store::world::{listener, port};

/// The highest port that any of them listens on or occupies.
pub(crate) const HIGHEST: u16 = 8005;

/// Who may listen: on few ports, twice on one of them with two programs, and once in a namespace of its own.
fn candidates(pids: u8, now: Timestamp) -> Vec<Listener> {
    use Protocol::{Tcp, Udp};
    let pid = |base: u32| base + u32::from(pids);
    let mut all = vec![
        listener(Tcp, "0.0.0.0", 8000, pid(10), now),
        listener(Tcp, "::", 8001, pid(20), now),
        listener(Udp, "0.0.0.0", 8000, pid(30), now),
        listener(Udp, "::1", 8002, 40, now),
        listener(Tcp, "127.0.0.1", 8003, 50, now),
        listener(Tcp, "::", 8003, pid(60), now),
        listener(Tcp, "0.0.0.0", 8002, 70, now),
        listener(Tcp, "0.0.0.0", 8004, 80, now),
    ];
    all[5].owners[0].exe = Some("/usr/bin/other".into());
    all[6].key.netns = Netns::Other(7);
    all
}

fn chosen<T: Clone>(all: &[T], bits: u8) -> Vec<T> {
    all.iter().enumerate().filter(|(index, _)| bits >> index & 1 == 1).map(|(_, one)| one.clone()).collect()
}

/// The four parts of the home namespace; with the first of them comes the other namespace.
fn covered(bits: u8) -> Vec<Part> {
    let part = |netns, protocol, family| Part { netns, protocol, family };
    let home = Protocol::ALL
        .iter()
        .flat_map(|protocol| Family::ALL.iter().map(|family| part(Netns::Home, *protocol, *family)));
    let mut parts = chosen(&home.collect::<Vec<_>>(), bits);
    if bits & 1 == 1 {
        parts.push(part(Netns::Other(7), Protocol::Tcp, Family::V4));
    }
    parts
}

fn occupied(bits: u8) -> Vec<Occupied> {
    let on = |protocol, number| Occupied { protocol, port: port(number) };
    let all = [on(Protocol::Udp, 8001), on(Protocol::Tcp, 8005), on(Protocol::Tcp, 8000)];
    chosen(&all, bits)
}

fn report(set: u8, pids: u8, parts: u8, occupied_bits: u8, now: Timestamp) -> (ContactBody, Digest) {
    let covered = covered(parts);
    let mut listeners = chosen(&candidates(pids, now), set);
    listeners.retain(|listener| covered.contains(&listener.key.part()));
    let digest = Digest::of(&listeners);
    // Sometimes all namespaces are known: the other one among them, or gone.
    let other = [Netns::Other(7)].into_iter().filter(|_| parts & 3 != 2);
    let namespaces = (parts & 2 == 2).then(|| [Netns::Home].into_iter().chain(other).collect());
    (
        ContactBody::Report {
            seen_at: None,
            covered,
            listeners,
            closed: vec![],
            occupied: occupied(occupied_bits),
            churned: vec![],
            piece: Piece::default(),
            namespaces,
        },
        digest,
    )
}

/// The message of an agent that knows of its session what the model knows. None if it has nothing to send again.
pub(crate) fn contact(say: &Say, machine: &Machine, sent: &[Contact], now: Timestamp) -> Option<Contact> {
    let (session, sequence) = (machine.sync.session, machine.sync.sequence);
    let wrong = Digest::of(&[listener(Protocol::Tcp, "0.0.0.0", 1, 1, now)]);
    let message = |session, opening, sequence, (body, digest)| Contact {
        session: Session(session),
        opening,
        sequence,
        sent_at: now,
        digest,
        agent_version: "test".into(),
        body,
    };
    let contact = match say {
        Say::Heartbeat { honest } => {
            let digest = if *honest { Digest::of(machine.listeners.values()) } else { wrong };
            message(session, None, sequence, (ContactBody::Heartbeat, digest))
        }
        Say::Report { set, pids, covered, occupied, ahead } => {
            message(session, None, sequence + ahead, report(*set, *pids, *covered, *occupied, now))
        }
        Say::Delta { seen, closed, pids, gap, honest, occupied: now_occupied } => {
            let all = candidates(*pids, now);
            let (seen, closed) = (chosen(&all, *seen & !*closed), chosen(&all, *closed));
            let mut after = machine.listeners.clone();
            closed.iter().for_each(|gone| drop(after.remove(&gone.key)));
            after.extend(seen.iter().map(|listener| (listener.key.clone(), listener.clone())));
            let digest = if *honest { Digest::of(after.values()) } else { wrong };
            let body = ContactBody::Delta {
                base: sequence + u64::from(*gap),
                listeners: seen,
                closed: closed.into_iter().map(|gone| Closed { key: gone.key, at: now }).collect(),
                occupied: now_occupied.map(occupied),
                churned: vec![],
            };
            message(session, None, sequence + 1 + u64::from(*gap), (body, digest))
        }
        Say::Open { behind, set, with_report } => {
            let nonce = Some(Uuid::from_u128(sent.len() as u128 + 1));
            let body = match with_report {
                true => report(*set, 0, 15, 0, now),
                false => (ContactBody::Heartbeat, Digest::default()),
            };
            message(session.saturating_sub(*behind), nonce, 1, body)
        }
        Say::Again(which) => sent.get(which % sent.len().max(1))?.clone(),
        Say::Stale { behind, set } => {
            message(session.saturating_sub(*behind), None, sequence + 1, report(*set, 1, 15, 0, now))
        }
    };
    Some(contact)
}
