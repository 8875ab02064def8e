//! Agents without machines: they join, report, and go on, as requests made before.

use anyhow::{Context as _, Result};
use gk_model::contact::{Contact, ContactBody, Family, Part, Piece, Session};
use gk_model::facts::Facts;
use gk_model::id::InstanceId;
use gk_model::instance::{Instance, JoinRequest};
use gk_model::labels::Labels;
use gk_model::listener::{Digest, Listener, ListenerKey, Netns, Owner};
use gk_model::paths;
use gk_model::port::{Port, Protocol};
use gk_model::secret::{Secret, SecretKind};
use gk_model::time::Timestamp;
use uuid::Uuid;

use std::rc::Rc;

use crate::loader::{Address, Load, Until, request};

/// An instance that has joined, and what its agent knows.
pub(crate) struct Agent {
    pub(crate) id: InstanceId,
    secret: Secret,
    opened: bool,
    sequence: u64,
    listeners: Vec<Listener>,
}

fn secret(number: usize) -> Secret {
    let mut seed = [1; 32];
    seed[..8].copy_from_slice(&number.to_ne_bytes());
    Secret::from_random(SecretKind::Instance, &seed)
}

/// Joins so many, at the Unix socket.
pub(crate) fn join(socket: &Address, count: usize, listeners: usize) -> Result<Vec<Agent>> {
    let requests = (0..count).map(|number| {
        let asked = JoinRequest {
            name: Some(format!("node-{number}").parse()?),
            credential_hash: secret(number).hash(),
            facts: facts(number),
            labels: place(number)?,
            replace: None,
        };
        Ok(request("POST", paths::INSTANCES, None, &serde_json::to_vec(&asked)?))
    });
    let bodies = send(socket, requests.collect::<Result<_>>()?)?;
    let agents = bodies.into_iter().map(|(number, body)| {
        let joined: Instance = serde_json::from_slice(&body)?;
        let listeners = (0..listeners).map(|index| listener(index, number)).collect::<Result<_>>()?;
        Ok(Agent { id: joined.id, secret: secret(number), opened: false, sequence: 0, listeners })
    });
    agents.collect()
}

/// Sends each request once, sixteen at a time; all must go well.
pub(crate) fn send(address: &Address, requests: Vec<Vec<u8>>) -> Result<Vec<(usize, Vec<u8>)>> {
    let count = requests.len();
    let load = Load {
        address: address.clone(),
        requests: Rc::new(requests),
        first: 0,
        connections: 16,
        until: Until::Sent,
        every: None,
    };
    let answers = load.run()?;
    anyhow::ensure!(answers.bodies.len() == count, "{} were refused: {}", answers.failed, answers.failure);
    Ok(answers.bodies)
}

/// Where it stands: a hundred to a rack, a thousand to a room.
fn place(number: usize) -> Result<Labels> {
    let labels = Labels::default().with(format!("rack={}", number / 100).parse()?)?;
    Ok(labels.with(format!("room={}", number / 1000).parse()?)?)
}

/// What a usual machine says of itself.
fn facts(number: usize) -> Facts {
    Facts {
        host_name: format!("node-{number}").as_str().into(),
        os: Some("Debian GNU/Linux 12 (bookworm)".into()),
        kernel: Some("6.1.0-30-amd64".into()),
        architecture: Some("x86_64".into()),
        cpu_model: Some("Intel(R) Xeon(R) Gold 6230 CPU @ 2.10GHz".into()),
        cpu_count: Some(16),
        memory_bytes: Some(64 << 30),
        ephemeral_ports: "32768-60999".parse().ok(),
        boot_id: Some(Uuid::from_u128(number as u128 + 1)),
        netns_inode: Some(4_026_531_840),
        ..Facts::default()
    }
}

fn listener(index: usize, pid: usize) -> Result<Listener> {
    let port = Port::new(u16::try_from(10_000 + index)?).context("no port")?;
    let owner = Owner {
        pid: u32::try_from(1000 + pid)?,
        started_ticks: 12_345,
        name: "worker".into(),
        exe: Some("/usr/local/lib/worker/bin/worker".into()),
        account: "worker".into(),
    };
    let now = Timestamp::from_clock();
    Ok(Listener {
        key: ListenerKey {
            netns: Netns::Home,
            protocol: Protocol::Tcp,
            port,
            address: "0.0.0.0".parse()?,
            interface: None,
            v6only: false,
        },
        account: Some("worker".into()),
        owners: vec![owner].into(),
        more_owners: 0,
        unit: Some("worker.service".into()),
        container: None,
        first_seen_at: now,
        last_seen_at: now,
    })
}

impl Agent {
    /// A full report; the first one opens the session.
    pub(crate) fn report(&mut self) -> Result<Vec<u8>> {
        self.sequence += 1;
        let parts = Protocol::ALL.iter().flat_map(|protocol| {
            Family::ALL.iter().map(|family| Part { netns: Netns::Home, protocol: *protocol, family: *family })
        });
        let body = ContactBody::Report {
            seen_at: None,
            covered: parts.collect(),
            listeners: self.listeners.clone(),
            closed: vec![],
            occupied: vec![],
            churned: vec![],
            piece: Piece::default(),
            namespaces: None,
        };
        self.contact(body)
    }

    /// The same again.
    pub(crate) fn heartbeat(&mut self) -> Result<Vec<u8>> {
        self.contact(ContactBody::Heartbeat)
    }

    /// One listener has another owner.
    pub(crate) fn delta(&mut self) -> Result<Vec<u8>> {
        let base = self.sequence;
        self.sequence += 1;
        let changed = self.listeners.first_mut().context("no listener")?;
        *changed = listener(0, usize::try_from(self.sequence)? + 100_000)?;
        let listeners = vec![changed.clone()];
        self.contact(ContactBody::Delta { base, listeners, closed: vec![], occupied: None, churned: vec![] })
    }

    fn contact(&mut self, body: ContactBody) -> Result<Vec<u8>> {
        let opening = (!std::mem::replace(&mut self.opened, true)).then(|| Uuid::from_u128(1));
        let contact = Contact {
            session: Session(u64::from(opening.is_none())),
            opening,
            sequence: self.sequence,
            sent_at: Timestamp::from_clock(),
            digest: Digest::of(&self.listeners),
            agent_version: "bench".into(),
            body,
        };
        let path = paths::contact(&self.id.into());
        Ok(request("POST", &path, Some(self.secret.reveal()), &serde_json::to_vec(&contact)?))
    }

    /// Reserves the next free port on this instance, with its own credential.
    pub(crate) fn reserve(&self) -> Result<Vec<u8>> {
        let asked = gk_model::reservation::ReserveRequest::next_free(self.id);
        Ok(request("POST", paths::RESERVATIONS, Some(self.secret.reveal()), &serde_json::to_vec(&asked)?))
    }
}
