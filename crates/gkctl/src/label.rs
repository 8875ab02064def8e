//! `gkctl instance label`: sets some labels, removes others, and leaves the rest.

use anyhow::Result;
use gk_client::{Client, ClientError};
use gk_model::id::InstanceRef;
use gk_model::instance::{Instance, InstancePatch};
use gk_model::labels::{Label, LabelError, Labels};
use gk_model::problem::Code;
use gk_model::text::LabelKey;

use crate::args::{Format, LabelWord, Relabel};
use crate::context::{Context, note};
use crate::error::{Exit, Failure};
use crate::output::{print, print_json};

/// How often somebody else may change the instance in between.
const ATTEMPTS: u32 = 50;

/// What is to become of the labels.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    set: Vec<Label>,
    removed: Vec<LabelKey>,
}

impl Change {
    /// Only sets.
    pub(crate) fn to(set: Vec<Label>) -> Change {
        Change { set, removed: Vec::new() }
    }

    pub(crate) fn apply(&self, labels: Labels) -> Result<Labels, LabelError> {
        let kept = self.removed.iter().fold(labels, Labels::without);
        self.set.iter().cloned().try_fold(kept, Labels::with)
    }
}

/// Changes labels, or shows them when nothing is to be changed.
pub(crate) fn label(context: &Context, wanted: &Relabel) -> Result<()> {
    let (which, change) = read(&wanted.words)?;
    let which = context.instance(which.as_ref())?;
    let client = context.client()?;
    let is_asked = change == Change::default();
    let instance = if is_asked { client.get_instance(&which)? } else { relabel(&client, &which, &change)? };
    match context.format() {
        Format::Json => print_json(&instance)?,
        Format::Name => print(&format!("{}\n", instance.name))?,
        Format::Table | Format::Csv if is_asked => print(&format!("{}\n", told(&instance)))?,
        Format::Table | Format::Csv => note(told(&instance)),
    }
    Ok(())
}

/// `web-1 is labelled env=prod,team=web`.
pub(crate) fn told(instance: &Instance) -> String {
    match instance.labels.is_empty() {
        true => format!("{} has no labels", instance.name),
        false => format!("{} is labelled {}", instance.name, instance.labels),
    }
}

/// Changes the labels of an instance as they are now: when somebody else was faster, as they are then.
pub(crate) fn relabel(client: &Client, which: &InstanceRef, change: &Change) -> Result<Instance> {
    for attempt in 1.. {
        let before = client.get_instance(which)?;
        let labels = change
            .apply(before.labels.clone())
            .map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
        let patch = InstancePatch { name: None, labels: Some(labels) };
        // By its id: meanwhile another one may have the name.
        match client.update_instance_version(&before.id.into(), &patch, before.version) {
            Err(ClientError::Refused(problem))
                if problem.code == Code::VersionMismatch && attempt < ATTEMPTS => {}
            answer => return Ok(answer?),
        }
    }
    unreachable!("the last attempt answers")
}

/// What words that name no instance change.
pub(crate) fn change(words: &[LabelWord]) -> Result<Change, Failure> {
    match read(words)? {
        (None, change) => Ok(change),
        (Some(other), _) => Err(no_label(&other)),
    }
}

fn no_label(word: &InstanceRef) -> Failure {
    Failure::new(Exit::Usage, format!("`{word}` is no label"))
        .hint("write KEY=VALUE to set one, KEY- to remove one")
}

/// The instance comes first, if it is there.
fn read(words: &[LabelWord]) -> Result<(Option<InstanceRef>, Change), Failure> {
    let mut change = Change::default();
    let (which, rest) = match words {
        [LabelWord::Instance(which), rest @ ..] => (Some(which.clone()), rest),
        rest => (None, rest),
    };
    for word in rest {
        match word {
            LabelWord::Set(label) => change.set.push(label.clone()),
            LabelWord::Remove(key) => change.removed.push(key.clone()),
            LabelWord::Instance(other) => {
                return Err(no_label(other));
            }
        }
    }
    let mut keys: Vec<&LabelKey> = change.set.iter().map(|label| &label.key).chain(&change.removed).collect();
    keys.sort_unstable();
    match keys.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Failure::new(Exit::Usage, format!("the label {} is given twice", pair[0]))),
        None => Ok((which, change)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        let all = text.split(',').filter(|part| !part.is_empty());
        all.map(|part| part.parse().unwrap()).collect::<Vec<Label>>().try_into().unwrap()
    }

    #[test]
    fn labels_are_set_and_removed_and_the_rest_stays() {
        let table = [
            ("env=prod", "", Some("env=prod")),
            ("env=prod", "env=dev,team=web", Some("env=prod,team=web")),
            ("env-", "env=dev,team=web", Some("team=web")),
            ("env-", "team=web", Some("team=web")),
            ("a=b c- d=e", "c=d,x=y", Some("a=b,d=e,x=y")),
            ("env=prod env-", "", None),
            ("env=prod env=dev", "", None),
            ("env=prod web-1", "", None),
        ];
        for (words, before, after) in table {
            let words: Vec<LabelWord> = words.split(' ').map(|word| word.parse().unwrap()).collect();
            let done = read(&words).map(|(_, change)| change.apply(labels(before)).unwrap());
            assert_eq!(done.ok(), after.map(labels), "{words:?} on {before}");
        }
    }

    #[test]
    fn the_instance_comes_first() {
        let words = ["web-1", "env=prod"].map(|word| word.parse().unwrap());
        let (which, change) = read(&words).unwrap();
        assert_eq!(which, "web-1".parse().ok());
        assert_eq!(change, Change::to(vec!["env=prod".parse().unwrap()]));
        assert_eq!(read(&words[1..]).unwrap().0, None);
    }
}
