//! Service discovery for Prometheus (`http_sd`): the whole list at once, or a refusal, after which Prometheus keeps the list
//! it has. An empty list always means that there is nothing.

use axum::extract::State;
use gk_model::discovery::TargetGroup;
use gk_model::port::Protocol;
use gk_model::port_state;
use gk_model::query::TargetQuery;

use crate::app::App;
use crate::error::ApiError;
use crate::extract::{Json, Query};

/// What could only ever be answered by nothing is refused: it was meant to find something.
fn check(query: &TargetQuery) -> Result<(), ApiError> {
    if query.protocol == Some(Protocol::Udp) {
        return Err(ApiError::Impossible { field: "protocol", what: "Prometheus asks by TCP: leave it out" });
    }
    if query.state == Some(port_state::State::Free) {
        return Err(ApiError::Impossible { field: "state", what: "a free port is no target" });
    }
    Ok(())
}

/// TCP ports as targets for Prometheus: those that are reserved for a service, whether anybody listens or not; with `state`,
/// all in that state. At most 10,000.
#[utoipa::path(get, path = "/v1/sd/prometheus", params(TargetQuery),
    responses((status = 200, body = Vec<TargetGroup>)))]
pub(crate) async fn list_targets(
    State(app): State<App>,
    Query(query): Query<TargetQuery>,
) -> Result<Json<Vec<TargetGroup>>, ApiError> {
    check(&query)?;
    let now = app.now();
    Ok(Json(app.store.read(move |reader| reader.list_targets(&query, now)).await?))
}
