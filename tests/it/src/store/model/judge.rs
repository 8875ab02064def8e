//! Whether an answer to a request for ports was a legal one (rules 2 to 4, 6 and 7), by the reference model.
//!
//! Where the domain leaves a choice, every choice is legal. Where a clock that stepped back makes it unsure whether a
//! number still rests, both are: a number that was given must not surely rest, and one that was passed over must not be
//! surely free.

use std::collections::{BTreeMap, BTreeSet};

use gk_model::id::{InstanceId, InstanceRef};
use gk_model::port::Protocol;
use gk_model::reservation::{Reservation, ReserveRequest, Scope};
use gk_store::Refusal;

use super::reference::{Doubt, Gone, Held, Lease, Machine, Model};

/// A run of ports, both ends included.
type Run = (u16, u16);

/// The pool that every installation starts with.
const POOL: Run = (8000, 9999);

/// One place that a request is for: an instance or all of them, and a protocol.
type Cell = (Option<InstanceId>, Protocol);

/// A request as the model sees it.
pub(crate) struct Wanted<'a> {
    request: &'a ReserveRequest,
    holder: &'a str,
    fleet: bool,
    cells: Vec<Cell>,
    names: Vec<Option<String>>,
    now: u64,
}

fn overlap(one: Run, other: Run) -> bool {
    one.0 <= other.1 && other.0 <= one.1
}

fn run_of(held: &Held) -> Run {
    (held.first, held.last)
}

impl Wanted<'_> {
    fn count(&self) -> u16 {
        self.request.count.get()
    }

    /// The run that a slot was asked to have.
    fn explicit(&self, slot: usize) -> Option<Run> {
        let first = self.request.port?.get() + self.count() * u16::try_from(slot).unwrap();
        Some((first, first + self.count() - 1))
    }

    /// Whether what is held is what `ensure` means by this slot and cell.
    fn is_same(&self, held: &Held, slot: usize, cell: Cell) -> bool {
        held.holder == self.holder
            && (held.place, held.protocol) == cell
            && held.service == self.request.service.as_ref().map(ToString::to_string)
            && held.name == self.names[slot]
    }

    /// Whether that is also what was asked for otherwise.
    fn fits(&self, held: &Held, slot: usize) -> bool {
        held.fleet == self.fleet
            && held.last - held.first + 1 == self.count()
            && self.explicit(slot).is_none_or(|run| run == run_of(held))
            && (self.request.ttl_seconds.is_none() || held.lease.is_some())
    }
}

