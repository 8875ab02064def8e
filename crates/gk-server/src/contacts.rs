//! Contacts: the messages of agents.
//!
//! The busiest route, and the one with the largest bodies: a full report of a machine with thousands of listeners. So it
//! takes gzip, and more bytes than the others, counted after decompression.
//!
//! It keeps no `Idempotency-Key`: session and sequence number already tell a contact from its repetition, for as long as
//! the session lasts.

use axum::extract::{DefaultBodyLimit, State};
use gk_model::contact::{Contact, ContactAnswer};
use gk_model::id::InstanceRef;
use tower_http::decompression::RequestDecompressionLayer;
use utoipa_axum::router::{UtoipaMethodRouter, UtoipaMethodRouterExt as _};
use utoipa_axum::routes;

use crate::access::speaks_for;
use crate::app::App;
use crate::auth::{Caller, Guarded};
use crate::error::ApiError;
use crate::extract::{Json, Path};

/// The most a contact may hold, after decompression.
const CONTACT_BYTES: usize = 8 << 20;

/// The route with its own layers. What is compressed in another way passes them and is refused by the extractor.
pub(crate) fn routes() -> UtoipaMethodRouter<Guarded> {
    let gzip = RequestDecompressionLayer::new().pass_through_unaccepted(true);
    routes!(contact).map(|methods| methods.route_layer((DefaultBodyLimit::max(CONTACT_BYTES), gzip)))
}

/// Takes a heartbeat, a delta or a full report. The body may be gzip; unknown fields are ignored.
#[utoipa::path(post, path = "/v1/instances/{instance}/contact", params(("instance" = InstanceRef, Path)),
    request_body = Contact, responses((status = 200, body = ContactAnswer)))]
pub(crate) async fn contact(
    State(app): State<App>,
    Caller(actor): Caller,
    Path(instance): Path<InstanceRef>,
    Json(contact): Json<Contact>,
) -> Result<Json<ContactAnswer>, ApiError> {
    let received_at = app.now();
    let (id, credential) = speaks_for(&app, &actor, instance).await?;
    let told = (contact.body.kind(), contact.lag());
    let answer = app.store.contact(id, credential, contact, received_at).await;
    app.contacts.count(told, &answer);
    Ok(Json(answer?))
}
