//! Plays a history on a store and on the reference model, step by step, and compares everything that shows.

use std::collections::BTreeSet;

use gk_model::access::{Actor, Authority, Role};
use gk_model::contact::Contact;
use gk_model::facts::Facts;
use gk_model::history::EventKind;
use gk_model::id::{InstanceId, InstanceRef, ReservationId};
use gk_model::instance::{Instance, JoinRequest};
use gk_model::lease::LeaseTime;
use gk_model::port::{Port, PortRange};
use gk_model::reservation::{Reservation, ReserveRequest};
use gk_model::secret::SecretHash;
use gk_model::time::Timestamp;
use gk_store::{Error, Refusal};

use super::history::{Ask, MACHINES, NAMES, Op, PEOPLE, Step, label};
use super::reference::{Lease, Machine, Model};
use super::show;
use crate::store::world::{World, actor, at, count, credential, join_request, pool_spec, port};

/// What the wall clock says when a history begins, so that it can be set back.
const BEGIN: u64 = 1_000_000;

/// A machine's place in the world: who it is now, and what it has said.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) id: Option<InstanceId>,
    pub(super) credential: Option<SecretHash>,
    pub(super) sent: Vec<Contact>,
}

/// A server, and when it last looked at its leases.
pub(super) struct Server {
    pub(super) world: World,
    pub(super) started: u64,
    pub(super) last_look: Option<u64>,
}

pub(crate) struct Play {
    pub(super) servers: Vec<Server>,
    pub(super) model: Model,
    pub(super) slots: [Slot; MACHINES],
    /// Every reservation ever seen, oldest first.
    pub(super) known: Vec<ReservationId>,
    pub(super) live: Vec<Reservation>,
    pub(super) asked: Vec<Ask>,
    pub(super) passed: u64,
    /// What the wall clock says.
    pub(super) wall: u64,
    /// By how much it was set since the last look.
    pub(super) step: i64,
    pub(super) last_look: u64,
    pub(super) last_seq: u64,
    pub(super) joined: u8,
    /// The numbers of the pool beside the default, if it is there.
    pool: Option<(u16, u16)>,
}

/// Which events a step must leave behind, in any order.
pub(super) type Events = Vec<EventKind>;

pub(super) fn name_of(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::NoSuchInstance(_) | Refusal::InstanceLeft(_) | Refusal::NobodyChosen(_) => "no instance",
        Refusal::BeyondOwnInstance => "beyond own",
        Refusal::CredentialReplaced => "no credential",
        Refusal::NameTaken(_) => "name taken",
        Refusal::ReservationsLive { .. } => "reservations live",
        Refusal::NoSuchReservation(_) | Refusal::AlreadyReleased(_) => "not live",
        Refusal::NotTheHolder(_) => "not the holder",
        Refusal::NotInReservation { .. } => "not in it",
        Refusal::NoLease(_) => "no lease",
        Refusal::NoSuchPool(_) => "no pool",
        Refusal::IdentitySuperseded { .. } => "superseded",
        Refusal::OpensWithoutReport(_) => "opens without report",
        _ => "other",
    }
}

/// The answer, or why not; a failure of the store is a failure of the test.
fn sort<T>(answer: Result<T, Error>) -> Result<Result<T, Refusal>, String> {
    match answer {
        Ok(answer) => Ok(Ok(answer)),
        Err(Error::Refused(refusal)) => Ok(Err(*refusal)),
        Err(failure) => Err(format!("the store failed: {failure}")),
    }
}

/// An answer that must be a grant if `refusal` is empty, and that refusal otherwise.
pub(super) fn expect<T: std::fmt::Debug>(
    answer: Result<T, Error>,
    refusal: &str,
) -> Result<Option<T>, String> {
    match sort(answer)? {
        Ok(granted) if refusal.is_empty() => Ok(Some(granted)),
        Ok(granted) => Err(format!("granted, and should be refused as {refusal}: {granted:?}")),
        Err(refused) if name_of(&refused) == refusal => Ok(None),
        Err(refused) => Err(format!("refused, and should be {refusal:?}: {refused}")),
    }
}

/// Reservations without what is observed of them.
fn intent(live: &[Reservation]) -> Vec<Reservation> {
    live.iter().map(|live| Reservation { idle_since: None, ..live.clone() }).collect()
}

fn person(by: usize) -> Actor {
    actor(PEOPLE[by], if by == 2 { Role::Operator } else { Role::User })
}

impl Play {
    pub(crate) async fn new(worlds: Vec<World>) -> Play {
        let servers = worlds.into_iter().map(|world| Server { world, started: 0, last_look: None });
        Play {
            servers: servers.collect(),
            model: Model::default(),
            slots: Default::default(),
            known: Vec::new(),
            live: Vec::new(),
            asked: Vec::new(),
            passed: 0,
            wall: BEGIN,
            step: 0,
            last_look: 0,
            last_seq: 0,
            joined: 0,
            pool: None,
        }
    }

