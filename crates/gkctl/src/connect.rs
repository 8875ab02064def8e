//! Finding the server, and the authority to present there.
//!
//! The order is: what the user chose; the Unix socket named by `instance.json`; the socket in the default data
//! directory; the server in `instance.json`, with the instance's credential; the default address. Over a socket the
//! account itself is the authority. A token goes only where it is meant for: to a server the user chose, or that this
//! machine joined; the credential only to the server it was made for. The default address is asked without any token,
//! because whoever listens there may be another account's process.

use std::fmt;
use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use gk_client::identity::load_credential;
use gk_client::{Client, ServerAddress};
use gk_model::identity::Identity;
use gk_model::paths;
use gk_model::pin::Pin;
use gk_model::secret::Secret;

use crate::args::Global;
use crate::error::{Exit, Failure};
use crate::this_machine::ThisMachine;

/// How a server was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Option,
    Environment,
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
            How::IdentitySocket => "the socket named in instance.json",
            How::DataSocket => "the socket in the server's data directory",
            How::Identity => "the server named in instance.json",
            How::Default => "the default address",
        })
    }
}

/// Everything a server and an authority can be chosen from.
#[derive(Clone, Debug, Default)]
struct Known {
    chosen: Option<(ServerAddress, How)>,
    token: Option<Secret>,
    identity_socket: Option<PathBuf>,
    data_socket: Option<PathBuf>,
    identity_server: Option<ServerAddress>,
    credential: Option<Secret>,
}

/// A server and what to present there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Choice {
    server: ServerAddress,
    token: Option<Secret>,
    how: How,
}

/// A client, and how its server was found.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) how: How,
}

/// Finds the server. Nothing is sent yet.
pub(crate) fn connect(
    global: &Global,
    machine: &ThisMachine,
    is_root: bool,
    env: impl Fn(&str) -> Option<PathBuf>,
) -> Result<Connection> {
    let choice = choose(gather(global, machine, is_root, &env)?, is_connectable)?;
    let pins = pins_for(&choice.server, chosen_pins(global, env)?, machine.identity.as_ref());
    let client = Client::new(choice.server, choice.token).with_pins(pins);
    Ok(Connection { client: client.allow_insecure_http(global.insecure_http), how: choice.how })
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
            let chosen = chosen_server(global, &env)?.map(|(server, _)| server);
            chosen.filter(|chosen| chosen.secures(&joined)).unwrap_or(joined)
        }
    };
    let pins = pins_for(&server, chosen_pins(global, env)?, Some(identity));
    let client = Client::new(server, Some(credential)).with_pins(pins);
    Ok(client.allow_insecure_http(global.insecure_http))
}

fn gather(
    global: &Global,
    machine: &ThisMachine,
    is_root: bool,
    env: impl Fn(&str) -> Option<PathBuf>,
) -> Result<Known> {
    let text = |name: &str| env(name).filter(|value| !value.as_os_str().is_empty());
    let chosen = chosen_server(global, &env)?;
    let token = match &global.token_file {
        Some(file) => Some(read_token(file)?),
        None => text("GATEKEEPER_TOKEN").map(|value| parse_token(&value)).transpose()?,
    };
    let identity = machine.identity.as_ref();
    Ok(Known {
        chosen,
        token,
        identity_socket: identity.and_then(|identity| identity.socket.clone()),
        data_socket: Some(paths::data_dir(is_root, &env).join(paths::SOCKET_FILE)),
        identity_server: identity.and_then(|identity| identity.server.parse().ok()),
        // Only its owner may read it; for everyone else it is as good as absent.
        credential: identity.and_then(|_| load_credential(&machine.state_dir).ok().flatten()),
    })
}

fn chosen_server(
    global: &Global,
    env: impl Fn(&str) -> Option<PathBuf>,
) -> Result<Option<(ServerAddress, How)>, Failure> {
    if let Some(server) = &global.server {
        return Ok(Some((server.clone(), How::Option)));
    }
    let text = env("GATEKEEPER_SERVER").filter(|value| !value.as_os_str().is_empty());
    let parsed = text.map(|value| parse_server(&value)).transpose()?;
    Ok(parsed.map(|server| (server, How::Environment)))
}

fn parse_server(value: &Path) -> Result<ServerAddress, Failure> {
    let parsed = value.to_string_lossy().parse();
    parsed.map_err(|error| Failure::new(Exit::Usage, format!("GATEKEEPER_SERVER: {error}")))
}

fn parse_token(value: &Path) -> Result<Secret, Failure> {
    let parsed = value.to_string_lossy().parse();
    parsed.map_err(|error| Failure::new(Exit::Usage, format!("GATEKEEPER_TOKEN: {error}")))
}

