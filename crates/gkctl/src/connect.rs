//! Finding the server, and the authority to present there.
//!
//! The server is what the user chose, by an option or in the environment; else the one of the last `gkctl login`; else
//! the Unix socket named by `instance.json`; the socket in the default data directory; the server in `instance.json`,
//! with the instance's credential; the default address. Over a socket the account itself is the authority.
//!
//! The token is the one given by an option or in the environment; else the one that `gkctl login` stored for that very
//! server; else the credential. A token goes only where it is meant for: a stored one to the server it was stored for,
//! the credential to the server it was made for, and one that was given to a server the user chose, logged in to or
//! joined. The default address is asked without any token, because whoever listens there may be another account's
//! process. Files of tokens are not looked at where a token was given beside a server.

use std::fmt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use gk_client::identity::load_credential;
use gk_client::login::{LoginError, Logins, load_logins};
use gk_client::{Client, ServerAddress};
use gk_model::identity::Identity;
use gk_model::paths;
use gk_model::pin::Pin;
use gk_model::secret::Secret;

use crate::args::Global;
use crate::error::{Exit, Failure};
use crate::machine::Account;
use crate::secret_input;
use crate::this_machine::ThisMachine;

/// How a server was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Option,
    Environment,
    Login,
    IdentitySocket,
    DataSocket,
    Identity,
    Default,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            How::Option => "chosen by --server",
            How::Environment => "chosen by GATEKEEPER_SERVER",
            How::Login => "the one of the last gkctl login",
            How::IdentitySocket => "the socket named in instance.json",
            How::DataSocket => "the socket in the server's data directory",
            How::Identity => "the server named in instance.json",
            How::Default => "the default address",
        })
    }
}

/// What is presented there, and where it came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Shown {
    TokenFile,
    Typed,
    Environment,
    Login,
    Credential,
    #[default]
    Nothing,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Shown::TokenFile => "the token of --token-file",
            Shown::Typed => "the token that was typed",
            Shown::Environment => "the token in GATEKEEPER_TOKEN",
            Shown::Login => "the token that gkctl login stored",
            Shown::Credential => "this machine's own credential",
            Shown::Nothing => "no token",
        })
    }
}

/// Everything a server and an authority can be chosen from.
#[derive(Debug)]
struct Known<L> {
    chosen: Option<(ServerAddress, How)>,
    token: Option<(Secret, Shown)>,
    /// Reads the stored tokens, where that is needed: a file that may not be used is no hindrance otherwise.
    logins: L,
    identity_socket: Option<PathBuf>,
    data_socket: Option<PathBuf>,
    identity_server: Option<ServerAddress>,
    credential: Option<Secret>,
}

/// A server and what to present there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Choice {
    server: ServerAddress,
    token: Option<(Secret, Shown)>,
    how: How,
}

/// A client, how its server was found, and what it presents there.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) how: How,
    pub(crate) shown: Shown,
}

/// Finds the server. Nothing is sent yet.
pub(crate) fn connect(
    global: &Global,
    machine: &ThisMachine,
    account: Account,
    env: impl Fn(&str) -> Option<PathBuf>,
) -> Result<Connection> {
    let Choice { server, token, how } = choose(gather(global, machine, account, &env)?, is_connectable)?;
    let pins = find_pins(&server, global, machine, account, &env)?;
    let shown = token.as_ref().map_or(Shown::Nothing, |(_, shown)| *shown);
    let client = Client::new(server, token.map(|(token, _)| token)).with_pins(pins);
    Ok(Connection { client: client.allow_insecure_http(global.insecure_http), how, shown })
}

