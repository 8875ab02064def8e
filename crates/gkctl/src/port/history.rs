//! `gkctl port history`: who held or listened on which port, from when to when.

mod follow;
mod line;
mod summary;

use std::cell::RefCell;
use std::num::NonZeroU32;

use anyhow::Result;
use gk_client::{Client, ClientError};
use gk_model::history::{Gap, Interval, IntervalKind};
use gk_model::id::InstanceRef;
use gk_model::instance::{Instance, Presence};
use gk_model::port::PortRange;
use gk_model::query::{HistoryQuery, Limit, Page};

pub(crate) use self::follow::follow;
use self::line::Line;
use crate::args::HistoryFilters;
use crate::context::{Context, collect, note};
use crate::left::or_left;
use crate::output::{List, age};

/// Lists intervals, newest first; or, where asked for, only tells of the first and the last.
pub(crate) fn list(context: &Context, wanted: &HistoryFilters) -> Result<()> {
    let instance = context.instance_or_all(wanted.all_instances || wanted.label.is_some())?;
    let client = context.client()?;
    if wanted.summary {
        return summary::tell(context, &client, wanted, instance.as_ref());
    }
    let (lines, when_empty) = match &instance {
        None => (read(&client, wanted, None)?, nothing_anywhere(wanted)),
        Some(instance) => or_left(&client, instance, |instance| {
            let lines = read(&client, wanted, Some(instance))?;
            let is_nothing = lines.iter().all(|line| line.gap().is_some());
            let whose = if is_nothing { Some(client.get_instance(instance)?) } else { None };
            Ok((lines, whose.map(|whose| nothing(wanted, &whose)).unwrap_or_default()))
        })?,
    };
    let list = List { columns: line::columns(instance.is_none()), name: Line::name, when_empty: &when_empty };
    list.print(context, &line::shown(context, lines.clone(), wanted.at.is_some()))?;
    if let Some(at) = wanted.at {
        for gap in lines.iter().filter_map(Line::gap).filter(|gap| gap.contains(at)) {
            note(not_observed(gap));
        }
    }
    Ok(())
}

/// What was asked for, as a question to the server.
fn query(wanted: &HistoryFilters, instance: Option<&InstanceRef>) -> HistoryQuery {
    HistoryQuery {
        instance: instance.cloned(),
        port: port(wanted),
        protocol: wanted.protocol,
        kind: wanted.kind,
        since: wanted.since,
        until: wanted.until,
        at: wanted.at,
        service: wanted.service.clone(),
        holder: wanted.holder.clone(),
        process: wanted.process.clone(),
        unit: wanted.unit.clone(),
        container: wanted.container.clone(),
        account: wanted.account.clone(),
        label: wanted.label.clone(),
        ..HistoryQuery::default()
    }
}

fn port(wanted: &HistoryFilters) -> Option<PortRange> {
    wanted.number.or(wanted.port)
}

/// Intervals with who held the port then, and the gaps among them, newest first.
fn read(
    client: &Client,
    wanted: &HistoryFilters,
    instance: Option<&InstanceRef>,
) -> Result<Vec<Line>, ClientError> {
    let query = query(wanted, instance);
    let (intervals, gaps) = pages(client, &query, wanted.limit)?;
    let held = held(client, &query, &intervals)?;
    // What was cut off by the limit is not told of, and neither are the gaps in that time.
    let cut = wanted.limit.filter(|limit| u32::try_from(intervals.len()) == Ok(limit.get()));
    let oldest = intervals.last().filter(|_| cut.is_some()).map(|last| last.began_at);
    let gaps = gaps.into_iter().filter(|gap| oldest.is_none_or(|oldest| gap.from >= oldest));
    let mut lines: Vec<Line> = gaps.map(Line::of_gap).collect();
    lines.extend(intervals.into_iter().map(|interval| Line::of_interval(interval, &held)));
    lines.sort_by_key(|line| std::cmp::Reverse(line.from()));
    Ok(lines)
}

fn pages(
    client: &Client,
    query: &HistoryQuery,
    limit: Option<NonZeroU32>,
) -> Result<(Vec<Interval>, Vec<Gap>), ClientError> {
    let gaps = RefCell::new(Vec::new());
    let fetch = |cursor: Option<String>, limit: Option<Limit>| {
        let page = client.list_history(&HistoryQuery { cursor, limit, ..query.clone() })?;
        gaps.borrow_mut().extend(page.gaps);
        Ok(Page { items: page.items, next: page.next })
    };
    let intervals = collect(limit, fetch)?;
    Ok((intervals, gaps.into_inner()))
}

/// Who held ports while others listened there: what is among the intervals, and what the filters have left out.
fn held(client: &Client, query: &HistoryQuery, intervals: &[Interval]) -> Result<Vec<Interval>, ClientError> {
    let is_listened = |interval: &&Interval| interval.kind == IntervalKind::Listened;
    let asks_for_listeners = query.kind == Some(IntervalKind::Listened)
        || [&query.process, &query.unit, &query.container, &query.account].iter().any(|word| word.is_some());
    let Some(oldest) = intervals.iter().filter(is_listened).map(|interval| interval.began_at).min() else {
        return Ok(Vec::new());
    };
    if !asks_for_listeners && query.since.is_none() && query.at.is_none() {
        return Ok(intervals
            .iter()
            .filter(|interval| interval.kind == IntervalKind::Held)
            .cloned()
            .collect());
    }
    let then = HistoryQuery {
        instance: query.instance.clone(),
        port: query.port,
        protocol: query.protocol,
        label: query.label.clone(),
        kind: Some(IntervalKind::Held),
        since: Some(oldest),
        until: query.until,
        ..HistoryQuery::default()
    };
    Ok(pages(client, &then, None)?.0)
}

