//! What `make bench ARGS=…` takes.

use anyhow::{Context as _, Result, bail};

/// What to measure.
#[derive(Default)]
pub(crate) struct Options {
    /// A tenth of the long history.
    pub(crate) quick: bool,
    /// A Python Gatekeeper to compare with.
    pub(crate) python: Option<String>,
    /// Only sections whose title contains this; the report is then only printed.
    pub(crate) only: Option<String>,
}

impl Options {
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Options> {
        let mut options = Options::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--quick" => options.quick = true,
                "--python" => {
                    options.python = Some(words.next().context("--python wants http://ADDRESS:PORT")?);
                }
                "--only" => options.only = Some(words.next().context("--only wants a part of a title")?),
                _ => bail!("unknown: {word}. There are --quick, --python URL and --only TITLE"),
            }
        }
        Ok(options)
    }
}
