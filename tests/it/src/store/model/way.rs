//! How a client reaches the store: by calling it, or through the HTTP API of a server process.

use gk_client::{ClientError, ServerAddress};
use gk_model::access::{Actor, Role};
use gk_model::id::{InstanceId, ReservationId};
use gk_model::port::PortRange;
use gk_model::problem::Problem;
use gk_model::query::{EventQuery, Limit};
use gk_model::reservation::{Reservation, ReserveRequest, Reserved};
use gk_model::secret::{Secret, SecretKind};
use gk_model::token::TokenRequest;
use gk_store::{DatabaseUrl, Error, Refusal, Store, StoreConfig};
use tempfile::TempDir;
use tokio::task::block_in_place;

use super::history::label;
use super::show;
use crate::process::harness::Server;
use crate::store::world::{World, at, join_request};

/// One of the two ways.
pub(crate) enum Way {
    Store(Store),
    Http(gk_client::Client),
}

/// Why not.
#[derive(Debug)]
pub(crate) enum No {
    Refused(Box<Refusal>),
    Problem(Box<Problem>),
    Failed(String),
}

impl From<Error> for No {
    fn from(error: Error) -> No {
        match error {
            Error::Refused(refusal) => No::Refused(refusal),
            failure => No::Failed(failure.to_string()),
        }
    }
}

impl From<ClientError> for No {
    fn from(error: ClientError) -> No {
        match error {
            ClientError::Refused(problem) => No::Problem(problem),
            failure => No::Failed(failure.to_string()),
        }
    }
}

impl Way {
    /// The number of the newest event.
    pub(crate) async fn newest(&self) -> Result<u64, String> {
        match self {
            Way::Store(store) => store.log().await.map(|log| log.newest_seq).map_err(show),
            Way::Http(client) => {
                let query = EventQuery { limit: Some(Limit::at_most(1)), ..EventQuery::default() };
                block_in_place(|| client.list_events(&query)).map(|page| page.log.newest_seq).map_err(show)
            }
        }
    }

    pub(crate) async fn reserve(&self, who: &Actor, request: ReserveRequest) -> Result<Reserved, No> {
        match self {
            Way::Store(store) => {
                let who = who.clone();
                Ok(store.write(move |tx| tx.reserve_group(&who, &request, at(1))).await?)
            }
            Way::Http(client) => Ok(block_in_place(|| client.reserve(&request))?),
        }
    }

    /// A request that must leave nothing behind: it fails after it was written, or is a dry run.
    pub(crate) async fn spoil(&self, who: &Actor, request: ReserveRequest) -> Result<(), String> {
        let answer = match self {
            Way::Store(store) => {
                let who = who.clone();
                let spoil = move |tx: &mut gk_store::Tx<'_>| {
                    tx.reserve_group(&who, &request, at(1))?;
                    Err::<(), Error>(Refusal::BadCursor.into())
                };
                store.write(spoil).await.map_err(No::from)
            }
            Way::Http(..) => {
                let dry = ReserveRequest { dry_run: true, ..request };
                self.reserve(who, dry).await.map(drop)
            }
        };
        if let Err(No::Failed(failure)) = answer { Err(failure) } else { Ok(()) }
    }

    pub(crate) async fn release(
        &self,
        who: &Actor,
        id: ReservationId,
        part: Option<PortRange>,
        force: bool,
    ) -> Result<Reservation, No> {
        match self {
            Way::Store(store) => {
                let who = who.clone();
                Ok(store.write(move |tx| tx.release(&who, id, part, force, None, at(1))).await?)
            }
            Way::Http(client) => Ok(block_in_place(|| client.release_part(id, part, force, None))?),
        }
    }
}

/// A server process on this module's database.
pub(crate) struct Served {
    server: Server,
    database: Option<DatabaseUrl>,
    directory: TempDir,
}

impl Served {
    pub(crate) fn start() -> Served {
        let directory = TempDir::new().unwrap();
        let data = directory.path().join("data");
        let url = super::super::new_database_url();
        let database = url.as_ref().map(|url| url.parse().unwrap());
        let server = url.map_or_else(|| Server::start(&data), |url| Server::start_on(&url, &data));
        Served { server, database, directory }
    }

    pub(crate) fn join(&self, index: usize) -> InstanceId {
        let seed = u8::try_from(index + 1).unwrap();
        let mut request = join_request(&format!("web-{seed}"), seed);
        request.labels = vec![label(index)].try_into().unwrap();
        self.server.admin().join(&request).unwrap().instance.id
    }

    /// A client that is this subject by its token.
    pub(crate) fn client(&self, who: &Actor) -> gk_client::Client {
        let secret = gk_client::identity::generate_secret(SecretKind::Subject);
        let wanted = TokenRequest::for_subject(who.subject.clone(), Role::User);
        let wanted = TokenRequest { hash: Some(secret.hash()), ..wanted };
        self.server.admin().create_token(&wanted).unwrap();
        self.as_bearer(secret)
    }

    fn as_bearer(&self, secret: Secret) -> gk_client::Client {
        let socket = self.server.data.join("gatekeeper.sock");
        gk_client::Client::new(ServerAddress::Unix(socket), Some(secret))
    }

    /// What it leaves behind.
    pub(crate) async fn into_world(self) -> World {
        let Served { mut server, database, directory } = self;
        assert_eq!(block_in_place(|| server.process.terminate()), Some(0), "{}", server.process.log());
        let data = directory.path().join("data");
        let config = StoreConfig { database, database_clock: false, ..StoreConfig::embedded(&data) };
        let store = Store::open(config.clone(), at(1)).await.unwrap();
        World { directory, config, store }
    }
}