/// A client without any token of the server that `gkctl login` and `logout` mean: the one chosen, else the one of the
/// last login, else the one joined. Never a guess, because a token is about to be sent there.
pub(crate) fn connect_to_log_in(
    global: &Global,
    machine: &ThisMachine,
    account: Account,
    env: impl Fn(&str) -> Option<PathBuf>,
) -> Result<Client> {
    let joined = || machine.identity.as_ref().and_then(|identity| identity.server.parse().ok());
    let server = match choose_server(global, &env)? {
        Some((server, _)) => server,
        None => {
            match load_logins(&paths::config_dir(&env), account.uid).map_err(unusable)?.current().cloned() {
                Some(server) => server,
                None => joined().ok_or_else(|| {
                    Failure::new(Exit::Usage, "which server is meant?")
                        .hint(format!("name it, as in --server {}", default_server()))
                })?,
            }
        }
    };
    let pins = find_pins(&server, global, machine, account, &env)?;
    Ok(Client::new(server, None).with_pins(pins).allow_insecure_http(global.insecure_http))
}

/// Who vouches for the server: what the user says; for the server that this machine joined, what it keeps of that. For any
/// other, the system's authorities.
fn pins_for(server: &ServerAddress, chosen: Vec<Pin>, identity: Option<&Identity>) -> Vec<Pin> {
    let joined = |identity: &&Identity| {
        let is_socket = matches!(server, ServerAddress::Unix(path) if Some(path) == identity.socket.as_ref());
        is_socket || identity.server.parse().as_ref() == Ok(server)
    };
    match identity.filter(joined) {
        Some(identity) if chosen.is_empty() => identity.pins.clone(),
        _ => chosen,
    }
}

/// The same, and for a server that was logged in to, what was kept then.
fn find_pins(
    server: &ServerAddress,
    global: &Global,
    machine: &ThisMachine,
    account: Account,
    env: impl Fn(&str) -> Option<PathBuf>,
) -> Result<Vec<Pin>> {
    let pins = pins_for(server, chosen_pins(global, &env)?, machine.identity.as_ref());
    match server {
        ServerAddress::Https(_) if pins.is_empty() => {
            let logins = load_logins(&paths::config_dir(&env), account.uid).map_err(unusable)?;
            Ok(logins.pins(server).to_vec())
        }
        _ => Ok(pins),
    }
}

/// `--ca-pin`, else those of the environment.
fn chosen_pins(global: &Global, env: impl Fn(&str) -> Option<PathBuf>) -> Result<Vec<Pin>, Failure> {
    let from_env = env("GATEKEEPER_CA_PIN").filter(|_| global.ca_pin.is_empty()).unwrap_or_default();
    let from_env = from_env.to_string_lossy().into_owned();
    let words = from_env.split(',').map(str::trim).filter(|word| !word.is_empty());
    let parsed: Result<Vec<Pin>, _> = words.map(str::parse).collect();
    match parsed {
        Ok(pins) if global.ca_pin.is_empty() => Ok(pins),
        Ok(_) => Ok(global.ca_pin.clone()),
        Err(error) => Err(Failure::new(Exit::Usage, format!("GATEKEEPER_CA_PIN: {error}"))),
    }
}

/// The server this machine joined, with its credential; over its socket when it has one, and then only there. A server that
/// speaks TLS since is chosen by its `https://` address.
pub(crate) fn as_instance(
    global: &Global,
    machine: &ThisMachine,
    credential: Secret,
    env: impl Fn(&str) -> Option<PathBuf>,
) -> Result<Client> {
    let identity = machine.identity.as_ref().context("this machine has not joined")?;
    let server = match identity.socket.clone() {
        Some(socket) => ServerAddress::Unix(socket),
        None => {
            let joined = identity.server.parse().context("instance.json names no server")?;
            let chosen = choose_server(global, &env)?.map(|(server, _)| server);
            chosen.filter(|chosen| chosen.secures(&joined)).unwrap_or(joined)
        }
    };
    let pins = pins_for(&server, chosen_pins(global, env)?, Some(identity));
    let client = Client::new(server, Some(credential)).with_pins(pins);
    Ok(client.allow_insecure_http(global.insecure_http))
}

