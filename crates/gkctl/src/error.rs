//! What a failure says and how the process ends: the only place where errors become exit codes and lines of text.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Error;
use gk_client::session::OpenError;
use gk_client::{ClientError, ServerAddress};
use gk_model::paths::DEFAULT_LISTEN;
use gk_model::problem::{Code, Holder, Problem};
use gk_model::time::Timestamp;

use crate::connect::Shown;
use crate::output::age;

/// Exit codes, as promised in the manual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Error = 1,
    Usage = 2,
    Conflict = 3,
    NotFound = 4,
    NotAllowed = 5,
    Unreachable = 6,
}

/// A failure that `gkctl` found itself.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into(), hint: None }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Failure {
        Failure { hint: Some(hint.into()), ..self }
    }
}

/// The server's refusal, with commands that would work in the caller's own words instead of the server's hint.
#[derive(Debug, thiserror::Error)]
#[error("{}", problem.detail)]
pub(crate) struct Advised {
    pub(crate) problem: Box<Problem>,
    pub(crate) hints: Vec<String>,
}

/// Stdout has said all there is to say; the exit code says it once more.
#[derive(Debug, thiserror::Error)]
#[error("see the answer")]
pub(crate) struct Silent(pub(crate) Exit);

/// Stdout did not take what was printed.
#[derive(Debug, thiserror::Error)]
#[error("cannot print the result")]
pub(crate) struct OutputError(#[from] pub(crate) io::Error);

/// Prints the failure and answers how to end. What was shown to the server matters where it let nobody in.
pub(crate) fn report(error: &Error, shown: Option<Shown>) -> ExitCode {
    if is_enough(error) {
        return ExitCode::SUCCESS;
    }
    if let Some(Silent(exit)) = error.downcast_ref() {
        return ExitCode::from(*exit as u8);
    }
    // Nobody is left to tell when stderr is closed.
    let _ = io::stderr().write_all(describe(error, shown, Timestamp::from_clock()).as_bytes());
    ExitCode::from(exit_of(error) as u8)
}

/// Whether the reader of stdout has seen enough (`gkctl port list | head`), which is no failure.
fn is_enough(error: &Error) -> bool {
    let output = error.downcast_ref::<OutputError>();
    output.is_some_and(|OutputError(source)| source.kind() == io::ErrorKind::BrokenPipe)
}

/// The server's word on what went wrong, wherever it is in the chain.
fn client_error(error: &Error) -> Option<&ClientError> {
    error.chain().find_map(|cause| {
        cause.downcast_ref::<ClientError>().or_else(|| match cause.downcast_ref::<OpenError>() {
            Some(OpenError::Client(client)) => Some(client),
            _ => None,
        })
    })
}

fn failure(error: &Error) -> Option<&Failure> {
    error.chain().find_map(|cause| cause.downcast_ref())
}

fn advised(error: &Error) -> Option<&Advised> {
    error.chain().find_map(|cause| cause.downcast_ref())
}

/// How to end because of this.
pub(crate) fn exit_of(error: &Error) -> Exit {
    if let Some(failure) = failure(error) {
        return failure.exit;
    }
    if let Some(advised) = advised(error) {
        return exit_of_code(advised.problem.code);
    }
    match client_error(error) {
        Some(ClientError::Refused(problem)) => exit_of_code(problem.code),
        Some(ClientError::Gone(_)) => Exit::NotFound,
        Some(ClientError::Unreachable { .. }) => Exit::Unreachable,
        Some(ClientError::InsecureHttp { .. } | ClientError::Untrusted { .. }) => Exit::NotAllowed,
        Some(ClientError::Protocol { .. }) | None => Exit::Error,
    }
}

fn exit_of_code(code: Code) -> Exit {
    match code {
        Code::PortReserved
        | Code::PortInUse
        | Code::SeveralOwners
        | Code::NothingToAdopt
        | Code::PoolExhausted
        | Code::PoolNotForInstance
        | Code::PoolOverlaps
        | Code::EnsureDiffers
        | Code::NameTaken
        | Code::CredentialTaken
        | Code::SecretTaken
        | Code::SecretShownOnce
        | Code::AlreadyJoined
        | Code::ReservationsLive
        | Code::IdentitySuperseded
        | Code::IdempotencyKeyReused
        | Code::IdempotencyInFlight
        | Code::VersionMismatch => Exit::Conflict,
        Code::NoSuchInstance
        | Code::NoSuchReservation
        | Code::NoSuchPool
        | Code::NoSuchIgnore
        | Code::NoSuchToken
        | Code::TokenEnded
        | Code::StaleCursor
        | Code::AlreadyReleased => Exit::NotFound,
        Code::Unauthenticated | Code::Forbidden | Code::NotTheHolder | Code::BeyondLimits => Exit::NotAllowed,
        // The server is there, but what it needs is not; for a script that is the same as being away.
        Code::Unavailable | Code::TooOften | Code::TooManyStreams | Code::TooSlow => Exit::Unreachable,
        Code::Malformed
        | Code::NoSuchRoute
        | Code::MethodNotAllowed
        | Code::TooLarge
        | Code::AddressTooLong
        | Code::HeadersTooLarge
        | Code::UnknownHost
        | Code::UnsupportedMediaType
        | Code::Impossible
        | Code::Internal => Exit::Error,
    }
}

/// The lines for stderr: what went wrong with its whole chain of reasons, who stands in the way, what to do.
fn describe(error: &Error, shown: Option<Shown>, now: Timestamp) -> String {
    let mut lines = vec![format!("error: {}", chain(error))];
    match client_error(error) {
        Some(ClientError::Refused(problem) | ClientError::Gone(problem)) => {
            let of_token = shown.and_then(|shown| token_hint(problem.code, shown));
            let hint = of_token
                .or_else(|| problem.hint.clone())
                .or_else(|| own_hint(problem.code).map(str::to_owned));
            lines.extend(
                shown.filter(|shown| *shown != Shown::Nothing && is_about_token(problem.code)).map(sent),
            );
            lines.extend(describe_problem(problem, hint.as_slice(), now));
        }
        Some(ClientError::Unreachable { server, source }) => {
            lines.push(format!("hint: {}", where_to_look(server, source.kind())));
        }
        _ => {}
    }
    lines.extend(
        advised(error)
            .into_iter()
            .flat_map(|advised| describe_problem(&advised.problem, &advised.hints, now)),
    );
    lines
        .extend(failure(error).and_then(|failure| failure.hint.as_ref()).map(|hint| format!("hint: {hint}")));
    lines.push(String::new());
    lines.join("\n")
}

/// What to do about a server that nobody could talk to.
pub(crate) fn where_to_look(server: &ServerAddress, kind: io::ErrorKind) -> String {
    if kind == io::ErrorKind::PermissionDenied {
        return "this account may not use that socket; log in to the server's address with `gkctl login --server \
                http://…`, or give that address with --server and a token in GATEKEEPER_TOKEN"
            .to_owned();
    }
    if matches!(server, ServerAddress::Http(_) | ServerAddress::Https(_)) && !server.is_local() {
        match kind {
            io::ErrorKind::NotFound => return "check the name, or write the server's IP address".to_owned(),
            io::ErrorKind::TimedOut => {
                return "nothing answers there: check the address, and the firewalls on the way".to_owned();
            }
            _ => {}
        }
    }
    let start = match server.is_local() {
        true => {
            format!("start it with `gatekeeper server{0}`, or `gatekeeper dev{0}` to try it", listen(server))
        }
        false => "start it there with `gatekeeper server`".to_owned(),
    };
    format!("{start}; or name another with --server or GATEKEEPER_SERVER")
}

/// The option that makes a server listen there, where that is not what it does anyway.
fn listen(server: &ServerAddress) -> String {
    let text = server.to_string();
    let address = text.strip_prefix("http://").and_then(|rest| rest.parse::<SocketAddr>().ok());
    let address = address.map(|address| address.to_string()).filter(|address| address != DEFAULT_LISTEN);
    address.map(|address| format!(" --listen {address}")).unwrap_or_default()
}

/// The message of a failure and its hints, for whoever goes on in spite of it.
pub(crate) fn in_words(error: &Error, shown: Option<Shown>, now: Timestamp) -> (String, Option<String>) {
    let text = describe(error, shown, now);
    let hints: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("hint: ")).collect();
    (chain(error), (!hints.is_empty()).then(|| hints.join("; or ")))
}

