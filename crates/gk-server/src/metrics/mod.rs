//! `/metrics`: how the server does, for Prometheus.
//!
//! About the server and the fleet as a whole. No instance, port or subject is in a label: a fleet would make as many series
//! of them, and what they do is for the API to tell. Labels have words that the code knows, routes as they are registered,
//! and names of pools, of which admins make a thousand at most. The numbers are the store's and those of [`Traffic`] and
//! [`Contacts`]; here they get names, words and a format.
//!
//! What is said to be of the fleet is the same from every server of one database, and is kept by counters: to ask costs a
//! few rows, and not more for a million listeners. When the database does not answer in time it is left out, so that the
//! rest still tells what is wrong.

mod contacts;
mod text;
mod traffic;

use std::fmt;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_TYPE, VARY};
use axum::response::{IntoResponse, Response};
use gk_model::status::Status;
use gk_model::time::Timestamp;
use gk_store::{Distribution, PoolFill, StoreMetrics};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

use crate::app::App;
use crate::extract::NoQuery;
use crate::tls::Tls;
use crate::watch::WatchMetrics;

pub(crate) use contacts::Contacts;
pub(crate) use traffic::Traffic;

/// How long the database may take to tell of the fleet: well within the time that Prometheus waits.
const PATIENCE: Duration = Duration::from_secs(3);

/// Metrics of this server and the fleet, as Prometheus reads them: in OpenMetrics where that is accepted.
#[utoipa::path(get, path = "/metrics", responses((status = 200, content(
    (String = "text/plain"), (String = "application/openmetrics-text")))))]
pub(crate) async fn metrics(State(app): State<App>, headers: HeaderMap, _: NoQuery) -> Response {
    let fleet = ask_of_fleet(&app).await;
    let text = encoded(Moment {
        version: app.version,
        uptime_seconds: app.now().since(app.started_at).as_secs_f64(),
        certificate_ends_at: app.tls.as_ref().and_then(Tls::ends_at),
        store: app.store.metrics(),
        watch: app.feed.metrics(),
        traffic: app.published().traffic.clone(),
        app,
        fleet,
    });
    let (kind, text) = match text::wants_open_metrics(&headers) {
        true => (text::OPEN_METRICS, text),
        false => (text::PLAIN, text::plain(&text)),
    };
    ([(CONTENT_TYPE, kind), (VARY, "Accept")], text).into_response()
}

/// Nothing when the database fails, or is silent for too long.
async fn ask_of_fleet(app: &App) -> Option<Fleet> {
    let now = app.now();
    let asking = app.store.read(move |reader| {
        let (status, events) = (reader.get_status(now)?, reader.newest_seq()?);
        Ok(Fleet { status, events, pools: reader.list_pool_fills()? })
    });
    tokio::time::timeout(PATIENCE, asking).await.ok()?.ok()
}

fn encoded(moment: Moment) -> String {
    let mut registry = Registry::with_prefix("gatekeeper");
    registry.register_collector(Box::new(moment));
    let mut text = String::new();
    encode(&mut text, &registry).expect("the encoder writes to memory, which does not fail");
    text
}

/// What the database tells of the fleet.
#[derive(Debug)]
struct Fleet {
    status: Status,
    events: u64,
    pools: Vec<PoolFill>,
}

/// All that is shown, as it is at one moment.
#[derive(Debug)]
struct Moment {
    version: &'static str,
    uptime_seconds: f64,
    certificate_ends_at: Option<Timestamp>,
    store: StoreMetrics,
    watch: WatchMetrics,
    traffic: Traffic,
    app: App,
    fleet: Option<Fleet>,
}

/// Writes one metric down: its name, what it says, and its value. Whose it is comes by itself.
type Show<'a> = &'a mut dyn FnMut(&str, &str, &dyn EncodeMetric) -> Result<(), fmt::Error>;

impl Collector for Moment {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut show = |whose: &str, name: &str, help: &str, metric: &dyn EncodeMetric| {
            let help = format!("{help} {whose}");
            metric.encode(encoder.encode_descriptor(name, &help, None, metric.metric_type())?)
        };
        let mut of_server =
            |name: &str, help: &str, metric: &dyn EncodeMetric| show("Of this server.", name, help, metric);
        self.of_process(&mut of_server)?;
        self.of_requests(&mut of_server)?;
        self.of_contacts(&mut of_server)?;
        self.of_store(&mut of_server)?;
        self.of_watch(&mut of_server)?;
        let mut of_fleet = |name: &str, help: &str, metric: &dyn EncodeMetric| {
            show("Of the whole fleet.", name, help, metric)
        };
        self.fleet.as_ref().map_or(Ok(()), |fleet| fleet.show(&mut of_fleet))
    }
}

impl Moment {
    fn of_process(&self, show: Show<'_>) -> Result<(), fmt::Error> {
        show("build", "The version.", &Info::new(vec![("version", self.version)]))?;
        show("uptime_seconds", "How long it runs.", &ConstGauge::new(self.uptime_seconds))?;
        if let Some(end) = self.certificate_ends_at {
            show(
                "tls_certificate_end_timestamp_seconds",
                "When the certificate ends that clients are shown, in Unix seconds.",
                &ConstGauge::new(end.as_micros() / 1_000_000),
            )?;
        }
        Ok(())
    }

    fn of_requests(&self, show: Show<'_>) -> Result<(), fmt::Error> {
        let series = self.traffic.series().map(|series| {
            let labels = vec![("route", series.route), ("method", series.method), ("code", series.code)];
            (labels, Shown(series.seconds))
        });
        show(
            "http_request_duration_seconds",
            "How long requests took until the head of the answer, by route as it is documented.",
            &Each(series.collect()),
        )
    }

