//! Watching: events as they happen, over any number of interruptions.
//!
//! A [`Watch`] keeps its place in the log. When the connection is lost (the server stops, the network breaks, nothing
//! comes for [`SILENCE`]) it says so, waits a little longer each time, and goes on behind the last thing it was told, so
//! that its caller gets each event once and in order. What cannot be mended by waiting ends it: a token that is no good,
//! a place that the log does not reach any more, and a server that is not there when the watch begins.

use std::fmt;
use std::io::{self, Read as _};
use std::time::{Duration, Instant};

use gk_model::history::{Event, EventKind};
use gk_model::paths;
use gk_model::problem::{Code, Problem};
use gk_model::watch::{EventCursor, WatchQuery};
use ureq::BodyReader;

use crate::client::Client;
use crate::error::{ClientError, ProtocolFault};
use crate::exchange::Call;
use crate::retry::{Failure, draw, wait_before_reconnecting};
use crate::sse::{Frame, Parser};

/// How long a connection may say nothing, where a bookmark comes every 15 seconds.
const SILENCE: Duration = Duration::from_secs(45);

/// What a watch tells.
#[derive(Debug)]
pub enum News {
    /// Something happened.
    Event(Box<Event>),
    /// Nothing else happened so far that passes the filters; the connection lives.
    Bookmark,
    /// The connection is lost. The next call waits, and then tries to go on from the same place.
    Lost(ClientError),
}

/// An iterator over events that ends with an error, if ever.
///
/// ```no_run
/// # use gk_client::{Client, News};
/// # use gk_model::watch::WatchQuery;
/// # fn example(client: &Client) -> Result<(), gk_client::ClientError> {
/// for news in client.watch(&WatchQuery::default()) {
///     if let News::Event(event) = news? {
///         println!("{}", event.message);
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Watch {
    client: Client,
    query: WatchQuery,
    silence: Duration,
    stream: Option<Stream>,
    /// How often in a row it was lost without being told anything in between.
    failures: u32,
    wait: Option<Duration>,
    has_begun: bool,
    has_ended: bool,
}

impl Client {
    /// Watches the log from `after` on, or from now.
    pub fn watch(&self, query: &WatchQuery) -> Watch {
        self.watch_within(query, SILENCE)
    }

    /// The same with another idea of how long a server may say nothing.
    pub(crate) fn watch_within(&self, query: &WatchQuery, silence: Duration) -> Watch {
        Watch {
            client: self.that_waits(silence),
            query: query.clone(),
            silence,
            stream: None,
            failures: 0,
            wait: None,
            has_begun: false,
            has_ended: false,
        }
    }
}

impl Watch {
    /// The place behind the last thing it told: where another watch would go on. None before it was told anything.
    pub fn cursor(&self) -> Option<EventCursor> {
        self.query.after
    }

    fn try_next(&mut self) -> Result<News, Failure> {
        loop {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                missing => {
                    let response = self.client.open(&Call::stream(paths::EVENT_STREAM, &self.query))?;
                    self.has_begun = true;
                    missing.insert(Stream::new(response.into_body().into_reader(), self.silence))
                }
            };
            let frame = stream.next_frame().map_err(|error| self.client.unreachable(error))?;
            self.failures = 0;
            if let Some(news) = self.understand(&frame)? {
                return Ok(news);
            }
        }
    }

    /// What a frame tells; nothing for a kind of event that this client is too old to know.
    fn understand(&mut self, frame: &Frame) -> Result<Option<News>, ClientError> {
        if frame.event == "gone" {
            let problem: Problem = self.read(frame)?;
            return Err(ClientError::Gone(Box::new(problem)));
        }
        let cursor = frame.id.as_deref().and_then(|id| id.parse().ok());
        let cursor: EventCursor = cursor.ok_or_else(|| self.broken(frame, "an event without its place"))?;
        self.query.after = Some(cursor);
        if frame.event == "bookmark" {
            return Ok(Some(News::Bookmark));
        }
        if frame.event.parse::<EventKind>().is_err() {
            return Ok(None);
        }
        self.read(frame).map(|event| Some(News::Event(event)))
    }

    fn read<T: serde::de::DeserializeOwned>(&self, frame: &Frame) -> Result<T, ClientError> {
        serde_json::from_str(&frame.data).map_err(|error| self.broken(frame, &error.to_string()))
    }

    fn broken(&self, frame: &Frame, what: &str) -> ClientError {
        let Frame { event, .. } = frame;
        self.client.fault(ProtocolFault::Http {
            request: format!("GET {}", paths::EVENT_STREAM),
            what: format!("`{}`: {what}", event.escape_debug()),
        })
    }

    /// Whether waiting does not help.
    fn is_final(&self, error: &ClientError) -> bool {
        match error {
            ClientError::Unreachable { .. } | ClientError::Protocol { .. } => !self.has_begun,
            ClientError::Refused(problem) => {
                !self.has_begun
                    || !matches!(problem.code, Code::Unavailable | Code::TooOften | Code::TooManyStreams)
            }
            ClientError::Gone(_) | ClientError::InsecureHttp { .. } | ClientError::Untrusted { .. } => true,
        }
    }
}

