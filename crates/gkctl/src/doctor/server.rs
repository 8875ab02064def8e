//! What the doctor makes of the server's answers.

use std::time::Duration;

use gk_client::{ClientError, ProtocolFault, ServerAddress};
use gk_model::problem::Code;
use gk_model::time::Timestamp;
use gk_model::token::{Door, Whoami};

use super::Check;
use crate::connect::How;
use crate::context::Context;
use crate::login::describe_role;
use crate::output::age;
use crate::token::describe_limits;

/// Clocks that are so close do nobody any harm.
const CLOSE: Duration = Duration::from_secs(5);

/// From here on ages and ends of tokens are plainly wrong.
const FAR: Duration = Duration::from_mins(5);

/// A certificate should have been renewed by then; the server says so in its log, too.
const RENEW_BEFORE: Duration = Duration::from_hours(14 * 24);

/// A token that ends so soon is worth a word.
const SOON: Duration = Duration::from_hours(7 * 24);

/// A server that is not there, is not one, or is not ready.
pub(super) fn unready(server: &ServerAddress, how: How, error: ClientError, context: &Context) -> Check {
    let where_ = format!("{server} ({how})");
    match error {
        ClientError::Refused(problem) if problem.code == Code::Unavailable => Check::bad(
            "server",
            format!("{where_} answers, and is not ready: {}", problem.detail),
            "look at its database and its disk; the server's log tells what it waits for",
        ),
        ClientError::Untrusted { why, .. } => {
            let remedy =
                why.remedy().unwrap_or_else(|| "give the server a certificate that others take".to_owned());
            Check::bad(
                "server",
                format!("{where_} shows a certificate that cannot be trusted: {}", why.what()),
                remedy,
            )
        }
        // The question has nothing in it that could be malformed. A port for HTTPS answers so in clear.
        ClientError::Refused(problem)
            if problem.code == Code::Malformed && matches!(server, ServerAddress::Http(_)) =>
        {
            Check::bad(
                "server",
                format!("{where_}: {}", problem.detail),
                format!("name it so: {}", with_tls(server)),
            )
        }
        ClientError::Protocol { fault, .. } if matches!(*fault, ProtocolFault::NoTls) => Check::bad(
            "server",
            format!("{where_} does not speak TLS"),
            "check the port; where it serves plain HTTP, start it with --tls auto, or write http:// and let everything be \
             read on the way",
        ),
        ClientError::Protocol { .. } => {
            let Check { found, .. } = Check::failed("server", &error.into(), context);
            let remedy = "something else listens there, or the server speaks TLS: check scheme and port of the address";
            Check::bad("server", format!("{where_}: {found}"), remedy)
        }
        other => {
            let Check { found, remedy, .. } = Check::failed("server", &other.into(), context);
            let remedy =
                remedy.unwrap_or_else(|| "name another with --server or GATEKEEPER_SERVER".to_owned());
            Check::bad("server", format!("{found} ({how})"), remedy)
        }
    }
}

fn with_tls(server: &ServerAddress) -> String {
    server.to_string().replacen("http://", "https://", 1)
}

/// Both work together when they are one minor version apart at most.
pub(super) fn versions(mine: &str, servers: &str) -> Check {
    let both = format!("server {servers}, gkctl {mine}");
    let (Some((major, minor)), Some((servers_major, servers_minor))) = (parse(mine), parse(servers)) else {
        return Check::warn("versions", both, "install programs that belong together");
    };
    match (major == servers_major, minor.abs_diff(servers_minor)) {
        (true, 0) => Check::ok("versions", both),
        (true, 1) => {
            Check::ok("versions", format!("{both}: one minor version apart, which is as far as it may be"))
        }
        _ => {
            let older = if (major, minor) < (servers_major, servers_minor) { "gkctl" } else { "the server" };
            Check::bad(
                "versions",
                format!("{both}: more than one minor version apart"),
                format!("update {older}"),
            )
        }
    }
}

