//! Secrets: made where they are used, sent once, stored as a hash.
//!
//! A secret is a prefix that says what it is for, then 256 random bits in hexadecimal. It carries no meaning beyond
//! that, so its SHA-256 needs no salt and no slow hash: there is nothing to guess. `Debug` never shows it.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::text_form::text_form;

/// What a secret is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SecretKind {
    /// `gkj_`: lets one machine join.
    Join,
    /// `gka_`: the credential of an instance.
    Instance,
    /// `gkt_`: stands for a subject.
    Subject,
}

impl SecretKind {
    const ALL: [SecretKind; 3] = [SecretKind::Join, SecretKind::Instance, SecretKind::Subject];

    /// What its secrets begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            SecretKind::Join => "gkj_",
            SecretKind::Instance => "gka_",
            SecretKind::Subject => "gkt_",
        }
    }
}

/// A secret in clear. Handle with care: it is neither `Display` nor `Serialize`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    kind: SecretKind,
    text: String,
}

/// A text that is no secret of ours. Does not repeat the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a Gatekeeper token: one starts with gkt_, gka_ or gkj_ and has 68 characters")]
pub struct SecretError;

impl Secret {
    /// A secret of this kind from 32 random bytes.
    pub fn from_random(kind: SecretKind, bytes: &[u8; 32]) -> Secret {
        Secret { kind, text: format!("{}{}", kind.prefix(), hex(bytes)) }
    }

    /// Whether a text begins like a secret, whole or not. Where the name of a file is expected, such a text must not be repeated,
    /// because somebody meant the secret itself.
    pub fn is_begun_by(text: &str) -> bool {
        SecretKind::ALL.iter().any(|kind| text.starts_with(kind.prefix()))
    }

    /// What it is for.
    pub fn kind(&self) -> SecretKind {
        self.kind
    }

    /// The secret itself, for the `Authorization` header or a file of mode 0600, and nothing else.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// What the server stores.
    pub fn hash(&self) -> SecretHash {
        SecretHash(Sha256::digest(self.text.as_bytes()).into())
    }
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

impl FromStr for Secret {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Secret, SecretError> {
        let text = text.trim();
        let kind = SecretKind::ALL.into_iter().find(|kind| text.starts_with(kind.prefix()));
        let kind = kind.ok_or(SecretError)?;
        let digits = &text[kind.prefix().len()..];
        let is_hex = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if digits.len() == 64 && is_hex {
            Ok(Secret { kind, text: text.to_owned() })
        } else {
            Err(SecretError)
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", self.kind.prefix())
    }
}

/// The SHA-256 of a secret: what is sent at join and what the database holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SecretHash([u8; 32]);

impl fmt::Display for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SecretHash {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<SecretHash, &'static str> {
        const WHAT: &str = "a credential hash is a SHA-256 in 64 lower-case hexadecimal digits";
        let mut hash = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(WHAT);
        }
        for (index, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).map_err(|_| WHAT)?;
        }
        Ok(SecretHash(hash))
    }
}

text_form!(SecretHash, "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"; "^[0-9a-f]{64}$");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_survives_its_text_form_and_never_shows_in_debug() {
        let secret = Secret::from_random(SecretKind::Instance, &[0xab; 32]);
        assert_eq!(secret.reveal().parse(), Ok(secret.clone()));
        assert_eq!(format!("{secret:?}"), "gka_…");
        assert_eq!(secret.hash().to_string().parse(), Ok(secret.hash()));
    }

    #[test]
    fn the_hash_is_plain_sha_256() {
        // printf gka_0…0 | sha256sum, with 64 zeros
        let secret = Secret::from_random(SecretKind::Instance, &[0; 32]);
        let expected = Sha256::digest(format!("gka_{}", "0".repeat(64)));
        assert_eq!(secret.hash().to_string(), hex(&expected));
    }

    #[test]
    fn what_is_no_secret_is_refused_without_being_repeated() {
        for bad in ["", "gka_", "hunter2", &format!("gka_{}", "g".repeat(64)), &"é".repeat(40)] {
            assert_eq!(bad.parse::<Secret>(), Err(SecretError));
        }
    }
}
