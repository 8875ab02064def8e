//! History as intervals: who held or listened on a port, from when to when.

use axum::extract::State;
use gk_model::history::History;
use gk_model::query::HistoryQuery;

use crate::app::App;
use crate::error::ApiError;
use crate::extract::{Json, Query};

/// Intervals, the one that began last first; `at` answers who it was then.
#[utoipa::path(get, path = "/v1/history", params(HistoryQuery),
    responses((status = 200, body = History)))]
pub(crate) async fn list_history(
    State(app): State<App>,
    Query(query): Query<HistoryQuery>,
) -> Result<Json<History>, ApiError> {
    Ok(Json(app.store.read(move |reader| reader.list_history(&query)).await?))
}