/// Every reason once: some errors show their source as themselves.
fn chain(error: &Error) -> String {
    let mut reasons: Vec<String> = error.chain().map(ToString::to_string).collect();
    reasons.dedup();
    reasons.join(": ")
}

fn describe_problem(problem: &Problem, hints: &[String], now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(problem.holder.as_ref().and_then(|holder| describe_holder(holder, now)));
    if !problem.alternatives.is_empty() {
        let free: Vec<String> = problem.alternatives.iter().map(ToString::to_string).collect();
        lines.push(format!("free instead: {}", free.join(", ")));
    }
    lines.extend(hints.iter().map(|hint| format!("hint: {hint}")));
    if problem.code == Code::Internal {
        lines.extend(problem.request_id.as_ref().map(|id| format!("request: {id}")));
    }
    lines
}

/// Whoever reserved the port, and who listens there. The message itself names a lone listener, so only its age is told.
pub(crate) fn describe_holder(holder: &Holder, now: Timestamp) -> Option<String> {
    let reserved = match (&holder.service, &holder.subject) {
        (Some(service), Some(subject)) => Some(format!("{service} ({subject})")),
        (Some(service), None) => Some(service.to_string()),
        (None, subject) => subject.as_ref().map(ToString::to_string),
    };
    let since = holder.since.map(|since| format!(" since {}", age::exact_in_words(since, now)));
    match (reserved, &holder.listener) {
        (Some(who), listener) => {
            let listener = listener.as_ref().map(|listener| format!("; {listener} listens there"));
            Some(format!("held by {who}{}{}", since.unwrap_or_default(), listener.unwrap_or_default()))
        }
        (None, _) => since.map(|since| format!("listening{since}")),
    }
}