fn read_token(file: &Path) -> Result<Secret> {
    let mut text = String::new();
    if Secret::is_begun_by(&file.to_string_lossy()) {
        let message = "--token-file names a file, and this looks like the token itself, which every account can read now";
        return Err(Failure::new(Exit::Usage, message)
            .hint("put a new token into a file of mode 0600, or into GATEKEEPER_TOKEN, and revoke this one")
            .into());
    }
    if file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).context("cannot read a token from stdin")?;
    } else {
        text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    }
    let parsed = text.parse();
    Ok(parsed.map_err(|error| Failure::new(Exit::Usage, format!("{}: {error}", file.display())))?)
}

/// The order of the module's description, as a pure function.
fn choose(known: Known, connectable: impl Fn(&Path) -> bool) -> Result<Choice, Failure> {
    let Known { chosen, token, identity_socket, data_socket, identity_server, credential } = known;
    let is_local = identity_socket.is_some();
    if let Some((server, how)) = chosen {
        // At a socket the account itself is the authority, and more than the instance's.
        let is_own = identity_server.as_ref() == Some(&server) && !matches!(server, ServerAddress::Unix(_));
        let token = token.or_else(|| credential.filter(|_| is_own));
        return Ok(Choice { server, token, how });
    }
    if token.is_some() {
        return match identity_server {
            Some(server) => Ok(Choice { server, token, how: How::Identity }),
            None => Err(token_without_server()),
        };
    }
    let socket = |path: Option<PathBuf>, how| {
        let path = path.filter(|path| connectable(path))?;
        Some(Choice { server: ServerAddress::Unix(path), token: None, how })
    };
    if let Some(choice) =
        socket(identity_socket, How::IdentitySocket).or_else(|| socket(data_socket, How::DataSocket))
    {
        return Ok(choice);
    }
    Ok(match identity_server {
        // On the server's own machine the credential never goes to a TCP port: any account could listen there.
        Some(server) => Choice { server, token: credential.filter(|_| !is_local), how: How::Identity },
        None => Choice { server: default_server(), token: None, how: How::Default },
    })
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

    fn everything() -> Known {
        Known {
            chosen: Some(("http://chosen:1".parse().unwrap(), How::Option)),
            token: Some(secret(1)),
            identity_socket: Some("/identity.sock".into()),
            data_socket: Some("/data.sock".into()),
            identity_server: Some("http://joined:1".parse().unwrap()),
            credential: Some(secret(2)),
        }
    }

    fn chosen(known: Known, sockets: &[&str]) -> (String, Option<Secret>, How) {
        let choice = choose(known, |path| sockets.iter().any(|socket| Path::new(socket) == path)).unwrap();
        (choice.server.to_string(), choice.token, choice.how)
    }

    #[test]
    fn the_order_is_option_sockets_identity_default() {
        let both = ["/identity.sock", "/data.sock"];
        let mut known = everything();
        assert_eq!(chosen(known.clone(), &both), ("http://chosen:1".into(), Some(secret(1)), How::Option));
        known.chosen = None;
        known.token = None;
        assert_eq!(chosen(known.clone(), &both), ("unix:/identity.sock".into(), None, How::IdentitySocket));
        assert_eq!(chosen(known.clone(), &both[1..]), ("unix:/data.sock".into(), None, How::DataSocket));
        assert_eq!(
            chosen(known.clone(), &[]),
            ("http://joined:1".into(), None, How::Identity),
            "where the server has a socket on this machine, the credential goes to no TCP port"
        );
        known.identity_socket = None;
        assert_eq!(chosen(known.clone(), &[]), ("http://joined:1".into(), Some(secret(2)), How::Identity));
        known.credential = None;
        assert_eq!(chosen(known.clone(), &[]), ("http://joined:1".into(), None, How::Identity));
        known.identity_server = None;
        assert_eq!(chosen(known, &[]), ("http://127.0.0.1:5000".into(), None, How::Default));
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
        let mut known = Known { token: None, ..everything() };
        assert_eq!(chosen(known.clone(), &[]).1, None);
        known.chosen = Some(("http://joined:1".parse().unwrap(), How::Environment));
        assert_eq!(chosen(known, &[]).1, Some(secret(2)));
    }

    #[test]
    fn a_token_that_was_given_goes_to_the_server_that_was_joined_and_never_to_a_guess() {
        let joined = Known { chosen: None, ..everything() };
        let both = ["/identity.sock", "/data.sock"];
        assert_eq!(chosen(joined, &both), ("http://joined:1".into(), Some(secret(1)), How::Identity));
        let lone = Known { token: Some(secret(1)), ..Known::default() };
        let refusal = choose(lone, |_| true).unwrap_err();
        assert_eq!(refusal.exit, Exit::Usage);
        assert!(refusal.hint.unwrap().contains("--server http://127.0.0.1:5000"));
    }
}
