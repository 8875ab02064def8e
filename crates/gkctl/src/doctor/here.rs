//! What the doctor makes of this machine: its files, its agent, and what the server knows of both.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use gk_client::login::{LoginError, Logins};
use gk_client::{ClientError, ServerAddress};
use gk_model::identity::Identity;
use gk_model::instance::{Instance, OFFLINE_AFTER, Presence};
use gk_model::paths::{CREDENTIAL_FILE, LOGIN_FILE};
use gk_model::problem::Code;
use gk_model::protection::ProtectionState;
use gk_model::secret::Secret;
use gk_model::time::Timestamp;

use super::Check;
use crate::connect::{Connection, unusable};
use crate::machine::Room;
use crate::output::age;

const PROXIES: [&str; 6] =
    ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// With less room than this the agent cannot keep what happens while the server is away.
const LITTLE_BYTES: u64 = 64 << 20;

const START_AGENT: &str = "systemctl enable --now gatekeeper-agent; or in a terminal: gatekeeper-agent";

/// Proxies are never asked, which surprises where nothing else gets through.
pub(super) fn proxies(
    is_set: impl Fn(&str) -> bool,
    connection: Option<&Connection>,
    is_reached: bool,
) -> Option<Check> {
    let set: Vec<&str> = PROXIES.into_iter().filter(|name| is_set(name)).collect();
    let found = format!("{} set, and never asked: the server is reached directly", set.join(", "));
    let is_far = connection.is_some_and(|connection| !connection.client.server().is_local());
    match set.is_empty() {
        true => None,
        false if is_reached || !is_far => Some(Check::ok("proxy", found)),
        false => Some(Check::warn("proxy", found, "open a way to the server that needs no proxy")),
    }
}

/// The file of `gkctl login`.
pub(super) fn logins(stored: Result<Logins, LoginError>, config_dir: &Path) -> Check {
    let file = config_dir.join(LOGIN_FILE);
    match stored {
        Err(error) => {
            let failure = unusable(error);
            Check { remedy: failure.hint, ..Check::bad("login", failure.message, "") }
        }
        Ok(logins) => match logins.servers().collect::<Vec<_>>().as_slice() {
            [] => Check::ok("login", "no token is stored"),
            servers => Check::ok(
                "login",
                format!("tokens for {} in {}, which is its owner's only", servers.join(", "), file.display()),
            ),
        },
    }
}

pub(super) fn not_joined() -> Check {
    Check::warn("this machine", "has not joined", "bring it in with: gkctl instance join")
}

/// As the server knows it; `known` is missing where that told nothing. `elsewhere` is the address that was asked, when it
/// is another one than was joined.
pub(super) fn machine(
    identity: &Identity,
    known: Option<&Result<Instance, ClientError>>,
    elsewhere: Option<&ServerAddress>,
) -> Check {
    const CHECK: &str = "this machine";
    let Identity { name, server, .. } = identity;
    match (known, elsewhere) {
        (None, _) => Check::ok(CHECK, format!("{name}, joined to {server}, as it last knew")),
        (Some(Ok(instance)), _) if instance.presence == Presence::Left => {
            Check::bad(CHECK, format!("{name} has left"), "bring it in again with: gkctl instance join")
        }
        (Some(Ok(instance)), _) => {
            let labels =
                if instance.labels.is_empty() { String::new() } else { format!(", {}", instance.labels) };
            Check::ok(CHECK, format!("{}, {}{labels}", instance.name, instance.presence))
        }
        (Some(Err(ClientError::Refused(problem))), Some(asked)) if problem.code == Code::NoSuchInstance => {
            Check::ok(CHECK, format!("{name}, joined to {server} and not to {asked}"))
        }
        (Some(Err(ClientError::Refused(problem))), None) if problem.code == Code::NoSuchInstance => {
            Check::bad(
                CHECK,
                format!("the server does not know {name} any more"),
                "join anew with: gkctl instance join",
            )
        }
        (Some(Err(error)), _) => Check::warn(CHECK, format!("{name}: {error}"), "try again"),
    }
}

