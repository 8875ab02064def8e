//! Reservations: finding them, and ending them.

use gk_model::access::Actor;
use gk_model::history::EventKind;
use gk_model::id::{InstanceId, ReservationId};
use gk_model::instance::InstanceLink;
use gk_model::port::{Port, PortRange, Protocol};
use gk_model::query::{Page, ReservationQuery};
use gk_model::reservation::Reservation;
use gk_model::time::Timestamp;

use crate::error::{Error, Refusal, StoreError};
use crate::membership::check_version;
use crate::page::{self, Filters};
use crate::tx::{NewEvent, Reader, Tx};
use crate::value::{Row, values};

const SELECT: &str = "select r.id, r.instance, n.name, r.scope, r.protocol, r.first_port, r.last_port, r.name, \
                      r.service, r.holder, r.note, r.pool, r.created_at, r.released_at, r.released_by, r.version \
                      from reservation r join instance n on n.id = r.instance";

fn read_reservation(mut row: Row) -> Result<Reservation, StoreError> {
    Ok(Reservation {
        id: row.take()?,
        instance: InstanceLink { id: row.take()?, name: row.take()? },
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
    })
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
    pub fn list_reservations(&mut self, query: &ReservationQuery) -> Result<Page<Reservation>, Error> {
        let instance = self.resolve(query.instance.as_ref())?;
        let after = match &query.cursor {
            Some(cursor) => {
                let [instance, protocol, port] = page::parts(cursor)?;
                (instance.to_owned(), protocol.to_owned(), page::part::<i64>(port)?)
            }
            None => (String::new(), String::new(), 0),
        };
        let live = "r.released_at is null and (r.instance, r.protocol, r.first_port) > ($1, $2, $3)";
        let filters = Filters::new(live, values![after.0, after.1, after.2])
            .and("r.instance = $?", instance)
            .and("r.first_port <= $?", query.port.map(PortRange::last))
            .and("r.last_port >= $?", query.port.map(PortRange::first))
            .and("r.protocol = $?", query.protocol)
            .and("r.service = $?", query.service.as_ref())
            .and("r.holder = $?", query.holder.as_ref());
        let (sql, values) = filters.finish(SELECT, "r.instance, r.protocol, r.first_port", query.limit());
        let rows = self.query(&sql, &values)?;
        page::page(rows, query.limit(), read_reservation, |last| {
            page::cursor(&[&last.instance.id, &last.protocol, &last.first_port])
        })
    }

    /// Every live reservation of an instance, by protocol and port.
    pub(crate) fn list_live_of(&mut self, instance: InstanceId) -> Result<Vec<Reservation>, StoreError> {
        let sql = format!(
            "{SELECT} where r.instance = $1 and r.released_at is null order by r.protocol, r.first_port"
        );
        self.query(&sql, values![instance])?.into_iter().map(read_reservation).collect()
    }

    /// Who claims a port that is claimed.
    pub(crate) fn get_claimant(
        &mut self,
        instance: InstanceId,
        protocol: Protocol,
        port: Port,
    ) -> Result<Reservation, Error> {
        let sql =
            "select reservation from claim where space in ($1, 'fleet') and protocol = $2 and port = $3";
        let row = self.query_one(sql, values![instance, protocol, port])?;
        let mut row =
            row.ok_or_else(|| StoreError::Corrupt(format!("the claim on {port}/{protocol} is gone")))?;
        self.get_reservation(row.take()?)
    }
}

impl Tx<'_> {
    /// Ends a reservation. Only the holder may; an operator may for others with `force`.
    ///
    /// # Errors
    /// [`Refusal::NoSuchReservation`], [`Refusal::AlreadyReleased`], [`Refusal::NotTheHolder`],
    /// [`Refusal::VersionMismatch`].
    pub fn release(
        &mut self,
        actor: &Actor,
        id: ReservationId,
        force: bool,
        if_version: Option<u64>,
        now: Timestamp,
    ) -> Result<Reservation, Error> {
        self.check_credential(actor)?;
        let reservation = self.get_reservation(id)?;
        if reservation.released_at.is_some() {
            return Err(Refusal::AlreadyReleased(Box::new(reservation)).into());
        }
        if reservation.holder != actor.subject && !(force && actor.is_operator()) {
            return Err(Refusal::NotTheHolder(Box::new(reservation)).into());
        }
        check_version(if_version, reservation.version)?;
        self.end_reservation(actor, &reservation, now)?;
        self.get_reservation(id)
    }

    /// Ends a live reservation, whoever holds it.
    pub(crate) fn end_reservation(
        &mut self,
        actor: &Actor,
        ended: &Reservation,
        now: Timestamp,
    ) -> Result<(), Error> {
        let ports = ended.ports();
        // Nothing ends before it began, even if the clock stepped back in between.
        let ended_at = now.max(ended.created_at);
        let whose =
            if actor.subject == ended.holder { String::new() } else { format!(", held by {}", ended.holder) };
        self.record(NewEvent {
            at: now,
            recorded_at: now,
            kind: EventKind::Released,
            instance: ended.instance.id,
            ports: Some((ended.protocol, ports)),
            actor: &actor.subject,
            reservation: Some(ended.id),
            listener: None,
            message: format!("{ports}/{} released by {}{whose}", ended.protocol, actor.subject),
        })?;
        self.later(
            "update reservation set released_at = $2, released_by = $3, version = version + 1 where id = $1",
            values![ended.id, ended_at, &actor.subject],
        )?;
        self.later(
            "update interval set ended_at = $2 where seq = (select began_seq from reservation where id = $1)",
            values![ended.id, ended_at],
        )?;
        self.unclaim(ended, now)?;
        Ok(())
    }
}
