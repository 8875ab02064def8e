//! `/metrics`: how the server does, for Prometheus.
//!
//! About the server as a whole. No instance, port or subject is in a label: a fleet would make as many series of them,
//! and what they do is for the API to tell. The numbers are the store's; here they get names, words and a format.

use std::fmt;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use gk_model::time::Timestamp;
use gk_store::{Distribution, StoreMetrics};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::app::App;
use crate::extract::NoQuery;
use crate::tls::Tls;
use crate::watch::WatchMetrics;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Metrics of this server in the OpenMetrics text format, which Prometheus reads.
#[utoipa::path(get, path = "/metrics",
    responses((status = 200, body = String, content_type = "application/openmetrics-text")))]
pub(crate) async fn metrics(State(app): State<App>, _: NoQuery) -> Response {
    let uptime_seconds = app.now().since(app.started_at).as_secs_f64();
    let certificate_ends_at = app.tls.as_ref().and_then(Tls::ends_at);
    let (store, watch) = (app.store.metrics(), app.feed.metrics());
    let moment = Moment { version: app.version, uptime_seconds, certificate_ends_at, store, watch };
    let mut registry = Registry::with_prefix("gatekeeper");
    registry.register_collector(Box::new(moment));
    let mut text = String::new();
    encode(&mut text, &registry).expect("the encoder writes to memory, which does not fail");
    ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response()
}

/// All that is shown, as it is at one moment.
#[derive(Debug)]
struct Moment {
    version: &'static str,
    uptime_seconds: f64,
    certificate_ends_at: Option<Timestamp>,
    store: StoreMetrics,
    watch: WatchMetrics,
}

/// Writes one metric down: its name, what it says, and its value.
type Show<'a> = &'a mut dyn FnMut(&str, &str, &dyn EncodeMetric) -> Result<(), fmt::Error>;

impl Collector for Moment {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut show = |name: &str, help: &str, metric: &dyn EncodeMetric| {
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        self.of_process(&mut show)?;
        self.of_store(&mut show)?;
        self.of_watch(&mut show)
    }
}

impl Moment {
    fn of_process(&self, show: Show<'_>) -> Result<(), fmt::Error> {
        show("build", "The version of this server.", &Info::new(vec![("version", self.version)]))?;
        show("uptime_seconds", "How long the server runs.", &ConstGauge::new(self.uptime_seconds))?;
        if let Some(end) = self.certificate_ends_at {
            show(
                "tls_certificate_end_timestamp_seconds",
                "When the certificate ends that clients are shown, in Unix seconds.",
                &ConstGauge::new(end.as_micros() / 1_000_000),
            )?;
        }
        Ok(())
    }

    fn of_store(&self, show: Show<'_>) -> Result<(), fmt::Error> {
        let StoreMetrics { writer, queue_length, batch_size, commit_seconds, statements } = &self.store;
        show(
            "store_queue_length",
            "Changes that wait for the writer just now.",
            &ConstGauge::new(*queue_length),
        )?;
        show("store_batch_size", "Changes in one transaction.", &Shown(batch_size))?;
        show("store_commit_seconds", "How long a commit takes, its sync included.", &Shown(commit_seconds))?;
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
            "Statements of changes, those included.",
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

/// A distribution as a histogram.
struct Shown<'a>(&'a Distribution);

impl EncodeMetric for Shown<'_> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let Distribution { buckets, count, sum } = self.0;
        encoder.encode_histogram::<NoLabelSet>(*sum, *count, buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}
