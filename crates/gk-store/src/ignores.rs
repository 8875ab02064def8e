//! Ignore rules: kept, and applied to what differs from the plan.
//!
//! Which rule ignores a port is written in its row of `drift`. A change of the rules therefore looks at all of them
//! again: a *sweep* settles instance after instance, a bounded number of ports at a time, so that others write in
//! between; how far it has come is in the database, and any server goes on with it.

use std::sync::Arc;

use gk_model::access::Actor;
use gk_model::history::EventKind;
use gk_model::id::InstanceId;
use gk_model::ignore::{Ignore, IgnoreSpec};
use gk_model::labels::Labels;
use gk_model::listener::Listener;
use gk_model::port::{Port, PortRange, Protocol};
use gk_model::query::{IgnoreQuery, Page};
use gk_model::text::IgnoreName;
use gk_model::time::Timestamp;

use crate::Store;
use crate::counts::COLUMNS;
use crate::error::{Error, Refusal, StoreError};
use crate::membership::check_version;
use crate::page::{self, Filters};
use crate::rows::Row;
use crate::tx::{Reader, Tx};
use crate::value::{Json, values};

/// How many ports one batch of a sweep looks at, roughly: an instance is swept in one go.
const PORTS_AT_ONCE: usize = 2000;

/// How many instances at most, whatever is there.
const INSTANCES_AT_ONCE: u32 = 200;

const SELECT: &str = "select name, rule, created_at, version from ignore_rule";

fn read_ignore(mut row: Row) -> Result<Ignore, StoreError> {
    let (name, Json(rule)) = (row.take()?, row.take()?);
    Ok(Ignore { name, rule, created_at: row.take()?, version: row.take()? })
}

impl Reader<'_> {
    /// Ignore rules by name.
    ///
    /// # Errors
    /// Only when the database fails.
    pub fn list_ignores(&mut self, query: &IgnoreQuery) -> Result<Page<Ignore>, Error> {
        let after = query.cursor.clone().unwrap_or_default();
        let filters = Filters::new("name > $1", values![after]);
        let (sql, values) = filters.finish(SELECT, "name", query.limit());
        let rows = self.query(&sql, &values)?;
        page::page(rows, query.limit(), read_ignore, |last| last.name.to_string())
    }

    /// One ignore rule.
    ///
    /// # Errors
    /// [`Refusal::NoSuchIgnore`].
    pub fn get_ignore(&mut self, name: &IgnoreName) -> Result<Ignore, Error> {
        let found = self.find_rule(name)?;
        Ok(found.ok_or_else(|| Refusal::NoSuchIgnore(name.clone()))?)
    }

    fn find_rule(&mut self, name: &IgnoreName) -> Result<Option<Ignore>, StoreError> {
        let row = self.query_one(&format!("{SELECT} where name = $1"), values![name])?;
        row.map(read_ignore).transpose()
    }

    /// Every rule, by name: the first that ignores a port is the one that is told.
    pub(crate) fn list_rules(&mut self) -> Result<Vec<Ignore>, StoreError> {
        let rows = self.query(&format!("{SELECT} order by name"), &[])?;
        rows.into_iter().map(read_ignore).collect()
    }

    /// Whether rows of drift are still as they were before a change of the rules, or before there was that table.
    pub(crate) fn is_sweep_pending(&mut self) -> Result<bool, StoreError> {
        Ok(self.query_one("select id from sweep where id = 0", &[])?.is_some())
    }
}

/// The first rule that ignores a port.
pub(crate) fn find_ignoring<'a>(
    rules: &'a [Ignore],
    labels: &Labels,
    (protocol, port): (Protocol, Port),
    listeners: &[Listener],
) -> Option<&'a IgnoreName> {
    let found = rules.iter().find(|ignore| ignore.rule.ignores(labels, protocol, port, listeners));
    found.map(|ignore| &ignore.name)
}

/// The first rule that ignores an idle reservation.
pub(crate) fn find_ignoring_idle<'a>(
    rules: &'a [Ignore],
    labels: &Labels,
    protocol: Protocol,
    ports: PortRange,
) -> Option<&'a IgnoreName> {
    let found = rules.iter().find(|ignore| ignore.rule.ignores_idle(labels, protocol, ports));
    found.map(|ignore| &ignore.name)
}

