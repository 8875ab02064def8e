//! The statement behind a page of history.
//!
//! A history has ten million rows, and a page shows a hundred. So whatever is asked for, the page is put together from a
//! few *arms*: each reads one index in the order of the page, and none reads what is not nearly of use. What lasted at a
//! moment is in the arms of how long things last (the column `lasting`, see the migration that made it): whatever lasted
//! less than 16 seconds had begun in the 16 seconds before. A range of ports is in one arm for each, and one for what was
//! held as a range.
//!
//! Only a range of more than eight ports has no index that helps: it is walked through from the end of the page before,
//! and lets enough through that a page is soon full.

use gk_model::id::InstanceId;
use gk_model::query::HistoryQuery;
use gk_model::time::Timestamp;

use crate::error::Refusal;
use crate::page;
use crate::value::Value;

/// A class holds what lasted less than so many microseconds; the last class, which is not here, all that lasted longer
/// or still does.
pub(crate) const LASTING: [i64; 7] = [
    1_000_000,
    16_000_000,
    256_000_000,
    4_096_000_000,
    65_536_000_000,
    1_048_576_000_000,
    16_777_216_000_000,
];

/// The class of an interval, in SQL, from the time it lasted.
pub(crate) fn class_of(lasted: &str) -> String {
    let mut sql = String::from("case");
    for (class, limit) in LASTING.iter().enumerate() {
        sql.push_str(&format!(" when {lasted} < {limit} then {class}"));
    }
    sql + &format!(" else {} end", LASTING.len())
}

/// The widest range of ports that is looked up port by port.
const NARROW: u16 = 8;

/// The most instances that are looked up one by one.
const FEW: usize = 8;

/// A place in the order of history: began at, number.
type Place = (i64, i64);

const BEGINNING: Place = (i64::MIN, i64::MIN);
const END: Place = (i64::MAX, i64::MAX);

/// What the index of an arm has in the order of history.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Index {
    /// All of an instance, or of the fleet, with and without its class.
    Everything,
    /// What has a word, or a port, in common: each class by itself.
    Classes,
    /// So few that looking at all of them is quick: one port of one instance, and what was held as a range.
    Few,
}

/// A part of history that one index has in the order of the page.
#[derive(Clone)]
struct Arm {
    index: Index,
    conditions: Vec<String>,
    /// Neither of the two is in it.
    after: Place,
    before: Place,
}

impl Arm {
    fn and(&self, condition: impl Into<String>) -> Arm {
        let mut arm = self.clone();
        arm.conditions.push(condition.into());
        arm
    }

    fn by(self, index: Index) -> Arm {
        Arm { index, ..self }
    }

    fn within(&self, after: Place, before: Place) -> Arm {
        Arm { after: self.after.max(after), before: self.before.min(before), ..self.clone() }
    }

    /// One for each class; of those that lasted at a moment, what had begun at most so long before.
    fn classes(&self, moment: Option<Timestamp>) -> Vec<Arm> {
        let class = |class: usize| {
            let begun = moment.zip(LASTING.get(class));
            let begun =
                begun.map_or(BEGINNING, |(at, limit)| (at.as_micros().saturating_sub(*limit), i64::MIN));
            self.within(begun, END).and(format!("i.lasting = {class}"))
        };
        (0..=LASTING.len()).map(class).collect()
    }

    /// Those of it that lasted at a moment, or, given only since when, then or later.
    fn at_time(&self, query: &HistoryQuery) -> Vec<Arm> {
        let all = |arm: &Arm| match arm.index {
            Index::Classes => arm.classes(None),
            Index::Everything | Index::Few => vec![arm.clone()],
        };
        match (query.at, query.since) {
            _ if self.index == Index::Few => vec![self.clone()],
            (None, None) => all(self),
            (Some(at), _) => self.classes(Some(at)),
            (None, Some(since)) => {
                let edge = (since.as_micros(), 0);
                let mut arms = self.within(BEGINNING, edge).classes(Some(since));
                arms.extend(all(&self.within(edge, END)));
                arms
            }
        }
    }
}

