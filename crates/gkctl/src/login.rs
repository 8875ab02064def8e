//! `gkctl login`, `logout` and `whoami`.
//!
//! A token is shown to the server before it is kept, so that what is kept has worked once; and it is kept for that server
//! alone. The variable `GATEKEEPER_TOKEN` is not looked at here: it is there so that nothing has to be kept.

use anyhow::Result;
use gk_client::ServerAddress;
use gk_client::login::change_logins;
use gk_model::id::{InstanceId, TokenId};
use gk_model::paths::LOGIN_FILE;
use gk_model::text::Subject;
use gk_model::time::Timestamp;
use gk_model::token::{Door, Limits, Whoami};
use gk_model::{access::Role, secret::SecretKind};
use serde::Serialize;

use crate::args::Format;
use crate::connect::{Connection, unusable};
use crate::context::{Context, note};
use crate::error::{Exit, Failure};
use crate::output::{age, print, print_json, print_pairs};
use crate::secret_input;
use crate::token::describe_limits;

const PROMPT: &str = "token";

/// Asks for a token, tries it, and keeps it.
pub(crate) fn login(context: &Context) -> Result<()> {
    let client = context.client_to_log_in()?;
    let server = client.server().clone();
    // Nobody types a token first and learns then that it was for nothing.
    client.check_may_send_token()?;
    client.ready()?;
    let token = match &context.global.token_file {
        Some(file) => secret_input::read(file, PROMPT)?,
        None => secret_input::read_stdin(&format!("{PROMPT} for {server}"))?,
    };
    refuse_other_kinds(token.kind())?;
    client.renew_pins()?;
    let pins = client.pins();
    let who = client.with_token(token.clone()).whoami()?;
    change_logins(&context.config_dir(), context.account.uid, |logins| {
        logins.insert(server.clone(), token, pins);
    })
    .map_err(unusable)?;
    note(format_args!("logged in to {server} as {}", in_words(&who)));
    if context.has_variable("GATEKEEPER_TOKEN") {
        note("note: GATEKEEPER_TOKEN is set, and goes before the token that was stored now");
    }
    if context.format() == Format::Json {
        print_json(&who)?;
    }
    Ok(())
}

/// What is kept is for people and programs; the others have a place of their own.
fn refuse_other_kinds(kind: SecretKind) -> Result<(), Failure> {
    let (what, hint) = match kind {
        SecretKind::Subject => return Ok(()),
        SecretKind::Join => (
            "a join token lets a machine join, and nobody log in",
            "use it on that machine: gkctl instance join",
        ),
        SecretKind::Instance => (
            "that is the credential of a machine, and stays in its state directory",
            "ask an admin for a token of your own: gkctl token create --subject NAME --role user",
        ),
    };
    Err(Failure::new(Exit::Usage, what).hint(hint))
}

/// Forgets a token. It still counts, wherever else it is.
pub(crate) fn logout(context: &Context) -> Result<()> {
    let server = context.client_to_log_in()?.server().clone();
    let was_there =
        change_logins(&context.config_dir(), context.account.uid, |logins| logins.remove(&server))
            .map_err(unusable)?;
    match was_there {
        true => note(format_args!(
            "logged out of {server}; the token itself still counts until it ends: gkctl token revoke ID"
        )),
        false => note(format_args!("no token was stored for {server}")),
    }
    Ok(())
}

/// What `whoami` answers: what the server says, and how it was asked.
#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    who: &'a Whoami,
    server: String,
    found_as: String,
    asked_with: String,
}

/// Tells who the server takes the caller for.
pub(crate) fn whoami(context: &Context) -> Result<()> {
    let Connection { client, how, shown } = context.connect()?;
    let who = client.whoami()?;
    match context.format() {
        Format::Json => {
            let (server, found_as) = (client.server().to_string(), how.to_string());
            Ok(print_json(&Answer { who: &who, server, found_as, asked_with: shown.to_string() })?)
        }
        Format::Name => Ok(print(&format!("{}\n", who.subject))?),
        Format::Table | Format::Csv => {
            let mut pairs = describe(&who, context.now);
            pairs.push(("server", format!("{} ({how})", client.server())));
            pairs.push((
                "asked with",
                match (client.server(), client.has_token()) {
                    (ServerAddress::Unix(_), false) => {
                        "this account, which the server's socket knows".to_owned()
                    }
                    _ => shown.to_string(),
                },
            ));
            if matches!(shown, crate::connect::Shown::Login) {
                pairs.push(("stored in", context.config_dir().join(LOGIN_FILE).display().to_string()));
            }
            Ok(print_pairs(&pairs)?)
        }
    }
}

fn describe(who: &Whoami, now: Timestamp) -> Vec<(&'static str, String)> {
    let Whoami { subject, by, role, limits, instance, token, expires_at } = who;
    let known = [
        ("subject", Some(Subject::to_string(subject))),
        ("role", Some(describe_role(*by, *role))),
        ("instance", instance.map(|id: InstanceId| id.to_string())),
        ("limits", (!Limits::is_none(limits)).then(|| describe_limits(limits))),
        ("token", token.map(|id: TokenId| id.to_string())),
        ("ends", token.map(|_| describe_end(*expires_at, now))),
    ];
    known.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

fn describe_end(expires_at: Option<Timestamp>, now: Timestamp) -> String {
    match expires_at {
        Some(end) => format!("{} ({})", age::moment(end), age::around(end, now)),
        None => "when it is revoked".to_owned(),
    }
}

/// What somebody may do, in a line.
pub(crate) fn describe_role(by: Door, role: Option<Role>) -> String {
    let may = |role: Role| match role {
        Role::Viewer => "viewer: may read",
        Role::User => "user: may reserve, and release what is its own",
        Role::Operator => "operator: may deal with all reservations, machines and join tokens",
        Role::Admin => "admin: may do everything",
    };
    match (by, role) {
        (_, Some(role)) => may(role).to_owned(),
        (Door::Instance, None) => "that of a machine: may reserve for itself".to_owned(),
        (Door::Join | Door::Token | Door::Socket, None) => {
            "none: a join token lets a machine join".to_owned()
        }
    }
}

/// `ci (user), limited to instances env=dev`.
pub(crate) fn in_words(who: &Whoami) -> String {
    let role = who.role.map(|role| format!(" ({role})")).unwrap_or_default();
    let limits = (!who.limits.is_none()).then(|| format!(", limited to {}", describe_limits(&who.limits)));
    format!("{}{role}{}", who.subject, limits.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_told_with_role_and_limits() {
        let who = |limits: &str| Whoami {
            subject: "ci".parse().unwrap(),
            by: Door::Token,
            role: Some(Role::User),
            limits: serde_json::from_str(limits).unwrap(),
            instance: None,
            token: None,
            expires_at: None,
        };
        assert_eq!(in_words(&who("{}")), "ci (user)");
        assert_eq!(
            in_words(&who(r#"{"instances":"env=dev","pools":["a","b"]}"#)),
            "ci (user), limited to instances env=dev, pools a b"
        );
    }

    #[test]
    fn only_a_subjects_token_logs_in() {
        assert!(refuse_other_kinds(SecretKind::Subject).is_ok());
        for other in [SecretKind::Join, SecretKind::Instance] {
            assert_eq!(refuse_other_kinds(other).unwrap_err().exit, Exit::Usage);
        }
    }
}
