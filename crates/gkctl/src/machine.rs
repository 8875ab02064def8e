//! What this machine itself can tell: its sockets, its facts, and whose process this is. The only module that asks the
//! kernel for more than files and terminals.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context as _, Result};
use gk_client::engines::load_engines;
use gk_client::session::FullReport;
use gk_model::facts::Facts;
use gk_model::listener::{Listener, Netns};
use gk_model::port::{Port, PortRange, Protocol};
use gk_model::port_set::PortSet;
use gk_model::time::Timestamp;

/// The version that is told to servers.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Whose process this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
}

impl Account {
    pub(crate) fn is_root(self) -> bool {
        self.uid == 0
    }
}

/// The account of this process: the owner of its own directory in `/proc` is its effective user. Without a `/proc` it is
/// nobody, who owns no file of tokens.
pub(crate) fn account() -> Account {
    Account { uid: std::fs::metadata("/proc/self").map_or(u32::MAX, |process| process.uid()) }
}

/// What a file system still takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) free_bytes: u64,
    /// None where files are not counted.
    pub(crate) free_files: Option<u64>,
    pub(crate) is_read_only: bool,
}

/// What the file system of this path still takes from accounts other than root.
pub(crate) fn room(path: &Path) -> io::Result<Room> {
    let told = rustix::fs::statvfs(path)?;
    Ok(Room {
        free_bytes: told.f_bavail.saturating_mul(told.f_frsize),
        free_files: (told.f_files > 0).then_some(told.f_favail),
        is_read_only: told.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
    })
}

/// What this machine says of itself.
pub(crate) fn facts() -> Facts {
    gk_scan::facts(VERSION)
}

/// Every port that is taken on this machine now.
pub(crate) fn busy_ports(protocol: Protocol) -> Result<PortSet> {
    let ports = gk_scan::busy_ports(protocol, PortRange::ALL);
    Ok(ports.context("cannot list the sockets of this machine")?.into_iter().collect())
}

/// The lowest port that every program may bind; 1024 unless the kernel was told otherwise.
pub(crate) fn first_unprivileged_port() -> u16 {
    let told = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok();
    told.and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}

/// Binds the port and lets it go again.
pub(crate) fn test_bind(protocol: Protocol, port: Port) -> io::Result<()> {
    gk_scan::test_bind(protocol, port)
}

/// Lets the kernel give these ports by itself again.
pub(crate) fn take_out_of_reserved(ports: &PortSet) -> io::Result<()> {
    gk_scan::ReservedList::open()?.take_out(ports).map(drop)
}

/// Who listens on one of these ports of this machine now, as far as the kernel tells.
pub(crate) fn find_listener(protocol: Protocol, ports: PortRange, now: Timestamp) -> Option<Listener> {
    let scan = gk_scan::Scanner::new().and_then(|mut scanner| scanner.scan(now)).ok()?;
    let on_it = |listener: &Listener| {
        (listener.key.netns, listener.key.protocol) == (Netns::Home, protocol)
            && ports.contains(listener.key.port)
    };
    scan.listeners.into_iter().find(on_it)
}

/// Everything this account may see, as an agent would report it: with what container engines told the last agent, since
/// otherwise the report would close the ports that they publish.
pub(crate) fn full_report(state_dir: &Path, now: Timestamp) -> Result<FullReport> {
    let scan = gk_scan::Scanner::new().and_then(|mut scanner| scanner.scan_occupied(now));
    let mut scan = scan.context("cannot list the sockets of this machine")?;
    // Without it the report is less, and right again with the next agent's: no reason not to report.
    let told = load_engines(state_dir, &facts()).unwrap_or_default();
    told.containers().apply(&mut scan.listeners, now);
    Ok(FullReport { covered: scan.coverage.parts, listeners: scan.listeners, occupied: scan.occupied })
}
