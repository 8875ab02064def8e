//! Spaces: where a number is exclusive, on one instance or in the whole fleet.
//!
//! The same column form serves for whom a reservation is held: for one instance, or for all of them.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;

use gk_model::id::{FLEET, InstanceId};
use gk_model::instance::InstanceLink;
use gk_model::reservation::{Reservation, Scope};
use gk_model::text::InstanceName;

use crate::error::StoreError;
use crate::rows::{Row, Rows};
use crate::tx::Reader;
use crate::value::{Column, Value};

/// An instance, or the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    Instance(InstanceId),
    Fleet,
}

impl Space {
    /// Where the ports of a reservation are claimed.
    pub(crate) fn of(scope: Scope, instance: Option<&InstanceLink>) -> Space {
        match scope {
            Scope::Instance => Space::held_for(instance),
            Scope::Fleet => Space::Fleet,
        }
    }

    pub(crate) fn of_reservation(reservation: &Reservation) -> Space {
        Space::of(reservation.scope, reservation.instance.as_ref())
    }

    /// For whom something is held.
    pub(crate) fn held_for(instance: Option<&InstanceLink>) -> Space {
        instance.map_or(Space::Fleet, |instance| Space::Instance(instance.id))
    }
}

impl From<InstanceId> for Space {
    fn from(id: InstanceId) -> Space {
        Space::Instance(id)
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Space::Instance(id) => id.fmt(f),
            Space::Fleet => f.write_str(FLEET),
        }
    }
}

impl FromStr for Space {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Space, uuid::Error> {
        if text == FLEET { Ok(Space::Fleet) } else { text.parse().map(Space::Instance) }
    }
}

/// Reads an instance and its name, from two columns that a left join with `instance` gives; none for the fleet, and for
/// what is about no instance.
pub(crate) fn take_link(row: &mut Row) -> Result<Option<InstanceLink>, StoreError> {
    let (space, name): (Option<Space>, Option<_>) = (row.take()?, row.take()?);
    link(space, |_| name)
}

fn link(
    space: Option<Space>,
    name: impl FnOnce(InstanceId) -> Option<InstanceName>,
) -> Result<Option<InstanceLink>, StoreError> {
    let Some(Space::Instance(id)) = space else { return Ok(None) };
    let name = name(id).ok_or_else(|| StoreError::Corrupt(format!("instance {id} is gone")))?;
    Ok(Some(InstanceLink { id, name }))
}

/// How many instances one statement asks for: binding a value takes longer the more there are.
const MOST_IDS: usize = 256;

/// The names of the instances that a long page is about: asked for once each, where a join would look one up for every
/// row.
pub(crate) struct Names(HashMap<InstanceId, InstanceName>);

impl Names {
    /// Reads an instance from one column; none for the fleet, and for what is about no instance.
    pub(crate) fn take_link(&self, row: &mut Row) -> Result<Option<InstanceLink>, StoreError> {
        link(row.take()?, |id| self.0.get(&id).cloned())
    }
}

impl Reader<'_> {
    /// The names of all instances in one column of an answer.
    pub(crate) fn list_names(&mut self, rows: &Rows, column: usize) -> Result<Names, StoreError> {
        let mut ids = HashSet::new();
        for space in rows.column(column) {
            if let Some(Space::Instance(id)) = space? {
                ids.insert(id);
            }
        }
        self.look_up(ids, "name").map(Names)
    }

    /// One column of each of these instances.
    pub(crate) fn look_up<T: Column>(
        &mut self,
        ids: HashSet<InstanceId>,
        column: &str,
    ) -> Result<HashMap<InstanceId, T>, StoreError> {
        let mut found = HashMap::with_capacity(ids.len());
        let ids = Vec::from_iter(ids);
        for some in ids.chunks(MOST_IDS) {
            // Powers of two, so that there are only so many texts; that the last id is in one twice changes nothing.
            let count = some.len().next_power_of_two();
            let mut sql = format!("select id, {column} from instance where id in ($1");
            (2..=count).for_each(|number| sql.push_str(&format!(", ${number}")));
            sql.push(')');
            let last = some.last().into_iter().cycle();
            let values: Vec<Value> = some.iter().chain(last).take(count).map(|id| (*id).into()).collect();
            for mut row in self.query(&sql, &values)? {
                found.insert(row.take()?, row.take()?);
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use gk_model::text::InstanceName;
    use gk_model::time::Timestamp;

    use super::*;
    use crate::rows::Cell;
    use crate::{Store, StoreConfig};

    #[test]
    fn each_instance_of_a_page_has_its_name_and_one_without_is_damage() {
        let directory = tempfile::TempDir::new().unwrap();
        let now = Timestamp::from_micros(0);
        let store = Store::open_here(&StoreConfig::embedded(directory.path()), now).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ids: Vec<InstanceId> = (0..MOST_IDS + 44).map(|_| InstanceId::generate(now)).collect();
        let name = |id: InstanceId| -> InstanceName { format!("node-{id}").parse().unwrap() };
        let asked = ids.clone();
        let stored = runtime.block_on(store.write(move |tx| {
            for id in &asked {
                let sql = "insert into instance (id, name, name_key, subject, facts, joined_at, version, session, \
                           sequence, digest, complete, occupied) values ($1, $2, $1, $1, '{}', 0, 1, 0, 0, '', 0, '[]')";
                tx.later(sql, crate::value::values![*id, &name(*id)])?;
            }
            let mut rows = Rows::new(2);
            let stranger = InstanceId::generate(now).to_string();
            let texts = asked.iter().chain(&asked).map(ToString::to_string).chain([stranger, FLEET.to_owned()]);
            for text in texts {
                rows.push(Cell::Integer(7));
                rows.push(Cell::Text(&text));
            }
            let names = tx.list_names(&rows, 1)?;
            let links = rows.into_iter().map(|mut row| {
                row.take::<u64>()?;
                names.take_link(&mut row)
            });
            Ok(links.collect::<Vec<_>>())
        }));
        let stored = stored.unwrap();
        let (found, rest) = stored.split_at(2 * ids.len());
        for (link, id) in found.iter().zip(ids.iter().chain(&ids)) {
            assert_eq!(link.as_ref().unwrap(), &Some(InstanceLink { id: *id, name: name(*id) }));
        }
        assert!(matches!(rest, [Err(StoreError::Corrupt(_)), Ok(None)]), "{rest:?}");
        store.close();
    }
}
