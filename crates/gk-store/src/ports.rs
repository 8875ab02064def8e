//! Port states: the join of intent and fact, computed when asked.

use gk_model::drift::DriftKind;
use gk_model::id::{InstanceId, InstanceRef};
use gk_model::instance::Instance;
use gk_model::listener::{Listener, Netns};
use gk_model::port::{Port, Protocol};
use gk_model::port_state::{Joined, PortState, State, join};
use gk_model::query::{InstanceQuery, Limit, Page, PortQuery};
use gk_model::reservation::Reservation;
use gk_model::text::Observed;
use gk_model::time::Timestamp;

use crate::drift::{DriftFilter, DriftKey, Listed};
use crate::error::{Error, StoreError};
use crate::instances::{link, name_key};
use crate::listeners::Window;
use crate::page::{self, Filters};
use crate::rows::Row;
use crate::tx::Reader;
use crate::value::values;

impl Reader<'_> {
    /// So many instances are sorted by name where a page needs some of them.
    const FEW_HOLDING: i64 = 1000;

    /// Port states of one instance, or of every joined one, by instance name, protocol and port.
    ///
    /// # Errors
    /// [`crate::Refusal::NoSuchInstance`], [`crate::Refusal::BadCursor`].
    pub fn list_ports(
        &mut self,
        instance: Option<&InstanceRef>,
        query: &PortQuery,
        now: Timestamp,
    ) -> Result<Page<PortState>, Error> {
        let after = query.cursor.as_deref().map(read_cursor).transpose()?;
        if let Some(kind) = query.state.and_then(DriftKind::of) {
            return self.list_drifting_ports(instance, query, kind, after, now);
        }
        let mut found = Vec::new();
        let fleet_wide = self.list_live_fleet_wide()?;
        let mut instances = self.first_instances(instance, query, after.as_ref(), &fleet_wide, now)?;
        loop {
            for instance in &instances.items {
                let name = name_key(&instance.name);
                let after = after.as_ref().filter(|after| after.name == name).map(|after| after.port);
                let most = query.limit() as usize - found.len();
                found.extend(self.list_port_states(instance, &fleet_wide, query, after, most)?);
                if found.len() > query.limit() as usize {
                    return page::page(found, query.limit(), Ok, cursor_of);
                }
            }
            match instances.next.take() {
                None => return page::page(found, query.limit(), Ok, cursor_of),
                Some(cursor) => instances = self.next_instances(query, cursor, &fleet_wide, now)?,
            }
        }
    }

    /// Instances to look at: the one that was asked for; or from the one that the page before ended in.
    fn first_instances(
        &mut self,
        instance: Option<&InstanceRef>,
        query: &PortQuery,
        after: Option<&After>,
        fleet_wide: &[Reservation],
        now: Timestamp,
    ) -> Result<Page<Instance>, Error> {
        if let Some(instance) = instance {
            let found = self.get_instance(instance, now)?;
            let is_chosen = query.label.as_ref().is_none_or(|label| label.matches(&found.labels));
            return Ok(Page { items: is_chosen.then_some(found).into_iter().collect(), next: None });
        }
        // No id sorts below the nil id.
        let cursor = after.map_or(String::new(), |after| page::cursor(&[&after.name, &uuid::Uuid::nil()]));
        self.next_instances(query, cursor, fleet_wide, now)
    }

    /// The next instances on which anything may be that the filters let through. Where a service or a holder is asked for
    /// these are few, and found by what is reserved; what is held for all instances may be on any, as may a fleet-wide number that is
    /// asked for.
    fn next_instances(
        &mut self,
        query: &PortQuery,
        cursor: String,
        fleet_wide: &[Reservation],
        now: Timestamp,
    ) -> Result<Page<Instance>, Error> {
        let is_wanted = |held: &Reservation| {
            (query.service.is_none() || held.service == query.service)
                && query.holder.as_ref().is_none_or(|holder| held.holder == *holder)
        };
        let is_selective = query.service.is_some() || query.holder.is_some();
        let may_be_anywhere = |held: &Reservation| held.instance.is_none() || query.port.is_some();
        if is_selective && !fleet_wide.iter().any(|held| may_be_anywhere(held) && is_wanted(held)) {
            return self.list_holding(query, &cursor, now);
        }
        let cursor = Some(cursor).filter(|cursor| !cursor.is_empty());
        self.list_instances(&InstanceQuery { cursor, label: query.label.clone(), ..Default::default() }, now)
    }

    /// Joined instances with reservations for a service or of a holder, or whose listeners are on such numbers of
    /// others; by name.
    fn list_holding(
        &mut self,
        query: &PortQuery,
        cursor: &str,
        now: Timestamp,
    ) -> Result<Page<Instance>, Error> {
        let after = if cursor.is_empty() { ["", ""] } else { page::parts(cursor)? };
        // Only what is asked for is said, so that its index is used.
        let service = if query.service.is_some() { "r.service = $3" } else { "cast($3 as text) is null" };
        let holder = if query.holder.is_some() { "r.holder = $4" } else { "cast($4 as text) is null" };
        let held = format!("r.released_at is null and {service} and {holder}");
        let here = |what: &str| format!("(select 1 from {what} and {held} limit 1) is not null");
        let drifting = "drift d join reservation r on r.id = d.reservation where d.kind = 'conflict'";
        let is_common = self.is_held_by_many(&held, query)?;
        let (chosen, is_chosen) = if is_common {
            // One after the other in their order: the page is full soon.
            let [held, drifting] =
                ["reservation r where r.instance = n.id", &format!("{drifting} and d.instance = n.id")];
            ("instance n".to_owned(), format!("({} or {}) and ", here(held), here(drifting)))
        } else {
            let ids = format!(
                "select r.instance as id from reservation r where {held} union select d.instance from {drifting} and {held}"
            );
            (format!("({ids}) as c join instance n on n.id = c.id"), String::new())
        };
        let select = format!("select n.name_key, n.id from {chosen}");
        let behind = format!("{is_chosen}n.left_at is null and (n.name_key, n.id) > ($1, $2)");
        let limit = Limit::default().get();
        let values = values![after[0], after[1], query.service.as_ref(), query.holder.as_ref()];
        let chosen = self.choose(query.label.as_ref())?;
        let filters = Filters::new(&behind, values);
        let filters = filters.and_chosen("n.", chosen.as_ref());
        let (sql, values) = filters.finish(&select, "n.name_key, n.id", limit);
        let rows = self.query(&sql, &values)?;
        let read = |mut row: Row| Ok((row.take::<String>()?, row.take::<InstanceId>()?));
        let Page { items, next } = page::page(rows, limit, read, |(name, id)| page::cursor(&[name, id]))?;
        let found = items.into_iter().map(|(_, id)| self.get_instance(&id.into(), now));
        Ok(Page { items: found.collect::<Result<_, _>>()?, next })
    }

    /// Whether these reservations are on more instances than one would sort for every page.
    fn is_held_by_many(&mut self, held: &str, query: &PortQuery) -> Result<bool, StoreError> {
        // The parameters have the numbers that `held` knows them by.
        let sql = format!(
            "select distinct r.instance from reservation r where {held} order by r.instance limit $1 offset $2"
        );
        let values = values![1_i64, Self::FEW_HOLDING, query.service.as_ref(), query.holder.as_ref()];
        Ok(self.query_one(&sql, values)?.is_some())
    }

    /// Ports in conflict, or unreserved ones: those are kept, so nothing else is looked at.
    fn list_drifting_ports(
        &mut self,
        instance: Option<&InstanceRef>,
        query: &PortQuery,
        kind: DriftKind,
        after: Option<After>,
        now: Timestamp,
    ) -> Result<Page<PortState>, Error> {
        let chosen = self.choose(query.label.as_ref())?;
        let wanted = DriftFilter {
            kinds: vec![kind],
            ignored: true,
            instance: self.resolve(instance)?,
            chosen: chosen.as_ref(),
            port: query.port,
            protocol: query.protocol,
            service: query.service.as_ref(),
            holder: query.holder.as_ref(),
        };
        let mut after = after.map_or_else(DriftKey::first, After::into_key);
        let (limit, mut found) = (query.limit() as usize, Vec::new());
        let mut most = limit + 1;
        loop {
            let rows = self.list_drifting(&wanted, &after, most)?;
            let is_complete = rows.len() < most;
            after = rows.last().map_or(after, Listed::key);
            let ports = rows.iter().map(|row| (row.instance, (row.protocol, row.port)));
            let mut states = self.list_states_of(ports, now)?;
            let shown = rows.iter().filter_map(|row| states.remove(&(row.instance, row.protocol, row.port)));
            found.extend(shown.filter(|state| lets_through(query, state)));
            if is_complete || found.len() > limit {
                return page::page(found, query.limit(), Ok, cursor_of);
            }
            most = page::wider(most);
        }
    }

    /// The states of one instance after a port that the filters let through: all, or more than `most`.
    ///
    /// What was observed is read as far as a page needs it: whoever reads page after page reads each listener once.
    fn list_port_states(
        &mut self,
        instance: &Instance,
        fleet_wide: &[Reservation],
        query: &PortQuery,
        after: Option<(Protocol, Port)>,
        most: usize,
    ) -> Result<Vec<PortState>, Error> {
        let held = self.list_live_of(instance.id)?;
        let (mut found, mut after, mut read) = (Vec::new(), after, most);
        loop {
            let until = self.find_listened_port(instance.id, query.port, query.protocol, after, read)?;
            let window = Window { after, until };
            let states = self.list_states_in(&window, instance, [&held, fleet_wide], query)?;
            found.extend(states.into_iter().filter(|state| lets_through(query, state)));
            match until {
                Some(_) if found.len() <= most => (after, read) = (until, page::wider(read)),
                _ => return Ok(found),
            }
        }
    }

    /// Every state of one instance in a window, of whatever is there or reserved: by its own reservations, or by those of
    /// the fleet.
    fn list_states_in(
        &mut self,
        window: &Window,
        instance: &Instance,
        [held, fleet_wide]: [&[Reservation]; 2],
        query: &PortQuery,
    ) -> Result<Vec<PortState>, Error> {
        let wanted = |protocol: Protocol, port: Port| {
            query.port.is_none_or(|range| range.contains(port)) && window.contains((protocol, port))
        };
        let range = query.port.filter(|range| range.count() <= PortQuery::WIDEST_WITH_FREE);
        let asked = range.into_iter().flat_map(|range| {
            Protocol::ALL.iter().flat_map(move |protocol| range.ports().map(|port| (*protocol, port)))
        });
        let asked = asked.filter(|key| window.contains(*key));
        let listeners = self.list_listeners_in(instance.id, query.port, query.protocol, window)?;
        let held: Vec<&Reservation> = held.iter().chain(fleet_wide).collect();
        let joined = join(instance.id, held, listeners, asked, wanted);
        Ok(joined
            .into_iter()
            .map(|((protocol, port), joined)| show(instance, protocol, port, joined))
            .collect())
    }
}

