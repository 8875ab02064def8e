//! Listeners: sockets that accept traffic, as an agent observed them.
//!
//! A listener is identified by its [`ListenerKey`]; sockets that share one (forked workers, `SO_REUSEPORT`) are one
//! listener with several owners. A set of listeners is summed up by a [`Digest`], so that agent and server can tell
//! with every contact whether they still mean the same set.
//!
//! No listener is large, whoever tells of it: each text in it is [`Observed`], and of countless owners the first are
//! told and the rest are counted ([`Listener::bounded`]). Each event about it, each page of them and each watcher's
//! memory rests on that.

mod owners;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

pub use owners::Owners;

use crate::port::{Port, Protocol};
use crate::text::Observed;
use crate::text_form::text_form;
use crate::time::Timestamp;

/// The network namespace a listener lives in: the instance's own (`home`), or another one by its inode number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Netns {
    /// The network namespace of the instance itself; only its listeners count for port states.
    #[default]
    Home,
    /// Another namespace of the same machine, known by its inode.
    Other(u64),
}

impl Netns {
    /// What is said after an address or a process, for people: ` (netns 4026532000)`, and nothing for home.
    pub fn remark(self) -> String {
        match self {
            Netns::Home => String::new(),
            Netns::Other(inode) => format!(" (netns {inode})"),
        }
    }
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Netns::Home => f.pad("home"),
            Netns::Other(inode) => inode.fmt(f),
        }
    }
}

impl FromStr for Netns {
    type Err = String;

    fn from_str(text: &str) -> Result<Netns, String> {
        match text {
            "home" => Ok(Netns::Home),
            _ => text
                .parse()
                .map(Netns::Other)
                .map_err(|_| "a network namespace is `home` or an inode number".to_owned()),
        }
    }
}

text_form!(Netns, "home");

/// What tells one listener of an instance from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub struct ListenerKey {
    /// The namespace it listens in.
    pub netns: Netns,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port.
    pub port: Port,
    /// The address it is bound to; `0.0.0.0` and `::` are the wildcards.
    #[schema(value_type = String, example = "0.0.0.0")]
    pub address: IpAddr,
    /// The interface it is bound to, if to one.
    #[serde(default, deserialize_with = "not_empty")]
    pub interface: Option<Observed>,
    /// For IPv6: whether it leaves IPv4 alone. `::` without it also accepts IPv4 (dual-stack).
    #[serde(default)]
    pub v6only: bool,
}

impl ListenerKey {
    /// Where it is bound, for people: `0.0.0.0`, `[::1]`, `127.0.0.1%lo` for one interface. A plain `[::]` also accepts
    /// IPv4, `[::] v6only` does not.
    pub fn bound_to(&self) -> impl fmt::Display {
        fmt::from_fn(|f| {
            match self.address {
                IpAddr::V4(address) => write!(f, "{address}")?,
                IpAddr::V6(address) => write!(f, "[{address}]")?,
            }
            if let Some(interface) = &self.interface {
                write!(f, "%{interface}")?;
            }
            let is_half = self.v6only && self.address.is_ipv6() && self.address.is_unspecified();
            f.write_str(if is_half { " v6only" } else { "" })
        })
    }
}

/// An empty name is no name, so that one listener has one key.
fn not_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Observed>, D::Error> {
    Ok(Option::deserialize(deserializer)?.filter(|name: &Observed| !name.as_str().is_empty()))
}

/// A process that holds the listening socket open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Owner {
    /// Process id, as the agent's `/proc` numbers it.
    pub pid: u32,
    /// When it started, in clock ticks since boot (`/proc/PID/stat` field 22); with `pid` it names one process.
    pub started_ticks: u64,
    /// Its command name.
    pub name: Observed,
    /// Path of its executable, when it may be read.
    pub exe: Option<Observed>,
    /// The account it runs as: a name, or the number when there is none.
    pub account: Observed,
}

impl Owner {
    /// The path of its executable, or its command name where that may not be read. Of one that was replaced on disk since
    /// it started, as an upgrade does, the path is the same.
    pub fn program(&self) -> &str {
        let path = self.exe.as_ref().map(Observed::as_str);
        path.map_or(self.name.as_str(), |path| path.strip_suffix(REPLACED).unwrap_or(path))
    }

    /// All that anybody may expect of it: workers of one program are of one kind.
    fn kind(&self) -> OwnerKind {
        (self.name.clone(), self.exe.clone(), self.account.clone())
    }

    /// About how many bytes it takes on the wire.
    fn about_bytes(&self) -> usize {
        90 + self.name.as_str().len() + about_bytes(self.exe.as_ref()) + self.account.as_str().len()
    }
}

type OwnerKind = (Observed, Option<Observed>, Observed);

fn about_bytes(text: Option<&Observed>) -> usize {
    text.map_or(0, |text| text.as_str().len())
}

/// How many owners of a listener are told at most. Hundreds of workers may share one socket, and each event about it
/// carries them all.
pub const MOST_OWNERS: usize = 64;

/// About how many bytes they may take together: several times what 64 usual ones do, and room for two of any length.
const MOST_OWNER_BYTES: usize = 32 << 10;