/// A statement under way.
struct Statement<'q> {
    query: &'q HistoryQuery,
    values: Vec<Value>,
}

/// The statement for one page, with one row more than that holds. `whose` are the instances that were asked for.
pub(crate) fn select(
    columns: &str,
    query: &HistoryQuery,
    whose: Option<&[InstanceId]>,
) -> Result<(String, Vec<Value>), Refusal> {
    let mut statement = Statement { query, values: Vec::new() };
    let arm = statement.arm()?;
    let arms = statement.by_instance(arm, whose);
    let arms = statement.by_words(arms);
    let arms = statement.by_port(arms, whose.is_some());
    let arms = arms.iter().flat_map(|arm| arm.at_time(query)).collect();
    Ok(statement.finish(columns, arms))
}

impl Statement<'_> {
    fn bind(&mut self, value: impl Into<Value>) -> String {
        self.values.push(value.into());
        format!("${}", self.values.len())
    }

    fn is_oldest_first(&self) -> bool {
        self.query.oldest == Some(true)
    }

    /// Everything that needs no index of its own.
    fn arm(&mut self) -> Result<Arm, Refusal> {
        let query = self.query;
        let mut arm = Arm { index: Index::Everything, conditions: Vec::new(), after: BEGINNING, before: END };
        if let Some(cursor) = &query.cursor {
            let [began_at, seq] = page::parts(cursor)?;
            let place = (page::part(began_at)?, page::part(seq)?);
            arm = if self.is_oldest_first() { arm.within(place, END) } else { arm.within(BEGINNING, place) };
        }
        let at = query.at.map_or(END, |at| (at.as_micros(), i64::MAX));
        let until = query.until.map_or(END, |until| (until.as_micros(), 0));
        arm = arm.within(BEGINNING, at.min(until));
        if let Some(beyond) = query.at.max(query.since) {
            arm = arm.and(format!("(i.ended_at is null or i.ended_at > {})", self.bind(beyond)));
        }
        if let Some(protocol) = query.protocol {
            // Written out, so that the index of the rarer one is known to have all of it.
            arm = arm.and(format!("i.protocol = '{protocol}'"));
        }
        if let Some(kind) = query.kind {
            arm = arm.and(format!("i.kind = {}", self.bind(kind)));
        }
        Ok(arm)
    }

    fn by_instance(&mut self, arm: Arm, whose: Option<&[InstanceId]>) -> Vec<Arm> {
        let Some(whose) = whose else { return vec![arm] };
        let ids: Vec<String> = whose.iter().map(|id| self.bind(*id)).collect();
        match ids.len() {
            ..=FEW => ids.iter().map(|id| arm.and(format!("i.instance = {id}"))).collect(),
            _ => vec![arm.and(format!("i.instance in ({})", ids.join(", ")))],
        }
    }

    /// What intervals have in common, each with an index of its own.
    fn by_words(&mut self, mut arms: Vec<Arm>) -> Vec<Arm> {
        let query = self.query;
        let lower = |text: &Option<String>| text.as_ref().map(|text| Value::from(text.to_lowercase()));
        let words = [
            ("service", query.service.as_ref().map(Value::from)),
            ("holder", query.holder.as_ref().map(Value::from)),
            ("process", lower(&query.process)),
            ("unit", lower(&query.unit)),
            ("account", lower(&query.account)),
        ];
        for (column, value) in words {
            let Some(value) = value else { continue };
            let condition = format!("i.{column} = {}", self.bind(value));
            arms = arms.iter().map(|arm| arm.and(condition.as_str()).by(Index::Classes)).collect();
        }
        let Some(container) = lower(&query.container) else { return arms };
        let name = self.bind(container);
        let named = arms.iter().map(|arm| arm.and(format!("i.container = {name}")).by(Index::Classes));
        let mut either: Vec<Arm> = named.collect();
        if let Some(id) = query.container.as_deref().and_then(short_id) {
            let id = self.bind(id);
            let by_id = format!("i.container_id = {id} and (i.container is null or i.container <> {name})");
            either.extend(arms.iter().map(|arm| arm.and(by_id.as_str()).by(Index::Classes)));
        }
        either
    }

    fn by_port(&mut self, arms: Vec<Arm>, is_of_instances: bool) -> Vec<Arm> {
        let Some(ports) = self.query.port else { return arms };
        let first = self.bind(ports.first());
        if ports.count() > NARROW {
            let last = self.bind(ports.last());
            // The addition keeps it from an index that has not the order of the page.
            let touches = format!("i.first_port + 0 <= {last} and i.last_port >= {first}");
            return arms.iter().map(|arm| arm.and(touches.as_str())).collect();
        }
        let each: Vec<String> = ports.ports().map(|port| self.bind(port)).collect();
        let index = if is_of_instances { Index::Few } else { Index::Classes };
        let of_port = |arm: &Arm, port: &String| arm.and(format!("i.first_port = {port}")).by(index);
        let range =
            format!("i.first_port < i.last_port and i.first_port + 0 < {first} and i.last_port >= {first}");
        let split = |arm: &Arm| {
            let mut split: Vec<Arm> = each.iter().map(|port| of_port(arm, port)).collect();
            // With a word, the index of that has more of what is asked for than that of ranges.
            let of_ranges = if arm.index == Index::Classes { Index::Classes } else { Index::Few };
            split.push(arm.and(range.as_str()).by(of_ranges));
            split
        };
        arms.iter().flat_map(split).collect()
    }

    fn finish(mut self, columns: &str, arms: Vec<Arm>) -> (String, Vec<Value>) {
        let direction = if self.is_oldest_first() { "asc" } else { "desc" };
        let order = format!("order by i.began_at {direction}, i.seq {direction}");
        let limit = self.bind(self.query.limit() + 1);
        let page = format!("{order} limit {limit}");
        let mut texts = Vec::new();
        for arm in arms.into_iter().filter(|arm| arm.after < arm.before) {
            let conditions = self.conditions(arm).join(" and ");
            texts.push(format!("select {columns} from interval i where {conditions} {page}"));
        }
        let text = match texts.as_slice() {
            [] => format!("select {columns} from interval i where i.seq < 0 {page}"),
            [one] => one.clone(),
            several => {
                let arms = several.iter().enumerate();
                let arms = arms.map(|(number, arm)| format!("select * from ({arm}) as a{number}"));
                let arms = arms.collect::<Vec<_>>().join(" union all ");
                format!("select * from ({arms}) as i {page}")
            }
        };
        (text, self.values)
    }

    fn conditions(&mut self, arm: Arm) -> Vec<String> {
        let mut conditions = arm.conditions;
        for (place, sign, everywhere) in [(arm.after, '>', BEGINNING), (arm.before, '<', END)] {
            if place != everywhere {
                let (began_at, seq) = (self.bind(place.0), self.bind(place.1));
                conditions.push(format!("(i.began_at, i.seq) {sign} ({began_at}, {seq})"));
            }
        }
        if conditions.is_empty() {
            conditions.push("i.seq > 0".to_owned());
        }
        conditions
    }
}

