//! Instances: join, list, show, rename, leave.

use axum::extract::State;
use axum::http::StatusCode;
use gk_model::id::InstanceRef;
use gk_model::instance::{Instance, InstancePatch, JoinRequest};
use gk_model::paths;
use gk_model::query::{InstanceQuery, Page};
use gk_store::Once;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::access::may_manage;
use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{IfMatch, Json, NoQuery, Path, Query, Tagged};
use crate::idempotency::{Key, Replayed, write_once};

/// Instances, by name.
#[utoipa::path(get, path = "/v1/instances", params(InstanceQuery),
    responses((status = 200, body = Page<Instance>)))]
pub(crate) async fn list_instances(
    State(app): State<App>,
    Query(query): Query<InstanceQuery>,
) -> Result<Json<Page<Instance>>, ApiError> {
    let now = app.now();
    Ok(Json(app.store.read(move |reader| reader.list_instances(&query, now)).await?))
}

/// Joins, or refreshes the facts of an instance that has joined (200).
///
/// Unknown fields are ignored, because agents may be newer than the server.
#[utoipa::path(post, path = "/v1/instances",
    request_body = JoinRequest, responses((status = 201, body = Instance), (status = 200, body = Instance)))]
pub(crate) async fn join(
    State(app): State<App>,
    _: NoQuery,
    Caller(actor): Caller,
    key: Key,
    Json(request): Json<JoinRequest>,
) -> Result<(StatusCode, Replayed, Tagged<Instance>), ApiError> {
    let now = app.now();
    let keyed = key.of(paths::INSTANCES, &request);
    let join = write_once(&app, actor, keyed, now, move |tx, actor| tx.join(actor, &request, now));
    let Once { answer: (instance, is_new), replayed } = join.await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Replayed(replayed), instance.into()))
}

/// One instance, by id (also one that has left) or by name.
#[utoipa::path(get, path = "/v1/instances/{instance}", params(("instance" = InstanceRef, Path)),
    responses((status = 200, body = Instance)))]
pub(crate) async fn get_instance(
    State(app): State<App>,
    _: NoQuery,
    Path(instance): Path<InstanceRef>,
) -> Result<Tagged<Instance>, ApiError> {
    let now = app.now();
    Ok(app.store.read(move |reader| reader.get_instance(&instance, now)).await?.into())
}

/// Renames an instance, which it may itself, or gives it other labels, which only operators may.
#[utoipa::path(patch, path = "/v1/instances/{instance}", params(("instance" = InstanceRef, Path), IfMatch),
    request_body = InstancePatch, responses((status = 200, body = Instance)))]
pub(crate) async fn update_instance(
    State(app): State<App>,
    _: NoQuery,
    Caller(actor): Caller,
    Path(instance): Path<InstanceRef>,
    IfMatch(version): IfMatch,
    Json(patch): Json<InstancePatch>,
) -> Result<Tagged<Instance>, ApiError> {
    let instance = may_manage(&app, &actor, instance).await?;
    if patch == InstancePatch::default() {
        let what = "there is nothing to change: give `name` or `labels`";
        return Err(ApiError::Impossible { field: "name", what });
    }
    let now = app.now();
    let update = app.store.write(move |tx| tx.update_instance(&actor, &instance, &patch, version, now));
    Ok(update.await?.into())
}

/// How to leave.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LeaveQuery {
    /// Release what the instance holds; without it, an instance that holds reservations does not leave.
    #[serde(default)]
    release: bool,
}

/// Makes an instance leave. Its history stays. For operators and for the instance itself.
#[utoipa::path(delete, path = "/v1/instances/{instance}", params(("instance" = InstanceRef, Path), LeaveQuery, IfMatch),
    responses((status = 204)))]
pub(crate) async fn leave_instance(
    State(app): State<App>,
    Caller(actor): Caller,
    Path(instance): Path<InstanceRef>,
    Query(LeaveQuery { release }): Query<LeaveQuery>,
    IfMatch(version): IfMatch,
) -> Result<StatusCode, ApiError> {
    let instance = may_manage(&app, &actor, instance).await?;
    let now = app.now();
    let leave = app.store.write(move |tx| tx.leave(&actor, &instance, release, version, now));
    leave.await?;
    Ok(StatusCode::NO_CONTENT)
}
