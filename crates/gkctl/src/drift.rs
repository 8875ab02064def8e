//! `gkctl drift`: what differs from the plan.
//!
//! The list goes to stdout; below it, on stderr, what to do about it. That anything differs is the exit code, so that cron
//! and CI need not read.

mod advice;

use anyhow::Result;
use gk_model::drift::{Drift, DriftKind};
use gk_model::listener::{Listener, Netns};
use gk_model::port::PortRange;
use gk_model::query::DriftQuery;

use crate::absence;
use crate::args::{DriftFilters, Format};
use crate::context::{Context, collect, note};
use crate::error::{Exit, Failure};
use crate::output::{Column, List, Tint, age, exact, or_dash};
use crate::port::{expected, held_by, unique};

/// What not every list needs comes last: the plan, where there is one, and then the rule that ignores it.
const COLUMNS: [Column<Drift>; 8] = [
    Column::new("KIND", |drift: &Drift| drift.kind.to_string()).tinted(tint),
    Column::new("INSTANCE", |drift: &Drift| exact(instance(drift)))
        .shown_as(|drift, _| instance(drift).unwrap_or_else(|| "fleet".to_owned())),
    Column::new("PORT", ports),
    Column::new("SINCE", |drift: &Drift| drift.since.to_string())
        .shown_as(|drift, context| age::ago(drift.since, context.now)),
    Column::new("WHO", |drift: &Drift| exact(who_listens(drift)))
        .shown_as(|drift, _| or_dash(who_listens(drift))),
    Column::new("EXPECTED", |drift: &Drift| exact(who_should(drift)))
        .shown_as(|drift, _| or_dash(who_should(drift))),
    Column::new("HELD BY", |drift: &Drift| exact(drift.reservation.as_ref().map(held_by)))
        .shown_as(|drift, _| or_dash(drift.reservation.as_ref().map(held_by))),
    Column::new("IGNORED BY", |drift: &Drift| exact(drift.ignored_by.as_ref()))
        .shown_as(|drift, _| or_dash(drift.ignored_by.as_ref())),
];

/// Lists what differs, and fails when anything does that no rule ignores.
pub(crate) fn list(context: &Context, wanted: &DriftFilters) -> Result<()> {
    let client = context.client()?;
    let drifts = collect(wanted.limit, |cursor, limit| {
        client.list_drift(&DriftQuery { cursor, limit, ..query(context, wanted) })
    })?;
    absence::notes(drifts.iter().filter_map(seen), context.now).iter().for_each(note);
    let when_empty = nothing(&query(context, wanted));
    let list = List { columns: columns(context.format(), &drifts), name: named, when_empty: &when_empty };
    list.print(context, &drifts)?;
    let told: Vec<&Drift> = drifts.iter().filter(|drift| drift.ignored_by.is_none()).collect();
    advice::lines(&told, |instance| context.machine.is(&instance.id.into()), context.now)
        .iter()
        .for_each(note);
    match summary(&drifts) {
        None => Ok(()),
        Some(summary) => Err(Failure::new(Exit::Conflict, summary).into()),
    }
}

fn query(context: &Context, wanted: &DriftFilters) -> DriftQuery {
    DriftQuery {
        instance: context.global.instance.clone(),
        label: wanted.label.clone(),
        port: wanted.port,
        protocol: wanted.protocol,
        kind: wanted.kind,
        service: wanted.service.clone(),
        holder: wanted.holder.clone(),
        idle_for_seconds: wanted.idle,
        ignored: wanted.ignored.then_some(true),
        ..DriftQuery::default()
    }
}

/// Programs get every column; people those that say something.
fn columns(format: Format, drifts: &[Drift]) -> &'static [Column<Drift>] {
    let has = |what: fn(&Drift) -> bool| drifts.iter().any(what);
    let count = match format {
        Format::Csv => COLUMNS.len(),
        _ if has(|drift| drift.ignored_by.is_some()) => COLUMNS.len(),
        _ if has(|drift| drift.reservation.is_some()) => COLUMNS.len() - 1,
        _ => COLUMNS.len() - 3,
    };
    &COLUMNS[..count]
}

