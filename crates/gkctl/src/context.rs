//! What every verb is given: the options, the moment, this machine, and ways to the server and to the terminal.

use std::cell::RefCell;
use std::fmt::Display;
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::path::PathBuf;

use anyhow::Result;
use gk_client::identity::load_credential;
use gk_client::{Client, ClientError, ServerAddress, all_pages};
use gk_model::id::InstanceRef;
use gk_model::paths;
use gk_model::query::{Limit, Page};
use gk_model::secret::Secret;
use gk_model::time::Timestamp;

use crate::args::{Format, Global};
use crate::connect::{self, Connection, How, Shown};
use crate::error::{Exit, Failure};
use crate::machine::{self, Account};
use crate::secret_input;
use crate::this_machine::ThisMachine;

/// What a verb works with.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) global: &'a Global,
    pub(crate) now: Timestamp,
    pub(crate) machine: ThisMachine,
    pub(crate) account: Account,
    /// Found once: a token that was typed, or came by stdin, is not there a second time.
    connection: RefCell<Option<Connection>>,
}

impl<'a> Context<'a> {
    /// Finds out which machine this is; opens no connection.
    pub(crate) fn new(global: &'a Global, now: Timestamp) -> Result<Context<'a>> {
        let account = machine::account();
        let machine = ThisMachine::find(global.state_dir.as_deref(), account.is_root(), env)?;
        Ok(Context { global, now, machine, account, connection: RefCell::new(None) })
    }

    /// How to print.
    pub(crate) fn format(&self) -> Format {
        self.global.output
    }

    /// The server, how it was found, and what is presented there.
    pub(crate) fn connect(&self) -> Result<Connection> {
        if let Some(connection) = &*self.connection.borrow() {
            return Ok(connection.clone());
        }
        let connection = connect::connect(self.global, &self.machine, self.account, env)?;
        Ok(self.connection.borrow_mut().insert(connection).clone())
    }

    /// A client of the server; where nothing can be presented to it that would help, what is typed at the terminal.
    pub(crate) fn client_or_ask(&self, prompt: &str) -> Result<Client> {
        let connection = self.connect()?;
        let Connection { client, .. } = &connection;
        let knows_the_account = matches!(client.server(), ServerAddress::Unix(_));
        if client.has_token() || knows_the_account || !secret_input::can_ask() {
            return Ok(connection.client);
        }
        // Nobody types a token first and learns then that it was for nothing.
        client.check_may_send_token()?;
        client.ready()?;
        let token = secret_input::read_stdin(&format!("{prompt} for {}", client.server()))?;
        let client = client.clone().with_token(token);
        let connection = Connection { client, shown: Shown::Typed, ..connection };
        Ok(self.connection.borrow_mut().insert(connection).client.clone())
    }

    /// What was presented to the server, if one was looked for.
    pub(crate) fn shown(&self) -> Option<Shown> {
        self.connection.borrow().as_ref().map(|connection| connection.shown)
    }

    /// A client, without a token, of the server to log in to or out of.
    pub(crate) fn client_to_log_in(&self) -> Result<Client> {
        connect::connect_to_log_in(self.global, &self.machine, self.account, env)
    }

    /// Where this account keeps what it chose.
    pub(crate) fn config_dir(&self) -> PathBuf {
        paths::config_dir(env)
    }

    /// Whether a variable of the environment is set to something.
    pub(crate) fn has_variable(&self, name: &str) -> bool {
        env(name).is_some_and(|value| !value.as_os_str().is_empty())
    }

    /// A client of the server.
    pub(crate) fn client(&self) -> Result<Client> {
        Ok(self.connect()?.client)
    }

    /// A client that speaks as this machine.
    pub(crate) fn client_as_instance(&self, credential: Secret) -> Result<Client> {
        connect::as_instance(self.global, &self.machine, credential, env)
    }

    /// This machine's credential, when it has joined and this account may read it.
    pub(crate) fn credential(&self) -> io::Result<Option<Secret>> {
        load_credential(&self.machine.state_dir)
    }

    /// The instance that is meant: the one named by an argument, else by `--instance`, else this machine.
    ///
    /// # Errors
    /// When none is meant: that this machine has not joined, or that there is not even a server to join.
    pub(crate) fn instance(&self, named: Option<&InstanceRef>) -> Result<InstanceRef> {
        let named = named.or(self.global.instance.as_ref()).cloned();
        let this = || self.machine.identity.as_ref().map(|identity| identity.id.into());
        match named.or_else(this) {
            Some(instance) => Ok(instance),
            None => Err(self.not_joined()?.into()),
        }
    }

    fn not_joined(&self) -> Result<Failure> {
        let Connection { client, how, .. } = self.connect()?;
        match client.ready() {
            Err(ClientError::Unreachable { .. } | ClientError::Protocol { .. }) if how == How::Default => {
                Ok(connect::no_server(client.server(), self.account.is_root(), env))
            }
            Err(error @ ClientError::Unreachable { .. }) => Err(error.into()),
            // Whatever else is wrong there, the next command will tell.
            _ => Ok(not_joined()),
        }
    }

    /// The instance whose ports are meant; none for the whole fleet.
    pub(crate) fn instance_or_all(&self, all: bool) -> Result<Option<InstanceRef>> {
        match (all, &self.global.instance) {
            (true, Some(_)) => {
                Err(Failure::new(Exit::Usage, "--instance and --all-instances contradict each other").into())
            }
            (true, None) => Ok(None),
            (false, _) => self.instance(None).map(Some),
        }
    }
}

fn not_joined() -> Failure {
    Failure::new(Exit::Error, "this machine has not joined, so there is no instance to speak of")
        .hint("bring it in with `gkctl instance join`, or name another one with --instance NAME")
}

fn env(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

/// Something for people, on stderr. Nobody is left to tell when it is closed.
pub(crate) fn note(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// All items of a list, or the first `limit`; `fetch` gets the cursor and how many items the page may have.
pub(crate) fn collect<T>(
    limit: Option<NonZeroU32>,
    mut fetch: impl FnMut(Option<String>, Option<Limit>) -> Result<Page<T>, ClientError>,
) -> Result<Vec<T>, ClientError> {
    let wanted = limit.map_or(usize::MAX, |limit| usize::try_from(limit.get()).unwrap_or(usize::MAX));
    let page_size = limit.map_or(Limit::MAX, |limit| Limit::at_most(limit.get()));
    all_pages(|cursor| fetch(cursor, Some(page_size))).take(wanted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_cuts_across_pages_and_asks_for_no_more() {
        let fetch = |cursor: Option<String>, size: Option<Limit>| {
            assert_eq!(size, Some(Limit::at_most(3)));
            let start: u32 = cursor.map_or(0, |cursor| cursor.parse().unwrap());
            assert!(start < 4, "a page too many");
            Ok(Page { items: vec![start, start + 1], next: Some((start + 2).to_string()) })
        };
        assert_eq!(collect(NonZeroU32::new(3), fetch).unwrap(), [0, 1, 2]);
    }
}
