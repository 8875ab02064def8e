//! Many clients at once, and what the event log says about it afterwards.
//!
//! Every client notes what it was answered, and between which events that was. Afterwards the log is read in the order
//! of its numbers: each event must be legal where it stands, all of them must end in what is stored, and every answer
//! must be explained by them. Clients call the store, or go through the HTTP API of a server process (`way`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use gk_model::access::{Actor, Role};
use gk_model::history::{Event, EventKind};
use gk_model::id::{InstanceId, ReservationId};
use gk_model::port::{Port, PortRange, Protocol};
use gk_model::problem::{Code, Problem};
use gk_model::reservation::{Reservation, ReserveRequest, Scope};
use gk_store::{Refusal, Store};
use proptest::collection::vec;
use proptest::prelude::*;

use super::history::{Ask, Say, ask, label, say};
use super::reference::Machine;
use super::sync::Expected;
use super::way::{No, Served, Way};
use super::{agents, show};
use crate::store::world::{FakeAgent, World, actor, at, count, port};

/// What a client does, one after the other.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Reserve(Ask),
    /// One of its own; a part is an offset and a count.
    Release(usize, Option<(u16, u16)>),
    /// One that another client holds, as far as is known; must be refused.
    Steal(usize),
    /// A request that is refused only after it was written, which must leave nothing behind, and its neighbours alone.
    Spoil(Ask),
}

/// What some clients and the agents of both machines do at the same time.
#[derive(Clone)]
pub(crate) struct Load {
    clients: Vec<Vec<Act>>,
    agents: Vec<Vec<Say>>,
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.clients.iter().try_for_each(|acts| write!(f, "\nclient: {acts:?}"))?;
        self.agents.iter().try_for_each(|says| write!(f, "\nagent: {says:?}"))
    }
}

/// Two to six clients, and an agent of each of two machines.
pub(crate) fn load() -> impl Strategy<Value = Load> {
    let act = prop_oneof![
        5 => ask().prop_map(Act::Reserve),
        4 => (0usize..8, proptest::option::weighted(0.4, (0u16..3, 1u16..3))).prop_map(|(which, part)| Act::Release(which, part)),
        1 => (0usize..8).prop_map(Act::Steal),
        1 => ask().prop_map(Act::Spoil),
    ];
    let all = (vec(vec(act, 0..25), 2..7), vec(vec(say(), 0..25), 2));
    all.prop_map(|(clients, agents)| Load { clients, agents })
}

/// Where a number is exclusive; none for the fleet.
type Place = (Option<InstanceId>, Protocol, u16);

/// An answer, and the newest events before it was asked for and after it came.
struct Noted {
    before: u64,
    after: u64,
    what: What,
}

enum What {
    Got(Vec<Reservation>),
    Gave(ReservationId, Option<PortRange>),
    /// With what was asked for, if it was ports.
    Refused(No, Box<Option<ReserveRequest>>),
}

struct Client {
    way: Way,
    who: Actor,
    ids: Vec<InstanceId>,
    /// What every client was given, oldest first.
    given: std::sync::Arc<std::sync::Mutex<Vec<(String, ReservationId)>>>,
    own: Vec<Reservation>,
    noted: Vec<Noted>,
}

impl Client {
    fn request(&self, ask: &Ask) -> ReserveRequest {
        let names = ask.names.iter().map(|name| name.parse().unwrap());
        let id = |machine: usize| self.ids[machine % self.ids.len()];
        ReserveRequest {
            protocol: ask.protocol(),
            names: names.collect(),
            port: ask.port.map(port),
            count: count(i64::from(ask.count)),
            service: ask.service.map(|service| service.parse().unwrap()),
            scope: ask.scope(),
            ensure: ask.ensure,
            adopt: ask.adopt,
            busy: ask.busy.iter().copied().chain(ask.busy_from..10_000).filter_map(Port::new).collect(),
            on: ask.selector(),
            instance: ask.is_for_one().then(|| id(ask.machine).into()),
            ..ReserveRequest::default()
        }
    }