/// The server that the user chose.
fn choose_server(
    global: &Global,
    env: impl Fn(&str) -> Option<PathBuf>,
) -> Result<Option<(ServerAddress, How)>, Failure> {
    match &global.server {
        Some(server) => Ok(Some((server.clone(), How::Option))),
        None => {
            let server = text(&env, "GATEKEEPER_SERVER").map(|value| parse_server(&value)).transpose()?;
            Ok(server.map(|server| (server, How::Environment)))
        }
    }
}

/// A variable that is set to something.
fn text(env: impl Fn(&str) -> Option<PathBuf>, name: &str) -> Option<PathBuf> {
    env(name).filter(|value| !value.as_os_str().is_empty())
}

fn gather(
    global: &Global,
    machine: &ThisMachine,
    account: Account,
    env: impl Fn(&str) -> Option<PathBuf>,
) -> Result<Known<impl Fn() -> Result<Logins, LoginError>>> {
    let token = match &global.token_file {
        Some(file) => Some((secret_input::read(file, "token")?, Shown::TokenFile)),
        None => text(&env, "GATEKEEPER_TOKEN")
            .map(|value| Ok::<_, Failure>((parse_token(&value)?, Shown::Environment)))
            .transpose()?,
    };
    let identity = machine.identity.as_ref();
    let config_dir = paths::config_dir(&env);
    Ok(Known {
        chosen: choose_server(global, &env)?,
        token,
        logins: move || load_logins(&config_dir, account.uid),
        identity_socket: identity.and_then(|identity| identity.socket.clone()),
        data_socket: Some(paths::data_dir(account.is_root(), &env).join(paths::SOCKET_FILE)),
        identity_server: identity.and_then(|identity| identity.server.parse().ok()),
        // Only its owner may read it; for everyone else it is as good as absent.
        credential: identity.and_then(|_| load_credential(&machine.state_dir).ok().flatten()),
    })
}

fn parse_server(value: &Path) -> Result<ServerAddress, Failure> {
    let parsed = value.to_string_lossy().parse();
    parsed.map_err(|error| Failure::new(Exit::Usage, format!("GATEKEEPER_SERVER: {error}")))
}

fn parse_token(value: &Path) -> Result<Secret, Failure> {
    let parsed = value.to_string_lossy().parse();
    parsed.map_err(|error| Failure::new(Exit::Usage, format!("GATEKEEPER_TOKEN: {error}")))
}

/// The order of the module's description, as a pure function.
fn choose(
    known: Known<impl Fn() -> Result<Logins, LoginError>>,
    connectable: impl Fn(&Path) -> bool,
) -> Result<Choice, Failure> {
    let Known { chosen, token, logins, identity_socket, data_socket, identity_server, credential } = known;
    if let (Some((server, how)), Some(_)) = (&chosen, &token) {
        return Ok(Choice { server: server.clone(), token, how: *how });
    }
    let logins = logins().map_err(unusable)?;
    let stored = |server: &ServerAddress| Some((logins.token(server)?.clone(), Shown::Login));
    // On the server's own machine the credential goes to a TCP port only where the server proves who it is: any account
    // could listen there while it is down.
    let is_on_server = identity_socket.is_some();
    let own = |server: &ServerAddress| {
        let may_be_told = !is_on_server || matches!(server, ServerAddress::Https(_));
        Some((credential.filter(|_| may_be_told)?, Shown::Credential))
    };
    if let Some((server, how)) = chosen {
        // At a socket the account itself is the authority, and more than the instance's.
        let is_own = identity_server.as_ref() == Some(&server) && !matches!(server, ServerAddress::Unix(_));
        let token = stored(&server).or_else(|| own(&server).filter(|_| is_own));
        return Ok(Choice { server, token, how });
    }
    if token.is_some() {
        let (server, how) = meant(logins.current(), identity_server)?;
        return Ok(Choice { server, token, how });
    }
    if let Some(server) = logins.current().cloned() {
        return Ok(Choice { token: stored(&server), server, how: How::Login });
    }
    let socket = |path: Option<&PathBuf>, how| {
        let path = path.filter(|path| connectable(path))?;
        Some(Choice { server: ServerAddress::Unix(path.clone()), token: None, how })
    };
    let own_socket = socket(identity_socket.as_ref(), How::IdentitySocket);
    if let Some(choice) = own_socket.or_else(|| socket(data_socket.as_ref(), How::DataSocket)) {
        return Ok(choice);
    }
    Ok(match identity_server {
        Some(server) => {
            let token = stored(&server).or_else(|| own(&server));
            Choice { token, server, how: How::Identity }
        }
        None => Choice { server: default_server(), token: None, how: How::Default },
    })
}

