//! Where each option comes from: the command line, the environment, the configuration file, or nowhere.
//!
//! A file has a key for each option that the environment has a variable for. What it says becomes the default of that option
//! before the command line is parsed, so one parser judges all three, and their order is the parser's own: the command
//! line, then the environment, then the file. `gatekeeper config` prints what that comes to, as a file would say it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};

use crate::account::own_uid;
use crate::config_file::{self, Keys};
use crate::mask::{is_secret, masked};

/// The option that names the file, which can therefore not be in it.
const FILE_OPTION: &str = "config";

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From who started the process, for everybody to see.
    CommandLine,
    /// This variable of the environment.
    Variable(String),
    /// This file.
    File(PathBuf),
    /// Nobody said anything.
    Default,
}

/// What a command has, beside its own options, to be configured by.
#[derive(Clone, Copy, Debug, Default)]
pub struct Source {
    /// The subcommand whose options its file holds; none when the program has but one role.
    pub role: Option<&'static str>,
    /// The file that is read when no other is named, if it is there.
    pub file: Option<&'static str>,
    /// The one option that may hold a secret.
    pub secret: Option<SecretOption>,
}

/// An option that may hold a secret.
#[derive(Clone, Copy, Debug)]
pub struct SecretOption {
    /// The option, as the file calls it.
    pub key: &'static str,
    /// What others call it in the environment. After our own variable, because it may be meant for another program.
    pub variable: &'static str,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::CommandLine => f.write_str("the command line"),
            Origin::Variable(name) => write!(f, "{name} of the environment"),
            Origin::File(path) => path.display().fmt(f),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// One option, as it is in force.
#[derive(Debug)]
struct Setting {
    key: String,
    takes_many: bool,
    values: Vec<String>,
    origin: Origin,
}

/// The options of one command, as they are in force.
#[derive(Debug, Default)]
pub struct Configuration(Vec<Setting>);

/// What stands below the command line and the environment, by key.
type Below = BTreeMap<String, (Vec<OsString>, Origin)>;

/// Reads these words of a command line, the environment, and the file of the command that they name. Ends the process
/// when they ask for help, or name no command.
///
/// # Errors
/// What is wrong with the file.
pub fn read<T: CommandFactory + FromArgMatches>(
    words: &[OsString],
    source: impl FnOnce(&[&str]) -> Source,
) -> anyhow::Result<(T, Configuration)> {
    let (all, command) = (T::command(), || without_empty_variables(T::command()));
    let told = command().get_matches_from(words);
    let roles: Vec<&str> = roles(&told);
    if !can_name_a_file(&all, &roles) {
        return Ok((from(&told), Configuration::default()));
    }
    let below = below(&all, source(&roles), options(&told))?;
    let mut origins = below.values().map(|(_, origin)| origin);
    let file = origins.clone().find(|origin| matches!(origin, Origin::File(_)));
    let about = file.or(origins.next()).map(ToString::to_string).unwrap_or_default();
    // Without the file it was accepted, so what is refused now is the file's.
    let command = with_defaults(command(), &below);
    let matches = command.try_get_matches_from(words).map_err(|error| {
        let told = error.to_string();
        let reason = told.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        anyhow!("{about}: {reason}")
    })?;
    let configuration = Configuration::of(&all, &roles, options(&matches), &below);
    Ok((from(&matches), configuration))
}

/// The same for a command that no file is for.
pub fn read_without_file<T: CommandFactory + FromArgMatches>(words: &[OsString]) -> T {
    from(&without_empty_variables(T::command()).get_matches_from(words))
}

/// The environment as `gk_model::paths` wants it.
pub fn env(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

/// What a switch may be in the environment; empty is as good as unset, as for every other variable.
///
/// # Errors
/// What to write.
pub fn switch(text: &str) -> Result<bool, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "" | "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("write 1 or 0"),
    }
}

fn from<T: FromArgMatches>(matches: &ArgMatches) -> T {
    T::from_arg_matches(matches).unwrap_or_else(|error| error.exit())
}

