//! Choosing instances by their labels.
//!
//! The labels of an instance are in its row, as JSON, which tells of each row whether it is chosen; and one by one in
//! `instance_label`, which finds those that have one. The latter is asked for labels that few have: where many do, a page
//! in the order of its list is full soon, and to find all of them first would cost more.

use std::collections::BTreeSet;

use gk_model::id::InstanceId;
use gk_model::labels::{Clause, Label, Labels, Selector};
use gk_model::text::InstanceName;

use crate::error::StoreError;
use crate::instances::name_key;
use crate::tx::{Reader, Tx};
use crate::value::{Value, values};

/// At most so many instances are found by a label rather than passed by in the order of a list.
const FEW: u64 = 1000;

/// A selector, and how those that it chooses are found.
pub(crate) struct Chosen {
    pub(crate) selector: Selector,
    /// One that all of them have, and few others.
    pub(crate) label: Option<Label>,
}

impl Chosen {
    /// As further conditions on an instance, whose columns are prefixed like this.
    pub(crate) fn conditions(&self, prefix: &str, values: &mut Vec<Value>) -> String {
        let found = match &self.label {
            Some(label) => {
                values.push(label.to_string().into());
                let number = values.len();
                format!(" and {prefix}id in (select instance from instance_label where label = ${number})")
            }
            None => String::new(),
        };
        found + &self.tests(prefix, values)
    }

    /// As those conditions that each instance has to be tested by, however it was found. By `replace`, because what looks
    /// for a text in another one has other names, and another opinion of capitals, in each database.
    pub(crate) fn tests(&self, prefix: &str, values: &mut Vec<Value>) -> String {
        let mut conditions = String::new();
        for clause in self.selector.clauses() {
            let (texts, is) = match clause {
                Clause::AnyOf(texts) => (texts, "<>"),
                Clause::Without(text) => (vec![text], "="),
            };
            let contains = texts.into_iter().map(|text| {
                values.push(text.into());
                format!("replace({prefix}labels, ${}, '') {is} {prefix}labels", values.len())
            });
            let any = contains.collect::<Vec<_>>().join(" or ");
            conditions.push_str(&format!(" and ({any})"));
        }
        conditions
    }

    /// The statement that answers their ids, however many these are.
    pub(crate) fn ids(&self, values: &mut Vec<Value>) -> String {
        format!("select n.id from instance n where n.id is not null{}", self.conditions("n.", values))
    }
}

impl Reader<'_> {
    /// Finds out how those with such labels are best found; nothing when nobody asked for labels.
    pub(crate) fn choose(&mut self, selector: Option<&Selector>) -> Result<Option<Chosen>, StoreError> {
        let Some(selector) = selector else { return Ok(None) };
        let mut label = None;
        for common in selector.labels() {
            if self.have_few(&common)? {
                label = Some(common);
                break;
            }
        }
        Ok(Some(Chosen { selector: selector.clone(), label }))
    }

    fn have_few(&mut self, label: &Label) -> Result<bool, StoreError> {
        let sql = "select 1 from instance_label where label = $1 limit 1 offset $2";
        Ok(self.query_one(sql, values![label.to_string(), FEW])?.is_none())
    }
}

impl Tx<'_> {
    /// Keeps the labels of an instance one by one, which had this name and these labels before.
    pub(crate) fn index_labels(
        &mut self,
        instance: InstanceId,
        before: Option<(&InstanceName, &Labels)>,
        after: (&InstanceName, &Labels),
    ) -> Result<(), StoreError> {
        let before = before.map_or_else(BTreeSet::new, entries);
        let after = entries(after);
        for (label, name_key) in before.difference(&after) {
            let sql = "delete from instance_label where label = $1 and name_key = $2 and instance = $3";
            self.later(sql, values![label.as_str(), name_key.as_str(), instance])?;
        }
        for (label, name_key) in after.difference(&before) {
            let sql = "insert into instance_label (label, name_key, instance) values ($1, $2, $3)";
            self.later(sql, values![label.as_str(), name_key.as_str(), instance])?;
        }
        Ok(())
    }
}

/// What the table says of an instance.
fn entries((name, labels): (&InstanceName, &Labels)) -> BTreeSet<(String, String)> {
    labels.iter().map(|label| (label.to_string(), name_key(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Connection;
    use crate::page::Filters;
    use crate::schema::plan;

    #[test]
    fn those_with_a_label_that_few_have_are_found_by_it() {
        let plan_of = |label: Option<&str>| {
            let selector = "team=web,env=prod".parse().unwrap();
            let chosen = Chosen { selector, label: label.map(|label| label.parse().unwrap()) };
            let filters = Filters::new("left_at is null", &[]).and_chosen("", Some(&chosen));
            let (sql, values) = filters.finish("select id from instance", "name_key, id", 100);
            plan(&sql, &values)
        };
        let by_label = plan_of(Some("env=prod"));
        assert!(by_label.contains("instance_label_1 (label=?)") && !by_label.contains("SCAN"), "{by_label}");
        // In the order of the list, which ends when the page is full.
        let passed_by = plan_of(None);
        assert!(passed_by.contains("instance_name") && !passed_by.contains("TEMP B-TREE"), "{passed_by}");
    }

    #[test]
    fn labels_of_older_versions_are_written_down_one_by_one() {
        let mut memory = Connection::in_memory().unwrap();
        let migration =
            crate::migrate::STEPS.iter().position(|step| step.contains("table instance_label")).unwrap();
        let (before, step) = (&crate::migrate::STEPS[..migration], crate::migrate::STEPS[migration]);
        before.iter().for_each(|step| memory.script(step).unwrap());
        let table: [(&str, &[&str]); 4] = [
            ("none", &[]),
            ("one", &["env=prod"]),
            ("odd", &["a.b/c=-", "url=http://x:80"]),
            ("many", &["a=1", "b=1", "c=2"]),
        ];
        for (id, labels) in table {
            let labels: Vec<Label> = labels.iter().map(|label| label.parse().unwrap()).collect();
            let sql = "insert into instance (id, name, name_key, subject, facts, joined_at, version, session, sequence, \
                       digest, complete, occupied, labels) values ($1, $1, $1, $1, '{}', 0, 1, 0, 0, '', 0, '[]', $2)";
            let labels = serde_json::to_string(&Labels::try_from(labels).unwrap()).unwrap();
            memory.query(sql, values![id, labels]).unwrap();
        }
        memory.script(step).unwrap();
        for (id, labels) in table {
            let sql = "select label from instance_label where instance = $1 and name_key = $1 order by label";
            let found = memory
                .query(sql, values![id])
                .unwrap()
                .into_iter()
                .map(|mut row| row.take::<String>().unwrap());
            assert_eq!(found.collect::<Vec<_>>(), labels, "{id}");
        }
    }
}
