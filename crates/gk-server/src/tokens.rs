//! Tokens: make, list, revoke; and who one is.

use axum::extract::State;
use axum::http::StatusCode;
use gk_model::access::{Actor, Authority};
use gk_model::id::TokenId;
use gk_model::paths;
use gk_model::query::{Page, TokenQuery};
use gk_model::secret::Secret;
use gk_model::token::{CreatedToken, Door, Token, TokenRequest, Whoami};
use gk_store::{Once, may_see};

use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{Json, NoQuery, Path, Query};
use crate::idempotency::{Key, write_once};

/// Tokens that still count, newest first; `ended=true` lists the others too. An operator sees join tokens only.
#[utoipa::path(get, path = "/v1/tokens", params(TokenQuery), responses((status = 200, body = Page<Token>)))]
pub(crate) async fn list_tokens(
    State(app): State<App>,
    Caller(actor): Caller,
    Query(query): Query<TokenQuery>,
) -> Result<Json<Page<Token>>, ApiError> {
    let now = app.now();
    let all = may_see(&actor, gk_model::token::TokenKind::Subject);
    Ok(Json(app.store.read(move |reader| reader.list_tokens(&query, all, now)).await?))
}

/// Makes a token and shows its secret, this once; not even the same request under the same `Idempotency-Key` gets it
/// again (409 `secret_shown_once`). With the `hash` of a secret that the client made, none is shown, and it may be sent
/// again. Operators make join tokens, admins any.
#[utoipa::path(post, path = "/v1/tokens",
    request_body = TokenRequest, responses((status = 201, body = CreatedToken)))]
pub(crate) async fn create_token(
    State(app): State<App>,
    _: NoQuery,
    Caller(actor): Caller,
    key: Key,
    Json(request): Json<TokenRequest>,
) -> Result<(StatusCode, Json<CreatedToken>), ApiError> {
    if !may_see(&actor, request.kind) {
        return Err(ApiError::NeedsAdmin);
    }
    let keyed = key.of(paths::TOKENS, &request);
    let secret = request.hash.is_none().then(|| random_secret(&request));
    let hash = request.hash.or(secret.as_ref().map(Secret::hash)).expect("one of them is there");
    let now = app.now();
    let create = write_once(&app, actor, keyed, now, move |tx, actor| {
        tx.check_new_secret(hash)?;
        tx.create_token(actor, hash, &request, now)
    });
    let Once { answer: token, replayed } = create.await?;
    match secret {
        Some(_) if replayed => Err(ApiError::SecretShownOnce(token.id)),
        secret => {
            let secret = secret.map(|secret| secret.reveal().to_owned());
            Ok((StatusCode::CREATED, Json(CreatedToken { token, secret })))
        }
    }
}

fn random_secret(request: &TokenRequest) -> Secret {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    Secret::from_random(request.kind.into(), &bytes)
}

/// Ends a token: its next request is refused, and its open streams end. Operators end join tokens, admins any.
#[utoipa::path(delete, path = "/v1/tokens/{token}", params(("token" = TokenId, Path)),
    responses((status = 200, body = Token)))]
pub(crate) async fn revoke_token(
    State(app): State<App>,
    _: NoQuery,
    Caller(actor): Caller,
    Path(token): Path<TokenId>,
) -> Result<Json<Token>, ApiError> {
    let now = app.now();
    Ok(Json(app.store.write(move |tx| tx.revoke_token(&actor, token, now)).await?))
}

/// Who the caller is, and what it may do.
#[utoipa::path(get, path = "/v1/whoami", responses((status = 200, body = Whoami)))]
pub(crate) async fn whoami(
    State(app): State<App>,
    _: NoQuery,
    Caller(actor): Caller,
) -> Result<Json<Whoami>, ApiError> {
    let expires_at = match actor.token {
        Some(token) => app.store.read(move |reader| reader.get_token(token)).await?.expires_at,
        None => None,
    };
    let Actor { subject, authority, limits, token, origin: _ } = actor;
    let (by, role, instance) = match authority {
        Authority::Role(role) if token.is_none() => (Door::Socket, Some(role), None),
        Authority::Role(role) => (Door::Token, Some(role), None),
        Authority::Instance(instance, _) => (Door::Instance, None, Some(instance)),
        Authority::Join(_) => (Door::Join, None, None),
    };
    let limits = limits.map(|limits| (*limits).clone()).unwrap_or_default();
    Ok(Json(Whoami { subject, by, role, limits, instance, token, expires_at }))
}
