//! Port states: of one instance, and of the fleet.

use axum::extract::State;
use gk_model::id::InstanceRef;
use gk_model::port_state::{self, PortState};
use gk_model::query::{Page, PortQuery};

use crate::app::App;
use crate::error::ApiError;
use crate::extract::{Json, Path, Query};

/// Free ports are answered one by one, so they are asked for in ranges that a page can hold.
fn check(query: &PortQuery) -> Result<(), ApiError> {
    let is_wide = query.port.is_none_or(|range| range.count() > PortQuery::WIDEST_WITH_FREE);
    if query.state == Some(port_state::State::Free) && is_wide {
        let what = "free ports are answered for a range of at most 256: give `port`";
        return Err(ApiError::Impossible { field: "port", what });
    }
    Ok(())
}

/// Port states of one instance.
#[utoipa::path(get, path = "/v1/instances/{instance}/ports", params(("instance" = InstanceRef, Path), PortQuery),
    responses((status = 200, body = Page<PortState>)))]
pub(crate) async fn list_instance_ports(
    State(app): State<App>,
    Path(instance): Path<InstanceRef>,
    Query(query): Query<PortQuery>,
) -> Result<Json<Page<PortState>>, ApiError> {
    check(&query)?;
    let now = app.now();
    Ok(Json(app.store.read(move |reader| reader.list_ports(Some(&instance), &query, now)).await?))
}

/// Port states of all instances.
#[utoipa::path(get, path = "/v1/ports", params(PortQuery), responses((status = 200, body = Page<PortState>)))]
pub(crate) async fn list_ports(
    State(app): State<App>,
    Query(query): Query<PortQuery>,
) -> Result<Json<Page<PortState>>, ApiError> {
    check(&query)?;
    let now = app.now();
    Ok(Json(app.store.read(move |reader| reader.list_ports(None, &query, now)).await?))
}
