//! Limits of tokens: how far an actor reaches, within what its role allows.
//!
//! Looked at under the writer's lock, because labels change. Most actors have no limits, and cost nothing here.

use std::sync::Arc;

use gk_model::access::Actor;
use gk_model::id::InstanceId;
use gk_model::instance::InstanceLink;
use gk_model::labels::Labels;
use gk_model::port::PortRange;
use gk_model::port_set::PortSet;
use gk_model::reservation::{Reservation, ReserveRequest};
use gk_model::text::PoolName;

use crate::error::{Error, Refusal, unlike};
use crate::pool_cache::{Pools, Source};
use crate::tx::Tx;

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
        let nobody = || Error::from(Refusal::NoSuchInstance(instance.into()));
        let labels = self.find_labels(instance)?.ok_or_else(nobody)?;
        if limits.allow_instance(&labels) {
            return Ok(());
        }
        let name = self.look_up([instance].into(), "name")?.remove(&instance).ok_or_else(nobody)?;
        let place = (InstanceLink { id: instance, name }, labels);
        beyond(format!("it is for instances with {selector}, and {}", unlike(Some(&place))))
    }

    /// Refuses an actor that does not reach a reservation of somebody else: neither its instance, nor the pool it was drawn
    /// from, nor its numbers.
    pub(crate) fn check_held(&mut self, actor: &Actor, held: &Reservation) -> Result<(), Error> {
        if actor.limits.is_none() || held.holder == actor.subject {
            return Ok(());
        }
        self.check_reach(actor, held.instance.as_ref().map(|instance| instance.id))?;
        match &held.pool {
            Some(pool) if check_pool(actor, pool).is_ok() => Ok(()),
            _ => Ok(check_numbers(actor, held.ports(), &*self.pools()?)?),
        }
    }
}

/// Refuses labels that would take an instance out of the reach of whoever gives them, or put it where they do not reach.
pub(crate) fn check_labels(actor: &Actor, labels: &Labels) -> Result<(), Refusal> {
    let Some(selector) = actor.limits.as_deref().and_then(|limits| limits.instances.as_ref()) else {
        return Ok(());
    };
    if selector.matches(labels) {
        return Ok(());
    }
    let given = if labels.is_empty() { "no labels".to_owned() } else { labels.to_string() };
    Err(Refusal::BeyondLimits(format!(
        "it is for instances with {selector}, and this one would have {given}"
    )))
}

/// Refuses what reaches beyond any limits, by whoever has some.
pub(crate) fn check_unlimited(actor: &Actor, what: &str) -> Result<(), Refusal> {
    match actor.limits {
        Some(_) => Err(Refusal::BeyondLimits(format!("it is limited, and {what}"))),
        None => Ok(()),
    }
}

/// The pool that an actor draws from: the one it asks for, or the first it may use.
pub(crate) fn choose_pool(
    actor: &Actor,
    request: &ReserveRequest,
    pools: &Pools,
) -> Result<Arc<Source>, Refusal> {
    let own = actor.limits.as_deref().and_then(|limits| limits.pools.first());
    let source = pools.get(request.pool.as_ref().or(own))?;
    check_pool(actor, &source.pool.name)?;
    Ok(source)
}

/// Refuses a pool that an actor may not draw from.
pub(crate) fn check_pool(actor: &Actor, pool: &PoolName) -> Result<(), Refusal> {
    match actor.limits.as_deref().is_none_or(|limits| limits.allow_pool(pool)) {
        true => Ok(()),
        false => {
            let what = format!("pool {pool} is not one of its pools, {}", pools_of(actor));
            Err(Refusal::BeyondLimits(what))
        }
    }
}

/// `red, all`.
fn pools_of(actor: &Actor) -> String {
    let pools = actor.limits.as_deref().into_iter().flat_map(|limits| &limits.pools);
    pools.map(PoolName::as_str).collect::<Vec<_>>().join(", ")
}

/// Refuses numbers outside the pools that an actor may use.
pub(crate) fn check_numbers(actor: &Actor, numbers: PortRange, pools: &Pools) -> Result<(), Refusal> {
    let Some(limits) = actor.limits.as_deref().filter(|limits| !limits.pools.is_empty()) else {
        return Ok(());
    };
    let mut allowed = PortSet::default();
    for source in limits.pools.iter().filter_map(|name| pools.find(name)) {
        allowed.insert_all(&source.ports);
    }
    match numbers.ports().find(|port| !allowed.contains(*port)) {
        Some(port) => {
            Err(Refusal::BeyondLimits(format!("{port} is in none of its pools, {}", pools_of(actor))))
        }
        None => Ok(()),
    }
}
