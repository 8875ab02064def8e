//! Gaps: from when to when nobody watched the listeners of an instance.
//!
//! An agent that goes on where it was has watched all the while, however long the server was away: what changed meanwhile
//! it tells now, with its times. One that begins anew has not, and neither has one whose contacts are not all here, as
//! after a restore. So a gap is found when the next report comes; while an instance is offline, it is open.
//!
//! A gap begins when what is stored was last confirmed, which may be some seconds before the agent ended: better to say
//! too little than to say that nobody listened.

use gk_model::history::{Gap, Interval};
use gk_model::id::InstanceId;
use gk_model::instance::InstanceLink;
use gk_model::query::HistoryQuery;
use gk_model::time::Timestamp;

use crate::arms::Whose;
use crate::error::{Error, StoreError};
use crate::page::{self, Filters};
use crate::tx::{Reader, Tx};
use crate::value::{Value, values};

impl Tx<'_> {
    /// Writes a gap down. One that touches the gap before makes that one longer, so that an agent that is only run from
    /// time to time does not leave one for each time.
    pub(crate) fn record_gap(
        &mut self,
        instance: InstanceId,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<(), StoreError> {
        if from >= until {
            return Ok(());
        }
        let newest = "select from_at, until_at from gap where instance = $1 order by from_at desc limit 1";
        let newest = self.query_one(newest, values![instance])?;
        let newest: Option<(Timestamp, Timestamp)> =
            newest.map(|mut row| Ok::<_, StoreError>((row.take()?, row.take()?))).transpose()?;
        match newest {
            Some((began_at, ended_at)) if ended_at >= from => self.later(
                "update gap set until_at = $3 where instance = $1 and from_at = $2 and until_at < $3",
                values![instance, began_at, until],
            ),
            _ => self.later(
                "insert into gap (instance, from_at, until_at) values ($1, $2, $3)",
                values![instance, from, until],
            ),
        }
    }
}

/// The part of time that a page tells of, the end not included, and which moments in it were asked for.
struct Window {
    from: Timestamp,
    until: Timestamp,
    /// A gap that was over by then is not asked for.
    beyond: Option<Timestamp>,
}

impl Window {
    /// Of the page that ends with an interval, or of the last one.
    fn of(query: &HistoryQuery, last: Option<&Interval>) -> Result<Window, Error> {
        let cursor = match &query.cursor {
            Some(cursor) => {
                let [began_at, _] = page::parts::<2>(cursor)?;
                Some(Timestamp::from_micros(page::part(began_at)?))
            }
            None => None,
        };
        let end = last.map(|last| last.began_at);
        let (from, until) = if query.oldest == Some(true) { (cursor, end) } else { (end, cursor) };
        let until = until.unwrap_or(Timestamp::from_micros(i64::MAX));
        let until = until.min(query.until.unwrap_or(until));
        // What began at the moment itself is not a gap at that moment.
        let until = until.min(query.at.unwrap_or(until));
        Ok(Window {
            from: from.unwrap_or(Timestamp::from_micros(i64::MIN)),
            until,
            beyond: query.at.max(query.since),
        })
    }

    fn holds(&self, gap: &Gap) -> bool {
        (self.from..self.until).contains(&gap.from)
            && self.beyond.is_none_or(|beyond| gap.until.is_none_or(|until| until > beyond))
    }
}

impl Reader<'_> {
    /// The gaps that belong to the page that ends with an interval, or to the last one; the last first.
    pub(crate) fn list_gaps(
        &mut self,
        query: &HistoryQuery,
        whose: Option<&Whose>,
        last: Option<&Interval>,
    ) -> Result<Vec<Gap>, Error> {
        let window = Window::of(query, last)?;
        let mut gaps = self.list_open_gaps(whose)?;
        gaps.retain(|gap| window.holds(gap));
        let (sql, values) = select(&window, whose);
        let rows = self.query(&sql, &values)?;
        let names = self.list_names(&rows, 0)?;
        for mut row in rows {
            if let Some(instance) = names.take_link(&mut row)? {
                gaps.push(Gap { instance, from: row.take()?, until: Some(row.take()?) });
            }
        }
        gaps.sort_by_key(|gap| (std::cmp::Reverse(gap.from), gap.instance.id));
        gaps.truncate(Gap::MOST as usize);
        Ok(gaps)
    }

    /// Of those that are offline: as many rows as there are such instances, by an index.
    fn list_open_gaps(&mut self, whose: Option<&Whose>) -> Result<Vec<Gap>, StoreError> {
        let offline = Filters::new("offline_since is not null and left_at is null", &[]);
        let select = "select id, name, coalesce(observed_at, offline_since) from instance";
        let (sql, values) = of(whose, offline, "id").finish(select, "id", u32::MAX - 1);
        let rows = self.query(&sql, &values)?;
        let read = rows.into_iter().map(|mut row| {
            let instance = InstanceLink { id: row.take()?, name: row.take()? };
            Ok(Gap { instance, from: row.take()?, until: None })
        });
        read.collect()
    }
}

/// Gaps that are over. Where only those after a moment are asked for, the index of their ends has them together, and
/// those few are sorted; else that of their beginnings has them in order.
fn select(window: &Window, whose: Option<&Whose>) -> (String, Vec<Value>) {
    let beginning = match window.beyond {
        Some(beyond) => Filters::new(
            "g.until_at > $1 and g.from_at + 0 >= $2 and g.from_at + 0 < $3",
            values![beyond, window.from, window.until],
        ),
        None => Filters::new("g.from_at >= $1 and g.from_at < $2", values![window.from, window.until]),
    };
    let select = "select g.instance, g.from_at, g.until_at from gap g";
    of(whose, beginning, "g.instance").finish(select, "g.from_at desc, g.instance", Gap::MOST - 1)
}

fn of(whose: Option<&Whose>, filters: Filters, column: &str) -> Filters {
    match whose {
        Some(whose) => whose.choose(filters, column),
        None => filters,
    }
}
