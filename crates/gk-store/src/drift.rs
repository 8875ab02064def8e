//! Drift, read: what is kept of it, page by page, and the whole fleet in a few numbers.
//!
//! Nothing is searched for here. Rows are read in the order in which they are listed, and what belongs to the rows of a
//! page is joined for these alone; so a page costs what is on it, however large the fleet is.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use gk_model::drift::{Drift, DriftKind};
use gk_model::id::InstanceId;
use gk_model::ignore::Ignore;
use gk_model::instance::{Instance, OFFLINE_AFTER, Presence};
use gk_model::labels::{Label, Labels};
use gk_model::port::{Port, PortRange, Protocol};
use gk_model::port_state::PortState;
use gk_model::query::{DriftQuery, IdleTime, Page};
use gk_model::reservation::Reservation;
use gk_model::status::{DriftCounts, InstanceCounts, ReservationCounts, Status};
use gk_model::text::{IgnoreName, ServiceName, Subject};
use gk_model::time::Timestamp;

use crate::error::{Error, Refusal, StoreError};
use crate::ignores::find_ignoring_idle;
use crate::labelled::Chosen;
use crate::page::{self, Filters};
use crate::ports::show;
use crate::rows::Row;
use crate::settle::Touched;
use crate::tx::Reader;
use crate::value::values;

/// A row of the table, as it is listed.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) instance: InstanceId,
    pub(crate) protocol: Protocol,
    pub(crate) port: Port,
    kind: DriftKind,
    since: Timestamp,
    ignored_by: Option<IgnoreName>,
    name_key: String,
}

/// Where a row is in the list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DriftKey {
    pub(crate) name_key: String,
    pub(crate) protocol: Protocol,
    /// 0 comes before every port.
    pub(crate) port: u16,
}

impl DriftKey {
    pub(crate) fn first() -> DriftKey {
        DriftKey { name_key: String::new(), protocol: Protocol::Tcp, port: 0 }
    }
}

impl Listed {
    pub(crate) fn key(&self) -> DriftKey {
        DriftKey { name_key: self.name_key.clone(), protocol: self.protocol, port: self.port.get() }
    }
}

/// Which rows.
#[derive(Clone, Default)]
pub(crate) struct DriftFilter<'a> {
    pub(crate) kinds: Vec<DriftKind>,
    pub(crate) ignored: bool,
    pub(crate) instance: Option<InstanceId>,
    pub(crate) chosen: Option<&'a Chosen>,
    pub(crate) port: Option<PortRange>,
    pub(crate) protocol: Option<Protocol>,
    pub(crate) service: Option<&'a ServiceName>,
    pub(crate) holder: Option<&'a Subject>,
}

/// Where the page before ended.
enum After {
    Ports(DriftKey),
    Idle(Timestamp, String),
}

/// How the cursor of an idle reservation begins: no name of an instance does.
const IDLE: &str = "@idle";

fn read_cursor(cursor: Option<&str>) -> Result<After, Refusal> {
    let Some(cursor) = cursor else { return Ok(After::Ports(DriftKey::first())) };
    if let Some(idle) = cursor.strip_prefix(IDLE).and_then(|rest| rest.strip_prefix('~')) {
        let [since, id] = page::parts(idle)?;
        return Ok(After::Idle(Timestamp::from_micros(page::part(since)?), id.to_owned()));
    }
    let [name_key, protocol, port] = page::parts(cursor)?;
    let name_key = name_key.to_owned();
    Ok(After::Ports(DriftKey { name_key, protocol: page::part(protocol)?, port: page::part(port)? }))
}

fn cursor_of(last: &Drift) -> String {
    match (&last.instance, &last.reservation) {
        (_, Some(idle)) if last.kind == DriftKind::Idle => {
            page::cursor(&[&IDLE, &last.since.as_micros(), &idle.id])
        }
        (Some(instance), _) => {
            page::cursor(&[&crate::instances::name_key(&instance.name), &last.protocol, &last.first_port])
        }
        (None, _) => String::new(),
    }
}

