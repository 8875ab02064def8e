//! Requests: how often each route was asked, what it answered, and how long that took.
//!
//! One table, as large as the document has routes, made when all of them are known, and never grown: whatever clients
//! send, there are no more series than that. A path that is no route, a method that none takes and a status that no code
//! has each count under one name. Counting takes no lock and waits for nobody.
//!
//! The time is until the head of the answer is ready, the body of the request included; so a stream counts as soon as it
//! begins, and not for as long as it lasts.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::MatchedPath;
use axum::http::{Extensions, Method, StatusCode};
use gk_model::problem::Code;
use gk_store::{Distribution, Histogram};
use utoipa::openapi::OpenApi;

use crate::error::status;

/// Upper bounds in seconds: from what is answered from memory to what is given up.
const SECONDS: [f64; 7] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0];

/// The methods of routes. `HEAD` is answered wherever `GET` is.
const METHODS: [Method; 6] =
    [Method::GET, Method::HEAD, Method::PUT, Method::POST, Method::PATCH, Method::DELETE];

/// Stands for a path, method or status that is not in the table.
const OTHER: &str = "other";

/// What is counted, to be shared.
#[derive(Clone)]
pub(crate) struct Traffic(Arc<Table>);

struct Table {
    /// Each route as it was registered, with its place.
    routes: HashMap<String, usize>,
    statuses: Vec<StatusCode>,
    /// One for each route, method and status, those that stand for others included; made when it is needed, because most
    /// never are.
    cells: Vec<OnceLock<Box<Histogram>>>,
}

/// Whose answer is to be counted: a route and a method.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    route: usize,
    method: usize,
}

/// The times of one route, method and status.
pub(crate) struct Series<'t> {
    pub(crate) route: &'t str,
    pub(crate) method: &'t str,
    pub(crate) code: &'t str,
    pub(crate) seconds: Distribution,
}

/// For what has it in a state.
impl fmt::Debug for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traffic").finish_non_exhaustive()
    }
}

impl Traffic {
    /// An empty table for the routes of this document.
    pub(crate) fn of(document: &OpenApi) -> Traffic {
        let routes: HashMap<String, usize> =
            document.paths.paths.keys().cloned().enumerate().map(|(place, route)| (route, place)).collect();
        let refusals = Code::ALL.iter().map(|code| status(*code));
        let successes = [StatusCode::OK, StatusCode::CREATED, StatusCode::NO_CONTENT];
        let statuses: BTreeSet<StatusCode> = successes.into_iter().chain(refusals).collect();
        let count = (routes.len() + 1) * (METHODS.len() + 1) * (statuses.len() + 1);
        let cells = (0..count).map(|_| OnceLock::new()).collect();
        Traffic(Arc::new(Table { routes, statuses: statuses.into_iter().collect(), cells }))
    }

    /// Looks up what a request asks for.
    pub(crate) fn asked(&self, method: &Method, extensions: &Extensions) -> Asked {
        let route = extensions.get::<MatchedPath>().and_then(|path| self.0.routes.get(path.as_str()));
        Asked {
            route: route.copied().unwrap_or(self.0.routes.len()),
            method: METHODS.iter().position(|known| known == method).unwrap_or(METHODS.len()),
        }
    }

    /// Counts an answer.
    pub(crate) fn count(&self, asked: Asked, status: StatusCode, took: Duration) {
        let Table { statuses, cells, .. } = &*self.0;
        let status = statuses.binary_search(&status).unwrap_or(statuses.len());
        let cell = (asked.route * (METHODS.len() + 1) + asked.method) * (statuses.len() + 1) + status;
        cells[cell].get_or_init(|| Box::new(Histogram::new(&SECONDS))).observe_seconds(took);
    }

    /// Everything that was counted, in the order of the table.
    pub(crate) fn series(&self) -> impl Iterator<Item = Series<'_>> {
        let Table { routes, statuses, cells } = &*self.0;
        let mut names: Vec<&str> = vec![OTHER; routes.len() + 1];
        routes.iter().for_each(|(route, place)| names[*place] = route);
        let methods = METHODS.len() + 1;
        cells.iter().enumerate().filter_map(move |(cell, counted)| {
            let (asked, status) = (cell / (statuses.len() + 1), cell % (statuses.len() + 1));
            Some(Series {
                route: names[asked / methods],
                method: METHODS.get(asked % methods).map_or(OTHER, Method::as_str),
                code: statuses.get(status).map_or(OTHER, StatusCode::as_str),
                seconds: counted.get()?.snapshot(),
            })
        })
    }
}