    fn of_contacts(&self, show: Show<'_>) -> Result<(), fmt::Error> {
        let counts = self.app.contacts.counts().map(|([kind, outcome], count)| {
            (vec![("kind", kind), ("outcome", outcome)], ConstCounter::new(count))
        });
        show("contacts", "Contacts of agents, by what became of them.", &Each(counts.collect()))?;
        show(
            "report_lag_seconds",
            "How long agents had known what they told when they sent it, by their own clocks.",
            &Shown(self.app.contacts.lag()),
        )
    }

    fn of_store(&self, show: Show<'_>) -> Result<(), fmt::Error> {
        let StoreMetrics { writer, queue_length, batch_size, commit_seconds, statements } = &self.store;
        show(
            "store_up",
            "Whether the database answered just now; without it nothing is told of the fleet.",
            &ConstGauge::new(u64::from(self.fleet.is_some())),
        )?;
        show(
            "store_queue_length",
            "Changes that wait for the writer just now.",
            &ConstGauge::new(*queue_length),
        )?;
        show("store_batch_size", "Changes in one transaction.", &Shown(batch_size.clone()))?;
        show(
            "store_commit_seconds",
            "How long a commit takes, its sync included.",
            &Shown(commit_seconds.clone()),
        )?;
        show(
            "store_commits",
            "Transactions committed; each is one sync of the write-ahead log.",
            &ConstCounter::new(writer.commits),
        )?;
        show(
            "store_answers",
            "Changes answered, refused ones included.",
            &ConstCounter::new(writer.answers),
        )?;
        show(
            "store_questions",
            "Statements of changes whose answer was waited for; each is a round trip to the database.",
            &ConstCounter::new(statements.asked),
        )?;
        show(
            "store_statements",
            "Statements of changes, those included whose answer was waited for.",
            &ConstCounter::new(statements.asked + statements.said),
        )?;
        show(
            "store_replays",
            "Batches rolled back and done again one change at a time, because one of them failed.",
            &ConstCounter::new(writer.replays),
        )
    }

    fn of_watch(&self, show: Show<'_>) -> Result<(), fmt::Error> {
        let WatchMetrics { watchers, sent, lag, stalled, overtaken } = self.watch;
        show("watchers", "Streams of events that are open.", &ConstGauge::new(watchers as u64))?;
        show("watch_lag_events", "How many events the slowest stream is behind.", &ConstGauge::new(lag))?;
        show(
            "watch_events_sent",
            "Events sent to streams, each counted once for each stream.",
            &ConstCounter::new(sent),
        )?;
        show(
            "watch_stalled",
            "Streams cut off because their client did not read.",
            &ConstCounter::new(stalled),
        )?;
        show(
            "watch_overtaken",
            "Streams ended because what they would tell next had been taken away.",
            &ConstCounter::new(overtaken),
        )
    }
}

impl Fleet {
    fn show(&self, show: Show<'_>) -> Result<(), fmt::Error> {
        let Status { instances, reservations, drift, listeners, as_of: _ } = self.status;
        let each = |label: &'static str, counts: &[(&'static str, u64)]| {
            let gauges = counts.iter().map(|(value, count)| (vec![(label, *value)], ConstGauge::new(*count)));
            Each(gauges.collect())
        };
        show(
            "instances",
            "Joined instances, by presence.",
            &each("presence", &[("online", instances.online), ("offline", instances.offline)]),
        )?;
        show(
            "drift_ports",
            "Ports that differ from the plan; those that a rule ignores are counted as ignored only.",
            &each(
                "state",
                &[("conflict", drift.conflict), ("unreserved", drift.unreserved), ("ignored", drift.ignored)],
            ),
        )?;
        show("listeners", "Listeners, in any network namespace.", &ConstGauge::new(listeners))?;
        show("reservations", "Live reservations.", &ConstGauge::new(reservations.live))?;
        show(
            "leases",
            "Live reservations that end unless they are renewed.",
            &ConstGauge::new(reservations.leases),
        )?;
        show("events", "Events in the log, pruned ones included.", &ConstCounter::new(self.events))?;
        self.show_pools(show)
    }

    fn show_pools(&self, show: Show<'_>) -> Result<(), fmt::Error> {
        let each = |count: fn(&PoolFill) -> u64| {
            let gauges = self.pools.iter().map(|fill| {
                let labels = vec![("pool", fill.pool.as_str()), ("protocol", fill.protocol.as_str())];
                (labels, ConstGauge::new(count(fill)))
            });
            Each(gauges.collect())
        };
        show("pool_ports", "Numbers of a pool, on each instance.", &each(|fill| fill.size.into()))?;
        show(
            "pool_taken_ports",
            "Numbers of a pool that are reserved, on all instances together; fleet-wide ones once.",
            &each(|fill| fill.taken),
        )?;
        show(
            "pool_fullest_taken_ports",
            "Numbers of a pool that are reserved on the instance where fewest are left.",
            &each(|fill| fill.fullest),
        )
    }
}

/// A distribution as a histogram.
struct Shown(Distribution);

impl TypedMetric for Shown {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Shown {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let Distribution { buckets, count, sum } = &self.0;
        encoder.encode_histogram::<NoLabelSet>(*sum, *count, buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Shown::TYPE
    }
}

/// One metric for each of these labels.
struct Each<'l, M>(Vec<(Vec<(&'static str, &'l str)>, M)>);

impl<M: EncodeMetric + TypedMetric> EncodeMetric for Each<'_, M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.iter().try_for_each(|(labels, metric)| metric.encode(encoder.encode_family(labels)?))
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}