impl Model {
    /// What a request is for, or the refusals that it may meet because of whom it names.
    pub(crate) fn wanted<'a>(
        &self,
        request: &'a ReserveRequest,
        holder: &'a str,
        own: Option<InstanceId>,
        now: u64,
    ) -> Result<Wanted<'a>, BTreeSet<&'static str>> {
        let mut refusals = BTreeSet::new();
        let mut joined: Vec<_> = self.machines.iter().filter(|(_, machine)| machine.joined).collect();
        joined.sort_unstable_by_key(|(_, machine)| machine.name.to_lowercase());
        let is_named = |id: InstanceId, machine: &Machine| match (&request.instance, &request.on) {
            (Some(InstanceRef::Id(named)), _) => id == *named,
            (Some(InstanceRef::Name(name)), _) => machine.name == name.to_string(),
            (None, Some(selector)) => selector.matches(&machine.labels),
            (None, None) => false,
        };
        let named = joined.into_iter().filter(|(id, machine)| is_named(**id, machine));
        let mut places: Vec<Option<InstanceId>> = named.map(|(id, _)| Some(*id)).collect();
        if request.is_for_all() {
            places = vec![None];
        }
        if places.is_empty() {
            refusals.insert("no instance");
        }
        let fleet = request.scope == Scope::Fleet;
        if own.is_some_and(|own| fleet || places != [Some(own)]) {
            refusals.insert("beyond own");
        }
        if !refusals.is_empty() {
            return Err(refusals);
        }
        let protocols = request.protocol.each();
        let cells = places.iter().flat_map(|place| protocols.iter().map(|protocol| (*place, *protocol)));
        let names = request.names().into_iter().map(|name| name.map(ToString::to_string)).collect();
        Ok(Wanted { request, holder, fleet, cells: cells.collect(), names, now })
    }

    fn listens(&self, (place, protocol): Cell, port: u16) -> bool {
        match place {
            Some(id) => self.machines[&id].listens(protocol, port),
            None => self.machines.values().any(|machine| machine.listens(protocol, port)),
        }
    }

    /// Whether a number may be picked (rule 3).
    fn is_free(&self, wanted: &Wanted<'_>, port: u16, doubt: Doubt) -> bool {
        let busy = gk_model::port::Port::new(port).is_none_or(|port| wanted.request.busy.contains(port));
        if busy || port < POOL.0 || port > POOL.1 {
            return false;
        }
        wanted.cells.iter().all(|(place, protocol)| {
            let rests = match wanted.fleet {
                true => self.rests_anywhere((*protocol, port), wanted.now, doubt, None),
                false => [*place, None]
                    .iter()
                    .any(|space| self.rests(*space, (*protocol, port), wanted.now, doubt, None)),
            };
            let kept_out = place.is_some_and(|id| {
                let machine = &self.machines[&id];
                machine.occupied.contains(&(*protocol, port))
                    || machine.ephemeral.is_some_and(|(first, last)| (first..=last).contains(&port))
            });
            !rests
                && !kept_out
                && !self.listens((*place, *protocol), port)
                && !self.held.iter().any(|held| held.excludes(*place, wanted.fleet, *protocol, port))
        })
    }

    /// The lowest run of the pool that is free and avoids others, up to and including `highest`.
    fn lowest(&self, wanted: &Wanted<'_>, others: &[Run], doubt: Doubt, highest: u16) -> Option<Run> {
        let avoids = |port: u16| others.iter().all(|other| !overlap(*other, (port, port)));
        let mut length = 0;
        for port in POOL.0..=highest.min(POOL.1) {
            length = if avoids(port) && self.is_free(wanted, port, doubt) { length + 1 } else { 0 };
            if length == wanted.count() {
                return Some((port + 1 - length, port));
            }
        }
        None
    }

    /// Where this purpose was released last, as far as it is not forgotten; several, if that is open.
    fn last_runs(&self, wanted: &Wanted<'_>, slot: usize) -> (Vec<Run>, bool) {
        let Some(cell) = wanted.cells.first() else { return (Vec::new(), false) };
        let same = |gone: &&Gone| wanted.is_same(&gone.held, slot, *cell);
        let latest = self.gone.iter().filter(same).map(|gone| gone.released_at).max();
        let last: Vec<&Gone> =
            self.gone.iter().filter(same).filter(|gone| Some(gone.released_at) == latest).collect();
        let fits = |gone: &&&Gone| {
            gone.held.fleet == wanted.fleet && gone.held.last - gone.held.first + 1 == wanted.count()
        };
        let runs: Vec<Run> = last.iter().filter(fits).map(|gone| run_of(&gone.held)).collect();
        let sure = runs.len() == 1 && last.len() == 1 && !last[0].forgotten;
        (runs, sure)
    }

    /// Whether its last holder may have a run again without picking (rule 6).
    fn is_free_again(&self, wanted: &Wanted<'_>, run: Run, doubt: Doubt) -> bool {
        let holder = Some(wanted.holder);
        (run.0..=run.1).all(|port| {
            let busy = gk_model::port::Port::new(port).is_none_or(|port| wanted.request.busy.contains(port));
            !busy
                && wanted.cells.iter().all(|(place, protocol)| {
                    let key = (*protocol, port);
                    let rests = match wanted.fleet {
                        true => self.rests_anywhere(key, wanted.now, doubt, holder),
                        false => [*place, None]
                            .iter()
                            .any(|space| self.rests(*space, key, wanted.now, doubt, holder)),
                    };
                    let occupied = place.is_some_and(|id| self.machines[&id].occupied.contains(&key));
                    !rests
                        && !occupied
                        && !self.listens((*place, *protocol), port)
                        && !self.held.iter().any(|it| it.excludes(*place, wanted.fleet, *protocol, port))
                })
        })
    }

    /// What is held live of what `ensure` asks for, in one cell.
    fn candidates<'m>(&'m self, wanted: &'m Wanted<'_>, slot: usize, cell: Cell) -> Vec<&'m Held> {
        if !wanted.request.ensure {
            return Vec::new();
        }
        self.held.iter().filter(|held| wanted.is_same(held, slot, cell)).collect()
    }
}

/// The slots of an answer, on their way to being judged.
struct Slots {
    runs: Vec<Run>,
    /// Those that were not picked: asked for, kept, or had before.
    fixed: Vec<bool>,
    made: Vec<Held>,
}