/// So many fit in there, whatever their texts are: three of [`Observed::MAX_CHARS`], of four bytes each.
const FEW_OWNERS: usize = 2;
const _: () = assert!(FEW_OWNERS * (90 + 3 * 4 * Observed::MAX_CHARS) <= MOST_OWNER_BYTES);

/// What the kernel says after the path of an executable that is no more, or is another file now.
const REPLACED: &str = " (deleted)";

/// A container, as the cgroup of a socket names it, or the engine that publishes a port of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Container {
    /// The engine's id.
    pub id: Observed,
    /// Its name, when the engine told.
    pub name: Option<Observed>,
    /// The engine: `docker`, `containerd`, `cri-o`, `podman`, `lxc`, `nspawn`.
    pub engine: Observed,
    /// The uid of its Kubernetes pod.
    #[serde(default)]
    pub pod: Option<Observed>,
}

/// An observed socket that accepts traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(remote = "Self")]
pub struct Listener {
    /// What tells it from others.
    #[serde(flatten)]
    pub key: ListenerKey,
    /// The account that opened the socket; known without any privilege.
    pub account: Option<Observed>,
    /// The processes that hold it, lowest pid first; empty when the agent may not see them, and for a port that a
    /// container engine publishes without a socket. Of more than 64, one of each kind before a second of any.
    #[serde(default)]
    #[schema(value_type = Vec<Owner>)]
    pub owners: Owners,
    /// How many more processes hold it than are told; left out when none do.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_owners: u32,
    /// The systemd unit of its cgroup.
    pub unit: Option<Observed>,
    /// The container of its cgroup, or the one that a published port leads into.
    // Apart, because most listeners have none, and there are many of them.
    pub container: Option<Box<Container>>,
    /// When it was first seen, by the clock of whoever sends this.
    pub first_seen_at: Timestamp,
    /// When it was last seen, by the clock of whoever sends this.
    pub last_seen_at: Timestamp,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl Serialize for Listener {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Listener::serialize(self, serializer)
    }
}

/// Whoever tells of it, and whenever it was written down: it is bounded from here on.
impl<'de> Deserialize<'de> for Listener {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Listener, D::Error> {
        Listener::deserialize(deserializer).map(Listener::bounded)
    }
}

impl Listener {
    /// With no more owners than are told; the rest are counted. What is bounded stays as it is, so that agent and server
    /// mean the same.
    ///
    /// One of each kind goes before a second of any, the lowest pids first: a stranger among a hundred workers is told
    /// whatever his number is, and where a kind is told twice, every kind is.
    #[must_use]
    pub fn bounded(mut self) -> Listener {
        // Nearly always, and then nothing is added up.
        let are_few = self.owners.len() <= FEW_OWNERS;
        let bytes = |owners: &[Owner]| owners.iter().map(Owner::about_bytes).sum::<usize>();
        if are_few || self.owners.len() <= MOST_OWNERS && bytes(&self.owners) <= MOST_OWNER_BYTES {
            return self;
        }
        let (count, mut kinds, mut bytes) = (self.owners.len(), BTreeSet::new(), 0);
        let (first, further): (Vec<Owner>, Vec<Owner>) =
            self.owners.drain(..).partition(|owner| kinds.insert(owner.kind()));
        let told = first.into_iter().chain(further).take(MOST_OWNERS).take_while(|owner| {
            bytes += owner.about_bytes();
            bytes <= MOST_OWNER_BYTES
        });
        self.owners = told.collect();
        self.owners.sort_unstable_by_key(|owner| (owner.pid, owner.started_ticks));
        let more = u32::try_from(count - self.owners.len()).unwrap_or(u32::MAX);
        self.more_owners = self.more_owners.saturating_add(more);
        self
    }

    /// Whether those who hold it and are not told are of kinds that are told.
    pub(crate) fn tells_every_kind(&self) -> bool {
        let kinds: BTreeSet<OwnerKind> = self.owners.iter().map(Owner::kind).collect();
        self.more_owners == 0 || kinds.len() < self.owners.len()
    }

    /// Whether the same program still holds it: equal in everything but times.
    pub fn same_but_times(&self, other: &Listener) -> bool {
        self.key == other.key
            && self.account == other.account
            && self.has_same_owners(other)
            && self.unit == other.unit
            && self.container == other.container
    }

    /// Whether the same processes still hold it, or the same container, whatever else became known of it: equal but for
    /// times and for what a container engine tells, which it does a moment after a socket was seen.
    pub fn has_same_holder(&self, other: &Listener) -> bool {
        let same_container = match (&self.container, &other.container) {
            (Some(one), Some(other)) => (&one.id, &one.engine) == (&other.id, &other.engine),
            (None, None) => true,
            // Without owners nobody can tell whether this is the same socket with a container or another one.
            _ => !self.owners.is_empty(),
        };
        let same_owners = self.has_same_owners(other) && self.unit == other.unit;
        self.key == other.key && self.account == other.account && same_owners && same_container
    }

    fn has_same_owners(&self, other: &Listener) -> bool {
        self.owners == other.owners && self.more_owners == other.more_owners
    }

