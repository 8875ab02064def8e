//! Handshakes that never end.

use std::time::Duration;

use gk_model::time::Timestamp;
use gk_store::{Store, StoreConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::config;
use crate::{Config, Listeners, Tls, TlsSource, run};

/// Time is paused and advances when everybody waits, so that a limit of any length is over at once, and a missing one
/// hangs the test.
#[tokio::test(start_paused = true)]
async fn a_handshake_that_stalls_is_cut_off_after_ten_seconds_and_holds_up_no_end() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(StoreConfig::embedded(directory.path()), Timestamp::from_clock()).await.unwrap();
    let source = TlsSource::Auto {
        directory: directory.path().join("tls"),
        names: vec!["localhost".parse().unwrap()],
    };
    let tls = Tls::open(source, Timestamp::from_clock()).unwrap();
    let config = Config { tls: Some(tls), ..config(store) };
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let listeners = Listeners { tcp: Some(tcp), unix: None };
    let server = tokio::spawn(run(config, listeners, async { drop(stopped.await) }));

    for begun in [&b""[..], b"\x16\x03\x01\x02\x00", b"GET /healthz HTTP/1.1\r\nhost: "] {
        let mut stalled = TcpStream::connect(address).await.unwrap();
        stalled.write_all(begun).await.unwrap();
        let begun_at = tokio::time::Instant::now();
        let mut answer = Vec::new();
        // Closing with something unread is a reset; either way it is over.
        let _ended = stalled.read_to_end(&mut answer).await;
        let took = begun_at.elapsed();
        assert!(took <= Duration::from_secs(11), "{took:?} for {begun:?}");
        assert_eq!(answer, b"");
    }
    let waiting = TcpStream::connect(address).await.unwrap();
    let stopping_at = tokio::time::Instant::now();
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
    assert!(stopping_at.elapsed() < Duration::from_secs(9), "{:?}", stopping_at.elapsed());
    drop(waiting);
}
