//! Claims: a row for each live port, the safety net below rule 2 of the domain, and the rest that follows.
//!
//! The port comes before the space in the key, because what is fleet-wide concerns every space. So a range in one space
//! is looked up number by number: between its ends lie the claims of the whole fleet.

use gk_model::port::PortRange;
use gk_model::reservation::Reservation;
use gk_model::time::Timestamp;

use crate::error::StoreError;
use crate::pool_use::UseChange;
use crate::space::Space;
use crate::tx::Tx;
use crate::value::values;

/// The numbers from `$3` to `$4`.
macro_rules! numbers {
    () => {
        "(with recursive numbers (port) as (select cast($3 as bigint) union all \
         select port + 1 from numbers where port < cast($4 as bigint)) select port from numbers)"
    };
}

impl Tx<'_> {
    /// Claims the ports of a new reservation.
    pub(crate) fn claim(&mut self, made: &Reservation) -> Result<(), StoreError> {
        let (space, protocol, ports) = (Space::of_reservation(made), made.protocol, made.ports());
        // A single row can be packed with others of its kind; a range is one statement, however long it is.
        match ports.count() {
            1 => self.later(
                "insert into claim (space, protocol, port, reservation) values ($1, $2, $3, $4)",
                values![space, protocol, ports.first(), made.id],
            )?,
            _ => self.later(
                concat!(
                    "insert into claim (space, protocol, port, reservation) \
                     select cast($1 as text), cast($2 as text), n.port, cast($5 as text) from ",
                    numbers!(),
                    " as n"
                ),
                values![space, protocol, ports.first(), ports.last(), made.id],
            )?,
        }
        self.maps.claim(space, protocol, ports);
        self.uses.push(UseChange::Claimed(space, protocol, ports));
        Ok(())
    }

    /// Gives the ports of a part that was split off over to its own reservation.
    pub(crate) fn pass_on_claims(&mut self, part: &Reservation) -> Result<(), StoreError> {
        let (space, protocol, ports) = (Space::of_reservation(part), part.protocol, part.ports());
        self.later(
            concat!(
                "update claim set reservation = $5 where protocol = $2 and space = $1 and port in ",
                numbers!()
            ),
            values![space, protocol, ports.first(), ports.last(), part.id],
        )
    }

    /// Gives ports of a reservation back, keeping them from dynamic picks until `until`.
    pub(crate) fn unclaim(
        &mut self,
        held: &Reservation,
        ports: PortRange,
        until: Timestamp,
    ) -> Result<(), StoreError> {
        let (space, protocol) = (Space::of_reservation(held), held.protocol);
        self.later(
            concat!(
                "insert into quarantine (space, protocol, port, until_at, holder) \
                 select cast($1 as text), cast($2 as text), n.port, cast($5 as bigint), cast($6 as text) from ",
                numbers!(),
                // Where one database would take `on` for that of a join.
                " as n where true on conflict (space, protocol, port) \
                 do update set until_at = excluded.until_at, holder = excluded.holder"
            ),
            values![space, protocol, ports.first(), ports.last(), until, &held.holder],
        )?;
        match ports.count() {
            1 => self.later(
                "delete from claim where protocol = $2 and port = $3 and space = $1 and reservation = $4",
                values![space, protocol, ports.first(), held.id],
            )?,
            _ => self.later(
                concat!(
                    "delete from claim where protocol = $2 and space = $1 and reservation = $5 and port in ",
                    numbers!()
                ),
                values![space, protocol, ports.first(), ports.last(), held.id],
            )?,
        }
        self.maps.release(space, protocol, ports, until);
        self.uses.push(UseChange::Freed(space, protocol, ports));
        Ok(())
    }
}