/// What is known of a port, with what is known of its instance.
pub(crate) fn show(instance: &Instance, protocol: Protocol, port: Port, joined: Joined) -> PortState {
    let Joined { reservation, mut listeners, state, fit } = joined;
    // Stored is when it last changed; seen it was whenever the home namespace was confirmed.
    for listener in listeners.iter_mut().filter(|listener| listener.key.netns == Netns::Home) {
        listener.last_seen_at =
            listener.last_seen_at.max(instance.observed_at.unwrap_or(listener.last_seen_at));
    }
    PortState {
        instance: link(instance),
        protocol,
        port,
        state,
        fit,
        reservation,
        listeners,
        observed_at: instance.observed_at,
        presence: instance.presence,
    }
}

/// The last state of the page before.
struct After {
    /// The instance's name as it is sorted.
    name: String,
    port: (Protocol, Port),
}

impl After {
    fn into_key(self) -> DriftKey {
        let (protocol, port) = self.port;
        DriftKey { name_key: self.name, protocol, port: port.get() }
    }
}

fn cursor_of(last: &PortState) -> String {
    page::cursor(&[&name_key(&last.instance.name), &last.protocol, &last.port])
}

fn read_cursor(cursor: &str) -> Result<After, Error> {
    let [name, protocol, port] = page::parts(cursor)?;
    Ok(After { name: name.to_owned(), port: (page::part(protocol)?, page::part(port)?) })
}

