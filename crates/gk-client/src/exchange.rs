//! One request and its answer: headers, bounds, retries, and what every failure is called.

use std::io::{self, BufWriter, Write};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use gk_model::idempotency::KEY_HEADER;
use gk_model::problem::Problem;
use gk_model::text::IdempotencyKey;
use gk_model::time::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::request::Builder;
use ureq::http::{HeaderValue, Method, Request, Response};
use ureq::{Body, Error, Timeout};

use crate::client::Client;
use crate::distrust::{Distrust, speaks_no_tls};
use crate::error::{ClientError, ProtocolFault};
use crate::identity::random_bytes;
use crate::retry::{Failure, draw, wait_before_next};
use crate::transport::CONNECT_TIMEOUT;

/// How much of an answer is read, after decompression. The largest page of the API stays far below.
pub(crate) const MOST_BYTES: u64 = 64 << 20;

/// From this size a body is worth compressing.
const COMPRESS_FROM_BYTES: usize = 1 << 10;

/// How much of an unexpected body an error shows.
const EXCERPT_CHARS: usize = 200;

/// A request to be sent.
pub(crate) struct Call {
    method: Method,
    /// Path and query.
    target: String,
    body: Option<Vec<u8>>,
    compressed: bool,
    repeatable: bool,
    /// Names the request, so that the server can tell its repetition.
    key: Option<IdempotencyKey>,
    /// The version that is to be changed, and no later one.
    version: Option<u64>,
    accept: &'static str,
}

impl Call {
    /// Reads: repeatable.
    pub(crate) fn get(path: &str, query: &impl Serialize) -> Call {
        Call { repeatable: true, ..Call::bare(Method::GET, with_query(path, query)) }
    }

    /// Reads an answer that goes on.
    pub(crate) fn stream(path: &str, query: &impl Serialize) -> Call {
        Call { accept: "text/event-stream", ..Call::get(path, query) }
    }

    /// Deletes. Not repeatable: the second answer would say that there is nothing to delete.
    pub(crate) fn delete(path: &str, query: &impl Serialize) -> Call {
        Call::bare(Method::DELETE, with_query(path, query))
    }

    /// Sends a body that takes effect, once, under a key of its own.
    pub(crate) fn post(path: &str, body: &impl Serialize) -> Call {
        Call { body: Some(json(body)), key: Some(make_key()), ..Call::bare(Method::POST, path.to_owned()) }
    }

    /// Changes some fields.
    pub(crate) fn patch(path: &str, body: &impl Serialize) -> Call {
        Call { body: Some(json(body)), ..Call::bare(Method::PATCH, path.to_owned()) }
    }

    /// Makes something what the body says; to say it again changes nothing.
    pub(crate) fn put(path: &str, body: &impl Serialize) -> Call {
        let body = Some(json(body));
        Call { body, repeatable: true, ..Call::bare(Method::PUT, path.to_owned()) }
    }

    /// Changes that version only. Said again, it would find its own change.
    pub(crate) fn if_version(self, version: Option<u64>) -> Call {
        Call { version, repeatable: self.repeatable && version.is_none(), ..self }
    }

    /// The same with a query.
    pub(crate) fn with(self, query: &impl Serialize) -> Call {
        Call { target: with_query(&self.target, query), ..self }
    }

    /// Sends a body that the server can tell from its repetition; compressed when that is worth it.
    pub(crate) fn post_repeatable(path: &str, body: &impl Serialize) -> Call {
        let (body, compressed) = packed_json(body);
        Call { body: Some(body), compressed, repeatable: true, ..Call::bare(Method::POST, path.to_owned()) }
    }

    fn bare(method: Method, target: String) -> Call {
        let accept = "application/json";
        Call {
            method,
            target,
            body: None,
            compressed: false,
            repeatable: false,
            key: None,
            version: None,
            accept,
        }
    }

    /// Method and path, for errors.
    fn name(&self) -> String {
        let path = self.target.split('?').next().unwrap_or_default();
        format!("{} {path}", self.method)
    }
}

fn make_key() -> IdempotencyKey {
    let uuid = uuid::Builder::from_random_bytes(random_bytes()).into_uuid();
    uuid.to_string().parse().expect("a UUID is 36 visible characters")
}

fn json(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).expect("wire types have string keys and no failing serializers")
}