impl Reader<'_> {
    /// What differs from the plan: ports by instance name, protocol and port; then, if they are asked for, reservations
    /// by how long they have been idle.
    ///
    /// # Errors
    /// [`Refusal::NoSuchInstance`], [`Refusal::BadCursor`].
    pub fn list_drift(&mut self, query: &DriftQuery, now: Timestamp) -> Result<Page<Drift>, Error> {
        let instance = self.resolve(query.instance.as_ref())?;
        let limit = query.limit() as usize;
        let after = read_cursor(query.cursor.as_deref())?;
        let mut found = Vec::new();
        if let After::Ports(after) = &after {
            let chosen = self.choose(query.label.as_ref())?;
            let wanted = DriftFilter {
                kinds: kinds_of(query),
                ignored: query.ignored == Some(true),
                instance,
                chosen: chosen.as_ref(),
                port: query.port,
                protocol: query.protocol,
                service: query.service.as_ref(),
                holder: query.holder.as_ref(),
            };
            let rows = self.list_drifting(&wanted, after, limit + 1)?;
            found = self.show_drifting(rows, now)?;
        }
        let idle_for =
            query.idle_for_seconds.or((query.kind == Some(DriftKind::Idle)).then_some(IdleTime::ANY));
        let wants_idle = query.kind.is_none_or(|kind| kind == DriftKind::Idle);
        if let Some(idle_for) = idle_for.filter(|_| wants_idle && found.len() <= limit) {
            let after = match after {
                After::Idle(since, id) => (since, id),
                After::Ports(_) => (Timestamp::from_micros(i64::MIN), String::new()),
            };
            let most = limit + 1 - found.len();
            found.extend(self.list_idle(query, instance, (idle_for, after), most, now)?);
        }
        page::page(found, query.limit(), Ok, cursor_of)
    }

    /// Rows after a place, in the order of the list: at most so many. An index gives those of each kind, ignored or not,
    /// in order; here the few are merged.
    pub(crate) fn list_drifting(
        &mut self,
        wanted: &DriftFilter<'_>,
        after: &DriftKey,
        most: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        let mut found = Vec::new();
        for kind in &wanted.kinds {
            for ignored in [false, true].into_iter().filter(|ignored| wanted.ignored || !ignored) {
                let (sql, values) = select(wanted, *kind, ignored, after, most);
                let rows = self.query(&sql, &values)?;
                for row in rows {
                    found.push(read_listed(row)?);
                }
            }
        }
        found.sort_by_key(Listed::key);
        found.truncate(most);
        Ok(found)
    }

    /// Everything about these rows.
    fn show_drifting(&mut self, rows: Vec<Listed>, now: Timestamp) -> Result<Vec<Drift>, Error> {
        let ports = rows.iter().map(|row| (row.instance, (row.protocol, row.port)));
        let states = self.list_states_of(ports, now)?;
        let shown = rows.into_iter().filter_map(|row| {
            let state = states.get(&(row.instance, row.protocol, row.port))?.clone();
            Some(Drift {
                kind: row.kind,
                instance: Some(state.instance),
                protocol: row.protocol,
                first_port: row.port,
                last_port: row.port,
                since: row.since,
                reservation: state.reservation,
                listeners: state.listeners,
                fit: state.fit,
                ignored_by: row.ignored_by,
                observed_at: state.observed_at,
                presence: Some(state.presence),
            })
        });
        Ok(shown.collect())
    }

    /// The states of some ports of some instances.
    pub(crate) fn list_states_of(
        &mut self,
        ports: impl IntoIterator<Item = (InstanceId, (Protocol, Port))>,
        now: Timestamp,
    ) -> Result<BTreeMap<(InstanceId, Protocol, Port), PortState>, Error> {
        let mut by_instance: BTreeMap<InstanceId, BTreeSet<(Protocol, Port)>> = BTreeMap::new();
        for (instance, key) in ports {
            by_instance.entry(instance).or_default().insert(key);
        }
        let mut states = BTreeMap::new();
        for (id, keys) in by_instance {
            let instance = self.get_instance(&id.into(), now)?;
            for (protocol, range) in Touched::from(keys.clone()).stretches() {
                let joined = self.join_stretch(id, protocol, range)?.joined;
                let wanted = joined.into_iter().filter(|(key, _)| keys.contains(key));
                for ((protocol, port), joined) in wanted {
                    states.insert((id, protocol, port), show(&instance, protocol, port, joined));
                }
            }
        }
        Ok(states)
    }

    fn list_idle(
        &mut self,
        query: &DriftQuery,
        instance: Option<InstanceId>,
        (idle_for, mut after): (IdleTime, (Timestamp, String)),
        most: usize,
        now: Timestamp,
    ) -> Result<Vec<Drift>, Error> {
        let rules = self.list_rules()?;
        let until = now.minus(idle_for.duration());
        let (mut instances, mut found, mut read) = (HashMap::new(), Vec::new(), most);
        loop {
            let held = self.list_idle_reservations(query, instance, (until, &after), read)?;
            let is_complete = held.len() < read;
            for held in held {
                after = (held.idle_since.unwrap_or(now), held.id.to_string());
                let place = match &held.instance {
                    Some(link) => Some(self.remember_instance(&mut instances, link.id, now)?),
                    None => None,
                };
                found.extend(show_idle(query, &rules, held, place));
            }
            if is_complete || found.len() >= most {
                found.truncate(most);
                return Ok(found);
            }
            read = page::wider(read);
        }
    }

    fn remember_instance<'k>(
        &mut self,
        known: &'k mut HashMap<InstanceId, Instance>,
        id: InstanceId,
        now: Timestamp,
    ) -> Result<&'k Instance, Error> {
        Ok(match known.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(self.get_instance(&id.into(), now)?),
        })
    }

    /// The fleet in a few numbers. Costs the same for a large fleet as for a small one, but for instances that are
    /// offline.
    ///
    /// # Errors
    /// Only when the database fails.
    pub fn get_status(&mut self, now: Timestamp) -> Result<Status, Error> {
        let counts = self.get_counts()?;
        let number = |count: i64| u64::try_from(count).unwrap_or_default();
        let (joined, offline) = (number(counts.instances), self.count_offline(now)?);
        Ok(Status {
            instances: InstanceCounts { joined, online: joined.saturating_sub(offline), offline },
            reservations: ReservationCounts {
                live: number(counts.reservations),
                leases: number(counts.leases),
            },
            drift: DriftCounts {
                conflict: number(counts.conflicts),
                unreserved: number(counts.unreserved),
                ignored: number(counts.ignored),
            },
            listeners: number(counts.listeners),
            as_of: now,
        })
    }

    /// More than usually are offline.
    const FEW_UNHEARD: usize = 100;

    /// Those that the database has not heard of for long, less those that were heard of since it was told.
    fn count_offline(&mut self, now: Timestamp) -> Result<u64, StoreError> {
        let started_at = self.shared.started_at;
        let mut offline = 0;
        for mut row in self.list_unheard(now.minus(OFFLINE_AFTER))? {
            let (id, stored): (InstanceId, Option<Timestamp>) = (row.take()?, row.take()?);
            let heard = self.shared.beats.times(id).map(|times| times.last_contact_at);
            let presence = Presence::of(stored.max(heard), started_at, now);
            offline += u64::from(presence == Presence::Offline);
        }
        Ok(offline)
    }

    /// Those whose last contact that the database knows of was by then, or that it knows of none.
    fn list_unheard(&mut self, until: Timestamp) -> Result<Vec<Row>, StoreError> {
        let silent = "select id, last_contact_at from instance where left_at is null and last_contact_at";
        let never = self.query(&format!("{silent} is null"), values![])?;
        // Statistics of a time are always old, and by them all are silent: only a limit makes PostgreSQL use the index.
        let few = format!("{silent} <= $1 order by last_contact_at limit {}", Self::FEW_UNHEARD);
        let mut heard = self.query(&few, values![until])?;
        if heard.len() == Self::FEW_UNHEARD {
            heard = self.query(&format!("{silent} <= $1"), values![until])?;
        }
        Ok(never.into_iter().chain(heard).collect())
    }
}

