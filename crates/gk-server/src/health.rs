//! Liveness and readiness, for supervisors and load balancers.

use axum::extract::State;
use gk_model::query::EventQuery;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::error::ApiError;
use crate::extract::Json;

/// That the server is there.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// Always `ok`; whatever is not is answered by a problem.
    #[schema(example = "ok")]
    status: &'static str,
    /// The server's version.
    #[schema(example = "0.1.0")]
    version: &'static str,
}

impl Health {
    fn of(app: &App) -> Health {
        Health { status: "ok", version: app.version }
    }
}

/// Whether the process answers at all. Touches nothing.
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = Health)))]
pub(crate) async fn health(State(app): State<App>) -> Json<Health> {
    Json(Health::of(&app))
}

/// Whether requests can be served: reads from the store.
#[utoipa::path(get, path = "/readyz", responses((status = 200, body = Health)))]
pub(crate) async fn ready(State(app): State<App>) -> Result<Json<Health>, ApiError> {
    let one = EventQuery { limit: Some(1), ..EventQuery::default() };
    app.store.read(move |reader| reader.list_events(&one)).await?;
    Ok(Json(Health::of(&app)))
}