/// The server that a token is meant for which was given without one. Where it may be either of two, it is not guessed.
fn meant(
    logged_in: Option<&ServerAddress>,
    joined: Option<ServerAddress>,
) -> Result<(ServerAddress, How), Failure> {
    match (logged_in.cloned(), joined) {
        (Some(one), Some(other)) if one != other => Err(Failure::new(
            Exit::Usage,
            format!("there is a token, and two servers that it may be meant for: {one} (logged in) and {other} (joined)"),
        )
        .hint(format!("name the server, as in --server {one}"))),
        (Some(server), _) => Ok((server, How::Login)),
        (None, Some(server)) => Ok((server, How::Identity)),
        (None, None) => Err(token_without_server()),
    }
}

/// What to do about stored tokens that cannot be used.
pub(crate) fn unusable(error: LoginError) -> Failure {
    let message = error.to_string();
    let (exit, hint) = match error {
        LoginError::Exposed { path, .. } => (
            Exit::NotAllowed,
            format!(
                "if nobody else can have read it: chmod 600 {0}; else remove it, and end its tokens with `gkctl token \
                 revoke`",
                path.display()
            ),
        ),
        LoginError::NotOurs { path, .. } => (
            Exit::NotAllowed,
            format!(
                "use your own home directory (`sudo -H`, or another XDG_CONFIG_HOME), or remove {}",
                path.display()
            ),
        ),
        LoginError::Damaged { path } => {
            (Exit::Error, format!("remove {}, and log in again with `gkctl login`", path.display()))
        }
        LoginError::Io(source) => return Failure::new(Exit::Error, format!("{message}: {source}")),
    };
    Failure::new(exit, message).hint(hint)
}

fn token_without_server() -> Failure {
    Failure::new(Exit::Usage, "there is a token, but no server that it is meant for")
        .hint(format!("name the server, as in --server {}", default_server()))
}

/// That nobody was found where a server is looked for when none is named.
pub(crate) fn no_server(
    asked: &ServerAddress,
    is_root: bool,
    env: impl Fn(&str) -> Option<PathBuf>,
) -> Failure {
    let socket = paths::data_dir(is_root, env).join(paths::SOCKET_FILE);
    let message = format!(
        "this machine has not joined, and there is no server: none answers at {} or {asked}",
        ServerAddress::Unix(socket)
    );
    Failure::new(Exit::Unreachable, message).hint(
        "try it with `gatekeeper dev`; or start a server with `gatekeeper server`, or name one with --server or \
         GATEKEEPER_SERVER, and then `gkctl instance join`",
    )
}

fn default_server() -> ServerAddress {
    format!("http://{}", paths::DEFAULT_LISTEN).parse().expect("the default address is valid")
}

