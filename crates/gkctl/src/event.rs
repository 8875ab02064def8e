//! `gkctl events`: the log of the fleet, line by line.

use std::num::NonZeroU32;

use anyhow::Result;
use gk_client::Client;
use gk_model::history::{Event, Origin};
use gk_model::id::InstanceRef;
use gk_model::port::PortRange;
use gk_model::query::{EventQuery, Limit, Page};
use gk_model::watch::WatchQuery;

use crate::args::{EventFilters, Format};
use crate::context::{Context, collect, note};
use crate::follow;
use crate::left::or_left;
use crate::output::{Column, Lines, List, age, exact, or_dash};
use crate::token::short;

/// From where each was asked for comes last, so that it can be left out; programs get it in three columns of their own.
const COLUMNS: [Column<Event>; 8] = [
    Column::new("SEQ", |event: &Event| event.seq.to_string()),
    Column::new("AT", |event: &Event| event.at.to_string())
        .shown_as(|event, context| age::ago(event.at, context.now)),
    Column::new("KIND", |event: &Event| event.kind.to_string()),
    Column::new("INSTANCE", |event: &Event| exact(instance(event)))
        .shown_as(|event, _| or_dash(instance(event))),
    Column::new("PORT", |event: &Event| exact(ports(event))).shown_as(|event, _| or_dash(ports(event))),
    Column::new("ACTOR", |event: &Event| event.actor.to_string()),
    Column::new("MESSAGE", |event: &Event| event.message.clone()),
    Column::new("FROM", |event: &Event| exact(origin(event))).shown_as(|event, _| or_dash(origin(event))),
];

const EXACT_COLUMNS: [Column<Event>; 10] = [
    Column::new("SEQ", |event: &Event| event.seq.to_string()),
    Column::new("AT", |event: &Event| event.at.to_string()),
    Column::new("KIND", |event: &Event| event.kind.to_string()),
    Column::new("INSTANCE", |event: &Event| exact(instance(event))),
    Column::new("PORT", |event: &Event| exact(ports(event))),
    Column::new("ACTOR", |event: &Event| event.actor.to_string()),
    Column::new("MESSAGE", |event: &Event| event.message.clone()),
    Column::new("ADDRESS", |event: &Event| exact(event.origin.as_ref().and_then(|origin| origin.address))),
    Column::new("TOKEN", |event: &Event| exact(event.origin.as_ref().and_then(|origin| origin.token))),
    Column::new("REQUEST", |event: &Event| exact(event.origin.as_ref().map(|origin| &origin.request))),
];

/// Where it was asked for: `192.0.2.7 with token 0190163d-8694`, or `socket` on the server's own machine. The server's
/// own doings and what agents report came from nowhere.
fn origin(event: &Event) -> Option<String> {
    let Origin { token, address, request: _ } = event.origin.as_deref()?;
    let address = address.map_or_else(|| "socket".to_owned(), |address| address.to_string());
    Some(match token {
        Some(token) => format!("{address} with token {}", short(*token)),
        None => address,
    })
}

/// What is followed comes with its time, because an age would soon be wrong.
const LIVE_COLUMNS: [Column<Event>; 8] = [
    Column::new("SEQ", |event: &Event| event.seq.to_string()),
    Column::new("AT", |event: &Event| age::exact(event.at)),
    Column::new("KIND", |event: &Event| event.kind.to_string()),
    Column::new("INSTANCE", |event: &Event| or_dash(instance(event))),
    Column::new("PORT", |event: &Event| or_dash(ports(event))),
    Column::new("ACTOR", |event: &Event| event.actor.to_string()),
    Column::new("MESSAGE", |event: &Event| event.message.clone()),
    Column::new("FROM", |event: &Event| or_dash(origin(event))),
];

fn query(wanted: &EventFilters, instance: Option<&InstanceRef>) -> EventQuery {
    EventQuery {
        instance: instance.cloned(),
        label: wanted.label.clone(),
        port: wanted.port,
        protocol: wanted.protocol,
        kind: wanted.kind.clone(),
        actor: wanted.actor.clone(),
        since: wanted.since,
        ..EventQuery::default()
    }
}

