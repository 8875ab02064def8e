//! Which refusals each route may answer, for the OpenAPI document.
//!
//! Nobody writes them at a handler. What a request can be refused for follows from what it is made of (a path with a
//! variable, a body, an `If-Match`, a door) and is written down by these rules; the answers of a server are checked
//! against them by `tests/it/src/process/contract.rs`. There is no `default` response: with one, nothing would be
//! undocumented.

use std::collections::BTreeSet;

use axum::http::{Method, StatusCode};
use gk_model::problem::{Code, Problem};
use utoipa::ToSchema as _;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, ParameterIn};
use utoipa::openapi::schema::Type;
use utoipa::openapi::{Components, Content, ObjectBuilder, Ref, RefOr, Response};

use crate::error::{PROBLEM_JSON, status};

/// Whatever is asked: no host or another's, a head that is too large, too often, a fault, or a server that is busy.
const ALWAYS: [StatusCode; 7] = [
    StatusCode::BAD_REQUEST,
    StatusCode::URI_TOO_LONG,
    StatusCode::MISDIRECTED_REQUEST,
    StatusCode::TOO_MANY_REQUESTS,
    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    StatusCode::INTERNAL_SERVER_ERROR,
    StatusCode::SERVICE_UNAVAILABLE,
];

/// At a door: no token, one that does not do, an `Idempotency-Key` where none is taken.
const GUARDED: [StatusCode; 3] =
    [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::UNPROCESSABLE_ENTITY];

const WITH_BODY: [StatusCode; 3] =
    [StatusCode::REQUEST_TIMEOUT, StatusCode::PAYLOAD_TOO_LARGE, StatusCode::UNSUPPORTED_MEDIA_TYPE];

/// Writes down how an operation may be refused.
pub(crate) fn write_down(method: &Method, operation: &mut Operation, is_guarded: bool) {
    let mut statuses = BTreeSet::from(ALWAYS);
    let takes = |place: &ParameterIn, name: Option<&str>| {
        let mut parameters = operation.parameters.iter().flatten();
        parameters.any(|parameter| match parameter {
            RefOr::T(parameter) => {
                parameter.parameter_in == *place && name.is_none_or(|name| parameter.name == name)
            }
            RefOr::Ref(_) => false,
        })
    };
    if is_guarded {
        statuses.extend(GUARDED);
    }
    if operation.request_body.is_some() {
        statuses.extend(WITH_BODY);
    }
    // A name in the path or the query, or one in the body.
    let names_something = takes(&ParameterIn::Path, None) || takes(&ParameterIn::Query, Some("instance"));
    if names_something || operation.request_body.is_some() {
        statuses.insert(StatusCode::NOT_FOUND);
    }
    if method != Method::GET {
        statuses.insert(StatusCode::CONFLICT);
    }
    if takes(&ParameterIn::Header, Some("If-Match")) {
        statuses.insert(StatusCode::PRECONDITION_FAILED);
    }
    // What goes along the event log may ask for what is not kept any more; nothing else is asked for by actor.
    if takes(&ParameterIn::Query, Some("actor")) {
        statuses.insert(StatusCode::GONE);
    }
    for status in statuses {
        let response = Ref::from_response_name(name(status));
        operation.responses.responses.insert(status.as_str().to_owned(), response.into());
    }
}

/// Adds what the operations refer to.
pub(crate) fn add_to(components: &mut Components, used: &BTreeSet<String>) {
    let statuses: BTreeSet<StatusCode> = Code::ALL.iter().map(|code| status(*code)).collect();
    for status in statuses.into_iter().filter(|status| used.contains(&name(*status))) {
        components.responses.insert(name(status), refusal(status).into());
    }
}

/// `TooManyRequests`.
fn name(status: StatusCode) -> String {
    let words = status.canonical_reason().expect("each status of a code has a name");
    words.chars().filter(char::is_ascii_alphanumeric).collect()
}

fn refusal(answered: StatusCode) -> Response {
    let codes = Code::ALL.iter().filter(|code| status(**code) == answered);
    let codes: Vec<String> = codes.map(|code| format!("`{code}`")).collect();
    let mut response = Response::new(format!("With one of the codes {}.", codes.join(", ")));
    if let [code] = codes.as_slice() {
        response.description = format!("With the code {code}.");
    }
    let content = Content::new(Some(Ref::from_schema_name(Problem::name())));
    response.content.insert(PROBLEM_JSON.to_owned(), content.into());
    let header = match answered {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            Some(("Retry-After", "In how many seconds to ask again.", Type::Integer))
        }
        StatusCode::UNAUTHORIZED => Some(("WWW-Authenticate", "Always `Bearer`.", Type::String)),
        _ => None,
    };
    if let Some((name, about, kind)) = header {
        let schema = ObjectBuilder::new().schema_type(kind);
        let header = HeaderBuilder::new().schema(Some(schema)).description(Some(about)).build();
        response.headers.insert(name.to_owned(), header.into());
    }
    response
}
