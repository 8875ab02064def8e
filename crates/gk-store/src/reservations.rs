//! Reservations, read: one, a list, and those that matter for another question.

use gk_model::id::{InstanceId, InstanceRef, ReservationId};
use gk_model::pool::Pool;
use gk_model::port::{Port, PortRange, Protocol};
use gk_model::port_set::PortSet;
use gk_model::protection::ReservedPorts;
use gk_model::query::{DriftQuery, Page, ReservationQuery, TargetQuery};
use gk_model::reservation::{PortCount, Reservation};
use gk_model::text::{PoolName, ServiceName, Subject};
use gk_model::time::Timestamp;

use crate::error::{Error, Refusal, StoreError};
use crate::labelled::Chosen;
use crate::page::{self, Filters};
use crate::rows::Row;
use crate::space::{Space, take_link};
use crate::tx::Reader;
use crate::value::{Json, Value, values};

const SELECT: &str = "select r.id, r.instance, n.name, r.scope, r.protocol, r.first_port, r.last_port, r.name, \
                      r.service, r.holder, r.note, r.pool, r.created_at, r.released_at, r.released_by, r.version, \
                      r.expires_at, r.group_id, r.split_from, r.labels, r.expect, r.idle_since, r.ttl_seconds, \
                      r.renew_while_listening \
                      from reservation r left join instance n on n.id = r.instance";

fn read_reservation(mut row: Row) -> Result<Reservation, StoreError> {
    Ok(Reservation {
        id: row.take()?,
        instance: take_link(&mut row)?,
        scope: row.take()?,
        protocol: row.take()?,
        first_port: row.take()?,
        last_port: row.take()?,
        name: row.take()?,
        service: row.take()?,
        holder: row.take()?,
        note: row.take()?,
        pool: row.take()?,
        created_at: row.take()?,
        released_at: row.take()?,
        released_by: row.take()?,
        version: row.take()?,
        expires_at: row.take()?,
        group: row.take()?,
        split_from: row.take()?,
        labels: row.take::<Option<Json<_>>>()?.map(|Json(labels)| labels).unwrap_or_default(),
        expect: row.take::<Option<Json<_>>>()?.map(|Json(expect)| expect),
        idle_since: row.take()?,
        ttl_seconds: row.take()?,
        renew_while_listening: row.take()?,
    })
}

/// Those that touch some ports, are for a service, or are somebody's.
fn narrow(
    filters: Filters,
    port: Option<PortRange>,
    service: Option<&ServiceName>,
    holder: Option<&Subject>,
) -> Filters {
    filters
        .and("r.first_port <= $?", port.map(PortRange::last))
        .and("r.last_port >= $?", port.map(PortRange::first))
        .and("r.service = $?", service)
        .and("r.holder = $?", holder)
}

/// The protocol is constant, and said where the index has it, so that the place is found there.
fn select_live_tcp(
    query: &TargetQuery,
    any: bool,
    (space, port): (&str, u16),
    most: u32,
) -> (String, Vec<Value>) {
    let live = "r.released_at is null and r.protocol = 'tcp' and (r.instance, r.protocol, r.first_port) > ($1, 'tcp', $2)";
    let condition = if any { live.to_owned() } else { format!("{live} and r.service is not null") };
    let filters = Filters::new(&condition, values![space, i64::from(port)]);
    let filters = narrow(filters, query.port, query.service.as_ref(), query.holder.as_ref());
    filters.finish(SELECT, "r.instance, r.protocol, r.first_port", most.saturating_sub(1))
}

/// Drawn from this pool, in words that let a database use the index: that has every pool but the default one.
fn drawn_from(pool: &PoolName, value: &str) -> String {
    let indexed = if pool.as_str() == Pool::DEFAULT { "" } else { " and r.pool <> 'default'" };
    format!("r.pool = {value}{indexed}")
}

