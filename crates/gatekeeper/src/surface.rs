//! What the server lets in over the network: by which names, and how often.

use std::str::FromStr;

use clap::Args as ClapArgs;
use gk_server::{HostName, HostNameError, Hosts, RateLimit};

/// Bounds of the HTTP surface. The Unix socket has none of them.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct SurfaceArgs {
    /// A further name by which clients call this server, as in http://NAME:5000; `*` for any. Addresses, localhost and the
    /// machine's own name need no mention.
    #[arg(long, env = "GATEKEEPER_ALLOW_HOST", hide_env_values = true, value_name = "NAME")]
    allow_host: Vec<Names>,
    /// How many requests a second one token may make in the long run, or one address without a token; ten times as many
    /// at once, and an agent four times as many. `off` for no limit.
    #[arg(
        long,
        env = "GATEKEEPER_RATE_LIMIT",
        hide_env_values = true,
        default_value_t,
        value_name = "REQUESTS"
    )]
    pub(crate) rate_limit: RateLimit,
}

impl SurfaceArgs {
    /// By which names the server may be called.
    pub(crate) fn hosts(&self) -> Hosts {
        let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Hosts::new(machine.trim(), self.allow_host.iter().flat_map(|Names(names)| names).cloned())
    }
}

/// Names between commas, as they stand in the environment; none when it is empty.
#[derive(Clone, Debug)]
struct Names(Vec<HostName>);

impl FromStr for Names {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Names, HostNameError> {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.map(str::parse).collect::<Result<_, _>>().map(Names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_between_commas() {
        let count = |text: &str| text.parse::<Names>().map(|Names(names)| names.len());
        assert_eq!((count("a.example, b"), count("*"), count("")), (Ok(2), Ok(1), Ok(0)));
        assert!(count("a.example:80").is_err());
    }
}
