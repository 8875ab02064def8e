//! `gkctl instance list`, `show`, `leave` and `rename`.

use std::io;
use std::path::Path;

use anyhow::{Context as _, Result};
use gk_client::identity::{forget_identity, save_identity};
use gk_client::lock;
use gk_client::protection::{forget_protection, load_protection};
use gk_model::id::InstanceRef;
use gk_model::identity::Identity;
use gk_model::instance::{Instance, InstancePatch, Presence};
use gk_model::query::InstanceQuery;
use gk_model::text::{InstanceName, Observed};
use gk_model::time::{Timestamp, span_in_words};

use crate::args::{Format, InstanceFilters, Leave, OneInstance, Rename};
use crate::context::{Context, collect, note};
use crate::error::{Exit, Failure};
use crate::left::or_left;
use crate::machine;
use crate::output::{Column, List, Tint, age, exact, or_dash, print_json, print_pairs};

/// The id comes last, so that it can be left out.
const COLUMNS: [Column<Instance>; 8] = [
    Column::new("NAME", |instance: &Instance| instance.name.to_string()),
    Column::new("PRESENCE", |instance: &Instance| instance.presence.to_string()).tinted(tint),
    Column::new("LABELS", |instance: &Instance| instance.labels.to_string())
        .shown_as(|instance, _| or_dash(labels(instance))),
    Column::new("OS", |instance: &Instance| exact(instance.facts.os.as_ref()))
        .shown_as(|instance, _| or_dash(instance.facts.os.as_ref())),
    Column::new("ADDRESSES", addresses).shown_as(|instance, _| or_dash(first_address(instance))),
    Column::new("LAST CONTACT", |instance: &Instance| exact(instance.last_contact_at))
        .shown_as(|instance, context| ago_or(instance.last_contact_at, context.now, "never")),
    Column::new("JOINED", |instance: &Instance| instance.joined_at.to_string())
        .shown_as(|instance, context| age::ago(instance.joined_at, context.now)),
    Column::new("ID", |instance: &Instance| instance.id.to_string()),
];

/// Lists instances.
pub(crate) fn list(context: &Context, wanted: &InstanceFilters) -> Result<()> {
    let client = context.client()?;
    let instances = collect(wanted.limit, |cursor, limit| {
        client.list_instances(&InstanceQuery {
            name: wanted.name.as_ref().map(ToString::to_string),
            presence: wanted.presence,
            q: wanted.search.clone(),
            label: wanted.label.clone(),
            cursor,
            limit,
        })
    })?;
    Ok(columns(wanted.wide || context.format() != Format::Table).print(context, &instances)?)
}

/// Nobody reads 36 characters of an id beside a name; programs want them.
fn columns(with_id: bool) -> List<'static, Instance> {
    List {
        columns: if with_id { &COLUMNS } else { &COLUMNS[..COLUMNS.len() - 1] },
        name: |instance| instance.name.to_string(),
        when_empty: "No machine matches. Bring this one in with `gkctl instance join`.",
    }
}

/// Shows one instance, also one that has left.
pub(crate) fn show(context: &Context, wanted: &OneInstance) -> Result<()> {
    let which = context.instance(wanted.which.as_ref())?;
    let client = context.client()?;
    let instance = or_left(&client, &which, |which| client.get_instance(which))?;
    match context.format() {
        Format::Table => Ok(print_pairs(&describe(&instance, context.now))?),
        Format::Json => Ok(print_json(&instance)?),
        Format::Csv | Format::Name => Ok(columns(true).print(context, &[instance])?),
    }
}

/// Takes an instance out, and forgets the identity when it was this machine.
pub(crate) fn leave(context: &Context, wanted: &Leave) -> Result<()> {
    let which = context.instance(wanted.which.as_ref())?;
    let client = context.client()?;
    let name = client.get_instance(&which)?.name;
    client.leave_instance(&which, wanted.release)?;
    note(format_args!("{name} has left; its history stays"));
    if context.machine.is(&which) {
        forget(context);
    }
    Ok(())
}

/// The server has let this machine go, whatever becomes of the files; so a failure here is told, and is no error.
fn forget(context: &Context) {
    let state_dir = &context.machine.state_dir;
    if let Err(error) = forget_identity(state_dir) {
        note(format_args!("note: the identity of this machine stays behind: {error}"));
    }
    if lock::is_held(state_dir).unwrap_or(false) {
        note("the agent of this machine still runs; stop it");
    } else if let Err(error) = free_ports(state_dir) {
        note(format_args!("note: ports of this machine stay in the kernel's list of reserved ones: {error}"));
    }
}

