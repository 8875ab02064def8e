//! What a browser finds: the front page, until there is a dashboard, and the contract.

use axum::Extension;
use axum::body::Bytes;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{Html, IntoResponse};
use utoipa::openapi::OpenApi;

const INDEX: &str = include_str!("index.html");

/// The OpenAPI document as text, made once. It is an extension rather than a part of the state, because it is complete
/// only when every route has been registered, and routes are registered with their state.
#[derive(Clone, Debug)]
pub(crate) struct Document(Bytes);

impl Document {
    pub(crate) fn new(document: &OpenApi) -> Document {
        let text = document.to_json().expect("a document made of strings and numbers is JSON");
        Document(text.into())
    }

    pub(crate) fn layer(self) -> Extension<Document> {
        Extension(self)
    }
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, body = Object)))]
pub(crate) async fn openapi(Extension(document): Extension<Document>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], document.0)
}

/// What this is, and three commands to begin with.
#[utoipa::path(get, path = "/", responses((status = 200, body = String, content_type = "text/html")))]
pub(crate) async fn index() -> impl IntoResponse {
    // The page needs its own style and nothing else.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'";
    ([(CONTENT_SECURITY_POLICY, policy)], Html(INDEX))
}
