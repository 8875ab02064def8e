//! Reserving: the next free port of a pool, or one by number.
//!
//! This runs under the writer's lock, so looking and then taking is one step for the whole cluster. Everything is
//! checked before anything is written, and the primary key of `claim` is the net below.

use std::collections::BTreeSet;

use gk_model::access::Actor;
use gk_model::history::{EventKind, IntervalKind};
use gk_model::id::{InstanceId, ReservationId};
use gk_model::instance::InstanceLink;
use gk_model::listener::{Listener, Netns};
use gk_model::pool::Pool;
use gk_model::port::{Port, PortRange};
use gk_model::reservation::{Reservation, ReserveRequest, Scope};
use gk_model::text::PoolName;
use gk_model::time::Timestamp;

use crate::error::{Error, Refusal, StoreError};
use crate::history::NewInterval;
use crate::instances::link;
use crate::tx::{NewEvent, Tx};
use crate::value::values;

/// How many free ports a refusal offers.
const ALTERNATIVES: usize = 3;

impl Tx<'_> {
    /// Reserves a port for `actor`.
    ///
    /// # Errors
    /// [`Refusal::NoSuchInstance`], [`Refusal::InstanceLeft`], [`Refusal::NoSuchPool`], [`Refusal::PoolExhausted`];
    /// by number also [`Refusal::PortReserved`], [`Refusal::PortInUse`], [`Refusal::NothingToAdopt`] and
    /// [`Refusal::SeveralOwners`].
    pub fn reserve(
        &mut self,
        actor: &Actor,
        request: &ReserveRequest,
        now: Timestamp,
    ) -> Result<Reservation, Error> {
        self.check_credential(actor)?;
        let instance = link(&self.get_joined(&request.instance, now)?);
        let pool = find_pool(request.pool.as_ref())?;
        let port = match request.port {
            Some(port) => self.check_port(&instance, request, port, &pool, now)?,
            None => self.pick_port(&instance, request, &pool, now)?,
        };
        let reservation = Reservation {
            id: ReservationId::generate(now),
            instance,
            scope: Scope::Instance,
            protocol: request.protocol,
            first_port: port,
            last_port: port,
            name: request.name.clone(),
            service: request.service.clone(),
            holder: actor.subject.clone(),
            note: request.note.clone(),
            pool: request.port.is_none().then_some(pool.name),
            created_at: now,
            released_at: None,
            released_by: None,
            version: 1,
        };
        let kind = if request.adopt { EventKind::Adopted } else { EventKind::Reserved };
        self.create_reservation(kind, &reservation)?;
        Ok(reservation)
    }

    fn pick_port(
        &mut self,
        instance: &InstanceLink,
        request: &ReserveRequest,
        pool: &Pool,
        now: Timestamp,
    ) -> Result<Port, Error> {
        if let Some(port) = self.list_free(instance.id, request, pool, now, 1)?.first() {
            return Ok(*port);
        }
        let map = self.port_map(instance.id, request.protocol, now)?;
        let resting = map.count_resting(&pool.ports(), &request.busy);
        let (pool, protocol) = (pool.name.clone(), request.protocol);
        Err(Refusal::PoolExhausted { pool, protocol, instance: instance.clone(), resting }.into())
    }

    fn list_free(
        &mut self,
        instance: InstanceId,
        request: &ReserveRequest,
        pool: &Pool,
        now: Timestamp,
        most: usize,
    ) -> Result<Vec<Port>, StoreError> {
        let map = self.port_map(instance, request.protocol, now)?;
        Ok(map.list_free(&pool.ports(), &request.busy, now, most))
    }

    /// Whether a port may be taken by number: not reserved, and not listened on by anybody but the rightful one.
    fn check_port(
        &mut self,
        instance: &InstanceLink,
        request: &ReserveRequest,
        port: Port,
        pool: &Pool,
        now: Timestamp,
    ) -> Result<Port, Error> {
        let protocol = request.protocol;
        let mut listeners = self.list_listeners(instance.id, Some(port.into()), Some(protocol))?;
        listeners.retain(|listener| listener.key.netns == Netns::Home);
        if self.port_map(instance.id, protocol, now)?.is_claimed(port) {
            let alternatives = self.list_free(instance.id, request, pool, now, ALTERNATIVES)?;
            let holder = Box::new(self.get_claimant(instance.id, protocol, port)?);
            return Err(Refusal::PortReserved { port, protocol, holder, listeners, alternatives }.into());
        }
        let instance = instance.clone();
        match (request.adopt, listeners.is_empty()) {
            (false, true) => Ok(port),
            (false, false) => {
                let alternatives = self.list_free(instance.id, request, pool, now, ALTERNATIVES)?;
                Err(Refusal::PortInUse { port, protocol, instance, listeners, alternatives }.into())
            }
            (true, true) => Err(Refusal::NothingToAdopt { port, protocol, instance }.into()),
            (true, false) => match owner_groups(&listeners) {
                owners if owners.len() > 1 => Err(Refusal::SeveralOwners { port, protocol, owners }.into()),
                _ => Ok(port),
            },
        }
    }

    fn create_reservation(&mut self, kind: EventKind, made: &Reservation) -> Result<(), Error> {
        let seq = self.record(NewEvent {
            at: made.created_at,
            recorded_at: made.created_at,
            kind,
            instance: made.instance.id,
            ports: Some((made.protocol, made.ports())),
            actor: &made.holder,
            reservation: Some(made.id),
            listener: None,
            message: describe(kind, made),
        })?;
        self.later(
            "insert into reservation (id, instance, scope, protocol, first_port, last_port, name, service, holder, \
             note, pool, created_at, version, began_seq) \
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
            values![
                made.id,
                made.instance.id,
                made.scope,
                made.protocol,
                made.first_port,
                made.last_port,
                made.name.as_ref(),
                made.service.as_ref(),
                &made.holder,
                made.note.as_ref(),
                made.pool.as_ref(),
                made.created_at,
                made.version,
                seq,
            ],
        )?;
        self.claim(made)?;
        self.begin_interval(NewInterval {
            seq,
            kind: IntervalKind::Held,
            instance: made.instance.id,
            protocol: made.protocol,
            ports: made.ports(),
            began_at: made.created_at,
            reservation: Some(made),
            listener: None,
        })?;
        Ok(())
    }

    fn claim(&mut self, made: &Reservation) -> Result<(), StoreError> {
        for port in made.ports().ports() {
            self.later(
                "insert into claim (space, protocol, port, reservation) values ($1, $2, $3, $4)",
                values![made.instance.id, made.protocol, port, made.id],
            )?;
        }
        if let Some(map) = self.maps.loaded(made.instance.id, made.protocol) {
            map.claim(made.ports());
        }
        Ok(())
    }

    /// Gives the ports of a reservation back, keeping them from dynamic picks for a while.
    pub(crate) fn unclaim(&mut self, ended: &Reservation, now: Timestamp) -> Result<(), StoreError> {
        let until = now.plus(Pool::built_in().quarantine);
        // By primary key first: the claims of a whole fleet are in this table.
        self.later(
            "delete from claim where space = $1 and protocol = $2 and port between $3 and $4 and reservation = $5",
            values![ended.instance.id, ended.protocol, ended.first_port, ended.last_port, ended.id],
        )?;
        for port in ended.ports().ports() {
            self.later(
                "insert into quarantine (space, protocol, port, until_at) values ($1, $2, $3, $4) \
                 on conflict (space, protocol, port) do update set until_at = excluded.until_at",
                values![ended.instance.id, ended.protocol, port, until],
            )?;
        }
        if let Some(map) = self.maps.loaded(ended.instance.id, ended.protocol) {
            map.release(ended.ports(), until);
        }
        Ok(())
    }
}

