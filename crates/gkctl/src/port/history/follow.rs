//! `gkctl port history --follow`: each interval that begins or ends, when it does.
//!
//! The log tells when something changed, and the intervals of that port are then read again. From when to when nobody
//! watched is known afterwards only, and is not told here; `gkctl events --follow` tells who is offline.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;
use gk_client::{Client, ClientError};
use gk_model::history::Interval;
use gk_model::port::PortRange;
use gk_model::query::{EventQuery, HistoryQuery, Limit};
use gk_model::watch::WatchQuery;

use super::line::{self, Line};
use super::{held, pages, port, query};
use crate::args::HistoryFilters;
use crate::context::Context;
use crate::follow;
use crate::output::{Lines, List};

/// Tells each interval that begins or ends from now on; with `--since`, after those that have lasted since then.
pub(crate) fn follow(context: &Context, wanted: &HistoryFilters) -> Result<()> {
    let instance = context.instance_or_all(wanted.all_instances || wanted.label.is_some())?;
    let client = context.client()?;
    let list = List { columns: line::live_columns(instance.is_none()), name: Line::name, when_empty: "" };
    let (mut lines, mut told) = (Lines::new(list), HashMap::new());
    let mut tell = |found: Vec<Line>| -> Result<()> {
        for line in found {
            if told.insert(line.name(), line.until()) != Some(line.until()) {
                lines.print(context, &line)?;
            }
        }
        Ok(())
    };
    let one = EventQuery { limit: Some(Limit::at_most(1)), ..EventQuery::default() };
    let log = client.list_events(&one)?.log;
    let asked = query(wanted, instance.as_ref());
    if wanted.since.is_some() {
        tell(read(&client, &asked, |_| true)?)?;
    }
    let watch = WatchQuery {
        instance,
        label: wanted.label.clone(),
        port: port(wanted),
        protocol: wanted.protocol,
        after: Some(log.end()),
        ..WatchQuery::default()
    };
    follow::follow(&client, &watch, |event| {
        let range = event.first_port.zip(event.last_port);
        let Some(range) = range.and_then(|(first, last)| PortRange::new(first, last).ok()) else {
            return Ok(());
        };
        // What ended at a moment does not last beyond it.
        let before = event.at.minus(Duration::from_micros(1));
        let touched = HistoryQuery { port: Some(range), since: Some(before), ..asked.clone() };
        // What only goes on beside it is no news.
        let is_news = |interval: &Interval| interval.seq == event.seq || interval.ended_at == Some(event.at);
        tell(read(&client, &touched, is_news)?)
    })
}

/// The intervals that are news, with who held the port then, the oldest first.
fn read(
    client: &Client,
    query: &HistoryQuery,
    is_news: impl Fn(&Interval) -> bool,
) -> Result<Vec<Line>, ClientError> {
    let (mut intervals, _) = pages(client, query, None)?;
    intervals.retain(is_news);
    let held = held(client, query, &intervals)?;
    Ok(intervals.into_iter().rev().map(|interval| Line::of_interval(interval, &held)).collect())
}
