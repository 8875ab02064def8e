//! From serde's errors to sentences for people: the field, what is wrong with it, and the nearest known name.
//!
//! serde says these things only in prose. Its phrases are fixed by the format of its generated code and pinned by the
//! tables below; a phrase that is not recognised is passed on as it is.

use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// How much of a message is passed on: a client that sends a megabyte as a name does not get it back.
const MOST_CHARS: usize = 300;

/// How alike two names must be for one to be suggested for the other; 1 is equal.
const ALIKE: f64 = 0.75;

/// Decodes a JSON text.
pub(crate) fn from_json<T: DeserializeOwned>(text: &[u8]) -> Result<T, ApiError> {
    // serde would also read a struct from an array of its fields in order, which nobody means.
    if text.trim_ascii_start().starts_with(b"[") {
        return Err(ApiError::malformed(None, "the body must be a JSON object, not an array".to_owned()));
    }
    // To know the path at each moment costs half as much again. So only what is refused is read with it.
    serde_json::from_slice(text).or_else(|_| from_json_with_path(text))
}

fn from_json_with_path<T: DeserializeOwned>(text: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        match error.inner() {
            broken if broken.is_data() => explain(&path, &without_position(&broken.to_string())),
            broken => {
                ApiError::malformed(None, format!("the body is not JSON: {}", short(&broken.to_string())))
            }
        }
    })?;
    json.end()
        .map_err(|error| ApiError::malformed(None, format!("there is more than one JSON value: {error}")))?;
    Ok(value)
}

/// Decodes the query of a URL.
pub(crate) fn from_query<T: DeserializeOwned>(query: &str) -> Result<T, ApiError> {
    let pairs = || form_urlencoded::parse(query.as_bytes());
    if let Some((name, _)) = pairs().find(|(_, value)| value.chars().any(char::is_control)) {
        let what = format!("parameter `{}` holds a control character", short(&name));
        return Err(ApiError::malformed(Some(short(&name)), what));
    }
    serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(pairs()))
        .map_err(|error| explain(&error.path().to_string(), &error.inner().to_string()))
}

fn explain(path: &str, message: &str) -> ApiError {
    if let Some(rest) = message.strip_prefix("unknown field ") {
        return unknown_field(path, rest);
    }
    if let Some(name) = message.strip_prefix("missing field ").and_then(|rest| quoted(rest).next()) {
        let field = within(path, name);
        return ApiError::malformed(Some(field.clone()), format!("field `{field}` is missing"));
    }
    if let Some(name) = message.strip_prefix("duplicate field ").and_then(|rest| quoted(rest).next()) {
        let field = within(path, name);
        return ApiError::malformed(Some(field.clone()), format!("field `{field}` is given twice"));
    }
    match path {
        "." | "" => ApiError::malformed(None, short(message)),
        _ => ApiError::malformed(Some(short(path)), format!("`{}`: {}", short(path), short(message))),
    }
}

/// `rest` is what serde writes after "unknown field ": the name, then the known ones, each in backticks.
fn unknown_field(path: &str, rest: &str) -> ApiError {
    let (name, known) = match rest.split_once(", expected ") {
        Some((name, known)) => (name.trim_matches('`'), known),
        None => (rest.split('`').nth(1).unwrap_or(rest), ""),
    };
    let nearest = quoted(known)
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|one, other| one.0.total_cmp(&other.0));
    let advice = match nearest {
        Some((_, candidate)) => format!("did you mean `{candidate}`?"),
        None if known.is_empty() => "there are none".to_owned(),
        None => format!("known are {}", quoted(known).collect::<Vec<_>>().join(", ")),
    };
    // The path of an unknown field ends in the field itself.
    let parent = path.strip_suffix(name).map_or(path, |parent| parent.trim_end_matches('.'));
    let field = short(&within(parent, name));
    ApiError::malformed(Some(field.clone()), format!("unknown field `{field}`: {advice}"))
}

/// Everything between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn within(parent: &str, name: &str) -> String {
    match parent {
        "." | "" | "?" => name.to_owned(),
        _ => format!("{parent}.{name}"),
    }
}

/// Without the " at line 1 column 23" of `serde_json`: the field says more.
fn without_position(message: &str) -> String {
    message.rsplit_once(" at line ").map_or(message, |(message, _)| message).to_owned()
}