    async fn act(&mut self, act: &Act) -> Result<(), String> {
        let before = self.way.newest().await?;
        let who = &self.who;
        let asked = if let Act::Reserve(ask) = act { Some(self.request(ask)) } else { None };
        let answer = match act {
            Act::Reserve(ask) => {
                self.way.reserve(who, self.request(ask)).await.map(|made| What::Got(made.items))
            }
            Act::Spoil(ask) => {
                return self.way.spoil(who, self.request(ask)).await;
            }
            Act::Release(which, part) => {
                if self.own.is_empty() {
                    return Ok(());
                }
                let held = self.own[which % self.own.len()].clone();
                let part = part.and_then(|(offset, count)| {
                    let first = Port::new(held.first_port.get() + offset)?;
                    PortRange::from_count(first, count).filter(|part| held.ports().covers(*part))
                });
                self.way.release(who, held.id, part, false).await.map(|_| What::Gave(held.id, part))
            }
            Act::Steal(which) => {
                let others = self.given.lock().unwrap().clone();
                let mut others =
                    others.into_iter().rev().filter(|(holder, _)| *holder != self.who.subject.to_string());
                let Some((_, id)) = others.nth(*which) else { return Ok(()) };
                match self.way.release(who, id, None, true).await {
                    Ok(stolen) => return Err(format!("was let release another's: {stolen:?}")),
                    Err(refused) => Err(refused),
                }
            }
        };
        let what = match answer {
            Ok(what) => what,
            Err(No::Failed(failure)) => return Err(failure),
            Err(no) => What::Refused(no, Box::new(asked)),
        };
        self.note(before, what).await
    }

    async fn note(&mut self, before: u64, what: What) -> Result<(), String> {
        match &what {
            What::Got(made) => {
                let known: BTreeSet<ReservationId> = self.own.iter().map(|own| own.id).collect();
                self.own.extend(made.iter().filter(|made| !known.contains(&made.id)).cloned());
                let mut given = self.given.lock().unwrap();
                given.extend(made.iter().map(|made| (made.holder.to_string(), made.id)));
            }
            What::Gave(id, part) => {
                let held = self.own.iter().position(|own| own.id == *id).unwrap();
                let whole = self.own.remove(held);
                // The lowest part keeps the id, and is this client's still.
                let rests = part.map(|part| whole.ports().without(part)).unwrap_or_default();
                self.own.extend(rests.first().map(|rest| Reservation {
                    first_port: rest.first(),
                    last_port: rest.last(),
                    ..whole
                }));
            }
            What::Refused(..) => {}
        }
        let after = self.way.newest().await?;
        self.noted.push(Noted { before, after, what });
        Ok(())
    }
}

/// An agent that goes on at the same time, and whose sync nobody else touches.
async fn observe(world: Store, agent: FakeAgent, says: Vec<Say>) -> Result<(), String> {
    let mut model = Machine::new("observed");
    let mut sent = Vec::new();
    let opening = Say::Open { behind: 0, set: 1, with_report: true };
    for say in std::iter::once(&opening).chain(&says) {
        let Some(contact) = agents::contact(say, &model, &sent, at(1)) else { continue };
        sent.push(contact.clone());
        let expected = model.apply(&contact);
        let answer = world.contact(agent.id, agent.credential, contact, at(1)).await;
        match (&expected, &answer) {
            (Expected::Taken { session, acknowledged, .. }, Ok(answer))
                if (answer.session.0, answer.acknowledged) == (*session, *acknowledged) => {}
            (Expected::Superseded | Expected::OpensWithoutReport, Err(gk_store::Error::Refused(_))) => {}
            _ => return Err(format!("{answer:?} instead of {expected:?}")),
        }
    }
    Ok(())
}

