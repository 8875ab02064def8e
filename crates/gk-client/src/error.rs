//! What can go wrong between a client and a server, in the words a caller decides by.

use std::io;

use gk_model::problem::Problem;

use crate::address::ServerAddress;
use crate::distrust::Distrust;

/// Why a request has no result. `Display` tells the outermost reason; print the whole chain of sources.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server understood and refused. The problem says why, and often what to do.
    #[error("{}", .0.detail)]
    Refused(Box<Problem>),
    /// A watch cannot go on: its place is of another event log, or what follows is not kept any more. The problem says
    /// which, and from where it could begin anew.
    #[error("{}", .0.detail)]
    Gone(Box<Problem>),
    /// There was no answer: connection refused, no such socket or host, connection lost, or time over. A request
    /// that changes something may have taken effect.
    #[error("cannot reach the server at {server}")]
    Unreachable {
        /// Where it was looked for.
        server: ServerAddress,
        /// What the operating system said.
        source: io::Error,
    },
    /// There was an answer, and no Gatekeeper server answers so.
    #[error("{server} does not answer like a Gatekeeper server")]
    Protocol {
        /// Who answered.
        server: ServerAddress,
        /// What was wrong with the answer.
        #[source]
        fault: Box<ProtocolFault>,
    },
    /// A token would have travelled in clear over a network. Nothing was sent.
    #[error("refusing to send a token in clear to {server}: use https://, or allow it with --insecure-http")]
    InsecureHttp {
        /// Where it would have been sent.
        server: ServerAddress,
    },
    /// Whoever answers there could not prove to be the server. Nothing was sent.
    #[error("refusing to talk to {server}, because its certificate cannot be trusted")]
    Untrusted {
        /// The address.
        server: ServerAddress,
        /// What is wrong with the certificate, and what to do.
        #[source]
        why: Box<Distrust>,
    },
}

impl ClientError {
    /// The server's refusal, when it is one.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            ClientError::Refused(problem) | ClientError::Gone(problem) => Some(problem),
            _ => None,
        }
    }

    /// Whether time ran out before an answer came.
    pub fn is_timeout(&self) -> bool {
        matches!(self, ClientError::Unreachable { source, .. } if source.kind() == io::ErrorKind::TimedOut)
    }
}

/// What was wrong with an answer. Bodies are shown by their first 200 characters, control characters escaped.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolFault {
    /// A status that means nothing here, without a problem that explains it.
    #[error("{request} was answered with status {status}: {excerpt}")]
    Status {
        /// Method and path of the request.
        request: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of the body.
        excerpt: String,
    },
    /// A body that is not what the route answers.
    #[error("{request} was answered with an unexpected body: {excerpt}")]
    Body {
        /// Method and path of the request.
        request: String,
        /// The beginning of the body.
        excerpt: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A body larger than any answer of a server.
    #[error("{request} was answered with more than {limit_bytes} bytes")]
    TooLarge {
        /// Method and path of the request.
        request: String,
        /// How much is read at most.
        limit_bytes: u64,
    },
    /// TLS was spoken to it, and not answered.
    #[error("it does not speak TLS: try http://")]
    NoTls,
    /// Not HTTP at all, or broken HTTP.
    #[error("{request} was answered with broken HTTP: {what}")]
    Http {
        /// Method and path of the request.
        request: String,
        /// What was broken.
        what: String,
    },
}
