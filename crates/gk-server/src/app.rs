//! What every handler can reach: the store, the clock, and who is trusted at the Unix socket.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use gk_model::text::Subject;
use gk_model::time::Timestamp;
use gk_store::{Retention, Store};

use crate::crowd::Crowd;
use crate::docs::Docs;
use crate::hosts::Hosts;
use crate::idempotency::InFlight;
use crate::metrics::{Contacts, Traffic};
use crate::pages::Document;
use crate::proxy::Cidr;
use crate::rates::{RateLimit, Rates};
use crate::serve::max_connections;
use crate::tls::Tls;
use crate::watch::Feed;

/// Tells the time. A value, so that tests can set it; the binary passes `Timestamp::from_clock`.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What the server is made from.
#[derive(Clone)]
pub struct Config {
    /// The open store. [`run`](crate::run) closes it at the end.
    pub store: Store,
    /// The clock that requests are stamped with.
    pub clock: Clock,
    /// The accounts, by uid, that are admitted as admin at the Unix socket without a token, and the subject each one
    /// stands for: root and the server's own account.
    pub local_subjects: HashMap<u32, Subject>,
    /// The version of this Gatekeeper, shown by `/healthz`.
    pub version: &'static str,
    /// Where programs on this machine reach it by HTTP, shown by `/healthz`.
    pub address: Option<SocketAddr>,
    /// Where other machines reach it, shown by `/healthz`.
    pub url: Option<String>,
    /// What the TCP listener shows; without it, that speaks plain HTTP.
    pub tls: Option<Tls>,
    /// The proxies that are believed when they say for whom they speak.
    pub trusted_proxies: Vec<Cidr>,
    /// How much history is kept.
    pub retention: Retention,
    /// The names by which clients may call it.
    pub hosts: Hosts,
    /// How often one client may ask.
    pub rate_limit: RateLimit,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config {
            store: _,
            clock: _,
            local_subjects,
            version,
            address,
            url,
            tls,
            trusted_proxies,
            retention,
            hosts,
            rate_limit,
        } = self;
        f.debug_struct("Config")
            .field("local_subjects", local_subjects)
            .field("version", version)
            .field("address", address)
            .field("url", url)
            .field("tls", tls)
            .field("trusted_proxies", trusted_proxies)
            .field("retention", retention)
            .field("hosts", hosts)
            .field("rate_limit", rate_limit)
            .finish_non_exhaustive()
    }
}

/// The state of every route. Cheap to clone: each layer and each handler of a request has one.
#[derive(Clone)]
pub struct App(Arc<Shared>);

/// For what has a state in it.
impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").finish_non_exhaustive()
    }
}

/// What all of them share.
pub struct Shared {
    pub(crate) store: Store,
    clock: Clock,
    local_subjects: HashMap<u32, Subject>,
    pub(crate) in_flight: InFlight,
    pub(crate) version: &'static str,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) url: Option<String>,
    pub(crate) tls: Option<Tls>,
    pub(crate) started_at: Timestamp,
    pub(crate) hosts: Hosts,
    pub(crate) rates: Rates,
    pub(crate) crowd: Crowd,
    pub(crate) feed: Arc<Feed>,
    pub(crate) contacts: Contacts,
    published: OnceLock<Published>,
}

/// What is known only when every route is registered; and routes are registered with their state.
pub(crate) struct Published {
    pub(crate) document: Document,
    pub(crate) docs: Docs,
    pub(crate) traffic: Traffic,
}

impl App {
    pub(crate) fn new(config: Config) -> App {
        let Config { store, clock, local_subjects, version, address, url, tls, hosts, rate_limit, .. } =
            config;
        let (in_flight, started_at) = (InFlight::default(), clock());
        let (rates, crowd) = (Rates::new(rate_limit), Crowd::of_connections(max_connections()));
        let feed = Feed::new(store.clone());
        App(Arc::new(Shared {
            store,
            clock,
            local_subjects,
            in_flight,
            version,
            address,
            url,
            tls,
            started_at,
            hosts,
            rates,
            crowd,
            feed,
            contacts: Contacts::new(),
            published: OnceLock::new(),
        }))
    }

    /// Once, before anything is answered.
    pub(crate) fn publish(&self, published: Published) {
        assert!(self.published.set(published).is_ok(), "each state is of one router");
    }

    pub(crate) fn published(&self) -> &Published {
        self.published.get().expect("`router` publishes before it hands out the routes")
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// The subject that an account of this machine stands for, if it is admitted without a token.
    pub(crate) fn local_subject(&self, uid: u32) -> Option<&Subject> {
        self.local_subjects.get(&uid)
    }
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}
