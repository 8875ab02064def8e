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
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory as _, FromArgMatches};
use gk_store::DatabaseUrl;

use crate::args::{Args, Role, ScanAlone};
use crate::config_file::{self, DATABASE};
use crate::mask::masked;
use crate::server::own_uid;

/// The option that names the file, which can therefore not be in it.
const FILE_OPTION: &str = "config";
/// What others call the database's address. After `GATEKEEPER_DATABASE`, because it may be another program's.
const DATABASE_URL: &str = "DATABASE_URL";

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    CommandLine,
    Variable(String),
    File(PathBuf),
    Default,
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

/// The options of one role, as they are in force.
#[derive(Debug)]
struct Configuration(Vec<Setting>);

/// What stands below the command line and the environment, by key.
type Below = BTreeMap<String, (Vec<OsString>, Origin)>;

/// Reads command line, environment and file, and prints what they come to for who asks for that. Ends the process when the
/// command line asks for help, or is no command.
///
/// # Errors
/// What is wrong with the file, with the database's address, or with options that do not go together.
pub(crate) fn read() -> anyhow::Result<Args> {
    let (args, configuration) = parse()?;
    // Worth seeing most of all when something does not go together.
    if matches!(args.role, Role::Config(_)) {
        configuration.print()?;
    }
    args.check()?;
    Ok(args)
}

fn parse() -> anyhow::Result<(Args, Configuration)> {
    let words: Vec<OsString> = std::env::args_os().collect();
    if words.get(1).is_some_and(|role| role == "scan") {
        let told = without_empty_variables(ScanAlone::command()).get_matches_from(&words[1..]);
        return Ok((from::<ScanAlone>(&told).into(), Configuration(Vec::new())));
    }
    let (all, command) = (Args::command(), || without_empty_variables(Args::command()));
    let told = command().get_matches_from(&words);
    let roles: Vec<&str> = roles(&told);
    if !can_name_a_file(&all, &roles) {
        return Ok((from(&told), Configuration(Vec::new())));
    }
    let below = below(&all, &roles, options(&told))?;
    let files = below.values().find(|(_, origin)| matches!(origin, Origin::File(_)));
    let about = files.map(|(_, origin)| origin.to_string());
    // Without the file it was accepted, so what is refused now is the file's.
    let command = with_defaults(command(), &below);
    let matches = command.try_get_matches_from(&words).map_err(|error| {
        let told = error.to_string();
        let reason = told.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        anyhow!("{}: {reason}", about.as_deref().unwrap_or(DATABASE_URL))
    })?;
    let configuration = Configuration::of(&all, &roles, options(&matches), &below);
    configuration.check_database()?;
    Ok((from(&matches), configuration))
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

/// What the file says, and `DATABASE_URL`, for whoever has such options.
fn below(command: &Command, roles: &[&str], options: &ArgMatches) -> anyhow::Result<Below> {
    let mut below = Below::new();
    let named = options.get_one::<PathBuf>(FILE_OPTION);
    // Who asks for a backup means the server's database; `dev` is for a try, whatever is installed here.
    let (owner, usual) = match roles.last().copied().unwrap_or_default() {
        "agent" => ("agent", Some("/etc/gatekeeper/agent.toml")),
        "dev" => ("server", None),
        _ => ("server", Some("/etc/gatekeeper/server.toml")),
    };
    if let Some((path, must_exist)) = file(named, usual) {
        let arguments = configurable(command, &[owner]);
        let keys: Vec<&str> = arguments.iter().filter_map(|argument| argument.get_long()).collect();
        let about = || format!("cannot use {}", path.display());
        let said = config_file::read(path, &keys, own_uid()).with_context(about)?;
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
    let url = std::env::var_os(DATABASE_URL).filter(|url| !url.is_empty() && owner == "server");
    if let Some(url) = url {
        below.insert(DATABASE.to_owned(), (vec![url], Origin::Variable(DATABASE_URL.to_owned())));
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

    /// Whether the database's address is one, and where it may stand. A command line can be read by every account.
    fn check_database(&self) -> anyhow::Result<()> {
        let set = self.0.iter().find(|setting| setting.key == DATABASE);
        let Some((setting, text)) = set.and_then(|setting| Some((setting, setting.values.first()?))) else {
            return Ok(());
        };
        let (origin, url) = (&setting.origin, text.parse::<DatabaseUrl>());
        if *origin == Origin::CommandLine && masked(text) != *text {
            bail!(
                "no password on a command line: put the whole address into DATABASE_URL in the environment, or into the \
                 configuration file, and change that password"
            );
        }
        match url {
            Ok(_) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot use the database of {origin}")),
        }
    }

    /// Prints it as a file that says the same, each option with where it comes from.
    fn print(&self) -> anyhow::Result<()> {
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
    use super::*;

    #[test]
    fn only_who_has_the_option_reads_a_file() {
        let command = Args::command();
        let can = |roles: &[&str]| can_name_a_file(&command, roles);
        assert!(can(&["server"]) && can(&["agent"]) && can(&["backup"]) && can(&["config", "agent"]));
        assert!(!can(&["scan"]), "it would refuse to work beside a server's file that is not its own");
    }
}
