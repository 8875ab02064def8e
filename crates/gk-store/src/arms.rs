//! The statement behind a page of history.
//!
//! A history has ten million rows, and a page shows a hundred. So whatever is asked for, the page is put together from a
//! few *arms*: each reads one index in the order of the page. Most indexes have each class of how long things last by
//! itself (the column `lasting`, see the migration that made it), so that what lasted at a moment is found by few, short
//! looks: whatever lasted less than 16 seconds had begun in the 16 seconds before.
//!
//! Which index that is, is decided here and not left to the database, because SQLite knows no more of the data than we
//! do: the filters beside the one of the index are written so that it has no choice. To PostgreSQL the same text leaves
//! it, and it knows how much each filter lets through.
//!
//! Only a range of more than eight ports has no index that helps: it is walked through from the end of the page before,
//! and lets enough through that a page is soon full.

use gk_model::history::IntervalKind;
use gk_model::id::InstanceId;
use gk_model::port::{PortRange, Protocol};
use gk_model::query::HistoryQuery;

use crate::error::Refusal;
use crate::labelled::Chosen;
use crate::page::{self, Filters};
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

/// The most instances that are looked up one by one. Of more than that, one has a small part of the history.
pub(crate) const FEW: usize = 8;

/// All classes but the last: an index that is not for what lasts still has only these.
const NOT_THE_LAST: &str = "i.lasting < 7";

/// Each class.
const ANY: fn(usize) -> bool = |_| true;

/// Of which instances history is asked for.
pub(crate) enum Whose {
    /// Of these, no more than [`FEW`].
    These {
        ids: Vec<InstanceId>,
        /// Whether there are no more than [`FEW`] at all, so that one of them may have most of the history.
        is_of_few: bool,
    },
    /// Of all with these labels, which are more.
    Labelled(Chosen),
}

impl Whose {
    /// Only those rows in which this column names one of them.
    pub(crate) fn choose(&self, filters: Filters, column: &str) -> Filters {
        match self {
            Whose::These { ids, .. } => filters.among(column, ids),
            Whose::Labelled(chosen) => filters.and_labelled(column, chosen),
        }
    }
}

/// A place in the order of history: began at, number.
type Place = (i64, i64);

const BEGINNING: Place = (i64::MIN, i64::MIN);
const END: Place = (i64::MAX, i64::MAX);

/// What intervals may have in common, with an index for it.
struct Word {
    /// By its index; several, when it may stand in several columns. No interval passes two of them.
    keys: Vec<String>,
    /// For those that another index has found.
    rest: String,
    /// Of which kind is whatever has it.
    kind: Option<IntervalKind>,
    /// Whether its index has what lasts still. Those that are asked for less often do without, so that what begins costs
    /// less: all that lasts is looked through for them.
    is_prompt: bool,
}

/// A statement under way.
struct Statement<'q> {
    query: &'q HistoryQuery,
    values: Vec<Value>,
    /// Each class in which there may be something, as a condition on class and time.
    classes: Vec<(usize, String)>,
    words: Vec<Word>,
    /// What each row has to pass beside.
    rest: Vec<String>,
}

/// The statement for one page, with one row more than that holds. `whose` are the instances that were asked for.
pub(crate) fn select(
    columns: &str,
    query: &HistoryQuery,
    whose: Option<&Whose>,
) -> Result<(String, Vec<Value>), Refusal> {
    let (values, classes, words, rest) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut statement = Statement { query, values, classes, words, rest };
    statement.classes()?;
    statement.words();
    statement.rest();
    let arms = statement.arms(whose);
    Ok(statement.finish(columns, &arms))
}

/// The statement for so many that were held, the oldest after a place `($1, $2)` first.
pub(crate) fn select_held(columns: &str, limit: usize) -> String {
    let page = format!("order by began_at, seq limit {limit}");
    let arms = (0..=LASTING.len()).map(|class| {
        format!(
            "select * from (select {columns} from interval where kind = 'held' and lasting = {class} \
             and (began_at, seq) > ($1, $2) {page}) as a{class}"
        )
    });
    format!("select * from ({}) as i {page}", arms.collect::<Vec<_>>().join(" union all "))
}