impl Iterator for Watch {
    type Item = Result<News, ClientError>;

    #[expect(
        clippy::disallowed_methods,
        reason = "between two connections there is nothing to wait for but time"
    )]
    fn next(&mut self) -> Option<Self::Item> {
        if self.has_ended {
            return None;
        }
        if let Some(wait) = self.wait.take() {
            std::thread::sleep(wait);
        }
        let Failure { error, retry_after } = match self.try_next() {
            Ok(news) => return Some(Ok(news)),
            Err(failure) => failure,
        };
        self.stream = None;
        let error = match error {
            ClientError::Refused(problem) if problem.code == Code::StaleCursor => ClientError::Gone(problem),
            other => other,
        };
        if self.is_final(&error) {
            self.has_ended = true;
            return Some(Err(error));
        }
        self.failures += 1;
        self.wait = Some(wait_before_reconnecting(self.failures, retry_after, draw()));
        Some(Ok(News::Lost(error)))
    }
}

/// An answer that goes on.
struct Stream {
    body: BodyReader<'static>,
    parser: Parser,
    silence: Duration,
    /// When the last frame was complete.
    told_at: Instant,
}

/// What is under way says little.
impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

impl Stream {
    fn new(body: BodyReader<'static>, silence: Duration) -> Stream {
        Stream { body, parser: Parser::default(), silence, told_at: Instant::now() }
    }

