//! `gkctl pool set`, `list`, `show` and `delete`.

use anyhow::Result;
use gk_client::{Client, ClientError};
use gk_model::pool::{Fullest, Pool, PoolChange, PoolSpec, PoolStatus};
use gk_model::port_set::PortSet;
use gk_model::problem::Code;
use gk_model::query::PoolQuery;
use gk_model::reservation::Reservation;
use gk_model::text::PoolName;

use crate::args::{Format, OnePool, OrNone, SetPool};
use crate::context::{Context, collect, note};
use crate::error::{Exit, Failure};
use crate::output::{Column, List, Tint, exact, or_dash, print, print_json, print_pairs};

/// How often somebody else may change the pool in between.
const ATTEMPTS: u32 = 50;

const COLUMNS: [Column<PoolStatus>; 9] = [
    Column::new("NAME", |it: &PoolStatus| it.pool.name.to_string()),
    Column::new("PORTS", |it: &PoolStatus| it.pool.numbers()),
    Column::new("SIZE", |it: &PoolStatus| it.size.to_string()),
    Column::new("SCOPE", |it: &PoolStatus| it.pool.scope.to_string()),
    Column::new("PICK", |it: &PoolStatus| it.pool.pick.to_string()),
    Column::new("QUARANTINE", |it: &PoolStatus| it.pool.quarantine_seconds.to_string()),
    Column::new("FOR", |it: &PoolStatus| exact(it.pool.instances.as_ref()))
        .shown_as(|it, _| or_dash(it.pool.instances.as_ref())),
    Column::new("RESERVED", |it: &PoolStatus| it.reserved.to_string()),
    Column::new("FULLEST", |it: &PoolStatus| exact(it.fullest.as_ref().map(told)))
        .shown_as(|it, _| or_dash(it.fullest.as_ref().map(told)))
        .tinted(tint),
];

/// `web-1 tcp: 12 left`.
fn told(fullest: &Fullest) -> String {
    let place = fullest.instance.as_ref().map_or("everywhere", |instance| instance.name.as_str());
    format!("{place} {}: {} left", fullest.protocol, fullest.left)
}

/// The last tenth, and nothing left at all.
fn tint(it: &PoolStatus) -> Tint {
    match &it.fullest {
        Some(fullest) if fullest.left == 0 => Tint::Bad,
        Some(fullest) if fullest.left <= it.size / 10 => Tint::Odd,
        _ => Tint::Plain,
    }
}

/// Lists pools.
pub(crate) fn list(context: &Context) -> Result<()> {
    let client = context.client()?;
    let pools = collect(None, |cursor, limit| client.list_pools(&PoolQuery { cursor, limit }))?;
    let list =
        List { columns: &COLUMNS, name: |it| it.pool.name.to_string(), when_empty: "There is no pool." };
    Ok(list.print(context, &pools)?)
}

/// Shows one.
pub(crate) fn show(context: &Context, wanted: &OnePool) -> Result<()> {
    let found = context.client()?.get_pool(&wanted.name)?;
    match context.format() {
        Format::Json => Ok(print_json(&found)?),
        Format::Name => Ok(print(&format!("{}\n", found.pool.name))?),
        Format::Table | Format::Csv => Ok(print_pairs(&describe(&found))?),
    }
}

fn describe(it: &PoolStatus) -> Vec<(&'static str, String)> {
    let pool = &it.pool;
    let everybody = || "every instance".to_owned();
    let mut pairs = vec![
        ("name", pool.name.to_string()),
        ("ports", format!("{} ({} in all)", pool.numbers(), it.size)),
        ("scope", pool.scope.to_string()),
        ("pick", pool.pick.to_string()),
        ("quarantine", pool.quarantine_seconds.to_string()),
        ("for", pool.instances.as_ref().map_or_else(everybody, ToString::to_string)),
    ];
    pairs.extend(pool.ephemeral.then(|| ("ephemeral", "ports of outgoing connections too".to_owned())));
    pairs.extend(pool.note.as_ref().map(|text| ("note", text.to_string())));
    pairs.push(("reserved", it.reserved.to_string()));
    pairs.push(("fullest", or_dash(it.fullest.as_ref().map(told))));
    pairs
}

/// Makes a pool, or changes what was typed of one.
pub(crate) fn set(context: &Context, wanted: &SetPool) -> Result<()> {
    let client = context.client()?;
    let change = change(&client, wanted)?;
    note(format_args!("pool {}: {}", change.pool.name, change.pool.describe()));
    tell_outside(&change, "drawn from it have ports outside of it now, and stay as they are");
    print_change(context, &change)
}

/// Of a pool as it is now: when somebody else was faster, as it is then.
fn change(client: &Client, wanted: &SetPool) -> Result<PoolChange> {
    for attempt in 1.. {
        let before = find(client, &wanted.name)?;
        let spec = apply(wanted, before.as_ref().map(Pool::spec))?;
        match client.set_pool(&wanted.name, &spec, before.as_ref().map(|pool| pool.version)) {
            Err(ClientError::Refused(problem))
                if matches!(problem.code, Code::VersionMismatch | Code::NoSuchPool) && attempt < ATTEMPTS => {
            }
            answer => return Ok(answer?),
        }
    }
    unreachable!("the last attempt answers")
}

fn find(client: &Client, name: &PoolName) -> Result<Option<Pool>, ClientError> {
    match client.get_pool(name) {
        Ok(found) => Ok(Some(found.pool)),
        Err(ClientError::Refused(problem)) if problem.code == Code::NoSuchPool => Ok(None),
        Err(error) => Err(error),
    }
}

