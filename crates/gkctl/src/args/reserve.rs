//! What can be typed after `gkctl port reserve`, `release` and `check`.

use clap::{ArgGroup, Args as ClapArgs};
use gk_model::expect::Expect;
use gk_model::id::{GroupId, ReservationId};
use gk_model::labels::{Label, Selector};
use gk_model::lease::LeaseTime;
use gk_model::port::{Port, PortError, PortRange, Protocol};
use gk_model::query::IdleTime;
use gk_model::reservation::{PortCount, PortCountError, Protocols};
use gk_model::text::{Note, PoolName, PortName, ServiceName};

use super::token::span;

pub(crate) const RESERVE_EXAMPLES: &str = "\
Example: PORT=$(gkctl port reserve --service billing-api)

  gkctl port reserve --count 10                             a range, printed as 8000-8009
  gkctl port reserve --service web --name http --name grpc  several, printed as http=8000
  gkctl port reserve --service web --ensure                 the same one at each start
  gkctl port reserve --on env=prod --protocol both          free on each of these machines
  gkctl port reserve --fleet --all-instances                a number of nobody else anywhere
  gkctl port reserve --service ci --ttl 2h                  ends by itself
  gkctl port reserve --port 8080 --dry-run                  would it be given?

Only numbers go to stdout. All that is asked for is reserved, or nothing.";

pub(crate) const RELEASE_EXAMPLES: &str = "\
Example: gkctl port release 8080

  gkctl port release 8000-8004                part of a range, too
  gkctl port release --service billing --yes  all that you hold for it here
  gkctl port release --idle 30d               lists what nobody listens on, and asks

Several reservations are listed and asked for first; --yes goes on without.";

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct Reserve {
    /// This very port, or range; left out, the next free ones of the pool.
    #[arg(long, value_name = "PORT", allow_negative_numbers = true)]
    pub(crate) port: Option<PortRange>,
    /// So many contiguous ports: 1 to 4096; for each name, if there are several.
    #[arg(long, allow_negative_numbers = true, value_parser = count)]
    pub(crate) count: Option<PortCount>,
    /// tcp, udp, or both: the same number for each.
    #[arg(long, default_value = "tcp")]
    pub(crate) protocol: Protocols,
    /// What it is for.
    #[arg(long)]
    pub(crate) service: Option<ServiceName>,
    /// Which of the service's ports it is; several times for as many ports.
    #[arg(long = "name", value_name = "NAME")]
    pub(crate) names: Vec<PortName>,
    /// On each joined instance with such labels, as in env=prod: the same number.
    #[arg(long, value_name = "SELECTOR", conflicts_with = "all_instances")]
    pub(crate) on: Option<Selector>,
    /// A number that nobody else has on any instance.
    #[arg(long)]
    pub(crate) fleet: bool,
    /// With --fleet: held for every instance, and not for this one.
    #[arg(short = 'A', long, requires = "fleet")]
    pub(crate) all_instances: bool,
    /// The pool to draw from.
    #[arg(long, conflicts_with = "port")]
    pub(crate) pool: Option<PoolName>,
    /// A lease that ends after so long unless it is renewed, as in 2h.
    #[arg(long, value_name = "SPAN", value_parser = span::<LeaseTime>)]
    pub(crate) ttl: Option<LeaseTime>,
    /// The server renews the lease while somebody who fits listens there.
    #[arg(long, requires = "ttl")]
    pub(crate) renew_while_listening: bool,
    /// The same again as before: needs --service.
    #[arg(long, requires = "service")]
    pub(crate) ensure: bool,
    /// Who should listen there, as in process=nginx,account=www-data.
    #[arg(long, value_name = "WHO")]
    pub(crate) expect: Option<Expect>,
    /// A remark.
    #[arg(long, value_name = "TEXT")]
    pub(crate) note: Option<Note>,
    /// What to label the reservation with, as in team=web; several times for several.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub(crate) labels: Vec<Label>,
    /// Whoever listens on the port now is the rightful one.
    #[arg(long, requires = "port")]
    pub(crate) adopt: bool,
    /// Reserve nothing; print what would be.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Default, ClapArgs)]
#[command(group = ArgGroup::new("which").required(true).args(["number", "port", "service", "id", "group", "idle"]))]
pub(crate) struct Release {
    /// The port, or range.
    #[arg(value_name = "PORT", allow_negative_numbers = true)]
    pub(crate) number: Option<PortRange>,
    /// The port, or range, as an option.
    #[arg(long, value_name = "PORT", allow_negative_numbers = true)]
    pub(crate) port: Option<PortRange>,
    /// All that you hold for this service.
    #[arg(long)]
    pub(crate) service: Option<ServiceName>,
    /// The reservation with this id.
    #[arg(long)]
    pub(crate) id: Option<ReservationId>,
    /// All that one request reserved.
    #[arg(long, value_name = "ID")]
    pub(crate) group: Option<GroupId>,
    /// All that you hold on which nobody has listened for so long, as in 30d.
    #[arg(long, value_name = "SPAN", value_parser = span::<IdleTime>)]
    pub(crate) idle: Option<IdleTime>,
    /// tcp or udp; only needed when both are reserved.
    #[arg(long)]
    pub(crate) protocol: Option<Protocol>,
    /// With --service or --idle: of the whole fleet.
    #[arg(short = 'A', long, conflicts_with_all = ["number", "port", "id", "group"])]
    pub(crate) all_instances: bool,
    /// What others hold, too. For operators.
    #[arg(long)]
    pub(crate) force: bool,
    /// Do not ask.
    #[arg(short, long)]
    pub(crate) yes: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Check {
    /// The port.
    #[arg(value_name = "PORT", allow_negative_numbers = true)]
    pub(crate) number: Port,
    /// tcp or udp.
    #[arg(long, default_value = "tcp")]
    pub(crate) protocol: Protocol,
}

fn count(text: &str) -> Result<PortCount, String> {
    let number: i64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    PortCount::try_from(number).map_err(|error: PortCountError| error.to_string())
}

/// What is no id is a port, or an error about one.
pub(super) fn which(text: &str) -> Result<super::Which, String> {
    match text.parse::<ReservationId>() {
        Ok(id) => Ok(super::Which::Id(id)),
        Err(_) => text.parse().map(super::Which::Port).map_err(|error: PortError| error.to_string()),
    }
}
