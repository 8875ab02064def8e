//! Tokens, as they are listed, asked for and answered. The secret itself is in [`crate::secret`].

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::access::Role;
use crate::id::{InstanceId, TokenId};
use crate::labels::{Labels, Selector};
use crate::reservation::Contradiction;
use crate::secret::{SecretHash, SecretKind};
use crate::text::{Note, PoolName, Subject};
use crate::text_form::words;
use crate::time::Timestamp;

words! {
    /// What a token is for.
    TokenKind, "a kind of token" {
        /// Stands for a subject.
        Subject = "subject",
        /// Lets a machine join.
        Join = "join",
    }
}

impl From<TokenKind> for SecretKind {
    fn from(kind: TokenKind) -> SecretKind {
        match kind {
            TokenKind::Subject => SecretKind::Subject,
            TokenKind::Join => SecretKind::Join,
        }
    }
}

/// What a subject may change at most; everything its role may, where nothing is said. Reading is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Only on instances with these labels, and nothing fleet-wide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<Selector>,
    /// Only numbers of these pools.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<PoolName>)]
    pub pools: BTreeSet<PoolName>,
}

impl Limits {
    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        *self == Limits::default()
    }

    /// Whether numbers of this pool may be reserved.
    pub fn allow_pool(&self, pool: &PoolName) -> bool {
        self.pools.is_empty() || self.pools.contains(pool)
    }

    /// Whether an instance with these labels may be changed.
    pub fn allow_instance(&self, labels: &Labels) -> bool {
        self.instances.as_ref().is_none_or(|selector| selector.matches(labels))
    }
}

/// How machines join with a join token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinTerms {
    /// Whether it lets in any number of machines until it ends, and not just one.
    #[serde(default)]
    pub reusable: bool,
    /// What each of them is labelled with.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// An instance that is not heard of for so many seconds, and holds no reservation, leaves by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forget_after_seconds: Option<ForgetAfter>,
}

/// Declares a span of whole seconds with its bounds.
macro_rules! span {
    ($(#[$doc:meta])* $name:ident, $error:ident, $least:tt..=$most:tt, $sentence:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        #[serde(try_from = "i64")]
        #[schema(value_type = i64, minimum = $least, maximum = $most)]
        pub struct $name(u32);

        impl $name {
            /// As a duration.
            pub fn duration(self) -> Duration {
                Duration::from_secs(u64::from(self.0))
            }
        }

        /// A number of seconds outside the bounds.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
        #[error($sentence)]
        pub struct $error(i64);

        impl TryFrom<i64> for $name {
            type Error = $error;

            fn try_from(seconds: i64) -> Result<$name, $error> {
                match u32::try_from(seconds) {
                    Ok(valid @ $least..=$most) => Ok($name(valid)),
                    _ => Err($error(seconds)),
                }
            }
        }
    };
}

pub(crate) use span;

span! {
    /// How long an instance may be silent before it is forgotten: ten minutes to ten years.
    ForgetAfter, ForgetAfterError, 600..=315_360_000,
    "an instance is forgotten after 600 s to ten years without contact; {0} s is outside"
}

span! {
    /// How long a token lasts: a minute to ten years.
    TokenLife, TokenLifeError, 60..=315_360_000,
    "a token lasts 60 s to ten years; {0} s is outside"
}

/// A token, without its secret, which nobody has but who uses it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its id.
    pub id: TokenId,
    /// What it is for.
    pub kind: TokenKind,
    /// Who it stands for; of a join token, who made it.
    pub subject: Subject,
    /// What its subject may do; none for a join token.
    pub role: Option<Role>,
    /// What its subject may not.
    pub limits: Limits,
    /// How machines join with it; none for a subject's.
    pub join: Option<JoinTerms>,
    /// A remark.
    pub note: Option<Note>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: Subject,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// When it was revoked; of a join token for one machine, when that joined.
    pub revoked_at: Option<Timestamp>,
}

impl Token {
    /// Which one it is, for history: `token … of ada (user)`.
    pub fn describe(&self) -> String {
        match self.role {
            Some(role) => format!("token {} of {} ({role})", self.id, self.subject),
            None => format!("join token {}", self.id),
        }
    }

    /// Whether it still counts.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| end > now)
    }
}

/// Asks for a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// What it is to be for.
    pub kind: TokenKind,
    /// Who it stands for; the caller, when left out. Several tokens may stand for one subject: that is how a token is
    /// replaced without losing what its subject holds.
    #[serde(default)]
    pub subject: Option<Subject>,
    /// What that subject may do; needed for a subject's token, and none for a join token.
    #[serde(default)]
    pub role: Option<Role>,
    /// What it may not.
    #[serde(default)]
    pub limits: Limits,
    /// How machines join with a join token.
    #[serde(default)]
    pub join: Option<JoinTerms>,
    /// A remark.
    #[serde(default)]
    pub note: Option<Note>,
    /// After how many seconds it ends. Left out, a join token lasts an hour, and a subject's until it is revoked.
    #[serde(default)]
    pub ttl_seconds: Option<TokenLife>,
    /// SHA-256 of the secret, when the client has made it for itself. Left out, the server makes one and shows it once.
    #[serde(default)]
    pub hash: Option<SecretHash>,
}

