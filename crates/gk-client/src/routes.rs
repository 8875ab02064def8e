//! One method per route of the API.

use gk_model::contact::{Contact, ContactAnswer};
use gk_model::drift::Drift;
use gk_model::health::Health;
use gk_model::history::History;
use gk_model::id::{InstanceId, InstanceRef, ReservationId, TokenId};
use gk_model::ignore::{Ignore, IgnoreSpec};
use gk_model::instance::{Instance, InstancePatch, JoinRequest};
use gk_model::paths;
use gk_model::pool::{PoolChange, PoolSpec, PoolStatus};
use gk_model::port::PortRange;
use gk_model::port_state::PortState;
use gk_model::protection::ReservedPorts;
use gk_model::query::{
    DriftQuery, EventQuery, HistoryQuery, IgnoreQuery, InstanceQuery, Page, PoolQuery, PortQuery,
    ReservationQuery, TokenQuery,
};
use gk_model::reservation::{RenewRequest, Reservation, ReservationPatch, ReserveRequest, Reserved};
use gk_model::status::Status;
use gk_model::text::{IgnoreName, PoolName};
use gk_model::time::Timestamp;
use gk_model::token::{CreatedToken, Token, TokenRequest, Whoami};
use gk_model::watch::EventPage;
use serde::Serialize;

use crate::client::Client;
use crate::error::ClientError;
use crate::exchange::Call;

/// The answer to a join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The instance as the server knows it now.
    pub instance: Instance,
    /// Whether it had joined before and only its facts are new.
    pub refreshed: bool,
}

const CREATED: u16 = 201;

#[derive(Serialize)]
struct NoQuery {}

#[derive(Serialize)]
struct LeaveQuery {
    release: Option<bool>,
}

#[derive(Serialize)]
struct ReleaseQuery {
    force: Option<bool>,
    ports: Option<PortRange>,
}

#[derive(Serialize)]
struct ForceQuery {
    force: Option<bool>,
}

/// A flag is written when it is set, and left out otherwise.
fn flag(set: bool) -> Option<bool> {
    set.then_some(true)
}

/// Every method fails with [`ClientError`] alone; what the server may refuse is in the API's description.
impl Client {
    /// Joins, or refreshes the facts of an instance that has joined.
    pub fn join(&self, request: &JoinRequest) -> Result<Joined, ClientError> {
        let answer = self.exchange(&Call::post(paths::INSTANCES, request))?;
        Ok(Joined { instance: self.value(&answer)?, refreshed: answer.status != CREATED })
    }

    /// A page of instances.
    pub fn list_instances(&self, query: &InstanceQuery) -> Result<Page<Instance>, ClientError> {
        self.fetch(&Call::get(paths::INSTANCES, query))
    }

    /// One instance.
    pub fn get_instance(&self, instance: &InstanceRef) -> Result<Instance, ClientError> {
        self.fetch(&Call::get(&paths::instance(instance), &NoQuery {}))
    }

    /// Changes an instance.
    pub fn update_instance(
        &self,
        instance: &InstanceRef,
        patch: &InstancePatch,
    ) -> Result<Instance, ClientError> {
        self.fetch(&Call::patch(&paths::instance(instance), patch))
    }

    /// Changes an instance if it is still at this version (412 otherwise).
    pub fn update_instance_version(
        &self,
        instance: &InstanceRef,
        patch: &InstancePatch,
        version: u64,
    ) -> Result<Instance, ClientError> {
        self.fetch(&Call::patch(&paths::instance(instance), patch).if_version(Some(version)))
    }

    /// Takes an instance out; with `release`, its reservations too.
    pub fn leave_instance(&self, instance: &InstanceRef, release: bool) -> Result<(), ClientError> {
        let query = LeaveQuery { release: flag(release) };
        self.exchange(&Call::delete(&paths::instance(instance), &query)).map(drop)
    }