/// Tells events as they happen; with `--since`, after those that have happened since then.
pub(crate) fn follow(context: &Context, wanted: &EventFilters) -> Result<()> {
    let client = context.client()?;
    let asks_origin = wanted.origin || wanted.actor.is_some();
    let mut lines = lines(context, asks_origin);
    let EventQuery { instance, label, port, protocol, kind, actor, .. } =
        query(wanted, context.global.instance.as_ref());
    let mut watch =
        WatchQuery { instance: instance.clone(), label, port, protocol, kind, actor, after: None };
    let mut cursor = None;
    while wanted.since.is_some() {
        let asked = EventQuery { cursor, limit: Some(Limit::MAX), ..query(wanted, instance.as_ref()) };
        let page = client.list_events(&asked)?;
        page.items.iter().try_for_each(|event| lines.print(context, event))?;
        cursor = page.next;
        if cursor.is_none() {
            // Behind all that this page could have told.
            watch.after = Some(page.log.end());
            break;
        }
    }
    follow::follow(&client, &watch, |event| Ok(lines.print(context, event)?))
}

/// Tells events as they happen, a line each.
pub(crate) fn tell(context: &Context, client: &Client, query: &WatchQuery, asks_origin: bool) -> Result<()> {
    let mut lines = lines(context, asks_origin);
    follow::follow(client, query, |event| Ok(lines.print(context, event)?))
}

fn lines(context: &Context, asks_origin: bool) -> Lines<'static, Event> {
    let columns: &[Column<Event>] = match context.format() {
        Format::Csv => &EXACT_COLUMNS,
        _ if asks_origin => &LIVE_COLUMNS,
        _ => &LIVE_COLUMNS[..LIVE_COLUMNS.len() - 1],
    };
    Lines::new(List { columns, name: |event| event.seq.to_string(), when_empty: "" })
}

/// As many as fill a screen or two.
const FEW: NonZeroU32 = NonZeroU32::new(100).unwrap();

/// Lists events, oldest first: of the fleet, or of the instance named by `--instance`. Unless told since when, the newest.
pub(crate) fn list(context: &Context, wanted: &EventFilters) -> Result<()> {
    let client = context.client()?;
    let (newest, limit) = match wanted.since {
        Some(_) => (None, wanted.limit),
        None => (Some(true), wanted.limit.or(Some(FEW))),
    };
    let read = |instance: Option<&InstanceRef>| {
        collect(limit, |cursor, limit| {
            let asked = EventQuery { cursor, limit, newest, ..query(wanted, instance) };
            client.list_events(&asked).map(Page::from)
        })
    };
    let mut events = match &context.global.instance {
        Some(instance) => or_left(&client, instance, |instance| read(Some(instance)))?,
        None => read(None)?,
    };
    if newest.is_some() {
        events.reverse();
        if wanted.limit.is_none() && events.len() == FEW.get() as usize {
            note("These are the newest 100. For more: --limit 1000, or --since 7d.");
        }
    }
    let list = List {
        columns: match context.format() {
            Format::Csv => &EXACT_COLUMNS,
            // Whoever asks what somebody did asks from where, too.
            _ if wanted.origin || wanted.actor.is_some() => &COLUMNS,
            _ => &COLUMNS[..COLUMNS.len() - 1],
        },
        name: |event| event.seq.to_string(),
        when_empty: "No event matches. Look at all of them with `gkctl events`.",
    };
    Ok(list.print(context, &events)?)
}

fn instance(event: &Event) -> Option<String> {
    event.instance.as_ref().map(|instance| instance.name.to_string())
}

fn ports(event: &Event) -> Option<String> {
    let range = PortRange::new(event.first_port?, event.last_port?).ok()?;
    let protocol = event.protocol.map(|protocol| format!("/{protocol}")).unwrap_or_default();
    Some(format!("{range}{protocol}"))
}