/// Whether it is there, for its owner only, and still good. `accepted` is what the server said to it, where it was asked.
pub(super) fn credential(
    identity: &Identity,
    state_dir: &Path,
    read: Result<&Option<Secret>, &io::Error>,
    accepted: Option<Result<bool, ClientError>>,
) -> Check {
    const CHECK: &str = "credential";
    let path = state_dir.join(CREDENTIAL_FILE);
    let shown = path.display();
    let take_back = format!("take it back, as an operator: gkctl instance join --replace {}", identity.name);
    if let Ok(metadata) = path.metadata()
        && metadata.mode() & 0o077 != 0
    {
        let found = format!("{shown} may be used by other accounts (mode {:04o})", metadata.mode() & 0o7777);
        return Check::bad(
            CHECK,
            found,
            format!("chmod 600 {shown}; if somebody may have read it, {take_back}"),
        );
    }
    match (read, accepted) {
        (Ok(None), _) => Check::bad(CHECK, format!("{shown} is gone"), take_back),
        (Err(error), _) if error.kind() == io::ErrorKind::PermissionDenied => {
            Check::ok(CHECK, format!("{shown} is its owner's only, and this account is another one"))
        }
        (Err(error), _) => Check::bad(CHECK, error.to_string(), take_back),
        (Ok(Some(_)), Some(Ok(false))) => {
            Check::bad(CHECK, format!("{shown} is that of another instance"), take_back)
        }
        (Ok(Some(_)), Some(Err(ClientError::Refused(problem)))) if problem.code == Code::Unauthenticated => {
            Check::bad(
                CHECK,
                format!("{shown} is good no more: {} has left, or somebody took its place", identity.name),
                format!("join anew with `gkctl instance join`; or {take_back}"),
            )
        }
        (Ok(Some(_)), Some(Ok(true))) => Check::ok(CHECK, format!("{shown} is good, and its owner's only")),
        (Ok(Some(_)), Some(Err(_)) | None) => {
            Check::ok(CHECK, format!("{shown} is there, and its owner's only"))
        }
    }
}

/// Whether one runs, and whether the server hears of it.
pub(super) fn agent(running: Option<bool>, instance: Option<&Instance>, now: Timestamp) -> Check {
    const CHECK: &str = "agent";
    let heard = instance.map(|instance| match instance.last_contact_at {
        Some(at) => format!("the server last heard of it {}", age::ago(at, now)),
        None => "the server never heard of it".to_owned(),
    });
    let is_silent = instance.is_some_and(|instance| {
        instance.presence != Presence::Online
            || instance.last_contact_at.is_none_or(|at| now.since(at) >= OFFLINE_AFTER)
    });
    let with =
        |what: &str| heard.as_ref().map_or_else(|| what.to_owned(), |heard| format!("{what}; {heard}"));
    match running {
        Some(true) if is_silent => Check::bad(
            CHECK,
            with("runs, and does not get through"),
            "its log tells why: journalctl -u gatekeeper-agent -n 50",
        ),
        Some(true) => Check::ok(CHECK, with("runs")),
        Some(false) => Check::bad(CHECK, with("does not run"), START_AGENT),
        None if is_silent => {
            Check::bad(CHECK, with("this account may not look whether it runs"), START_AGENT)
        }
        None => Check::ok(CHECK, with("this account may not look whether it runs")),
    }
}

/// What an agent said of what it may see.
pub(super) fn sight(instance: &Instance) -> Option<Check> {
    let told = instance.facts.sight.as_ref()?.as_str();
    Some(match told.split_once("not seen: ") {
        Some((_, unseen)) => Check::warn(
            "privileges",
            format!("the agent does not see {unseen}"),
            "run it by its systemd unit, or as root; `gatekeeper-agent --explain` says more",
        ),
        None => Check::ok("privileges", format!("the agent {told}")),
    })
}

/// How far the kernel keeps off reserved ports.
pub(super) fn protection(instance: &Instance) -> Option<Check> {
    const CHECK: &str = "reserved ports";
    let protection = instance.facts.protection.as_ref()?;
    Some(match protection.state {
        ProtectionState::Enforced => Check::ok(CHECK, format!("the kernel keeps off them: {protection}")),
        ProtectionState::Off => Check::ok(
            CHECK,
            "the kernel may give them to outgoing connections; --protect of the agent prevents it",
        ),
        ProtectionState::Partial => Check::warn(
            CHECK,
            format!("the kernel keeps off some of them only: {protection}"),
            "give the agent CAP_NET_ADMIN and a /proc/sys that is not read-only; see `gatekeeper-agent --explain`",
        ),
        ProtectionState::Drifted => Check::warn(
            CHECK,
            format!("somebody takes them out of the kernel's list: {protection}"),
            "leave net.ipv4.ip_local_reserved_ports out of sysctl.conf and sysctl.d",
        ),
    })
}