/// Whether another token would have got another answer.
fn is_about_token(code: Code) -> bool {
    matches!(code, Code::Unauthenticated | Code::Forbidden | Code::BeyondLimits)
}

fn sent(shown: Shown) -> String {
    format!("sent: {shown}")
}

/// What to do about a token that was not let in. The server cannot know where it came from; for one that was given by
/// hand, it knows best what is wrong.
fn token_hint(code: Code, shown: Shown) -> Option<String> {
    let hint = match (code, shown) {
        (Code::Unauthenticated, Shown::Nothing) => GIVE_A_TOKEN,
        (Code::Unauthenticated, Shown::Login) => "ask for a new token, and log in again with `gkctl login`",
        (Code::Unauthenticated, Shown::Credential) => "see how this machine stands with: gkctl doctor",
        _ => return None,
    };
    Some(hint.to_owned())
}

const GIVE_A_TOKEN: &str = "log in with `gkctl login`, or give a token in GATEKEEPER_TOKEN or with --token-file FILE; on \
                            the server's machine, root and the server's own account need none";

/// Where the server gives no hint, what this program knows to help.
fn own_hint(code: Code) -> Option<&'static str> {
    let hint = match code {
        Code::Unauthenticated => GIVE_A_TOKEN,
        Code::Forbidden => {
            "see what you may do with `gkctl whoami`; another token goes into GATEKEEPER_TOKEN, or to `gkctl login`"
        }
        Code::BeyondLimits => "see what your token may do with: gkctl whoami",
        Code::NotTheHolder => "an operator may release it with --force",
        Code::PortInUse => "if that process is the rightful one, add --adopt",
        Code::NoSuchInstance => "see which have joined with: gkctl instance list",
        Code::NoSuchIgnore => "see which there are with: gkctl ignore list",
        Code::NameTaken => "choose another name with --name",
        Code::ReservationsLive => "release them too with --release",
        Code::AlreadyJoined => "if its credential is lost, take its place with --replace INSTANCE",
        _ => return None,
    };
    Some(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(code: Code) -> Problem {
        Problem {
            kind: format!("/docs#{code}"),
            title: "Conflict".to_owned(),
            status: 409,
            code,
            detail: "8080/tcp on web-1 is reserved".to_owned(),
            field: None,
            holder: None,
            alternatives: Vec::new(),
            hint: None,
            request_id: None,
        }
    }

    fn refused(problem: Problem) -> Error {
        ClientError::Refused(Box::new(problem)).into()
    }

    #[test]
    fn every_failure_has_the_exit_code_of_the_manual() {
        let table = [
            (Code::PortReserved, 3),
            (Code::PoolExhausted, 3),
            (Code::ReservationsLive, 3),
            (Code::NoSuchInstance, 4),
            (Code::AlreadyReleased, 4),
            (Code::Unauthenticated, 5),
            (Code::NotTheHolder, 5),
            (Code::Unavailable, 6),
            (Code::Internal, 1),
        ];
        for (code, exit) in table {
            assert_eq!(exit_of(&refused(problem(code))) as i32, exit, "{code}");
        }
        let server: gk_client::ServerAddress = "http://127.0.0.1:5000".parse().unwrap();
        let source = io::Error::from(io::ErrorKind::ConnectionRefused);
        let away = Error::from(ClientError::Unreachable { server: server.clone(), source });
        assert_eq!(exit_of(&away), Exit::Unreachable);
        assert_eq!(exit_of(&away.context("while joining")), Exit::Unreachable);
        let opening = OpenError::Client(ClientError::Refused(Box::new(problem(Code::IdentitySuperseded))));
        assert_eq!(exit_of(&Error::from(opening).context("the first report failed")), Exit::Conflict);
        let why = Box::new(gk_client::Distrust::UnknownIssuer);
        assert_eq!(exit_of(&ClientError::Untrusted { server, why }.into()), Exit::NotAllowed);
        assert_eq!(exit_of(&Failure::new(Exit::Usage, "both").into()), Exit::Usage);
    }

    #[test]
    fn a_closed_pipe_is_silent_and_only_that_of_stdout() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_enough(&OutputError(broken()).into()));
        assert!(!is_enough(&OutputError(io::Error::from(io::ErrorKind::StorageFull)).into()));
        let server = "unix:/x".parse().unwrap();
        let lost = Error::from(ClientError::Unreachable { server, source: broken() });
        assert!(!is_enough(&lost));
    }

    #[test]
    fn a_conflict_says_who_what_else_and_how() {
        let now = Timestamp::from_micros(1_700_000_000_000_000);
        let holder = Holder {
            subject: Some("local:root".parse().unwrap()),
            service: Some("billing-api".parse().unwrap()),
            since: Some(now.minus(std::time::Duration::from_hours(3))),
            listener: Some("nginx (pid 812)".to_owned()),
        };
        let alternatives = ["8003", "8004", "8005"].map(|port| port.parse().unwrap()).to_vec();
        let refusal = Problem { holder: Some(holder), alternatives, ..problem(Code::PortReserved) };
        let hints = vec!["gkctl port reserve --port 8003".to_owned()];
        let error = Error::from(Advised { problem: Box::new(refusal), hints });
        assert_eq!(exit_of(&error), Exit::Conflict);
        assert_eq!(
            describe(&error, None, now),
            "error: 8080/tcp on web-1 is reserved\n\
             held by billing-api (local:root) since 2023-11-14 19:13:20 UTC (3 h ago); \
             nginx (pid 812) listens there\n\
             free instead: 8003, 8004, 8005\n\
             hint: gkctl port reserve --port 8003\n"
        );
    }

    #[test]
    fn a_listener_holds_nothing_and_is_named_once() {
        let now = Timestamp::from_micros(1_700_000_000_000_000);
        let holder = Holder {
            subject: None,
            service: None,
            since: Some(now.minus(std::time::Duration::from_hours(3))),
            listener: Some("nginx (pid 812)".to_owned()),
        };
        assert_eq!(
            describe_holder(&holder, now).unwrap(),
            "listening since 2023-11-14 19:13:20 UTC (3 h ago)"
        );
        assert_eq!(describe_holder(&Holder { since: None, ..holder }, now), None);
    }

    #[test]
    fn the_whole_chain_is_told_once() {
        let server = "http://127.0.0.1:5000".parse().unwrap();
        let source = io::Error::other("Connection refused");
        let error = Error::from(OpenError::Client(ClientError::Unreachable { server, source }));
        let text = describe(&error, None, Timestamp::from_micros(0));
        assert!(
            text.starts_with(
                "error: cannot reach the server at http://127.0.0.1:5000: Connection refused\nhint: "
            ),
            "{text}"
        );
    }

    #[test]
    fn a_server_that_is_missing_is_started_where_it_was() {
        let table = [
            ("http://127.0.0.1:5000", "start it with `gatekeeper server`, or `gatekeeper dev` to try it; "),
            ("http://[::1]:5050", "start it with `gatekeeper server --listen [::1]:5050`, or "),
            ("unix:/x", "start it with `gatekeeper server`, or "),
            ("http://web-1:5000", "start it there with `gatekeeper server`; "),
        ];
        for (server, said) in table {
            let hint = where_to_look(&server.parse().unwrap(), io::ErrorKind::ConnectionRefused);
            assert!(hint.starts_with(said), "{hint}");
        }
        let far = "http://web-1:5000".parse().unwrap();
        assert!(where_to_look(&far, io::ErrorKind::NotFound).starts_with("check the name"));
        assert!(where_to_look(&far, io::ErrorKind::TimedOut).contains("firewalls"));
    }

    #[test]
    fn the_servers_hint_is_preferred_to_ours() {
        let now = Timestamp::from_micros(0);
        let ours = describe(&refused(problem(Code::NotTheHolder)), None, now);
        assert!(ours.contains("hint: an operator may release it with --force\n"), "{ours}");
        let told = Problem { hint: Some("ask ada".to_owned()), ..problem(Code::NotTheHolder) };
        assert!(describe(&refused(told), None, now).ends_with("\nhint: ask ada\n"));
    }

    #[test]
    fn who_is_not_let_in_hears_with_what_and_what_to_do() {
        let now = Timestamp::from_micros(0);
        let refusal = |code, hint: Option<&str>| {
            refused(Problem { hint: hint.map(str::to_owned), detail: "no".to_owned(), ..problem(code) })
        };
        let says = "the server's word";
        let table = [
            (
                Code::Unauthenticated,
                Some(says),
                Shown::Nothing,
                "error: no\nhint: log in with `gkctl login`, or give",
            ),
            (
                Code::Unauthenticated,
                Some(says),
                Shown::Login,
                "error: no\nsent: the token that gkctl login stored\nhint: ask for a new token, and log in again",
            ),
            (
                Code::Unauthenticated,
                Some(says),
                Shown::Credential,
                "error: no\nsent: this machine's own credential\nhint: see how this machine stands with: gkctl doctor",
            ),
            (
                Code::Unauthenticated,
                Some(says),
                Shown::Environment,
                "error: no\nsent: the token in GATEKEEPER_TOKEN\nhint: the server's word",
            ),
            (
                Code::Forbidden,
                Some(says),
                Shown::Login,
                "error: no\nsent: the token that gkctl login stored\nhint: the s",
            ),
            (
                Code::Forbidden,
                None,
                Shown::Nothing,
                "error: no\nhint: see what you may do with `gkctl whoami`; another",
            ),
            (Code::NoSuchInstance, Some(says), Shown::Login, "error: no\nhint: the server's word"),
        ];
        for (code, hint, shown, said) in table {
            let text = describe(&refusal(code, hint), Some(shown), now);
            assert!(text.starts_with(said), "{code} {shown}: {text}");
        }
    }
}