    fn next_frame(&mut self) -> io::Result<Frame> {
        let mut buffer = [0; 8 << 10];
        loop {
            if let Some(frame) = self.parser.pop() {
                self.told_at = Instant::now();
                return Ok(frame);
            }
            // Bytes that never make a frame are as good as none.
            if self.told_at.elapsed() > self.silence {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was told for too long"));
            }
            match self.body.read(&mut buffer)? {
                0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server ended the stream")),
                count => self.parser.push(&buffer[..count]).map_err(io::Error::other)?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canned::{Canned, Connection, json};

    const LOG: &str = "0190163d-8694-739b-aea5-966c26f8ad91";

    fn bookmark(seq: u64) -> String {
        format!("id: {LOG}.{seq}\nevent: bookmark\ndata: {{\"cursor\":\"{LOG}.{seq}\"}}\n\n")
    }

    fn event(seq: u64, kind: &str) -> String {
        let at = "2026-11-22T20:00:00.000000Z";
        let data = serde_json::json!({
            "seq": seq, "at": at, "recorded_at": at, "kind": kind, "instance": null, "protocol": null,
            "first_port": null, "last_port": null, "actor": "ada", "reservation": null, "listener": null, "message": "x",
        });
        format!("id: {LOG}.{seq}\nevent: {kind}\ndata: {data}\n\n")
    }

    /// A stream that breaks off after these frames.
    fn stream(frames: &[String]) -> Vec<u8> {
        let chunks: String = frames.iter().map(|frame| format!("{:x}\r\n{frame}\r\n", frame.len())).collect();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        format!("{head}{chunks}").into_bytes()
    }

    fn problem(status: u16, code: &str) -> Vec<u8> {
        let title = "x";
        let body = serde_json::json!({
            "type": format!("urn:gatekeeper:problem:{code}"), "title": title, "status": status, "code": code, "detail": "x",
        });
        json(status, &body.to_string())
    }

    /// The news in a word each, until the watch ends, or so many.
    fn tell(watch: &mut Watch, most: usize) -> Vec<String> {
        let word = |news| match news {
            Ok(News::Event(event)) => event.seq.to_string(),
            Ok(News::Bookmark) => "-".to_owned(),
            Ok(News::Lost(_)) => "lost".to_owned(),
            Err(ClientError::Gone(_)) => "gone".to_owned(),
            Err(ClientError::Refused(problem)) => problem.code.to_string(),
            Err(ClientError::Unreachable { .. }) => "unreachable".to_owned(),
            Err(other) => format!("{other:?}"),
        };
        watch.take(most).map(word).collect()
    }

    #[test]
    fn a_watch_goes_on_where_it_was_interrupted_and_ends_when_that_is_gone() {
        let half = format!("id: {LOG}.8\nevent: opened\nda");
        let server = Canned::tcp(vec![
            vec![stream(&[bookmark(5), event(6, "opened"), event(7, "closed"), half])],
            vec![problem(503, "unavailable")],
            vec![stream(&[bookmark(7), event(8, "opened"), event(9, "sung")])],
            vec![problem(410, "stale_cursor")],
        ]);
        let mut watch = server.client().watch(&WatchQuery::default());
        assert_eq!(tell(&mut watch, 99), ["-", "6", "7", "lost", "lost", "-", "8", "lost", "gone"]);
        let asked: Vec<String> = (0..4).map(|_| server.request().0).collect();
        let line = |after: &str| format!("GET /v1/events/stream{after} HTTP/1.1");
        for (head, after) in asked.iter().zip([
            "".to_owned(),
            format!("?after={LOG}.7"),
            format!("?after={LOG}.7"),
            format!("?after={LOG}.9"),
        ]) {
            assert_eq!(
                head.lines().next(),
                Some(line(&after).as_str()),
                "a kind that is not known is passed over"
            );
            assert!(head.contains("accept: text/event-stream\r\n"), "{head}");
        }
    }

    #[test]
    fn what_waiting_does_not_mend_ends_a_watch_at_once() {
        let begun = || vec![stream(&[bookmark(5)])];
        let gone = "event: gone\ndata: {\"type\":\"x\",\"title\":\"Gone\",\"status\":410,\"code\":\"stale_cursor\",\"detail\":\"x\"}\n\n";
        let table: [(Vec<Connection>, &[&str]); 6] = [
            (vec![vec![problem(401, "unauthenticated")]], &["unauthenticated"]),
            (vec![vec![problem(503, "unavailable")]], &["unavailable"]),
            (vec![vec![problem(404, "no_such_instance")]], &["no_such_instance"]),
            (vec![begun(), vec![problem(401, "unauthenticated")]], &["-", "lost", "unauthenticated"]),
            (vec![begun(), vec![problem(403, "forbidden")]], &["-", "lost", "forbidden"]),
            (vec![vec![stream(&[bookmark(5), gone.to_owned()])]], &["-", "gone"]),
        ];
        for (connections, expected) in table {
            let server = Canned::tcp(connections);
            assert_eq!(tell(&mut server.client().watch(&WatchQuery::default()), 99), expected);
        }
        let nobody = Client::new("http://127.0.0.1:1".parse().unwrap(), None);
        assert_eq!(tell(&mut nobody.watch(&WatchQuery::default()), 99), ["unreachable"]);
    }

    #[test]
    fn a_connection_that_says_nothing_is_lost() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let silent = std::thread::spawn(move || {
            use std::io::Write as _;
            let mut connections = [listener.accept().unwrap().0, listener.accept().unwrap().0];
            // The second one says something all the time, and never anything whole.
            connections[0].write_all(&stream(&[bookmark(5)])).unwrap();
            connections[1].write_all(&stream(&[bookmark(5)])).unwrap();
            let dribble = stream(&[":x\n".to_owned()]);
            let chunk = &dribble[dribble.len() - 8..];
            while connections[1].write_all(chunk).is_ok() {
                std::thread::park_timeout(Duration::from_millis(10));
            }
        });
        let client = Client::new(address, None);
        let mut watches: Vec<Watch> =
            (0..2).map(|_| client.watch_within(&WatchQuery::default(), Duration::from_millis(300))).collect();
        let tellers: Vec<_> =
            watches.drain(..).map(|mut watch| std::thread::spawn(move || tell(&mut watch, 2))).collect();
        for teller in tellers {
            assert_eq!(teller.join().unwrap(), ["-", "lost"]);
        }
        silent.join().unwrap();
    }
}
