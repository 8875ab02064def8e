//! `gkctl events`: the log of the fleet, line by line.

use anyhow::Result;
use gk_model::history::Event;
use gk_model::id::InstanceRef;
use gk_model::port::PortRange;
use gk_model::query::EventQuery;

use crate::args::EventFilters;
use crate::context::{Context, collect};
use crate::left::or_left;
use crate::output::{Column, List, age, exact, or_dash};

const COLUMNS: [Column<Event>; 7] = [
    Column::new("SEQ", |event: &Event| event.seq.to_string()),
    Column::new("AT", |event: &Event| event.at.to_string())
        .shown_as(|event, context| age::ago(event.at, context.now)),
    Column::new("KIND", |event: &Event| event.kind.to_string()),
    Column::new("INSTANCE", |event: &Event| exact(instance(event)))
        .shown_as(|event, _| or_dash(instance(event))),
    Column::new("PORT", |event: &Event| exact(ports(event))).shown_as(|event, _| or_dash(ports(event))),
    Column::new("ACTOR", |event: &Event| event.actor.to_string()),
    Column::new("MESSAGE", |event: &Event| event.message.clone()),
];

/// Lists events, oldest first: of the fleet, or of the instance named by `--instance`.
pub(crate) fn list(context: &Context, wanted: &EventFilters) -> Result<()> {
    let client = context.client()?;
    let read = |instance: Option<&InstanceRef>| {
        collect(wanted.limit, |cursor, limit| {
            client.list_events(&EventQuery {
                instance: instance.cloned(),
                port: wanted.port,
                kind: wanted.kind,
                actor: wanted.actor.clone(),
                since: wanted.since,
                until: None,
                cursor,
                limit,
            })
        })
    };
    let events = match &context.global.instance {
        Some(instance) => or_left(&client, instance, |instance| read(Some(instance)))?,
        None => read(None)?,
    };
    let list = List {
        columns: &COLUMNS,
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