impl TokenRequest {
    /// A join token: for one machine, for an hour.
    pub fn to_join() -> TokenRequest {
        TokenRequest {
            kind: TokenKind::Join,
            subject: None,
            role: None,
            limits: Limits::default(),
            join: None,
            note: None,
            ttl_seconds: None,
            hash: None,
        }
    }

    /// A token that stands for a subject until it is revoked.
    pub fn for_subject(subject: Subject, role: Role) -> TokenRequest {
        TokenRequest {
            kind: TokenKind::Subject,
            subject: Some(subject),
            role: Some(role),
            ..TokenRequest::to_join()
        }
    }

    /// How long a join token lasts unless told.
    pub const JOIN_LASTS: Duration = Duration::from_hours(1);

    /// What it asks for, if that makes sense.
    ///
    /// # Errors
    /// [`Contradiction`] with the field that does not fit the others.
    pub fn check(&self) -> Result<(), Contradiction> {
        let fault = |field, what| Err(Contradiction { field, what });
        match (self.kind, self.role) {
            (TokenKind::Subject, None) => {
                return fault("role", "a subject's token needs a role: viewer, user, operator or admin");
            }
            (TokenKind::Join, Some(_)) => {
                return fault("role", "a join token has no role: it lets a machine join");
            }
            (TokenKind::Subject, Some(Role::Admin)) if !self.limits.is_none() => {
                return fault("limits", "an admin could take limits off again: use another role");
            }
            _ => {}
        }
        if self.kind == TokenKind::Subject && self.join.is_some() {
            return fault("join", "only a join token says how machines join");
        }
        if self.kind == TokenKind::Join && !self.limits.is_none() {
            return fault("limits", "a join token has no limits: it can do nothing else");
        }
        if self.kind == TokenKind::Join && self.subject.is_some() {
            return fault("subject", "a join token stands for whoever made it");
        }
        let is_machine =
            |subject: &Subject| subject.as_str() == "server" || subject.as_str().starts_with("instance:");
        if self.subject.as_ref().is_some_and(is_machine) {
            return fault(
                "subject",
                "the server and the instances speak for themselves: choose another name",
            );
        }
        Ok(())
    }
}

/// A token that was just made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    /// The token.
    pub token: Token,
    /// Its secret, unless the client made it. This is the only time that it is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

/// Who the caller is, as the server sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Whoami {
    /// The subject.
    pub subject: Subject,
    /// What let it in.
    pub by: Door,
    /// Its role; none for an instance or a join token.
    pub role: Option<Role>,
    /// What it may not.
    pub limits: Limits,
    /// The instance that it speaks for, if it is one.
    pub instance: Option<InstanceId>,
    /// The token, if it is one.
    pub token: Option<TokenId>,
    /// When that ends.
    pub expires_at: Option<Timestamp>,
}

words! {
    /// What lets a caller in.
    Door, "a door" {
        /// The server's Unix socket, for accounts of its machine.
        Socket = "socket",
        /// A subject's token.
        Token = "token",
        /// A join token.
        Join = "join",
        /// An instance's own credential.
        Instance = "instance",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_makes_sense_or_names_the_field() {
        let table: [(&str, Option<&str>); 10] = [
            (r#"{"kind":"subject","role":"user"}"#, None),
            (r#"{"kind":"subject"}"#, Some("role")),
            (r#"{"kind":"join"}"#, None),
            (
                r#"{"kind":"join","join":{"reusable":true,"labels":{"a":"b"},"forget_after_seconds":600}}"#,
                None,
            ),
            (r#"{"kind":"join","role":"user"}"#, Some("role")),
            (r#"{"kind":"join","subject":"ada"}"#, Some("subject")),
            (r#"{"kind":"join","limits":{"pools":["web"]}}"#, Some("limits")),
            (r#"{"kind":"subject","role":"admin","limits":{"instances":"a=b"}}"#, Some("limits")),
            (r#"{"kind":"subject","role":"user","join":{}}"#, Some("join")),
            (r#"{"kind":"subject","role":"user","subject":"instance:web-1"}"#, Some("subject")),
        ];
        for (json, field) in table {
            let request: TokenRequest = serde_json::from_str(json).unwrap();
            assert_eq!(request.check().err().map(|fault| fault.field), field, "{json}");
        }
        assert!(serde_json::from_str::<JoinTerms>(r#"{"forget_after_seconds":599}"#).is_err());
    }
}
