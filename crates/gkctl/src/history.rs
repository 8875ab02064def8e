//! `gkctl port history`: who held or listened on which port, from when to when.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;
use gk_model::history::{Interval, IntervalKind};
use gk_model::id::{FLEET, InstanceRef};
use gk_model::instance::{Instance, Presence};
use gk_model::listener::Listener;
use gk_model::port::PortRange;
use gk_model::query::{EventQuery, HistoryQuery, Limit};
use gk_model::watch::WatchQuery;

use crate::args::HistoryFilters;
use crate::context::{Context, collect};
use crate::follow;
use crate::left::or_left;
use crate::output::{Column, Lines, List, age, exact, or_dash};

/// What ended longer ago is compared with logs, and those tell times.
const AGES_UNTIL: Duration = Duration::from_hours(1);

/// The instance comes first, so that it can be left out where there is only one.
const COLUMNS: [Column<Interval>; 6] = [
    Column::new("INSTANCE", |interval: &Interval| {
        interval.instance.as_ref().map_or_else(|| FLEET.to_owned(), |instance| instance.name.to_string())
    }),
    Column::new("PORT", ports),
    Column::new("KIND", |interval: &Interval| interval.kind.to_string()),
    Column::new("WHO", |interval: &Interval| exact(who(interval)))
        .shown_as(|interval, _| or_dash(who(interval))),
    Column::new("FROM", |interval: &Interval| interval.began_at.to_string())
        .shown_as(|interval, context| age::ago_until(AGES_UNTIL, interval.began_at, context.now)),
    Column::new("TO", |interval: &Interval| exact(interval.ended_at)).shown_as(|interval, context| {
        let ago = |ended| age::ago_until(AGES_UNTIL, ended, context.now);
        interval.ended_at.map_or_else(|| "now".to_owned(), ago)
    }),
];

/// What is followed comes with its times, because ages would soon be wrong.
const LIVE_COLUMNS: [Column<Interval>; 6] = [
    Column::new("INSTANCE", |interval: &Interval| {
        interval.instance.as_ref().map_or_else(|| FLEET.to_owned(), |instance| instance.name.to_string())
    }),
    Column::new("PORT", ports),
    Column::new("KIND", |interval: &Interval| interval.kind.to_string()),
    Column::new("WHO", |interval: &Interval| or_dash(who(interval))),
    Column::new("FROM", |interval: &Interval| age::exact(interval.began_at)),
    Column::new("TO", |interval: &Interval| interval.ended_at.map_or_else(|| "now".to_owned(), age::exact)),
];

/// Tells each interval that begins or ends from now on; with `--since`, after those that have lasted since then.
///
/// The log tells when something changed, and the intervals of that port are then read again.
pub(crate) fn follow(context: &Context, wanted: &HistoryFilters) -> Result<()> {
    let instance = context.instance_or_all(wanted.all_instances)?;
    let client = context.client()?;
    let columns = if wanted.all_instances { &LIVE_COLUMNS[..] } else { &LIVE_COLUMNS[1..] };
    let list = List { columns, name: |interval: &Interval| interval.seq.to_string(), when_empty: "" };
    let (mut lines, mut told) = (Lines::new(list), HashMap::new());
    let mut tell = |intervals: Vec<Interval>| -> Result<()> {
        for interval in intervals.into_iter().rev() {
            if told.insert(interval.seq, interval.ended_at) != Some(interval.ended_at) {
                lines.print(context, &interval)?;
            }
        }
        Ok(())
    };
    let one = EventQuery { limit: Some(Limit::at_most(1)), ..EventQuery::default() };
    let log = client.list_events(&one)?.log;
    let query = |port, since| HistoryQuery {
        instance: instance.clone(),
        port,
        protocol: wanted.protocol,
        kind: wanted.kind,
        since,
        ..HistoryQuery::default()
    };
    if wanted.since.is_some() {
        let asked = query(wanted.port, wanted.since);
        tell(collect(None, |cursor, limit| {
            client.list_history(&HistoryQuery { cursor, limit, ..asked.clone() })
        })?)?;
    }
    let watch = WatchQuery {
        instance: instance.clone(),
        port: wanted.port,
        protocol: wanted.protocol,
        after: Some(log.end()),
        ..WatchQuery::default()
    };
    follow::follow(&client, &watch, |event| {
        let range = event.first_port.zip(event.last_port);
        let Some(range) = range.and_then(|(first, last)| PortRange::new(first, last).ok()) else {
            return Ok(());
        };
        let touched = client.list_history(&query(Some(range), Some(event.at)))?.items;
        // What only goes on beside it is no news.
        let is_news = |interval: &Interval| interval.seq == event.seq || interval.ended_at == Some(event.at);
        tell(touched.into_iter().filter(is_news).collect())
    })
}