/// What was typed, over what there is.
fn apply(wanted: &SetPool, before: Option<PoolSpec>) -> Result<PoolSpec, Failure> {
    let given = wanted.ports.clone();
    let mut spec = match (before, &given) {
        (Some(before), _) => before,
        (None, Some(ports)) => PoolSpec::of(ports.clone()),
        (None, None) => {
            let what = format!("there is no pool {} yet, and a new one needs ports", wanted.name);
            return Err(Failure::new(Exit::Usage, what)
                .hint(format!("gkctl pool set {} --ports 8000-8999", wanted.name)));
        }
    };
    let set = |field: &mut PortSet, given: &Option<PortSet>| given.iter().for_each(|it| field.clone_from(it));
    set(&mut spec.ranges, &given);
    set(&mut spec.exclude, &wanted.exclude);
    spec.scope = wanted.scope.unwrap_or(spec.scope);
    spec.pick = wanted.pick.unwrap_or(spec.pick);
    spec.quarantine_seconds = wanted.quarantine.unwrap_or(spec.quarantine_seconds);
    spec.ephemeral = wanted.ephemeral.unwrap_or(spec.ephemeral);
    if let Some(OrNone(instances)) = &wanted.instances {
        spec.instances.clone_from(instances);
    }
    if let Some(OrNone(text)) = &wanted.note {
        spec.note.clone_from(text);
    }
    spec.check().map_err(|fault| {
        let failure = Failure::new(Exit::Usage, fault.what);
        if fault.field == "ephemeral" {
            failure.hint("to have them all the same: --ephemeral")
        } else {
            failure
        }
    })?;
    Ok(spec)
}

/// Deletes one.
pub(crate) fn delete(context: &Context, wanted: &OnePool) -> Result<()> {
    let change = context.client()?.delete_pool(&wanted.name)?;
    note(format_args!("deleted pool {}", change.pool.name));
    tell_outside(&change, "drawn from it stay as they are");
    print_change(context, &change)
}

fn tell_outside(change: &PoolChange, what: &str) {
    if change.outside == 0 {
        return;
    }
    note(format_args!("{} live reservation(s) {what}:", change.outside));
    change.first_outside.iter().for_each(|held| note(format_args!("  {}", line(held))));
    let more = change.outside.saturating_sub(change.first_outside.len() as u64);
    if more > 0 {
        note(format_args!("  and {more} more"));
    }
}

/// `8001/tcp on web-1 for billing, held by ada`.
fn line(held: &Reservation) -> String {
    let service = held.service.as_ref().map(|service| format!(" for {service}")).unwrap_or_default();
    format!("{}/{} {}{service}, held by {}", held.ports(), held.protocol, held.place(), held.holder)
}

fn print_change(context: &Context, change: &PoolChange) -> Result<()> {
    match context.format() {
        Format::Json => Ok(print_json(change)?),
        Format::Name => Ok(print(&format!("{}\n", change.pool.name))?),
        Format::Table | Format::Csv => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Args, PoolVerb, Verb};

    fn typed(options: &[&str]) -> SetPool {
        let words = ["gkctl", "pool", "set", "web"].iter().chain(options);
        match Args::try_parse_from(words).unwrap().verb {
            Verb::Pool(PoolVerb::Set(wanted)) => wanted,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_typed_changes_and_the_rest_stays() {
        let told = |spec: PoolSpec| spec.named("web".parse().unwrap(), 1).describe();
        let all = [
            "--ports",
            "8000-8999",
            "--exclude",
            "8080",
            "--scope",
            "fleet",
            "--pick",
            "random",
            "--quarantine",
            "0s",
            "--for",
            "env=prod",
            "--ephemeral",
        ];
        let made = apply(&typed(&all), None).unwrap();
        let said = "8000-8999 without 8080, scope fleet, pick random, quarantine 0s, for instances with env=prod, \
                    ephemeral ports too";
        assert_eq!(told(made.clone()), said);
        assert_eq!(told(apply(&typed(&[]), Some(made.clone())).unwrap()), said);
        let table: [(&[&str], &str); 3] = [
            (&["--quarantine", "1h"], &said.replace("0s", "1h")),
            (
                &["--for", "", "--exclude", "", "--ephemeral=false"],
                "8000-8999, scope fleet, pick random, quarantine 0s",
            ),
            (&["--ports", "80"], &said.replace("8000-8999", "80")),
        ];
        for (options, expected) in table {
            assert_eq!(told(apply(&typed(options), Some(made.clone())).unwrap()), expected, "{options:?}");
        }
        let bare = apply(&typed(&["--ports", "8000-8999"]), None).unwrap();
        assert_eq!(told(bare), "8000-8999, scope instance, pick lowest, quarantine 15m");
    }

    #[test]
    fn what_makes_no_pool_is_told_before_the_server_is_asked() {
        for (options, says) in [
            (&["--pick", "random"][..], "gkctl pool set web --ports 8000-8999"),
            (&["--ports", "40000-50000"], "to have them all the same: --ephemeral"),
        ] {
            let failure = apply(&typed(options), None).unwrap_err();
            assert_eq!((failure.exit, failure.hint.as_deref()), (Exit::Usage, Some(says)));
        }
    }

    #[test]
    fn the_fullest_place_is_told_in_a_few_words() {
        let fullest = |json: &str| told(&serde_json::from_str(json).unwrap());
        assert_eq!(fullest(r#"{"protocol":"udp","left":3}"#), "everywhere udp: 3 left");
        let link = r#"{"instance":{"id":"0190163d-8694-739b-aea5-966c26f8ad91","name":"web-1"},"protocol":"tcp","left":0}"#;
        assert_eq!(fullest(link), "web-1 tcp: 0 left");
    }
}