/// JSON, and whether it is compressed. A report of a thousand listeners is never there as a whole, as plain text.
fn packed_json(body: &impl Serialize) -> (Vec<u8>, bool) {
    let mut writer = BufWriter::new(Packed::Plain(Vec::new()));
    serde_json::to_writer(&mut writer, body).expect("wire types have string keys and no failing serializers");
    match writer.into_inner().ok().expect("writing to memory does not fail") {
        Packed::Plain(text) => (text, false),
        Packed::Gzip(encoder) => (encoder.finish().expect("writing to memory does not fail"), true),
    }
}

/// Compresses as soon as that is worth it.
enum Packed {
    Plain(Vec<u8>),
    Gzip(GzEncoder<Vec<u8>>),
}

impl Write for Packed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Packed::Gzip(encoder) => encoder.write(bytes),
            Packed::Plain(text) => {
                text.extend_from_slice(bytes);
                if text.len() > COMPRESS_FROM_BYTES {
                    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                    encoder.write_all(text)?;
                    *self = Packed::Gzip(encoder);
                }
                Ok(bytes.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Appends the fields of a query that are set. The struct is the single list of them.
fn with_query(path: &str, query: &impl Serialize) -> String {
    let fields = serde_json::to_value(query).expect("queries serialize to an object");
    let mut target = path.to_owned();
    for (name, value) in fields.as_object().into_iter().flatten() {
        let text = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        target.push(if target.contains('?') { '&' } else { '?' });
        target.push_str(name);
        target.push('=');
        push_encoded(&mut target, &text);
    }
    target
}

/// Percent-encodes everything but the unreserved characters of RFC 3986.
fn push_encoded(target: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            target.push(char::from(byte));
        } else {
            target.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// A successful answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The server's clock, to the second, if it told.
    pub(crate) date: Option<Timestamp>,
    body: Vec<u8>,
    request: String,
}

impl Client {
    /// Sends a request and reads the value it is answered with.
    pub(crate) fn fetch<T: DeserializeOwned>(&self, call: &Call) -> Result<T, ClientError> {
        let answer = self.exchange(call)?;
        self.value(&answer)
    }

    /// The value in an answer.
    pub(crate) fn value<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, ClientError> {
        serde_json::from_slice(&answer.body).map_err(|source| {
            self.fault(ProtocolFault::Body {
                request: answer.request.clone(),
                excerpt: excerpt(&answer.body),
                source,
            })
        })
    }

    /// Sends a request and reads its answer; anything but success is an error. Under a key, again until there is an
    /// answer or patience ends.
    #[expect(
        clippy::disallowed_methods,
        reason = "between two attempts there is nothing to wait for but time"
    )]
    pub(crate) fn exchange(&self, call: &Call) -> Result<Answer, ClientError> {
        let begun = Instant::now();
        for attempt in 1.. {
            let failure = match self.attempt(call) {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let wait = wait_before_next(&failure, attempt, begun.elapsed(), self.patience, draw());
            match wait.filter(|_| call.key.is_some()) {
                Some(wait) => std::thread::sleep(wait),
                None => return Err(failure.error),
            }
        }
        unreachable!("patience ends before a u32 does")
    }

    fn attempt(&self, call: &Call) -> Result<Answer, Failure> {
        let mut response = self.open(call)?;
        let body = self.read_body(call, &mut response)?;
        Ok(Answer { status: response.status().as_u16(), date: date(&response), body, request: call.name() })
    }

    /// Sends a request and hands over its answer, unless it is a refusal.
    pub(crate) fn open(&self, call: &Call) -> Result<Response<Body>, Failure> {
        let mut response = self.send(call)?;
        let (status, retry_after) = (response.status(), retry_after(&response));
        if status.is_success() {
            return Ok(response);
        }
        let body = self.read_body(call, &mut response)?;
        let error = match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => ClientError::Refused(Box::new(problem)),
            Err(_) => self.fault(ProtocolFault::Status {
                request: call.name(),
                status: status.as_u16(),
                excerpt: excerpt(&body),
            }),
        };
        Err(Failure { error, retry_after })
    }

    fn read_body(&self, call: &Call, response: &mut Response<Body>) -> Result<Vec<u8>, ClientError> {
        let body = response.body_mut().with_config().limit(MOST_BYTES).read_to_vec();
        body.map_err(|error| self.name_failure(call, error))
    }

    /// Sends a request, and once more when a kept connection turned out to be closed and repeating is harmless.
    fn send(&self, call: &Call) -> Result<Response<Body>, ClientError> {
        let opened_before = self.dialled.load(Ordering::Relaxed);
        let failure = match self.send_once(call)? {
            Ok(response) => return Ok(response),
            Err(failure) => failure,
        };
        let was_kept = self.dialled.load(Ordering::Relaxed) == opened_before;
        if call.repeatable && was_kept && is_closed(&failure) {
            return self.send_once(call)?.map_err(|error| self.name_failure(call, error));
        }
        Err(self.name_failure(call, failure))
    }

    fn send_once(&self, call: &Call) -> Result<Result<Response<Body>, Error>, ClientError> {
        let target = format!("{}{}", self.base()?, call.target);
        let mut request = Request::builder().method(&call.method).uri(target).header("accept", call.accept);
        if let Some(token) = self.token_to_send()? {
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.reveal()))
                .expect("a secret is letters, digits and `_`");
            value.set_sensitive(true);
            request = request.header("authorization", value);
        }
        if let Some(key) = &call.key {
            request = request.header(KEY_HEADER, key.as_str());
        }
        if let Some(version) = call.version {
            request = request.header("if-match", format!("\"{version}\""));
        }
        Ok(self.run(call, request))
    }

    fn run(&self, call: &Call, request: Builder) -> Result<Response<Body>, Error> {
        let Some(body) = &call.body else {
            return self.agent.run(request.body(())?);
        };
        let request = request.header("content-type", "application/json");
        let request = if call.compressed { request.header("content-encoding", "gzip") } else { request };
        self.agent.run(request.body(body.as_slice())?)
    }

    /// Translates a failure of the HTTP client.
    fn name_failure(&self, call: &Call, error: Error) -> ClientError {
        let broken = |what: String| self.fault(ProtocolFault::Http { request: call.name(), what });
        if let Some(why) = Distrust::of(&error) {
            return ClientError::Untrusted { server: self.server().clone(), why: Box::new(why) };
        }
        match error {
            Error::Io(error) if speaks_no_tls(&error) => self.fault(ProtocolFault::NoTls),
            Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => broken(error.to_string()),
            Error::Io(error) => self.unreachable(error),
            Error::Timeout(reason) => self.unreachable(self.time_is_over(reason)),
            Error::HostNotFound => self.unreachable(io::Error::new(io::ErrorKind::NotFound, "no such host")),
            Error::ConnectionFailed => self.unreachable(io::Error::other("the connection failed")),
            Error::BodyExceedsLimit(limit_bytes) => {
                self.fault(ProtocolFault::TooLarge { request: call.name(), limit_bytes })
            }
            other => broken(other.to_string()),
        }
    }

    fn time_is_over(&self, reason: Timeout) -> io::Error {
        let limit = match reason {
            Timeout::Connect | Timeout::Resolve => CONNECT_TIMEOUT.min(self.timeout),
            _ => self.timeout,
        };
        io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"))
    }

    pub(crate) fn unreachable(&self, source: io::Error) -> ClientError {
        ClientError::Unreachable { server: self.server().clone(), source }
    }

    pub(crate) fn fault(&self, fault: ProtocolFault) -> ClientError {
        ClientError::Protocol { server: self.server().clone(), fault: Box::new(fault) }
    }
}

/// `Retry-After` in seconds; the form with a date is no server's of ours.
fn retry_after(response: &Response<Body>) -> Option<Duration> {
    let seconds = response.headers().get("retry-after")?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn date(response: &Response<Body>) -> Option<Timestamp> {
    Timestamp::parse_http_date(response.headers().get("date")?.to_str().ok()?)
}

/// Whether the other side had closed the connection, rather than answered badly or late.
fn is_closed(error: &Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error, Error::Io(error)
        if matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof))
}

/// The beginning of a body, fit for a terminal.
fn excerpt(body: &[u8]) -> String {
    let start = String::from_utf8_lossy(&body[..body.len().min(EXCERPT_CHARS * 4)]);
    let mut shown: String = start.chars().take(EXCERPT_CHARS).flat_map(char::escape_debug).collect();
    if body.is_empty() {
        shown.push_str("(empty)");
    } else if start.chars().count() > EXCERPT_CHARS {
        shown.push('…');
    }
    shown
}
