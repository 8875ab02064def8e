//! The event log, as a list and as a stream.

use axum::extract::{FromRequestParts, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use gk_model::query::EventQuery;
use gk_model::watch::{EventCursor, EventCursorError, EventFilter, EventPage, WatchQuery};

use crate::app::App;
use crate::error::ApiError;
use crate::extract::{Json, Query};
use crate::watch::{Frame, Opening, open};

/// Where a stream was interrupted, as browsers send it by themselves.
const LAST_EVENT_ID: &str = "last-event-id";

/// For proxies that would collect an answer before they pass it on.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Events, oldest first, and how far the log reaches.
#[utoipa::path(get, path = "/v1/events", params(EventQuery), responses((status = 200, body = EventPage)))]
pub(crate) async fn list_events(
    State(app): State<App>,
    Query(query): Query<EventQuery>,
) -> Result<Json<EventPage>, ApiError> {
    Ok(Json(app.store.read(move |reader| reader.list_events(&query)).await?))
}

/// Events as they happen, as server-sent events: from now on, or from behind a place in the log.
#[utoipa::path(get, path = "/v1/events/stream",
    params(WatchQuery, ("Last-Event-ID" = Option<String>, Header,
        description = "Go on behind this place; an empty one, as of a browser that has heard nothing, is none.",
        pattern = "^([0-9a-f-]{36}\\.[0-9]{1,19})?$", example = "0190163d-8694-739b-aea5-966c26f8ad91.4711")),
    responses((status = 200, body = Frame, content_type = "text/event-stream")))]
pub(crate) async fn watch_events(
    State(app): State<App>,
    Query(query): Query<WatchQuery>,
    LastEventId(last): LastEventId,
    opening: Opening,
) -> Result<Response, ApiError> {
    let permit = app.crowd.watch(&opening.actor)?;
    let (after, instance) = (last.or(query.after), query.instance.clone());
    let begin = move |reader: &mut gk_store::Reader<'_>| reader.begin_watch(after, instance.as_ref());
    let (log, at, instance) = app.store.read(begin).await?;
    let body = open(&app, opening, permit, log, at, EventFilter::of(query, instance));
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (X_ACCEL_BUFFERING, HeaderValue::from_static("no")),
    ];
    Ok((headers, body).into_response())
}

/// The header of that name.
pub(crate) struct LastEventId(Option<EventCursor>);

impl<S: Send + Sync> FromRequestParts<S> for LastEventId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<LastEventId, ApiError> {
        // A browser that has heard nothing yet may send an empty one.
        let Some(value) = parts.headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty()) else {
            return Ok(LastEventId(None));
        };
        let cursor = value.to_str().ok().and_then(|text| text.parse().ok());
        let malformed =
            || ApiError::malformed(Some("Last-Event-ID".to_owned()), EventCursorError.to_string());
        cursor.map(|cursor| LastEventId(Some(cursor))).ok_or_else(malformed)
    }
}
