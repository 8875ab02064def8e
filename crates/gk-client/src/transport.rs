//! How bytes reach a server: TCP, TLS over it (`tls.rs`), or a Unix socket, under the same HTTP.
//!
//! The HTTP client resolves names and speaks TCP by itself; a Unix socket is given to it as a transport of our own.
//! Every new connection is counted, so that the exchange can tell a failure on a kept connection (which the server
//! may have closed long ago) from a failure on a fresh one.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use ureq::config::{Config, ConfigBuilder};
use ureq::http::Uri;
use ureq::typestate::AgentScope;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, TcpConnector, Transport,
};
use ureq::{Agent, Error};

use crate::address::ServerAddress;
use crate::tls::{Pins, Tls};

/// How long a connection may take to come about.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a kept connection is used again. A server that closes it earlier is noticed before the next request.
const KEEP_FOR: Duration = Duration::from_mins(2);

/// What a connection buffers in either direction: one record of TLS. Of the usual 128 KiB an agent would keep both for as
/// long as it is connected.
const BUFFER_BYTES: usize = 16 << 10;

/// How many connections a client has opened so far.
pub(crate) type Dialled = Arc<AtomicU64>;

/// An HTTP client for one server that gives up on a request after `timeout`, and its count of connections.
pub(crate) fn agent(server: &ServerAddress, timeout: Duration, pins: &Pins) -> (Agent, Dialled) {
    make_agent(server, builder(timeout).timeout_global(Some(timeout)).build(), pins)
}

/// The same that gives up when an answer does not begin within `timeout`, or stands still for so long.
pub(crate) fn agent_that_waits(
    server: &ServerAddress,
    timeout: Duration,
    standstill: Duration,
    pins: &Pins,
) -> (Agent, Dialled) {
    let config =
        builder(timeout).timeout_recv_response(Some(timeout)).timeout_per_read(Some(standstill)).build();
    make_agent(server, config, pins)
}

fn make_agent(server: &ServerAddress, config: Config, pins: &Pins) -> (Agent, Dialled) {
    let dialled = Dialled::default();
    let (socket, tls) = match server {
        ServerAddress::Unix(path) => (Some(path.clone()), None),
        ServerAddress::Http(_) => (None, None),
        ServerAddress::Https(authority) => (None, Some(Tls::new(authority.bare_host(), pins.clone()))),
    };
    let names = Names { needed: socket.is_none(), dns: DefaultResolver::default() };
    let dialer = Dialer { socket, tcp: TcpConnector::default(), tls, dialled: Arc::clone(&dialled) };
    (Agent::with_parts(config, dialer, names), dialled)
}

/// A redirect is answered as it came and never followed, since the token would go along. No proxy of the environment
/// is asked, for the same reason: nobody chose it for this server.
fn builder(timeout: Duration) -> ConfigBuilder<AgentScope> {
    Agent::config_builder()
        .proxy(None)
        .max_redirects(0)
        .http_status_as_error(false)
        .user_agent(concat!("gatekeeper-client/", env!("CARGO_PKG_VERSION")))
        .input_buffer_size(BUFFER_BYTES)
        .output_buffer_size(BUFFER_BYTES)
        .max_idle_connections(1)
        .max_idle_connections_per_host(1)
        .max_idle_age(KEEP_FOR)
        .timeout_resolve(Some(CONNECT_TIMEOUT.min(timeout)))
        .timeout_connect(Some(CONNECT_TIMEOUT.min(timeout)))
}

/// Resolves host names, except where there is nothing to resolve.
#[derive(Debug)]
struct Names {
    needed: bool,
    dns: DefaultResolver,
}

impl Resolver for Names {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        if self.needed {
            return self.dns.resolve(uri, config, timeout).map_err(no_such_host);
        }
        // The trait promises at least one address; the dialer never looks at it.
        let mut addresses = self.empty();
        addresses.push(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        Ok(addresses)
    }
}

/// The standard library has no kind of error for a name that nobody knows.
fn no_such_host(error: Error) -> Error {
    match error {
        Error::Io(error) => Error::Io(io::Error::new(io::ErrorKind::NotFound, error.to_string())),
        other => other,
    }
}

/// Opens connections, and counts them.
#[derive(Debug)]
struct Dialer {
    socket: Option<PathBuf>,
    tcp: TcpConnector,
    /// Present exactly where nothing may be sent without it.
    tls: Option<Tls>,
    dialled: Dialled,
}

impl Connector for Dialer {
    type Out = Box<dyn Transport>;

    fn connect(&self, details: &ConnectionDetails, _: Option<()>) -> Result<Option<Self::Out>, Error> {
        self.dialled.fetch_add(1, Ordering::Relaxed);
        let Some(socket) = &self.socket else {
            let stream = Connector::<()>::connect(&self.tcp, details, None)?;
            let Some(stream) = stream.map(|stream| Box::new(stream) as Box<dyn Transport>) else {
                return Ok(None);
            };
            return match &self.tls {
                Some(tls) => Ok(Some(Box::new(tls.secure(stream, details)?))),
                None => Ok(Some(stream)),
            };
        };
        let buffers =
            LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        let stream = connect_unix(socket, details.timeout)?;
        Ok(Some(Box::new(UnixTransport { stream, buffers })))
    }
}

/// Connects on a thread of its own, because `connect` on a Unix socket blocks without limit while the server's
/// backlog is full, and the standard library cannot set its timeout.
fn connect_unix(socket: &Path, timeout: NextTimeout) -> Result<UnixStream, Error> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let socket = socket.to_owned();
    std::thread::spawn(move || sender.send(UnixStream::connect(socket)).ok());
    let limit = timeout.not_zero().map_or(CONNECT_TIMEOUT, |limit| *limit);
    match receiver.recv_timeout(limit) {
        Ok(connected) => Ok(connected?),
        Err(_) => Err(Error::Timeout(timeout.reason)),
    }
}

/// A connection over a Unix socket.
struct UnixTransport {
    stream: UnixStream,
    buffers: LazyBuffers,
}

impl Transport for UnixTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = timeout.for_write();
        self.stream.set_write_timeout(timeout.not_zero().map(|limit| *limit))?;
        let output = &self.buffers.output()[..amount];
        self.stream.write_all(output).map_err(|error| time_is_over(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        self.stream.set_read_timeout(timeout.not_zero().map(|limit| *limit))?;
        let amount = loop {
            match self.stream.read(self.buffers.input_append_buf()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read.map_err(|error| time_is_over(error, timeout))?,
            }
        };
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        let mut probe = [0];
        let would_block = |error: io::Error| error.kind() == io::ErrorKind::WouldBlock;
        let quiet =
            self.stream.set_nonblocking(true).is_ok() && self.stream.read(&mut probe).is_err_and(would_block);
        // Bytes that nobody asked for are as bad as a closed connection: the next answer would be misread.
        quiet && self.stream.set_nonblocking(false).is_ok()
    }
}

impl fmt::Debug for UnixTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnixTransport").finish_non_exhaustive()
    }
}

/// Linux says `EAGAIN` when the time set for a socket is over.
fn time_is_over(error: io::Error, timeout: NextTimeout) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout(timeout.reason),
        _ => Error::Io(error),
    }
}
