//! The command line. Every option can also be set in the environment, as `GATEKEEPER_…`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use gk_client::ServerAddress;
use gk_model::paths;
use gk_model::text::InstanceName;

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
}

#[derive(ClapArgs)]
pub(crate) struct ServerArgs {
    /// Where to listen for HTTP.
    #[arg(long, env = "GATEKEEPER_LISTEN", hide_env_values = true, default_value = paths::DEFAULT_LISTEN, value_name = "ADDRESS:PORT")]
    pub(crate) listen: SocketAddr,
    /// The data directory, of this server alone. Default: /var/lib/gatekeeper/server for root, else
    /// ~/.local/share/gatekeeper/server.
    #[arg(long, env = "GATEKEEPER_DATA", hide_env_values = true, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Serve plain HTTP where others can reach it, as behind a proxy that speaks TLS.
    #[arg(long, env = "GATEKEEPER_INSECURE_HTTP", hide_env_values = true, value_parser = switch)]
    pub(crate) insecure_http: bool,
}

#[derive(ClapArgs)]
pub(crate) struct AgentArgs {
    /// The server, when it is not the one this machine joined: http://HOST:PORT or unix:PATH.
    #[arg(long, env = "GATEKEEPER_SERVER", hide_env_values = true, value_name = "ADDRESS")]
    pub(crate) server: Option<ServerAddress>,
    /// A file with a join token: join by itself if this machine has not.
    #[arg(long, value_name = "FILE")]
    pub(crate) join_token_file: Option<PathBuf>,
    /// The name to join under; the host name when left out.
    #[arg(long, value_name = "NAME", requires = "join_token_file")]
    pub(crate) name: Option<InstanceName>,
    /// The longest time between two full reports, in seconds: 5 to 300.
    #[arg(long, default_value = "300", value_name = "SECONDS", value_parser = report_interval)]
    pub(crate) report_interval: Duration,
    /// Where the identity of this machine is kept. Default: /var/lib/gatekeeper/agent for root, else
    /// ~/.local/state/gatekeeper/agent.
    #[arg(long, env = "GATEKEEPER_STATE", hide_env_values = true, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Send the credential in clear over a network.
    #[arg(long, env = "GATEKEEPER_INSECURE_HTTP", hide_env_values = true, value_parser = switch)]
    pub(crate) insecure_http: bool,
    /// Deliver one full report and end, as for cron.
    #[arg(long)]
    pub(crate) once: bool,
    /// Say what the agent may see on this machine and what not, and end.
    #[arg(long, conflicts_with = "once")]
    pub(crate) explain: bool,
}

#[derive(ClapArgs)]
pub(crate) struct ScanArgs {
    /// Also print ports that are taken without a listener: UDP clients, and sockets that are bound only.
    #[arg(long)]
    pub(crate) all: bool,
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

#[derive(ClapArgs)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct LogArgs {
    /// What to log: error, warn, info, debug, trace, or a filter such as gk_agent=debug,info.
    #[arg(
        long,
        global = true,
        env = "GATEKEEPER_LOG",
        hide_env_values = true,
        default_value = "info",
        value_name = "FILTER"
    )]
    pub(crate) log: String,
    /// How to log, always to standard error: text or json.
    #[arg(long, global = true, env = "GATEKEEPER_LOG_FORMAT", hide_env_values = true, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT", hide_possible_values = true)]
    pub(crate) log_format: LogFormat,
}

/// Forms of log lines.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What a switch may be in the environment; empty is as good as unset, as for every other variable.
fn switch(text: &str) -> Result<bool, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "" | "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("write 1 or 0"),
    }
}

fn report_interval(text: &str) -> Result<Duration, String> {
    let range = gk_agent::AgentConfig::REPORT_INTERVALS;
    match text.parse().map(Duration::from_secs) {
        Ok(interval) if range.contains(&interval) => Ok(interval),
        _ => {
            Err(format!("a number of seconds from {} to {}", range.start().as_secs(), range.end().as_secs()))
        }
    }
}

/// The environment as `gk_model::paths` wants it.
pub(crate) fn env(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Args::command().debug_assert();
    }

    #[test]
    fn a_switch_in_the_environment_is_read_as_people_write_it() {
        let table =
            [("1", Ok(true)), ("TRUE", Ok(true)), ("on", Ok(true)), ("", Ok(false)), ("0", Ok(false))];
        for (text, read) in table {
            assert_eq!(super::switch(text), read, "{text:?}");
        }
        assert!(super::switch("nope").is_err());
    }
}
