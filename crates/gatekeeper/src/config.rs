//! What the words of a command line come to, with the environment and the configuration file; and `gatekeeper config`.

use std::ffi::OsString;

use anyhow::{Context as _, bail};
use gk_program::config::{self, Configuration, SecretOption, Source};
use gk_store::DatabaseUrl;

use crate::args::{Args, Role, ScanAlone};

/// The one option that may hold a secret.
const DATABASE: SecretOption = SecretOption { key: "database", variable: "DATABASE_URL" };

/// Reads all three, and prints what they come to for who asks for that. Ends the process when the command line asks for
/// help, or is no command.
///
/// # Errors
/// What is wrong with the file, with the database's address, or with options that do not go together.
pub(crate) fn read() -> anyhow::Result<Args> {
    let words: Vec<OsString> = std::env::args_os().collect();
    if words.get(1).is_some_and(|role| role == "scan") {
        return Ok(config::read_without_file::<ScanAlone>(&words[1..]).into());
    }
    let (args, configuration): (Args, _) = config::read(&words, source)?;
    check_database(&configuration)?;
    // Worth seeing most of all when something does not go together.
    if matches!(args.role, Role::Config(_)) {
        configuration.print()?;
    }
    args.check()?;
    Ok(args)
}

/// Who asks for a backup means the server's database; `dev` is for a try, whatever is installed here.
fn source(roles: &[&str]) -> Source {
    let of_server = Source { role: Some("server"), file: None, secret: Some(DATABASE) };
    match roles.last().copied().unwrap_or_default() {
        "agent" => {
            Source { role: Some("agent"), file: Some(gatekeeper_agent::CONFIG_FILE), ..Source::default() }
        }
        "dev" => of_server,
        _ => Source { file: Some("/etc/gatekeeper/server.toml"), ..of_server },
    }
}

/// Whether the database's address is one, and where it may stand.
fn check_database(configuration: &Configuration) -> anyhow::Result<()> {
    let Some((text, origin)) = configuration.value(DATABASE.key) else { return Ok(()) };
    let url = text.parse::<DatabaseUrl>();
    let has_password = url.as_ref().is_ok_and(DatabaseUrl::has_password);
    if *origin == config::Origin::CommandLine && (has_password || configuration.tells_secret(DATABASE.key)) {
        bail!(
            "no password on a command line: put the whole address into DATABASE_URL in the environment, or into the \
             configuration file, and change that password"
        );
    }
    url.map(drop).with_context(|| format!("cannot use the database of {origin}"))
}