/// Pools of one's own come with the reservations issue; until then there is the built-in one.
fn find_pool(name: Option<&PoolName>) -> Result<Pool, Refusal> {
    let built_in = Pool::built_in();
    match name {
        Some(name) if *name != built_in.name => Err(Refusal::NoSuchPool(name.clone())),
        _ => Ok(built_in),
    }
}

/// The distinct owners of some listeners, in words: by unit, else by container, else by executable and account, else by
/// the account that opened the socket, which is all that an unprivileged agent sees.
fn owner_groups(listeners: &[Listener]) -> Vec<String> {
    let groups = listeners.iter().flat_map(|listener| match (&listener.unit, &listener.container) {
        (Some(unit), _) => vec![unit.to_string()],
        (None, Some(container)) => vec![format!("{} container {}", container.engine, container.id)],
        (None, None) if listener.owners.is_empty() => vec![listener.describe()],
        (None, None) => {
            let owners = listener.owners.iter();
            owners
                .map(|owner| format!("{} of {}", owner.exe.as_ref().unwrap_or(&owner.name), owner.account))
                .collect()
        }
    });
    groups.collect::<BTreeSet<String>>().into_iter().collect()
}

fn describe(kind: EventKind, made: &Reservation) -> String {
    let service = made.service.as_ref().map(|service| format!(" for {service}")).unwrap_or_default();
    let name = made.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let ports: PortRange = made.ports();
    format!("{ports}/{} {kind}{service}{name} by {}", made.protocol, made.holder)
}
