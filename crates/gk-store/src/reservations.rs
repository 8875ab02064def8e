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
use crate::instances::check_version;
use crate::page;
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

    /// Live reservations by instance name, protocol and port.
    ///
    /// # Errors
    /// [`Refusal::NoSuchInstance`], [`Refusal::BadCursor`].
    pub fn list_reservations(&mut self, query: &ReservationQuery) -> Result<Page<Reservation>, Error> {
        let instance = self.resolve(query.instance.as_ref())?;
        let ports = query.port.unwrap_or(PortRange::ALL);
        let (after_instance, after_protocol, after_port) = match &query.cursor {
            Some(cursor) => {
                let [instance, protocol, port] = page::parts(cursor)?;
                (instance.to_owned(), protocol.to_owned(), page::part::<i64>(port)?)
            }
            None => (String::new(), String::new(), 0),
        };
        let rows = self.query(
            &format!(
                "{SELECT} where r.released_at is null and (r.instance, r.protocol, r.first_port) > ($1, $2, $3) \
                 and (cast($4 as text) is null or r.instance = $4) and r.first_port <= $6 and r.last_port >= $5 \
                 and (cast($7 as text) is null or r.protocol = $7) and (cast($8 as text) is null or r.service = $8) \
                 and (cast($9 as text) is null or r.holder = $9) \
                 order by r.instance, r.protocol, r.first_port limit $10"
            ),
            values![
                after_instance,
                after_protocol,
                after_port,
                instance,
                ports.first(),
                ports.last(),
                query.protocol,
                query.service.as_ref(),
                query.holder.as_ref(),
                query.limit() + 1,
            ],
        )?;
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
            values![ended.id, now, &actor.subject],
        )?;
        self.later(
            "update interval set ended_at = $2 where seq = (select began_seq from reservation where id = $1)",
            values![ended.id, now],
        )?;
        self.unclaim(ended, now)?;
        Ok(())
    }
}
