//! `gatekeeper scan`: what the agent sees, printed.

use std::fmt::{Display, Write as _};
use std::io::Write as _;

use anyhow::Context as _;
use gk_model::listener::{Container, Listener, Netns};
use gk_model::text::Observed;
use gk_model::time::Timestamp;
use gk_scan::{Scan, Scanner};

use crate::args::{Output, ScanArgs};

/// Scans once and prints to standard output.
pub(crate) fn run(args: &ScanArgs) -> anyhow::Result<()> {
    let scanner = match args.no_processes {
        true => Scanner::without_processes(),
        false => Scanner::of_all_namespaces(),
    };
    let mut scanner = scanner.context("cannot ask the kernel")?;
    let now = Timestamp::from_clock();
    let scan = if args.all { scanner.scan_occupied(now) } else { scanner.scan(now) };
    let mut scan = scan.context("cannot scan")?;
    if !args.no_processes {
        gk_agent::ask_engines(&args.engines.sockets()).apply(&mut scan.listeners, now);
        scan.listeners.sort_unstable_by(|one, other| one.key.cmp(&other.key));
    }
    let text = match args.output {
        Output::Table => table(&scan, args.all),
        Output::Json => json(&scan)?,
    };
    let privileges = gk_scan::privileges();
    if args.output == Output::Table && !privileges.unseen().is_empty() {
        eprintln!("{privileges}");
    }
    let written = std::io::stdout().write_all(text.as_bytes());
    // The process ends now, and its memory with it: to take all of that apart first would be for nothing.
    std::mem::forget((scanner, scan));
    match written {
        // `gatekeeper scan | head` is no error.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write"),
    }
}

fn json(scan: &Scan) -> anyhow::Result<String> {
    let everything = serde_json::json!({
        "listeners": scan.listeners,
        "occupied": scan.occupied,
        "covered": scan.coverage.parts,
        "namespaces": scan.coverage.namespaces.keys().collect::<Vec<_>>(),
        "knows_all_namespaces": scan.coverage.knows_all_namespaces,
    });
    serde_json::to_string_pretty(&everything).context("cannot write JSON").map(|text| text + "\n")
}

fn table(scan: &Scan, all: bool) -> String {
    // Where there is only the home namespace, two columns that say so for each listener would say nothing.
    let is_whole = scan.listeners.iter().any(is_elsewhere);
    let mut table = Table::of_rows(scan.listeners.len() + scan.occupied.len() + 1);
    table.row(["PORT", "LISTENER", "ADDRESS", "ACCOUNT", "NETNS", "CONTAINER"]);
    for listener in &scan.listeners {
        let key = &listener.key;
        table.cell(format_args!("{}/{}", key.port, key.protocol));
        table.cell(listener.describe());
        table.cell(key.bound_to());
        table.cell(listener.account.as_ref().map_or(NOTHING, Observed::as_str));
        table.cell(key.netns);
        match &listener.container {
            Some(told) => table.cell(container(told)),
            None => table.cell(NOTHING),
        }
    }
    for occupied in scan.occupied.iter().filter(|_| all) {
        table.cell(format_args!("{}/{}", occupied.port, occupied.protocol));
        table.row(["(no listener)", NOTHING, NOTHING, "home", NOTHING]);
    }
    table.align(if is_whole { COLUMNS } else { COLUMNS - 2 })
}

const COLUMNS: usize = 6;

/// Less makes it grow, and more is not touched.
const USUAL_ROW_BYTES: usize = 80;

/// Cells in rows of [`COLUMNS`]. A library of tables took as long for a thousand rows as the scan itself.
struct Table {
    /// One after the other: a text for each would take more memory than the listeners.
    text: String,
    /// Where each ends.
    cells: Vec<u32>,
    /// Of the widest in each column.
    widths: [usize; COLUMNS],
}

