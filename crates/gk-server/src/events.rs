//! The event log.

use axum::extract::State;
use gk_model::history::Event;
use gk_model::query::{EventQuery, Page};

use crate::app::App;
use crate::error::ApiError;
use crate::extract::{Json, Query};

/// Events, oldest first.
#[utoipa::path(get, path = "/v1/events", params(EventQuery), responses((status = 200, body = Page<Event>)))]
pub(crate) async fn list_events(
    State(app): State<App>,
    Query(query): Query<EventQuery>,
) -> Result<Json<Page<Event>>, ApiError> {
    Ok(Json(app.store.read(move |reader| reader.list_events(&query)).await?))
}