/// The statement for one page of what is live, behind this place.
fn select(
    query: &ReservationQuery,
    chosen: Option<&Chosen>,
    (instance, protocol, port): (String, String, i64),
    of: Option<InstanceId>,
    now: Timestamp,
) -> (String, Vec<Value>) {
    let idle_since = query.idle_for_seconds.map(|idle| now.minus(idle.duration()));
    let live = "r.released_at is null and (r.instance, r.protocol, r.first_port) > ($1, $2, $3)";
    let pool = query.pool.as_ref();
    let filters = Filters::new(live, values![instance, protocol, port])
        .and("r.instance = $?", of)
        .and("r.protocol = $?", query.protocol)
        .and("r.name = $?", query.name.as_ref())
        .and(&pool.map_or_else(String::new, |pool| drawn_from(pool, "$?")), pool)
        .and("r.group_id = $?", query.group)
        .and("r.idle_since <= $?", idle_since)
        .and("r.expires_at < $?", query.expires_before)
        .and_chosen("n.", chosen);
    let filters = narrow(filters, query.port, query.service.as_ref(), query.holder.as_ref());
    filters.finish(SELECT, "r.instance, r.protocol, r.first_port", query.limit())
}

impl Reader<'_> {
    /// One reservation, live or released.
    ///
    /// # Errors
    /// [`Refusal::NoSuchReservation`].
    pub fn get_reservation(&mut self, id: ReservationId) -> Result<Reservation, Error> {
        let row = self.query_one(&format!("{SELECT} where r.id = $1"), values![id])?;
        Ok(read_reservation(row.ok_or(Refusal::NoSuchReservation(id))?)?)
    }

    /// Live reservations by instance, protocol and port.
    ///
    /// # Errors
    /// [`Refusal::NoSuchInstance`], [`Refusal::BadCursor`].
    pub fn list_reservations(
        &mut self,
        query: &ReservationQuery,
        now: Timestamp,
    ) -> Result<Page<Reservation>, Error> {
        let instance = self.resolve(query.instance.as_ref())?;
        let after = match &query.cursor {
            Some(cursor) => {
                let [instance, protocol, port] = page::parts(cursor)?;
                (instance.to_owned(), protocol.to_owned(), page::part::<i64>(port)?)
            }
            None => (String::new(), String::new(), 0),
        };
        let chosen = self.choose(query.label.as_ref())?;
        let (sql, values) = select(query, chosen.as_ref(), after, instance, now);
        let rows = self.query(&sql, &values)?;
        page::page(rows, query.limit(), read_reservation, |last| {
            page::cursor(&[&Space::held_for(last.instance.as_ref()), &last.protocol, &last.first_port])
        })
    }

    /// The numbers that are reserved on an instance, for itself or for all, whatever the protocol.
    ///
    /// # Errors
    /// [`Refusal::NoSuchInstance`], [`Refusal::InstanceLeft`].
    pub fn get_reserved_ports(&mut self, instance: &InstanceRef) -> Result<ReservedPorts, Error> {
        // The time matters for presence only, which is not asked for.
        let id = self.get_joined(instance, Timestamp::from_micros(0))?.id;
        let sql = "select first_port, last_port from reservation where instance in ($1, 'fleet') and released_at is null";
        let mut ports = PortSet::default();
        for mut row in self.query(sql, values![id])? {
            let (first, last): (Port, Port) = (row.take()?, row.take()?);
            PortRange::new(first, last).into_iter().for_each(|range| ports.insert_range(range));
        }
        Ok(ReservedPorts { ports })
    }

    /// Live reservations of TCP ports, in the order of their places (space, port), after one of them: those that are asked
    /// for, and only those for a service unless `any`. At most `most`.
    pub(crate) fn list_live_tcp(
        &mut self,
        query: &TargetQuery,
        any: bool,
        after: (&str, u16),
        most: u32,
    ) -> Result<Vec<Reservation>, StoreError> {
        let (sql, values) = select_live_tcp(query, any, after, most);
        self.query(&sql, &values)?.into_iter().map(read_reservation).collect()
    }

    fn list_where(&mut self, rest: &str, values: &[Value]) -> Result<Vec<Reservation>, StoreError> {
        let rows = self.query(&format!("{SELECT} where {rest}"), values)?;
        rows.into_iter().map(read_reservation).collect()
    }

    /// Every live reservation of an instance, by protocol and port; fleet-wide ones too, if they are held for it.
    pub(crate) fn list_live_of(&mut self, instance: InstanceId) -> Result<Vec<Reservation>, StoreError> {
        let rest = "r.instance = $1 and r.released_at is null order by r.protocol, r.first_port";
        self.list_where(rest, values![instance])
    }

    /// Every live reservation that counts for some of these ports of an instance: its own, and fleet-wide ones.
    pub(crate) fn list_live_on(
        &mut self,
        instance: InstanceId,
        protocol: Protocol,
        range: PortRange,
    ) -> Result<Vec<Reservation>, StoreError> {
        // None is longer than that, so no more of them are looked at.
        let lowest = i64::from(range.first().get()) - i64::from(PortCount::MAX.get());
        let within = "released_at is null and protocol = $2 and first_port > $3 and first_port <= $4 \
                      and last_port >= $5";
        let rest = format!(
            "r.id in (select id from reservation where instance = $1 and {within} \
             union select id from reservation where scope = 'fleet' and {within}) order by r.first_port, r.id"
        );
        self.list_where(&rest, values![instance, protocol, lowest, range.last(), range.first()])
    }

    /// Every live reservation that is fleet-wide, for whomever it is held.
    pub(crate) fn list_live_fleet_wide(&mut self) -> Result<Vec<Reservation>, StoreError> {
        let rest = "r.scope = 'fleet' and r.released_at is null order by r.protocol, r.first_port";
        self.list_where(rest, &[])
    }

    /// What a subject holds live for a service on one instance, or for all of them: the oldest first.
    pub(crate) fn list_live_for(
        &mut self,
        holder: &Subject,
        service: &ServiceName,
        place: Space,
    ) -> Result<Vec<Reservation>, StoreError> {
        let rest = "r.holder = $1 and r.service = $2 and r.instance = $3 and r.released_at is null \
                    order by r.created_at, r.first_port";
        self.list_where(rest, values![holder, service, place])
    }

    /// What a subject released last of what it held for a service and name.
    pub(crate) fn find_last_for(
        &mut self,
        holder: &Subject,
        service: &ServiceName,
        name: &str,
        place: Space,
        protocol: Protocol,
    ) -> Result<Option<Reservation>, StoreError> {
        let rest = "r.holder = $1 and r.service = $2 and r.instance = $3 and r.protocol = $4 \
                    and r.released_at is not null and coalesce(r.name, '') = $5 \
                    order by r.released_at desc, r.id desc limit 1";
        let found = self.list_where(rest, values![holder, service, place, protocol, name])?;
        Ok(found.into_iter().next())
    }

    /// Live reservations that have been idle since a time, the longest first, after one of them: at most so many.
    pub(crate) fn list_idle_reservations(
        &mut self,
        query: &DriftQuery,
        instance: Option<InstanceId>,
        (until, after): (Timestamp, &(Timestamp, String)),
        most: usize,
    ) -> Result<Vec<Reservation>, StoreError> {
        let live = "r.released_at is null and r.idle_since is not null and r.idle_since <= $1 \
                    and (r.idle_since, r.id) > ($2, $3)";
        let chosen = self.choose(query.label.as_ref())?;
        let filters = Filters::new(live, values![until, after.0, after.1.as_str()])
            .and("r.instance = $?", instance)
            .and("r.protocol = $?", query.protocol)
            .and_chosen("n.", chosen.as_ref());
        let filters = narrow(filters, query.port, query.service.as_ref(), query.holder.as_ref());
        let most = u32::try_from(most).unwrap_or(u32::MAX).saturating_sub(1);
        let (sql, values) = filters.finish(SELECT, "r.idle_since, r.id", most);
        self.query(&sql, &values)?.into_iter().map(read_reservation).collect()
    }

    /// Live leases whose time is over, the one that should have ended first first.
    pub(crate) fn list_due(&mut self, now: Timestamp, most: u32) -> Result<Vec<Reservation>, StoreError> {
        let rest = "r.released_at is null and r.expires_at is not null and r.expires_at <= $1 \
                    order by r.expires_at, r.id limit $2";
        self.list_where(rest, values![now, most])
    }

    /// Live leases whose end is to be announced, the nearest first.
    pub(crate) fn list_unannounced(
        &mut self,
        now: Timestamp,
        most: u32,
    ) -> Result<Vec<Reservation>, StoreError> {
        let rest = "r.released_at is null and r.warn_at is not null and r.warn_at <= $1 \
                    order by r.warn_at, r.id limit $2";
        self.list_where(rest, values![now, most])
    }

    /// Live leases that waited for an instance that was heard of since.
    pub(crate) fn list_awaited(&mut self, most: u32) -> Result<Vec<Reservation>, StoreError> {
        let rest = "r.released_at is null and r.awaited_since is not null and n.last_contact_at > r.awaited_since \
                    order by r.awaited_since, r.id limit $1";
        self.list_where(rest, values![most])
    }

    /// How many live reservations that were drawn from a pool have ports that it does not give, and the first of them.
    pub(crate) fn list_outside(
        &mut self,
        pool: &PoolName,
        most: usize,
    ) -> Result<(u64, Vec<Reservation>), StoreError> {
        let outside = format!(
            "{} and r.released_at is null and coalesce((select p.last_port from pool_range p \
             where p.pool = $1 and p.first_port <= r.first_port order by p.first_port desc limit 1), 0) < r.last_port",
            drawn_from(pool, "$1")
        );
        let counted = format!("select count(*) from reservation r where {outside}");
        let count = self.query_one(&counted, values![pool])?.map_or(Ok(0), |mut row| row.take())?;
        let rest = format!("{outside} order by r.first_port, r.protocol, r.id limit {most}");
        Ok((count, if count > 0 { self.list_where(&rest, values![pool])? } else { Vec::new() }))
    }

    /// Who claims a port that is claimed where a reservation in `space` would claim it.
    pub(crate) fn find_claimant(
        &mut self,
        space: Space,
        protocol: Protocol,
        port: Port,
    ) -> Result<Option<Reservation>, StoreError> {
        let found = match space {
            Space::Instance(_) => self.list_where(
                "r.id = (select reservation from claim where space in ($1, 'fleet') and protocol = $2 and port = $3 \
                 order by space limit 1)",
                values![space, protocol, port],
            )?,
            Space::Fleet => self.list_where(
                "r.id = (select reservation from claim where protocol = $1 and port = $2 order by space limit 1)",
                values![protocol, port],
            )?,
        };
        Ok(found.into_iter().next())
    }
}

