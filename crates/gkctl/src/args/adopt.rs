//! What can be typed after `gkctl port adopt`.

use clap::{ArgGroup, Args as ClapArgs};
use gk_model::port::{Port, Protocol};
use gk_model::text::{Note, ServiceName};

pub(super) const ADOPT_EXAMPLES: &str = "\
Example: gkctl port adopt 8080 --service web
A whole machine: gkctl port adopt --all --dry-run, and then without --dry-run

Service names come from container, unit or program unless --service gives one, and from then on that container,
unit or program is expected there: whoever else listens is a conflict.

--all asks of each port. Whatever was answered is done, so it may be interrupted, and goes on where it was. It
also offers ignore rules for what nearly every machine runs, such as sshd.";

#[derive(Debug, Default, ClapArgs)]
#[command(group = ArgGroup::new("which").required(true).args(["number", "all"]))]
pub(crate) struct Adopt {
    /// The port.
    #[arg(value_name = "PORT", allow_negative_numbers = true)]
    pub(crate) number: Option<Port>,
    /// Every port of the machine that is listened on and not reserved.
    #[arg(long)]
    pub(crate) all: bool,
    /// tcp or udp; only needed when both are listened on.
    #[arg(long)]
    pub(crate) protocol: Option<Protocol>,
    /// What it is for.
    #[arg(long, conflicts_with = "all")]
    pub(crate) service: Option<ServiceName>,
    /// A remark.
    #[arg(long, value_name = "TEXT", conflicts_with = "all")]
    pub(crate) note: Option<Note>,
    /// Expect nobody in particular there.
    #[arg(long)]
    pub(crate) no_expect: bool,
    /// Take all of what is offered, ignore rules included, and ask nothing.
    #[arg(long, conflicts_with = "number")]
    pub(crate) yes: bool,
    /// Only show what would be offered.
    #[arg(long, conflicts_with_all = ["number", "yes"])]
    pub(crate) dry_run: bool,
}
