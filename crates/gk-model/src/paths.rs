//! Where things are: routes of the API, and files of an installation.
//!
//! The environment is passed in as a function, so that this stays a pure table of conventions.

use std::path::{Path, PathBuf};

use crate::id::{InstanceRef, ReservationId, TokenId};
use crate::text::{IgnoreName, PoolName};

/// The address a server listens on, and a client tries, unless told otherwise.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:5000";

/// Instances: list and join.
pub const INSTANCES: &str = "/v1/instances";
/// Port states of the whole fleet.
pub const PORTS: &str = "/v1/ports";
/// Reservations: list and reserve.
pub const RESERVATIONS: &str = "/v1/reservations";
/// Intervals.
pub const HISTORY: &str = "/v1/history";
/// Events.
pub const EVENTS: &str = "/v1/events";
/// Events as they happen.
pub const EVENT_STREAM: &str = "/v1/events/stream";
/// Tokens: list and make.
pub const TOKENS: &str = "/v1/tokens";
/// Where reality differs from the plan.
pub const DRIFT: &str = "/v1/drift";
/// The fleet in a few numbers.
pub const STATUS: &str = "/v1/status";
/// Ignore rules.
pub const IGNORES: &str = "/v1/ignores";
/// Pools.
pub const POOLS: &str = "/v1/pools";
/// Who one is.
pub const WHOAMI: &str = "/v1/whoami";
/// Liveness, and what the server says of itself.
pub const HEALTH: &str = "/healthz";
/// Readiness.
pub const READY: &str = "/readyz";

/// One instance.
pub fn instance(instance: &InstanceRef) -> String {
    format!("{INSTANCES}/{instance}")
}

/// Contacts of one instance.
pub fn contact(instance: &InstanceRef) -> String {
    format!("{INSTANCES}/{instance}/contact")
}

/// Port states of one instance.
pub fn instance_ports(instance: &InstanceRef) -> String {
    format!("{INSTANCES}/{instance}/ports")
}

/// The numbers that are reserved on one instance.
pub fn reserved_ports(instance: &InstanceRef) -> String {
    format!("{INSTANCES}/{instance}/reserved")
}

/// One reservation.
pub fn reservation(id: ReservationId) -> String {
    format!("{RESERVATIONS}/{id}")
}

/// The lease of one reservation.
pub fn renew(id: ReservationId) -> String {
    format!("{RESERVATIONS}/{id}/renew")
}

/// One pool.
pub fn pool(name: &PoolName) -> String {
    format!("{POOLS}/{name}")
}

/// One token.
pub fn token(id: TokenId) -> String {
    format!("{TOKENS}/{id}")
}

/// One ignore rule.
pub fn ignore(name: &IgnoreName) -> String {
    format!("{IGNORES}/{name}")
}

/// The server's Unix socket inside its data directory.
pub const SOCKET_FILE: &str = "gatekeeper.sock";
/// Who this machine is, inside the agent's state directory; world-readable.
pub const IDENTITY_FILE: &str = "instance.json";
/// The instance's credential, inside the agent's state directory; mode 0600.
pub const CREDENTIAL_FILE: &str = "credential";
/// A credential that the server may or may not know, while a join is under way; mode 0600.
pub const PENDING_CREDENTIAL_FILE: &str = "credential.pending";
/// The agent's session, inside its state directory; mode 0600.
pub const SESSION_FILE: &str = "session.json";
/// What the agent put into the kernel's list of reserved ports, inside its state directory; mode 0600.
pub const PROTECTION_FILE: &str = "protection.json";
/// What container engines told the agent last, inside its state directory; mode 0600.
pub const ENGINES_FILE: &str = "engines.json";
/// What an agent has not told yet while the server is away.
pub const SPOOL_FILE: &str = "spool";

/// Locked by the agent that runs, inside its state directory.
pub const AGENT_LOCK_FILE: &str = "agent.lock";

/// Tokens that `gkctl login` keeps, inside the configuration directory; mode 0600.
pub const LOGIN_FILE: &str = "login.json";

const SYSTEM: &str = "/var/lib/gatekeeper";

/// Where the server keeps its data: `GATEKEEPER_DATA`, else `/var/lib/gatekeeper/server` for root, else under
/// `$XDG_DATA_HOME`.
pub fn data_dir(is_root: bool, env: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    place("GATEKEEPER_DATA", "server", ("XDG_DATA_HOME", ".local/share"), is_root, env)
}

/// Where the agent keeps its identity and state: `GATEKEEPER_STATE`, else `/var/lib/gatekeeper/agent` for root, else
/// under `$XDG_STATE_HOME`.
pub fn state_dir(is_root: bool, env: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    place("GATEKEEPER_STATE", "agent", ("XDG_STATE_HOME", ".local/state"), is_root, env)
}

/// Where an account keeps what it chose: under `$XDG_CONFIG_HOME`, also for root.
pub fn config_dir(env: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    under_home("XDG_CONFIG_HOME", ".config", env)
}

/// The state directory of the system's own agent, where an account without one of its own finds "this machine".
pub fn system_state_dir() -> PathBuf {
    Path::new(SYSTEM).join("agent")
}

fn place(
    variable: &str,
    role: &str,
    (xdg, below_home): (&str, &str),
    is_root: bool,
    env: impl Fn(&str) -> Option<PathBuf>,
) -> PathBuf {
    match env(variable).filter(|path| !path.as_os_str().is_empty()) {
        Some(chosen) => chosen,
        None if is_root => Path::new(SYSTEM).join(role),
        None => under_home(xdg, below_home, env).join(role),
    }
}

fn under_home(xdg: &str, below_home: &str, env: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    // Without a home there is no place of one's own: better a path that cannot be made than the working directory.
    let home = || env("HOME").unwrap_or_else(|| PathBuf::from("/nonexistent")).join(below_home);
    env(xdg).filter(|path| path.is_absolute()).unwrap_or_else(home).join("gatekeeper")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_follow_the_account_and_the_environment() {
        let none = |_: &str| None;
        assert_eq!(data_dir(true, none), Path::new("/var/lib/gatekeeper/server"));
        assert_eq!(state_dir(true, none), system_state_dir());
        let home = |name: &str| (name == "HOME").then(|| PathBuf::from("/home/ada"));
        assert_eq!(data_dir(false, home), Path::new("/home/ada/.local/share/gatekeeper/server"));
        assert!(data_dir(false, none).is_absolute(), "no secret lands in the working directory");
        assert_eq!(config_dir(home), Path::new("/home/ada/.config/gatekeeper"));
        let xdg = |name: &str| (name == "XDG_STATE_HOME").then(|| PathBuf::from("/state"));
        assert_eq!(state_dir(false, xdg), Path::new("/state/gatekeeper/agent"));
        let chosen = |name: &str| (name == "GATEKEEPER_STATE").then(|| PathBuf::from("/x"));
        assert_eq!(state_dir(true, chosen), Path::new("/x"));
    }
}
