//! Reservations: reserve, list, show, release.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use gk_model::id::{InstanceRef, ReservationId};
use gk_model::paths;
use gk_model::port::PortRange;
use gk_model::protection::ReservedPorts;
use gk_model::query::{Page, ReservationQuery};
use gk_model::reservation::{Contradiction, Reservation, ReserveRequest};
use gk_store::Once;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::access::may_act_on;
use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{IfMatch, Json, NoQuery, Path, Query, Tagged};
use crate::idempotency::{Key, Replayed, write_once};

/// Live reservations.
#[utoipa::path(get, path = "/v1/reservations", params(ReservationQuery),
    responses((status = 200, body = Page<Reservation>)))]
pub(crate) async fn list_reservations(
    State(app): State<App>,
    Query(query): Query<ReservationQuery>,
) -> Result<Json<Page<Reservation>>, ApiError> {
    Ok(Json(app.store.read(move |reader| reader.list_reservations(&query)).await?))
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

/// Reserves the next free port of a pool, or one by number; or as many contiguous ones as asked for.
#[utoipa::path(post, path = "/v1/reservations",
    request_body = ReserveRequest, responses((status = 201, body = Reservation)))]
pub(crate) async fn reserve(
    State(app): State<App>,
    _: NoQuery,
    Caller(actor): Caller,
    key: Key,
    Json(request): Json<ReserveRequest>,
) -> Result<Response, ApiError> {
    check(&request)?;
    let keyed = key.of(paths::RESERVATIONS, &request);
    let instance = may_act_on(&app, &actor, request.instance).await?;
    let request = ReserveRequest { instance, ..request };
    let now = app.now();
    let reserve = write_once(&app, actor, keyed, now, move |tx, actor| tx.reserve(actor, &request, now));
    let Once { answer: made, replayed } = reserve.await?;
    let location = [(LOCATION, paths::reservation(made.id))];
    Ok((StatusCode::CREATED, location, Replayed(replayed), Tagged::from(made)).into_response())
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
