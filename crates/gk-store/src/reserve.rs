//! Reserving: what a request asks for, as slots; all of them are made, or none.
//!
//! This runs under the writer's lock, so looking and then taking is one step for the whole cluster. Everything is
//! checked before anything is written, and the primary key of `claim` is the net below.
//!
//! A *slot* is a run of contiguous ports; there is one for each name that a request gives, and one if it gives none. A
//! *cell* is an instance and a protocol, or all instances and a protocol; every slot is reserved in every cell, with the
//! same numbers. Which numbers is found in `pick`, and what `ensure` finds again in `ensure`.

use std::sync::Arc;

use gk_model::access::{Actor, Authority};
use gk_model::history::{EventKind, IntervalKind};
use gk_model::id::{GroupId, ReservationId};
use gk_model::instance::InstanceLink;
use gk_model::port::{Port, PortRange, Protocol};
use gk_model::reservation::{Protocols, Reservation, ReserveRequest, Reserved, Scope};
use gk_model::text::{PoolName, PortName, Subject};
use gk_model::time::Timestamp;

use crate::error::{Error, Refusal, StoreError};
use crate::history::NewInterval;
use crate::limits::{check_numbers, choose_pool};
use crate::pool_cache::Source;
use crate::space::Space;
use crate::tx::{NewEvent, Tx};
use crate::value::{Json, values};

/// A request, with everything found that it names.
pub(crate) struct Wanted<'a> {
    pub(crate) request: &'a ReserveRequest,
    pub(crate) actor: &'a Actor,
    pub(crate) holder: &'a Subject,
    /// The pool that it draws from.
    pub(crate) source: Arc<Source>,
    /// That of the request, or the wider one of its pool.
    pub(crate) scope: Scope,
    pub(crate) cells: Vec<Cell>,
    pub(crate) now: Timestamp,
    /// The deadline of a lease.
    pub(crate) expires_at: Option<Timestamp>,
}

impl Wanted<'_> {
    /// How many contiguous ports a slot has.
    pub(crate) fn count(&self) -> u16 {
        self.request.count.get()
    }

    /// How many ports all slots have together.
    pub(crate) fn total(&self) -> u16 {
        u16::try_from(self.request.total()).unwrap_or(u16::MAX)
    }

    /// The numbers that a slot was asked to have: several slots follow each other.
    pub(crate) fn explicit(&self, index: usize) -> Option<PortRange> {
        let offset = u16::try_from(index * usize::from(self.count())).ok()?;
        let first = self.request.port?.get().checked_add(offset).and_then(Port::new)?;
        PortRange::from_count(first, self.count())
    }
}

/// One place that a slot is reserved in.
#[derive(Clone)]
pub(crate) struct Cell {
    /// None for all of them.
    pub(crate) instance: Option<InstanceLink>,
    pub(crate) protocol: Protocol,
}

impl Cell {
    /// For whom it is held.
    pub(crate) fn place(&self) -> Space {
        Space::held_for(self.instance.as_ref())
    }

    /// Where its ports are claimed.
    pub(crate) fn space(&self, scope: Scope) -> Space {
        Space::of(scope, self.instance.as_ref())
    }
}

/// One run of contiguous ports, on its way to being reserved.
pub(crate) struct Slot<'a> {
    pub(crate) name: Option<&'a PortName>,
    /// What `ensure` found live, cell by cell.
    pub(crate) kept: Vec<Option<Reservation>>,
    /// The numbers, once they are known.
    pub(crate) ports: Option<PortRange>,
    /// The pool that they were drawn from.
    pub(crate) pool: Option<PoolName>,
}

