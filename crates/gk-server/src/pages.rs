//! What a browser finds: the front page, until there is a dashboard, and the contract.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{Html, IntoResponse};
use utoipa::openapi::OpenApi;

use crate::app::App;

const INDEX: &str = include_str!("index.html");

/// The OpenAPI document as text, made once.
#[derive(Clone, Debug)]
pub(crate) struct Document(Bytes);

impl Document {
    pub(crate) fn new(document: &OpenApi) -> Document {
        let text = document.to_json().expect("a document made of strings and numbers is JSON");
        Document(text.into())
    }
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, body = Object)))]
pub(crate) async fn openapi(State(app): State<App>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], app.published().document.0.clone())
}

/// What this is, and three commands to begin with.
#[utoipa::path(get, path = "/", responses((status = 200, body = String, content_type = "text/html")))]
pub(crate) async fn index() -> impl IntoResponse {
    // The page needs its own style and nothing else.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'";
    ([(CONTENT_SECURITY_POLICY, policy)], Html(INDEX))
}
