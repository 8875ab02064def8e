//! Limits of tokens: how far an actor reaches, within what its role allows.
//!
//! Looked at under the writer's lock, because labels change. Most actors have no limits, and cost nothing here.

use gk_model::access::Actor;
use gk_model::id::InstanceId;
use gk_model::labels::Labels;
use gk_model::pool::Pool;
use gk_model::port::PortRange;
use gk_model::port_set::PortSet;
use gk_model::reservation::ReserveRequest;

use crate::error::{Error, Refusal};
use crate::reserve::find_pool;
use crate::tx::Tx;
use crate::value::{Json, values};

impl Tx<'_> {
    /// Refuses an actor that does not reach this instance, or, without one, all of them.
    pub(crate) fn check_reach(&mut self, actor: &Actor, instance: Option<InstanceId>) -> Result<(), Error> {
        let Some(limits) = actor.limits.as_deref().filter(|limits| limits.instances.is_some()) else {
            return Ok(());
        };
        let beyond = |what: String| Err(Refusal::BeyondLimits(what).into());
        let selector = limits.instances.as_ref().map(ToString::to_string).unwrap_or_default();
        let Some(instance) = instance else {
            return beyond(format!("it is for instances with {selector}, and nothing fleet-wide"));
        };
        let row = self.query_one("select labels from instance where id = $1", values![instance])?;
        let labels = row.map(|mut row| row.take::<Json<Labels>>()).transpose()?;
        match labels {
            Some(Json(labels)) if limits.allow_instance(&labels) => Ok(()),
            Some(Json(labels)) if labels.is_empty() => {
                beyond(format!("it is for instances with {selector}, and this one has no labels"))
            }
            Some(Json(labels)) => {
                beyond(format!("it is for instances with {selector}, and this one has {labels}"))
            }
            None => Err(Refusal::NoSuchInstance(instance.into()).into()),
        }
    }
}

/// The pool that an actor draws from: the one it asks for, or the first it may use.
pub(crate) fn choose_pool(actor: &Actor, request: &ReserveRequest) -> Result<Pool, Refusal> {
    let Some(limits) = actor.limits.as_deref() else { return find_pool(request.pool.as_ref()) };
    let pool = find_pool(request.pool.as_ref().or_else(|| limits.pools.first()))?;
    if !limits.allow_pool(&pool.name) {
        return Err(Refusal::BeyondLimits(format!("pool {} is not one of its pools", pool.name)));
    }
    Ok(pool)
}

/// Refuses numbers outside the pools that an actor may use.
pub(crate) fn check_numbers(actor: &Actor, numbers: PortRange) -> Result<(), Refusal> {
    let Some(limits) = actor.limits.as_deref().filter(|limits| !limits.pools.is_empty()) else {
        return Ok(());
    };
    let mut allowed = PortSet::default();
    for pool in limits.pools.iter().filter_map(|name| find_pool(Some(name)).ok()) {
        allowed.insert_all(&pool.ports());
    }
    match numbers.ports().find(|port| !allowed.contains(*port)) {
        Some(port) => Err(Refusal::BeyondLimits(format!("{port} is in none of its pools"))),
        None => Ok(()),
    }
}