impl Tx<'_> {
    pub(crate) fn find_ignore(
        &mut self,
        labels: &Labels,
        key: (Protocol, Port),
        listeners: &[Listener],
    ) -> Result<Option<IgnoreName>, StoreError> {
        let rules = self.remember_rules()?;
        Ok(find_ignoring(&rules, labels, key, listeners).cloned())
    }

    pub(crate) fn is_any_rule_by_labels(&mut self) -> Result<bool, StoreError> {
        Ok(self.remember_rules()?.iter().any(|ignore| ignore.rule.instances.is_some()))
    }

    fn remember_rules(&mut self) -> Result<Arc<Vec<Ignore>>, StoreError> {
        if let Some(rules) = &self.maps.ignores {
            return Ok(Arc::clone(rules));
        }
        let rules = Arc::new(self.list_rules()?);
        self.maps.ignores = Some(Arc::clone(&rules));
        Ok(rules)
    }

    /// Makes a rule, or changes it; the same again changes nothing. For operators.
    ///
    /// # Errors
    /// [`Refusal::VersionMismatch`], [`Refusal::BeyondLimits`], [`Refusal::Contradiction`] for a rule that would ignore
    /// everything.
    pub fn set_ignore(
        &mut self,
        actor: &Actor,
        name: &IgnoreName,
        rule: &IgnoreSpec,
        if_version: Option<u64>,
        now: Timestamp,
    ) -> Result<Ignore, Error> {
        if rule.is_too_wide() {
            let what = "a rule ignores some ports, a protocol, or somebody who listens: give one of them";
            return Err(Refusal::contradiction("ports", what).into());
        }
        if rule.ports.len() > IgnoreSpec::MOST_RANGES {
            return Err(Refusal::contradiction("ports", "a rule has at most 100 ranges of ports").into());
        }
        // A rule is about every instance, whatever it says.
        self.check_reach(actor, None)?;
        let before = self.find_rule(name)?;
        check_version(if_version, before.as_ref().map_or(0, |before| before.version))?;
        let (created_at, version) = match before {
            Some(before) if before.rule == *rule => return Ok(before),
            Some(before) => (before.created_at, before.version + 1),
            None => (now, 1),
        };
        self.later(
            "insert into ignore_rule (name, rule, created_at, version) values ($1, $2, $3, $4) \
             on conflict (name) do update set rule = excluded.rule, version = excluded.version",
            values![name, Json(rule), created_at, version],
        )?;
        self.record_ignore(EventKind::IgnoreSet, actor, format!("the ignore rule {name} was set"), now)?;
        self.begin_sweep(now)?;
        Ok(Ignore { name: name.clone(), rule: rule.clone(), created_at, version })
    }

    /// Takes a rule away; what it ignored counts again. For operators. Answers it as it was.
    ///
    /// # Errors
    /// [`Refusal::NoSuchIgnore`], [`Refusal::VersionMismatch`], [`Refusal::BeyondLimits`].
    pub fn delete_ignore(
        &mut self,
        actor: &Actor,
        name: &IgnoreName,
        if_version: Option<u64>,
        now: Timestamp,
    ) -> Result<Ignore, Error> {
        self.check_reach(actor, None)?;
        let before = self.get_ignore(name)?;
        check_version(if_version, before.version)?;
        self.later("delete from ignore_rule where name = $1", values![name])?;
        let message = format!("the ignore rule {name} was taken away");
        self.record_ignore(EventKind::IgnoreDeleted, actor, message, now)?;
        self.begin_sweep(now)?;
        Ok(before)
    }

    fn record_ignore(
        &mut self,
        kind: EventKind,
        actor: &Actor,
        message: String,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.maps.ignores = None;
        self.record_change(kind, actor, message, now)
    }

    /// Everything is to be settled anew: the first ports at once, the others by [`Store::sweep`].
    fn begin_sweep(&mut self, now: Timestamp) -> Result<(), StoreError> {
        self.later(
            "insert into sweep (id, after_instance, recount) values (0, '', 0) \
             on conflict (id) do update set after_instance = excluded.after_instance",
            &[],
        )?;
        self.sweep(now).map(drop)
    }

    /// Goes on with a sweep; whether more is left.
    pub(crate) fn sweep(&mut self, now: Timestamp) -> Result<bool, StoreError> {
        let row = self.query_one("select after_instance, recount from sweep where id = 0", &[])?;
        let Some(mut row) = row else { return Ok(false) };
        let (mut after, recount): (String, bool) = (row.take()?, row.take()?);
        if recount {
            self.count_anew(now)?;
        }
        let sql = "select id from instance where left_at is null and id > $1 order by id limit $2";
        let rows = self.query(sql, values![after.as_str(), INSTANCES_AT_ONCE])?;
        let instances: Vec<InstanceId> =
            rows.into_iter().map(|mut row| row.take()).collect::<Result<_, _>>()?;
        let mut looked_at = 0;
        for instance in &instances {
            if looked_at >= PORTS_AT_ONCE {
                break;
            }
            looked_at += self.settle_all(*instance, now)?;
            after = instance.to_string();
        }
        let is_last = instances.last().is_none_or(|last| last.to_string() == after);
        if is_last && instances.len() < INSTANCES_AT_ONCE as usize {
            self.later("delete from sweep where id = 0", &[])?;
            return Ok(false);
        }
        self.later("update sweep set after_instance = $1, recount = 0 where id = 0", values![after])?;
        Ok(true)
    }

    /// Counts what was there before anybody did, and takes what is held for all instances as idle until it turns out not
    /// to be.
    fn count_anew(&mut self, now: Timestamp) -> Result<(), StoreError> {
        let counted = self.count_all()?;
        let columns: Vec<String> =
            COLUMNS.iter().zip(1..).map(|(column, number)| format!("{column} = ${number}")).collect();
        let sql = format!("update event_seq set {} where id = 0", columns.join(", "));
        self.later(&sql, &counted.values())?;
        self.later(
            "update reservation set idle_since = $1 \
             where released_at is null and instance = 'fleet' and idle_since is null",
            values![now],
        )
    }
}

impl Store {
    /// Goes on with what a change of ignore rules left to do, if anything; whether more is left.
    ///
    /// # Errors
    /// [`Error::Failed`].
    pub async fn sweep(&self, now: Timestamp) -> Result<bool, Error> {
        if !self.read(|reader| Ok(reader.is_sweep_pending()?)).await? {
            return Ok(false);
        }
        self.write(move |tx| Ok(tx.sweep(now)?)).await
    }
}
