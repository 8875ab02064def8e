//! `gkctl port history --follow`: each interval that begins or ends, when it does.
//!
//! The log tells when something changed, and the intervals of that port are then read again; when an instance left, what
//! ended with it. From when to when nobody watched is known afterwards only, and is not told here; `gkctl events --follow`
//! tells who is offline.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use anyhow::Result;
use gk_client::{Client, ClientError};
use gk_model::history::{Event, EventKind, Interval};
use gk_model::port::PortRange;
use gk_model::query::{EventQuery, HistoryQuery, Limit};
use gk_model::time::Timestamp;
use gk_model::watch::WatchQuery;

use super::line::{self, Line};
use super::{held, pages, query};
use crate::args::HistoryFilters;
use crate::context::Context;
use crate::follow;
use crate::output::{Lines, List};

/// Tells each interval that begins or ends from now on; with `--since`, after those that have lasted since then.
pub(crate) fn follow(context: &Context, wanted: &HistoryFilters) -> Result<()> {
    let instance = context.instance_or_all(wanted.all_instances || wanted.label.is_some())?;
    let client = context.client()?;
    let list = List { columns: line::live_columns(instance.is_none()), name: Line::name, when_empty: "" };
    let (mut lines, mut told) = (Lines::new(list), Told::default());
    let mut tell = |found: Vec<Line>| -> Result<()> {
        for line in found {
            if told.is_news(line.name(), line.until()) {
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
    // Of all ports: that an instance left is about none, and ends what lasts on each.
    let watch =
        WatchQuery { instance, label: wanted.label.clone(), after: Some(log.end()), ..WatchQuery::default() };
    follow::follow(&client, &watch, |event| tell(read_news(&client, &asked, event)?))
}

/// What an event has begun or ended, as far as it was asked for.
fn read_news(client: &Client, asked: &HistoryQuery, event: &Event) -> Result<Vec<Line>, ClientError> {
    if event.kind == EventKind::Left {
        return read_left(client, asked, event);
    }
    let range = event.first_port.zip(event.last_port);
    let Some(range) = range.and_then(|(first, last)| PortRange::new(first, last).ok()) else {
        return Ok(Vec::new());
    };
    let is_asked_for =
        asked.port.is_none_or(|port| port.first() <= range.last() && range.first() <= port.last())
            && asked.protocol.is_none_or(|protocol| event.protocol == Some(protocol));
    if !is_asked_for {
        return Ok(Vec::new());
    }
    let touched = HistoryQuery { port: Some(range), ..since(event.at, asked, event) };
    // What only goes on beside it is no news.
    read(client, &touched, |interval| interval.seq == event.seq || interval.ended_at == Some(event.at))
}

/// What ended because its instance left. Nobody knows of its listeners since its last contact, so that is when they ended.
fn read_left(client: &Client, asked: &HistoryQuery, event: &Event) -> Result<Vec<Line>, ClientError> {
    let Some(left) = &event.instance else { return Ok(Vec::new()) };
    let ended_at = client.get_instance(&left.id.into())?.last_contact_at.unwrap_or(event.at);
    // No interval ends before it began.
    let is_news = |interval: &Interval| interval.ended_at == Some(ended_at.max(interval.began_at));
    read(client, &since(ended_at, asked, event), is_news)
}

/// What was asked for, on the instance of an event, from a moment on. By its id: a name means nobody once it has left, and
/// its labels have been looked at by the watch.
fn since(at: Timestamp, asked: &HistoryQuery, event: &Event) -> HistoryQuery {
    let instance = event.instance.as_ref().map(|instance| instance.id.into());
    let label = asked.label.clone().filter(|_| instance.is_none());
    // What ended at a moment does not last beyond it.
    let since = Some(at.minus(Duration::from_micros(1)));
    HistoryQuery { instance: instance.or_else(|| asked.instance.clone()), label, since, ..asked.clone() }
}

/// Which intervals were told, and until when they lasted then.
#[derive(Debug, Default)]
struct Told {
    until: HashMap<String, Option<Timestamp>>,
    /// Those that have ended, the oldest first.
    ended: VecDeque<String>,
}

/// How many that have ended are remembered: several events may be about the end of one, and those come together.
const MOST_ENDED: usize = 1000;

impl Told {
    /// Whether it was not told so yet; from now on it was.
    fn is_news(&mut self, name: String, until: Option<Timestamp>) -> bool {
        let before = self.until.insert(name.clone(), until);
        if until.is_some() && !matches!(before, Some(Some(_))) {
            self.ended.push_back(name);
            if self.ended.len() > MOST_ENDED {
                self.ended.pop_front().map(|oldest| self.until.remove(&oldest));
            }
        }
        before != Some(until)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_beginning_and_each_end_is_told_once_and_what_has_ended_is_forgotten() {
        let (mut told, noon) = (Told::default(), Timestamp::from_micros(1_700_000_000_000_000));
        assert!(told.is_news("lasts".to_owned(), None));
        for round in 0..10_000_u64 {
            let (name, end) = (round.to_string(), Some(noon.plus(Duration::from_secs(round))));
            assert_eq!(
                [None, None, end, end].map(|until| told.is_news(name.clone(), until)),
                [true, false, true, false]
            );
        }
        assert!(!told.is_news("lasts".to_owned(), None), "as long as it lasts");
        assert_eq!((told.until.len(), told.ended.len()), (MOST_ENDED + 1, MOST_ENDED));
    }
}