/// As SQLite uses no index for it; to PostgreSQL it is the column itself.
fn unindexed(column: &str) -> String {
    format!("cast(i.{column} as text)")
}

impl Statement<'_> {
    fn bind(&mut self, value: impl Into<Value>) -> String {
        self.values.push(value.into());
        format!("${}", self.values.len())
    }

    fn is_oldest_first(&self) -> bool {
        self.query.oldest == Some(true)
    }

    /// From where to where the page may reach, in each class: what lasts beyond a moment, and less than so long, began at
    /// most so long before it.
    fn classes(&mut self) -> Result<(), Refusal> {
        let query = self.query;
        let at = query.at.map_or(END, |at| (at.as_micros(), i64::MAX));
        let until = query.until.map_or(END, |until| (until.as_micros(), 0));
        let (mut after, mut before) = (BEGINNING, at.min(until));
        if let Some(cursor) = &query.cursor {
            let [began_at, seq] = page::parts(cursor)?;
            let place = (page::part(began_at)?, page::part(seq)?);
            if self.is_oldest_first() { after = place } else { before = before.min(place) }
        }
        let upper = self.beyond('<', before);
        for class in 0..=LASTING.len() {
            let begun = query.at.max(query.since).zip(LASTING.get(class));
            let begun = begun.map(|(beyond, limit)| (beyond.as_micros().saturating_sub(*limit), i64::MIN));
            let after = after.max(begun.unwrap_or(BEGINNING));
            if after < before {
                let lower = self.beyond('>', after);
                self.classes.push((class, format!("i.lasting = {class}{lower}{upper}")));
            }
        }
        Ok(())
    }

    fn beyond(&mut self, sign: char, place: Place) -> String {
        if [BEGINNING, END].contains(&place) {
            return String::new();
        }
        let (began_at, seq) = (self.bind(place.0), self.bind(place.1));
        format!(" and (i.began_at, i.seq) {sign} ({began_at}, {seq})")
    }

    /// Those first that tend to let less through.
    fn words(&mut self) {
        let query = self.query;
        let lower = |text: &Option<String>| text.as_ref().map(|text| Value::from(text.to_lowercase()));
        let (held, listened) = (Some(IntervalKind::Held), Some(IntervalKind::Listened));
        let is_prompt = true;
        self.word("service", query.service.as_ref().map(Value::from), held, is_prompt);
        self.word("process", lower(&query.process), listened, is_prompt);
        self.container();
        self.word("unit", lower(&query.unit), listened, false);
        self.word("holder", query.holder.as_ref().map(Value::from), held, false);
        self.word("account", lower(&query.account), listened, false);
        match query.protocol {
            // Written out, so that the index of the rarer one is known to have all of it.
            Some(Protocol::Udp) => self.words.push(Word {
                keys: vec!["i.protocol = 'udp'".to_owned()],
                rest: format!("{} = 'udp'", unindexed("protocol")),
                kind: None,
                is_prompt: false,
            }),
            Some(Protocol::Tcp) => self.rest.push(format!("{} = 'tcp'", unindexed("protocol"))),
            None => {}
        }
    }

    fn word(&mut self, column: &str, value: Option<Value>, kind: Option<IntervalKind>, is_prompt: bool) {
        let Some(value) = value else { return };
        let value = self.bind(value);
        let (key, rest) = (format!("i.{column} = {value}"), format!("{} = {value}", unindexed(column)));
        self.words.push(Word { keys: vec![key], rest, kind, is_prompt });
    }

    /// By its name, or by the beginning of its id.
    fn container(&mut self) {
        let Some(container) = &self.query.container else { return };
        let name = self.bind(container.to_lowercase());
        let mut keys = vec![format!("i.container = {name}")];
        let mut rest = format!("{} = {name}", unindexed("container"));
        if let Some(id) = short_id(container) {
            let id = self.bind(id);
            keys.push(format!("i.container_id = {id} and (i.container is null or i.container <> {name})"));
            rest = format!("({rest} or {} = {id})", unindexed("container_id"));
        }
        self.words.push(Word { keys, rest, kind: Some(IntervalKind::Listened), is_prompt: false });
    }

    /// What needs no index of its own.
    fn rest(&mut self) {
        let query = self.query;
        if let Some(beyond) = query.at.max(query.since) {
            let beyond = self.bind(beyond);
            self.rest.push(format!("(i.ended_at is null or i.ended_at > {beyond})"));
        }
        if let Some(wide) = query.port.filter(|ports| ports.count() > NARROW) {
            let touches = self.touches(wide);
            self.rest.push(touches);
        }
    }

    fn touches(&mut self, ports: PortRange) -> String {
        let (first, last) = (self.bind(ports.first()), self.bind(ports.last()));
        format!("i.first_port <= {last} and i.last_port >= {first}")
    }

    /// The conditions of each arm.
    fn arms(&mut self, whose: Option<&Whose>) -> Vec<String> {
        let kinds: Vec<IntervalKind> = IntervalKind::ALL
            .iter()
            .copied()
            .filter(|kind| self.query.kind.is_none_or(|asked| asked == *kind))
            .filter(|kind| self.words.iter().all(|word| word.kind.is_none_or(|needed| needed == *kind)))
            .collect();
        if kinds.is_empty() || self.classes.is_empty() {
            return Vec::new();
        }
        match (self.query.port, whose) {
            (_, Some(Whose::These { ids, .. })) if ids.is_empty() => Vec::new(),
            (Some(ports), _) if ports.count() <= NARROW => self.by_ports(ports, whose),
            (_, Some(Whose::These { ids, is_of_few })) if !is_of_few || self.words.is_empty() => {
                let place = |id: &InstanceId| format!("i.instance = {} and ", self.bind(*id));
                let places: Vec<String> = ids.iter().map(place).collect();
                self.walk(&places, &kinds, ANY)
            }
            _ => {
                let among = whose.map(|whose| self.among(whose));
                self.rest.extend(among);
                match self.words.is_empty() {
                    true => self.walk(&[String::new()], &kinds, ANY),
                    false => self.by_word(&kinds),
                }
            }
        }
    }

    fn among(&mut self, whose: &Whose) -> String {
        let ids = match whose {
            Whose::These { ids, .. } => ids.iter().map(|id| self.bind(*id)).collect::<Vec<_>>().join(", "),
            Whose::Labelled(chosen) => chosen.ids(&mut self.values),
        };
        format!("{} in ({ids})", unindexed("instance"))
    }

    fn by_ports(&mut self, ports: PortRange, whose: Option<&Whose>) -> Vec<String> {
        let among = whose.map(|whose| self.among(whose));
        let one = |port| format!("i.first_port = {} and i.first_port >= i.last_port", self.bind(port));
        let mut keys: Vec<String> = ports.ports().map(one).collect();
        keys.push(format!("i.first_port < i.last_port and {}", self.touches(ports)));
        let mut rest: Vec<&str> = self.words.iter().map(|word| word.rest.as_str()).collect();
        let kind = self.kind();
        rest.extend(among.as_deref().into_iter().chain(kind.as_deref()));
        self.each(&keys, &rest, ANY)
    }

    /// By the first word, and what lasts still perhaps by itself.
    fn by_word(&self, kinds: &[IntervalKind]) -> Vec<String> {
        let (word, others) = self.words.split_first().expect("it is asked before whether there is one");
        let mut rest: Vec<&str> = others.iter().map(|word| word.rest.as_str()).collect();
        let kind = self.kind();
        rest.extend(kind.as_deref());
        if word.is_prompt {
            return self.each(&word.keys, &rest, ANY);
        }
        rest.push(NOT_THE_LAST);
        let mut arms = self.each(&word.keys, &rest, |class| class < LASTING.len());
        arms.extend(self.walk(&[String::new()], kinds, |class| class == LASTING.len()));
        arms
    }

    /// In the order of time, of the fleet or of some instances.
    fn walk(&self, places: &[String], kinds: &[IntervalKind], which: fn(usize) -> bool) -> Vec<String> {
        let of_kind = |kind: &IntervalKind| {
            let places = places.iter().map(move |place| format!("{place}i.kind = '{kind}'"));
            places.collect::<Vec<_>>()
        };
        let keys: Vec<String> = kinds.iter().flat_map(of_kind).collect();
        let rest: Vec<&str> = self.words.iter().map(|word| word.rest.as_str()).collect();
        self.each(&keys, &rest, which)
    }

    /// Which kind, where that is not in the index.
    fn kind(&self) -> Option<String> {
        self.query.kind.map(|kind| format!("{} = '{kind}'", unindexed("kind")))
    }

    /// One arm for each key and class.
    fn each(&self, keys: &[String], rest: &[&str], which: fn(usize) -> bool) -> Vec<String> {
        let rest: Vec<&str> = rest.iter().copied().chain(self.rest.iter().map(String::as_str)).collect();
        let rest: String = rest.iter().map(|rest| format!(" and {rest}")).collect();
        let classes = self.classes.iter().filter(|(class, _)| which(*class));
        classes
            .flat_map(|(_, class)| {
                keys.iter().map(|key| format!("{key} and {class}{rest}")).collect::<Vec<_>>()
            })
            .collect()
    }

    fn finish(mut self, columns: &str, arms: &[String]) -> (String, Vec<Value>) {
        if arms.is_empty() {
            return (format!("select {columns} from interval i where i.seq < 0"), Vec::new());
        }
        let direction = if self.is_oldest_first() { "asc" } else { "desc" };
        let limit = self.bind(self.query.limit() + 1);
        let page = format!("order by i.began_at {direction}, i.seq {direction} limit {limit}");
        let arms = arms.iter().enumerate().map(|(number, arm)| {
            format!("select * from (select {columns} from interval i where {arm} {page}) as a{number}")
        });
        let arms = arms.collect::<Vec<_>>().join(" union all ");
        (format!("select * from ({arms}) as i {page}"), self.values)
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
    use std::collections::BTreeSet;

    use gk_model::time::Timestamp;

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
                let whose = on(0).map(|()| Whose::These { ids: vec![id], is_of_few: on(5).is_some() });
                let (sql, values) = select("i.seq, i.began_at", &query, whose.as_ref()).unwrap();
                let plan = plan(&sql, &values);
                assert_eq!(indexes(&plan), expected(&query, whose.as_ref(), word), "{query:?}: {plan}");
                // What the arms answer is sorted, which is a few pages at most; what they read is not.
                let lines: Vec<&str> = plan.split("; ").collect();
                for (at, line) in lines.iter().enumerate() {
                    let is_sorted = line.contains("TEMP B-TREE");
                    assert!(!is_sorted || is_answer(lines[at - 1]), "{query:?}: {plan}");
                    assert!(!line.starts_with("SCAN") || is_answer(line), "{query:?}: {plan}");
                }
            }
        }
    }

    fn is_answer(line: &str) -> bool {
        line.starts_with("SCAN a") || line == "SCAN i"
    }

    /// Which indexes a plan names.
    fn indexes(plan: &str) -> BTreeSet<String> {
        let names = plan.split(" INDEX interval_").skip(1);
        names.filter_map(|rest| rest.split_whitespace().next()).map(str::to_owned).collect()
    }

    /// By which indexes history is to be read.
    fn expected(query: &HistoryQuery, whose: Option<&Whose>, word: &str) -> BTreeSet<String> {
        let is_of_held = ["service", "holder"].contains(&word);
        let is_contradiction = !word.is_empty() && !is_of_held && query.kind == Some(IntervalKind::Held);
        let word = match (word, query.protocol) {
            ("", Some(Protocol::Udp)) => "udp",
            (word, _) => word,
        };
        let names: &[&str] = match word {
            _ if is_contradiction => &[],
            _ if query.port.is_some_and(|ports| ports.count() <= NARROW) => &["number", "range"],
            "" if whose.is_some() => &["instance_lasting"],
            _ if matches!(whose, Some(Whose::These { is_of_few: false, .. })) => &["instance_lasting"],
            "" => &["lasting"],
            "service" | "process" => &[word],
            "container" => &["container", "container_id", "lasting"],
            late => &[late, "lasting"],
        };
        names.iter().map(|name| (*name).to_owned()).collect()
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
