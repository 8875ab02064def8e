//! Pools: list, show, set, delete.

use axum::extract::State;
use axum::http::StatusCode;
use gk_model::pool::{PoolChange, PoolSpec, PoolStatus};
use gk_model::query::{Page, PoolQuery};
use gk_model::text::PoolName;

use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{IfMatch, Json, NoQuery, Path, Query, Tagged};

/// Pools by name, with how full they are.
#[utoipa::path(get, path = "/v1/pools", params(PoolQuery), responses((status = 200, body = Page<PoolStatus>)))]
pub(crate) async fn list_pools(
    State(app): State<App>,
    Query(query): Query<PoolQuery>,
) -> Result<Json<Page<PoolStatus>>, ApiError> {
    Ok(Json(app.store.read(move |reader| reader.list_pools(&query)).await?))
}

/// One pool, with how full it is.
#[utoipa::path(get, path = "/v1/pools/{name}", params(("name" = PoolName, Path)),
    responses((status = 200, body = PoolStatus)))]
pub(crate) async fn get_pool(
    State(app): State<App>,
    _: NoQuery,
    Path(name): Path<PoolName>,
) -> Result<Tagged<PoolStatus>, ApiError> {
    Ok(app.store.read(move |reader| reader.get_pool(&name)).await?.into())
}

/// Makes a pool (201), or makes it other than it was (200): what is left out is as it is unless told, whatever it was. What
/// was drawn from it stays as it is; the answer tells of the live reservations that are outside of it now. The same again
/// changes nothing.
#[utoipa::path(put, path = "/v1/pools/{name}", params(("name" = PoolName, Path), IfMatch),
    request_body = PoolSpec, responses((status = 201, body = PoolChange), (status = 200, body = PoolChange)))]
pub(crate) async fn set_pool(
    State(app): State<App>,
    _: NoQuery,
    Caller(actor): Caller,
    Path(name): Path<PoolName>,
    IfMatch(version): IfMatch,
    Json(spec): Json<PoolSpec>,
) -> Result<(StatusCode, Tagged<PoolChange>), ApiError> {
    let now = app.now();
    let set = app.store.write(move |tx| tx.set_pool(&actor, &name, &spec, version, now));
    let (pool, is_new) = set.await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    // Looks at all that is live, and keeps no writer waiting.
    let change = app.store.read(move |reader| reader.find_outside(pool.clone())).await?;
    Ok((status, change.into()))
}

/// Deletes a pool. What was drawn from it stays as it is; the answer tells of it. The pool `default` is changed instead.
#[utoipa::path(delete, path = "/v1/pools/{name}", params(("name" = PoolName, Path), IfMatch),
    responses((status = 200, body = PoolChange)))]
pub(crate) async fn delete_pool(
    State(app): State<App>,
    _: NoQuery,
    Caller(actor): Caller,
    Path(name): Path<PoolName>,
    IfMatch(version): IfMatch,
) -> Result<Json<PoolChange>, ApiError> {
    let now = app.now();
    let pool = app.store.write(move |tx| tx.delete_pool(&actor, &name, version, now)).await?;
    Ok(Json(app.store.read(move |reader| reader.find_outside(pool.clone())).await?))
}