pub(crate) fn lets_through(query: &PortQuery, state: &PortState) -> bool {
    let has =
        |text: &Option<Observed>, part: &str| text.as_ref().is_some_and(|text| contains(text.as_str(), part));
    let held = state.reservation.as_ref();
    let any = |test: &dyn Fn(&Listener) -> bool| state.listeners.iter().any(test);
    let process = |part: &str| {
        any(&|listener| {
            listener.owners.iter().any(|owner| contains(owner.name.as_str(), part) || has(&owner.exe, part))
        })
    };
    let container = |part: &str| {
        any(&|listener| {
            listener.container.as_ref().is_some_and(|container| {
                container.id.as_str().starts_with(part)
                    || container.name.as_ref().is_some_and(|name| name.as_str() == part)
            })
        })
    };
    let unit = |part: &str| any(&|listener| has(&listener.unit, part));
    let anywhere = |part: &str| {
        let service =
            held.and_then(|held| held.service.as_ref()).is_some_and(|text| contains(text.as_str(), part));
        let note = held.and_then(|held| held.note.as_ref()).is_some_and(|text| contains(text.as_str(), part));
        service || note || process(part) || unit(part) || container(part)
    };
    let asked_for_free = query.port.is_some() || query.state == Some(State::Free);
    (state.state != State::Free || !state.listeners.is_empty() || asked_for_free)
        && query.protocol.is_none_or(|protocol| protocol == state.protocol)
        && query.state.is_none_or(|wanted| wanted == state.state)
        && query
            .service
            .as_ref()
            .is_none_or(|service| held.is_some_and(|held| held.service.as_ref() == Some(service)))
        && query.holder.as_ref().is_none_or(|holder| held.is_some_and(|held| held.holder == *holder))
        && query.process.as_deref().is_none_or(process)
        && query.unit.as_deref().is_none_or(unit)
        && query.container.as_deref().is_none_or(container)
        && query.q.as_deref().is_none_or(anywhere)
        && query.netns.is_none_or(|netns| any(&|listener| listener.key.netns == netns))
}

fn contains(text: &str, part: &str) -> bool {
    text.to_lowercase().contains(&part.to_lowercase())
}
