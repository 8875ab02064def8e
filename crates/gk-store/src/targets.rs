//! Targets: the ports that Prometheus is told of.
//!
//! They go by what is reserved, not by who listens: a service that is down stays a target, so that somebody notices. All
//! of them come at once, because Prometheus takes an answer for the whole; beyond [`TargetGroup::MOST`] they are refused
//! rather than cut short.
//!
//! Reservations are read by their index, and of what is observed only their ports: a fleet of a million listeners costs as
//! much as what is reserved there.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use gk_model::discovery::TargetGroup;
use gk_model::id::InstanceId;
use gk_model::instance::Instance;
use gk_model::port::{PortRange, Protocol};
use gk_model::port_state::State;
use gk_model::query::{InstanceQuery, Limit, PortQuery, TargetQuery};
use gk_model::reservation::Reservation;
use gk_model::time::Timestamp;

use crate::error::{Error, Refusal};
use crate::ports::{lets_through, show};
use crate::space::Space;
use crate::tx::Reader;

/// The targets found so far.
struct Found {
    groups: Vec<TargetGroup>,
    now: Timestamp,
    instances: HashMap<InstanceId, Instance>,
}

impl Found {
    fn instance(&mut self, reader: &mut Reader<'_>, id: InstanceId) -> Result<&Instance, Error> {
        Ok(match self.instances.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(reader.get_instance(&id.into(), self.now)?),
        })
    }

    fn add(&mut self, group: Option<TargetGroup>) -> Result<(), Error> {
        self.groups.extend(group);
        if self.groups.len() > TargetGroup::MOST {
            return Err(Refusal::TooManyTargets { most: TargetGroup::MOST }.into());
        }
        Ok(())
    }
}

impl Reader<'_> {
    /// TCP ports that are reserved for a service, on each instance that they are held for; where a state is asked for,
    /// those in this state, for whatever they are reserved or not.
    ///
    /// # Errors
    /// [`Refusal::TooManyTargets`].
    pub fn list_targets(&mut self, query: &TargetQuery, now: Timestamp) -> Result<Vec<TargetGroup>, Error> {
        let mut found = Found { groups: Vec::new(), now, instances: HashMap::new() };
        match query.state {
            // These are kept, and no reservation leads to them.
            Some(State::Conflict | State::Unreserved) => self.add_drifting(query, &mut found)?,
            Some(State::Reserved | State::InUse | State::Free) | None => {
                self.add_reserved(query, &mut found)?;
            }
        }
        Ok(found.groups)
    }

    fn add_drifting(&mut self, query: &TargetQuery, found: &mut Found) -> Result<(), Error> {
        let query = PortQuery::from(query.clone());
        let mut query = PortQuery { protocol: Some(Protocol::Tcp), limit: Some(Limit::MAX), ..query };
        loop {
            let page = self.list_ports(None, &query, found.now)?;
            for state in &page.items {
                let group = TargetGroup::of(found.instance(self, state.instance.id)?, state);
                found.add(group)?;
            }
            match page.next {
                None => return Ok(()),
                next => query.cursor = next,
            }
        }
    }

    fn add_reserved(&mut self, query: &TargetQuery, found: &mut Found) -> Result<(), Error> {
        let mut after = (String::new(), 0);
        loop {
            let most = Limit::MAX.get();
            let held = self.list_live_tcp(query, query.state.is_some(), (&after.0, after.1), most)?;
            let Some(last) = held.last() else { return Ok(()) };
            after = (Space::held_for(last.instance.as_ref()).to_string(), last.first_port.get());
            for held in held {
                match &held.instance {
                    Some(link) => self.add_ports(link.id, &held, query, found)?,
                    None => self.add_everywhere(&held, query, found)?,
                }
            }
        }
    }

    /// The ports of what is held for all instances: on each of them.
    fn add_everywhere(
        &mut self,
        held: &Reservation,
        query: &TargetQuery,
        found: &mut Found,
    ) -> Result<(), Error> {
        let (label, limit) = (query.label.clone(), Some(Limit::MAX));
        let mut joined = InstanceQuery { label, limit, ..InstanceQuery::default() };
        loop {
            let page = self.list_instances(&joined, found.now)?;
            for instance in page.items {
                let id = instance.id;
                found.instances.insert(id, instance);
                self.add_ports(id, held, query, found)?;
            }
            match page.next {
                None => return Ok(()),
                next => joined.cursor = next,
            }
        }
    }

    fn add_ports(
        &mut self,
        id: InstanceId,
        held: &Reservation,
        query: &TargetQuery,
        found: &mut Found,
    ) -> Result<(), Error> {
        let instance = found.instance(self, id)?.clone();
        let Some(ports) = overlap(held.ports(), query.port) else { return Ok(()) };
        if query.label.as_ref().is_some_and(|label| !label.matches(&instance.labels)) {
            return Ok(());
        }
        let filters = PortQuery::from(query.clone());
        for ((protocol, port), joined) in self.join_stretch(id, Protocol::Tcp, ports)?.joined {
            let state = show(&instance, protocol, port, joined);
            if lets_through(&filters, &state) {
                found.add(TargetGroup::of(&instance, &state))?;
            }
        }
        Ok(())
    }
}

/// The ports of a reservation that are asked for.
fn overlap(held: PortRange, asked: Option<PortRange>) -> Option<PortRange> {
    let Some(asked) = asked else { return Some(held) };
    PortRange::new(held.first().max(asked.first()), held.last().min(asked.last())).ok()
}
