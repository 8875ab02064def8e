//! Labels, by which instances are told apart, and selectors, by which they are chosen.
//!
//! The same text form serves everywhere: `env=prod` on the command line, in queries and in the database; a selector is a
//! list of requirements, separated by commas, of which all must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::text::{LabelKey, LabelValue, NameError};
use crate::text_form::text_form;

/// Why a text is no label, no set of labels, or no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// A key or a value is not one.
    #[error(transparent)]
    Name(#[from] NameError),
    /// There is no `=`.
    #[error("`{0}` is not a label: write key=value, as in env=prod")]
    NoLabel(String),
    /// Not of any of the known forms.
    #[error("`{0}` is not a requirement: write a, a=b, a!=b or a in (b,c), several with commas between")]
    NoRequirement(String),
    /// The same key twice.
    #[error("the label {0} is given twice")]
    Twice(LabelKey),
    /// A selector beyond any use.
    #[error("that selector is too long: {0} bytes, at most {most}", most = Selector::MOST_BYTES)]
    TooLong(usize),
    /// More than an instance may have.
    #[error("{0} labels are too many: at most {most}", most = Labels::MOST)]
    TooMany(usize),
}

/// Enough of a text to be recognised.
fn short(text: &str) -> String {
    text.chars().take(60).flat_map(char::escape_debug).collect()
}

/// One label, `env=prod`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// What kind of thing it tells.
    pub key: LabelKey,
    /// What it is.
    pub value: LabelValue,
}

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Label, LabelError> {
        let (key, value) = text.split_once('=').ok_or_else(|| LabelError::NoLabel(short(text)))?;
        Ok(Label { key: key.trim().parse()?, value: value.trim().parse()? })
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

/// What an instance is labelled with: at most [`Labels::MOST`], each key once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "BTreeMap<LabelKey, LabelValue>")]
#[schema(value_type = std::collections::HashMap<String, String>)]
pub struct Labels(BTreeMap<LabelKey, LabelValue>);

impl Labels {
    /// How many there may be.
    pub const MOST: usize = 32;

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value under a key.
    pub fn get(&self, key: &LabelKey) -> Option<&LabelValue> {
        self.0.get(key)
    }

    /// The same with one more, or with another value under its key.
    ///
    /// # Errors
    /// [`LabelError::TooMany`].
    pub fn with(mut self, label: Label) -> Result<Labels, LabelError> {
        self.0.insert(label.key, label.value);
        self.0.try_into()
    }

    /// The same without the one under this key, if there was one.
    #[must_use]
    pub fn without(mut self, key: &LabelKey) -> Labels {
        self.0.remove(key);
        self
    }

    /// Each of them, by key.
    pub fn iter(&self) -> impl Iterator<Item = Label> {
        self.0.iter().map(|(key, value)| Label { key: key.clone(), value: value.clone() })
    }
}

impl TryFrom<BTreeMap<LabelKey, LabelValue>> for Labels {
    type Error = LabelError;

    fn try_from(labels: BTreeMap<LabelKey, LabelValue>) -> Result<Labels, LabelError> {
        match labels.len() {
            count if count > Labels::MOST => Err(LabelError::TooMany(count)),
            _ => Ok(Labels(labels)),
        }
    }
}

impl TryFrom<Vec<Label>> for Labels {
    type Error = LabelError;

    fn try_from(given: Vec<Label>) -> Result<Labels, LabelError> {
        let mut labels = BTreeMap::new();
        for Label { key, value } in given {
            if labels.insert(key.clone(), value).is_some() {
                return Err(LabelError::Twice(key));
            }
        }
        labels.try_into()
    }
}

/// For people: `env=prod,team=web`.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.iter().map(|label| label.to_string()).collect();
        f.pad(&all.join(","))
    }
}

/// One requirement of a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    /// `a`: there is such a label.
    Has(LabelKey),
    /// `a!=b`: there is no such label, or it is another one.
    Not(LabelKey, LabelValue),
    /// `a=b`, or `a in (b,c)`: it is one of these.
    OneOf(LabelKey, BTreeSet<LabelValue>),
}

impl Requirement {
    fn holds(&self, labels: &Labels) -> bool {
        match self {
            Requirement::Has(key) => labels.get(key).is_some(),
            Requirement::Not(key, value) => labels.get(key) != Some(value),
            Requirement::OneOf(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
        }
    }

    /// Neither keys nor values hold a quote, so that what stands between quotes is a whole one.
    fn clause(&self) -> Clause {
        let pair = |key, value| format!("\"{key}\":\"{value}\"");
        match self {
            Requirement::Has(key) => Clause::AnyOf(vec![format!("\"{key}\":")]),
            Requirement::Not(key, value) => Clause::Without(pair(key, value)),
            Requirement::OneOf(key, values) => {
                Clause::AnyOf(values.iter().map(|value| pair(key, value)).collect())
            }
        }
    }
}

impl FromStr for Requirement {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Requirement, LabelError> {
        let text = text.trim();
        if let Some((key, value)) = text.split_once("!=") {
            return Ok(Requirement::Not(key.trim().parse()?, value.trim().parse()?));
        }
        if let Some((key, value)) = text.split_once('=') {
            let value = value.strip_prefix('=').unwrap_or(value);
            return Ok(Requirement::OneOf(key.trim().parse()?, [value.trim().parse()?].into()));
        }
        let Some((key, rest)) = text.split_once(char::is_whitespace) else {
            return Ok(Requirement::Has(text.parse()?));
        };
        let values = rest
            .trim_start()
            .strip_prefix("in")
            .map(str::trim)
            .and_then(|rest| rest.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')));
        let values = values.ok_or_else(|| LabelError::NoRequirement(short(text)))?;
        let values = values.split(',').map(|value| value.trim().parse()).collect::<Result<_, _>>()?;
        Ok(Requirement::OneOf(key.parse()?, values))
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Requirement::Has(key) => key.fmt(f),
            Requirement::Not(key, value) => write!(f, "{key}!={value}"),
            Requirement::OneOf(key, values) => match values.iter().collect::<Vec<_>>().as_slice() {
                [value] => write!(f, "{key}={value}"),
                values => {
                    let values: Vec<&str> = values.iter().map(|value| value.as_str()).collect();
                    write!(f, "{key} in ({})", values.join(","))
                }
            },
        }
    }
}

/// Chooses instances by their labels, as in `env=prod,team in (web,api),tier!=db`. All requirements must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

impl Selector {
    /// How long its text may be: a database looks for each of its words.
    pub const MOST_BYTES: usize = 1024;