fn parse(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// Whether the server's certificate is good for some time. One that the server makes by itself always is.
pub(super) fn certificate(end: Timestamp, now: Timestamp) -> Check {
    const CHECK: &str = "certificate";
    let remedy =
        "renew the files of --tls-cert and --tls-key on the server, which reads them again by itself";
    let found = |verb| format!("the server's certificate {verb} {}", age::around(end, now));
    match end.since(now) {
        left if left.is_zero() => Check::bad(CHECK, found("ended"), remedy),
        left if left < RENEW_BEFORE => Check::warn(CHECK, found("ends"), remedy),
        _ => Check::ok(CHECK, found("ends")),
    }
}

/// The server's clock against ours, which was read before and after. The server tells whole seconds.
pub(super) fn clocks(before: Timestamp, after: Timestamp, server: Timestamp) -> Check {
    let ahead = before.since(server.plus(Duration::from_secs(1)));
    let behind = server.since(after);
    let off = ahead.max(behind);
    let found = match (ahead.is_zero(), off) {
        (_, off) if off < Duration::from_secs(1) => "the same as the server's, to the second".to_owned(),
        (false, off) => format!("{} s ahead of the server's", off.as_secs()),
        (true, off) => format!("{} s behind the server's", off.as_secs()),
    };
    let remedy = "keep both machines' clocks by NTP: timedatectl set-ntp true";
    match off {
        off if off <= CLOSE => Check::ok("clock", found),
        off if off <= FAR => Check::warn("clock", found, remedy),
        _ => Check::bad("clock", found, remedy),
    }
}

/// Who the server takes us for, and whether that is enough.
pub(super) fn who(who: &Whoami, now: Timestamp) -> Check {
    let limits = (!who.limits.is_none()).then(|| format!(", limited to {}", describe_limits(&who.limits)));
    let role = describe_role(who.by, who.role);
    let found = format!("{}, {role}{}", who.subject, limits.unwrap_or_default());
    if who.by == Door::Join {
        let remedy =
            "use it on a new machine with `gkctl instance join`, and a token of your own here: gkctl login";
        return Check::warn("you", found, remedy);
    }
    match who.expires_at {
        Some(end) if end.since(now) < SOON => Check::warn(
            "you",
            format!("{found}; the token ends {}", age::around(end, now)),
            "ask for a new token, and log in with it: gkctl login",
        ),
        Some(end) => Check::ok("you", format!("{found}; the token ends {}", age::around(end, now))),
        None => Check::ok("you", found),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn one_minor_version_apart_is_promised_to_work() {
        let table = [
            ("0.1.0", "0.1.9", Verdict::Ok),
            ("0.1.0", "0.2.0", Verdict::Ok),
            ("0.3.0", "0.2.1", Verdict::Ok),
            ("0.1.0", "0.3.0", Verdict::Bad),
            ("1.0.0", "0.1.0", Verdict::Bad),
            ("1.1.0", "2.1.0", Verdict::Bad),
            ("0.1.0", "main", Verdict::Warn),
        ];
        for (mine, servers, verdict) in table {
            assert_eq!(versions(mine, servers).verdict, verdict, "{mine} {servers}");
        }
        assert_eq!(versions("0.1.0", "0.3.0").remedy.unwrap(), "update gkctl");
        assert_eq!(versions("0.3.0", "0.1.0").remedy.unwrap(), "update the server");
    }

    #[test]
    fn a_clock_is_compared_to_the_second() {
        let at = |millis: i64| Timestamp::from_micros(1_700_000_000_000_000 + millis * 1_000);
        let table = [
            // (before, after, verdict, what is found), the server at 0 to 999
            (0, 10, Verdict::Ok, "the same as the server's, to the second"),
            (999, 1_005, Verdict::Ok, "the same as the server's, to the second"),
            (-400, 0, Verdict::Ok, "the same as the server's, to the second"),
            (4_000, 4_010, Verdict::Ok, "3 s ahead of the server's"),
            (-10_010, -10_000, Verdict::Warn, "10 s behind the server's"),
            (61_000, 61_010, Verdict::Warn, "60 s ahead of the server's"),
            (-3_600_010, -3_600_000, Verdict::Bad, "3600 s behind the server's"),
        ];
        for (before, after, verdict, found) in table {
            let check = clocks(at(before), at(after), at(0));
            assert_eq!((check.verdict, check.found.as_str()), (verdict, found), "{before}");
        }
    }

    #[test]
    fn a_certificate_wants_renewal_two_weeks_before_its_end() {
        let now = Timestamp::from_micros(1_700_000_000_000_000);
        let in_hours = |hours: u64| certificate(now.plus(Duration::from_hours(hours)), now);
        assert_eq!(in_hours(14 * 24 + 1).verdict, Verdict::Ok);
        let soon = in_hours(14 * 24 - 1);
        assert_eq!(
            (soon.verdict, soon.found.as_str()),
            (Verdict::Warn, "the server's certificate ends in 13d")
        );
        assert!(soon.remedy.unwrap().contains("--tls-cert"));
        let over = certificate(now.minus(Duration::from_hours(72)), now);
        assert_eq!(over.verdict, Verdict::Bad);
        assert!(over.found.starts_with("the server's certificate ended 2023-11-1"), "{}", over.found);
    }

    #[test]
    fn who_one_is_may_be_too_little_or_not_for_long() {
        let now = Timestamp::from_micros(1_700_000_000_000_000);
        let whoami = |json: &str| {
            let mut who = serde_json::json!({"subject": "ci", "by": "token", "role": "user", "limits": {}});
            let rest: serde_json::Value = serde_json::from_str(json).unwrap();
            who.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            who_of(who, now)
        };
        let table = [
            ("{}", Verdict::Ok, "ci, user: may reserve"),
            (r#"{"expires_at":"2024-02-12T22:13:20Z"}"#, Verdict::Ok, "the token ends in 90d"),
            (r#"{"expires_at":"2023-11-15T22:13:20Z"}"#, Verdict::Warn, "the token ends in 24h"),
            (r#"{"by":"join","role":null}"#, Verdict::Warn, "a join token lets a machine join"),
            (r#"{"by":"instance","role":null}"#, Verdict::Ok, "may reserve for itself"),
        ];
        for (json, verdict, found) in table {
            let check = whoami(json);
            assert_eq!(check.verdict, verdict, "{check:?}");
            assert!(check.found.contains(found), "{check:?}");
        }
    }

    fn who_of(json: serde_json::Value, now: Timestamp) -> Check {
        who(&serde_json::from_value(json).unwrap(), now)
    }
}