impl Tx<'_> {
    /// Reserves a port, or a range of them, for `actor`.
    ///
    /// # Errors
    /// Those of [`Tx::reserve_group`]; [`Refusal::Contradiction`] for a request for several reservations.
    pub fn reserve(
        &mut self,
        actor: &Actor,
        request: &ReserveRequest,
        now: Timestamp,
    ) -> Result<Reservation, Error> {
        if request.names.len() > 1 || request.on.is_some() || request.protocol == Protocols::Both {
            return Err(Refusal::contradiction("names", "this asks for several reservations at once").into());
        }
        let made = self.reserve_group(actor, request, now)?.items.into_iter().next();
        Ok(made.expect("such a request has one slot in one cell"))
    }

    /// Reserves all that a request asks for, or nothing: by name, then by instance, then by protocol. A dry run does all
    /// of it but the writing, and answers what would have been made.
    ///
    /// # Errors
    /// [`Refusal::Contradiction`], [`Refusal::NoSuchInstance`], [`Refusal::InstanceLeft`], [`Refusal::NobodyChosen`],
    /// [`Refusal::BeyondOwnInstance`], [`Refusal::BeyondLimits`], [`Refusal::NoSuchPool`],
    /// [`Refusal::PoolNotForInstance`], [`Refusal::PoolExhausted`]; by number also [`Refusal::PortReserved`],
    /// [`Refusal::PortInUse`], [`Refusal::NothingToAdopt`] and [`Refusal::SeveralOwners`]; with `ensure` also
    /// [`Refusal::EnsureDiffers`].
    pub fn reserve_group(
        &mut self,
        actor: &Actor,
        request: &ReserveRequest,
        now: Timestamp,
    ) -> Result<Reserved, Error> {
        self.check_credential(actor)?;
        request.check().map_err(Refusal::Contradiction)?;
        let wanted = self.find_wanted(actor, request, now)?;
        let mut slots = self.find_slots(&wanted)?;
        self.place_slots(&wanted, &mut slots)?;
        // Nothing was written up to here, and nothing refuses from here on.
        let kept = slots.iter().flat_map(|slot| slot.kept.iter().flatten()).map(|kept| kept.id).collect();
        let dry_run = request.dry_run;
        let items = if dry_run { plan_slots(&wanted, slots) } else { self.create_slots(&wanted, slots)? };
        Ok(Reserved { items, kept, dry_run })
    }

    fn find_wanted<'a>(
        &mut self,
        actor: &'a Actor,
        request: &'a ReserveRequest,
        now: Timestamp,
    ) -> Result<Wanted<'a>, Error> {
        let source = choose_pool(actor, request, &*self.pools()?)?;
        let pool_scope = if request.port.is_none() { source.pool.scope } else { Scope::Instance };
        let is_fleet = request.scope == Scope::Fleet || pool_scope == Scope::Fleet;
        let scope = if is_fleet { Scope::Fleet } else { Scope::Instance };
        let places = self.find_places(request, now)?;
        if is_fleet && request.on.is_some() {
            let what =
                "numbers of that pool are exclusive everywhere: reserve one for one instance or for all";
            return Err(Refusal::contradiction("pool", what).into());
        }
        check_authority(actor, scope, &places)?;
        self.check_limits(actor, request, scope, &places)?;
        let protocols = request.protocol.each();
        let cell = |instance: &Option<InstanceLink>, protocol: &Protocol| Cell {
            instance: instance.clone(),
            protocol: *protocol,
        };
        let cells =
            places.iter().flat_map(|place| protocols.iter().map(move |protocol| cell(place, protocol)));
        let cells = cells.collect();
        let expires_at = match request.ttl_seconds {
            Some(ttl) => Some(ttl.deadline(self.lease_begins(now)?)),
            None => None,
        };
        Ok(Wanted { request, actor, holder: &actor.subject, source, scope, cells, now, expires_at })
    }

    fn check_limits(
        &mut self,
        actor: &Actor,
        request: &ReserveRequest,
        scope: Scope,
        places: &[Option<InstanceLink>],
    ) -> Result<(), Error> {
        if actor.limits.is_none() {
            return Ok(());
        }
        let numbers =
            request.port.and_then(|first| PortRange::from_count(first, u16::try_from(request.total()).ok()?));
        let pools = self.pools()?;
        numbers.map_or(Ok(()), |numbers| check_numbers(actor, numbers, &pools))?;
        if scope == Scope::Fleet {
            self.check_reach(actor, None)?;
        }
        places.iter().try_for_each(|place| self.check_reach(actor, place.as_ref().map(|place| place.id)))
    }

    /// The instances that a request is for; none stands for all. Those that it chooses by their labels, it chooses under
    /// the writer's lock: whoever joins or is labelled meanwhile is one of them, or comes after it.
    fn find_places(
        &mut self,
        request: &ReserveRequest,
        now: Timestamp,
    ) -> Result<Vec<Option<InstanceLink>>, Error> {
        if let Some(instance) = &request.instance {
            return Ok(vec![Some(self.get_member(instance, now)?)]);
        }
        let Some(selector) = &request.on else { return Ok(vec![None]) };
        let chosen = self.list_chosen(selector, ReserveRequest::MOST_INSTANCES)?;
        if chosen.is_empty() {
            return Err(Refusal::NobodyChosen(selector.clone()).into());
        }
        if chosen.len() > usize::from(ReserveRequest::MOST_INSTANCES) {
            let what =
                "that chooses more than the 1000 instances on which one request may reserve: narrow it";
            return Err(Refusal::contradiction("on", what).into());
        }
        if request.total_on(chosen.len()) > ReserveRequest::MOST_PORTS {
            let what = "on all the instances that this chooses, these are more than the 65536 ports that one request takes";
            return Err(Refusal::contradiction("on", what).into());
        }
        Ok(chosen.into_iter().map(Some).collect())
    }

    /// The slots of a request; with `ensure`, with what is held already.
    fn find_slots<'a>(&mut self, wanted: &Wanted<'a>) -> Result<Vec<Slot<'a>>, Error> {
        if wanted.request.ensure {
            return self.find_kept_slots(wanted);
        }
        let names = wanted.request.names().into_iter();
        let empty = |name| Slot { name, kept: vec![None; wanted.cells.len()], ports: None, pool: None };
        Ok(names.map(empty).collect())
    }

    /// Finds the numbers of every slot: those it has, those asked for, those it had, or the next free ones.
    fn place_slots(&mut self, wanted: &Wanted<'_>, slots: &mut [Slot<'_>]) -> Result<(), Error> {
        for (index, slot) in slots.iter_mut().enumerate() {
            let asked_for = wanted.explicit(index);
            let Some(ports) = slot.ports.or(asked_for) else { continue };
            let cells = wanted.cells.iter().zip(&slot.kept);
            let missing: Vec<&Cell> =
                cells.filter(|(_, kept)| kept.is_none()).map(|(cell, _)| cell).collect();
            self.check_range(wanted, ports, &missing)?;
            slot.ports = Some(ports);
        }
        if slots.iter().all(|slot| slot.ports.is_some()) {
            return Ok(());
        }
        self.check_source(wanted)?;
        if wanted.request.ensure {
            self.place_again(wanted, slots)?;
        }
        self.pick_slots(wanted, slots)
    }

    fn create_slots(&mut self, wanted: &Wanted<'_>, slots: Vec<Slot<'_>>) -> Result<Vec<Reservation>, Error> {
        let is_group = slots.len() * wanted.cells.len() > 1;
        let group = is_group.then(|| group_of(&slots).unwrap_or_else(|| GroupId::generate(wanted.now)));
        let kind = if wanted.request.adopt { EventKind::Adopted } else { EventKind::Reserved };
        if wanted.expires_at.is_some() {
            self.begin_leases(wanted.now)?;
        }
        let mut made = Vec::new();
        for slot in slots {
            for (cell, kept) in wanted.cells.iter().zip(&slot.kept) {
                made.push(match kept {
                    Some(kept) => self.keep(wanted, kept)?,
                    None => {
                        let id = ReservationId::generate(wanted.now);
                        let new = Reservation { id, group, version: 1, ..unmade(wanted, cell, &slot) };
                        self.create_reservation(kind, wanted.actor, &new)?;
                        new
                    }
                });
            }
        }
        Ok(made)
    }

    fn create_reservation(
        &mut self,
        kind: EventKind,
        actor: &Actor,
        made: &Reservation,
    ) -> Result<(), Error> {
        let seq = self.record(NewEvent {
            at: made.created_at,
            recorded_at: made.created_at,
            kind,
            instance: Some(Space::held_for(made.instance.as_ref())),
            ports: Some((made.protocol, made.ports())),
            by: actor.into(),
            reservation: Some(made.id),
            listener: None,
            message: describe(kind, made),
        })?;
        self.insert_reservation(made, seq)?;
        self.claim(made)?;
        self.begin_interval(NewInterval {
            seq,
            kind: IntervalKind::Held,
            instance: Space::held_for(made.instance.as_ref()),
            protocol: made.protocol,
            ports: made.ports(),
            began_at: made.created_at,
            reservation: Some(made),
            listener: None,
        })?;
        // By number nobody but who is adopted listens there, and picked is only where nobody does.
        Ok(self.settle_reservation(made, made.ports(), made.created_at)?)
    }

    /// Writes the row of a new reservation, whose interval began with the event of this number.
    pub(crate) fn insert_reservation(&mut self, made: &Reservation, seq: u64) -> Result<(), StoreError> {
        self.counts().add_reservation(made, 1);
        self.later(
            "insert into reservation (id, instance, scope, protocol, first_port, last_port, name, service, holder, \
             note, pool, created_at, version, began_seq, expires_at, group_id, split_from, labels, expect, idle_since, \
             ttl_seconds, renew_while_listening, warn_at) \
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, \
             $21, $22, $23)",
            values![
                made.id,
                Space::held_for(made.instance.as_ref()),
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
                made.expires_at,
                made.group,
                made.split_from,
                Some(&made.labels).filter(|labels| !labels.is_empty()).map(Json),
                made.expect.as_ref().map(Json),
                made.idle_since,
                made.ttl_seconds,
                made.renew_while_listening,
                made.ttl_seconds.zip(made.expires_at).map(|(ttl, end)| ttl.warns_at(end)),
            ],
        )
    }
}