    /// Sends a contact of an instance. Repeating one is harmless, by the rules of [`gk_model::contact`].
    pub fn contact(&self, instance: InstanceId, contact: &Contact) -> Result<ContactAnswer, ClientError> {
        self.fetch(&Call::post_repeatable(&paths::contact(&instance.into()), contact))
    }

    /// A page of the port states of one instance.
    pub fn list_instance_ports(
        &self,
        instance: &InstanceRef,
        query: &PortQuery,
    ) -> Result<Page<PortState>, ClientError> {
        self.fetch(&Call::get(&paths::instance_ports(instance), query))
    }

    /// A page of the port states of the fleet.
    pub fn list_ports(&self, query: &PortQuery) -> Result<Page<PortState>, ClientError> {
        self.fetch(&Call::get(paths::PORTS, query))
    }

    /// A page of what differs from the plan.
    pub fn list_drift(&self, query: &DriftQuery) -> Result<Page<Drift>, ClientError> {
        self.fetch(&Call::get(paths::DRIFT, query))
    }

    /// The fleet in a few numbers.
    pub fn get_status(&self) -> Result<Status, ClientError> {
        self.fetch(&Call::get(paths::STATUS, &NoQuery {}))
    }

    /// A page of ignore rules, by name.
    pub fn list_ignores(&self, query: &IgnoreQuery) -> Result<Page<Ignore>, ClientError> {
        self.fetch(&Call::get(paths::IGNORES, query))
    }

    /// One ignore rule.
    pub fn get_ignore(&self, name: &IgnoreName) -> Result<Ignore, ClientError> {
        self.fetch(&Call::get(&paths::ignore(name), &NoQuery {}))
    }

    /// Makes an ignore rule, or changes it.
    pub fn set_ignore(&self, name: &IgnoreName, rule: &IgnoreSpec) -> Result<Ignore, ClientError> {
        self.fetch(&Call::put(&paths::ignore(name), rule))
    }

    /// Takes an ignore rule away. Answers it as it was.
    pub fn delete_ignore(&self, name: &IgnoreName) -> Result<Ignore, ClientError> {
        self.fetch(&Call::delete(&paths::ignore(name), &NoQuery {}))
    }

    /// The numbers that are reserved on one instance.
    pub fn get_reserved_ports(&self, instance: &InstanceRef) -> Result<ReservedPorts, ClientError> {
        self.fetch(&Call::get(&paths::reserved_ports(instance), &NoQuery {}))
    }

    /// Reserves all that is asked for, or nothing. Sent again under the same key when the answer is lost; when none of
    /// the answers arrives, the reservations may exist.
    pub fn reserve(&self, request: &ReserveRequest) -> Result<Reserved, ClientError> {
        self.fetch(&Call::post(paths::RESERVATIONS, request))
    }

    /// A page of live reservations.
    pub fn list_reservations(&self, query: &ReservationQuery) -> Result<Page<Reservation>, ClientError> {
        self.fetch(&Call::get(paths::RESERVATIONS, query))
    }

    /// One reservation, live or released.
    pub fn get_reservation(&self, id: ReservationId) -> Result<Reservation, ClientError> {
        self.fetch(&Call::get(&paths::reservation(id), &NoQuery {}))
    }

    /// Changes what a reservation says; with `force`, also somebody else's; with a version, only that one.
    pub fn update_reservation(
        &self,
        id: ReservationId,
        patch: &ReservationPatch,
        force: bool,
        version: Option<u64>,
    ) -> Result<Reservation, ClientError> {
        let call = Call::patch(&paths::reservation(id), patch).with(&ForceQuery { force: flag(force) });
        self.fetch(&call.if_version(version))
    }

    /// Sets when a lease ends; with `force`, also somebody else's.
    pub fn renew(
        &self,
        id: ReservationId,
        request: &RenewRequest,
        force: bool,
    ) -> Result<Reservation, ClientError> {
        let call = Call::post(&paths::renew(id), request);
        self.fetch(&call.with(&ForceQuery { force: flag(force) }))
    }

