//! One line of history: an interval with who held the port then, or a time in which nobody watched.

use std::time::Duration;

use gk_model::history::{Gap, Interval, IntervalKind};
use gk_model::id::FLEET;
use gk_model::instance::OFFLINE_AFTER;
use gk_model::listener::Listener;
use gk_model::port::PortRange;
use gk_model::time::Timestamp;
use serde::Serialize;

use crate::args::Format;
use crate::context::Context;
use crate::output::{Column, Tint, age, exact, or_dash};

/// What ended longer ago is compared with logs, and those tell times.
const AGES_UNTIL: Duration = Duration::from_hours(1);

/// A line of the table. In JSON both kinds have a `kind`.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Line {
    Interval {
        #[serde(flatten)]
        interval: Box<Interval>,
        /// Who held the ports meanwhile, the last first.
        held_by: Vec<String>,
    },
    Gap {
        kind: &'static str,
        #[serde(flatten)]
        gap: Gap,
    },
}

/// The instance comes third, so that it can be left out where there is only one.
const EVERYWHERE: [Column<Line>; 6] = [FROM, UNTIL, INSTANCE, PORT, WHO, HELD_BY];
const HERE: [Column<Line>; 5] = [FROM, UNTIL, PORT, WHO, HELD_BY];

const FROM: Column<Line> = Column::new("FROM", |line: &Line| line.from().to_string())
    .shown_as(|line, context| age::ago_until(AGES_UNTIL, line.from(), context.now));
const UNTIL: Column<Line> =
    Column::new("UNTIL", |line: &Line| exact(line.until())).shown_as(|line, context| {
        let ago = |ended| age::ago_until(AGES_UNTIL, ended, context.now);
        line.until().map_or_else(|| "now".to_owned(), ago)
    });
const INSTANCE: Column<Line> = Column::new("INSTANCE", Line::instance);
const PORT: Column<Line> =
    Column::new("PORT", |line: &Line| exact(line.ports())).shown_as(|line, _| or_dash(line.ports()));
const WHO: Column<Line> = Column::new("WHO", |line: &Line| exact(line.who()))
    .shown_as(|line, _| or_dash(line.who()))
    .tinted(|line| if line.gap().is_some() { Tint::Odd } else { Tint::Plain });
const HELD_BY: Column<Line> =
    Column::new("HELD BY", |line: &Line| exact(line.holders())).shown_as(|line, _| or_dash(line.holders()));

/// What is followed comes with its times, because ages would soon be wrong.
const LIVE_EVERYWHERE: [Column<Line>; 6] = [LIVE_FROM, LIVE_UNTIL, INSTANCE, PORT, LIVE_WHO, LIVE_HELD_BY];
const LIVE_HERE: [Column<Line>; 5] = [LIVE_FROM, LIVE_UNTIL, PORT, LIVE_WHO, LIVE_HELD_BY];

const LIVE_FROM: Column<Line> = Column::new("FROM", |line: &Line| age::exact(line.from()));
const LIVE_UNTIL: Column<Line> =
    Column::new("UNTIL", |line: &Line| line.until().map_or_else(|| "now".to_owned(), age::exact));
const LIVE_WHO: Column<Line> = Column::new("WHO", |line: &Line| or_dash(line.who()));
const LIVE_HELD_BY: Column<Line> = Column::new("HELD BY", |line: &Line| or_dash(line.holders()));

pub(super) fn columns(of_several: bool) -> &'static [Column<Line>] {
    if of_several { &EVERYWHERE } else { &HERE }
}

pub(super) fn live_columns(of_several: bool) -> &'static [Column<Line>] {
    if of_several { &LIVE_EVERYWHERE } else { &LIVE_HERE }
}

/// The lines for people and programs: of gaps people get those that count as offline, and about one moment none at all,
/// because that is told in a sentence.
pub(super) fn shown(context: &Context, mut lines: Vec<Line>, is_about_a_moment: bool) -> Vec<Line> {
    if context.format() != Format::Json {
        lines.retain(|line| {
            line.gap().is_none_or(|gap| {
                let until = gap.until.unwrap_or(context.now);
                !is_about_a_moment && until.since(gap.from) >= OFFLINE_AFTER
            })
        });
    }
    lines
}