/// A socket that this account may not open, or that nobody listens on any more, is passed over.
fn is_connectable(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

#[cfg(test)]
mod tests {
    use gk_model::secret::SecretKind;

    use super::*;

    fn secret(byte: u8) -> Secret {
        Secret::from_random(SecretKind::Subject, &[byte; 32])
    }

    type NoFile = fn() -> Result<Logins, LoginError>;

    fn everything() -> Known<NoFile> {
        Known {
            chosen: Some(("http://chosen:1".parse().unwrap(), How::Option)),
            token: Some((secret(1), Shown::Environment)),
            logins: || Ok(logins(&[("http://logged:1", 3)])),
            identity_socket: Some("/identity.sock".into()),
            data_socket: Some("/data.sock".into()),
            identity_server: Some("http://joined:1".parse().unwrap()),
            credential: Some(secret(2)),
        }
    }

    /// As [`everything`], without anything that the user gave.
    fn found() -> Known<NoFile> {
        Known { chosen: None, token: None, logins: || Ok(Logins::default()), ..everything() }
    }

    /// The last one is the current one.
    fn logins(all: &[(&str, u8)]) -> Logins {
        let mut logins = Logins::default();
        for (server, token) in all {
            logins.insert(server.parse().unwrap(), secret(*token), Vec::new());
        }
        logins
    }

    fn at(server: &str) -> Option<(ServerAddress, How)> {
        Some((server.parse().unwrap(), How::Environment))
    }

    /// Server, which secret, and how the server was found.
    fn chosen<L: Fn() -> Result<Logins, LoginError>>(
        known: Known<L>,
        sockets: &[&str],
    ) -> (String, Option<u8>, How) {
        let choice = choose(known, |path| sockets.iter().any(|socket| Path::new(socket) == path)).unwrap();
        let which = |token: &Secret| (1..=9).find(|byte| secret(*byte) == *token).unwrap();
        (choice.server.to_string(), choice.token.as_ref().map(|(token, _)| which(token)), choice.how)
    }

    const BOTH: [&str; 2] = ["/identity.sock", "/data.sock"];

    #[test]
    fn the_order_is_option_login_sockets_identity_default() {
        let mut known = everything();
        assert_eq!(chosen(known, &BOTH), ("http://chosen:1".into(), Some(1), How::Option));
        known = Known { chosen: None, token: None, ..everything() };
        assert_eq!(chosen(known, &BOTH), ("http://logged:1".into(), Some(3), How::Login));
        assert_eq!(chosen(found(), &BOTH), ("unix:/identity.sock".into(), None, How::IdentitySocket));
        assert_eq!(chosen(found(), &BOTH[1..]), ("unix:/data.sock".into(), None, How::DataSocket));
        assert_eq!(
            chosen(found(), &[]),
            ("http://joined:1".into(), None, How::Identity),
            "where the server has a socket on this machine, the credential goes to no TCP port"
        );
        let remote = || Known { identity_socket: None, ..found() };
        assert_eq!(chosen(remote(), &[]), ("http://joined:1".into(), Some(2), How::Identity));
        known = Known { credential: None, ..remote() };
        assert_eq!(chosen(known, &[]), ("http://joined:1".into(), None, How::Identity));
        known = Known { identity_server: None, ..remote() };
        assert_eq!(chosen(known, &[]), ("http://127.0.0.1:5000".into(), None, How::Default));
    }

    #[test]
    fn a_stored_token_goes_to_the_server_it_was_stored_for_and_to_no_other() {
        let with = |chosen, all: &'static [(&'static str, u8)]| Known {
            chosen,
            logins: move || Ok(logins(all)),
            token: None,
            identity_socket: None,
            data_socket: None,
            identity_server: Some("http://joined:1".parse().unwrap()),
            credential: Some(secret(2)),
        };
        let two = &[("http://a:1", 3), ("http://b:1", 4)];
        assert_eq!(chosen(with(at("http://a:1"), two), &[]).1, Some(3));
        assert_eq!(chosen(with(at("http://b:1"), two), &[]).1, Some(4));
        assert_eq!(chosen(with(at("http://c:1"), two), &[]).1, None);
        assert_eq!(chosen(with(at("http://a:2"), two), &[]).1, None);
        assert_eq!(chosen(with(at("http://joined:1"), two), &[]).1, Some(2), "nothing is stored for it");
        assert_eq!(chosen(with(at("http://joined:1"), &[("http://joined:1", 5)]), &[]).1, Some(5));
        assert_eq!(chosen(with(None, two), &[]), ("http://b:1".into(), Some(4), How::Login));
        // A default port is a guess, and there is nothing to find for a guess.
        let logged_out = || {
            let mut all = logins(&[("http://127.0.0.1:5000", 3)]);
            all.insert("http://b:1".parse().unwrap(), secret(4), Vec::new());
            all.remove(&"http://b:1".parse().unwrap());
            Ok(all)
        };
        let guess = Known {
            chosen: None,
            token: None,
            logins: logged_out,
            identity_socket: None,
            data_socket: None,
            identity_server: None,
            credential: None,
        };
        assert_eq!(chosen(guess, &[]), ("http://127.0.0.1:5000".into(), None, How::Default));
    }

    #[test]
    fn a_file_of_tokens_that_may_not_be_used_hinders_only_who_needs_it() {
        let refuse = || Err(LoginError::Exposed { path: "/login.json".into(), mode: 0o644 });
        let given = || Known { logins: refuse as NoFile, ..everything() };
        assert_eq!(chosen(given(), &BOTH).1, Some(1), "server and token were given");
        for known in [
            Known { token: None, ..given() },
            Known { chosen: None, ..given() },
            Known { chosen: None, token: None, ..given() },
        ] {
            let refusal = choose(known, |_| true).unwrap_err();
            assert_eq!(refusal.exit, Exit::NotAllowed);
            assert!(refusal.hint.unwrap().contains("chmod 600 /login.json"));
        }
    }

    #[test]
    fn where_nobody_was_found_is_told() {
        let env = |name: &str| (name == "GATEKEEPER_DATA").then(|| PathBuf::from("/data"));
        let failure = no_server(&default_server(), false, env);
        assert_eq!(failure.exit, Exit::Unreachable);
        assert_eq!(
            failure.message,
            "this machine has not joined, and there is no server: none answers at unix:/data/gatekeeper.sock or \
             http://127.0.0.1:5000"
        );
    }

    #[test]
    fn the_credential_goes_to_its_own_server_only() {
        let known = || Known { token: None, identity_socket: None, ..everything() };
        assert_eq!(chosen(known(), &[]).1, None);
        assert_eq!(chosen(Known { chosen: at("http://joined:1"), ..known() }, &[]).1, Some(2));
        // On the server's own machine anybody may listen there while it is down, and nobody can pass for it by TLS.
        let on_server = || Known { identity_socket: Some("/identity.sock".into()), ..known() };
        assert_eq!(chosen(Known { chosen: at("http://joined:1"), ..on_server() }, &[]).1, None);
        let secure = || Known { identity_server: Some("https://joined:1".parse().unwrap()), ..on_server() };
        assert_eq!(chosen(Known { chosen: at("https://joined:1"), ..secure() }, &[]).1, Some(2));
    }

    #[test]
    fn a_token_that_was_given_goes_where_the_user_is_at_home_and_never_to_a_guess() {
        let given = || Known { token: Some((secret(1), Shown::Environment)), ..found() };
        assert_eq!(chosen(given(), &BOTH), ("http://joined:1".into(), Some(1), How::Identity));
        let logged_in = || Known { chosen: None, ..everything() };
        let login = Known { identity_server: None, ..logged_in() };
        assert_eq!(chosen(login, &BOTH), ("http://logged:1".into(), Some(1), How::Login));
        let either = choose(logged_in(), |_| true).unwrap_err();
        assert_eq!(either.exit, Exit::Usage);
        assert!(either.message.contains("http://logged:1 (logged in) and http://joined:1 (joined)"));
        let refusal = choose(Known { identity_server: None, ..given() }, |_| true).unwrap_err();
        assert_eq!(refusal.exit, Exit::Usage);
        assert!(refusal.hint.unwrap().contains("--server http://127.0.0.1:5000"));
    }
}
