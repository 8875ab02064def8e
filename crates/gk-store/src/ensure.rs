//! Ensure: the same caller, asking for the same thing, gets the same reservation again (rule 6 of the domain).
//!
//! What makes it the same is subject, instance, service, name and protocol. What is live is given back as it is; cells
//! that are missing are filled in with the same numbers. What was released is made anew with the number it had, while
//! that is free: it may rest, if it rests from this very subject. A number that the request could not draw any more is not
//! given again: what is held stays held, what is made is made by the rules of now.

use gk_model::history::EventKind;
use gk_model::lease::LeaseTime;
use gk_model::port::PortRange;
use gk_model::reservation::Reservation;
use gk_model::text::{PoolName, PortName, ServiceName};
use gk_model::time::Timestamp;

use crate::error::{Error, Refusal, StoreError};
use crate::limits::{check_numbers, check_pool};
use crate::pool_cache::Pools;
use crate::reserve::{Cell, Slot, Wanted};
use crate::space::Space;
use crate::tx::Tx;
use crate::value::values;

impl Tx<'_> {
    /// The slots of a request, each with what is held for it already and the numbers that this fixes.
    pub(crate) fn find_kept_slots<'a>(&mut self, wanted: &Wanted<'a>) -> Result<Vec<Slot<'a>>, Error> {
        let service = service_of(wanted)?;
        let mut places: Vec<(Space, Vec<Reservation>)> = Vec::new();
        for place in wanted.cells.iter().map(Cell::place) {
            if places.iter().all(|(known, _)| *known != place) {
                places.push((place, self.list_live_for(wanted.holder, service, place)?));
            }
        }
        let names = wanted.request.names().into_iter().enumerate();
        let slots = names.map(|(index, name)| {
            let candidates = wanted.cells.iter().map(|cell| {
                let held =
                    places.iter().filter(|(place, _)| *place == cell.place()).flat_map(|(_, held)| held);
                let same = |held: &&Reservation| held.protocol == cell.protocol && held.name.as_ref() == name;
                held.filter(same).collect::<Vec<_>>()
            });
            keep_slot(wanted, index, name, &candidates.collect::<Vec<_>>())
        });
        let slots = slots.collect::<Result<Vec<_>, Refusal>>()?;
        for (index, slot) in slots.iter().enumerate() {
            self.check_completed(wanted, index, slot)?;
        }
        Ok(slots)
    }

    /// Refuses to make a slot whole with numbers that this request could not draw where they are missing. What is held is
    /// not drawn, and what is asked for by number has been looked at.
    fn check_completed(&mut self, wanted: &Wanted<'_>, index: usize, slot: &Slot<'_>) -> Result<(), Error> {
        let (Some(ports), None) = (slot.ports, wanted.explicit(index)) else { return Ok(()) };
        let cells = wanted.cells.iter().zip(&slot.kept);
        let missing: Vec<&Cell> = cells.filter(|(_, kept)| kept.is_none()).map(|(cell, _)| cell).collect();
        match missing.is_empty() {
            true => Ok(()),
            false => self.check_drawn(wanted, ports, slot.pool.as_ref(), missing),
        }
    }

    /// Gives slots that hold nothing the numbers that they had last, where those are free.
    pub(crate) fn place_again(&mut self, wanted: &Wanted<'_>, slots: &mut [Slot<'_>]) -> Result<(), Error> {
        let (service, pools) = (service_of(wanted)?, self.pools()?);
        for index in 0..slots.len() {
            let (Some(cell), None) = (wanted.cells.first(), slots[index].ports) else { continue };
            let name = slots[index].name.map_or("", PortName::as_str);
            let last = self.find_last_for(wanted.holder, service, name, cell.place(), cell.protocol)?;
            let Some(last) = last.filter(|last| is_wanted_again(wanted, last, &pools)) else { continue };
            match self.check_drawn(wanted, last.ports(), last.pool.as_ref(), &wanted.cells) {
                Ok(()) => {}
                // It gets another number.
                Err(Error::Refused(_)) => continue,
                Err(failed) => return Err(failed),
            }
            let overlaps =
                slots.iter().filter_map(|slot| slot.ports).any(|other| overlap(other, last.ports()));
            if !overlaps && self.is_free_again(wanted, last.ports())? {
                slots[index].ports = Some(last.ports());
                slots[index].pool = last.pool;
            }
        }
        Ok(())
    }

    /// Refuses numbers that were drawn from a pool, or taken by number, which this request could not have so in these
    /// cells: its token may be for other pools now, and the pool or the labels of an instance may have changed.
    fn check_drawn<'c>(
        &mut self,
        wanted: &Wanted<'_>,
        numbers: PortRange,
        from: Option<&PoolName>,
        cells: impl IntoIterator<Item = &'c Cell>,
    ) -> Result<(), Error> {
        let pools = self.pools()?;
        check_numbers(wanted.actor, numbers, &pools)?;
        let Some(from) = from else { return Ok(()) };
        check_pool(wanted.actor, from)?;
        pools.find(from).map_or(Ok(()), |source| self.check_for(wanted, source, cells))
    }

    /// Whether a range may be had again by who held it last: free in every cell, and resting from nobody else.
    fn is_free_again(&mut self, wanted: &Wanted<'_>, range: PortRange) -> Result<bool, StoreError> {
        if wanted.request.busy.first_in(range).is_some() {
            return Ok(false);
        }
        for cell in &wanted.cells {
            let (space, protocol) = (cell.space(wanted.scope), cell.protocol);
            let in_use = match &cell.instance {
                Some(instance) => self.is_observed(instance.id, protocol, range, wanted.now)?,
                None => !self.list_listened_anywhere(protocol, range)?.is_empty(),
            };
            if in_use || self.find_claimed(space, protocol, range, wanted.now)?.is_some() {
                return Ok(false);
            }
            if self.rests_from_others(wanted, space, cell, range)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn rests_from_others(
        &mut self,
        wanted: &Wanted<'_>,
        space: Space,
        cell: &Cell,
        range: PortRange,
    ) -> Result<bool, StoreError> {
        // A fleet-wide number must rest nowhere; one of an instance neither there nor fleet-wide.
        let only = match space {
            Space::Instance(_) => Some(space),
            Space::Fleet => None,
        };
        let sql = "select port from quarantine where protocol = $1 and port between $2 and $3 and until_at > $4 \
                   and (holder is null or holder <> $5) \
                   and (cast($6 as text) is null or space in (cast($6 as text), 'fleet')) limit 1";
        let values = values![cell.protocol, range.first(), range.last(), wanted.now, wanted.holder, only];
        Ok(self.query_one(sql, values)?.is_some())
    }

    /// Gives back what is held already: edited where the request says other things of it, and with its lease renewed if
    /// the request is for one. That is never shortened.
    pub(crate) fn keep(&mut self, wanted: &Wanted<'_>, kept: &Reservation) -> Result<Reservation, Error> {
        let kept = self.set_words(wanted.actor, kept, wanted.edited(kept), wanted.now)?;
        match wanted.later_end(&kept) {
            Some(end) => self.set_deadline(EventKind::Renewed, wanted.actor.into(), kept, end, wanted.now),
            None => Ok(kept),
        }
    }
}

impl Wanted<'_> {
    /// What [`Tx::keep`] would make of it, but for its version.
    pub(crate) fn kept(&self, kept: &Reservation) -> Reservation {
        let edited = self.edited(kept);
        match self.later_end(kept) {
            Some((ttl, end)) => Reservation { expires_at: Some(end), ttl_seconds: Some(ttl), ..edited },
            None => edited,
        }
    }

    /// With what the request says of it. Whoever does not ask for renewal may have left it out: what goes on, goes on.
    fn edited(&self, kept: &Reservation) -> Reservation {
        let renew_while_listening = kept.renew_while_listening || self.request.renew_while_listening;
        Reservation { renew_while_listening, ..self.request.edit_of(kept).apply(kept) }
    }

    /// The length and the end that a kept lease gets, where that end is later than the one it has.
    fn later_end(&self, kept: &Reservation) -> Option<(LeaseTime, Timestamp)> {
        let end = self.request.ttl_seconds.zip(self.expires_at);
        end.filter(|(_, deadline)| kept.expires_at < Some(*deadline))
    }
}

