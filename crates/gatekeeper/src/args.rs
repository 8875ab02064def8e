//! The command line. Most options can also be set in the environment, as `GATEKEEPER_…`; those can also stand in the
//! configuration file (`gk-program`).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use gatekeeper_agent::{AgentArgs, EngineArgs};
use gk_model::paths;
use gk_program::{LogArgs, env, is_root, switch};
use gk_store::{DatabaseUrl, StoreConfig};

use crate::surface::SurfaceArgs;
use crate::tls::TlsArgs;

/// Which port may a service use on a machine, and who is using it?
#[derive(Parser)]
#[command(name = "gatekeeper", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "To try it: `gatekeeper dev` here, and `gkctl port list` in a second terminal.")]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) role: Role,
    #[command(flatten)]
    pub(crate) logs: LogArgs,
}

/// What to be.
#[derive(Subcommand)]
pub(crate) enum Role {
    /// Serve the API: keeps reservations and observations, answers `gkctl` and agents.
    Server(ServerArgs),
    /// Watch this machine's listeners and tell the server about every change.
    Agent(AgentArgs),
    /// Server and agent of this machine in one process: the way to try Gatekeeper.
    Dev(ServerArgs),
    /// Print the listeners of this machine, without any server.
    Scan(ScanArgs),
    /// Copy the database into a file, also while the server runs.
    Backup(CopyArgs),
    /// Make a database from a backup: in a new data directory, or another kind of database.
    Restore(CopyArgs),
    /// Check the database, also while the server runs; nothing is changed. Ends with 1 when something is wrong.
    Verify(VerifyArgs),
    /// Print the options that would be in force, where each comes from, and no secret: as a file for --config. Those of
    /// the server, unless told otherwise.
    Config(Box<ConfigArgs>),
}

/// `gatekeeper scan` as a program of its own: it is over before the options of all other roles are made.
#[derive(Parser)]
#[command(name = "scan", bin_name = "gatekeeper scan", max_term_width = 100)]
#[command(about = "Print the listeners of this machine, without any server")]
pub(crate) struct ScanAlone {
    #[command(flatten)]
    scan: ScanArgs,
    #[command(flatten)]
    logs: LogArgs,
}

impl From<ScanAlone> for Args {
    fn from(ScanAlone { scan, logs }: ScanAlone) -> Args {
        Args { role: Role::Scan(scan), logs }
    }
}

impl Args {
    /// What no single option can tell.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        match &self.role {
            Role::Server(args) | Role::Dev(args) => args.check(),
            Role::Agent(args) => args.check(),
            Role::Config(config) => match &config.role {
                None => config.server.check(),
                Some(Configured::Server(args) | Configured::Dev(args)) => args.check(),
                Some(Configured::Agent(args)) => args.check(),
            },
            Role::Scan(_) | Role::Backup(_) | Role::Restore(_) | Role::Verify(_) => Ok(()),
        }
    }
}

#[derive(ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    role: Option<Configured>,
    #[command(flatten)]
    server: ServerArgs,
}

/// Whose options.
#[derive(Subcommand)]
enum Configured {
    /// Of `gatekeeper server`.
    Server(ServerArgs),
    /// Of `gatekeeper agent`.
    Agent(AgentArgs),
    /// Of `gatekeeper dev`.
    Dev(ServerArgs),
}

/// Which database.
#[derive(ClapArgs)]
pub(crate) struct DatabaseArgs {
    /// A file of options in TOML, or `none`: `listen = "0.0.0.0:5000"`. The command line and the environment go before it.
    /// Default: /etc/gatekeeper/server.toml if it is there, and none for `dev`.
    #[arg(long, env = "GATEKEEPER_CONFIG", hide_env_values = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data directory. Default: /var/lib/gatekeeper/server for root, else ~/.local/share/gatekeeper/server.
    #[arg(
        long,
        env = "GATEKEEPER_DATA",
        hide_env_values = true,
        value_name = "DIR",
        default_value_os_t = paths::data_dir(is_root(), env),
        hide_default_value = true
    )]
    pub(crate) data: PathBuf,
    /// A PostgreSQL database instead of SQLite in the data directory; several servers may share it. Written
    /// postgres://USER@HOST/NAME; one with a password belongs into the environment, as DATABASE_URL, or into the file.
    #[arg(long, env = "GATEKEEPER_DATABASE", hide_env_values = true, value_name = "URL")]
    database: Option<String>,
}

impl DatabaseArgs {
    /// Which store: the one named, or SQLite in the data directory.
    pub(crate) fn store(&self) -> anyhow::Result<StoreConfig> {
        let database: Option<DatabaseUrl> = self.database.as_deref().map(str::parse).transpose()?;
        Ok(StoreConfig { database, ..StoreConfig::embedded(self.data.clone()) })
    }
}

#[derive(ClapArgs)]
pub(crate) struct CopyArgs {
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    /// The backup. It holds hashes of secrets, never a secret, and is for its owner's eyes only.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

#[derive(ClapArgs)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
}

