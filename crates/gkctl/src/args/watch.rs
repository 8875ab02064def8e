//! What can be typed to see things as they happen.

use clap::Args as ClapArgs;
use gk_model::labels::Selector;
use gk_model::port::{PortRange, Protocol};

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct WatchPorts {
    /// Only this port or range; up to 256 ports also show the free ones.
    #[arg(value_name = "RANGE", allow_negative_numbers = true)]
    pub(crate) range: Option<PortRange>,
    /// Of the whole fleet.
    #[arg(short = 'A', long)]
    pub(crate) all_instances: bool,
    /// Only tcp or udp.
    #[arg(long)]
    pub(crate) protocol: Option<Protocol>,
    /// Only on instances with these labels, as in env=prod.
    #[arg(long, value_name = "SELECTOR", requires = "all_instances")]
    pub(crate) label: Option<Selector>,
}
