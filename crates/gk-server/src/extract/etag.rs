//! Versions of rows: `ETag` on answers, `If-Match` on changes.

use axum::extract::FromRequestParts;
use axum::http::header::{ETAG, IF_MATCH};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use gk_model::ignore::Ignore;
use gk_model::instance::Instance;
use gk_model::pool::{PoolChange, PoolStatus};
use gk_model::reservation::Reservation;
use serde::Serialize;
use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::Type;
use utoipa::openapi::{ObjectBuilder, Required};

use crate::error::ApiError;
use crate::extract::Json;

/// The version that the caller has seen, when it insists on changing that one and no later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IfMatch(pub(crate) Option<u64>);

impl IntoParams for IfMatch {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let text = ObjectBuilder::new().schema_type(Type::String).examples(["\"3\""]);
        let header = ParameterBuilder::new()
            .name("If-Match")
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some("Change it only if its `ETag` is still this one; else 412."))
            .schema(Some(text));
        vec![header.build()]
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<IfMatch, ApiError> {
        let mut values = parts.headers.get_all(IF_MATCH).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return if parts.headers.contains_key(IF_MATCH) { Err(unreadable()) } else { Ok(IfMatch(None)) };
        };
        let text = value.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Ok(IfMatch(None));
        }
        let version = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        version
            .and_then(|digits| digits.parse().ok())
            .map(|version| IfMatch(Some(version)))
            .ok_or_else(unreadable)
    }
}

fn unreadable() -> ApiError {
    let what = "If-Match takes the one ETag of an answer, quotes included, such as \"3\"";
    ApiError::malformed(Some("If-Match".to_owned()), what.to_owned())
}

/// A single row as JSON, with its version as `ETag`.
#[derive(Clone, Debug)]
pub(crate) struct Tagged<T> {
    version: u64,
    row: T,
}

impl From<Ignore> for Tagged<Ignore> {
    fn from(row: Ignore) -> Tagged<Ignore> {
        Tagged { version: row.version, row }
    }
}

impl From<Instance> for Tagged<Instance> {
    fn from(row: Instance) -> Tagged<Instance> {
        Tagged { version: row.version, row }
    }
}

impl From<Reservation> for Tagged<Reservation> {
    fn from(row: Reservation) -> Tagged<Reservation> {
        Tagged { version: row.version, row }
    }
}

impl From<PoolStatus> for Tagged<PoolStatus> {
    fn from(row: PoolStatus) -> Tagged<PoolStatus> {
        Tagged { version: row.pool.version, row }
    }
}

impl From<PoolChange> for Tagged<PoolChange> {
    fn from(row: PoolChange) -> Tagged<PoolChange> {
        Tagged { version: row.pool.version, row }
    }
}

impl<T: Serialize> IntoResponse for Tagged<T> {
    fn into_response(self) -> Response {
        ([(ETAG, etag(self.version))], Json(self.row)).into_response()
    }
}

/// A version as the `ETag` that stands for it.
pub(crate) fn etag(version: u64) -> String {
    format!("\"{version}\"")
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    #[tokio::test]
    async fn if_match_takes_one_strong_tag() {
        let table = [
            (&[][..], Some(None)),
            (&["*"], Some(None)),
            (&["\"3\""], Some(Some(3))),
            (&["3"], None),
            (&["W/\"3\""], None),
            (&["\"3\", \"4\""], None),
            (&["\"3\"", "\"4\""], None),
            (&["\"\""], None),
        ];
        for (headers, expected) in table {
            let request =
                headers.iter().fold(Request::builder(), |request, tag| request.header(IF_MATCH, *tag));
            let (mut parts, ()) = request.body(()).unwrap().into_parts();
            let read = IfMatch::from_request_parts(&mut parts, &()).await;
            assert_eq!(read.ok().map(|IfMatch(version)| version), expected, "{headers:?}");
        }
    }
}
