//! What makes a repeated request the same request, so that it takes effect once (rule 6 of the domain).

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The header that carries an [`IdempotencyKey`](crate::text::IdempotencyKey).
pub const KEY_HEADER: &str = "idempotency-key";

/// The header of an answer that was given before.
pub const REPLAYED_HEADER: &str = "idempotency-replayed";

/// How long an answer is kept under its key.
pub const KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// The SHA-256 of a request. What is stored beside a key, so that another request under the same key is noticed, while
/// the request itself is not kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a request to this route, by its values rather than by its bytes.
    ///
    /// A field that is null, false or an empty list counts as left out. So it does not matter which of these a client
    /// writes, nor whether the server learnt of another optional field between the request and its repetition.
    pub fn of(method: &str, route: &str, request: &impl Serialize) -> Fingerprint {
        let mut canonical = serde_json::to_value(request).expect("wire types have string keys");
        strip(&mut canonical);
        Fingerprint(Sha256::digest(format!("{method} {route}\n{canonical}")).into())
    }
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(strip);
            fields.retain(|_, field| !is_left_out(field));
            fields.sort_keys();
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

fn is_left_out(field: &Value) -> bool {
    match field {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Number(_) | Value::String(_) => false,
    }
}

/// Hexadecimal.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_is_told_from_another_by_its_values() {
        let of = |request: Value| Fingerprint::of("POST", "/v1/reservations", &request);
        let request = json!({"instance": "web-1", "port": 80, "facts": {"os": "Debian"}});
        let same = [
            json!({"port": 80, "facts": {"os": "Debian"}, "instance": "web-1"}),
            json!({"instance": "web-1", "port": 80, "facts": {"os": "Debian", "kernel": null, "nets": []}}),
            json!({"instance": "web-1", "port": 80, "facts": {"os": "Debian"}, "adopt": false, "busy": []}),
        ];
        for request_again in same {
            assert_eq!(of(request_again.clone()), of(request.clone()), "{request_again}");
        }
        let other = [
            json!({"instance": "web-2", "port": 80, "facts": {"os": "Debian"}}),
            json!({"instance": "web-1", "port": 81, "facts": {"os": "Debian"}}),
            json!({"instance": "web-1", "port": 80, "facts": {"os": "Alpine"}}),
            json!({"instance": "web-1", "port": 80, "facts": {"os": "Debian"}, "adopt": true}),
            json!({"instance": "web-1", "port": 80, "facts": {"os": "Debian"}, "busy": ["1"]}),
            json!({"instance": "web-1", "port": 80, "facts": {"os": "Debian"}, "busy": [null]}),
        ];
        for another in other {
            assert_ne!(of(another.clone()), of(request.clone()), "{another}");
        }
        assert_ne!(Fingerprint::of("POST", "/v1/instances", &request), of(request.clone()));
        assert_ne!(Fingerprint::of("PUT", "/v1/reservations", &request), of(request));
    }

    #[test]
    fn the_text_form_is_that_of_sha256() {
        // printf 'POST /x\n{"a":1}' | sha256sum
        let expected = Sha256::digest("POST /x\n{\"a\":1}");
        let text = Fingerprint::of("POST", "/x", &json!({"a": 1})).to_string();
        assert_eq!(text, expected.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    }
}
