//! Pins: the public key of a certificate by its fingerprint, so that a machine knows its server's authority without any
//! other one having to vouch for it.
//!
//! A pin is the SHA-256 of the key as certificates hold it (`SubjectPublicKeyInfo`, DER). It is no secret, and it stays
//! the same when a certificate is renewed for the same key.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::text_form::text_form;

/// The SHA-256 of a public key. Written `sha256:` and 64 hexadecimal digits; base64url is read, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pin([u8; 32]);

/// A text that is no pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pin is `sha256:` and 64 hexadecimal digits; the server prints its own at start")]
pub struct PinError;

const PREFIX: &str = "sha256:";

impl Pin {
    /// The pin of a key: `SubjectPublicKeyInfo` in DER.
    pub fn of_public_key(der: &[u8]) -> Pin {
        Pin(Sha256::digest(der).into())
    }

    /// The first eight digits, to tell keys apart in names and logs; no proof of anything.
    pub fn short(&self) -> String {
        self.0[..4].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Pin, PinError> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(PinError)?;
        let bytes = if digits.len() == 64 { from_hex(digits) } else { from_base64(digits) };
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Pin).ok_or(PinError)
    }
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let values: Option<Vec<u32>> = digits.chars().map(|digit| digit.to_digit(16)).collect();
    Some(values?.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
}

/// Both alphabets, with or without the `=` at the end, as other programs print them.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let text = text.strip_suffix('=').unwrap_or(text);
    // 43 digits are 258 bits; the two at the end carry nothing and have to say so.
    if text.len() != 43 {
        return None;
    }
    let (mut bytes, mut bits, mut held) = (Vec::with_capacity(32), 0u32, 0);
    for digit in text.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'-' | b'+' => 62,
            b'_' | b'/' => 63,
            _ => return None,
        };
        (bits, held) = (bits << 6 | u32::from(value), held + 6);
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    (bits == 0).then_some(bytes)
}

text_form!(Pin, "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08");

#[cfg(test)]
mod tests {
    use super::*;

    /// The SHA-256 of `test`, by other programs.
    const HEX: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn a_pin_is_read_as_it_is_written_and_as_others_write_it() {
        let pin = Pin::of_public_key(b"test");
        assert_eq!(pin.to_string(), HEX);
        for text in [
            HEX,
            " sha256:9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08\n",
            "sha256:n4bQgYhMfWWaL-qgxVrQFaO_TxsrC4Is0V1sFbDwCgg",
            "sha256:n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=",
        ] {
            assert_eq!(text.parse(), Ok(pin), "{text}");
        }
        assert_eq!(pin.short(), "9f86d081");
    }

    #[test]
    fn what_is_no_pin_is_refused() {
        for bad in [
            "",
            "sha256:",
            &HEX[7..],
            &HEX[..70],
            "sha1:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "sha256:xf86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "sha256:n4bQgYhMfWWaL-qgxVrQFaO_TxsrC4Is0V1sFbDwCgh",
            "sha256:n4bQgYhMfWWaL-qgxVrQFaO_TxsrC4Is0V1sFbDwC*g",
            "sha256:ää86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        ] {
            assert_eq!(bad.parse::<Pin>(), Err(PinError), "{bad}");
        }
    }
}