impl Model {
    /// Judges a granted request, and goes on from there. Answers how many are new.
    pub(crate) fn grant(
        &mut self,
        wanted: &Wanted<'_>,
        answer: &[Reservation],
        passed: u64,
    ) -> Result<usize, String> {
        if answer.len() != wanted.names.len() * wanted.cells.len() {
            return Err(format!("{} reservations were answered", answer.len()));
        }
        let mut slots = Slots { runs: Vec::new(), fixed: Vec::new(), made: Vec::new() };
        for (slot, of_slot) in answer.chunks(wanted.cells.len()).enumerate() {
            self.judge_slot(wanted, slot, of_slot, &mut slots)?;
        }
        let clash =
            |(index, run): (usize, &Run)| slots.runs[..index].iter().any(|other| overlap(*other, *run));
        if slots.runs.iter().enumerate().any(clash) {
            return Err("two slots overlap".to_owned());
        }
        self.judge_picks(wanted, &slots)?;
        let ttl = wanted.request.ttl_seconds.map(|ttl| u32::try_from(i64::from(ttl)).unwrap());
        for kept in answer.iter().filter(|made| slots.made.iter().all(|new| new.id != Some(made.id))) {
            let held = self.held.iter_mut().find(|held| held.id == Some(kept.id)).unwrap();
            if let (Some(lease), Some(ttl)) = (&mut held.lease, ttl) {
                *lease = lease.extended(passed, ttl);
            }
        }
        let count = slots.made.len();
        let lease = ttl.map(|ttl| Lease::new(passed, ttl));
        self.held.extend(slots.made.into_iter().map(|held| Held { lease, ..held }));
        Ok(count)
    }

    fn judge_slot(
        &self,
        wanted: &Wanted<'_>,
        slot: usize,
        answer: &[Reservation],
        slots: &mut Slots,
    ) -> Result<(), String> {
        let run = (answer[0].first_port.get(), answer[0].last_port.get());
        let mut fixed = wanted.explicit(slot);
        let mut new = Vec::new();
        for (cell, made) in wanted.cells.iter().zip(answer) {
            let held = Held::of(made);
            let is_lease = made.expires_at.is_some();
            let candidates = self.candidates(wanted, slot, *cell);
            if run_of(&held) != run || run.1 - run.0 + 1 != wanted.count() {
                return Err(format!("other ports than the slot's: {}", held.told()));
            }
            match candidates.iter().find(|kept| kept.id == held.id) {
                Some(kept) if wanted.fits(kept, slot) => fixed = Some(run),
                Some(kept) => return Err(format!("ensure gave what does not fit: {}", kept.told())),
                None if !candidates.is_empty() => {
                    return Err(format!("ensure gave another: {}", held.told()));
                }
                None if self.find(made.id).is_some() => return Err("an id was given twice".to_owned()),
                None if is_lease != wanted.request.ttl_seconds.is_some() => return Err("no lease".to_owned()),
                None if !wanted.is_same(&held, slot, *cell) || held.fleet != wanted.fleet => {
                    return Err(format!("not what was asked for: {}", held.told()));
                }
                None => new.push((*cell, held)),
            }
        }
        if fixed.is_some_and(|fixed| fixed != run) {
            return Err(format!("{run:?} instead of {fixed:?}"));
        }
        for (cell, _) in &new {
            self.judge_taken(wanted, *cell, run, fixed.is_some())?;
        }
        let (last, sure) = self.last_runs(wanted, slot);
        if fixed.is_none() && wanted.request.ensure {
            let again = last.contains(&run) && self.is_free_again(wanted, run, Doubt::IsOver);
            let missed = sure && !again && self.is_free_again(wanted, last[0], Doubt::Rests);
            // Another slot may have had it first; names make that rare, and then nothing is said.
            if missed && wanted.names.len() == 1 {
                return Err(format!("{run:?}, and {:?} was free to be had again", last[0]));
            }
            fixed = fixed.or(again.then_some(run));
        }
        slots.runs.push(run);
        slots.fixed.push(fixed.is_some());
        slots.made.extend(new.into_iter().map(|(_, held)| held));
        Ok(())
    }

    /// Whether a new reservation keeps off what others hold, and what is listened on.
    fn judge_taken(&self, wanted: &Wanted<'_>, cell: Cell, run: Run, fixed: bool) -> Result<(), String> {
        let (place, protocol) = cell;
        for port in run.0..=run.1 {
            if let Some(held) = self.held.iter().find(|it| it.excludes(place, wanted.fleet, protocol, port)) {
                return Err(format!("{port}/{protocol} was given twice: {}", held.told()));
            }
            if fixed && !wanted.request.adopt && self.listens(cell, port) {
                return Err(format!("{port}/{protocol} is in use"));
            }
        }
        match place {
            Some(_) if wanted.request.adopt && self.owners(cell, run.0) != 1 => {
                Err(format!("{} owners of {}/{protocol}", self.owners(cell, run.0), run.0))
            }
            _ => Ok(()),
        }
    }

    fn judge_picks(&self, wanted: &Wanted<'_>, slots: &Slots) -> Result<(), String> {
        let all = slots.runs.iter().zip(&slots.fixed);
        let mut others: Vec<Run> = all.clone().filter(|(_, fixed)| **fixed).map(|(run, _)| *run).collect();
        for (run, _) in all.filter(|(_, fixed)| !**fixed) {
            if (run.0..=run.1).any(|port| !self.is_free(wanted, port, Doubt::IsOver)) {
                return Err(format!("{run:?} was picked, and may not be"));
            }
            if let Some(lower) = self.lowest(wanted, &others, Doubt::Rests, run.1 - 1) {
                return Err(format!("{run:?} was picked, and {lower:?} is free"));
            }
            others.push(*run);
        }
        Ok(())
    }

