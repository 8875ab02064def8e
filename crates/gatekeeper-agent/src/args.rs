//! The agent's options.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::Args as ClapArgs;
use gk_client::ServerAddress;
use gk_model::paths;
use gk_model::pin::Pin;
use gk_model::text::InstanceName;
use gk_program::{env, is_root, switch};

/// How an agent is to run.
#[derive(ClapArgs)]
pub struct AgentArgs {
    /// A file of options in TOML, or `none`: `protect = true`. The command line and the environment go before it. Default:
    /// /etc/gatekeeper/agent.toml if it is there.
    #[arg(long, env = "GATEKEEPER_CONFIG", hide_env_values = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The server, when it is not the one this machine joined: https://HOST:PORT, http://HOST:PORT or unix:PATH.
    #[arg(long, env = "GATEKEEPER_SERVER", hide_env_values = true, value_name = "ADDRESS")]
    pub(crate) server: Option<ServerAddress>,
    /// The pin of the server's authority, as the server tells it at start: sha256:… Needed to join only; may be repeated.
    #[arg(
        long,
        env = "GATEKEEPER_CA_PIN",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "PIN"
    )]
    pub(crate) ca_pin: Vec<Pin>,
    /// A file with a join token: join by itself if this machine has not.
    #[arg(long, env = "GATEKEEPER_JOIN_TOKEN_FILE", hide_env_values = true, value_name = "FILE")]
    pub(crate) join_token_file: Option<PathBuf>,
    /// The name to join under; the host name when left out.
    #[arg(long, env = "GATEKEEPER_NAME", hide_env_values = true, value_name = "NAME")]
    pub(crate) name: Option<InstanceName>,
    /// The longest time between two full reports, in seconds: 5 to 300.
    #[arg(
        long,
        env = "GATEKEEPER_REPORT_INTERVAL",
        hide_env_values = true,
        default_value = "300",
        value_name = "SECONDS",
        value_parser = report_interval
    )]
    pub(crate) report_interval: Duration,
    /// Where the identity of this machine is kept. Default: /var/lib/gatekeeper/agent for root, else
    /// ~/.local/state/gatekeeper/agent.
    #[arg(
        long,
        env = "GATEKEEPER_STATE",
        hide_env_values = true,
        value_name = "DIR",
        default_value_os_t = paths::state_dir(is_root(), env),
        hide_default_value = true
    )]
    pub(crate) state_dir: PathBuf,
    /// Send the credential in clear over a network.
    #[arg(long, env = "GATEKEEPER_INSECURE_HTTP", hide_env_values = true, value_parser = switch)]
    pub(crate) insecure_http: bool,
    /// Keep the kernel from giving this machine's reserved ports to outgoing connections and to whoever asks for any
    /// port, by net.ipv4.ip_local_reserved_ports. Needs root or CAP_NET_ADMIN.
    #[arg(long, env = "GATEKEEPER_PROTECT", hide_env_values = true, value_parser = switch)]
    pub(crate) protect: bool,
    #[command(flatten)]
    pub(crate) engines: EngineArgs,
    /// Deliver one full report and end, as for cron.
    #[arg(long)]
    pub(crate) once: bool,
    /// Say what the agent may see on this machine and what not, and end.
    #[arg(long, conflicts_with = "once")]
    pub(crate) explain: bool,
}

impl AgentArgs {
    /// What no single option can tell.
    ///
    /// # Errors
    /// When options do not go together.
    pub fn check(&self) -> anyhow::Result<()> {
        match self.name.is_some() && self.join_token_file.is_none() {
            true => bail!("--name is for a machine that joins by itself, and so needs --join-token-file"),
            false => Ok(()),
        }
    }
}

/// Where container engines are asked.
#[derive(ClapArgs)]
pub struct EngineArgs {
    /// Where to ask a container engine for names of containers and the ports they publish; several times for several, or
    /// `none`. Default: where Docker and Podman listen, in /run and for the account itself.
    #[arg(
        long = "engine-socket",
        env = "GATEKEEPER_ENGINE_SOCKET",
        hide_env_values = true,
        value_name = "PATH",
        value_delimiter = ','
    )]
    sockets: Vec<String>,
}

impl EngineArgs {
    /// As for `dev`, which has no such option: from the environment alone.
    pub fn of_environment() -> EngineArgs {
        let listed = std::env::var("GATEKEEPER_ENGINE_SOCKET").unwrap_or_default();
        EngineArgs { sockets: listed.split(',').map(str::to_owned).collect() }
    }

    /// The sockets to ask.
    pub fn sockets(&self) -> Vec<PathBuf> {
        let mut set = self.sockets.iter().filter(|path| !path.is_empty()).peekable();
        match set.peek() {
            None => gk_agent::well_known_sockets(env("XDG_RUNTIME_DIR").as_deref()),
            Some(_) => set.filter(|path| *path != "none").map(PathBuf::from).collect(),
        }
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

#[cfg(test)]
mod tests {
    #[test]
    fn engines_are_asked_where_told_or_where_they_usually_are_or_nowhere() {
        let sockets = |told: &[&str]| {
            let sockets = told.iter().map(ToString::to_string).collect();
            super::EngineArgs { sockets }.sockets()
        };
        assert!(sockets(&[]).contains(&"/run/docker.sock".into()));
        assert_eq!(sockets(&[""]), sockets(&[]), "empty is as good as unset");
        assert_eq!(sockets(&["/a", "/b"]), ["/a", "/b"].map(std::path::PathBuf::from));
        assert!(sockets(&["none"]).is_empty());
    }
}
