//! Where reality differs from the plan: drift, the rules that ignore some of it, and the fleet in a few numbers.

use axum::extract::State;
use gk_model::drift::Drift;
use gk_model::ignore::{Ignore, IgnoreSpec};
use gk_model::query::{DriftQuery, IgnoreQuery, Page};
use gk_model::status::Status;
use gk_model::text::IgnoreName;

use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{IfMatch, Json, NoQuery, Path, Query, Tagged};

/// What differs from the plan: ports in conflict, unreserved ports, and if asked for, idle reservations.
#[utoipa::path(get, path = "/v1/drift", params(DriftQuery), responses((status = 200, body = Page<Drift>)))]
pub(crate) async fn list_drift(
    State(app): State<App>,
    Query(query): Query<DriftQuery>,
) -> Result<Json<Page<Drift>>, ApiError> {
    let now = app.now();
    Ok(Json(app.store.read(move |reader| reader.list_drift(&query, now)).await?))
}

/// The whole fleet in a few numbers.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status)))]
pub(crate) async fn get_status(State(app): State<App>, _: NoQuery) -> Result<Json<Status>, ApiError> {
    let now = app.now();
    Ok(Json(app.store.read(move |reader| reader.get_status(now)).await?))
}

/// Ignore rules, by name.
#[utoipa::path(get, path = "/v1/ignores", params(IgnoreQuery), responses((status = 200, body = Page<Ignore>)))]
pub(crate) async fn list_ignores(
    State(app): State<App>,
    Query(query): Query<IgnoreQuery>,
) -> Result<Json<Page<Ignore>>, ApiError> {
    Ok(Json(app.store.read(move |reader| reader.list_ignores(&query)).await?))
}

/// One ignore rule.
#[utoipa::path(get, path = "/v1/ignores/{name}", params(("name" = IgnoreName, Path)),
    responses((status = 200, body = Ignore)))]
pub(crate) async fn get_ignore(
    State(app): State<App>,
    _: NoQuery,
    Path(name): Path<IgnoreName>,
) -> Result<Tagged<Ignore>, ApiError> {
    Ok(app.store.read(move |reader| reader.get_ignore(&name)).await?.into())
}

/// Makes an ignore rule, or changes it. What it ignores is shown as ignored from then on, and counted apart; in a large
/// fleet, bit by bit.
#[utoipa::path(put, path = "/v1/ignores/{name}", params(("name" = IgnoreName, Path), IfMatch),
    request_body = IgnoreSpec, responses((status = 200, body = Ignore)))]
pub(crate) async fn set_ignore(
    State(app): State<App>,
    _: NoQuery,
    Caller(actor): Caller,
    Path(name): Path<IgnoreName>,
    IfMatch(version): IfMatch,
    Json(rule): Json<IgnoreSpec>,
) -> Result<Tagged<Ignore>, ApiError> {
    let now = app.now();
    Ok(app.store.write(move |tx| tx.set_ignore(&actor, &name, &rule, version, now)).await?.into())
}

/// Takes an ignore rule away, and answers it as it was. What it ignored counts again.
#[utoipa::path(delete, path = "/v1/ignores/{name}", params(("name" = IgnoreName, Path), IfMatch),
    responses((status = 200, body = Ignore)))]
pub(crate) async fn delete_ignore(
    State(app): State<App>,
    _: NoQuery,
    Caller(actor): Caller,
    Path(name): Path<IgnoreName>,
    IfMatch(version): IfMatch,
) -> Result<Tagged<Ignore>, ApiError> {
    let now = app.now();
    Ok(app.store.write(move |tx| tx.delete_ignore(&actor, &name, version, now)).await?.into())
}
