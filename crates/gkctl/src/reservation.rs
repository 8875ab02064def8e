//! `gkctl reservation list`, `show`, `renew` and `edit`.

use anyhow::Result;
use gk_client::Client;
use gk_model::query::ReservationQuery;
use gk_model::reservation::{RenewRequest, Reservation, ReservationPatch};
use gk_model::time::Timestamp;

use crate::args::{Edit, Format, OneReservation, OrNone, Renew, ReservationFilters, Which};
use crate::context::{Context, collect, note};
use crate::error::{Exit, Failure};
use crate::label;
use crate::output::{Column, List, age, exact, or_dash, print_json, print_pairs};
use crate::port::purpose;
use crate::port::release::Place;

/// The id comes last, so that a table can leave it out: people name a reservation by its port.
const COLUMNS: [Column<Reservation>; 8] = [
    Column::new("PORTS", |held: &Reservation| format!("{}/{}", held.ports(), held.protocol)),
    Column::new("INSTANCE", place),
    Column::new("SERVICE", |held: &Reservation| exact(purpose(held)))
        .shown_as(|held, _| or_dash(purpose(held))),
    Column::new("HOLDER", |held: &Reservation| held.holder.to_string()),
    Column::new("EXPIRES", |held: &Reservation| exact(held.expires_at)).shown_as(|held, context| {
        held.expires_at.map_or_else(|| "never".to_owned(), |end| age::around(end, context.now))
    }),
    Column::new("IDLE", |held: &Reservation| exact(held.idle_since))
        .shown_as(|held, context| or_dash(held.idle_since.map(|since| age::ago(since, context.now)))),
    Column::new("POOL", |held: &Reservation| exact(held.pool.as_ref()))
        .shown_as(|held, _| or_dash(held.pool.as_ref())),
    Column::new("ID", |held: &Reservation| held.id.to_string()),
];

/// `web-1`, `web-1 (fleet)` for a number of the whole fleet, `all` for one that is held for everybody.
fn place(held: &Reservation) -> String {
    match (&held.instance, held.scope) {
        (None, _) => "all".to_owned(),
        (Some(instance), gk_model::reservation::Scope::Fleet) => format!("{} (fleet)", instance.name),
        (Some(instance), gk_model::reservation::Scope::Instance) => instance.name.to_string(),
    }
}

/// Lists the reservations of this machine, of another instance, or of the fleet.
pub(crate) fn list(context: &Context, wanted: &ReservationFilters) -> Result<()> {
    let all = wanted.all_instances || wanted.on.is_some() || wanted.group.is_some();
    let query = ReservationQuery {
        instance: context.instance_or_all(all)?,
        port: wanted.port,
        protocol: wanted.protocol,
        service: wanted.service.clone(),
        name: wanted.name.clone(),
        holder: wanted.holder.clone(),
        pool: wanted.pool.clone(),
        label: wanted.on.clone(),
        group: wanted.group,
        idle_for_seconds: wanted.idle,
        expires_before: wanted.expires_within.map(|span| span.deadline(context.now)),
        ..ReservationQuery::default()
    };
    let client = context.client()?;
    let found = collect(wanted.limit, |cursor, limit| {
        client.list_reservations(&ReservationQuery { cursor, limit, ..query.clone() })
    })?;
    let list = List {
        columns: if context.format() == Format::Csv { &COLUMNS } else { &COLUMNS[..COLUMNS.len() - 1] },
        name: |held| held.id.to_string(),
        when_empty: "No reservation matches. Make one with `gkctl port reserve`.",
    };
    Ok(list.print(context, &found)?)
}

/// Shows one reservation, also one that was released, by its id.
pub(crate) fn show(context: &Context, wanted: &OneReservation) -> Result<()> {
    let held = find(context, &context.client()?, wanted, "show")?;
    match context.format() {
        Format::Json => Ok(print_json(&held)?),
        Format::Table => Ok(print_pairs(&known(&held, context.now))?),
        Format::Csv | Format::Name => {
            let list = List { columns: &COLUMNS, name: |held| held.id.to_string(), when_empty: "" };
            Ok(list.print(context, &[held])?)
        }
    }
}