    /// Every step, and at the end the store's own check of itself.
    pub(crate) async fn play(&mut self, history: &[Step]) -> Result<(), String> {
        for (number, step) in history.iter().enumerate() {
            let told = |what: String| format!("step {number}, {step:?}: {what}");
            self.step(step).await.map_err(told)?;
        }
        let verdict = self.servers[0].world.store.verify().await.map_err(show)?;
        match verdict.problems().as_slice() {
            [] => Ok(()),
            problems => Err(format!("verify: {}", problems.join("; "))),
        }
    }

    async fn step(&mut self, step: &Step) -> Result<(), String> {
        let server = step.server % self.servers.len();
        self.pass(1);
        let (before, conflicts) = (intent(&self.live), self.conflicts());
        let mut events = self.take(server, &step.op).await?;
        events.extend(self.conflict_events(&conflicts));
        let happened = self.look(server).await?;
        let mut kinds: Events = happened.iter().map(|event| event.kind).collect();
        // When that is, is a matter of leases alone.
        kinds.retain(|kind| *kind != EventKind::Expiring);
        events.sort_by_key(|kind| kind.as_str());
        kinds.sort_by_key(|kind| kind.as_str());
        if events != kinds {
            return Err(format!("the log tells of {kinds:?} instead of {events:?}"));
        }
        if matches!(step.op, Op::Contact { .. }) && before != intent(&self.live) {
            return Err("a contact touched reservations".to_owned());
        }
        self.compare_ports(server).await?;
        self.compare_drift(server).await
    }

    pub(super) fn pass(&mut self, seconds: u64) {
        self.passed += seconds;
        self.wall += seconds;
        self.model.see(self.wall);
    }

    pub(super) fn now(&self) -> Timestamp {
        at(self.wall)
    }

    pub(super) fn world(&self, server: usize) -> &World {
        &self.servers[server].world
    }

    async fn take(&mut self, server: usize, op: &Op) -> Result<Events, String> {
        match op {
            Op::Join { machine, name } => self.join(server, *machine, *name).await,
            Op::Leave { machine, release } => self.leave(server, *machine, *release).await,
            Op::Rename { machine, name } => self.rename(server, *machine, *name).await,
            Op::Reserve(ask) => {
                self.asked.push(ask.clone());
                self.reserve(server, ask).await
            }
            Op::Repeat(ago) => {
                let Some(mut again) = self.asked.iter().rev().nth(*ago).cloned() else { return Ok(vec![]) };
                again.ensure = again.service.is_some();
                self.reserve(server, &again).await
            }
            Op::Release { which, by, part, force } => self.release(server, *which, *by, *part, *force).await,
            Op::Renew { which, by, seconds, force } => {
                self.renew(server, *which, *by, *seconds, *force).await
            }
            Op::SetPool(range) => self.set_pool(server, *range).await,
            Op::Contact { machine, say } => self.contact(server, *machine, say).await,
            Op::Wait(seconds) => {
                self.pass(*seconds);
                Ok(vec![])
            }
            Op::Set(step) => self.set(*step).await,
            Op::Tick => self.tick().await,
            Op::Restart(away) => self.restart(server, *away).await,
            Op::Prune => self.prune(server).await,
        }
    }

    fn is_name_free(&self, name: &str, except: Option<InstanceId>) -> bool {
        let mut joined = self.model.machines.iter().filter(|(_, machine)| machine.joined);
        !joined.any(|(id, machine)| machine.name == name && Some(*id) != except)
    }

    async fn join(&mut self, server: usize, machine: usize, name: usize) -> Result<Events, String> {
        let now = self.now();
        let ephemeral = (machine == 1 && name.is_multiple_of(2)).then_some((8003, 8004));
        let range = ephemeral.map(|(first, last)| PortRange::new(port(first), port(last)).unwrap());
        let facts = Facts { ephemeral_ports: range, ..Facts::default() };
        let known = self.slots[machine].id;
        if known.is_none() {
            self.joined += 1;
        }
        let hash = self.slots[machine].credential.filter(|_| known.is_some());
        let hash = hash.unwrap_or_else(|| credential(self.joined));
        let mut request =
            JoinRequest { facts, credential_hash: hash, ..join_request(NAMES[name], self.joined) };
        request.name = request.name.filter(|_| known.is_none());
        if known.is_none() {
            request.labels = vec![label(machine)].try_into().unwrap();
        }
        let who = match known {
            Some(id) => Actor::new("itself".parse().unwrap(), Authority::Instance(id, hash)),
            None => actor("root", Role::Admin),
        };
        let answer = self.world(server).store.write(move |tx| tx.join(&who, &request, now)).await;
        let taken = known.is_none() && !self.is_name_free(NAMES[name], None);
        let Some((joined, _)) = expect(answer, if taken { "name taken" } else { "" })? else {
            return Ok(vec![]);
        };
        match known {
            Some(id) => self.model.machines.get_mut(&id).unwrap().ephemeral = ephemeral,
            None => self.welcome(machine, &joined, hash, ephemeral),
        }
        Ok(if known.is_some() { vec![] } else { vec![EventKind::Joined] })
    }