    /// Whether an instance with these labels is chosen.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.holds(labels))
    }

    /// The labels that every chosen instance has.
    pub fn labels(&self) -> impl Iterator<Item = Label> {
        self.0.iter().filter_map(|requirement| match requirement {
            Requirement::OneOf(key, values) if values.len() == 1 => {
                values.first().map(|value| Label { key: key.clone(), value: value.clone() })
            }
            Requirement::OneOf(..) | Requirement::Has(_) | Requirement::Not(..) => None,
        })
    }

    /// The same as texts to look for in the JSON of the labels, for a database that cannot read that.
    pub fn clauses(&self) -> impl Iterator<Item = Clause> {
        self.0.iter().map(Requirement::clause)
    }
}

/// A requirement, as what the JSON text of labels contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clause {
    /// One of these.
    AnyOf(Vec<String>),
    /// Not this.
    Without(String),
}

impl FromStr for Selector {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Selector, LabelError> {
        if text.len() > Selector::MOST_BYTES {
            return Err(LabelError::TooLong(text.len()));
        }
        split(text).into_iter().map(str::parse).collect::<Result<_, _>>().map(Selector)
    }
}

/// The parts between the commas that are not within parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut begin, mut depth) = (Vec::new(), 0, 0_u32);
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    parts
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(Requirement::to_string).collect();
        f.pad(&all.join(","))
    }
}

text_form!(Selector, "env=prod,team in (web,api)");

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        let labels: Vec<Label> =
            text.split(',').filter(|part| !part.is_empty()).map(|part| part.parse().unwrap()).collect();
        labels.try_into().unwrap()
    }

    #[test]
    fn a_selector_chooses_what_it_says() {
        let table = [
            ("env=prod", "env=prod,team=web", true),
            ("env==prod", "env=prod", true),
            ("env=prod", "env=test", false),
            ("env=prod", "", false),
            ("env!=prod", "env=test", true),
            ("env!=prod", "", true),
            ("env!=prod", "env=prod", false),
            ("env", "env=prod", true),
            ("env", "team=web", false),
            ("env in (prod,test)", "env=test", true),
            ("env in ( prod , test )", "env=dev", false),
            ("env in (prod,test), team=web", "env=test,team=web", true),
            ("env in (prod,test),team=web", "env=test", false),
            ("env", "x-env=a,b=env", false),
            ("env=prod", "x.env=prod,env=prod-2", false),
        ];
        for (selector, given, expected) in table {
            let selector: Selector = selector.parse().unwrap();
            assert_eq!(selector.matches(&labels(given)), expected, "{selector} on {given}");
            let json = serde_json::to_string(&labels(given)).unwrap();
            let holds = |clause| match clause {
                Clause::AnyOf(texts) => texts.iter().any(|text| json.contains(text)),
                Clause::Without(text) => !json.contains(&text),
            };
            assert_eq!(selector.clauses().all(holds), expected, "{selector} on {json}");
            let has = |label: Label| labels(given).get(&label.key) == Some(&label.value);
            assert!(!expected || selector.labels().all(has), "{selector} on {given}");
            let again: Selector = selector.to_string().parse().unwrap();
            assert_eq!(again, selector, "its text is its own");
        }
    }

    #[test]
    fn what_is_no_selector_says_what_one_is() {
        for bad in
            ["", ",", "a,", "a=", "=b", "a b", "a in b", "a in ()", "a in (b", "a(b)", "a=b c", "a=b=c"]
        {
            assert!(bad.parse::<Selector>().is_err(), "{bad:?} was taken");
        }
        let long = format!("a in ({})", "b,".repeat(600));
        assert_eq!(long.parse::<Selector>(), Err(LabelError::TooLong(1207)));
        let told = "a like b".parse::<Selector>().unwrap_err().to_string();
        assert!(told.contains("a in (b,c)"), "{told}");
    }

    #[test]
    fn labels_are_few_and_each_once() {
        let twice = vec!["a=b".parse().unwrap(), "a=c".parse().unwrap()];
        assert_eq!(Labels::try_from(twice), Err(LabelError::Twice("a".parse().unwrap())));
        let many: Vec<Label> = (0..33).map(|number| format!("k{number}=v").parse().unwrap()).collect();
        assert_eq!(Labels::try_from(many), Err(LabelError::TooMany(33)));
        let json = r#"{"env":"prod","team":"web"}"#;
        assert_eq!(serde_json::to_string(&serde_json::from_str::<Labels>(json).unwrap()).unwrap(), json);
        assert!(serde_json::from_str::<Labels>(r#"{"a b":"c"}"#).is_err());
    }
}