/// Sets when a lease ends.
pub(crate) fn renew(context: &Context, wanted: &Renew) -> Result<()> {
    let client = context.client()?;
    let held = find(context, &client, &wanted.one, "renew")?;
    let renewed = client.renew(held.id, &RenewRequest { ttl_seconds: wanted.ttl }, wanted.force)?;
    let end = renewed.expires_at.map(|end| age::around(end, context.now)).unwrap_or_default();
    done(context, &renewed, &format!("renewed {}; it ends {end}", named(&renewed)))
}

/// Changes what a reservation says.
pub(crate) fn edit(context: &Context, wanted: &Edit) -> Result<()> {
    let change = label::change(&wanted.labels)?;
    let client = context.client()?;
    let held = find(context, &client, &wanted.one, "edit")?;
    let labels = match wanted.labels.is_empty() {
        true => None,
        false => {
            let changed = change.apply(held.labels.clone());
            Some(Some(changed.map_err(|error| Failure::new(Exit::Usage, error.to_string()))?))
        }
    };
    let patch = ReservationPatch {
        service: wanted.service.clone().map(|OrNone(service)| service),
        name: wanted.name.clone().map(|OrNone(name)| name),
        note: wanted.note.clone().map(|OrNone(note)| note),
        expect: wanted.expect.clone().map(|OrNone(expect)| expect),
        labels,
    };
    if patch.is_empty() {
        return Err(Failure::new(Exit::Usage, "there is nothing to change")
            .hint("give --service, --name, --note, --label or --expect; '' takes one away")
            .into());
    }
    // Labels were changed as they are now, so nobody may have changed them meanwhile.
    let edited = client.update_reservation(held.id, &patch, wanted.force, Some(held.version))?;
    done(context, &edited, &format!("edited {}", named(&edited)))
}

fn done(context: &Context, held: &Reservation, told: &str) -> Result<()> {
    note(told);
    match context.format() {
        Format::Json => Ok(print_json(held)?),
        Format::Table | Format::Csv | Format::Name => Ok(()),
    }
}

fn find(context: &Context, client: &Client, wanted: &OneReservation, verb: &str) -> Result<Reservation> {
    match wanted.which {
        Which::Id(id) => Ok(client.get_reservation(id)?),
        Which::Port(port) => {
            let (instance, protocol) = (context.instance(None)?, wanted.protocol);
            let place = Place { instance, ports: port.into(), protocol };
            place.one(context, client, &format!("gkctl reservation {verb}"))
        }
    }
}

/// `8000-8009/tcp on web-1 (billing)`.
fn named(held: &Reservation) -> String {
    let purpose = purpose(held).map(|purpose| format!(" ({purpose})")).unwrap_or_default();
    format!("{}/{} {}{purpose}", held.ports(), held.protocol, held.place())
}

/// What is known of it; what is not, is left out.
fn known(held: &Reservation, now: Timestamp) -> Vec<(&'static str, String)> {
    let at = |time: Option<Timestamp>| time.map(|time| age::exact_in_words(time, now));
    let labels = Some(held.labels.to_string()).filter(|_| !held.labels.is_empty());
    let known = [
        ("ports", Some(format!("{}/{}", held.ports(), held.protocol))),
        ("held", Some(held.place())),
        ("service", held.service.as_ref().map(ToString::to_string)),
        ("name", held.name.as_ref().map(ToString::to_string)),
        ("holder", Some(held.holder.to_string())),
        ("note", held.note.as_ref().map(ToString::to_string)),
        ("labels", labels),
        ("expected", held.expect.as_ref().map(ToString::to_string)),
        ("pool", held.pool.as_ref().map(ToString::to_string)),
        ("reserved", at(Some(held.created_at))),
        ("ends", held.expires_at.map(|end| format!("{} ({})", age::moment(end), age::around(end, now)))),
        ("idle since", at(held.idle_since).filter(|_| held.released_at.is_none())),
        ("released", at(held.released_at)),
        ("released by", held.released_by.as_ref().map(ToString::to_string)),
        ("group", held.group.map(|group| group.to_string())),
        ("split from", held.split_from.map(|id| id.to_string())),
        ("id", Some(held.id.to_string())),
    ];
    known.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}
