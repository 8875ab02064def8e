//! Port states: of one instance, and of the fleet.

use axum::extract::State;
use gk_model::id::InstanceRef;
use gk_model::port_state::PortState;
use gk_model::query::{Page, PortQuery};

use crate::app::App;
use crate::error::ApiError;
use crate::extract::{Json, Path, Query};

/// Port states of one instance.
#[utoipa::path(get, path = "/v1/instances/{instance}/ports", params(("instance" = InstanceRef, Path), PortQuery),
    responses((status = 200, body = Page<PortState>)))]
pub(crate) async fn list_instance_ports(
    State(app): State<App>,
    Path(instance): Path<InstanceRef>,
    Query(query): Query<PortQuery>,
) -> Result<Json<Page<PortState>>, ApiError> {
    let now = app.now();
    Ok(Json(app.store.read(move |reader| reader.list_ports(Some(&instance), &query, now)).await?))
}

/// Port states of all instances.
#[utoipa::path(get, path = "/v1/ports", params(PortQuery), responses((status = 200, body = Page<PortState>)))]
pub(crate) async fn list_ports(
    State(app): State<App>,
    Query(query): Query<PortQuery>,
) -> Result<Json<Page<PortState>>, ApiError> {
    let now = app.now();
    Ok(Json(app.store.read(move |reader| reader.list_ports(None, &query, now)).await?))
}