    /// Releases a reservation; with `force`, also somebody else's. Answers it as it was released.
    pub fn release(&self, id: ReservationId, force: bool) -> Result<Reservation, ClientError> {
        self.release_part(id, None, force, None)
    }

    /// Releases a reservation, or some of its ports; with a version, only that one. Answers it as it is then.
    pub fn release_part(
        &self,
        id: ReservationId,
        ports: Option<PortRange>,
        force: bool,
        version: Option<u64>,
    ) -> Result<Reservation, ClientError> {
        let query = ReleaseQuery { force: flag(force), ports };
        self.fetch(&Call::delete(&paths::reservation(id), &query).if_version(version))
    }

    /// A page of intervals, newest first.
    pub fn list_history(&self, query: &HistoryQuery) -> Result<History, ClientError> {
        self.fetch(&Call::get(paths::HISTORY, query))
    }

    /// A page of events, oldest first, and how far the log reached then: behind that a [`Watch`](crate::Watch) goes on.
    pub fn list_events(&self, query: &EventQuery) -> Result<EventPage, ClientError> {
        self.fetch(&Call::get(paths::EVENTS, query))
    }

    /// What the server says of itself, whether its database answers or not.
    pub fn health(&self) -> Result<Health, ClientError> {
        self.fetch(&Call::get(paths::HEALTH, &NoQuery {}))
    }

    /// Whether the server is ready to serve, and what it says of itself.
    pub fn ready(&self) -> Result<Health, ClientError> {
        self.fetch(&Call::get(paths::READY, &NoQuery {}))
    }

    /// The same, with what the server's clock showed, to the second.
    pub fn ready_at(&self) -> Result<(Health, Option<Timestamp>), ClientError> {
        let answer = self.exchange(&Call::get(paths::READY, &NoQuery {}))?;
        Ok((self.value(&answer)?, answer.date))
    }

    /// A page of pools, with how full they are.
    pub fn list_pools(&self, query: &PoolQuery) -> Result<Page<PoolStatus>, ClientError> {
        self.fetch(&Call::get(paths::POOLS, query))
    }

    /// One pool, with how full it is.
    pub fn get_pool(&self, name: &PoolName) -> Result<PoolStatus, ClientError> {
        self.fetch(&Call::get(&paths::pool(name), &NoQuery {}))
    }

    /// Makes a pool what this says; with a version, only if it is still at that one (412 otherwise).
    pub fn set_pool(
        &self,
        name: &PoolName,
        spec: &PoolSpec,
        version: Option<u64>,
    ) -> Result<PoolChange, ClientError> {
        self.fetch(&Call::put(&paths::pool(name), spec).if_version(version))
    }

    /// Deletes a pool. Answers it as it was, and what was drawn from it.
    pub fn delete_pool(&self, name: &PoolName) -> Result<PoolChange, ClientError> {
        self.fetch(&Call::delete(&paths::pool(name), &NoQuery {}))
    }

    /// A page of tokens, newest first; their secrets are nowhere.
    pub fn list_tokens(&self, query: &TokenQuery) -> Result<Page<Token>, ClientError> {
        self.fetch(&Call::get(paths::TOKENS, query))
    }

    /// Makes a token. With the hash of a secret of the caller's own, a lost answer is asked for again.
    pub fn create_token(&self, request: &TokenRequest) -> Result<CreatedToken, ClientError> {
        self.fetch(&Call::post(paths::TOKENS, request))
    }

    /// Ends a token. Answers it as it ended.
    pub fn revoke_token(&self, id: TokenId) -> Result<Token, ClientError> {
        self.fetch(&Call::delete(&paths::token(id), &NoQuery {}))
    }

    /// Who the server takes the caller for.
    pub fn whoami(&self) -> Result<Whoami, ClientError> {
        self.fetch(&Call::get(paths::WHOAMI, &NoQuery {}))
    }
}