/// Whether the agent can keep its state.
pub(super) fn disk(state_dir: &Path, room: io::Result<Room>) -> Check {
    const CHECK: &str = "disk";
    let place = state_dir.display();
    match room {
        Err(error) => {
            Check::bad(CHECK, format!("{place}: {error}"), "make it a directory that the agent may write to")
        }
        Ok(Room { is_read_only: true, .. }) => Check::bad(
            CHECK,
            format!("{place} is mounted read-only"),
            "mount it writable, or choose another --state-dir",
        ),
        Ok(Room { free_files: Some(0), .. }) => Check::bad(
            CHECK,
            format!("{place} is on a file system that takes no more files"),
            "remove some files there",
        ),
        Ok(Room { free_bytes, .. }) if free_bytes < LITTLE_BYTES => Check::bad(
            CHECK,
            format!("{place} has {} MiB left", free_bytes >> 20),
            "make room: what happens while the server is away is kept there",
        ),
        Ok(Room { free_bytes, .. }) => Check::ok(CHECK, format!("{place} has {} MiB left", free_bytes >> 20)),
    }
}

#[cfg(test)]
mod tests {
    use gk_model::facts::Facts;
    use gk_model::id::InstanceId;
    use gk_model::labels::Labels;
    use gk_model::protection::Protection;

