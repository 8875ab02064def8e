//! What can be typed after `gkctl pool`.

use clap::{Args as ClapArgs, Subcommand};
use gk_model::labels::Selector;
use gk_model::pool::{Pick, Quarantine};
use gk_model::port::PortRange;
use gk_model::port_set::PortSet;
use gk_model::reservation::Scope;
use gk_model::text::{Note, PoolName};

use super::or_none::OrNone;
use super::token::span;

const SET_EXAMPLES: &str = "\
Example: gkctl pool set web --ports 8000-8999,9100 --exclude 8080 --for env=prod
To change one thing: gkctl pool set web --quarantine 5m

A new pool needs --ports; what else is left out is --scope instance, --pick lowest, --quarantine 15m, for every \
instance. Of a pool that is there, what is left out stays as it is.
An empty text takes --exclude, --for or --note off again.

What was drawn from a pool stays reserved, whatever becomes of the pool.";

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum PoolVerb {
    /// Make a pool, or change one.
    #[command(after_help = SET_EXAMPLES)]
    Set(SetPool),
    /// List pools, and how full they are.
    #[command(after_help = "Example: gkctl pool list\n\n\
                            RESERVED counts all instances, TCP and UDP; FULLEST is where the fewest ports are left.")]
    List,
    /// Show a pool, and how full it is.
    #[command(after_help = "Example: gkctl pool show web")]
    Show(OnePool),
    /// Delete a pool; what was drawn from it stays reserved.
    #[command(after_help = "Example: gkctl pool delete web")]
    Delete(OnePool),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct OnePool {
    /// The pool.
    #[arg(value_name = "NAME")]
    pub(crate) name: PoolName,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SetPool {
    /// The pool.
    #[arg(value_name = "NAME")]
    pub(crate) name: PoolName,
    /// Its ports, as in 8000-8999,9100.
    #[arg(long, value_name = "RANGES", value_parser = ranges)]
    pub(crate) ports: Option<PortSet>,
    /// Ports among them that it never gives.
    #[arg(long, value_name = "RANGES", value_parser = ranges_or_none)]
    pub(crate) exclude: Option<PortSet>,
    /// Where what is drawn from it excludes others: instance or fleet.
    #[arg(long)]
    pub(crate) scope: Option<Scope>,
    /// Which free port it gives: lowest, or random.
    #[arg(long)]
    pub(crate) pick: Option<Pick>,
    /// How long a released port is not given again: 15m, 1h, 0s.
    #[arg(long, value_name = "SPAN", value_parser = span::<Quarantine>)]
    pub(crate) quarantine: Option<Quarantine>,
    /// Only instances with these labels draw from it, as in 'env=dev,team in (web,api)'.
    #[arg(long = "for", value_name = "SELECTOR")]
    pub(crate) instances: Option<OrNone<Selector>>,
    /// It may have ports of 32768-60999, which Linux gives to outgoing connections.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) ephemeral: Option<bool>,
    /// A remark.
    #[arg(long, value_name = "TEXT")]
    pub(crate) note: Option<OrNone<Note>>,
}

/// `8000-8999,9100`.
fn ranges(text: &str) -> Result<PortSet, String> {
    let mut ports = PortSet::default();
    for range in text.split(',') {
        let range: PortRange =
            range.trim().parse().map_err(|error: gk_model::port::PortError| error.to_string())?;
        ports.insert_range(range);
    }
    Ok(ports)
}

fn ranges_or_none(text: &str) -> Result<PortSet, String> {
    if text.is_empty() { Ok(PortSet::default()) } else { ranges(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_ranges_with_commas_between() {
        let said = |text: &str| ranges(text).map(|ports| gk_model::pool::list(&ports));
        assert_eq!(said("9100, 8000:8999,8005").as_deref(), Ok("8000-8999,9100"));
        for (bad, says) in [("", "`` is not a port"), ("80,", "`` is not a port"), ("9-2", "as in 2-9")] {
            let error = said(bad).unwrap_err();
            assert!(error.contains(says), "{bad:?}: {error}");
        }
        assert!(ranges_or_none("").unwrap().is_empty());
    }
}
