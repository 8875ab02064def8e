//! `gkctl ignore`: what differs from the plan and need not be told.

use anyhow::Result;
use gk_client::Client;
use gk_model::ignore::{Ignore, IgnoreSpec};
use gk_model::query::IgnoreQuery;
use gk_model::text::IgnoreName;
use serde::Serialize;

use crate::args::{DefaultIgnores, DeleteIgnores, Format, OneIgnore, SetIgnore};
use crate::context::{Context, collect, note};
use crate::error::{Exit, Failure};
use crate::output::{Column, List, age, exact, or_dash, print_json, print_pairs};

const COLUMNS: [Column<Ignore>; 5] = [
    Column::new("NAME", |ignore: &Ignore| ignore.name.to_string()),
    Column::new("IGNORES", |ignore: &Ignore| what(&ignore.rule)),
    Column::new("ON", |ignore: &Ignore| exact(ignore.rule.instances.as_ref()))
        .shown_as(|ignore, _| or_dash(ignore.rule.instances.as_ref())),
    Column::new("NOTE", |ignore: &Ignore| exact(ignore.rule.note.as_ref()))
        .shown_as(|ignore, _| or_dash(ignore.rule.note.as_ref())),
    Column::new("CREATED", |ignore: &Ignore| ignore.created_at.to_string())
        .shown_as(|ignore, context| age::ago(ignore.created_at, context.now)),
];

/// Lists the rules.
pub(crate) fn list(context: &Context) -> Result<()> {
    let rules = all(&context.client()?)?;
    let list = List {
        columns: &COLUMNS,
        name: |ignore| ignore.name.to_string(),
        when_empty: "No rule is set, so all drift counts. See what could be: gkctl ignore defaults",
    };
    Ok(list.print(context, &rules)?)
}

fn all(client: &Client) -> Result<Vec<Ignore>> {
    Ok(collect(None, |cursor, limit| client.list_ignores(&IgnoreQuery { cursor, limit }))?)
}

/// Shows one rule.
pub(crate) fn show(context: &Context, wanted: &OneIgnore) -> Result<()> {
    let ignore = context.client()?.get_ignore(&wanted.name)?;
    print_one(context, &ignore)
}

/// Sets a rule, whole: what is not said now is no part of it any more.
pub(crate) fn set(context: &Context, wanted: &SetIgnore) -> Result<()> {
    let rule = rule(wanted)?;
    let ignore = context.client()?.set_ignore(&wanted.name, &rule)?;
    note(format_args!(
        "{} is ignored now; take it back with: gkctl ignore delete {}",
        what(&rule),
        wanted.name
    ));
    match context.format() {
        Format::Json => Ok(print_json(&ignore)?),
        Format::Table | Format::Csv | Format::Name => Ok(()),
    }
}

fn rule(wanted: &SetIgnore) -> Result<IgnoreSpec, Failure> {
    let rule = IgnoreSpec {
        instances: wanted.instances.clone(),
        ports: wanted.ports.clone(),
        protocol: wanted.protocol,
        process: wanted.process.clone(),
        unit: wanted.unit.clone(),
        container: wanted.container.clone(),
        account: wanted.account.clone(),
        loopback: wanted.loopback,
        note: wanted.note.clone(),
    };
    match rule.is_too_wide() {
        false => Ok(rule),
        true => Err(Failure::new(Exit::Usage, "that rule would ignore everything there is")
            .hint("say what it is about, as in --process sshd, --ports 8000-8010 or --loopback")),
    }
}

