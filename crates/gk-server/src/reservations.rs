//! Reservations: reserve, list, show, edit, renew, release.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{ETAG, LOCATION};
use axum::response::{IntoResponse, Response};
use gk_model::id::{InstanceRef, ReservationId};
use gk_model::paths;
use gk_model::port::PortRange;
use gk_model::protection::ReservedPorts;
use gk_model::query::{Page, ReservationQuery};
use gk_model::reservation::{
    Contradiction, RenewRequest, Reservation, ReservationPatch, ReserveRequest, Reserved,
};
use gk_store::Once;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::access::may_act_on;
use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{IfMatch, Json, NoQuery, Path, Query, Tagged, etag};
use crate::idempotency::{Key, Replayed, write_once};

/// Live reservations.
#[utoipa::path(get, path = "/v1/reservations", params(ReservationQuery),
    responses((status = 200, body = Page<Reservation>)))]
pub(crate) async fn list_reservations(
    State(app): State<App>,
    Query(query): Query<ReservationQuery>,
) -> Result<Json<Page<Reservation>>, ApiError> {
    let now = app.now();
    Ok(Json(app.store.read(move |reader| reader.list_reservations(&query, now)).await?))
}

/// The numbers that are reserved on an instance, for itself or for all instances, whatever the protocol.
///
/// For agents that keep the kernel off them. They ask when they protect, every ten seconds: carried by the answers to
/// contacts instead, it would cost each unchanged heartbeat of the whole fleet a statement.
#[utoipa::path(get, path = "/v1/instances/{instance}/reserved", params(("instance" = InstanceRef, Path)),
    responses((status = 200, body = ReservedPorts)))]
pub(crate) async fn get_reserved_ports(
    State(app): State<App>,
    _: NoQuery,
    Path(instance): Path<InstanceRef>,
) -> Result<Json<ReservedPorts>, ApiError> {
    Ok(Json(app.store.read(move |reader| reader.get_reserved_ports(&instance)).await?))
}

/// Reserves: the next free port of a pool, or one by number; contiguous ones, several by name, for both protocols, on
/// each instance with certain labels, or fleet-wide. All of it, or nothing.
///
/// A dry run is answered by 200, and has made nothing.
#[utoipa::path(post, path = "/v1/reservations", request_body = ReserveRequest,
    responses((status = 201, body = Reserved), (status = 200, body = Reserved)))]
pub(crate) async fn reserve(
    State(app): State<App>,
    _: NoQuery,
    Caller(actor): Caller,
    key: Key,
    Json(request): Json<ReserveRequest>,
) -> Result<Response, ApiError> {
    check(&request)?;
    // A dry run has no effect to take once, and writes nothing, not even that it was one.
    let keyed = if request.dry_run { None } else { key.of(paths::RESERVATIONS, &request) };
    let instance = match request.instance.clone() {
        Some(instance) => Some(may_act_on(&app, &actor, instance).await?),
        None => None,
    };
    let (asked, request) = (request.clone(), ReserveRequest { instance, ..request });
    let now = app.now();
    let reserve =
        write_once(&app, actor, keyed, now, move |tx, actor| tx.reserve_group(actor, &request, now));
    let Once { answer, replayed } = reserve.await.map_err(|error| error.advised(&asked))?;
    Ok((Replayed(replayed), Made(answer)).into_response())
}

/// What was made: 201, with where it is and which version it has if it is a single one.
struct Made(Reserved);

impl IntoResponse for Made {
    fn into_response(self) -> Response {
        let Made(reserved) = self;
        if reserved.dry_run {
            return Json(reserved).into_response();
        }
        match reserved.only().map(|only| (only.id, only.version)) {
            Some((id, version)) => {
                let headers = [(LOCATION, paths::reservation(id)), (ETAG, etag(version))];
                (StatusCode::CREATED, headers, Json(reserved)).into_response()
            }
            None => (StatusCode::CREATED, Json(reserved)).into_response(),
        }
    }
}

