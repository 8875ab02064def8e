//! The one variable segment of a path.

use std::fmt::Display;
use std::str::FromStr;

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;

use crate::error::ApiError;

/// The variable segment of the path, parsed.
///
/// What cannot be an id or a name is malformed (400) rather than not found: the sentence then says why nothing of that
/// name can exist.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path<T>(pub(crate) T);

impl<T, S> FromRequestParts<S> for Path<T>
where
    T: FromStr<Err: Display>,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Path<T>, ApiError> {
        let segments = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|rejection| ApiError::malformed(None, rejection.body_text()))?;
        let (name, text) = segments.iter().next().ok_or(ApiError::NoSuchRoute)?;
        text.parse()
            .map(Path)
            .map_err(|error| ApiError::malformed(Some(name.to_owned()), format!("`{name}`: {error}")))
    }
}