/// The one sentence when all is well.
fn nothing(asked: &DriftQuery) -> String {
    let place = asked.instance.as_ref().map(|instance| format!(" on {instance}")).unwrap_or_default();
    let all = DriftQuery { instance: asked.instance.clone(), ..DriftQuery::default() };
    match *asked == all {
        true => format!("Nothing differs from the plan{place}."),
        false => format!("Nothing of that kind differs from the plan{place}."),
    }
}

/// `3 differences from the plan: 1 conflict, 2 unreserved`; none when nothing counts.
fn summary(drifts: &[Drift]) -> Option<String> {
    let of = |kind| drifts.iter().filter(|drift| drift.ignored_by.is_none() && drift.kind == kind).count();
    let counts = [DriftKind::Conflict, DriftKind::Unreserved, DriftKind::Idle].map(|kind| (of(kind), kind));
    let all: usize = counts.iter().map(|(count, _)| count).sum();
    let parts: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, kind)| match (kind, count) {
            (DriftKind::Conflict, 2..) => format!("{count} conflicts"),
            _ => format!("{count} {kind}"),
        })
        .collect();
    let differences = if all == 1 { "difference" } else { "differences" };
    (all > 0).then(|| format!("{all} {differences} from the plan: {}", parts.join(", ")))
}

fn seen(drift: &Drift) -> Option<absence::Seen<'_>> {
    Some((&drift.instance.as_ref()?.name, drift.presence?, drift.observed_at))
}

fn tint(drift: &Drift) -> Tint {
    match (&drift.ignored_by, drift.kind) {
        (Some(_), _) => Tint::Plain,
        (None, DriftKind::Conflict) => Tint::Bad,
        (None, DriftKind::Unreserved | DriftKind::Idle) => Tint::Odd,
    }
}

fn instance(drift: &Drift) -> Option<String> {
    drift.instance.as_ref().map(|instance| instance.name.to_string())
}

fn ports(drift: &Drift) -> String {
    format!("{}/{}", range(drift), drift.protocol)
}

fn range(drift: &Drift) -> PortRange {
    PortRange::new(drift.first_port, drift.last_port).unwrap_or_else(|_| drift.first_port.into())
}

fn named(drift: &Drift) -> String {
    match &drift.instance {
        Some(instance) => format!("{} {}", instance.name, ports(drift)),
        None => format!("fleet {}", ports(drift)),
    }
}

/// Everybody who counts on the port, once.
fn who_listens(drift: &Drift) -> Option<String> {
    let home = drift.listeners.iter().filter(|listener| listener.key.netns == Netns::Home);
    let all = unique(home.map(who)).join("; ");
    (!all.is_empty()).then_some(all)
}

/// `nc (pid 77), session-3.scope, as ada`: the account too, because it is whom to ask.
fn who(listener: &Listener) -> String {
    let described = listener.describe().to_string();
    let account = listener.owners.first().map(|owner| &owner.account).or(listener.account.as_ref());
    match account {
        // Without owners, the words are about the account already, or about a place.
        Some(account) if !listener.owners.is_empty() => format!("{described}, as {account}"),
        _ => described,
    }
}

fn who_should(drift: &Drift) -> Option<String> {
    let here = drift.instance.as_ref()?;
    expected(drift.reservation.as_ref()?, here.id)
}

#[cfg(test)]
mod tests {
    use gk_model::id::InstanceRef;

    use super::*;
    use crate::samples;