/// Refuses what contradicts itself before anything is looked up for it.
fn check(request: &ReserveRequest) -> Result<(), ApiError> {
    let impossible = |found: Contradiction| ApiError::Impossible { field: found.field, what: found.what };
    request.check().map_err(impossible)
}

/// One reservation, live or released.
#[utoipa::path(get, path = "/v1/reservations/{id}", params(("id" = ReservationId, Path)),
    responses((status = 200, body = Reservation)))]
pub(crate) async fn get_reservation(
    State(app): State<App>,
    _: NoQuery,
    Path(id): Path<ReservationId>,
) -> Result<Tagged<Reservation>, ApiError> {
    Ok(app.store.read(move |reader| reader.get_reservation(id)).await?.into())
}

/// Whose reservation it may be.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ForceQuery {
    /// Change it though somebody else holds it. For operators; history records who did.
    #[serde(default)]
    force: bool,
}

/// Changes what a reservation says: service, name, note, labels, expectation; `null` takes one away. For its holder.
#[utoipa::path(patch, path = "/v1/reservations/{id}", params(("id" = ReservationId, Path), ForceQuery, IfMatch),
    request_body = ReservationPatch, responses((status = 200, body = Reservation)))]
pub(crate) async fn update_reservation(
    State(app): State<App>,
    Caller(actor): Caller,
    Path(id): Path<ReservationId>,
    Query(ForceQuery { force }): Query<ForceQuery>,
    IfMatch(version): IfMatch,
    Json(patch): Json<ReservationPatch>,
) -> Result<Tagged<Reservation>, ApiError> {
    if patch.is_empty() {
        let what = "there is nothing to change: give `service`, `name`, `note`, `labels` or `expect`";
        return Err(ApiError::Impossible { field: "service", what });
    }
    let now = app.now();
    let update = app.store.write(move |tx| tx.update_reservation(&actor, id, &patch, force, version, now));
    Ok(update.await.map_err(|error| ApiError::from(error).of_change("edit", id))?.into())
}

/// Sets when a lease ends, counted from now. For its holder.
#[utoipa::path(post, path = "/v1/reservations/{id}/renew", params(("id" = ReservationId, Path), ForceQuery, IfMatch),
    request_body = RenewRequest, responses((status = 200, body = Reservation)))]
pub(crate) async fn renew(
    State(app): State<App>,
    Caller(actor): Caller,
    Path(id): Path<ReservationId>,
    Query(ForceQuery { force }): Query<ForceQuery>,
    IfMatch(version): IfMatch,
    key: Key,
    Json(request): Json<RenewRequest>,
) -> Result<(Replayed, Tagged<Reservation>), ApiError> {
    let keyed = key.of(&paths::renew(id), &request);
    let now = app.now();
    let ttl = request.ttl_seconds;
    let renew =
        write_once(&app, actor, keyed, now, move |tx, actor| tx.renew(actor, id, ttl, force, version, now));
    let Once { answer, replayed } = renew.await.map_err(|error| error.of_change("renew", id))?;
    Ok((Replayed(replayed), answer.into()))
}

/// How to release.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ReleaseQuery {
    /// Release it though somebody else holds it. For operators; history records who did.
    #[serde(default)]
    force: bool,
    /// Release these of its ports only. The lowest remaining range keeps the id, another one gets a new id.
    #[param(inline)]
    ports: Option<PortRange>,
}

/// Releases a reservation, or a part of it, and answers it as it is then. For its holder.
#[utoipa::path(delete, path = "/v1/reservations/{id}", params(("id" = ReservationId, Path), ReleaseQuery, IfMatch),
    responses((status = 200, body = Reservation)))]
pub(crate) async fn release(
    State(app): State<App>,
    Caller(actor): Caller,
    Path(id): Path<ReservationId>,
    Query(ReleaseQuery { force, ports }): Query<ReleaseQuery>,
    IfMatch(version): IfMatch,
) -> Result<Tagged<Reservation>, ApiError> {
    let now = app.now();
    let release = app.store.write(move |tx| tx.release(&actor, id, ports, force, version, now));
    Ok(release.await?.into())
}
