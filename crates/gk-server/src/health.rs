//! Liveness and readiness, for supervisors and load balancers.

use axum::extract::State;
use gk_model::health::Health;
use gk_model::query::{EventQuery, Limit};
use gk_store::StoreError;

use crate::app::App;
use crate::error::ApiError;
use crate::extract::Json;
use crate::tls::Tls;

fn health_of(app: &App) -> Health {
    Health {
        status: "ok".to_owned(),
        version: app.version.to_owned(),
        address: app.address,
        url: app.url.clone(),
        pins: app.tls.as_ref().map(Tls::pins).unwrap_or_default(),
    }
}

/// Whether the process answers at all. Touches nothing.
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = Health)))]
pub(crate) async fn health(State(app): State<App>) -> Json<Health> {
    Json(health_of(&app))
}

/// Whether requests can be served: reads from the store, and looks whether it takes changes.
#[utoipa::path(get, path = "/readyz", responses((status = 200, body = Health)))]
pub(crate) async fn ready(State(app): State<App>) -> Result<Json<Health>, ApiError> {
    let one = EventQuery { limit: Some(Limit::at_most(1)), ..EventQuery::default() };
    app.store.read(move |reader| reader.list_events(&one)).await?;
    if !app.store.takes_changes() {
        return Err(gk_store::Error::from(StoreError::Closed).into());
    }
    Ok(Json(health_of(&app)))
}
