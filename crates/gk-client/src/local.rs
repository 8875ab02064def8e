//! A plain read from another program of this machine, over its Unix socket: a container engine, say.
//!
//! It is no Gatekeeper server, so there is no token, no retry and no kept connection, and failures are told in the words
//! of the operating system.

use std::io;
use std::path::Path;
use std::time::Duration;

use ureq::Error;
use ureq::http::Request;

use crate::address::ServerAddress;
use crate::tls::Pins;
use crate::transport;

/// A successful answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalAnswer {
    /// What the program calls itself, in the header `Server`.
    pub server: Option<String>,
    /// The body, whatever it is.
    pub body: Vec<u8>,
}

/// Sends `GET target` to a Unix socket and reads the answer, which may have `most_bytes` and take `timeout` altogether.
///
/// # Errors
/// As the operating system tells them, `NotFound` and `PermissionDenied` among them; `TimedOut`; `InvalidData` for an
/// answer that is too large, not HTTP, or anything but a success.
pub fn get_local(socket: &Path, target: &str, most_bytes: u64, timeout: Duration) -> io::Result<LocalAnswer> {
    let (agent, _) = transport::agent(&ServerAddress::Unix(socket.to_owned()), timeout, &Pins::default());
    let ask = || {
        let request = Request::get(format!("http://localhost{target}")).header("accept", "application/json");
        let mut response = agent.run(request.body(())?)?;
        let server = response.headers().get("server").and_then(|value| value.to_str().ok());
        let server = server.map(str::to_owned);
        let body = response.body_mut().with_config().limit(most_bytes).read_to_vec()?;
        Ok((response.status(), LocalAnswer { server, body }))
    };
    let (status, answer) = ask().map_err(|error| name_failure(error, timeout))?;
    match status.is_success() {
        true => Ok(answer),
        false => Err(invalid(format!("it answered with status {}", status.as_u16()))),
    }
}

fn name_failure(error: Error, timeout: Duration) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::Timeout(_) => io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {timeout:?}")),
        Error::BodyExceedsLimit(limit) => invalid(format!("it answered with more than {limit} bytes")),
        other => invalid(format!("it answered with broken HTTP: {other}")),
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::time::Instant;

    use super::*;
    use crate::canned::{Canned, json, with_header};

    const PATIENCE: Duration = Duration::from_secs(20);

    fn failure(answer: Vec<u8>) -> io::Error {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let _canned = Canned::unix(&socket, vec![vec![answer]]);
        get_local(&socket, "/x", 10, PATIENCE).unwrap_err()
    }

    #[test]
    fn it_asks_with_nothing_but_the_path_and_hears_who_answers() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let canned =
            Canned::unix(&socket, vec![vec![with_header(200, "server: Libpod/5.2.0 (linux)", "[]")]]);
        let answer = get_local(&socket, "/containers/json?a=1", 10, PATIENCE).unwrap();
        assert_eq!(answer.server.as_deref(), Some("Libpod/5.2.0 (linux)"));
        assert_eq!(answer.body, b"[]");
        let (head, body) = canned.request();
        assert!(head.starts_with("GET /containers/json?a=1 HTTP/1.1\r\n"), "{head}");
        assert!(!head.to_ascii_lowercase().contains("authorization") && body.is_empty(), "{head}");
    }

    #[test]
    fn whatever_is_no_answer_is_told_by_its_kind() {
        let invalid = [
            (json(500, "{}"), "status 500"),
            (json(302, "{}"), "status 302"),
            (json(200, "12345678901"), "more than 10 bytes"),
            (b"SSH-2.0-x\r\n\r\n".to_vec(), "broken HTTP"),
        ];
        for (answer, said) in invalid {
            let error = failure(answer);
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            assert!(error.to_string().contains(said), "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let kind = || get_local(&socket, "/x", 10, Duration::from_millis(50)).unwrap_err().kind();
        assert_eq!(kind(), io::ErrorKind::NotFound);
        let silent = UnixListener::bind(&socket).unwrap();
        let begun = Instant::now();
        assert_eq!(kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        drop(silent);
        assert_eq!(kind(), io::ErrorKind::ConnectionRefused);
    }
}