/// Takes rules away, all that are there; of those that are not, the first is the error.
pub(crate) fn delete(context: &Context, wanted: &DeleteIgnores) -> Result<()> {
    let client = context.client()?;
    let mut deleted = Vec::new();
    let mut failed = None;
    for name in &wanted.names {
        match client.delete_ignore(name) {
            Ok(ignore) => {
                note(format_args!("{} counts as drift again", what(&ignore.rule)));
                deleted.push(ignore);
            }
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    if context.format() == Format::Json {
        print_json(&deleted)?;
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

/// A default rule, and whether one of its name is set.
#[derive(Serialize)]
struct Offer {
    name: IgnoreName,
    rule: IgnoreSpec,
    is_set: bool,
}

const OFFERS: [Column<Offer>; 3] = [
    Column::new("NAME", |offer: &Offer| offer.name.to_string()),
    Column::new("IGNORES", |offer: &Offer| what(&offer.rule)),
    Column::new("SET", |offer: &Offer| if offer.is_set { "yes" } else { "no" }.to_owned()),
];

/// Lists the default rules, and sets those that are missing when that is asked for.
pub(crate) fn defaults(context: &Context, wanted: &DefaultIgnores) -> Result<()> {
    let client = context.client()?;
    let mut offers = offers(&all(&client)?);
    if wanted.set {
        let missing = offers.iter_mut().filter(|offer| !offer.is_set);
        for offer in missing {
            client.set_ignore(&offer.name, &offer.rule)?;
            offer.is_set = true;
            note(format_args!("set {}", offer.name));
        }
    }
    List { columns: &OFFERS, name: |offer| offer.name.to_string(), when_empty: "" }
        .print(context, &offers)?;
    let missing = offers.iter().filter(|offer| !offer.is_set).count();
    if missing > 0 {
        note(format_args!("hint: to set the {missing} that are missing: gkctl ignore defaults --set"));
    }
    Ok(())
}

fn offers(rules: &[Ignore]) -> Vec<Offer> {
    let is_set = |name: &IgnoreName| rules.iter().any(|rule| rule.name == *name);
    Ignore::defaults().into_iter().map(|(name, rule)| Offer { is_set: is_set(&name), name, rule }).collect()
}

fn print_one(context: &Context, ignore: &Ignore) -> Result<()> {
    match context.format() {
        Format::Table => Ok(print_pairs(&[
            ("name", ignore.name.to_string()),
            ("ignores", what(&ignore.rule)),
            ("on", ignore.rule.instances.as_ref().map_or("every instance".to_owned(), ToString::to_string)),
            ("note", or_dash(ignore.rule.note.as_ref())),
            ("created", age::exact_in_words(ignore.created_at, context.now)),
        ])?),
        Format::Json => Ok(print_json(ignore)?),
        Format::Csv | Format::Name => {
            let list = List { columns: &COLUMNS, name: |it: &Ignore| it.name.to_string(), when_empty: "" };
            Ok(list.print(context, std::slice::from_ref(ignore))?)
        }
    }
}

/// `sshd on 22, 8000-8010 over tcp`: all that must hold on an instance, in words.
fn what(rule: &IgnoreSpec) -> String {
    let named = [
        rule.process.as_ref().map(|process| format!("process {process}")),
        rule.unit.as_ref().map(|unit| format!("unit {unit}")),
        rule.container.as_ref().map(|container| format!("container {container}")),
        rule.account.as_ref().map(|account| format!("account {account}")),
    ];
    let named: Vec<String> = named.into_iter().flatten().collect();
    let who = if named.is_empty() { "anything".to_owned() } else { named.join(", ") };
    let ports: Vec<String> = rule.ports.iter().map(ToString::to_string).collect();
    let on = if ports.is_empty() { String::new() } else { format!(" on {}", ports.join(", ")) };
    let over = rule.protocol.map(|protocol| format!(" over {protocol}")).unwrap_or_default();
    let loopback = if rule.loopback { ", bound to loopback" } else { "" };
    format!("{who}{on}{over}{loopback}")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, IgnoreVerb, Verb};

    fn typed(words: &str) -> Result<IgnoreSpec, Failure> {
        let line = format!("gkctl ignore set x {words}");
        match Args::try_parse_from(line.split_whitespace()).unwrap().verb {
            Verb::Ignore(IgnoreVerb::Set(wanted)) => rule(&wanted),
            verb => panic!("{verb:?}"),
        }
    }

    #[test]
    fn a_rule_says_what_was_typed() {
        let table = [
            ("--process sshd --protocol tcp", "process sshd over tcp"),
            ("--ports 22,8000-8010 --account ci", "account ci on 22, 8000-8010"),
            ("--loopback", "anything, bound to loopback"),
            ("--unit a.service --container db --protocol udp", "unit a.service, container db over udp"),
            ("--ports 53 --instances env=prod --note x", "anything on 53"),
        ];
        for (words, said) in table {
            assert_eq!(what(&typed(words).unwrap()), said, "{words}");
        }
        assert_eq!(
            typed("--ports 53 --instances env=prod").unwrap().instances.unwrap().to_string(),
            "env=prod"
        );
    }

    #[test]
    fn a_rule_about_everything_is_refused_before_it_is_sent() {
        for words in ["", "--instances env=prod", "--note everything"] {
            assert_eq!(typed(words).unwrap_err().exit, Exit::Usage, "{words}");
        }
    }

    #[test]
    fn a_default_counts_as_set_by_its_name() {
        let own = Ignore {
            name: "sshd".parse().unwrap(),
            rule: typed("--ports 2222").unwrap(),
            created_at: gk_model::time::Timestamp::from_micros(0),
            version: 1,
        };
        let offers = offers(&[own]);
        let set: Vec<&str> =
            offers.iter().filter(|offer| offer.is_set).map(|offer| offer.name.as_str()).collect();
        assert_eq!((offers.len(), set.as_slice()), (Ignore::defaults().len(), &["sshd"][..]));
    }
}
