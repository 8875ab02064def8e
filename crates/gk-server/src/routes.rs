//! Every route, and who may use it.
//!
//! **A route cannot exist without that decision.** Routes are added by [`Routes::guarded`], which demands a permission,
//! or by [`Routes::open`], which is for what everybody may see. What holds this up:
//!
//! - axum's and utoipa's own registration functions are disallowed by `clippy.toml` everywhere but in this file;
//! - a handler that needs to know who is calling takes a [`Caller`](crate::auth::Caller), which can be extracted from
//!   [`Guarded`] state only, so that it does not compile as an open route;
//! - the same function that puts up the door writes the permission into the OpenAPI document; one test compares the
//!   document with a table, another calls every route of it with every authority.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use gk_model::access::Permission;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter, UtoipaMethodRouterExt as _};
use utoipa_axum::routes;

use crate::admission::admit;
use crate::app::{App, Config, Published};
use crate::auth::{Guarded, guard};
use crate::docs::{self, Docs};
use crate::document;
use crate::error::ApiError;
use crate::metrics::Traffic;
use crate::pages::Document;
use crate::request::observe;
use crate::{
    contacts, drift, events, health, history, instances, metrics, pages, pools, ports, reservations, targets,
    tokens,
};

/// The most a person's or program's request may hold.
const BODY_BYTES: usize = 1 << 20;

/// The whole API as a service, and its OpenAPI document.
///
/// The service expects a `ConnectInfo<Peer>` in the extensions of each request, as [`run`](crate::run) puts it there;
/// a request without one counts as a stranger's.
pub fn router(config: Config) -> (Router, OpenApi) {
    let app = App::new(config);
    let (router, document) = all(Routes::new(app.clone())).finish();
    let traffic = Traffic::of(&document);
    app.publish(Published {
        document: Document::new(&document),
        docs: Docs::of(&document),
        traffic: traffic.clone(),
    });
    let router = router
        .fallback(async || ApiError::NoSuchRoute)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        // As one: each `layer` by itself is a box, and a box is copied for each request, with all that are in it.
        .layer((
            from_fn_with_state(traffic, observe),
            from_fn_with_state(app, admit),
            DefaultBodyLimit::max(BODY_BYTES),
        ));
    (router, document)
}

fn all(routes: Routes) -> Routes {
    use Permission::{Contact, Join, Operate, Pools, Read, Reserve, Tokens, Whoami};
    routes
        .guarded(Read, routes!(instances::list_instances))
        .guarded(Join, routes!(instances::join))
        .guarded(Read, routes!(instances::get_instance))
        // Operators, and the instance itself: the handlers decide between these and other people's.
        .guarded(Reserve, routes!(instances::update_instance, instances::leave_instance))
        .guarded(Contact, contacts::routes())
        .guarded(Read, routes!(ports::list_instance_ports))
        .guarded(Read, routes!(ports::list_ports))
        .guarded(Read, routes!(targets::list_targets))
        .guarded(Read, routes!(reservations::list_reservations))
        .guarded(Read, routes!(reservations::get_reserved_ports))
        .guarded(Reserve, routes!(reservations::reserve))
        .guarded(Read, routes!(reservations::get_reservation))
        .guarded(Reserve, routes!(reservations::update_reservation, reservations::release))
        .guarded(Reserve, routes!(reservations::renew))
        .guarded(Read, routes!(drift::list_drift))
        .guarded(Read, routes!(drift::get_status))
        .guarded(Read, routes!(drift::list_ignores))
        .guarded(Read, routes!(drift::get_ignore))
        .guarded(Operate, routes!(drift::set_ignore, drift::delete_ignore))
        .guarded(Read, routes!(history::list_history))
        .guarded(Read, routes!(events::list_events))
        .guarded(Read, routes!(pools::list_pools))
        .guarded(Read, routes!(pools::get_pool))
        .guarded(Pools, routes!(pools::set_pool, pools::delete_pool))
        .guarded(Read, routes!(events::watch_events))
        .guarded(Tokens, routes!(tokens::list_tokens, tokens::create_token))
        .guarded(Tokens, routes!(tokens::revoke_token))
        .guarded(Whoami, routes!(tokens::whoami))
        .guarded(Read, routes!(metrics::metrics))
        .open(routes!(health::health))
        .open(routes!(health::ready))
        .open(routes!(pages::openapi))
        .open(routes!(docs::docs))
        .open(routes!(pages::index))
}

/// The routes so far.
struct Routes {
    app: App,
    router: OpenApiRouter,
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that registers routes")]
impl Routes {
    fn new(app: App) -> Routes {
        Routes { app, router: OpenApiRouter::with_openapi(document::empty()) }
    }

    /// Adds routes for whoever has `permission`. Methods that do not exist are answered 405 without asking who calls.
    fn guarded(self, permission: Permission, mut routes: UtoipaMethodRouter<Guarded>) -> Routes {
        document::demand(&mut routes.1, permission);
        let door = from_fn_with_state((self.app.clone(), permission), guard);
        let routes = routes.map(|methods| methods.route_layer(door)).with_state(Guarded(self.app.clone()));
        Routes { router: self.router.routes(routes), ..self }
    }

    /// Adds routes for everybody.
    fn open(self, mut routes: UtoipaMethodRouter<App>) -> Routes {
        document::demand_nothing(&mut routes.1);
        let routes = routes.with_state(self.app.clone());
        Routes { router: self.router.routes(routes), ..self }
    }

    fn finish(self) -> (Router, OpenApi) {
        let (router, mut document) = self.router.split_for_parts();
        document::complete(&mut document);
        (router, document)
    }
}