/// `nobody watched web-1 from 2026-11-21 12:00:00 UTC until 2026-11-21 12:40:00 UTC: …`.
fn not_observed(gap: &Gap) -> String {
    let from = age::moment(gap.from);
    let known = "what is known is what was seen before and after";
    match gap.until {
        Some(until) => {
            let until = age::moment(until);
            format!("nobody watched {} from {from} until {until}: {known}", gap.instance.name)
        }
        None => format!("{} is offline, and nobody has watched it since {from}", gap.instance.name),
    }
}

/// What an empty answer means: of the time before it joined nothing is known of a machine, and of listeners nothing after
/// its last report.
fn nothing(wanted: &HistoryFilters, whose: &Instance) -> String {
    let Instance { name, joined_at: joined, .. } = whose;
    let joined_text = age::moment(*joined);
    if wanted.at.or(wanted.until).is_some_and(|last| last < *joined) {
        return format!("the history of {name} begins when it joined, at {joined_text}");
    }
    let span = match (wanted.at, wanted.since.filter(|since| since >= joined)) {
        (Some(at), _) => format!("at {}", age::moment(at)),
        (None, Some(since)) => format!("since {}", age::moment(since)),
        (None, None) => format!("since it joined at {joined_text}"),
    };
    let until = wanted.until.map(|until| format!(" until {}", age::moment(until))).unwrap_or_default();
    let caveat = unseen(wanted, whose).unwrap_or_default();
    format!("nobody {} on {name} {span}{until}{caveat}", did(wanted))
}

/// From when on nothing is known of listeners, where that matters.
fn unseen(wanted: &HistoryFilters, whose: &Instance) -> Option<String> {
    if wanted.kind == Some(IntervalKind::Held) || whose.presence == Presence::Online {
        return None;
    }
    match whose.observed_at {
        None => Some("; its listeners were never reported".to_owned()),
        Some(seen) if wanted.at.or(wanted.until).is_some_and(|last| last <= seen) => None,
        Some(seen) => Some(format!("; its listeners are known until {}", age::moment(seen))),
    }
}

/// `held or listened on 8500/tcp`.
fn did(wanted: &HistoryFilters) -> String {
    let verb = match wanted.kind {
        None => "held or listened on",
        Some(IntervalKind::Held) => "held",
        Some(IntervalKind::Listened) => "listened on",
    };
    let protocol = wanted.protocol.map(|protocol| format!("/{protocol}"));
    match (port(wanted), protocol) {
        (Some(port), protocol) => format!("{verb} {port}{}", protocol.unwrap_or_default()),
        (None, Some(protocol)) => format!("{verb} any port{protocol}"),
        (None, None) => format!("{verb} any port"),
    }
}

fn nothing_anywhere(wanted: &HistoryFilters) -> String {
    format!("as far as is known, nobody {} then; the history of a machine begins when it joins", did(wanted))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gk_model::id::InstanceId;
    use gk_model::time::Timestamp;

    use super::*;

    #[test]
    fn an_empty_answer_says_of_what_time_it_is_true() {
        let joined_at = Timestamp::from_micros(1_700_000_000_000_000);
        let hours = |count| Some(joined_at.plus(Duration::from_hours(count)));
        let before = Some(joined_at.minus(Duration::from_hours(1)));
        let whose = |presence, observed_at| Instance {
            id: InstanceId::generate(joined_at),
            name: "web-1".parse().unwrap(),
            presence,
            labels: gk_model::labels::Labels::default(),
            forget_after_seconds: None,
            facts: crate::machine::facts(),
            joined_at,
            left_at: None,
            last_contact_at: None,
            observed_at,
            version: 1,
        };
        let (online, away) = (whose(Presence::Online, hours(5)), whose(Presence::Offline, hours(5)));
        let none = HistoryFilters::default;
        let port = || HistoryFilters { port: "8500".parse().ok(), ..none() };
        let begins = "the history of web-1 begins when it joined, at 2023-11-14 22:13:20 UTC";
        let at_one = "nobody held or listened on 8500 on web-1 at 2023-11-14 23:13:20 UTC";
        let table = [
            (
                port(),
                &online,
                "nobody held or listened on 8500 on web-1 since it joined at 2023-11-14 22:13:20 UTC",
            ),
            (HistoryFilters { at: hours(1), ..port() }, &online, at_one),
            (HistoryFilters { at: hours(1), ..port() }, &away, at_one),
            (HistoryFilters { at: before, ..port() }, &online, begins),
            (HistoryFilters { until: before, ..port() }, &online, begins),
            (
                HistoryFilters { since: before, kind: Some(IntervalKind::Held), ..none() },
                &away,
                "nobody held any port on web-1 since it joined at 2023-11-14 22:13:20 UTC",
            ),
            (
                HistoryFilters { since: hours(1), until: hours(2), ..port() },
                &online,
                "nobody held or listened on 8500 on web-1 since 2023-11-14 23:13:20 UTC until 2023-11-15 00:13:20 UTC",
            ),
            (
                HistoryFilters { at: hours(6), ..port() },
                &away,
                "nobody held or listened on 8500 on web-1 at 2023-11-15 04:13:20 UTC; its listeners are known until \
                 2023-11-15 03:13:20 UTC",
            ),
        ];
        for (wanted, whose, said) in table {
            assert_eq!(nothing(&wanted, whose), said);
        }
    }
}
