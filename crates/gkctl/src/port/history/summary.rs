//! `gkctl port history --summary`: since when something was used, and until when.

use anyhow::Result;
use gk_client::{Client, ClientError};
use gk_model::history::{Interval, IntervalKind};
use gk_model::id::InstanceRef;
use gk_model::query::{HistoryQuery, Limit};
use serde::Serialize;

use super::line::{holder, who};
use super::{nothing, nothing_anywhere, query};
use crate::args::{Format, HistoryFilters};
use crate::context::{Context, note};
use crate::left::or_left;
use crate::output::{age, print_json, print_pairs};

/// The two ends of a history.
#[derive(Debug, Serialize)]
struct Summary {
    /// What began first, as far back as history is kept.
    first: Interval,
    /// What lasts still; otherwise what began last.
    last: Interval,
}

/// Each end is one row of one index, however long the history is.
pub(super) fn tell(
    context: &Context,
    client: &Client,
    wanted: &HistoryFilters,
    instance: Option<&InstanceRef>,
) -> Result<()> {
    let (found, when_empty) = match instance {
        None => (find(context, client, wanted, None)?, nothing_anywhere(wanted)),
        Some(instance) => or_left(client, instance, |instance| {
            let found = find(context, client, wanted, Some(instance))?;
            let whose = if found.is_none() { Some(client.get_instance(instance)?) } else { None };
            Ok((found, whose.map(|whose| nothing(wanted, &whose)).unwrap_or_default()))
        })?,
    };
    let Some(found) = found else {
        note(when_empty);
        return Ok(());
    };
    if context.format() == Format::Json {
        return Ok(print_json(&found)?);
    }
    let Summary { first, last } = &found;
    let until = last.ended_at.map_or_else(
        || format!("now, since {}", age::exact_in_words(last.began_at, context.now)),
        |ended| age::exact_in_words(ended, context.now),
    );
    let used =
        [("first used", age::exact_in_words(first.began_at, context.now), first), ("last used", until, last)];
    let pairs = used.map(|(name, when, interval)| (name, format!("{when}, {}", whom(interval))));
    Ok(print_pairs(&pairs)?)
}

fn find(
    context: &Context,
    client: &Client,
    wanted: &HistoryFilters,
    instance: Option<&InstanceRef>,
) -> Result<Option<Summary>, ClientError> {
    let plain = HistoryQuery { limit: Some(Limit::at_most(1)), ..query(wanted, instance) };
    let one =
        |query: HistoryQuery| Ok::<_, ClientError>(client.list_history(&query)?.items.into_iter().next());
    let Some(first) = one(HistoryQuery { oldest: Some(true), ..plain.clone() })? else { return Ok(None) };
    let lasting = one(HistoryQuery { at: Some(context.now), ..plain.clone() })?;
    let last = match lasting.filter(|lasting| lasting.ended_at.is_none()) {
        Some(lasting) => lasting,
        None => one(plain)?.unwrap_or_else(|| first.clone()),
    };
    Ok(Some(Summary { first, last }))
}

/// `by nginx (pid 812)`, `held by billing-api (ada)`.
fn whom(interval: &Interval) -> String {
    let place = format!("{}/{}", interval.first_port, interval.protocol);
    let on = interval.instance.as_ref().map(|instance| format!(" on {}", instance.name)).unwrap_or_default();
    let whom = match (interval.kind, &interval.listener) {
        (IntervalKind::Listened, Some(listener)) => format!("by {}", who(listener)),
        _ => format!("held by {}", holder(interval).unwrap_or_else(|| "nobody known".to_owned())),
    };
    format!("{whom}: {place}{on}")
}
