//! Connections: accepting, bounding, ending them.
//!
//! Promises:
//! - A client that sends its request slowly, does not read its answer (`pace.rs`), or leaves an idle connection open,
//!   is cut off; the number of connections of each listener is bounded, so that a flood on the TCP port leaves the Unix
//!   socket usable; and none keeps out another by having many (`places.rs`).
//! - After `shutdown`, requests in flight are answered for at most [`GRACE`]; then what the store accepted is finished,
//!   heartbeats are written, and the store is closed.
//!
//! axum's own `serve` does neither: it sets no timer, so hyper's header timeout never runs, and it waits for ever.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Request};
use axum::serve::{Listener, ListenerExt as _};
use gk_store::Store;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::util::MapRequest;

use crate::app::Config;
use crate::auth::Peer;
use crate::error::chain;
use crate::headers::{HEAD_BUFFER_BYTES, MOST_HEADERS};
use crate::jobs;
use crate::pace::Patient;
use crate::places::{Owner, Places};
use crate::proxy::{Cidr, forwarded_for};
use crate::routes::router;
use crate::tls::{self, Tls};
use crate::watch::Stopping;

/// How long requests in flight may take after `shutdown`.
const GRACE: Duration = Duration::from_secs(10);

/// How long a request's head may take, and how long a connection may idle between two requests. Longer than the 30 s
/// between two heartbeats, so that an agent does not write into a connection that is just being closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(45);

/// How many connections one listener keeps, if the process may open enough files; see [`Places`] for who has them.
const MAX_CONNECTIONS: usize = 16_384;

/// Where the server listens. Bound by the caller, so that a test, or a supervisor, can choose and know the address.
#[derive(Debug, Default)]
pub struct Listeners {
    /// For everybody, by token.
    pub tcp: Option<TcpListener>,
    /// For accounts of this machine.
    pub unix: Option<UnixListener>,
}

/// Why the server did not end well. Everything that was answered before is stored all the same.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The last heartbeats are lost: presence may look older than it was.
    #[error("the last heartbeats could not be stored")]
    FlushContacts(#[source] gk_store::Error),
    /// A task of the server panicked.
    #[error("a part of the server failed")]
    Task(#[from] tokio::task::JoinError),
}

/// Serves until `shutdown`, then finishes what was accepted and closes the store.
///
/// # Errors
/// [`ServeError`] when the last heartbeats could not be stored, or a task panicked. The store is closed in any case.
pub async fn run(
    config: Config,
    listeners: Listeners,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    run_within(max_connections(), config, listeners, shutdown).await
}

/// The same with so many connections for each listener.
pub(crate) async fn run_within(
    most: usize,
    config: Config,
    listeners: Listeners,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let store = config.store.clone();
    let (stop, stopping) = watch::channel(false);
    let mut tasks = start(most, config, listeners, &stopping);
    // A task ends on its own only by a panic; then the rest is stopped too, and the supervisor starts us anew.
    let failed = tokio::select! {
        () = shutdown => None,
        ended = tasks.join_next() => ended.and_then(Result::err),
    };
    tracing::info!("stopping");
    stop.send_replace(true);
    let mut outcome = failed.map_or(Ok(()), |error| Err(ServeError::Task(error)));
    while let Some(ended) = tasks.join_next().await {
        outcome = outcome.and(ended.map_err(ServeError::Task));
    }
    outcome.and(close(store).await)
}

fn start(most: usize, config: Config, listeners: Listeners, stopping: &watch::Receiver<bool>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(jobs::flush_contacts(config.store.clone(), stopping.clone()));
    let (clock, retention) = (config.clock.clone(), config.retention);
    tasks.spawn(jobs::expire_leases(config.store.clone(), clock.clone(), stopping.clone()));
    tasks.spawn(jobs::sweep(config.store.clone(), clock.clone(), stopping.clone()));
    tasks.spawn(jobs::prune(config.store.clone(), clock, retention, stopping.clone()));
    tasks.spawn(jobs::mark_offline(config.store.clone(), config.clock.clone(), stopping.clone()));
    tasks.spawn(jobs::forget_silent(config.store.clone(), config.clock.clone(), stopping.clone()));
    let (tls, trusted) = (config.tls.clone(), Arc::from(config.trusted_proxies.as_slice()));
    if let Some(tls) = tls.clone() {
        tasks.spawn(tls::keep(tls, config.clock.clone(), stopping.clone()));
    }
    let (router, _) = router(config);
    let server = Server { most, router, trusted, tls: tls.as_ref().map(Tls::config), stop: stopping.clone() };
    let Listeners { tcp, unix } = listeners;
    if let Some(tcp) = tcp {
        // Answers are small and written at once: waiting to fill a packet would only delay them.
        let tcp = tcp.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::trace!(%error, "TCP_NODELAY was refused");
            }
        });
        let peer = |_: &_, address| Ok(Peer::Tcp(address));
        tasks.spawn(accept(tcp, peer, Server::serve_tcp, server.clone()));
    }
    if let Some(unix) = unix {
        let peer = |stream: &UnixStream, _| stream.peer_cred().map(|peer| Peer::Unix { uid: peer.uid() });
        tasks.spawn(accept(unix, peer, Server::serve, server));
    }
    tasks
}

