//! `gatekeeper scan`: what the agent sees, printed.

use std::io::Write as _;
use std::net::IpAddr;

use anyhow::Context as _;
use comfy_table::{ContentArrangement, Table, presets};
use gk_model::listener::{Listener, ListenerKey};
use gk_model::time::Timestamp;
use gk_scan::{Scan, Scanner};

use crate::args::{Output, ScanArgs};

/// Scans once and prints to standard output.
pub(crate) fn run(args: &ScanArgs) -> anyhow::Result<()> {
    let mut scanner = Scanner::new().context("cannot ask the kernel")?;
    let now = Timestamp::from_clock();
    let scan = if args.all { scanner.scan_occupied(now) } else { scanner.scan(now) };
    let scan = scan.context("cannot scan")?;
    let text = match args.output {
        Output::Table => table(&scan, args.all),
        Output::Json => json(&scan)?,
    };
    let privileges = gk_scan::privileges();
    if args.output == Output::Table && !privileges.sees_other_accounts() {
        eprintln!("{privileges}");
    }
    match writeln!(std::io::stdout(), "{text}") {
        // `gatekeeper scan | head` is no error.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write"),
    }
}

fn json(scan: &Scan) -> anyhow::Result<String> {
    let everything = serde_json::json!({
        "listeners": scan.listeners,
        "occupied": scan.occupied,
        "covered": scan.covered,
    });
    serde_json::to_string_pretty(&everything).context("cannot write JSON")
}

fn table(scan: &Scan, all: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["PORT", "ADDRESS", "PROCESS", "ACCOUNT", "UNIT OR CONTAINER"]);
    for listener in &scan.listeners {
        let port = format!("{}/{}", listener.key.port, listener.key.protocol);
        table.add_row([
            port,
            address(&listener.key),
            processes(listener),
            account(listener),
            place(listener),
        ]);
    }
    for occupied in scan.occupied.iter().filter(|_| all) {
        let port = format!("{}/{}", occupied.port, occupied.protocol);
        table.add_row([port, String::new(), "(no listener)".to_owned(), String::new(), String::new()]);
    }
    table.trim_fmt()
}

/// `*` is IPv4's wildcard, `[::]` IPv6's; a dual-stack `[::]` is written as both.
fn address(key: &ListenerKey) -> String {
    let address = match key.address {
        IpAddr::V4(address) if address.is_unspecified() => "*".to_owned(),
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) if address.is_unspecified() && !key.v6only => "* [::]".to_owned(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    match &key.interface {
        Some(interface) => format!("{address}%{interface}"),
        None => address,
    }
}

fn processes(listener: &Listener) -> String {
    let names: Vec<String> =
        listener.owners.iter().map(|owner| format!("{} {}", owner.name, owner.pid)).collect();
    names.join(", ")
}

fn account(listener: &Listener) -> String {
    listener.account.as_ref().map(ToString::to_string).unwrap_or_default()
}

fn place(listener: &Listener) -> String {
    match (&listener.container, &listener.unit) {
        (Some(container), _) => {
            format!("{} {}", container.engine, container.name.as_ref().unwrap_or(&container.id))
        }
        (None, Some(unit)) => unit.to_string(),
        (None, None) => String::new(),
    }
}