    /// How many different programs listen on a port.
    fn owners(&self, (place, protocol): Cell, port: u16) -> usize {
        let machine = place.map(|id| &self.machines[&id]);
        let listeners = machine.into_iter().flat_map(|machine| machine.home(protocol, port));
        let owners = listeners.flat_map(|listener| &listener.owners);
        owners.map(|owner| (owner.exe.clone(), owner.account.clone())).collect::<BTreeSet<_>>().len()
    }

    /// Judges a refusal.
    pub(crate) fn refuse(&self, wanted: &Wanted<'_>, refusal: &Refusal) -> Result<(), String> {
        let slots = 0..wanted.names.len();
        // Runs that are not picked, and the cells that they would be new in.
        let mut fixed: Vec<(Run, Cell)> = Vec::new();
        let mut unsure = false;
        for slot in slots.clone() {
            let of_cells: BTreeMap<Cell, Vec<&Held>> =
                wanted.cells.iter().map(|cell| (*cell, self.candidates(wanted, slot, *cell))).collect();
            let all: Vec<&&Held> = of_cells.values().flatten().collect();
            unsure |= all.iter().any(|held| !wanted.fits(held, slot));
            unsure |= all.iter().any(|held| run_of(held) != run_of(all[0]));
            let runs = wanted.explicit(slot).into_iter().chain(all.iter().map(|held| run_of(held)));
            for run in runs.collect::<BTreeSet<Run>>() {
                fixed.extend(
                    of_cells.iter().filter(|(_, held)| held.is_empty()).map(|(cell, _)| (run, *cell)),
                );
            }
        }
        let at = |port: u16, protocol: Protocol| {
            fixed.iter().filter(move |(run, cell)| overlap(*run, (port, port)) && cell.1 == protocol)
        };
        let legal = match refusal {
            Refusal::EnsureDiffers { .. } => unsure,
            Refusal::PortReserved { port, protocol, holder, alternatives, .. } => {
                let held = self.find(holder.id);
                let port = port.get();
                let excludes =
                    |cell: &Cell| held.is_some_and(|it| it.excludes(cell.0, wanted.fleet, cell.1, port));
                at(port, *protocol).any(|(_, cell)| excludes(cell)) && self.are_free(wanted, alternatives)
            }
            Refusal::PortInUse { port, protocol, alternatives, .. } => {
                let listened = at(port.get(), *protocol).any(|(_, cell)| self.listens(*cell, port.get()));
                listened && !wanted.request.adopt && self.are_free(wanted, alternatives)
            }
            Refusal::NothingToAdopt { port, protocol, .. } => {
                wanted.request.adopt
                    && at(port.get(), *protocol).any(|(_, cell)| self.owners(*cell, port.get()) == 0)
            }
            Refusal::SeveralOwners { port, protocol, .. } => {
                wanted.request.adopt
                    && at(port.get(), *protocol).any(|(_, cell)| self.owners(*cell, port.get()) > 1)
            }
            Refusal::PoolExhausted { .. } => self.is_exhausted(wanted),
            _ => false,
        };
        if legal { Ok(()) } else { Err(format!("no reason to refuse: {refusal}")) }
    }

    /// Whether the whole request would fit at each of these.
    fn are_free(&self, wanted: &Wanted<'_>, first: &[gk_model::port::Port]) -> bool {
        let total = u16::try_from(wanted.request.total()).unwrap();
        first.iter().all(|first| {
            (first.get()..first.get() + total).all(|port| self.is_free(wanted, port, Doubt::IsOver))
        })
    }

    /// Whether too few runs are free for what has to be picked.
    fn is_exhausted(&self, wanted: &Wanted<'_>) -> bool {
        let mut others: Vec<Run> = Vec::new();
        let mut picks = 0;
        for slot in 0..wanted.names.len() {
            let cells = wanted.cells.iter();
            let kept: Vec<Run> =
                cells.flat_map(|cell| self.candidates(wanted, slot, *cell)).map(run_of).collect();
            let again = if wanted.request.ensure { self.last_runs(wanted, slot).0 } else { Vec::new() };
            picks += usize::from(wanted.explicit(slot).is_none() && kept.is_empty());
            others.extend(kept.into_iter().chain(again));
        }
        let all = picks;
        for _ in 0..all {
            match self.lowest(wanted, &others, Doubt::Rests, POOL.1) {
                Some(run) => others.push(run),
                None => return true,
            }
        }
        false
    }
}
