//! The checks of what settling keeps: it is joined anew from intent and fact, and compared.

use gk_model::drift::DriftKind;
use gk_model::id::{InstanceId, ReservationId};
use gk_model::port::{Port, PortRange, Protocol};
use gk_model::reservation::Reservation;
use gk_model::text::IgnoreName;

use super::Checked;
use crate::error::StoreError;
use crate::ignores::find_ignoring;
use crate::settle::{Kept, LabelledInstance, Stretch};
use crate::tx::Reader;
use crate::value::values;

/// Instances in memory at once; few in tests, whose databases are small.
const PAGE: usize = if cfg!(test) { 2 } else { 1000 };

/// A row for each port in conflict or unreserved, and no others.
pub(super) fn check_drift(reader: &mut Reader<'_>, checked: &mut Checked) -> Result<(), StoreError> {
    let sql = "select d.instance from drift d join instance n on n.id = d.instance \
               where n.left_at is not null or n.name_key <> d.name_key \
               or d.ignored <> case when d.ignored_by is null then 0 else 1 end \
               group by d.instance order by d.instance";
    for mut row in reader.query(sql, &[])? {
        let instance: String = row.take()?;
        checked.report(format!(
            "drift of {instance} is kept under another name, after it left, or as ignored by nobody"
        ));
    }
    let pending = reader.query_one("select recount from sweep where id = 0", &[])?;
    let pending: Option<bool> = pending.map(|mut row| row.take()).transpose()?;
    // Restored from an older version, nothing is kept before the first start; and rules are applied bit by bit.
    if pending == Some(true) {
        return Ok(());
    }
    let rules = if pending.is_none() { Some(reader.list_rules()?) } else { None };
    for_each_instance(reader, &mut |reader, id| {
        let place = reader.get_labelled(id)?;
        for protocol in Protocol::ALL.iter().copied() {
            let mut kept = reader.list_kept(id, protocol, PortRange::ALL)?;
            let Stretch { held, joined } = reader.join_stretch(id, protocol, PortRange::ALL)?;
            checked.looked_at += joined.len() as u64;
            for (key, found) in &joined {
                let Some(kind) = DriftKind::of(found.state) else { continue };
                let kept = kept.remove(key);
                let ignored_by = match &rules {
                    Some(rules) => find_ignoring(rules, &place.labels, *key, &found.listeners).cloned(),
                    None => kept.as_ref().and_then(|kept| kept.ignored_by.clone()),
                };
                let expected = (kind, found.reservation.as_ref().map(|held| held.id), ignored_by);
                compare(&place, *key, kept, Some(expected), checked);
            }
            kept.into_iter().for_each(|(key, kept)| compare(&place, key, Some(kept), None, checked));
            for held in held.iter().filter(|held| held.is_held_for(id)) {
                let listens = |port| joined.get(&(protocol, port)).is_some_and(|found| found.fit.is_some());
                check_idle(held, held.ports().ports().any(listens), checked);
            }
        }
        Ok(())
    })?;
    for held in reader.list_live_fleet_wide()?.into_iter().filter(|held| held.instance.is_none()) {
        let is_listened = reader.is_listened(&held)?;
        check_idle(&held, is_listened, checked);
    }
    Ok(())
}

/// The counters count what there is.
pub(super) fn check_counts(reader: &mut Reader<'_>, checked: &mut Checked) -> Result<(), StoreError> {
    let pending = reader.query_one("select id from sweep where id = 0 and recount = 1", &[])?;
    if pending.is_some() {
        return Ok(());
    }
    let (counted, there) = (reader.get_counts()?, reader.count_all()?);
    for ((name, counted), (_, there)) in counted.named().zip(there.named()) {
        checked.looked_at += 1;
        if counted != there {
            checked.report(format!("{counted} {name} are counted, and there are {there}"));
        }
    }
    Ok(())
}

/// What a row must say.
type Expected = (DriftKind, Option<ReservationId>, Option<IgnoreName>);

fn compare(
    place: &LabelledInstance,
    (protocol, port): (Protocol, Port),
    kept: Option<Kept>,
    expected: Option<Expected>,
    checked: &mut Checked,
) {
    let kept = kept.map(|kept| (kept.kind, kept.reservation, kept.ignored_by));
    if kept == expected {
        return;
    }
    let tell = |row: Option<Expected>| match row {
        None => "no drift".to_owned(),
        Some((kind, reservation, ignored_by)) => {
            let reservation = reservation.map(|id| format!(" with reservation {id}")).unwrap_or_default();
            let ignored = ignored_by.map(|name| format!(", ignored by {name}")).unwrap_or_default();
            format!("{kind}{reservation}{ignored}")
        }
    };
    let (kept, expected) = (tell(kept), tell(expected));
    checked.report(format!(
        "{port}/{protocol} on {} ({}) is kept as {kept}, and is {expected}",
        place.name, place.id
    ));
}

fn check_idle(held: &Reservation, is_listened: bool, checked: &mut Checked) {
    let is = if is_listened { "somebody listens" } else { "nobody listens" };
    let told = match held.idle_since {
        Some(_) if is_listened => "idle",
        Some(since) if since < held.created_at => "idle since before it was made",
        None if !is_listened => "in use",
        _ => return,
    };
    checked.report(format!("reservation {} is kept as {told}, and {is} on its ports", held.id));
}

/// Each joined instance, in pages.
fn for_each_instance(
    reader: &mut Reader<'_>,
    each: &mut dyn FnMut(&mut Reader<'_>, InstanceId) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut after = String::new();
    loop {
        let sql =
            format!("select id from instance where id > $1 and left_at is null order by id limit {PAGE}");
        let rows = reader.query(&sql, values![after.as_str()])?;
        let is_last = rows.len() < PAGE;
        for mut row in rows {
            let id: InstanceId = row.take()?;
            each(reader, id)?;
            after = id.to_string();
        }
        if is_last {
            return Ok(());
        }
    }
}