    fn welcome(
        &mut self,
        machine: usize,
        joined: &Instance,
        hash: SecretHash,
        ephemeral: Option<(u16, u16)>,
    ) {
        self.slots[machine] = Slot { id: Some(joined.id), credential: Some(hash), sent: vec![] };
        let labels = joined.labels.clone();
        let new = Machine { ephemeral, labels, ..Machine::new(joined.name.as_str()) };
        self.model.machines.insert(joined.id, new);
    }

    async fn leave(&mut self, server: usize, machine: usize, release: bool) -> Result<Events, String> {
        let Some(id) = self.slots[machine].id else { return Ok(vec![]) };
        let holds = self.model.held.iter().any(|held| held.place == Some(id));
        let answer = self.world(server).leave(id, release, self.now()).await;
        if expect(answer, if holds && !release { "reservations live" } else { "" })?.is_none() {
            return Ok(vec![]);
        }
        let released = self.model.leave(id, self.wall);
        self.slots[machine].id = None;
        Ok([vec![EventKind::Released; released], vec![EventKind::Left]].concat())
    }

    async fn rename(&mut self, server: usize, machine: usize, name: usize) -> Result<Events, String> {
        let (Some(id), now) = (self.slots[machine].id, self.now()) else { return Ok(vec![]) };
        let name = NAMES[name];
        let (who, to) = (actor("root", Role::Admin), name.parse().unwrap());
        let rename = move |tx: &mut gk_store::Tx<'_>| tx.rename_instance(&who, &id.into(), &to, None, now);
        let answer = self.world(server).store.write(rename).await;
        let is_free = self.is_name_free(name, Some(id));
        if expect(answer, if is_free { "" } else { "name taken" })?.is_none() {
            return Ok(vec![]);
        }
        let before = std::mem::replace(&mut self.model.machines.get_mut(&id).unwrap().name, name.to_owned());
        Ok(if before == name { vec![] } else { vec![EventKind::Renamed] })
    }

    /// The machine of a request: as it is named now, or if it is not there, somebody that nobody knows.
    fn refer(&self, machine: usize, by_name: bool) -> InstanceRef {
        let unknown = || InstanceRef::Name("nobody".parse().unwrap());
        self.slots[machine].id.map_or_else(unknown, |id| match by_name {
            true => InstanceRef::Name(self.model.machines[&id].name.parse().unwrap()),
            false => id.into(),
        })
    }

    fn request(&self, ask: &Ask) -> ReserveRequest {
        let names = ask.names.iter().filter(|_| ask.names.len() > 1);
        let busy = ask.busy.iter().copied().chain(ask.busy_from..10_000).filter_map(Port::new);
        ReserveRequest {
            protocol: ask.protocol(),
            names: names.map(|name| name.parse().unwrap()).collect(),
            port: ask.port.map(port),
            count: count(i64::from(ask.count)),
            name: ask.names.first().filter(|_| ask.names.len() == 1).map(|name| name.parse().unwrap()),
            service: ask.service.map(|service| service.parse().unwrap()),
            scope: ask.scope(),
            ttl_seconds: ask.ttl.map(|ttl| LeaseTime::try_from(i64::from(ttl)).unwrap()),
            ensure: ask.ensure,
            adopt: ask.adopt,
            busy: busy.collect(),
            on: ask.selector(),
            instance: ask.is_for_one().then(|| self.refer(ask.machine, ask.by_name)),
            ..ReserveRequest::default()
        }
    }

