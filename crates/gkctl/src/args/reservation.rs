//! What can be typed after `gkctl reservation`.

use std::num::NonZeroU32;

use clap::{Args as ClapArgs, Subcommand};
use gk_model::expect::Expect;
use gk_model::id::{GroupId, ReservationId};
use gk_model::labels::Selector;
use gk_model::lease::LeaseTime;
use gk_model::port::{Port, PortRange, Protocol};
use gk_model::query::IdleTime;
use gk_model::text::{Note, PoolName, PortName, ServiceName, Subject};

use super::instance::LabelWord;
use super::or_none::OrNone;
use super::reserve::which;
use super::token::span;

const EDIT_EXAMPLES: &str = "\
Example: gkctl reservation edit 8080 --service web --note 'moved in May'

An empty text takes away: --note ''. Labels: KEY=VALUE sets one, KEY- removes one; all others stay.";

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum ReservationVerb {
    /// List what is reserved.
    #[command(after_help = "Example: gkctl reservation list --all-instances --idle 30d\n\n\
                            IDLE tells for how long nobody has listened on any of the ports.")]
    List(ReservationFilters),
    /// Show everything that is known of a reservation.
    #[command(after_help = "Example: gkctl reservation show 8080")]
    Show(OneReservation),
    /// Let a lease end later, or sooner: so long from now.
    #[command(after_help = "Example: gkctl reservation renew 8080 --ttl 2h")]
    Renew(Renew),
    /// Change what a reservation says: service, name, note, labels, who is expected.
    #[command(after_help = EDIT_EXAMPLES)]
    Edit(Edit),
}

/// A reservation as people name it: by id, or by a port that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Id(ReservationId),
    Port(Port),
}

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct ReservationFilters {
    /// Of the whole fleet.
    #[arg(short = 'A', long)]
    pub(crate) all_instances: bool,
    /// Only those that touch this port or range.
    #[arg(long, value_name = "RANGE", allow_negative_numbers = true)]
    pub(crate) port: Option<PortRange>,
    /// Only tcp or udp.
    #[arg(long)]
    pub(crate) protocol: Option<Protocol>,
    /// Only for this service.
    #[arg(long)]
    pub(crate) service: Option<ServiceName>,
    /// Only with this name among the service's ports.
    #[arg(long)]
    pub(crate) name: Option<PortName>,
    /// Only held by this subject.
    #[arg(long, value_name = "SUBJECT")]
    pub(crate) holder: Option<Subject>,
    /// Only drawn from this pool.
    #[arg(long)]
    pub(crate) pool: Option<PoolName>,
    /// Only on instances with such labels, as in env=prod; of the whole fleet.
    #[arg(long, value_name = "SELECTOR")]
    pub(crate) on: Option<Selector>,
    /// Only those that one request made.
    #[arg(long, value_name = "ID")]
    pub(crate) group: Option<GroupId>,
    /// Only those on which nobody has listened for so long, as in 30d.
    #[arg(long, value_name = "SPAN", value_parser = span::<IdleTime>)]
    pub(crate) idle: Option<IdleTime>,
    /// Only leases that end within so long, as in 2h.
    #[arg(long, value_name = "SPAN", value_parser = span::<LeaseTime>)]
    pub(crate) expires_within: Option<LeaseTime>,
    /// At most so many.
    #[arg(long, value_name = "COUNT", value_parser = super::at_least_one)]
    pub(crate) limit: Option<NonZeroU32>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct OneReservation {
    /// A port of it, or its id.
    #[arg(value_name = "PORT|ID", allow_negative_numbers = true, value_parser = which)]
    pub(crate) which: Which,
    /// tcp or udp; only needed when both are reserved.
    #[arg(long)]
    pub(crate) protocol: Option<Protocol>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Renew {
    #[command(flatten)]
    pub(crate) one: OneReservation,
    /// How long from now it lasts, as in 2h.
    #[arg(long, value_name = "SPAN", value_parser = span::<LeaseTime>)]
    pub(crate) ttl: LeaseTime,
    /// Though somebody else holds it. For operators.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Edit {
    #[command(flatten)]
    pub(crate) one: OneReservation,
    /// What it is for.
    #[arg(long)]
    pub(crate) service: Option<OrNone<ServiceName>>,
    /// Which of the service's ports it is.
    #[arg(long)]
    pub(crate) name: Option<OrNone<PortName>>,
    /// A remark.
    #[arg(long, value_name = "TEXT")]
    pub(crate) note: Option<OrNone<Note>>,
    /// Who should listen there, as in process=nginx,account=www-data.
    #[arg(long, value_name = "WHO")]
    pub(crate) expect: Option<OrNone<Expect>>,
    /// KEY=VALUE sets a label, KEY- removes one; several times for several.
    #[arg(long = "label", value_name = "KEY=VALUE|KEY-")]
    pub(crate) labels: Vec<LabelWord>,
    /// Though somebody else holds it. For operators.
    #[arg(long)]
    pub(crate) force: bool,
}
