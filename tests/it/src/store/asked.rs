//! History by every filter, against what the rows are known to hold: the filler's own rule says what is in each.

use gk_model::history::{Interval, IntervalKind};
use gk_model::id::{InstanceId, InstanceRef};
use gk_model::query::{HistoryQuery, Limit};
use gk_model::time::Timestamp;
use gk_store::{Filling, fill_history, filled_from};

use crate::store::world::World;

const ROWS: u64 = 6_000;
const FIRST: u64 = 1_000_001;

/// Chooses all instances but one, which has the label.
const NOT_THE_FIRST: &str = "role!=first";

/// What the filler has written, by the number of the row.
#[derive(Clone)]
struct Known {
    seq: u64,
    began_at: i64,
    ended_at: Option<i64>,
}

impl Known {
    fn new(seq: u64) -> Known {
        let began_at = filled_from().as_micros() + seq as i64 * 1000;
        let lasted = match seq {
            _ if seq % 5000 == 2 => None,
            _ if seq % 1000 == 1 => Some(100_000_000),
            _ if seq.is_multiple_of(10) => Some(5_000_000),
            _ => Some(500),
        };
        Known { seq, began_at, ended_at: lasted.map(|lasted| began_at + lasted) }
    }

    fn is_held(&self) -> bool {
        self.seq.is_multiple_of(3)
    }

    fn port(&self) -> u64 {
        8000 + self.seq % 2000
    }

    fn passes(&self, query: &HistoryQuery, instances: &[InstanceId]) -> bool {
        let word = |asked: &Option<String>, is: String| {
            asked.as_ref().is_none_or(|asked| !self.is_held() && asked.to_lowercase() == is)
        };
        let held =
            |asked: Option<String>, is: String| asked.is_none_or(|asked| self.is_held() && asked == is);
        let beyond = |time: Option<Timestamp>| {
            time.is_none_or(|time| self.ended_at.is_none_or(|ended| ended > time.as_micros()))
        };
        let account = if self.seq % 100 == 1 { "www-data" } else { "root" };
        let instance = InstanceRef::Id(instances[self.seq as usize / 10 % instances.len()]);
        query.instance.as_ref().is_none_or(|asked| *asked == instance)
            && (query.label.is_none() || instance != InstanceRef::Id(instances[0]))
            && query.kind.is_none_or(|kind| (kind == IntervalKind::Held) == self.is_held())
            && query.port.is_none_or(|range| {
                (u64::from(range.first().get())..=u64::from(range.last().get())).contains(&self.port())
            })
            && held(query.service.as_ref().map(ToString::to_string), format!("service-{}", self.seq % 200))
            && held(query.holder.as_ref().map(ToString::to_string), "ada".to_owned())
            && word(&query.process, format!("worker-{}", self.seq % 500))
            && word(&query.unit, format!("unit-{}.service", self.seq % 100))
            && word(&query.container, format!("web-{}", self.seq % 300))
            && word(&query.account, account.to_owned())
            && beyond(query.since)
            && query.until.is_none_or(|until| self.began_at < until.as_micros())
            && beyond(query.at)
            && query.at.is_none_or(|at| self.began_at <= at.as_micros())
    }
}

/// Also the instances, in the order of their ids, by which the filler goes.
async fn filled(count: u64) -> (World, Vec<InstanceId>) {
    let world = super::new_world().await;
    let mut instances = Vec::new();
    for number in 0..count {
        instances.push(world.join(&format!("node-{number}"), number as u8).await);
    }
    instances.sort_by_key(ToString::to_string);
    world.store.close();
    let config = world.config.clone();
    tokio::task::spawn_blocking(move || fill_history(&config, Filling::Intervals, ROWS).unwrap())
        .await
        .unwrap();
    let world = world.reopen(filled_from()).await;
    world.label(instances[0], "role=first").await;
    (world, instances)
}

async fn pages(world: &World, query: &HistoryQuery) -> Vec<Interval> {
    let (mut found, mut query) = (Vec::new(), query.clone());
    loop {
        let asked = query.clone();
        let page = world.store.read(move |reader| reader.list_history(&asked)).await.unwrap();
        found.extend(page.items);
        match page.next {
            None => return found,
            next => query.cursor = next,
        }
    }
}

#[tokio::test]
async fn every_form_of_history_answers_what_the_rows_say() {
    ask_everything(3).await;
}

/// Of which one has a small part of history, so that other indexes are the better ones.
#[tokio::test]
async fn of_more_instances_every_form_of_history_answers_what_the_rows_say() {
    ask_everything(10).await;
}

/// What may be asked for by a word, in pages of a size that divides nothing.
fn words() -> [HistoryQuery; 8] {
    let plain = || HistoryQuery { limit: Some(Limit::at_most(97)), ..Default::default() };
    [
        plain(),
        HistoryQuery { service: Some("service-9".parse().unwrap()), ..plain() },
        HistoryQuery { holder: Some("ada".parse().unwrap()), ..plain() },
        HistoryQuery { process: Some("Worker-7".to_owned()), ..plain() },
        HistoryQuery { unit: Some("unit-7.service".to_owned()), ..plain() },
        HistoryQuery { container: Some("WEB-7".to_owned()), ..plain() },
        HistoryQuery { account: Some("www-data".to_owned()), kind: Some(IntervalKind::Listened), ..plain() },
        HistoryQuery { kind: Some(IntervalKind::Held), ..plain() },
    ]
}

async fn ask_everything(count: u64) {
    let (world, instances) = filled(count).await;
    let rows: Vec<Known> = (FIRST..FIRST + ROWS).map(Known::new).collect();
    let time = |row: u64| Some(Timestamp::from_micros(Known::new(FIRST + row).began_at));
    let times = [
        (None, None, None),
        (time(3000), None, None),
        (None, time(3000), None),
        (time(2000), time(3000), None),
        (None, None, time(4000)),
        (time(5000), None, time(4000)),
    ];
    let places = [
        (None, None, None),
        (Some(instances[1]), None, None),
        (None, None, Some("8123")),
        (Some(instances[1]), None, Some("8120-8125")),
        (None, None, Some("8100-8200")),
        (None, Some(NOT_THE_FIRST), None),
        (None, Some(NOT_THE_FIRST), Some("8120-8125")),
        (None, Some(NOT_THE_FIRST), Some("8100-8200")),
    ];
    let mut found_any = 0;
    for word in &words() {
        for (since, until, at) in times {
            for (instance, label, port) in places {
                for oldest in [None, Some(true)] {
                    let instance = instance.map(InstanceRef::Id);
                    let port = port.map(|port| port.parse().unwrap());
                    let label = label.map(|label| label.parse().unwrap());
                    let query =
                        HistoryQuery { since, until, at, instance, label, port, oldest, ..word.clone() };
                    let mut expected: Vec<u64> =
                        rows.iter().filter(|row| row.passes(&query, &instances)).map(|row| row.seq).collect();
                    if oldest.is_none() {
                        expected.reverse();
                    }
                    // Each page costs a statement, and the whole is asked for often enough.
                    let is_long = expected.len() > 2000;
                    let query =
                        HistoryQuery { limit: if is_long { Some(Limit::MAX) } else { query.limit }, ..query };
                    let found: Vec<u64> = pages(&world, &query).await.iter().map(|found| found.seq).collect();
                    assert!(
                        found == expected,
                        "{query:?}: {} found, {} expected",
                        found.len(),
                        expected.len()
                    );
                    found_any += usize::from(!expected.is_empty());
                }
            }
        }
    }
    assert!(found_any > 150, "only {found_any} forms found something");
}