fn short(text: &str) -> String {
    let mut short: String =
        text.chars().filter(|character| !character.is_control()).take(MOST_CHARS).collect();
    if text.chars().nth(MOST_CHARS).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use gk_model::instance::InstancePatch;
    use gk_model::query::PortQuery;
    use gk_model::reservation::{RenewRequest, ReserveRequest};

    use super::*;

    fn refusal<T>(decoded: Result<T, ApiError>) -> (Option<String>, String) {
        match decoded {
            Err(ApiError::Malformed { field, what }) => (field, what),
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("was taken"),
        }
    }

    #[test]
    fn bad_bodies_name_the_field_and_the_way_out() {
        let table = [
            (r#"{"instance":"a","prot":80}"#, Some("prot"), "unknown field `prot`: did you mean `port`?"),
            (
                r#"{"instance":"a","servise":"x"}"#,
                Some("servise"),
                "unknown field `servise`: did you mean `service`?",
            ),
            (
                r#"{"instance":"a","zzz":1}"#,
                Some("zzz"),
                "unknown field `zzz`: known are instance, on, protocol, port, pool, service, name, names, note, labels, expect, busy, adopt, scope, count, ttl_seconds, renew_while_listening, ensure, dry_run",
            ),
            (
                r#"{"instance":"a","port":0}"#,
                Some("port"),
                "`port`: `0` is not a port: a port is a number from 1 to 65535",
            ),
            (
                r#"{"instance":"a","port":"80"}"#,
                Some("port"),
                "`port`: invalid type: string \"80\", expected a port, which is a number from 1 to 65535",
            ),
            (
                r#"{"instance":"no spaces"}"#,
                Some("instance"),
                "`instance`: an instance name may not contain ' ': use letters, digits, `.`, `-` and `_`",
            ),
            (
                r#"{"instance":"a","busy":["1","9-2"]}"#,
                Some("busy[1]"),
                "`busy[1]`: `9-2` runs backwards: write the lower port first, as in 2-9",
            ),
            (
                r#"{"instance":"a","protocol":"sctp"}"#,
                Some("protocol"),
                "`protocol`: `sctp` is not a protocol: use tcp, udp, both",
            ),
            (r#"{"instance":"a","instance":"b"}"#, Some("instance"), "field `instance` is given twice"),
        ];
        for (body, field, what) in table {
            let expected = (field.map(str::to_owned), what.to_owned());
            assert_eq!(refusal(from_json::<ReserveRequest>(body.as_bytes())), expected, "{body}");
        }
        let missing = (Some("ttl_seconds".to_owned()), "field `ttl_seconds` is missing".to_owned());
        assert_eq!(refusal(from_json::<RenewRequest>(b"{}")), missing);
    }

    #[test]
    fn what_is_no_json_object_says_where_it_breaks() {
        let table = [
            ("[]", "the body must be a JSON object, not an array"),
            ("7", "invalid type: integer `7`, expected struct ReserveRequest"),
            ("{\"instance\":\"a\",\n oops}", "the body is not JSON: key must be a string at line 2 column 2"),
            ("", "the body is not JSON: EOF while parsing a value at line 1 column 0"),
            (
                r#"{"instance":"a"} {}"#,
                "there is more than one JSON value: trailing characters at line 1 column 18",
            ),
        ];
        for (body, what) in table {
            let expected = (None, what.to_owned());
            assert_eq!(refusal(from_json::<ReserveRequest>(body.as_bytes())), expected, "{body}");
        }
    }

    #[test]
    fn a_single_known_field_is_suggested_too() {
        let expected = (Some("nam".to_owned()), "unknown field `nam`: did you mean `name`?".to_owned());
        assert_eq!(refusal(from_json::<InstancePatch>(br#"{"nam":"x"}"#)), expected);
    }

    #[test]
    fn bad_queries_name_the_parameter_and_the_way_out() {
        let table = [
            ("prot=80", Some("prot"), "unknown field `prot`: did you mean `port`?"),
            ("proto=tcp", Some("proto"), "unknown field `proto`: did you mean `protocol`?"),
            ("port=0", Some("port"), "`port`: `0` is not a port: a port is a number from 1 to 65535"),
            (
                "state=busy",
                Some("state"),
                "`state`: `busy` is not a port state: use free, reserved, in_use, conflict, unreserved",
            ),
            ("limit=many", Some("limit"), "`limit`: a page has 1 to 1000 items"),
            ("limit=0", Some("limit"), "`limit`: a page has 1 to 1000 items"),
            ("q=a%00b", Some("q"), "parameter `q` holds a control character"),
        ];
        for (query, field, what) in table {
            let expected = (field.map(str::to_owned), what.to_owned());
            assert_eq!(refusal(from_query::<PortQuery>(query)), expected, "{query}");
        }
    }

    #[test]
    fn good_queries_are_read() {
        let query: PortQuery = from_query("port=8000-8009&protocol=udp&q=a+b%2Fc&limit=5").unwrap();
        assert_eq!(query.port.unwrap().count(), 10);
        assert_eq!((query.q.as_deref(), query.limit()), (Some("a b/c"), 5));
        assert_eq!(from_query::<PortQuery>("").unwrap(), PortQuery::default());
    }

    #[test]
    fn a_huge_name_does_not_come_back() {
        let body = format!(r#"{{"instance":"a","{}":1}}"#, "x".repeat(1_000_000));
        let (field, what) = refusal(from_json::<ReserveRequest>(body.as_bytes()));
        assert!(field.unwrap().len() < 400 && what.len() < 800);
    }
}