    /// About how many bytes it takes on the wire. Right within a factor of four, which is what bounds need.
    pub fn about_bytes(&self) -> usize {
        let container = |container: &Container| {
            let Container { id, name, engine, pod } = container;
            50 + id.as_str().len()
                + about_bytes(name.as_ref())
                + engine.as_str().len()
                + about_bytes(pod.as_ref())
        };
        250 + self.owners.iter().map(Owner::about_bytes).sum::<usize>()
            + about_bytes(self.account.as_ref())
            + about_bytes(self.unit.as_ref())
            + about_bytes(self.key.interface.as_ref())
            + self.container.as_deref().map_or(0, container)
    }

    /// A few words for people: `nginx (pid 812)`, `nginx.service`, `docker 3f2a…`, or `another account's process`.
    pub fn describe(&self) -> impl fmt::Display {
        fmt::from_fn(|f| {
            let has_place = self.container.is_some() || self.unit.is_some();
            match (self.owners.split_first(), &self.account) {
                (Some((owner, others)), _) => {
                    write!(f, "{} (pid {}", owner.name, owner.pid)?;
                    match others.len() as u64 + u64::from(self.more_owners) {
                        0 => f.write_str(")")?,
                        more => write!(f, " and {more} more)")?,
                    }
                    f.write_str(if has_place { ", " } else { "" })?;
                }
                (None, _) if has_place => {}
                (None, Some(account)) => write!(f, "a process of {account}")?,
                (None, None) => f.write_str("a process the agent may not see")?,
            }
            match (self.container.as_deref(), &self.unit) {
                (Some(Container { name: Some(name), engine, .. }), _) => {
                    write!(f, "{engine} container {name}")
                }
                (Some(Container { id, engine, .. }), _) => {
                    let id = id.as_str();
                    let end = id.char_indices().nth(12).map_or(id.len(), |(end, _)| end);
                    write!(f, "{engine} container {}", &id[..end])
                }
                (None, Some(unit)) => write!(f, "{unit}"),
                (None, None) => Ok(()),
            }
        })
    }
}

/// The distinct owners of some listeners, in words: by unit, else by container, else by executable and account, else by
/// the account that opened the socket, which is all that an unprivileged agent sees. Whoever adopts their port needs one.
pub fn owner_groups(listeners: &[Listener]) -> BTreeSet<String> {
    let groups = listeners.iter().flat_map(|listener| match (&listener.unit, &listener.container) {
        (Some(unit), _) => vec![unit.to_string()],
        (None, Some(container)) => vec![format!("{} container {}", container.engine, container.id)],
        (None, None) if listener.owners.is_empty() => vec![listener.describe().to_string()],
        (None, None) => {
            let owners = listener.owners.iter();
            owners.map(|owner| format!("{} of {}", owner.program(), owner.account)).collect()
        }
    });
    groups.collect()
}

/// A sum over a set of listeners that ignores order, times and names.
///
/// It is the wrapping sum of the first 16 bytes of the SHA-256 of every listener's key, told owners' pids, unit and container
/// id, so a change of one listener is applied with one subtraction and one addition. It detects drift between agent
/// and server, it does not resist an attacker: whoever can forge a report needs no collision.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Digest(u128);

impl Digest {
    /// Of a whole set.
    pub fn of<'a>(listeners: impl IntoIterator<Item = &'a Listener>) -> Digest {
        let mut digest = Digest::default();
        for listener in listeners {
            digest.add(listener);
        }
        digest
    }

    /// One listener more.
    pub fn add(&mut self, listener: &Listener) {
        self.0 = self.0.wrapping_add(fingerprint(listener));
    }

    /// One listener less.
    pub fn remove(&mut self, listener: &Listener) {
        self.0 = self.0.wrapping_sub(fingerprint(listener));
    }
}

fn fingerprint(listener: &Listener) -> u128 {
    let key = &listener.key;
    let interface = key.interface.as_ref().map_or("", Observed::as_str);
    let mut hash = Sha256::new();
    hash.update(format!(
        "{}\0{}\0{}\0{}\0{interface}\0{}\0",
        key.netns, key.protocol, key.port, key.address, key.v6only
    ));
    for owner in &listener.owners {
        hash.update(format!("{}.{}\0", owner.pid, owner.started_ticks));
    }
    let unit = listener.unit.as_ref().map_or("", Observed::as_str);
    let container = listener.container.as_ref().map_or("", |container| container.id.as_str());
    hash.update(format!("\0{unit}\0{container}"));
    let bytes: [u8; 32] = hash.finalize().into();
    bytes.iter().take(16).fold(0, |sum, byte| sum << 8 | u128::from(*byte))
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Digest, String> {
        match u128::from_str_radix(text, 16) {
            Ok(sum) if text.len() == 32 => Ok(Digest(sum)),
            _ => Err("a digest is 32 hexadecimal digits".to_owned()),
        }
    }
}

text_form!(Digest, "5f0c7c0e0d9a4b6f8a1b2c3d4e5f6071"; "^[0-9A-Fa-f]{32}$");

#[cfg(test)]
pub(crate) mod tests;
