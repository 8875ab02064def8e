//! The client itself: one server, one token, one kept connection.

use std::time::Duration;

use gk_model::pin::Pin;
use gk_model::secret::Secret;

use crate::address::ServerAddress;
use crate::error::ClientError;
use crate::retry::PATIENCE;
use crate::tls::Pins;
use crate::transport::{self, Dialled};

/// How long a request may take altogether, connecting and reading included.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Talks to one server. Cheap to make (nothing is opened before the first request), safe to share between threads.
#[derive(Clone, Debug)]
pub struct Client {
    server: ServerAddress,
    token: Option<Secret>,
    insecure_http: bool,
    pins: Pins,
    pub(crate) agent: ureq::Agent,
    pub(crate) dialled: Dialled,
    pub(crate) timeout: Duration,
    pub(crate) patience: Duration,
}

impl Client {
    /// A client of this server, which presents `token` with every request.
    ///
    /// Over the server's Unix socket the account of the process is authority enough, and the token is usually none.
    pub fn new(server: ServerAddress, token: Option<Secret>) -> Client {
        let pins = Pins::default();
        let (agent, dialled) = transport::agent(&server, TIMEOUT, &pins);
        let (timeout, patience) = (TIMEOUT, PATIENCE);
        Client { server, token, insecure_http: false, pins, agent, dialled, timeout, patience }
    }

    /// Believes a server at `https://` if one of these keys is behind its certificate, and for no other reason; without
    /// any, if the system's authorities vouch for it.
    #[must_use]
    pub fn with_pins(self, pins: Vec<Pin>) -> Client {
        let pins = Pins::new(pins);
        let (agent, dialled) = transport::agent(&self.server, self.timeout, &pins);
        Client { pins, agent, dialled, ..self }
    }

    /// The pins it holds: those it was made with, or what the server has announced since.
    pub fn pins(&self) -> Vec<Pin> {
        self.pins.get()
    }

    /// Asks the server which keys vouch for it from now on. Only who holds pins listens to that, and only to a server
    /// that was verified by one of them, or is at the other end of a Unix socket; else this does nothing.
    ///
    /// # Errors
    /// When the server cannot be asked; the pins stay as they were.
    pub fn renew_pins(&self) -> Result<(), ClientError> {
        if !matches!(self.server, ServerAddress::Http(_)) && !self.pins.get().is_empty() {
            self.pins.renew(self.health()?.pins);
        }
        Ok(())
    }

    /// Lets the token travel in clear over a network, which is otherwise refused.
    #[must_use]
    pub fn allow_insecure_http(self, allow: bool) -> Client {
        Client { insecure_http: allow, ..self }
    }

    /// The same client with another token.
    #[must_use]
    pub fn with_token(self, token: Secret) -> Client {
        Client { token: Some(token), ..self }
    }

    /// Gives up on every request after `timeout` instead of 30 seconds.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Client {
        let (agent, dialled) = transport::agent(&self.server, timeout, &self.pins);
        Client { agent, dialled, timeout, ..self }
    }

    /// Sends what makes something again, under the same key, as long as this after the first attempt (10 seconds unless
    /// set); with zero, never. For callers that have a back-off of their own.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Client {
        Client { patience, ..self }
    }

    /// The same client for an answer that goes on: it may take for ever as a whole, and each part of it so long.
    pub(crate) fn that_waits(&self, for_each_part: Duration) -> Client {
        let (agent, dialled) =
            transport::agent_that_waits(&self.server, self.timeout, for_each_part, &self.pins);
        Client { agent, dialled, ..self.clone() }
    }

    /// The server it talks to.
    pub fn server(&self) -> &ServerAddress {
        &self.server
    }

    /// Whether a token may be sent to this server.
    ///
    /// # Errors
    /// [`ClientError::InsecureHttp`] where it would travel in clear over a network, and nobody allowed that.
    pub fn check_may_send_token(&self) -> Result<(), ClientError> {
        let in_clear = matches!(self.server, ServerAddress::Http(_)) && !self.server.is_local();
        match in_clear && !self.insecure_http {
            true => Err(ClientError::InsecureHttp { server: self.server.clone() }),
            false => Ok(()),
        }
    }

    /// Whether it presents a token.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// What comes before every path. Over a Unix socket the host means nothing; `localhost` is one the server allows.
    pub(crate) fn base(&self) -> Result<String, ClientError> {
        match &self.server {
            ServerAddress::Unix(_) => Ok("http://localhost".to_owned()),
            ServerAddress::Http(authority) => Ok(format!("http://{authority}")),
            ServerAddress::Https(authority) => Ok(format!("https://{authority}")),
        }
    }

    /// The token, if it may be sent to this server.
    pub(crate) fn token_to_send(&self) -> Result<Option<&Secret>, ClientError> {
        if self.token.is_some() {
            self.check_may_send_token()?;
        }
        Ok(self.token.as_ref())
    }
}