    async fn reserve(&mut self, server: usize, ask: &Ask) -> Result<Events, String> {
        let request = self.request(ask);
        let own = ask.own.and_then(|machine| self.slots[machine].id.zip(self.slots[machine].credential));
        let mut who = person(ask.by);
        if let Some((id, hash)) = own {
            who.authority = Authority::Instance(id, hash);
        }
        let answer = self.world(server).reserve_group(&who, &request, self.now()).await;
        let (answer, passed) = (sort(answer)?, self.passed);
        let wanted = self.model.wanted(&request, PEOPLE[ask.by], own.map(|(id, _)| id), self.wall);
        match (answer, wanted) {
            (Err(refusal), Err(legal)) if legal.contains(name_of(&refusal)) => Ok(vec![]),
            (answer, Err(legal)) => Err(format!("{answer:?} and not refused as {legal:?}")),
            (Err(refusal), Ok(wanted)) => self.model.refuse(&wanted, &refusal).map(|()| vec![]),
            (Ok(made), Ok(wanted)) => {
                let new = self.model.grant(&wanted, &made, passed)?;
                let early = |made: &Reservation| {
                    let ttl = request.ttl_seconds.filter(|_| made.created_at == self.now());
                    ttl.is_some_and(|ttl| made.expires_at < Some(ttl.deadline(self.now())))
                };
                if let Some(made) = made.iter().find(|made| early(made)) {
                    return Err(format!("a lease that is too short: {made:?}"));
                }
                let kind = if request.adopt { EventKind::Adopted } else { EventKind::Reserved };
                let seen: BTreeSet<ReservationId> = self.live.iter().map(|live| live.id).collect();
                let renewed = made.iter().filter(|made| seen.contains(&made.id) && !self.live.contains(made));
                Ok([vec![kind; new], vec![EventKind::Renewed; renewed.count()]].concat())
            }
        }
    }

    /// Why this person may not change a reservation, in one word.
    fn forbidden(&self, id: ReservationId, by: usize, force: bool) -> &'static str {
        match self.model.find(id) {
            None => "not live",
            Some(held) if held.holder != PEOPLE[by] && !(force && by == 2) => "not the holder",
            Some(_) => "",
        }
    }

    async fn release(
        &mut self,
        server: usize,
        which: usize,
        by: usize,
        part: Option<(u16, u16)>,
        force: bool,
    ) -> Result<Events, String> {
        let Some(id) = self.known.get(which % self.known.len().max(1)).copied() else { return Ok(vec![]) };
        let mut refusal = self.forbidden(id, by, force);
        let held = self.model.find(id).map(|held| (held.first, held.last));
        let part =
            part.zip(held).map(|((offset, count), (first, _))| (first + offset, first + offset + count - 1));
        if let (Some((_, last)), Some((_, end)), "") = (part, held, refusal)
            && last > end
        {
            refusal = "not in it";
        }
        let range = part.map(|(first, last)| PortRange::new(port(first), port(last)).unwrap());
        let (who, now) = (person(by), self.now());
        let release = move |tx: &mut gk_store::Tx<'_>| tx.release(&who, id, range, force, None, now);
        let answer = self.world(server).store.write(release).await;
        if expect(answer, refusal)?.is_none() {
            return Ok(vec![]);
        }
        let remaining = self.model.release(id, part, self.wall);
        Ok([vec![EventKind::Released], vec![EventKind::Split; remaining]].concat())
    }

    async fn set_pool(&mut self, server: usize, range: Option<(u16, u16)>) -> Result<Events, String> {
        let before = std::mem::replace(&mut self.pool, range);
        let Some((first, last)) = range else {
            let (root, name) = (actor("root", Role::Admin), "beside".parse().unwrap());
            let delete = move |tx: &mut gk_store::Tx<'_>| tx.delete_pool(&root, &name, None, at(0));
            let answer = self.world(server).store.write(delete).await;
            let deleted = expect(answer, if before.is_some() { "" } else { "no pool" })?;
            return Ok(deleted.map(|_| EventKind::PoolDeleted).into_iter().collect());
        };
        let answer = self.world(server).set_pool("beside", pool_spec(&format!("{first}-{last}")), None).await;
        expect(answer, "")?;
        Ok(if before == range { vec![] } else { vec![EventKind::PoolSet] })
    }

    async fn renew(
        &mut self,
        server: usize,
        which: usize,
        by: usize,
        seconds: u32,
        force: bool,
    ) -> Result<Events, String> {
        let Some(id) = self.known.get(which % self.known.len().max(1)).copied() else { return Ok(vec![]) };
        let mut refusal = self.forbidden(id, by, force);
        if refusal.is_empty() && self.model.find(id).is_some_and(|held| held.lease.is_none()) {
            refusal = "no lease";
        }
        let (who, now, ttl) = (person(by), self.now(), LeaseTime::try_from(i64::from(seconds)).unwrap());
        let renew = move |tx: &mut gk_store::Tx<'_>| tx.renew(&who, id, ttl, force, None, now);
        if expect(self.world(server).store.write(renew).await, refusal)?.is_none() {
            return Ok(vec![]);
        }
        let held = self.model.held.iter_mut().find(|held| held.id == Some(id)).unwrap();
        held.lease = Some(Lease::new(self.passed, seconds));
        Ok(vec![EventKind::Renewed])
    }
}