/// The kinds that have rows.
fn kinds_of(query: &DriftQuery) -> Vec<DriftKind> {
    let is_reserved = query.service.is_some() || query.holder.is_some();
    let mut kinds = match query.kind {
        Some(kind) => vec![kind],
        None => vec![DriftKind::Conflict, DriftKind::Unreserved],
    };
    kinds.retain(|kind| *kind != DriftKind::Idle && !(is_reserved && *kind == DriftKind::Unreserved));
    kinds
}

fn select(
    wanted: &DriftFilter<'_>,
    kind: DriftKind,
    ignored: bool,
    after: &DriftKey,
    most: usize,
) -> (String, Vec<crate::value::Value>) {
    let is_reserved = wanted.service.is_some() || wanted.holder.is_some();
    let reservation = if is_reserved { " join reservation r on r.id = d.reservation" } else { "" };
    // Instances first, in the order of the list: of a small part of a large fleet, most rows would be read in vain.
    let label = wanted.chosen.and_then(|chosen| chosen.label.as_ref());
    let (instances, of_these, name_key) = match (wanted.chosen, label) {
        (None, _) => ("", "", "d.name_key"),
        (Some(_), None) => (
            "instance n cross join ",
            "n.left_at is null and n.name_key >= $3 and d.name_key = n.name_key and ",
            "n.name_key",
        ),
        (Some(_), Some(_)) => (
            "instance_label l cross join instance n cross join ",
            "n.id = l.instance and n.left_at is null and l.name_key >= $3 and d.name_key = l.name_key and ",
            "l.name_key",
        ),
    };
    let select = format!(
        "select d.instance, d.protocol, d.port, d.kind, d.since, d.ignored_by, d.name_key \
         from {instances}drift d{reservation}"
    );
    let after_it = "d.kind = $1 and d.ignored = $2 and (d.name_key, d.protocol, d.port) > ($3, $4, $5)";
    let filters = Filters::new(
        &format!("{of_these}{after_it}"),
        values![kind, ignored, after.name_key.as_str(), after.protocol, i64::from(after.port)],
    );
    let filters = filters
        .and("d.instance = $?", wanted.instance)
        .and("d.port >= $?", wanted.port.map(PortRange::first))
        .and("d.port <= $?", wanted.port.map(PortRange::last))
        .and("d.protocol = $?", wanted.protocol)
        .and("r.service = $?", wanted.service)
        .and("r.holder = $?", wanted.holder)
        .and("l.label = $?", label.map(Label::to_string))
        .and_tested("n.", wanted.chosen);
    let most = u32::try_from(most).unwrap_or(u32::MAX).saturating_sub(1);
    filters.finish(&select, &format!("{name_key}, d.protocol, d.port"), most)
}