/// The first 12 characters of what may be the id of a container.
pub(crate) fn short_id(id: &str) -> Option<String> {
    let short: String = id.chars().take(12).collect();
    (short.len() == 12 && id.chars().all(|character| character.is_ascii_hexdigit()))
        .then(|| short.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{Access, Connection};
    use crate::migrate::STEPS;
    use crate::schema::plan;
    use crate::value::values;

    #[test]
    fn no_form_of_history_scans_and_none_sorts_more_than_its_arms() {
        let now = Timestamp::from_micros(1_700_000_000_000_000);
        let id = InstanceId::generate(now);
        let words = ["", "service", "holder", "process", "unit", "container", "account"];
        for filters in 0..256 {
            for word in words {
                let on = |bit: u32| (filters >> bit & 1 == 1).then_some(());
                let text = |name: &str| (word == name).then(|| "0123456789ab".to_owned());
                let query = HistoryQuery {
                    port: on(1).map(|()| if on(7).is_some() { "8000" } else { "8000-8010" }.parse().unwrap()),
                    protocol: on(2).map(|()| gk_model::port::Protocol::Udp),
                    kind: on(3).map(|()| gk_model::history::IntervalKind::Held),
                    since: on(4).map(|()| now),
                    until: on(5).map(|()| now),
                    at: on(6).map(|()| now),
                    oldest: on(7).map(|()| true),
                    service: text("service").map(|text| text.parse().unwrap()),
                    holder: text("holder").map(|text| text.parse().unwrap()),
                    process: text("process"),
                    unit: text("unit"),
                    container: text("container"),
                    account: text("account"),
                    ..Default::default()
                };
                let whose = on(0).map(|()| vec![id]);
                let (sql, values) = select("i.seq, i.began_at", &query, whose.as_deref()).unwrap();
                let plan = plan(&sql, &values);
                // What an arm answers may be sorted, which is a page at most; what it reads may not.
                let lines: Vec<&str> = plan.split("; ").collect();
                let is_arm = |line: &str| line.starts_with("SCAN a") || line.starts_with("SCAN i");
                let is_answer = |line: &str| is_arm(line) && sql.contains(" union all ");
                for (at, line) in lines.iter().enumerate() {
                    let is_sorted = line.contains("TEMP B-TREE");
                    assert!(!is_sorted || at > 0 && is_answer(lines[at - 1]), "{query:?}: {plan}");
                    // In the order of an index, as far as the page reaches.
                    let is_walk = line.contains(" INDEX ");
                    assert!(!line.starts_with("SCAN") || is_answer(line) || is_walk, "{query:?}: {plan}");
                }
            }
        }
    }

    #[test]
    fn old_intervals_are_filed_as_new_ones_are() {
        let mut memory = Connection::in_memory().unwrap();
        let new = STEPS.iter().position(|step| step.contains("add column lasting")).unwrap();
        STEPS[..new].iter().for_each(|step| memory.script(step).unwrap());
        let edges = LASTING.iter().flat_map(|limit| [limit - 1, *limit]).chain([0, i64::MAX / 2]);
        let lasted: Vec<Option<i64>> = edges.map(Some).chain([None]).collect();
        memory.begin(Access::Write).unwrap();
        for (seq, lasted) in lasted.iter().enumerate() {
            memory
                .later(
                    "insert into interval (seq, kind, instance, protocol, first_port, last_port, began_at, ended_at) \
                     values ($1, 'held', 'fleet', 'tcp', 1, 1, 5, $2)",
                    values![seq as u64, lasted.map(|lasted| lasted + 5)],
                )
                .unwrap();
        }
        memory.commit().unwrap();
        memory.script(STEPS[new]).unwrap();
        let sql = format!("select lasting, {} from interval order by seq", class_of("ended_at - began_at"));
        let rows = memory.query(&sql, &[]).unwrap();
        let filed: Vec<(u64, u64)> =
            rows.into_iter().map(|mut row| (row.take().unwrap(), row.take().unwrap())).collect();
        let expected = |lasted: &Option<i64>| {
            let class = |lasted: i64| LASTING.iter().filter(|limit| lasted >= **limit).count();
            lasted.map_or(LASTING.len(), class) as u64
        };
        let expected: Vec<(u64, u64)> =
            lasted.iter().map(|lasted| (expected(lasted), expected(lasted))).collect();
        assert_eq!(filed, expected);
    }

    #[test]
    fn twelve_characters_name_a_container() {
        let id = "3F2a91c05b7e4d6f";
        assert_eq!(short_id(id).as_deref(), Some("3f2a91c05b7e"));
        for no_id in ["3f2a91c05b7", "web", "my-container-is-long", ""] {
            assert_eq!(short_id(no_id), None, "{no_id}");
        }
    }
}