    #[test]
    fn each_difference_says_who_is_there_and_who_should_be() {
        let here = samples::instance("web-1");
        let nc = || samples::listener(8080, "/usr/bin/nc", "ada");
        let held = gk_model::reservation::Reservation {
            expect: "process=nginx".parse().ok(),
            ..samples::reservation(&here, 8080)
        };
        let elsewhere = gk_model::reservation::Reservation {
            scope: gk_model::reservation::Scope::Fleet,
            ..samples::reservation(&samples::instance("web-2"), 8080)
        };
        let scoped = samples::in_unit(nc(), "session-3.scope");
        let table = [
            // (intent, fact, kind, who, expected, held by)
            (None, vec![nc()], "unreserved", "nc (pid 77), as ada", None, None),
            (
                Some(held.clone()),
                vec![scoped],
                "conflict",
                "nc (pid 77), session-3.scope, as ada",
                Some("process=nginx"),
                Some("web (ci)"),
            ),
            (
                Some(elsewhere),
                vec![samples::hidden(nc())],
                "conflict",
                "a process of ada",
                Some("nobody but web-2"),
                Some("web (ci)"),
            ),
            (
                Some(held),
                vec![samples::in_container(nc(), "db"), nc()],
                "conflict",
                "nc (pid 77), docker container db, as ada; nc (pid 77), as ada",
                Some("process=nginx"),
                Some("web (ci)"),
            ),
        ];
        for (held, listeners, kind, who, expected, by) in table {
            let drift = samples::drift(samples::state(&here, 8080, held, listeners));
            assert_eq!((drift.kind.to_string().as_str(), ports(&drift).as_str()), (kind, "8080/tcp"));
            assert_eq!(who_listens(&drift).as_deref(), Some(who));
            assert_eq!(who_should(&drift).as_deref(), expected, "{who}");
            assert_eq!(drift.reservation.as_ref().map(held_by).as_deref(), by, "{who}");
        }
    }

    #[test]
    fn what_is_ignored_is_shown_and_not_counted() {
        let here = samples::instance("web-1");
        let sshd = samples::listener(22, "/usr/sbin/sshd", "root");
        let open = samples::drift(samples::state(&here, 22, None, vec![sshd]));
        let ignored = Drift { ignored_by: "sshd".parse().ok(), ..open.clone() };
        let conflict = Drift { kind: DriftKind::Conflict, ..open.clone() };
        let idle = Drift { kind: DriftKind::Idle, ..open.clone() };
        let table: [(&[&Drift], Option<&str>); 6] = [
            (&[], None),
            (&[&ignored], None),
            (&[&open], Some("1 difference from the plan: 1 unreserved")),
            (&[&open, &ignored, &open], Some("2 differences from the plan: 2 unreserved")),
            (
                &[&open, &conflict, &idle],
                Some("3 differences from the plan: 1 conflict, 1 unreserved, 1 idle"),
            ),
            (&[&conflict, &conflict], Some("2 differences from the plan: 2 conflicts")),
        ];
        for (drifts, said) in table {
            let drifts: Vec<Drift> = drifts.iter().copied().cloned().collect();
            assert_eq!(summary(&drifts).as_deref(), said);
        }
        let shown = |format, drift: &Drift| columns(format, std::slice::from_ref(drift)).len();
        assert_eq!((shown(Format::Table, &open), shown(Format::Csv, &open)), (5, 8));
        assert_eq!(shown(Format::Table, &ignored), 8);
    }

    #[test]
    fn nothing_says_of_what_it_is_true() {
        let here: InstanceRef = "web-1".parse().unwrap();
        let on_it = DriftQuery { instance: Some(here), ..DriftQuery::default() };
        assert_eq!(nothing(&DriftQuery::default()), "Nothing differs from the plan.");
        assert_eq!(nothing(&on_it), "Nothing differs from the plan on web-1.");
        let conflicts = DriftQuery { kind: Some(DriftKind::Conflict), ..on_it };
        assert_eq!(nothing(&conflicts), "Nothing of that kind differs from the plan on web-1.");
    }
}
