//! `gatekeeper scan`: what the agent sees, printed.

use std::io::Write as _;

use anyhow::Context as _;
use comfy_table::{ContentArrangement, Table, presets};
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
    table.set_header(["PORT", "LISTENER", "ADDRESS", "ACCOUNT"]);
    for listener in &scan.listeners {
        let port = format!("{}/{}", listener.key.port, listener.key.protocol);
        let account = listener.account.as_ref().map_or_else(nothing, ToString::to_string);
        table.add_row([port, listener.describe(), listener.key.bound_to(), account]);
    }
    for occupied in scan.occupied.iter().filter(|_| all) {
        let port = format!("{}/{}", occupied.port, occupied.protocol);
        table.add_row([port, "(no listener)".to_owned(), nothing(), nothing()]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

fn nothing() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use gk_model::listener::{Listener, ListenerKey, Netns, Owner};
    use gk_model::port::{Port, Protocol};

    use super::*;

    #[test]
    fn the_table_is_flush_left_and_names_owners_in_the_words_of_the_domain() {
        let at = Timestamp::from_micros(0);
        let owner =
            Owner { pid: 9301, started_ticks: 7, name: "python3".into(), exe: None, account: "ada".into() };
        let key = ListenerKey {
            netns: Netns::Home,
            protocol: Protocol::Tcp,
            port: Port::new(80).unwrap(),
            address: "::".parse().unwrap(),
            interface: None,
            v6only: false,
        };
        let listener = Listener {
            key,
            account: Some("ada".into()),
            owners: vec![owner],
            unit: None,
            container: None,
            first_seen_at: at,
            last_seen_at: at,
        };
        let scan = Scan { listeners: vec![listener], ..Scan::default() };
        assert_eq!(
            table(&scan, false),
            "PORT    LISTENER            ADDRESS  ACCOUNT\n80/tcp  python3 (pid 9301)  [::]     ada"
        );
    }
}
