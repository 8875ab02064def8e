//! Liveness and readiness, for supervisors and load balancers.

use std::net::SocketAddr;

use axum::extract::State;
use gk_model::health::Health;
use gk_model::query::{EventQuery, Limit};
use gk_store::StoreError;

use crate::app::App;
use crate::error::ApiError;
use crate::extract::Json;
use crate::tls::Tls;

/// What a server says of itself. At an address that its certificate is not for, nobody would believe it.
pub fn health_of(
    version: &str,
    address: Option<SocketAddr>,
    url: Option<String>,
    tls: Option<&Tls>,
) -> Health {
    Health {
        status: "ok".to_owned(),
        version: version.to_owned(),
        address: address.filter(|address| tls.is_none_or(|tls| tls.is_for(address.ip()))),
        url,
        pins: tls.map(Tls::pins).unwrap_or_default(),
        certificate_ends_at: tls.and_then(Tls::ends_at),
    }
}

fn of(app: &App) -> Health {
    health_of(app.version, app.address, app.url.clone(), app.tls.as_ref())
}

/// Whether the process answers at all. Touches nothing.
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = Health)))]
pub(crate) async fn health(State(app): State<App>) -> Json<Health> {
    Json(of(&app))
}

/// Whether requests can be served: reads from the store, and looks whether it takes changes.
#[utoipa::path(get, path = "/readyz", responses((status = 200, body = Health)))]
pub(crate) async fn ready(State(app): State<App>) -> Result<Json<Health>, ApiError> {
    let one = EventQuery { limit: Some(Limit::at_most(1)), ..EventQuery::default() };
    app.store.read(move |reader| reader.list_events(&one)).await?;
    if !app.store.takes_changes() {
        return Err(gk_store::Error::from(StoreError::Closed).into());
    }
    Ok(Json(of(&app)))
}