#[derive(ClapArgs)]
pub(crate) struct ServerArgs {
    /// Where to listen, for HTTP or HTTPS.
    #[arg(long, env = "GATEKEEPER_LISTEN", hide_env_values = true, default_value = paths::DEFAULT_LISTEN, value_name = "ADDRESS:PORT")]
    pub(crate) listen: SocketAddr,
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    /// How many days history is kept, at least 1.
    #[arg(long, env = "GATEKEEPER_RETENTION", hide_env_values = true, default_value = "400", value_name = "DAYS", value_parser = retention)]
    pub(crate) retention: Duration,
    /// How many events are kept at most, however young, as 500k or 50M; left out, all of those days.
    #[arg(long, env = "GATEKEEPER_RETENTION_EVENTS", hide_env_values = true, value_name = "COUNT", value_parser = event_count)]
    pub(crate) retention_events: Option<u64>,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
    /// Serve plain HTTP where others can reach it, as behind a proxy that speaks TLS.
    #[arg(long, env = "GATEKEEPER_INSECURE_HTTP", hide_env_values = true, value_parser = switch)]
    pub(crate) insecure_http: bool,
    #[command(flatten)]
    pub(crate) surface: SurfaceArgs,
    /// How many changes one transaction may carry. For the benchmark, which compares with 1: fewer only make it slower.
    #[arg(long, hide = true, value_name = "CHANGES", value_parser = clap::value_parser!(u32).range(1..))]
    max_batch: Option<u32>,
}

impl ServerArgs {
    fn check(&self) -> anyhow::Result<()> {
        self.tls.check()?;
        if self.listen.ip().is_loopback() || self.tls.is_wanted() || self.insecure_http {
            return Ok(());
        }
        bail!(
            "refusing to serve plain HTTP on {}, which others can reach: say --tls auto, or name a certificate with \
             --tls-cert and --tls-key, or listen on 127.0.0.1 behind a proxy that speaks TLS, or say --insecure-http",
            self.listen
        )
    }

    /// Which store, and how it writes.
    pub(crate) fn store(&self) -> anyhow::Result<StoreConfig> {
        let mut config = self.database.store()?;
        if let Some(most) = self.max_batch {
            config.max_batch = most as usize;
        }
        Ok(config)
    }
}

#[derive(ClapArgs)]
pub(crate) struct ScanArgs {
    #[command(flatten)]
    pub(crate) engines: EngineArgs,
    /// Also print ports that are taken without a listener: UDP clients, and sockets that are bound only.
    #[arg(long)]
    pub(crate) all: bool,
    /// Look at no process, which is quicker where they have many open files: leaves out who holds each listener, and other
    /// network namespaces.
    #[arg(long)]
    pub(crate) no_processes: bool,
    /// How to print: table or json.
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT", hide_possible_values = true)]
    pub(crate) output: Output,
}

/// Forms of output.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// `400`, or `400d` as ages are written elsewhere.
fn retention(text: &str) -> Result<Duration, &'static str> {
    match text.strip_suffix('d').unwrap_or(text).parse::<u32>() {
        Ok(days) if days > 0 => Ok(Duration::from_secs(u64::from(days) * 86_400)),
        _ => Err("a number of days, at least 1"),
    }
}

/// `50000`, `500k` or `50M`. Fewer than a thousand would not tell what happened this morning.
fn event_count(text: &str) -> Result<u64, &'static str> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1_000),
        None => text.strip_suffix(['m', 'M']).map_or((text, 1), |digits| (digits, 1_000_000)),
    };
    let count = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(unit));
    count.filter(|count| *count >= 1_000).ok_or("a number of events, at least 1000, as 500k or 50M")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Args::command().debug_assert();
    }

    #[test]
    fn scan_alone_is_the_scan_of_all_roles() {
        let mut all = super::Args::command();
        all.build();
        let of_all = all.find_subcommand_mut("scan").unwrap().render_long_help().to_string();
        assert_eq!(super::ScanAlone::command().render_long_help().to_string(), of_all);
    }

    #[test]
    fn events_are_counted_in_thousands_and_millions() {
        let table = [("1000", 1_000), ("500k", 500_000), ("500K", 500_000), ("50M", 50_000_000)];
        for (text, count) in table {
            assert_eq!(super::event_count(text), Ok(count), "{text}");
        }
        for bad in
            ["0", "999", "", "k", "1.5M", "-5k", "50G", "99999999999999999999", "18446744073709551615M"]
        {
            assert!(super::event_count(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn history_is_kept_for_whole_days() {
        let days = |text| super::retention(text).map(|span| span.as_secs() / 86_400);
        assert_eq!((days("400"), days("1d")), (Ok(400), Ok(1)));
        for bad in ["0", "0d", "-1", "", "d", "7w", "99999999999"] {
            assert!(days(bad).is_err(), "{bad:?}");
        }
    }
}
