//! The agent: watches the listeners of this machine and keeps the server's view of them equal to the kernel's.
//!
//! ```text
//!  kernel ──scan──▶ View ──step──▶ Journal ──plan──▶ contact ──send──▶ server
//!                                   │  ▲                                │
//!                        spool ◀────┘  └───── SyncState ◀────answer─────┘
//! ```
//!
//! **Owns** when to scan, what to tell and when, and the talk of contacts as [`gk_model::contact`] states it. Only
//! `run`, `send`, `join`, `spool_file`, `protector` and `engine` do I/O; what to do next is decided by a pure function (`plan`) of a
//! pure state (`state`, whose module states the rule that keeps both sides equal). Keeping the kernel off reserved ports is
//! a matter apart, decided in `protect` and done by `protector`. Names of containers and the ports they publish come from
//! container engines, which `engine` asks.
//!
//! **Promises** that observation goes on whatever the server does: contacts travel on a thread of their own, and what
//! happens meanwhile is delivered later, in order, with the times at which it happened, also by the next run if this one is
//! killed. A contact that is delivered
//! twice changes nothing, one that is lost is sent again. There is one agent per state directory.
//!
//! **Refuses** to go on with an identity that somebody else has taken over, and to run where no machine has joined.

mod backoff;
mod clock;
mod engine;
mod failure;
#[cfg(test)]
mod fake_engine;
#[cfg(test)]
mod fake_server;
mod flaps;
mod join;
mod journal;
mod keep;
#[cfg(test)]
mod kills;
mod memory;
#[cfg(test)]
mod model_server;
#[cfg(test)]
mod namespace;
mod pace;
mod plan;
mod protect;
mod protector;
mod renew;
mod run;
#[cfg(test)]
mod samples;
mod send;
#[cfg(test)]
mod simulation;
mod spool;
mod spool_file;
mod state;
mod step;
mod stop;
mod view;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use gk_client::{AddressError, ClientError, ServerAddress};
use gk_model::listener::Netns;
use gk_model::pin::Pin;
use gk_model::secret::Secret;
use gk_model::text::{InstanceName, Observed};
use gk_model::time::Timestamp;
use gk_scan::{Scan, ScanError, Scanner};

pub use engine::{ask_engines, well_known_sockets};
pub use failure::Ending;
pub use memory::share_one_heap;
pub use run::{once, run};
pub use stop::{StopSignal, Stopper, stop_channel};

/// How an agent is to run.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Where identity, credential, session and lock are.
    pub state_dir: PathBuf,
    /// The server, when it is another address than the identity names; needed to join.
    pub server: Option<ServerAddress>,
    /// Who vouches for the server, when it is not as the identity says; needed to join.
    pub pins: Vec<Pin>,
    /// How to join if this machine has not.
    pub join: Option<JoinBy>,
    /// The longest time between two full reports; see [`AgentConfig::REPORT_INTERVALS`]. Each agent takes up to a
    /// tenth less, so that a fleet that started together does not report together.
    pub report_interval: Duration,
    /// Lets the credential travel in clear over a network.
    pub insecure_http: bool,
    /// Keeps the kernel off the instance's reserved ports.
    pub protect: bool,
    /// Where container engines are asked for names and published ports, if anywhere; see [`well_known_sockets`].
    pub engine_sockets: Vec<PathBuf>,
    /// The version of the program, as it tells the server.
    pub version: Observed,
}

/// What an agent needs to join by itself.
#[derive(Clone, Debug)]
pub struct JoinBy {
    /// The join token.
    pub token: Secret,
    /// The name to join under; the host name when left out.
    pub name: Option<InstanceName>,
}

impl AgentConfig {
    /// The report intervals that make sense: more often floods the server, less often and it cannot tell in time that
    /// a part is no longer covered. Others are brought into this range.
    pub const REPORT_INTERVALS: std::ops::RangeInclusive<Duration> =
        Duration::from_secs(5)..=Duration::from_secs(300);

    /// An agent of this state directory that does everything as usual, and asks no container engine.
    pub fn new(state_dir: PathBuf, version: Observed) -> AgentConfig {
        AgentConfig {
            state_dir,
            server: None,
            pins: Vec::new(),
            join: None,
            report_interval: *AgentConfig::REPORT_INTERVALS.end(),
            insecure_http: false,
            protect: false,
            engine_sockets: Vec::new(),
            version,
        }
    }
}

/// Why an agent could not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Another agent holds the lock.
    #[error("another agent runs with the state directory {}", .0.display())]
    AlreadyRuns(PathBuf),
    /// No identity, and no join token.
    #[error("this machine has not joined: run `gkctl instance join`")]
    NotJoined,
    /// A join token, and no server to show it to.
    #[error("a join token needs to be told which server to join: name it with --server")]
    NoServer,
    /// A file of the state directory cannot be used.
    #[error("cannot use the agent's state directory")]
    State(#[from] io::Error),
    /// The identity names a server that is none.
    #[error("the identity of this machine names no usable server: run `gkctl instance join` again")]
    Address(#[from] AddressError),
    /// The kernel's tables cannot be read at all.
    #[error("cannot see the listeners of this machine")]
    Scan(#[from] ScanError),
    /// The server did not let this machine join.
    #[error("cannot join")]
    Join(#[source] ClientError),
    /// The report of [`once`] did not get through, or the server's address can never work.
    #[error("cannot deliver what was seen")]
    Deliver(#[source] ClientError),
    /// The server ended it.
    #[error(transparent)]
    Ended(#[from] Ending),
}

/// What the agent may see on this machine and what not, in a few lines for people; `now` dates the scan that it makes.
/// The container engines at these sockets are asked.
pub fn explain(engine_sockets: &[PathBuf], now: Timestamp) -> String {
    let privileges = gk_scan::privileges();
    let mut lines = vec![format!("Seen: {}.", privileges.seen().join("; "))];
    let unseen = privileges.unseen();
    lines.extend(unseen.iter().map(|(what, lacks)| format!("Not seen: {what} ({lacks} missing).")));
    if !unseen.is_empty() {
        lines.push("To see all of it, run as root, or give the agent what is missing.".to_owned());
    }
    lines.push(match Scanner::of_all_namespaces().and_then(|mut scanner| scanner.scan(now)) {
        Ok(scan) => count(&scan),
        Err(error) => format!("Right now nothing is seen: {error}."),
    });
    lines.extend(engine::explain(engine_sockets));
    lines.push(explain_protection());
    lines.join("\n")
}

fn count(scan: &Scan) -> String {
    let Scan { listeners, coverage, .. } = scan;
    let seen: BTreeSet<Netns> = coverage.parts.iter().map(|part| part.netns).collect();
    let missed = coverage.namespaces.keys().filter(|netns| !seen.contains(netns)).count();
    let (listeners, namespaces) = (listeners.len(), seen.len());
    let denied = if missed == 0 { String::new() } else { format!(", {missed} more that deny it") };
    let hidden =
        if coverage.knows_all_namespaces { "" } else { ", and perhaps others with hidden processes" };
    format!(
        "Right now: listeners: {listeners}; network namespaces: {namespaces} looked into{denied}{hidden}."
    )
}

/// Whether `--protect` would work. Asked of the list itself: what CAP_NET_ADMIN allows, a mount may forbid.
fn explain_protection() -> String {
    let gives = "keep the kernel from giving reserved ports away by itself";
    match gk_scan::ReservedList::open() {
        Ok(_) => format!("With --protect it can {gives}: as root, or by CAP_NET_ADMIN."),
        Err(error) => format!("With --protect it could {gives}, but {}.", protect::why_not(&error)),
    }
}