/// Whether the innermost subcommand has the option. Matches cannot be asked: in a release build they say that whatever is
/// not in them was not given.
fn can_name_a_file(command: &Command, roles: &[&str]) -> bool {
    innermost(command, roles).any(|argument| argument.get_long() == Some(FILE_OPTION))
}

/// Its own options.
fn innermost<'a>(command: &'a Command, roles: &[&str]) -> impl Iterator<Item = &'a Arg> {
    let inner = roles.iter().try_fold(command, |command, role| command.find_subcommand(role));
    inner.into_iter().flat_map(Command::get_arguments)
}

/// The names of the subcommands, outermost first.
fn roles(matches: &ArgMatches) -> Vec<&str> {
    std::iter::successors(matches.subcommand(), |(_, inner)| inner.subcommand())
        .map(|(name, _)| name)
        .collect()
}

/// The options of the innermost subcommand, which those of every command are among.
fn options(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, inner)| options(inner))
}

/// Empty is as good as unset: what starts containers often knows no other way to leave something out.
fn without_empty_variables(command: Command) -> Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    each_argument(command, &|argument| match argument.get_env().is_some_and(is_empty) {
        true => argument.env(None::<&'static str>),
        false => argument,
    })
}

fn with_defaults(command: Command, below: &Below) -> Command {
    each_argument(command, &|argument| match argument.get_long().and_then(|key| below.get(key)) {
        Some((values, _)) => argument.default_values(values.clone()),
        None => argument,
    })
}

fn each_argument(command: Command, change: &dyn Fn(Arg) -> Arg) -> Command {
    command.mut_args(change).mut_subcommands(|inner| each_argument(inner, change))
}

/// What the file says, and the variable of others.
fn below(command: &Command, source: Source, options: &ArgMatches) -> anyhow::Result<Below> {
    let mut below = Below::new();
    let named = options.get_one::<PathBuf>(FILE_OPTION);
    if let Some((path, must_exist)) = file(named, source.file) {
        let arguments = configurable(command, source.role.as_slice());
        let known: Vec<&str> = arguments.iter().filter_map(|argument| argument.get_long()).collect();
        let about = || format!("cannot use {}", path.display());
        let keys = Keys { known: &known, secret: source.secret.map(|secret| secret.key) };
        let said = config_file::read(path, keys, own_uid()).with_context(about)?;
        if said.is_none() && must_exist {
            bail!("cannot use {}: there is no such file", path.display());
        }
        for (key, values) in said.into_iter().flatten() {
            let argument = arguments.iter().find(|argument| argument.get_long() == Some(&key));
            if values.len() != 1 && !argument.is_some_and(|argument| takes_many(argument)) {
                return Err(anyhow!("`{key}` is one value")).with_context(about);
            }
            let values = values.into_iter().map(OsString::from).collect();
            below.insert(key, (values, Origin::File(path.to_owned())));
        }
    }
    if let Some(SecretOption { key, variable }) = source.secret
        && let Some(value) = std::env::var_os(variable).filter(|value| !value.is_empty())
    {
        below.insert(key.to_owned(), (vec![value], Origin::Variable(variable.to_owned())));
    }
    Ok(below)
}

/// Which file to read, and whether it has to be there. One that is there is never passed over: a server that may not read
/// what it was told would serve something else.
fn file<'a>(named: Option<&'a PathBuf>, usual: Option<&'static str>) -> Option<(&'a Path, bool)> {
    match named {
        Some(none) if none.as_os_str() == "none" => None,
        Some(path) => Some((path, true)),
        None => usual.map(|path| (Path::new(path), false)),
    }
}

/// The options that a file may hold: those of a command that the environment has a variable for.
fn configurable<'a>(command: &'a Command, roles: &[&str]) -> Vec<&'a Arg> {
    let own = innermost(command, roles);
    let of_every = command.get_arguments().filter(|argument| argument.is_global_set());
    let named = own.chain(of_every).filter(|argument| argument.get_long() != Some(FILE_OPTION));
    named.filter(|argument| argument.get_env().is_some()).collect()
}