/// Lets everybody go on at once, over all servers, and explains it afterwards.
pub(crate) async fn run(worlds: &[World], load: Load) -> Result<(), String> {
    let mut agents = Vec::new();
    let mut ids = Vec::new();
    for (index, says) in load.agents.into_iter().enumerate() {
        let seed = u8::try_from(index + 1).unwrap();
        let id = worlds[0].join(&format!("web-{seed}"), seed).await;
        worlds[0].label(id, &label(index).to_string()).await;
        let credential = crate::store::world::credential(seed);
        let agent = FakeAgent { id, credential, session: gk_model::contact::Session(0), sequence: 0 };
        ids.push(id);
        agents.push((agent, says));
    }
    let way = |index: usize, _: &Actor| Way::Store(worlds[index % worlds.len()].store.clone());
    let clients = start(load.clients, &ids, way);
    let store = worlds[worlds.len() - 1].store.clone();
    let agents = agents.into_iter().map(|(agent, says)| tokio::spawn(observe(store.clone(), agent, says)));
    for agent in agents.collect::<Vec<_>>() {
        agent.await.map_err(show)??;
    }
    explain(&worlds[0], &finish(clients).await?).await
}

type Running = Vec<tokio::task::JoinHandle<Result<Client, String>>>;

/// Lets the clients go on, each in its way.
fn start(all: Vec<Vec<Act>>, ids: &[InstanceId], mut way: impl FnMut(usize, &Actor) -> Way) -> Running {
    let given = std::sync::Arc::default();
    let clients = all.into_iter().enumerate().map(|(index, acts)| {
        let who = actor(&format!("client-{}", index / 2), Role::User);
        let mut client = Client {
            way: way(index, &who),
            who,
            ids: ids.to_vec(),
            given: std::sync::Arc::clone(&given),
            own: Vec::new(),
            noted: Vec::new(),
        };
        tokio::spawn(async move {
            for act in &acts {
                client.act(act).await.map_err(|what| format!("{act:?}: {what}"))?;
            }
            Ok::<Client, String>(client)
        })
    });
    clients.collect()
}

async fn finish(clients: Running) -> Result<Vec<Noted>, String> {
    let mut noted = Vec::new();
    for client in clients {
        noted.extend(client.await.map_err(show)??.noted);
    }
    Ok(noted)
}

/// The same through the HTTP API of a server process, on this module's database, which is looked at afterwards. Its
/// machines have no agents: an agent's contacts are the same whoever reserves.
pub(crate) async fn run_through_http(load: Load) -> Result<(), String> {
    let served = Served::start();
    let ids: Vec<InstanceId> = (0..load.agents.len()).map(|index| served.join(index)).collect();
    let clients = start(load.clients, &ids, |_, who| Way::Http(served.client(who)));
    let noted = finish(clients).await?;
    explain(&served.into_world().await, &noted).await
}

async fn explain(world: &World, noted: &[Noted]) -> Result<(), String> {
    let mut replay = Replay::default();
    let events = world.events().await;
    for (number, event) in events.iter().enumerate() {
        if event.seq != number as u64 + 1 {
            return Err(format!("event {} stands at {}", event.seq, number + 1));
        }
        if let Some(id) = event.reservation {
            let about = world.store.read(move |reader| reader.get_reservation(id)).await.map_err(show)?;
            replay
                .apply(event, &about)
                .map_err(|what| format!("event {}, {}: {what}", event.seq, event.message))?;
        }
    }
    let live = world.live().await;
    let stored = live.iter().flat_map(|held| {
        held.ports().ports().map(move |port| (place(held, port.get()), held.id)).collect::<Vec<_>>()
    });
    if stored.collect::<BTreeMap<_, _>>() != replay.now() {
        return Err("what is stored is not what the log tells".to_owned());
    }
    let is_made = |event: &&Event| matches!(event.kind, EventKind::Reserved | EventKind::Adopted);
    let made: BTreeSet<ReservationId> =
        events.iter().filter(is_made).filter_map(|event| event.reservation).collect();
    let got =
        noted.iter().filter_map(|note| if let What::Got(made) = &note.what { Some(made) } else { None });
    let got: BTreeSet<ReservationId> = got.flatten().map(|made| made.id).collect();
    if let Some(id) = made.difference(&got).next() {
        return Err(format!("nobody was told of reservation {id}"));
    }
    for note in noted {
        replay.explain(note)?;
    }
    let verdict = world.store.verify().await.map_err(show)?;
    if verdict.problems().is_empty() { Ok(()) } else { Err(verdict.problems().join("; ")) }
}

