//! `gatekeeper server`: opens the store, binds, serves until told to stop.

use std::collections::HashMap;
use std::fs::Permissions;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use gk_model::health::Health;
use gk_model::paths::SOCKET_FILE;
use gk_model::text::Subject;
use gk_model::time::Timestamp;
use gk_program::{own_uid, service};
use gk_server::{Cidr, Config, Listeners, Tls};
use gk_store::{Retention, Store};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::ServerArgs;
use crate::surface::SurfaceArgs;

/// Runs the server until SIGINT or SIGTERM.
pub(crate) fn run(args: &ServerArgs) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let server = Server::start(args).await?;
        let stop = stop_requested()?;
        service::ready();
        let pulse = tokio::spawn(pulse(server.store.clone()));
        // Of the server only: `dev` ends with its terminal.
        let reloading = server.tls.clone().map(reload_on_hangup).transpose()?.map(tokio::spawn);
        let served = server
            .serve(async {
                stop.await;
                service::stopping();
            })
            .await;
        pulse.abort();
        if let Some(reloading) = reloading {
            reloading.abort();
        }
        served
    })
}

/// Tells the service manager that the server lives, as long as its writer does.
async fn pulse(store: Store) {
    let Some(every) = service::pulse_every() else { return };
    let mut ticks = tokio::time::interval(every);
    loop {
        ticks.tick().await;
        if store.takes_changes() {
            service::pulse();
        }
    }
}

pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

/// Resolves when the process is asked to end. The handlers are in place when this returns, so no signal is missed.
pub(crate) fn stop_requested() -> anyhow::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// A server that is bound and whose store is open, not yet serving.
pub(crate) struct Server {
    /// Where it listens: the real port, also when port 0 was asked for.
    pub(crate) address: SocketAddr,
    /// Its Unix socket.
    pub(crate) socket: PathBuf,
    database: String,
    store: Store,
    retention: Retention,
    surface: SurfaceArgs,
    listeners: Listeners,
    tls: Option<Tls>,
    url: String,
    trusted_proxies: Vec<Cidr>,
}

impl Server {
    pub(crate) async fn start(args: &ServerArgs) -> anyhow::Result<Server> {
        let data = args.database.data.clone();
        // The store first: its lock decides whose socket file lies in the directory.
        let config = args.store()?;
        let database = config.place();
        let store = Store::open(config, Timestamp::from_clock()).await?;
        let tls = args.tls.open(&data, args.listen)?;
        let tcp = TcpListener::bind(args.listen).await.map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => anyhow::anyhow!(
                "{} is in use: another server may be running (`gkctl status` asks it); choose another port with \
                 --listen 127.0.0.1:PORT",
                args.listen
            ),
            _ => anyhow::Error::new(error).context(format!("cannot listen on {}", args.listen)),
        })?;
        let address = tcp.local_addr().context("cannot tell the address of the socket")?;
        let socket =
            std::path::absolute(data.join(SOCKET_FILE)).context("cannot tell the working directory")?;
        let unix = bind_socket(&socket)?;
        let listeners = Listeners { tcp: Some(tcp), unix: Some(unix) };
        let (url, trusted_proxies) = (
            args.tls.url(address, &tls.as_ref().map(Tls::names).unwrap_or_default()),
            args.tls.trusted_proxy.clone(),
        );
        let retention = Retention { age: args.retention, most_events: args.retention_events };
        let surface = args.surface.clone();
        Ok(Server {
            address,
            socket,
            database,
            store,
            retention,
            surface,
            listeners,
            tls,
            url,
            trusted_proxies,
        })
    }

    /// What it says of itself to whoever asks; see [`Health`].
    pub(crate) fn health(&self) -> Health {
        let address = Some(reachable_here(self.address));
        gk_server::health_of(env!("CARGO_PKG_VERSION"), address, Some(self.url.clone()), self.tls.as_ref())
    }

    /// Serves until `stop`, then finishes what was accepted.
    pub(crate) async fn serve(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let pin = self.health().pins.into_iter().next();
        tracing::info!(
            server.address = %self.address,
            server.url = %self.url,
            server.ca_pin = pin.map(tracing::field::display),
            server.socket = %self.socket.display(),
            server.database = %self.database,
            server.version = env!("CARGO_PKG_VERSION"),
            "serving"
        );
        let config = Config {
            store: self.store,
            clock: Arc::new(Timestamp::from_clock),
            local_subjects: local_subjects(),
            version: env!("CARGO_PKG_VERSION"),
            address: Some(reachable_here(self.address)),
            url: Some(self.url),
            tls: self.tls,
            trusted_proxies: self.trusted_proxies,
            retention: self.retention,
            hosts: self.surface.hosts(),
            rate_limit: self.surface.rate_limit,
        };
        let served = gk_server::run(config, self.listeners, stop).await;
        // A socket file without a server only misleads; a missing one is no harm.
        let _gone = std::fs::remove_file(&self.socket);
        served.context("the server did not end well")
    }
}

/// Looks at the certificate at each SIGHUP. The handler is in place when this returns.
fn reload_on_hangup(tls: Tls) -> anyhow::Result<impl Future<Output = ()>> {
    let mut hangup = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
    Ok(async move {
        while hangup.recv().await.is_some() {
            tls.reload();
        }
    })
}

/// The wildcard address is a place to listen, not one to go to.
fn reachable_here(listening: SocketAddr) -> SocketAddr {
    let ip = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listening.port())
}

/// Binds the Unix socket in the data directory, in place of what a killed server left there.
fn bind_socket(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    let socket = UnixListener::bind(path).with_context(|| match path.as_os_str().len() {
        0..=107 => format!("cannot listen on {}", path.display()),
        _ => format!("cannot listen on {}: the path of a Unix socket has at most 107 bytes", path.display()),
    })?;
    // The directory is private already; this is for whoever opens it later, with a server that runs.
    std::fs::set_permissions(path, Permissions::from_mode(0o600))
        .context("cannot make the socket private")?;
    Ok(socket)
}

/// Who is admin at the Unix socket without a token: root, and the server's own account.
fn local_subjects() -> HashMap<u32, Subject> {
    [0, own_uid()].into_iter().map(|uid| (uid, local_subject(uid))).collect()
}

/// `local:ada`; by number when the account has no name, or one that no subject can have.
fn local_subject(uid: u32) -> Subject {
    let by_name = format!("local:{}", gk_scan::account_name(uid)).parse();
    by_name.unwrap_or_else(|_| format!("local:{uid}").parse().expect("digits are allowed in a subject"))
}
