//! Authentication, always on: from a connection and a header to an [`Actor`].
//!
//! Two ways in. A bearer token counts wherever it comes from. Without one, an account that the configuration names is
//! admitted as admin at the Unix socket, because whoever has that uid could read the database file anyway. Nothing
//! is admitted by its address: a loopback TCP port is open to every account of the machine.
//!
//! A token is hashed here and never leaves this file, neither into a log nor into an answer.

use std::convert::Infallible;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, FromRef, FromRequestParts, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap};
use axum::middleware::Next;
use axum::response::Response;
use gk_model::access::{Actor, Authority, Permission, Role};
use gk_model::history::Origin;
use gk_model::secret::{Secret, SecretHash};

use crate::app::App;
use crate::error::ApiError;
use crate::idempotency::Key;
use crate::request::RequestId;

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Somebody on the network, or any account of this machine.
    Tcp(SocketAddr),
    /// The same, as a proxy tells it that the operator trusts with that.
    Proxied(IpAddr),
    /// An account of this machine at the Unix socket; the kernel vouches for the uid.
    Unix {
        /// The effective uid of the process when it connected.
        uid: u32,
    },
}

/// For the log.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => address.fmt(f),
            Peer::Proxied(ip) => ip.fmt(f),
            Peer::Unix { uid } => write!(f, "uid {uid}"),
        }
    }
}

/// The state of guarded routes. It differs in type from the state of open ones for one reason: only here can
/// [`Caller`] be extracted, so that a handler which needs an actor does not compile on an open route.
#[derive(Clone, Debug)]
pub struct Guarded(pub(crate) App);

impl FromRef<Guarded> for App {
    fn from_ref(guarded: &Guarded) -> App {
        guarded.0.clone()
    }
}

/// Whoever makes the request, after [`guard`] let it in.
#[derive(Clone, Debug)]
pub struct Caller(pub(crate) Actor);

impl FromRequestParts<Guarded> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Guarded) -> Result<Caller, Infallible> {
        let caller = parts.extensions.get::<Caller>();
        Ok(caller
            .cloned()
            .expect("a route has `Guarded` state only behind `guard`, which inserts the caller"))
    }
}

/// The secret that the request came with, as its hash; none at the Unix socket. For what goes on longer than a request, and
/// has to ask again whether it is still good.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass(pub(crate) Option<SecretHash>);

/// The door of every guarded route: lets in whoever has the permission, before anything of the body is read.
pub(crate) async fn guard(
    State((app, permission)): State<(App, Permission)>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let credential = credential(&app, &request)?;
    let pass = credential.pass();
    let actor = authenticate(&app, credential).await?;
    if !actor.has(permission) {
        return Err(ApiError::NotPermitted { permission, authority: actor.authority });
    }
    let key = Key::read(request.method(), request.headers())?;
    let origin = origin(&actor, request.extensions());
    let actor = Actor { origin: Some(origin.into()), ..actor };
    tracing::Span::current().record("actor.subject", actor.subject.as_str());
    let _place = app.crowd.enter(&actor, permission)?;
    request.extensions_mut().insert(Caller(actor));
    request.extensions_mut().insert(pass);
    request.extensions_mut().insert(key);
    Ok(next.run(request).await)
}

/// What a request brings along to be known by.
enum Credential {
    Token(SecretHash),
    Local(Actor),
}

impl Credential {
    fn pass(&self) -> Pass {
        match self {
            Credential::Token(hash) => Pass(Some(*hash)),
            Credential::Local(_) => Pass(None),
        }
    }
}

fn credential(app: &App, request: &Request) -> Result<Credential, ApiError> {
    match bearer(request.headers())? {
        Some(hash) => Ok(Credential::Token(hash)),
        None => local_actor(app, request.extensions())
            .map(Credential::Local)
            .ok_or(ApiError::Unauthenticated("this needs a token, and none was sent")),
    }
}

async fn authenticate(app: &App, credential: Credential) -> Result<Actor, ApiError> {
    match credential {
        Credential::Local(actor) => Ok(actor),
        Credential::Token(hash) => {
            let now = app.now();
            let found = app.store.find_actor(hash, now).await?;
            let actor = found.ok_or(ApiError::Unauthenticated("the token is unknown, expired or revoked"))?;
            app.rates.is_good(hash, actor.authority, now);
            Ok(actor)
        }
    }
}

/// The hash of the bearer token, if there is one. A header that cannot be read is refused rather than ignored, so that
/// a mistyped token at the Unix socket never turns into admin.
pub(crate) fn bearer(headers: &HeaderMap) -> Result<Option<SecretHash>, ApiError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::Unauthenticated("there are several Authorization headers"));
    }
    let token = value.to_str().ok().and_then(|text| text.split_once(' ')).and_then(|(scheme, token)| {
        scheme.eq_ignore_ascii_case("bearer").then(|| token.parse::<Secret>().ok()).flatten()
    });
    match token {
        Some(secret) => Ok(Some(secret.hash())),
        None => Err(ApiError::Unauthenticated(
            "the Authorization header is not `Bearer` and a Gatekeeper token (gkt_, gka_ or gkj_ and 64 digits)",
        )),
    }
}

/// Where the request came from, for history.
fn origin(actor: &Actor, extensions: &Extensions) -> Origin {
    let address = match extensions.get::<ConnectInfo<Peer>>() {
        Some(ConnectInfo(Peer::Tcp(address))) => Some(address.ip()),
        Some(ConnectInfo(Peer::Proxied(ip))) => Some(*ip),
        Some(ConnectInfo(Peer::Unix { .. })) | None => None,
    };
    let request = extensions.get::<RequestId>().map(ToString::to_string).unwrap_or_default();
    Origin { token: actor.token, address, request }
}

fn local_actor(app: &App, extensions: &Extensions) -> Option<Actor> {
    let ConnectInfo(peer) = extensions.get::<ConnectInfo<Peer>>()?;
    match peer {
        Peer::Tcp(_) | Peer::Proxied(_) => None,
        Peer::Unix { uid } => {
            let subject = app.local_subject(*uid)?.clone();
            Some(Actor::new(subject, Authority::Role(Role::Admin)))
        }
    }
}
