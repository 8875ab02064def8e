//! Extractors: they reject, so that handlers never see an invalid value.
//!
//! Every rejection is an [`ApiError`](crate::error::ApiError) that names the offending field. axum's own `Json`,
//! `Query` and `Path` answer in plain text and are not used.

pub(crate) mod decode;
mod etag;
mod json;
mod path;
mod query;

pub(crate) use etag::{IfMatch, Tagged, etag};
pub(crate) use json::Json;
pub(crate) use path::Path;
pub(crate) use query::{NoQuery, Query};