#[cfg(test)]
mod tests {
    use gk_model::id::GroupId;

    use super::*;
    use crate::schema::plan;

    #[test]
    fn no_page_of_reservations_for_targets_sorts_or_reads_released_ones() {
        for any in [false, true] {
            let (sql, values) = select_live_tcp(&TargetQuery::default(), any, ("", 0), 1000);
            let plan = plan(&sql, &values);
            // The ports of each instance are put in order, because one protocol is asked for: those of one at a time.
            let is_kept_order = !plan.contains("TEMP B-TREE FOR ORDER BY") && !plan.contains("SCAN");
            assert!(plan.contains("reservation_live") && is_kept_order, "{any}: {plan}");
        }
    }

    #[test]
    fn no_list_by_group_or_pool_reads_all_that_is_live() {
        let now = Timestamp::from_micros(0);
        let of = InstanceId::generate(now);
        let plan_of = |query: &ReservationQuery, of| {
            let (sql, values) = select(query, None, (String::new(), String::new(), 0), of, now);
            plan(&sql, &values)
        };
        let group = ReservationQuery { group: Some(GroupId::generate(now)), ..Default::default() };
        let pool = |name: &str| ReservationQuery { pool: name.parse().ok(), ..Default::default() };
        let table = [
            (group, "reservation_group (group_id=?"),
            (pool("web"), "reservation_pool (pool=?"),
            (pool("default"), "reservation_live"),
            (ReservationQuery::default(), "reservation_live"),
        ];
        for (query, index) in table {
            let plan = plan_of(&query, None);
            assert!(plan.contains(index) && !plan.contains("TEMP B-TREE"), "{query:?}: {plan}");
            let plan = plan_of(&query, Some(of));
            assert!(plan.contains("instance=?") && !plan.contains("TEMP B-TREE"), "{query:?}: {plan}");
        }
    }
}