fn takes_many(argument: &Arg) -> bool {
    matches!(argument.get_action(), ArgAction::Append)
}

impl Configuration {
    fn of(command: &Command, roles: &[&str], options: &ArgMatches, below: &Below) -> Configuration {
        let settings = configurable(command, roles).into_iter().filter_map(|argument| {
            let key = argument.get_long()?.to_owned();
            let id = argument.get_id().as_str();
            let raw = options.get_raw(id).into_iter().flatten();
            let values = raw.map(|value| value.to_string_lossy().into_owned()).collect();
            let origin = match options.value_source(id) {
                Some(ValueSource::CommandLine) => Origin::CommandLine,
                Some(ValueSource::EnvVariable) => {
                    Origin::Variable(argument.get_env()?.to_string_lossy().into_owned())
                }
                _ => below.get(&key).map_or(Origin::Default, |(_, origin)| origin.clone()),
            };
            Some(Setting { key, takes_many: takes_many(argument), values, origin })
        });
        Configuration(settings.collect())
    }

    /// The value of an option that has one, and where it comes from.
    pub fn value(&self, key: &str) -> Option<(&str, &Origin)> {
        let setting = self.0.iter().find(|setting| setting.key == key)?;
        Some((setting.values.first()?, &setting.origin))
    }

    /// Whether a secret stands on the command line, which can be read by every account, as the value of this option.
    pub fn tells_secret(&self, key: &str) -> bool {
        self.value(key).is_some_and(|(value, origin)| *origin == Origin::CommandLine && is_secret(value))
    }

    /// Prints it as a file that says the same, each option with where it comes from.
    ///
    /// # Errors
    /// When it cannot be written; that nobody reads on is none.
    pub fn print(&self) -> anyhow::Result<()> {
        let lines: Vec<(String, String)> = self.0.iter().map(Setting::line).collect();
        let width = lines.iter().map(|(line, _)| line.chars().count()).filter(|width| *width <= 60).max();
        let width = width.unwrap_or_default();
        let text: String =
            lines.iter().map(|(line, origin)| format!("{line:width$}  # {origin}\n")).collect();
        match std::io::stdout().write_all(text.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(error).context("cannot write")
            }
            _ => Ok(()),
        }
    }
}

impl Setting {
    fn line(&self) -> (String, String) {
        // A text of JSON is one of TOML.
        let quoted = |value: &String| serde_json::Value::from(masked(value)).to_string();
        let key = &self.key;
        match (self.values.as_slice(), self.takes_many) {
            ([], _) => (format!("# {key}"), "not set".to_owned()),
            ([value], false) if ["true", "false"].contains(&value.as_str()) => {
                (format!("{key} = {value}"), self.origin.to_string())
            }
            ([value], false) => (format!("{key} = {}", quoted(value)), self.origin.to_string()),
            (values, _) => {
                let list: Vec<String> = values.iter().map(quoted).collect();
                (format!("{key} = [{}]", list.join(", ")), self.origin.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    enum Sample {
        Serve {
            #[arg(long)]
            config: Option<PathBuf>,
        },
        Look,
        #[command(subcommand)]
        Explain(Explained),
    }

    #[derive(Parser)]
    enum Explained {
        Serve {
            #[arg(long)]
            config: Option<PathBuf>,
        },
    }

    #[test]
    fn only_who_has_the_option_reads_a_file() {
        let can = |roles: &[&str]| can_name_a_file(&Sample::command(), roles);
        assert!(can(&["serve"]) && can(&["explain", "serve"]));
        assert!(!can(&["look"]), "it would refuse to work beside a server's file that is not its own");
    }

    #[test]
    fn a_switch_in_the_environment_is_read_as_people_write_it() {
        let table =
            [("1", Ok(true)), ("TRUE", Ok(true)), ("on", Ok(true)), ("", Ok(false)), ("0", Ok(false))];
        for (text, read) in table {
            assert_eq!(switch(text), read, "{text:?}");
        }
        assert!(switch("nope").is_err());
    }
}