/// Takes out of the kernel's list what the agent put there. One that runs does so by itself.
fn free_ports(state_dir: &Path) -> io::Result<()> {
    let Some(saved) = load_protection(state_dir)? else { return Ok(()) };
    let facts = machine::facts();
    // After a boot, and in another network namespace, there is nothing of it in the list.
    if (saved.boot_id, saved.netns_inode) == (facts.boot_id, facts.netns_inode) && !saved.ours.is_empty() {
        machine::take_out_of_reserved(&saved.ours)?;
    }
    forget_protection(state_dir)
}

/// Renames an instance, in its identity file too when it is this machine.
pub(crate) fn rename(context: &Context, wanted: &Rename) -> Result<()> {
    let (which, new_name) = match wanted.names.as_slice() {
        [which, new_name] => (Some(which), new_name),
        [new_name] => (None, new_name),
        _ => unreachable!("the parser demands one or two"),
    };
    let InstanceRef::Name(new_name) = new_name else {
        return Err(Failure::new(
            Exit::Usage,
            format!("`{new_name}` is an id, and no name may look like one"),
        )
        .into());
    };
    let which = context.instance(which)?;
    let patch = InstancePatch { name: Some(new_name.clone()), labels: None };
    let instance = context.client()?.update_instance(&which, &patch)?;
    let here = context.machine.is(&which);
    if here {
        remember_name(context, &instance.name).context("renamed, but the identity file was not updated")?;
    }
    let what = if here { "this machine".to_owned() } else { which.to_string() };
    note(format_args!("{what} is now named {}", instance.name));
    Ok(())
}

/// Whoever may not write the identity leaves it: the next join refreshes the name, and the id stays right.
fn remember_name(context: &Context, name: &InstanceName) -> io::Result<()> {
    let may_not = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    let credential = match context.credential() {
        Err(error) if may_not(&error) => None,
        read => read?,
    };
    match (&context.machine.identity, credential) {
        (Some(identity), Some(credential)) => {
            let identity = Identity { name: name.clone(), ..identity.clone() };
            save_identity(&context.machine.state_dir, &identity, &credential)
        }
        _ => Ok(()),
    }
}

fn tint(instance: &Instance) -> Tint {
    match instance.presence {
        Presence::Online => Tint::Good,
        Presence::Offline => Tint::Odd,
        Presence::Left => Tint::Plain,
    }
}

fn labels(instance: &Instance) -> Option<String> {
    (!instance.labels.is_empty()).then(|| instance.labels.to_string())
}

fn addresses(instance: &Instance) -> String {
    let addresses: Vec<String> = instance.facts.addresses.iter().map(ToString::to_string).collect();
    addresses.join(" ")
}

/// A machine may have dozens; the table shows the first and how many more there are.
fn first_address(instance: &Instance) -> Option<String> {
    let first = instance.facts.addresses.first()?;
    match instance.facts.addresses.len() - 1 {
        0 => Some(first.to_string()),
        more => Some(format!("{first} +{more}")),
    }
}

/// `3m ago`, or `never`.
pub(crate) fn ago_or(then: Option<Timestamp>, now: Timestamp, otherwise: &str) -> String {
    then.map_or_else(|| otherwise.to_owned(), |then| age::ago(then, now))
}

fn describe(instance: &Instance, now: Timestamp) -> Vec<(&'static str, String)> {
    let facts = &instance.facts;
    let at = |time: Option<Timestamp>| time.map(|time| age::exact_in_words(time, now));
    let text = |observed: &Option<Observed>| observed.as_ref().map(ToString::to_string);
    let known = [
        ("name", Some(instance.name.to_string())),
        ("id", Some(instance.id.to_string())),
        ("presence", Some(instance.presence.to_string())),
        ("labels", labels(instance)),
        ("joined", at(Some(instance.joined_at))),
        ("left", at(instance.left_at)),
        ("last contact", at(instance.last_contact_at)),
        (
            "forgotten",
            instance
                .forget_after_seconds
                .map(|span| format!("after {} of silence", span_in_words(span.duration()))),
        ),
        ("listeners as of", at(instance.observed_at)),
        ("host name", Some(facts.host_name.to_string())),
        ("os", text(&facts.os)),
        ("kernel", text(&facts.kernel)),
        ("architecture", text(&facts.architecture)),
        ("cpu", text(&facts.cpu_model)),
        ("cpus", facts.cpu_count.map(|count| count.to_string())),
        ("memory", facts.memory_bytes.map(|bytes| format!("{} MiB", bytes >> 20))),
        ("addresses", Some(addresses(instance)).filter(|text| !text.is_empty())),
        ("virtualisation", text(&facts.virtualisation)),
        ("ephemeral ports", facts.ephemeral_ports.map(|range| range.to_string())),
        ("agent version", text(&facts.agent_version)),
        ("kernel keeps off reserved ports", facts.protection.as_ref().map(ToString::to_string)),
        ("agent", text(&facts.sight)),
    ];
    known.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}
