//! What can be typed after `gkctl token`. No option takes a secret: arguments can be seen by everybody on the machine.

use std::str::FromStr;

use clap::{ArgGroup, Args as ClapArgs, Subcommand};
use gk_model::access::Role;
use gk_model::labels::{Label, Selector};
use gk_model::text::{Note, PoolName, Subject};
use gk_model::time::parse_span;
use gk_model::token::{ForgetAfter, TokenKind, TokenLife};

const CREATE_EXAMPLES: &str = "\
Example: TOKEN=$(gkctl token create --subject ci --role user --limit-instances env=dev --ttl 90d)
For a new machine: gkctl token create --join --label env=prod

Only the secret goes to stdout. It is shown once: the server keeps its hash.

Roles: viewer reads; user also reserves, and releases what is its own; operator also deals with all \
reservations, machines and join tokens; admin also with pools and all tokens.";

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum TokenVerb {
    /// Make a token for a subject, or one by which machines join, and print its secret.
    #[command(after_help = CREATE_EXAMPLES)]
    Create(CreateToken),
    /// List tokens, newest first; secrets are nowhere.
    #[command(after_help = "Example: gkctl token list --kind join")]
    List(TokenFilters),
    /// End tokens; whoever uses one is refused from then on.
    #[command(after_help = "Example: gkctl token revoke 0190163d-8694")]
    Revoke(RevokeTokens),
}

#[derive(Debug, ClapArgs)]
#[command(group = ArgGroup::new("for").required(true).args(["subject", "join"]))]
pub(crate) struct CreateToken {
    /// Who it stands for. What a subject holds stays its own, whichever token it comes with.
    #[arg(long, value_name = "NAME", requires = "role")]
    pub(crate) subject: Option<Subject>,
    /// What the subject may do: viewer, user, operator or admin.
    #[arg(long, conflicts_with = "join")]
    pub(crate) role: Option<Role>,
    /// It may change only instances with these labels, as in 'env=dev,team in (web,api)'.
    #[arg(long, value_name = "SELECTOR", conflicts_with = "join")]
    pub(crate) limit_instances: Option<Selector>,
    /// It may reserve only ports of this pool; several times for several.
    #[arg(long = "limit-pool", value_name = "POOL", conflicts_with = "join")]
    pub(crate) limit_pools: Vec<PoolName>,
    /// It lets a machine join, and does nothing else.
    #[arg(long)]
    pub(crate) join: bool,
    /// It lets in any number of machines until it ends, and not just one.
    #[arg(long, conflicts_with = "subject")]
    pub(crate) reusable: bool,
    /// What each of these machines is labelled with, as in env=prod; several times for several.
    #[arg(long = "label", value_name = "KEY=VALUE", conflicts_with = "subject")]
    pub(crate) labels: Vec<Label>,
    /// Each of these machines leaves by itself when it was silent for so long and reserves nothing: 7d.
    #[arg(long, value_name = "SPAN", value_parser = span::<ForgetAfter>, conflicts_with = "subject")]
    pub(crate) forget_after: Option<ForgetAfter>,
    /// How long it lasts: 30m, 1h, 90d. Left out, a join token lasts 1h, and another until it is revoked.
    #[arg(long, value_name = "SPAN", value_parser = span::<TokenLife>)]
    pub(crate) ttl: Option<TokenLife>,
    /// A remark.
    #[arg(long, value_name = "TEXT")]
    pub(crate) note: Option<Note>,
}

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct TokenFilters {
    /// Also those that have ended.
    #[arg(long)]
    pub(crate) ended: bool,
    /// Only subject, or only join.
    #[arg(long)]
    pub(crate) kind: Option<TokenKind>,
    /// Only those that stand for this subject; of join tokens, those it made.
    #[arg(long, value_name = "NAME")]
    pub(crate) subject: Option<Subject>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RevokeTokens {
    /// Their ids, as `gkctl token list` shows them, or as much of one as no other begins with.
    #[arg(value_name = "ID", required = true)]
    pub(crate) ids: Vec<IdPrefix>,
}

/// The beginning of an id, lower-case: hexadecimal digits and dashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdPrefix(String);

impl IdPrefix {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IdPrefix {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<IdPrefix, &'static str> {
        let is_digit = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
        match text.len() {
            4..=36 if text.bytes().all(is_digit) => Ok(IdPrefix(text.to_ascii_lowercase())),
            _ => Err(
                "an id is hexadecimal digits and dashes, and its first four characters are the least to give",
            ),
        }
    }
}

/// `90d` within the bounds of what it is for.
pub(super) fn span<T: TryFrom<i64, Error: ToString>>(text: &str) -> Result<T, String> {
    let span = parse_span(text).ok_or("write a number with its unit, as in 30m, 1h or 90d")?;
    i64::try_from(span.as_secs()).unwrap_or(i64::MAX).try_into().map_err(|error: T::Error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_a_unit_and_bounds() {
        let days = |text: &str| span::<TokenLife>(text).map(|life| life.duration().as_secs() / 86_400);
        assert_eq!(days("90d"), Ok(90));
        assert_eq!(days("48h"), Ok(2));
        for (bad, says) in [
            ("90", "with its unit"),
            ("d", "with its unit"),
            ("59s", "60 s to ten years"),
            ("9999999d", "ten years"),
        ] {
            let error = days(bad).unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn an_id_may_be_begun() {
        for (text, good) in
            [("0190", true), ("0190163D-8694", true), ("019", false), ("web-1", false), ("", false)]
        {
            assert_eq!(text.parse::<IdPrefix>().is_ok(), good, "{text}");
        }
    }
}