/// What each connection needs.
#[derive(Clone)]
struct Server {
    most: usize,
    router: Router,
    trusted: Arc<[Cidr]>,
    /// Of TCP connections; those over the Unix socket never leave the machine.
    tls: Option<Arc<ServerConfig>>,
    stop: watch::Receiver<bool>,
}

async fn close(store: Store) -> Result<(), ServeError> {
    let flushed = store.flush_contacts().await.map_err(ServeError::FlushContacts);
    // Closing waits for the writer's thread.
    let closed = tokio::task::spawn_blocking(move || store.close()).await;
    flushed.and(closed.map_err(ServeError::Task))
}

/// Waits until the server stops.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that `run` is gone, which is a stop as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn accept<L: Listener, F: Future<Output = ()> + Send + 'static>(
    mut listener: L,
    peer: impl Fn(&L::Io, L::Addr) -> io::Result<Peer>,
    serve: impl Fn(Server, L::Io, Peer) -> F,
    server: Server,
) {
    let mut stop = server.stop.clone();
    let (mut connections, mut places) = (JoinSet::new(), Places::new(server.most));
    loop {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = connections.join_next_with_id() => {
                places.leave(ended.map_or_else(|error| error.id(), |(id, ())| id));
                continue;
            }
            () = stopped(&mut stop) => break,
        };
        match peer(&stream, address) {
            Ok(peer) if places.make_room(Owner::of(peer)) => {
                places.take(Owner::of(peer), connections.spawn(serve(server.clone(), stream, peer)));
            }
            Ok(_) => tracing::debug!("all places are taken: a connection was closed"),
            Err(error) => {
                tracing::warn!(%error, "a connection without an owner was dropped");
            }
        }
    }
    drop(listener);
    drain(connections).await;
}

/// How many connections one listener takes at once.
pub(crate) fn max_connections() -> usize {
    share_of_files(&std::fs::read_to_string("/proc/self/limits").unwrap_or_default())
}

/// A third of the files that the process may open: two listeners, and the database between them.
fn share_of_files(limits: &str) -> usize {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft =
        line.and_then(|line| line.split_whitespace().next()).and_then(|soft| soft.parse::<usize>().ok());
    soft.map_or(MAX_CONNECTIONS, |files| (files / 3).clamp(1, MAX_CONNECTIONS))
}

async fn drain(mut connections: JoinSet<()>) {
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, all).await.is_err() {
        tracing::warn!(connections.count = connections.len(), "cut off at shutdown: too slow");
    }
}

impl Server {
    /// By TLS where there is a certificate, and then not otherwise.
    async fn serve_tcp(mut self, stream: TcpStream, peer: Peer) {
        let Some(config) = self.tls.clone() else { return self.serve(stream, peer).await };
        let shaken = tokio::select! {
            shaken = tls::handshake(stream, config) => shaken,
            () = stopped(&mut self.stop) => None,
        };
        if let Some(stream) = shaken {
            self.serve(stream, peer).await;
        }
    }

    async fn serve<S>(mut self, stream: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (trusted, stop) = (self.trusted, self.stop.clone());
        let service = MapRequest::new(self.router, move |mut request: Request<Incoming>| {
            let peer = name_client(&trusted, peer, request.headers());
            request.extensions_mut().insert(ConnectInfo(peer));
            request.extensions_mut().insert(Stopping(stop.clone()));
            request.map(Body::new)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BUFFER_BYTES)
            .max_headers(MOST_HEADERS)
            .serve_connection(TokioIo::new(Patient::new(stream)), TowerToHyperService::new(service));
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stopped(&mut self.stop) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            // Clients go away whenever they like; what they asked for has been decided by then.
            tracing::debug!(error = chain(&error), "a connection broke");
        }
    }
}

/// The peer, or the client that it speaks for.
fn name_client(trusted: &[Cidr], peer: Peer, headers: &HeaderMap) -> Peer {
    match peer {
        Peer::Tcp(address) => forwarded_for(trusted, address, headers).map_or(peer, Peer::Proxied),
        Peer::Proxied(_) | Peer::Unix { .. } => peer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_rest() {
        let limits =
            |soft: &str| format!("Max processes 9 9 processes\nMax open files {soft} 524288 files\n");
        let table = [("1024", 341), ("1000000", MAX_CONNECTIONS), ("1", 1), ("unlimited", MAX_CONNECTIONS)];
        for (soft, expected) in table {
            assert_eq!(share_of_files(&limits(soft)), expected, "{soft}");
        }
        assert_eq!(share_of_files(""), MAX_CONNECTIONS);
    }
}
