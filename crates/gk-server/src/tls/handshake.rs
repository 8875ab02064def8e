//! The first bytes of a connection to a port that speaks TLS.
//!
//! This runs in the connection's own task, so that nobody waits for anybody else's handshake, and counts as one of the
//! connections that are bounded. It is over within [`LIMIT`], whatever the other side does.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use gk_model::problem::Problem;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::error::ApiError;

/// How long a handshake may take.
const LIMIT: Duration = Duration::from_secs(10);

/// How much of a request in clear is heard before it is answered, and how much after.
const MOST_HEAD_BYTES: usize = 16 << 10;
const MOST_REST_BYTES: u64 = 1 << 20;

/// Shakes hands. None when nothing came of it; whoever spoke HTTP in clear has been told then.
pub(crate) async fn handshake(
    mut stream: TcpStream,
    config: Arc<ServerConfig>,
) -> Option<TlsStream<TcpStream>> {
    let shaken = async {
        let mut first = [0];
        match stream.peek(&mut first).await? {
            0 => Ok(None),
            // Every handshake begins with 22, and every request with the name of its method.
            _ if first[0].is_ascii_uppercase() => refuse_http(&mut stream).await.map(|()| None),
            _ => TlsAcceptor::from(config).accept(stream).await.map(Some),
        }
    };
    match tokio::time::timeout(LIMIT, shaken).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            // Often a client that does not trust this certificate; it tells its own people more than this.
            tracing::debug!(%error, "a TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!("a TLS handshake took too long");
            None
        }
    }
}

/// Answers plain HTTP, in clear as it was asked, that this port speaks TLS.
async fn refuse_http(stream: &mut TcpStream) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < MOST_HEAD_BYTES {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    stream.write_all(refusal().as_bytes()).await?;
    stream.shutdown().await?;
    // Closing while something is unread would take the answer back before it is read.
    tokio::io::copy(&mut stream.take(MOST_REST_BYTES), &mut tokio::io::sink()).await?;
    Ok(())
}

fn refusal() -> String {
    let what = "this port speaks HTTPS: write https:// in the server's address";
    let problem: Problem = ApiError::malformed(None, what.to_owned()).problem();
    let body = serde_json::to_string(&problem).expect("a problem has string keys and no failing serializer");
    format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    )
}