    use super::super::Verdict;
    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_micros(1_700_000_000_000_000)
    }

    fn identity() -> Identity {
        Identity {
            id: InstanceId::generate(now()),
            name: "web-1".parse().unwrap(),
            server: "http://joined:1".to_owned(),
            socket: None,
            pins: Vec::new(),
        }
    }

    fn instance(presence: Presence, silent_seconds: u64) -> Instance {
        let last = now().minus(std::time::Duration::from_secs(silent_seconds));
        Instance {
            id: InstanceId::generate(now()),
            name: "web-1".parse().unwrap(),
            presence,
            labels: Labels::default(),
            facts: Facts::default(),
            joined_at: last,
            left_at: None,
            last_contact_at: Some(last),
            observed_at: None,
            forget_after_seconds: None,
            version: 1,
        }
    }

    fn refused(code: &str) -> ClientError {
        let json = format!(r#"{{"type":"x","title":"x","status":400,"code":"{code}","detail":"no"}}"#);
        ClientError::Refused(serde_json::from_str(&json).unwrap())
    }

    #[test]
    fn an_agent_runs_and_is_heard_of_or_not() {
        let (online, offline) = (instance(Presence::Online, 10), instance(Presence::Offline, 3_600));
        let table = [
            (Some(true), Some(&online), Verdict::Ok, "runs; the server last heard of it 10s ago"),
            (
                Some(true),
                Some(&offline),
                Verdict::Bad,
                "runs, and does not get through; the server last heard of it 1h ago",
            ),
            (Some(false), Some(&online), Verdict::Bad, "does not run; the server last heard of it 10s ago"),
            (Some(false), None, Verdict::Bad, "does not run"),
            (Some(true), None, Verdict::Ok, "runs"),
            (
                None,
                Some(&offline),
                Verdict::Bad,
                "this account may not look whether it runs; the server last heard of it 1h ago",
            ),
            (None, None, Verdict::Ok, "this account may not look whether it runs"),
        ];
        for (running, instance, verdict, found) in table {
            let check = agent(running, instance, now());
            assert_eq!((check.verdict, check.found.as_str()), (verdict, found));
        }
    }

    #[test]
    fn a_machine_is_known_has_left_or_is_forgotten() {
        let asked = "http://other:1".parse().unwrap();
        let judge = |known: Option<Result<Instance, ClientError>>, asked| {
            let check = machine(&identity(), known.as_ref(), asked);
            (check.verdict, check.found)
        };
        assert_eq!(
            judge(Some(Ok(instance(Presence::Online, 1))), None),
            (Verdict::Ok, "web-1, online".into())
        );
        assert_eq!(
            judge(Some(Ok(instance(Presence::Left, 1))), None),
            (Verdict::Bad, "web-1 has left".into())
        );
        assert_eq!(judge(Some(Err(refused("no_such_instance"))), None).0, Verdict::Bad);
        assert_eq!(
            judge(None, None),
            (Verdict::Ok, "web-1, joined to http://joined:1, as it last knew".into())
        );
        assert_eq!(
            judge(Some(Ok(instance(Presence::Online, 1))), Some(&asked)).1,
            "web-1, online",
            "by another name"
        );
        let elsewhere = "web-1, joined to http://joined:1 and not to http://other:1";
        assert_eq!(
            judge(Some(Err(refused("no_such_instance"))), Some(&asked)),
            (Verdict::Ok, elsewhere.into())
        );
    }

    #[test]
    fn a_credential_is_there_closed_and_good_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let secret = gk_client::identity::generate_secret(gk_model::secret::SecretKind::Instance);
        let identity = identity();
        gk_client::identity::save_identity(dir.path(), &identity, &secret).unwrap();
        let there = Some(secret);
        let judge = |read: Result<&Option<Secret>, &io::Error>, accepted| {
            credential(&identity, dir.path(), read, accepted).verdict
        };
        assert_eq!(judge(Ok(&there), Some(Ok(true))), Verdict::Ok);
        assert_eq!(judge(Ok(&there), None), Verdict::Ok);
        assert_eq!(judge(Ok(&there), Some(Ok(false))), Verdict::Bad);
        assert_eq!(judge(Ok(&there), Some(Err(refused("unauthenticated")))), Verdict::Bad, "superseded");
        assert_eq!(judge(Ok(&None), None), Verdict::Bad);
        assert_eq!(judge(Err(&io::Error::from(io::ErrorKind::PermissionDenied)), None), Verdict::Ok);
        let file = dir.path().join("credential");
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        assert_eq!(judge(Ok(&there), Some(Ok(true))), Verdict::Bad, "others may read it");
    }

    #[test]
    fn what_the_agent_told_is_weighed() {
        let mut told = instance(Presence::Online, 1);
        assert_eq!((sight(&told), protection(&told)), (None, None));
        told.facts.sight =
            Some("sees: all; not seen: other network namespaces (CAP_SYS_ADMIN missing)".into());
        assert_eq!(sight(&told).unwrap().verdict, Verdict::Warn);
        told.facts.sight = Some("sees: all".into());
        assert_eq!(sight(&told).unwrap().verdict, Verdict::Ok);
        let states = [
            (ProtectionState::Enforced, Verdict::Ok),
            (ProtectionState::Off, Verdict::Ok),
            (ProtectionState::Partial, Verdict::Warn),
            (ProtectionState::Drifted, Verdict::Warn),
        ];
        for (state, verdict) in states {
            told.facts.protection = Some(Protection { state, ports: 1, missing: 0, reason: None });
            assert_eq!(protection(&told).unwrap().verdict, verdict, "{state}");
        }
    }

    #[test]
    fn a_disk_has_room_or_not() {
        let room = |free_bytes, free_files, is_read_only| Ok(Room { free_bytes, free_files, is_read_only });
        let table = [
            (room(1 << 30, Some(9), false), Verdict::Ok),
            (room(1 << 30, None, false), Verdict::Ok),
            (room(1 << 30, Some(9), true), Verdict::Bad),
            (room(1 << 30, Some(0), false), Verdict::Bad),
            (room(1 << 20, Some(9), false), Verdict::Bad),
            (Err(io::Error::from(io::ErrorKind::NotFound)), Verdict::Bad),
        ];
        for (room, verdict) in table {
            let check = disk(Path::new("/state"), room);
            assert_eq!(check.verdict, verdict, "{check:?}");
        }
    }

    #[test]
    fn a_proxy_matters_where_the_server_is_far_and_away() {
        let at = |server: &str| Connection {
            client: gk_client::Client::new(server.parse().unwrap(), None),
            how: crate::connect::How::Option,
            shown: crate::connect::Shown::Nothing,
        };
        let (far, near) = (at("http://192.0.2.1:1"), at("unix:/x"));
        let judge = |set: bool, connection, is_reached| {
            proxies(|name| set && name == "HTTP_PROXY", Some(connection), is_reached)
                .map(|check| check.verdict)
        };
        assert_eq!(judge(false, &far, false), None);
        assert_eq!(judge(true, &far, false), Some(Verdict::Warn));
        assert_eq!(judge(true, &far, true), Some(Verdict::Ok));
        assert_eq!(judge(true, &near, false), Some(Verdict::Ok));
    }

    #[test]
    fn a_file_of_tokens_that_may_not_be_used_is_bad() {
        let exposed = LoginError::Exposed { path: "/c/login.json".into(), mode: 0o644 };
        let check = logins(Err(exposed), Path::new("/c"));
        assert_eq!(check.verdict, Verdict::Bad);
        assert!(check.remedy.unwrap().contains("chmod 600 /c/login.json"));
        assert_eq!(logins(Ok(Logins::default()), Path::new("/c")), Check::ok("login", "no token is stored"));
    }
}