fn read_listed(mut row: Row) -> Result<Listed, StoreError> {
    Ok(Listed {
        instance: row.take()?,
        protocol: row.take()?,
        port: row.take()?,
        kind: row.take()?,
        since: row.take()?,
        ignored_by: row.take()?,
        name_key: row.take()?,
    })
}

/// An idle reservation as drift, if the query lets it through.
fn show_idle(
    query: &DriftQuery,
    rules: &[Ignore],
    held: Reservation,
    place: Option<&Instance>,
) -> Option<Drift> {
    let no_labels = Labels::default();
    let labels = place.map_or(&no_labels, |place| &place.labels);
    let ignored_by = find_ignoring_idle(rules, labels, held.protocol, held.ports()).cloned();
    let is_shown = ignored_by.is_none() || query.ignored == Some(true);
    is_shown.then(|| Drift {
        kind: DriftKind::Idle,
        instance: held.instance.clone(),
        protocol: held.protocol,
        first_port: held.first_port,
        last_port: held.last_port,
        since: held.idle_since.unwrap_or(held.created_at),
        listeners: Vec::new(),
        fit: None,
        ignored_by,
        observed_at: place.and_then(|place| place.observed_at),
        presence: place.map(|place| place.presence),
        reservation: Some(held),
    })
}

#[cfg(test)]
mod tests {
    use gk_model::id::InstanceId;

    use super::*;
    use crate::schema::plan;

    #[test]
    fn no_page_of_drift_sorts_or_reads_all_of_it() {
        let (service, holder): (ServiceName, Subject) = ("web".parse().unwrap(), "ada".parse().unwrap());
        let chosen = ["env in (prod,test),team!=web", "env=prod"]
            .map(|selector| Chosen { label: selector.parse().ok(), selector: selector.parse().unwrap() });
        for filters in 0..128 {
            let on = |bit: u32| (filters >> bit & 1 == 1).then_some(());
            let wanted = DriftFilter {
                instance: on(0).map(|()| InstanceId::generate(Timestamp::from_micros(0))),
                port: on(1).map(|()| PortRange::ALL),
                protocol: on(2).map(|()| Protocol::Tcp),
                service: on(3).map(|()| &service),
                holder: on(4).map(|()| &holder),
                // Of one instance, labels choose all or nothing.
                chosen: on(5).filter(|()| on(0).is_none()).map(|()| &chosen[filters >> 6]),
                ..DriftFilter::default()
            };
            let (sql, values) = select(&wanted, DriftKind::Conflict, false, &DriftKey::first(), 10);
            let plan = plan(&sql, &values);
            // Where one protocol is asked for, the ports of each instance are put in order: those of one at a time.
            let is_kept_order = !plan.contains("TEMP B-TREE FOR ORDER BY") && !plan.contains("SCAN");
            let is_read_once = match wanted.chosen {
                // Those of each instance, one after the other.
                Some(Chosen { label, .. }) => {
                    plan.starts_with(if label.is_some() { "SEARCH l" } else { "SEARCH n" })
                        && plan.contains("ignored=? AND name_key=?")
                }
                None => plan.starts_with("SEARCH d"),
            };
            assert!(is_kept_order && is_read_once, "{filters}: {plan}");
        }
    }
}
