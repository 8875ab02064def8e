//! A load of HTTP requests, cheap enough to share two cores with what it measures.
//!
//! Requests are made before and sent as they are; of an answer only the head's few words that matter are read. One
//! thread, any number of connections that are kept alive, each with one request under way. The same for every server.

use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::{JoinSet, LocalSet};

/// Where a server listens.
#[derive(Clone)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What to send.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) address: Address,
    /// Sent in turn, beginning with this one.
    pub(crate) requests: Rc<Vec<Vec<u8>>>,
    pub(crate) first: usize,
    pub(crate) connections: usize,
    pub(crate) until: Until,
    /// How long each connection waits from one request to the next.
    pub(crate) every: Option<Duration>,
}

/// When to stop.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    /// When the time is over; requests are repeated.
    Elapsed(Duration),
    /// When each was sent once.
    Sent,
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Answers {
    pub(crate) per_second: f64,
    pub(crate) times: Vec<Duration>,
    /// Answers that were not 2xx, and the last of them.
    pub(crate) failed: usize,
    pub(crate) failure: String,
    /// By the number of the request, with what was answered.
    pub(crate) bodies: Vec<(usize, Vec<u8>)>,
}

/// A request as it travels.
pub(crate) fn request(method: &str, path: &str, token: Option<&str>, body: &[u8]) -> Vec<u8> {
    let token = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\n{token}content-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

impl Load {
    /// Sends it all, and blocks until that is done.
    pub(crate) fn run(&self) -> Result<Answers> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let begun = Instant::now();
        let (next, answers) = (Rc::new(Cell::new(self.first)), Rc::new(RefCell::new(Answers::default())));
        LocalSet::new().block_on(&runtime, async {
            let mut connections = JoinSet::new();
            for _ in 0..self.connections {
                let (load, next, answers) = (self.clone(), Rc::clone(&next), Rc::clone(&answers));
                connections.spawn_local(async move { load.connection(&next, &answers, begun).await });
            }
            while let Some(ended) = connections.join_next().await {
                ended??;
            }
            anyhow::Ok(())
        })?;
        let mut answers = answers.take();
        answers.per_second = answers.times.len() as f64 / begun.elapsed().as_secs_f64();
        Ok(answers)
    }

    async fn connection(&self, next: &Cell<usize>, answers: &RefCell<Answers>, begun: Instant) -> Result<()> {
        let mut stream = None;
        let mut ticks = self.every.map(tokio::time::interval);
        loop {
            let number = next.get();
            let over = match self.until {
                Until::Elapsed(span) => begun.elapsed() >= span,
                Until::Sent => number >= self.requests.len(),
            };
            if over {
                return Ok(());
            }
            next.set(number + 1);
            if let Some(ticks) = &mut ticks {
                ticks.tick().await;
            }
            let which = number % self.requests.len();
            let sent = Instant::now();
            let answer = exchange(&mut stream, &self.address, &self.requests[which]).await?;
            let mut answers = answers.borrow_mut();
            answers.times.push(sent.elapsed());
            if (200..300).contains(&answer.status) {
                answers.bodies.push((which, answer.body));
            } else {
                answers.failed += 1;
                answers.failure = String::from_utf8_lossy(&answer.body).into_owned();
            }
        }
    }
}

/// One request by itself, which must go well; answers the body.
pub(crate) fn once(address: &Address, request: Vec<u8>) -> Result<Vec<u8>> {
    let requests = Rc::new(vec![request]);
    let load = Load {
        address: address.clone(),
        requests,
        first: 0,
        connections: 1,
        until: Until::Sent,
        every: None,
    };
    let mut answers = load.run()?;
    let (_, body) = answers.bodies.pop().with_context(|| format!("refused: {}", answers.failure))?;
    Ok(body)
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

struct Answer {
    status: u16,
    body: Vec<u8>,
}

/// Sends a request and reads its answer, on a new connection if there is none, or it was closed meanwhile.
async fn exchange(stream: &mut Option<Stream>, address: &Address, request: &[u8]) -> Result<Answer> {
    for _ in 0..3 {
        let mut open = match stream.take() {
            Some(open) => open,
            None => connect(address).await?,
        };
        if open.write(request).await.is_ok()
            && let Some((answer, stays)) = open.read().await?
        {
            *stream = stays.then_some(open);
            return Ok(answer);
        }
    }
    bail!("the server closes every connection")
}

async fn connect(address: &Address) -> Result<Stream> {
    Ok(match address {
        Address::Tcp(address) => {
            let stream =
                TcpStream::connect(address).await.with_context(|| format!("cannot reach {address}"))?;
            stream.set_nodelay(true)?;
            Stream::Tcp(stream)
        }
        Address::Unix(path) => Stream::Unix(UnixStream::connect(path).await?),
    })
}

impl Stream {
    async fn write(&self, mut rest: &[u8]) -> std::io::Result<()> {
        while !rest.is_empty() {
            let written = match self {
                Stream::Tcp(stream) => stream.try_write(rest),
                Stream::Unix(stream) => stream.try_write(rest),
            };
            match written {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => match self {
                    Stream::Tcp(stream) => stream.writable().await?,
                    Stream::Unix(stream) => stream.writable().await?,
                },
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// One more piece; false at the end.
    async fn fill(&self, buffer: &mut Vec<u8>) -> std::io::Result<bool> {
        let mut piece = [0; 4096];
        loop {
            let read = match self {
                Stream::Tcp(stream) => {
                    stream.readable().await?;
                    stream.try_read(&mut piece)
                }
                Stream::Unix(stream) => {
                    stream.readable().await?;
                    stream.try_read(&mut piece)
                }
            };
            match read {
                Ok(count) => {
                    buffer.extend_from_slice(&piece[..count]);
                    return Ok(count > 0);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// An answer, and whether the connection goes on after it; none when it had ended before.
    async fn read(&mut self) -> Result<Option<(Answer, bool)>> {
        let mut buffer = Vec::new();
        let head = loop {
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if !self.fill(&mut buffer).await? {
                return Ok(None);
            }
        };
        let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
        let field = |name: &str| text.split("\r\n").find_map(|line| line.strip_prefix(name)).map(str::trim);
        let length: Option<usize> = field("content-length:").and_then(|length| length.parse().ok());
        let ends = text.starts_with("http/1.0") || field("connection:") == Some("close");
        let mut body = buffer.split_off(head);
        while length.is_none_or(|length| body.len() < length) {
            if !self.fill(&mut body).await? {
                break;
            }
        }
        Ok(Some((Answer { status, body }, !ends && length.is_some())))
    }
}
