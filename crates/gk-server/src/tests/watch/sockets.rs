//! Streams over real connections: read, quiet, and not read.

use std::time::Duration;

use gk_model::time::Timestamp;
use gk_model::watch::EventCursor;
use gk_store::{Store, StoreConfig};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::make_tokens;
use crate::tests::config;
use crate::tests::serving::{get, this_account};
use crate::{Config, Listeners, run};

/// A server at a Unix socket that admits this account.
struct Served {
    store: Store,
    directory: TempDir,
    _stop: oneshot::Sender<()>,
}

impl Served {
    async fn new() -> Served {
        let directory = tempfile::tempdir().unwrap();
        let store =
            Store::open(StoreConfig::embedded(directory.path()), Timestamp::from_clock()).await.unwrap();
        let config = Config { local_subjects: this_account(directory.path()), ..config(store.clone()) };
        let unix = Some(UnixListener::bind(directory.path().join("socket")).unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(run(config, Listeners { tcp: None, unix }, async { drop(stopped.await) }));
        Served { store, directory, _stop: stop }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.directory.path().join("socket")).await.unwrap()
    }

    async fn watch(&self, query: &str) -> BufReader<UnixStream> {
        let mut stream = self.connect().await;
        let head = format!("GET /v1/events/stream?{query} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        BufReader::new(stream)
    }

    async fn sent(&self) -> Option<String> {
        let metrics = get(self.connect().await, "/metrics").await;
        metrics
            .lines()
            .find_map(|line| line.strip_prefix("gatekeeper_watch_events_sent_total ").map(str::to_owned))
    }

    async fn shows(&self, metric: &str) -> bool {
        get(self.connect().await, "/metrics").await.lines().any(|line| line == metric)
    }
}

/// The ids of the stream that come up to this one, bookmarks too.
async fn ids_until(stream: &mut BufReader<UnixStream>, seq: u64) -> Vec<u64> {
    let mut ids = Vec::new();
    let mut line = String::new();
    while ids.last() != Some(&seq) {
        line.clear();
        assert_ne!(stream.read_line(&mut line).await.unwrap(), 0, "the stream ends");
        ids.extend(line.strip_prefix("id: ").map(|id| id.trim_end().parse::<EventCursor>().unwrap().seq));
    }
    ids
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_holds_up_nobody_and_misses_nothing() {
    let served = Served::new().await;
    let begin = served.store.log().await.unwrap().end();
    let (mut reader, mut stalled) = (served.watch("").await, served.watch("").await);
    assert_eq!((ids_until(&mut reader, 0).await, ids_until(&mut stalled, 0).await), (vec![0], vec![0]));
    // Far more than the connection of a client that does not read can hold.
    for _ in 0..12 {
        make_tokens(&served.store, 500).await;
    }
    assert_eq!(ids_until(&mut reader, 6000).await, (1..=6000).collect::<Vec<_>>());
    assert!(served.shows("gatekeeper_watchers 2").await, "so far it is not cut off");
    // Until all buffers are full: time that is paused does not wait for the database.
    let mut same = 0;
    let mut sent = served.sent().await;
    while same < 50 {
        let now = served.sent().await;
        same = if now == sent { same + 1 } else { 0 };
        sent = now;
    }
    tokio::time::pause();
    let since = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    while !served.shows("gatekeeper_watch_stalled_total 1").await {
        assert!(since.elapsed() < Duration::from_secs(90), "it is cut off");
        ticks.tick().await;
    }
    tokio::time::resume();
    let took = since.elapsed().as_secs();
    assert!((20..60).contains(&took), "{took} s");
    assert!(served.shows("gatekeeper_watchers 1").await, "the other one goes on");
    let mut again = served.watch(&format!("after={begin}")).await;
    assert_eq!(ids_until(&mut again, 6000).await, (0..=6000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_quiet_stream_lives_as_long_as_it_is_read() {
    let served = Served::new().await;
    let mut reader = served.watch("").await;
    ids_until(&mut reader, 0).await;
    tokio::time::pause();
    let since = Instant::now();
    for _ in 0..40 {
        ids_until(&mut reader, 0).await;
    }
    let took = since.elapsed().as_secs();
    assert!((590..610).contains(&took), "{took} s");
}
