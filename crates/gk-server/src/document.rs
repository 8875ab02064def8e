//! The OpenAPI 3.1 document: what the handlers' own annotations leave out.
//!
//! A handler's annotation is one line: method, path, types. Everything that is the same for all of them (who may call
//! it, how it refuses, what a status means) is written here, once, when the route is registered.

use std::collections::BTreeSet;

use axum::http::Method;
use gk_model::access::Permission;
use gk_model::problem::Problem;
use utoipa::openapi::path::{Operation, PathItem, Paths};
use utoipa::openapi::schema::ArrayItems;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Schema};
use utoipa::{PartialSchema as _, ToSchema};

use crate::{idempotency, refusals};

const SCHEME: &str = "token";

const ABOUT: &str = "Who may use a port, and who is using it. Every refusal is a problem (RFC 9457) with a stable \
                     `code`. Send a token as `Authorization: Bearer gkt_…`; the accounts that the server trusts need \
                     none at its Unix socket.";

/// The document before any route is added.
pub(crate) fn empty() -> OpenApi {
    let info = InfoBuilder::new().title("Gatekeeper").version("1").description(Some(ABOUT)).build();
    OpenApiBuilder::new().info(info).components(Some(components())).build()
}

/// Writes down that the routes demand a permission.
pub(crate) fn demand(paths: &mut Paths, permission: Permission) {
    for post in paths.paths.values_mut().filter_map(|item| item.post.as_mut()) {
        post.parameters.get_or_insert_default().push(idempotency::parameter().into());
    }
    for (method, path, operation) in operations(paths) {
        describe(path, operation);
        let needs = format!("Needs {}.", permission_words(permission));
        operation.description = Some(match operation.description.take() {
            Some(description) if !description.is_empty() => format!("{description}\n\n{needs}"),
            _ => needs,
        });
        operation.security = Some(vec![SecurityRequirement::new(SCHEME, [permission_name(permission)])]);
        refusals::write_down(&method, operation, true);
    }
}

/// Writes down that the routes are open to everybody.
pub(crate) fn demand_nothing(paths: &mut Paths) {
    for (method, path, operation) in operations(paths) {
        describe(path, operation);
        operation.security = Some(Vec::new());
        refusals::write_down(&method, operation, false);
    }
}

/// What can only be done when every schema is known.
///
/// utoipa writes the items of a generic page out in full, once more for every page; here they become references.
pub(crate) fn complete(document: &mut OpenApi) {
    let Some(components) = &mut document.components else { return };
    let used =
        operations(&mut document.paths).flat_map(|(_, _, operation)| operation.responses.responses.values());
    let used = used.filter_map(|response| match response {
        RefOr::Ref(reference) => reference.ref_location.rsplit('/').next().map(str::to_owned),
        RefOr::T(_) => None,
    });
    refusals::add_to(components, &used.collect());
    let names: BTreeSet<String> = components.schemas.keys().cloned().collect();
    for (name, schema) in &mut components.schemas {
        let item = name.strip_prefix("Page_").filter(|item| names.contains(*item));
        let (Some(item), RefOr::T(Schema::Object(page))) = (item, schema) else { continue };
        if let Some(RefOr::T(Schema::Array(items))) = page.properties.get_mut("items") {
            items.items = ArrayItems::RefOrSchema(Box::new(Ref::from_schema_name(item).into()));
        }
    }
}

/// Whom a permission lets in, in words.
pub(crate) fn permission_words(permission: Permission) -> &'static str {
    match permission {
        Permission::Read => "the role viewer or an instance's credential",
        Permission::Reserve => "the role user or an instance's credential",
        Permission::Operate => "the role operator",
        Permission::Tokens => "the role operator, for other than join tokens the role admin",
        Permission::Pools => "the role admin",
        Permission::Whoami => "a token or credential of any kind",
        Permission::Join => {
            "a join token, the role operator, or the credential of an instance that has joined"
        }
        Permission::Contact => "the instance's own credential",
    }
}

/// The name of a permission in the document's security requirements.
pub(crate) fn permission_name(permission: Permission) -> &'static str {
    match permission {
        Permission::Read => "read",
        Permission::Reserve => "reserve",
        Permission::Operate => "operate",
        Permission::Tokens => "tokens",
        Permission::Pools => "pools",
        Permission::Whoami => "whoami",
        Permission::Join => "join",
        Permission::Contact => "contact",
    }
}

fn components() -> Components {
    let mut schemas = Vec::new();
    Problem::schemas(&mut schemas);
    schemas.push((Problem::name().into_owned(), Problem::schema()));
    let mut components = Components::new();
    components.schemas.extend(schemas);
    components.add_security_scheme(SCHEME, SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    components
}

/// A tag from the path, and words for the statuses of success.
fn describe(path: &str, operation: &mut Operation) {
    let noun = path.trim_start_matches("/v1").split('/').nth(1).unwrap_or_default();
    let tag = if path.starts_with("/v1/") { noun } else { "server" };
    operation.tags = Some(vec![tag.to_owned()]);
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        if response.description.is_empty() {
            response.description = words(status).to_owned();
        }
    }
}

fn words(status: &str) -> &'static str {
    match status {
        "201" => "Made.",
        "204" => "Done.",
        _ => "The answer.",
    }
}

fn operations(paths: &mut Paths) -> impl Iterator<Item = (Method, &str, &mut Operation)> {
    paths.paths.iter_mut().flat_map(|(path, item)| {
        let PathItem { get, put, post, patch, delete, .. } = item;
        let all = [
            (Method::GET, get),
            (Method::PUT, put),
            (Method::POST, post),
            (Method::PATCH, patch),
            (Method::DELETE, delete),
        ];
        let made = all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)));
        made.map(move |(method, operation)| (method, path.as_str(), operation))
    })
}
