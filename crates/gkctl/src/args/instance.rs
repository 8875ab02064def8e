//! What can be typed after `gkctl instance`.

use std::num::NonZeroU32;

use clap::{Args as ClapArgs, Subcommand};
use gk_model::id::InstanceRef;
use gk_model::instance::Presence;
use gk_model::text::InstanceName;

#[derive(Debug, Subcommand)]
pub(crate) enum InstanceVerb {
    /// Bring this machine in, or refresh what is known of it.
    #[command(after_help = "Example: gkctl instance join --name web-1\n\n\
                            With a join token: gkctl instance join --server http://127.0.0.1:5000, which asks for it; \
                            in a script, --token-file FILE, where - is stdin.")]
    Join(Join),
    /// List the machines that have joined.
    #[command(after_help = "Example: gkctl instance list --presence offline")]
    List(InstanceFilters),
    /// Show everything that is known of a machine.
    #[command(after_help = "Example: gkctl instance show web-1")]
    Show(OneInstance),
    /// Take a machine out; its history stays.
    #[command(after_help = "Example: gkctl instance leave --release")]
    Leave(Leave),
    /// Give a machine another name.
    #[command(
        after_help = "Example: gkctl instance rename web-1 web-2",
        override_usage = "gkctl instance rename [OPTIONS] [INSTANCE] <NEW-NAME>"
    )]
    Rename(Rename),
}

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct Join {
    /// The name to join under; the host name when left out.
    #[arg(long)]
    pub(crate) name: Option<InstanceName>,
    /// Take over this instance's id, because its credential was lost.
    #[arg(long, value_name = "INSTANCE")]
    pub(crate) replace: Option<InstanceRef>,
}

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct InstanceFilters {
    /// Only the one with this name.
    #[arg(long)]
    pub(crate) name: Option<InstanceName>,
    /// Only those that are online, offline, or have left.
    #[arg(long)]
    pub(crate) presence: Option<Presence>,
    /// Show their ids too.
    #[arg(long)]
    pub(crate) wide: bool,
    /// Only those with this text in their name.
    #[arg(short = 'q', long, value_name = "TEXT")]
    pub(crate) search: Option<String>,
    /// At most so many.
    #[arg(long, value_name = "COUNT")]
    pub(crate) limit: Option<NonZeroU32>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct OneInstance {
    /// Its name or id; this machine when left out.
    #[arg(value_name = "INSTANCE")]
    pub(crate) which: Option<InstanceRef>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Leave {
    /// Its name or id; this machine when left out.
    #[arg(value_name = "INSTANCE")]
    pub(crate) which: Option<InstanceRef>,
    /// Release its reservations too.
    #[arg(long)]
    pub(crate) release: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Rename {
    /// The instance (this machine when left out), then its new name.
    // One list, because a required value cannot follow an optional one.
    #[arg(value_name = "NAMES", num_args = 1..=2, required = true)]
    pub(crate) names: Vec<InstanceRef>,
}