fn place(held: &Reservation, port: u16) -> Place {
    let instance = held.instance.as_ref().map(|link| link.id).filter(|_| held.scope == Scope::Instance);
    (instance, held.protocol, port)
}

/// Who held a number, from this event to before that one.
struct Span {
    from: u64,
    to: Option<u64>,
    id: ReservationId,
}

/// The log so far, as who held which number when.
#[derive(Default)]
struct Replay {
    spans: BTreeMap<Place, Vec<Span>>,
}

impl Replay {
    fn now(&self) -> BTreeMap<Place, ReservationId> {
        let last = self.spans.iter().filter_map(|(place, spans)| Some((*place, spans.last()?)));
        last.filter(|(_, span)| span.to.is_none()).map(|(place, span)| (place, span.id)).collect()
    }

    /// Who holds what excludes this now: the number there or fleet-wide, or anywhere for the fleet.
    fn excluding(&self, (instance, protocol, port): Place) -> impl Iterator<Item = (&Place, &Span)> {
        let meets = move |place: &Place| {
            (place.1, place.2) == (protocol, port)
                && (place.0.is_none() || instance.is_none() || place.0 == instance)
        };
        let all = self.spans.iter().filter(move |(place, _)| meets(place));
        all.flat_map(|(place, spans)| spans.iter().map(move |span| (place, span)))
    }

    fn apply(&mut self, event: &Event, about: &Reservation) -> Result<(), String> {
        let (Some(first), Some(last)) = (event.first_port, event.last_port) else { return Ok(()) };
        for port in first.get()..=last.get() {
            let place = place(about, port);
            let held = self.excluding(place).find(|(_, span)| span.to.is_none());
            let (at, holder) = held.map(|(at, span)| (*at, span.id)).unzip();
            match event.kind {
                EventKind::Reserved | EventKind::Adopted if holder.is_some() => {
                    return Err(format!("{port} is held by {holder:?}"));
                }
                EventKind::Reserved | EventKind::Adopted => {}
                // The parts that go on come right after the release, and take over what the whole had.
                EventKind::Split if holder == Some(about.id) || holder == about.split_from => {}
                EventKind::Released if holder == Some(about.id) => {}
                EventKind::Renewed
                | EventKind::Expiring
                | EventKind::ConflictBegan
                | EventKind::ConflictEnded => continue,
                _ => return Err(format!("{port} is held by {holder:?}")),
            }
            let spans = self.spans.entry(at.unwrap_or(place)).or_default();
            spans.iter_mut().filter(|span| span.to.is_none()).for_each(|span| span.to = Some(event.seq));
            if event.kind != EventKind::Released {
                spans.push(Span { from: event.seq, to: None, id: about.id });
            }
        }
        Ok(())
    }

    /// Whether somebody held the number while an answer was on its way; its span, if a certain one did.
    fn was_held(&self, place: Place, note: &Noted, by: Option<ReservationId>) -> bool {
        self.excluding(place).any(|(_, span)| {
            let meanwhile = span.from <= note.after && span.to.is_none_or(|to| to > note.before);
            meanwhile && by.is_none_or(|by| by == span.id)
        })
    }