/// An instance's own credential is limited to it, and a number that is exclusive everywhere concerns the others.
fn check_authority(actor: &Actor, scope: Scope, places: &[Option<InstanceLink>]) -> Result<(), Refusal> {
    let Authority::Instance(own, _) = actor.authority else { return Ok(()) };
    let is_own = |place: &Option<InstanceLink>| place.as_ref().is_some_and(|place| place.id == own);
    match scope == Scope::Instance && places.iter().all(is_own) {
        true => Ok(()),
        false => Err(Refusal::BeyondOwnInstance),
    }
}

/// What would be made, and what would be kept as it would be then.
fn plan_slots(wanted: &Wanted<'_>, slots: Vec<Slot<'_>>) -> Vec<Reservation> {
    let known = group_of(&slots);
    let of_slot = |slot: Slot<'_>| {
        let cells = wanted.cells.iter().zip(&slot.kept);
        let planned = cells.map(|(cell, kept)| match kept {
            Some(kept) => wanted.kept(kept),
            None => Reservation { group: known, ..unmade(wanted, cell, &slot) },
        });
        planned.collect::<Vec<_>>()
    };
    slots.into_iter().flat_map(of_slot).collect()
}

/// The group that what is kept belongs to.
fn group_of(slots: &[Slot<'_>]) -> Option<GroupId> {
    slots.iter().flat_map(|slot| slot.kept.iter().flatten()).find_map(|kept| kept.group)
}

/// A slot in a cell, as the reservation that it becomes; one without id, group and version.
fn unmade(wanted: &Wanted<'_>, cell: &Cell, slot: &Slot<'_>) -> Reservation {
    let ports = slot.ports.expect("every slot was placed, or the request refused");
    Reservation {
        id: ReservationId::UNMADE,
        instance: cell.instance.clone(),
        scope: wanted.scope,
        protocol: cell.protocol,
        first_port: ports.first(),
        last_port: ports.last(),
        name: slot.name.cloned(),
        service: wanted.request.service.clone(),
        holder: wanted.holder.clone(),
        note: wanted.request.note.clone(),
        labels: wanted.request.labels.clone(),
        expect: wanted.request.expect.clone().filter(|expect| !expect.is_none()),
        pool: slot.pool.clone(),
        created_at: wanted.now,
        expires_at: wanted.expires_at,
        ttl_seconds: wanted.request.ttl_seconds,
        renew_while_listening: wanted.request.renew_while_listening,
        group: None,
        split_from: None,
        idle_since: (!wanted.request.adopt).then_some(wanted.now),
        released_at: None,
        released_by: None,
        version: 0,
    }
}

fn describe(kind: EventKind, made: &Reservation) -> String {
    let fleet = if made.scope == Scope::Fleet { " fleet-wide" } else { "" };
    let service = made.service.as_ref().map(|service| format!(" for {service}")).unwrap_or_default();
    let name = made.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let lease = made.expires_at.map(|end| format!(", until {end}")).unwrap_or_default();
    format!("{}/{} {kind}{fleet}{service}{name} by {}{lease}", made.ports(), made.protocol, made.holder)
}
