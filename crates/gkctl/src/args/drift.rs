//! What can be typed after `gkctl drift` and `gkctl ignore`.

use std::num::NonZeroU32;

use clap::{Args as ClapArgs, Subcommand};
use gk_model::drift::DriftKind;
use gk_model::labels::Selector;
use gk_model::port::{PortRange, Protocol};
use gk_model::query::IdleTime;
use gk_model::text::{Expected, IgnoreName, Note, ServiceName, Subject};

use super::token::span;

pub(super) const DRIFT_EXAMPLE: &str = "\
Example: gkctl drift --label env=prod

It ends with 3 when anything differs that no rule ignores, else with 0.
In cron: gkctl drift --idle 30d

  conflict    a reserved port is listened on by somebody else than expected
  unreserved  a port is listened on, and nobody reserved it
  idle        nobody has listened on a reserved port for as long as --idle says";

const SET_EXAMPLES: &str = "\
Example: gkctl ignore set sshd --process sshd --protocol tcp

All that is given must hold, and of everybody who listens on the port. A rule that exists becomes what is said \
now, and nothing of it stays.
On some machines only: gkctl ignore set builds --account ci --ports 20000-29999 --instances env=dev";

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct DriftFilters {
    /// Only on instances with these labels, as in 'env=prod,team in (web,api)'.
    #[arg(long, alias = "on", value_name = "SELECTOR")]
    pub(crate) label: Option<Selector>,
    /// Only this port or range.
    #[arg(long, value_name = "RANGE", allow_negative_numbers = true)]
    pub(crate) port: Option<PortRange>,
    /// Only tcp or udp.
    #[arg(long)]
    pub(crate) protocol: Option<Protocol>,
    /// Only this kind: conflict, unreserved or idle.
    #[arg(long)]
    pub(crate) kind: Option<DriftKind>,
    /// Only what is reserved for this service.
    #[arg(long)]
    pub(crate) service: Option<ServiceName>,
    /// Only what is reserved by this subject.
    #[arg(long, value_name = "SUBJECT")]
    pub(crate) holder: Option<Subject>,
    /// Reservations too that nobody has listened on for so long: 12h, 30d.
    #[arg(long, value_name = "SPAN", value_parser = span::<IdleTime>)]
    pub(crate) idle: Option<IdleTime>,
    /// What a rule ignores, too.
    #[arg(long)]
    pub(crate) ignored: bool,
    /// At most so many.
    #[arg(long, value_name = "COUNT", value_parser = super::at_least_one)]
    pub(crate) limit: Option<NonZeroU32>,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum IgnoreVerb {
    /// List the rules by which drift is ignored.
    #[command(after_help = "Example: gkctl ignore list")]
    List,
    /// Show one rule.
    #[command(after_help = "Example: gkctl ignore show sshd")]
    Show(OneIgnore),
    /// Set what need not be told; `gkctl drift --ignored` shows it all the same.
    #[command(after_help = SET_EXAMPLES)]
    Set(SetIgnore),
    /// Take rules away.
    #[command(after_help = "Example: gkctl ignore delete sshd cups")]
    Delete(DeleteIgnores),
    /// List rules for what nearly every machine runs and nobody plans, such as sshd.
    #[command(after_help = "Example: gkctl ignore defaults --set")]
    Defaults(DefaultIgnores),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct OneIgnore {
    /// Its name.
    pub(crate) name: IgnoreName,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SetIgnore {
    /// What to call it.
    pub(crate) name: IgnoreName,
    /// Only where these processes listen: by command name, or by executable, as a path or a file name.
    #[arg(long, value_name = "NAME")]
    pub(crate) process: Option<Expected>,
    /// Only where this systemd unit listens.
    #[arg(long)]
    pub(crate) unit: Option<Expected>,
    /// Only where this container listens: its name, or the beginning of its id.
    #[arg(long)]
    pub(crate) container: Option<Expected>,
    /// Only where this account listens.
    #[arg(long)]
    pub(crate) account: Option<Expected>,
    /// Only what is bound to a loopback address.
    #[arg(long)]
    pub(crate) loopback: bool,
    /// Only these ports and ranges: 22,8000-8010.
    #[arg(long, value_name = "RANGES", value_delimiter = ',', allow_negative_numbers = true)]
    pub(crate) ports: Vec<PortRange>,
    /// Only tcp or udp.
    #[arg(long)]
    pub(crate) protocol: Option<Protocol>,
    /// Only on instances with these labels, as in env=prod.
    #[arg(long, value_name = "SELECTOR")]
    pub(crate) instances: Option<Selector>,
    /// A remark.
    #[arg(long, value_name = "TEXT")]
    pub(crate) note: Option<Note>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DeleteIgnores {
    /// Their names.
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<IgnoreName>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DefaultIgnores {
    /// Set those of them that are missing.
    #[arg(long)]
    pub(crate) set: bool,
}