fn service_of<'a>(wanted: &Wanted<'a>) -> Result<&'a ServiceName, Refusal> {
    let nameless = || Refusal::contradiction("service", "`ensure` needs `service`");
    wanted.request.service.as_ref().ok_or_else(nameless)
}

/// Chooses among what is held for a slot, cell by cell: the oldest that fits, with the same numbers everywhere.
fn keep_slot<'a>(
    wanted: &Wanted<'_>,
    index: usize,
    name: Option<&'a PortName>,
    candidates: &[Vec<&Reservation>],
) -> Result<Slot<'a>, Refusal> {
    let differs = |held: &Reservation, field| Refusal::EnsureDiffers { held: Box::new(held.clone()), field };
    let mut chosen: Option<&Reservation> = None;
    if let Some(first) = candidates.iter().flatten().next() {
        let mut fitting = candidates.iter().flatten().filter(|held| differing(wanted, index, held).is_none());
        chosen = fitting.next().copied();
        if chosen.is_none() {
            return Err(differs(first, differing(wanted, index, first).unwrap_or("port")));
        }
    }
    let mut kept = Vec::with_capacity(candidates.len());
    for of_cell in candidates {
        let same = |held: &&&Reservation| {
            chosen.is_some_and(|chosen| chosen.ports() == held.ports())
                && differing(wanted, index, held).is_none()
        };
        match (of_cell.iter().find(same), of_cell.first()) {
            (None, Some(other)) => {
                return Err(differs(other, differing(wanted, index, other).unwrap_or("port")));
            }
            (found, _) => kept.push(found.map(|held| (*held).clone())),
        }
    }
    let (ports, pool) = (chosen.map(Reservation::ports), chosen.and_then(|chosen| chosen.pool.clone()));
    Ok(Slot { name, kept, ports, pool })
}

/// In which field what is held is another thing than what is asked for.
fn differing(wanted: &Wanted<'_>, index: usize, held: &Reservation) -> Option<&'static str> {
    let explicit = wanted.explicit(index);
    if held.scope != wanted.scope {
        Some("scope")
    } else if held.ports().count() != wanted.count() {
        Some("count")
    } else if explicit.is_some_and(|ports| ports != held.ports()) {
        Some("port")
    } else if wanted.expires_at.is_some() && held.expires_at.is_none() {
        Some("ttl_seconds")
    } else {
        None
    }
}

/// Whether what was released last is what is asked for now. A number that its pool does not give any more is not.
fn is_wanted_again(wanted: &Wanted<'_>, last: &Reservation, pools: &Pools) -> bool {
    let same_pool = wanted.request.pool.is_none() || wanted.request.pool == last.pool;
    let still_given = |name| pools.find(name).is_some_and(|source| source.ports.covers(last.ports()));
    same_pool
        && last.pool.as_ref().is_none_or(still_given)
        && last.scope == wanted.scope
        && last.ports().count() == wanted.count()
}

fn overlap(one: PortRange, other: PortRange) -> bool {
    one.first() <= other.last() && other.first() <= one.last()
}
