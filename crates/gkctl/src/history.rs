//! `gkctl port history`: who held or listened on which port, from when to when.

use anyhow::Result;
use gk_model::history::Interval;
use gk_model::listener::Listener;
use gk_model::port::PortRange;
use gk_model::query::HistoryQuery;

use crate::args::HistoryFilters;
use crate::context::{Context, collect};
use crate::output::{Column, List, age, exact, or_dash};

/// The instance comes first, so that it can be left out where there is only one.
const COLUMNS: [Column<Interval>; 6] = [
    Column::new("INSTANCE", |interval: &Interval| interval.instance.name.to_string()),
    Column::new("PORT", ports),
    Column::new("KIND", |interval: &Interval| interval.kind.to_string()),
    Column::new("WHO", |interval: &Interval| exact(who(interval)))
        .shown_as(|interval, _| or_dash(who(interval))),
    Column::new("FROM", |interval: &Interval| interval.began_at.to_string())
        .shown_as(|interval, context| age::ago(interval.began_at, context.now)),
    Column::new("TO", |interval: &Interval| exact(interval.ended_at)).shown_as(|interval, context| {
        interval.ended_at.map_or_else(|| "now".to_owned(), |ended| age::ago(ended, context.now))
    }),
];

/// Lists intervals, newest first.
pub(crate) fn list(context: &Context, wanted: &HistoryFilters) -> Result<()> {
    let instance = context.instance_or_all(wanted.all_instances)?;
    let client = context.client()?;
    let intervals = collect(wanted.limit, |cursor, limit| {
        client.list_history(&HistoryQuery {
            instance: instance.clone(),
            port: wanted.port,
            protocol: wanted.protocol,
            kind: wanted.kind,
            since: wanted.since,
            until: wanted.until,
            at: wanted.at,
            cursor,
            limit,
        })
    })?;
    let list = List {
        columns: if wanted.all_instances { &COLUMNS } else { &COLUMNS[1..] },
        name: |interval| interval.seq.to_string(),
        when_empty: "Nothing is known of that time. History begins when a machine joins.",
    };
    Ok(list.print(context, &intervals)?)
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
    held.or_else(|| interval.listener.as_ref().map(Listener::describe))
}