impl Table {
    /// For about so many.
    fn of_rows(count: usize) -> Table {
        let (text, cells) =
            (String::with_capacity(count * USUAL_ROW_BYTES), Vec::with_capacity(count * COLUMNS));
        Table { text, cells, widths: [0; COLUMNS] }
    }

    fn cell(&mut self, content: impl Display) {
        let start = self.text.len();
        write!(self.text, "{content}").expect("a string takes everything");
        let widest = &mut self.widths[self.cells.len() % COLUMNS];
        *widest = width(&self.text[start..]).max(*widest);
        self.cells
            .push(u32::try_from(self.text.len()).expect("a machine has no listeners for 4 GiB of text"));
    }

    fn row<const N: usize>(&mut self, cells: [&str; N]) {
        cells.iter().for_each(|cell| self.cell(cell));
    }

    /// The first columns, flush left.
    fn align(&self, columns: usize) -> String {
        let wide: usize = self.widths[..columns].iter().map(|width| width + GAP).sum();
        let mut text = String::with_capacity(self.cells.len() / COLUMNS * wide);
        let blanks = " ".repeat(wide);
        let mut start = 0;
        for (index, end) in self.cells.iter().enumerate() {
            let (column, cell) = (index % COLUMNS, &self.text[start..*end as usize]);
            start = *end as usize;
            if column + 1 < columns {
                text.push_str(cell);
                text.push_str(&blanks[..self.widths[column] - width(cell) + GAP]);
            } else if column + 1 == columns {
                text.push_str(cell);
                text.push('\n');
            }
        }
        text
    }
}

fn width(cell: &str) -> usize {
    if cell.is_ascii() { cell.len() } else { cell.chars().count() }
}

/// Blanks between two columns.
const GAP: usize = 2;

fn is_elsewhere(listener: &Listener) -> bool {
    listener.key.netns != Netns::Home
}

/// As engines write it: its name, else the first twelve digits of the id, or an id that is a name of any length.
fn container(container: &Container) -> String {
    let pod = container.pod.as_ref().map(|pod| format!(" in pod {pod}")).unwrap_or_default();
    if let Some(name) = &container.name {
        return format!("{} {name}{pod}", container.engine);
    }
    let id = container.id.as_str();
    let is_number = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    format!("{} {}{pod}", container.engine, if is_number { &id[..12] } else { id })
}

const NOTHING: &str = "-";

#[cfg(test)]
mod tests {
    use gk_model::listener::{ListenerKey, Owner};
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
            owners: vec![owner].into(),
            more_owners: 0,
            unit: None,
            container: None,
            first_seen_at: at,
            last_seen_at: at,
        };
        let scan = Scan { listeners: vec![listener.clone()], ..Scan::default() };
        assert_eq!(
            table(&scan, false),
            "PORT    LISTENER            ADDRESS  ACCOUNT\n80/tcp  python3 (pid 9301)  [::]     ada\n"
        );
        let mut contained = listener.clone();
        contained.key.netns = Netns::Other(4_026_532_000);
        contained.owners.clear();
        let id = "3f2a91c05b7e4d6f8a1b2c3d4e5f60713f2a91c05b7e4d6f8a1b2c3d4e5f6071";
        let pod = Some("1a-2b".into());
        let container = Container { id: id.into(), name: None, engine: "containerd".into(), pod };
        contained.container = Some(Box::new(container));
        let scan = Scan { listeners: vec![listener, contained], ..Scan::default() };
        let table = table(&scan, false);
        let lines: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split("  ").filter(|cell| !cell.is_empty()).map(str::trim).collect())
            .collect();
        let header = ["PORT", "LISTENER", "ADDRESS", "ACCOUNT", "NETNS", "CONTAINER"];
        let home = ["80/tcp", "python3 (pid 9301)", "[::]", "ada", "home", "-"];
        let there = [
            "80/tcp",
            "containerd container 3f2a91c05b7e",
            "[::]",
            "ada",
            "4026532000",
            "containerd 3f2a91c05b7e in pod 1a-2b",
        ];
        assert_eq!(lines, [header, home, there]);
    }
}