/// Lists intervals, newest first.
pub(crate) fn list(context: &Context, wanted: &HistoryFilters) -> Result<()> {
    let instance = context.instance_or_all(wanted.all_instances)?;
    let client = context.client()?;
    let read = |instance: Option<&InstanceRef>| {
        collect(wanted.limit, |cursor, limit| {
            client.list_history(&HistoryQuery {
                instance: instance.cloned(),
                port: wanted.port,
                protocol: wanted.protocol,
                kind: wanted.kind,
                since: wanted.since,
                until: wanted.until,
                at: wanted.at,
                cursor,
                limit,
            })
        })
    };
    let (intervals, when_empty) = match &instance {
        None => (read(None)?, nothing_anywhere(wanted)),
        Some(instance) => or_left(&client, instance, |instance| {
            let intervals = read(Some(instance))?;
            let whose = if intervals.is_empty() { Some(client.get_instance(instance)?) } else { None };
            Ok((intervals, whose.map(|whose| nothing(wanted, &whose)).unwrap_or_default()))
        })?,
    };
    let list = List {
        columns: if wanted.all_instances { &COLUMNS } else { &COLUMNS[1..] },
        name: |interval| interval.seq.to_string(),
        when_empty: &when_empty,
    };
    Ok(list.print(context, &intervals)?)
}

/// What an empty answer means: of the time before it joined nothing is known of a machine, and of listeners nothing after
/// its last report.
fn nothing(wanted: &HistoryFilters, whose: &Instance) -> String {
    let Instance { name, joined_at: joined, .. } = whose;
    let joined_text = format!("{} UTC", age::exact(*joined));
    if wanted.at.or(wanted.until).is_some_and(|last| last < *joined) {
        return format!("the history of {name} begins when it joined, at {joined_text}");
    }
    let span = match (wanted.at, wanted.since.filter(|since| since >= joined)) {
        (Some(at), _) => format!("at {} UTC", age::exact(at)),
        (None, Some(since)) => format!("since {} UTC", age::exact(since)),
        (None, None) => format!("since it joined at {joined_text}"),
    };
    let until = wanted.until.map(|until| format!(" until {} UTC", age::exact(until))).unwrap_or_default();
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
        Some(seen) => Some(format!("; its listeners are known until {} UTC", age::exact(seen))),
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
    match (wanted.port, protocol) {
        (Some(port), protocol) => format!("{verb} {port}{}", protocol.unwrap_or_default()),
        (None, Some(protocol)) => format!("{verb} any port{protocol}"),
        (None, None) => format!("{verb} any port"),
    }
}

fn nothing_anywhere(wanted: &HistoryFilters) -> String {
    format!("as far as is known, nobody {} then; the history of a machine begins when it joins", did(wanted))
}

fn ports(interval: &Interval) -> String {
    let range = PortRange::new(interval.first_port, interval.last_port);
    format!("{}/{}", range.unwrap_or_else(|_| interval.first_port.into()), interval.protocol)
}

/// `billing-api:http (local:root)` for who held, `nginx (pid 812)` for who listened.
fn who(interval: &Interval) -> Option<String> {
    let purpose = match (&interval.service, &interval.name) {
        (Some(service), Some(name)) => Some(format!("{service}:{name}")),
        (Some(service), None) => Some(service.to_string()),
        (None, name) => name.as_ref().map(ToString::to_string),
    };
    let held = match (purpose, &interval.holder) {
        (Some(purpose), Some(holder)) => Some(format!("{purpose} ({holder})")),
        (purpose, holder) => purpose.or_else(|| holder.as_ref().map(ToString::to_string)),
    };
    let listened = |listener: &Listener| format!("{}{}", listener.describe(), listener.key.netns.remark());
    held.or_else(|| interval.listener.as_deref().map(listened))
}

#[cfg(test)]
mod tests {
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