impl Line {
    pub(super) fn of_gap(gap: Gap) -> Line {
        Line::Gap { kind: "not_observed", gap }
    }

    pub(super) fn of_interval(interval: Interval, held: &[Interval]) -> Line {
        let held_by = match interval.kind {
            IntervalKind::Held => holder(&interval).into_iter().collect(),
            IntervalKind::Listened => {
                let mut holders: Vec<String> =
                    held.iter().filter(|held| covers(held, &interval)).filter_map(holder).collect();
                holders.dedup();
                holders
            }
        };
        Line::Interval { interval: Box::new(interval), held_by }
    }

    pub(super) fn gap(&self) -> Option<&Gap> {
        match self {
            Line::Gap { gap, .. } => Some(gap),
            Line::Interval { .. } => None,
        }
    }

    pub(super) fn from(&self) -> Timestamp {
        match self {
            Line::Gap { gap, .. } => gap.from,
            Line::Interval { interval, .. } => interval.began_at,
        }
    }

    pub(super) fn until(&self) -> Option<Timestamp> {
        match self {
            Line::Gap { gap, .. } => gap.until,
            Line::Interval { interval, .. } => interval.ended_at,
        }
    }

    /// What names it: the number of its event, where it has one.
    pub(super) fn name(&self) -> String {
        match self {
            Line::Gap { gap, .. } => format!("not_observed:{}", gap.from),
            Line::Interval { interval, .. } => interval.seq.to_string(),
        }
    }

    fn instance(&self) -> String {
        let instance = match self {
            Line::Gap { gap, .. } => Some(&gap.instance),
            Line::Interval { interval, .. } => interval.instance.as_ref(),
        };
        instance.map_or_else(|| FLEET.to_owned(), |instance| instance.name.to_string())
    }

    fn ports(&self) -> Option<String> {
        let Line::Interval { interval, .. } = self else { return None };
        let range = PortRange::new(interval.first_port, interval.last_port);
        Some(format!("{}/{}", range.unwrap_or_else(|_| interval.first_port.into()), interval.protocol))
    }

    fn who(&self) -> Option<String> {
        match self {
            Line::Gap { gap, .. } if gap.until.is_none() => Some("— not observed (offline)".to_owned()),
            Line::Gap { .. } => Some("— not observed".to_owned()),
            Line::Interval { interval, .. } => interval.listener.as_deref().map(who),
        }
    }

    fn holders(&self) -> Option<String> {
        match self {
            Line::Interval { held_by, .. } if !held_by.is_empty() => Some(held_by.join("; ")),
            Line::Interval { .. } | Line::Gap { .. } => None,
        }
    }
}

/// `nginx (pid 812), nginx.service, www-data` for who listened.
pub(super) fn who(listener: &Listener) -> String {
    let account = listener.account.as_ref().filter(|_| !listener.owners.is_empty());
    let account = account.map(|account| format!(", {account}")).unwrap_or_default();
    format!("{}{account}{}", listener.describe(), listener.key.netns.remark())
}

/// `billing-api:http (local:root)` for who held.
pub(super) fn holder(interval: &Interval) -> Option<String> {
    let purpose = match (&interval.service, &interval.name) {
        (Some(service), Some(name)) => Some(format!("{service}:{name}")),
        (Some(service), None) => Some(service.to_string()),
        (None, name) => name.as_ref().map(ToString::to_string),
    };
    match (purpose, &interval.holder) {
        (Some(purpose), Some(holder)) => Some(format!("{purpose} ({holder})")),
        (purpose, holder) => purpose.or_else(|| holder.as_ref().map(ToString::to_string)),
    }
}

/// Whether a port was held for a moment at least while somebody listened there.
fn covers(held: &Interval, listened: &Interval) -> bool {
    let here = held.instance.is_none() || held.instance == listened.instance;
    let ports = (held.first_port..=held.last_port).contains(&listened.first_port);
    let began_before = |one: &Interval, other: &Interval| other.ended_at.is_none_or(|end| one.began_at < end);
    let together = began_before(held, listened) && began_before(listened, held);
    held.protocol == listened.protocol && here && ports && together
}