    fn explain(&self, note: &Noted) -> Result<(), String> {
        match &note.what {
            What::Got(made) => {
                let held = |made: &Reservation| {
                    made.ports()
                        .ports()
                        .all(|port| self.was_held(place(made, port.get()), note, Some(made.id)))
                };
                match made.iter().find(|made| !held(made)) {
                    Some(lost) => Err(format!("was answered, and the log knows nothing of it: {lost:?}")),
                    None => Ok(()),
                }
            }
            What::Gave(id, part) => {
                let in_part = |port: u16| part.is_none_or(|part| part.ports().any(|it| it.get() == port));
                let mut spans = self.spans.iter().filter(|(place, _)| in_part(place.2));
                let goes_on = |span: &Span| span.id == *id && span.to.is_none_or(|to| to > note.after);
                match spans.find(|(_, spans)| spans.iter().any(goes_on)) {
                    Some((place, _)) => Err(format!("was released, and is held: {place:?}")),
                    None => Ok(()),
                }
            }
            What::Refused(no, asked) => {
                let asked = asked.as_ref().as_ref();
                let is_explained = match no {
                    No::Refused(refusal) => self.is_explained(note, refusal, asked),
                    No::Problem(problem) => self.is_problem_explained(note, problem, asked),
                    No::Failed(_) => false,
                };
                if is_explained { Ok(()) } else { Err(format!("no reason to refuse: {no:?}")) }
            }
        }
    }

    fn is_explained(&self, note: &Noted, refusal: &Refusal, asked: Option<&ReserveRequest>) -> bool {
        match refusal {
            Refusal::PortReserved { port, protocol, holder, .. } => {
                let places = self.spans.keys().filter(|place| (place.1, place.2) == (*protocol, port.get()));
                places.into_iter().any(|place| self.was_held(*place, note, Some(holder.id)))
            }
            Refusal::PoolExhausted { .. } => asked.is_some_and(|asked| self.is_exhausted(note, asked)),
            Refusal::AlreadyReleased(gone) => {
                let mut spans = self.spans.values().flatten().filter(|span| span.id == gone.id);
                !spans.any(|span| span.to.is_none_or(|to| to > note.after))
            }
            Refusal::NotTheHolder(_)
            | Refusal::NotInReservation { .. }
            | Refusal::EnsureDiffers { .. }
            | Refusal::NobodyChosen(_)
            | Refusal::PortInUse { .. }
            | Refusal::NothingToAdopt { .. }
            | Refusal::SeveralOwners { .. } => true,
            _ => false,
        }
    }

    /// The same of what the API says, which has no id in it: somebody held a number that was asked for.
    fn is_problem_explained(&self, note: &Noted, problem: &Problem, asked: Option<&ReserveRequest>) -> bool {
        match (problem.code, asked) {
            (Code::PortReserved, Some(asked)) => {
                let protocols = asked.protocol.each();
                let mut places = self.spans.keys().filter(|place| protocols.contains(&place.1));
                let tells = problem.holder.as_ref().is_some_and(|holder| holder.subject.is_some());
                tells && places.any(|place| self.was_held(*place, note, None))
            }
            (Code::PoolExhausted, Some(asked)) => self.is_exhausted(note, asked),
            (Code::EnsureDiffers | Code::NothingToAdopt | Code::NoSuchInstance, Some(_))
            | (Code::NotTheHolder | Code::AlreadyReleased | Code::Impossible, None) => true,
            _ => false,
        }
    }

    /// Whether too few runs are left of the pool without what is busy, what agents may have seen, and what was held
    /// before, and may rest.
    fn is_exhausted(&self, note: &Noted, asked: &ReserveRequest) -> bool {
        let begun = self.spans.iter().filter(|(_, spans)| spans.iter().any(|span| span.from <= note.after));
        let held: BTreeSet<u16> = begun.map(|(place, _)| place.2).collect();
        let (mut runs, mut length) = (0, 0);
        for port in (agents::HIGHEST + 1..10_000).filter_map(Port::new) {
            let is_free = !asked.busy.contains(port) && !held.contains(&port.get());
            length = if is_free { length + 1 } else { 0 };
            if length == asked.count.get() {
                (runs, length) = (runs + 1, 0);
            }
        }
        runs < asked.names().len()
    }
}
