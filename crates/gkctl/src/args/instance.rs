//! What can be typed after `gkctl instance`.

use std::num::NonZeroU32;
use std::str::FromStr;

use clap::{Args as ClapArgs, Subcommand};
use gk_model::id::InstanceRef;
use gk_model::instance::Presence;
use gk_model::labels::{Label, LabelError, Selector};
use gk_model::text::{InstanceName, LabelKey, NameError};

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum InstanceVerb {
    /// Bring this machine in, or refresh what is known of it.
    #[command(
        after_help = "Example: gkctl instance join --server https://gk.example:5000 --ca-pin sha256:…\n\n\
                            With a join token: gkctl instance join --server http://127.0.0.1:5000, which asks for it; \
                            in a script, --token-file FILE, where - is stdin."
    )]
    Join(Join),
    /// List the machines that have joined.
    #[command(after_help = "Example: gkctl instance list --presence offline --label env=prod")]
    List(InstanceFilters),
    /// Show everything that is known of a machine.
    #[command(after_help = "Example: gkctl instance show web-1")]
    Show(OneInstance),
    /// Take a machine out; its history stays.
    #[command(after_help = "Example: gkctl instance leave --release")]
    Leave(Leave),
    /// Label a machine: limits of tokens go by labels.
    #[command(
        after_help = "Example: gkctl instance label web-1 env=prod team=web old-\n\n\
                      KEY=VALUE sets a label, KEY- removes one; all others stay. Without any, it tells them.",
        override_usage = "gkctl instance label [OPTIONS] [INSTANCE] [KEY=VALUE|KEY-]..."
    )]
    Label(Relabel),
    /// Give a machine another name.
    #[command(
        after_help = "Example: gkctl instance rename web-1 web-2",
        override_usage = "gkctl instance rename [OPTIONS] [INSTANCE] <NEW-NAME>"
    )]
    Rename(Rename),
}

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct Join {
    /// The name to join under; the host name when left out.
    #[arg(long)]
    pub(crate) name: Option<InstanceName>,
    /// Take over this instance's id, because its credential was lost.
    #[arg(long, value_name = "INSTANCE")]
    pub(crate) replace: Option<InstanceRef>,
    /// What to label it with, as in env=prod; several times for several. For operators.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub(crate) labels: Vec<Label>,
}

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct InstanceFilters {
    /// Only the one with this name.
    #[arg(long)]
    pub(crate) name: Option<InstanceName>,
    /// Only those that are online, offline, or have left.
    #[arg(long)]
    pub(crate) presence: Option<Presence>,
    /// Only those with these labels, as in 'env=prod,team in (web,api)'.
    #[arg(long, alias = "on", value_name = "SELECTOR")]
    pub(crate) label: Option<Selector>,
    /// Show their ids too.
    #[arg(long)]
    pub(crate) wide: bool,
    /// Only those with this text in their name.
    #[arg(short = 'q', long, value_name = "TEXT")]
    pub(crate) search: Option<String>,
    /// At most so many.
    #[arg(long, value_name = "COUNT", value_parser = super::at_least_one)]
    pub(crate) limit: Option<NonZeroU32>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct OneInstance {
    /// Its name or id; this machine when left out.
    #[arg(value_name = "INSTANCE")]
    pub(crate) which: Option<InstanceRef>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Leave {
    /// Its name or id; this machine when left out.
    #[arg(value_name = "INSTANCE")]
    pub(crate) which: Option<InstanceRef>,
    /// Release its reservations too.
    #[arg(long)]
    pub(crate) release: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Rename {
    /// The instance (this machine when left out), then its new name.
    // One list, because a required value cannot follow an optional one.
    #[arg(value_name = "NAMES", num_args = 1..=2, required = true)]
    pub(crate) names: Vec<InstanceRef>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Relabel {
    /// The instance (this machine when left out), then what to set and what to remove.
    // One list, because nothing but its look tells the first from the others.
    #[arg(value_name = "WORDS")]
    pub(crate) words: Vec<LabelWord>,
}

/// One word after `instance label`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LabelWord {
    /// `env=prod`
    Set(Label),
    /// `env-`
    Remove(LabelKey),
    /// Anything else.
    Instance(InstanceRef),
}

/// A name that ends with `-` is taken for a label to remove; such an instance is named by its id, or by `--instance`.
impl FromStr for LabelWord {
    type Err = String;

    fn from_str(text: &str) -> Result<LabelWord, String> {
        if text.contains('=') {
            return text.parse().map(LabelWord::Set).map_err(|error: LabelError| error.to_string());
        }
        match text.strip_suffix('-') {
            Some(key) => key.parse().map(LabelWord::Remove).map_err(|error: NameError| error.to_string()),
            None => text.parse().map(LabelWord::Instance).map_err(|error: NameError| error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_sets_removes_or_names() {
        let table = [
            ("env=prod", Some(LabelWord::Set("env=prod".parse().unwrap()))),
            ("team=a-", Some(LabelWord::Set("team=a-".parse().unwrap()))),
            ("env-", Some(LabelWord::Remove("env".parse().unwrap()))),
            ("my-key-", Some(LabelWord::Remove("my-key".parse().unwrap()))),
            ("web-1", Some(LabelWord::Instance("web-1".parse().unwrap()))),
            ("=x", None),
            ("env=", None),
            ("-", None),
            ("a b", None),
        ];
        for (text, word) in table {
            assert_eq!(text.parse::<LabelWord>().ok(), word, "{text}");
        }
    }
}
