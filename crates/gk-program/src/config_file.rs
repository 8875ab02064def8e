//! The configuration file: TOML, one key for each option, by its long name.
//!
//! Promises that nobody but root and this account can have written what is believed, that a secret in it is for nobody else
//! to read, and that what is wrong is said without repeating what the file holds. Refuses a key that is no option: one that
//! is misspelt would be an option that is silently not in force.
//!
//! Who may write above the file can put another one in its place, and is not looked at; that one belongs to somebody else.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use toml::{Table, Value};

use crate::mask::is_secret;

/// What a file says: for each key, one value or several.
pub(crate) type Said = BTreeMap<String, Vec<String>>;

/// A file of options is a page; whatever is longer is something else.
const MOST_BYTES: u64 = 1 << 20;

/// Which keys there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys<'a> {
    pub(crate) known: &'a [&'a str],
    /// The one that may hold a secret, if any.
    pub(crate) secret: Option<&'a str>,
}

/// Reads a file; none when there is none.
pub(crate) fn read(path: &Path, keys: Keys<'_>, own_uid: u32) -> anyhow::Result<Option<Said>> {
    // Held open: what was looked at is what is read.
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.context("cannot read it")?,
    };
    let metadata = file.metadata().context("cannot read it")?;
    refuse_strangers(path, &metadata, own_uid)?;
    let mut text = String::new();
    file.take(MOST_BYTES).read_to_string(&mut text).context("cannot read it")?;
    let said = parse(&text, keys)?;
    refuse_told_secret(path, &metadata, &said)?;
    Ok(Some(said))
}

fn refuse_strangers(path: &Path, metadata: &Metadata, own_uid: u32) -> anyhow::Result<()> {
    let (owner, path) = (metadata.uid(), path.display());
    if metadata.mode() & 0o022 != 0 {
        bail!(
            "others may write to it, and could make Gatekeeper do anything: if nobody has, run chmod go-w {path}"
        );
    }
    if owner != 0 && owner != own_uid {
        bail!("it belongs to uid {owner}, who is a stranger here: if it can be trusted, run chown 0 {path}");
    }
    Ok(())
}

/// As everywhere, a group may read what belongs to root.
fn refuse_told_secret(path: &Path, metadata: &Metadata, said: &Said) -> anyhow::Result<()> {
    let forbidden = if metadata.uid() == 0 { 0o007 } else { 0o077 };
    let has_secret = said.values().flatten().any(|value| is_secret(value));
    if has_secret && metadata.mode() & forbidden != 0 {
        bail!(
            "other accounts may read it, and a password is in it: run chmod go= {}, and change that password",
            path.display()
        );
    }
    Ok(())
}

fn parse(text: &str, keys: Keys<'_>) -> anyhow::Result<Said> {
    let table: Table = toml::from_str(text).map_err(|error| {
        // Its own text shows the line, which may hold a password.
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        anyhow::anyhow!("line {}: {}", before.matches('\n').count() + 1, error.message())
    })?;
    let pairs = table.into_iter().map(|(key, value)| {
        refuse_unknown(&key, keys.known)?;
        let values = words(value).with_context(|| {
            format!("`{key}` is a text, a number, true or false, or a list of these between brackets")
        })?;
        // Before anything else looks at it and says what it saw.
        if keys.secret != Some(&key) && values.iter().any(|value| is_secret(value)) {
            bail!("`{key}` holds a secret, which does not belong there: take it out, and change it");
        }
        Ok((key, values))
    });
    pairs.collect()
}

fn refuse_unknown(key: &str, known: &[&str]) -> anyhow::Result<()> {
    if known.contains(&key) {
        return Ok(());
    }
    let nearest = known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(key, candidate), candidate))
        .filter(|(alike, _)| *alike >= 0.8)
        .max_by(|one, other| one.0.total_cmp(&other.0));
    let advice = match nearest {
        Some((_, candidate)) => format!("did you mean `{candidate}`?"),
        None => format!("known are {}", known.join(", ")),
    };
    bail!("there is no option `{}`: {advice}", key.escape_debug())
}

/// A value as it would be written on a command line.
fn words(value: Value) -> Option<Vec<String>> {
    match value {
        Value::Array(values) => values.into_iter().map(word).collect(),
        single => Some(vec![word(single)?]),
    }
}

fn word(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Integer(number) => Some(number.to_string()),
        Value::Boolean(yes) => Some(yes.to_string()),
        Value::Float(_) | Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: Keys<'_> =
        Keys { known: &["database", "listen", "insecure-http", "tls-name"], secret: Some("database") };

    fn refusal(text: &str) -> String {
        format!("{:#}", parse(text, KEYS).unwrap_err())
    }

    #[test]
    fn a_file_says_options_as_a_command_line_would() {
        let said = parse("listen = '[::1]:1'\ninsecure-http = true\ntls-name = ['a', 7]\n", KEYS).unwrap();
        let strings = |values: &[&str]| values.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(said["listen"], strings(&["[::1]:1"]));
        assert_eq!((&said["insecure-http"], &said["tls-name"]), (&strings(&["true"]), &strings(&["a", "7"])));
    }

    #[test]
    fn what_is_wrong_is_said_by_line_or_key_and_never_by_its_content() {
        let table = [
            ("tls_name = 'a'", "there is no option `tls_name`: did you mean `tls-name`?"),
            ("lisen = 'a'", "did you mean `listen`?"),
            ("colour = 'red'", "known are database, listen, insecure-http, tls-name"),
            ("[listen]\nport = 1", "`listen` is a text"),
            ("listen = 1.5", "`listen` is a text"),
            ("tls-name = [['a']]", "`tls-name` is a text"),
            ("listen = 'http://ada:sesame@b'", "`listen` holds a secret"),
            ("tls-name = ['a', 'gkt_sesame']", "`tls-name` holds a secret"),
            ("listen = 'a'\ndatabase = 'postgres://a:sesame@b/c", "line 2: "),
            ("listen = 'sesame'\nlisten = 'b'", "line 2: duplicate key"),
        ];
        for (text, words) in table {
            let told = refusal(text);
            assert!(told.contains(words) && !told.contains("sesame"), "{text}\n{told}");
        }
    }
}
