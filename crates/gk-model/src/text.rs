//! Words that people and programs give to things: names, labels of origin, notes.
//!
//! What *people* write is refused when it holds control characters, is too long, or has no sensible shape. What an
//! agent *observed* (a process may call itself anything) is never refused: it is escaped and shortened instead.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::text_form::text_form;

/// Why a text cannot be the name it was meant to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was written.
    #[error("{what} is empty")]
    Empty {
        /// What was being named.
        what: &'static str,
    },
    /// More than the allowed number of characters.
    #[error("{what} is too long: {length} characters, at most {most}")]
    TooLong {
        /// What was being named.
        what: &'static str,
        /// How long it was, in characters.
        length: usize,
        /// How long it may be, in characters.
        most: usize,
    },
    /// A character that is not allowed there.
    #[error("{what} may not contain {character:?}: use {allowed}")]
    Character {
        /// What was being named.
        what: &'static str,
        /// The first offending character.
        character: char,
        /// What is allowed, in words.
        allowed: &'static str,
    },
    /// An instance name that reads like an instance id.
    #[error("an instance name may not look like an id: `{0}` is a UUID")]
    LooksLikeAnId(String),
}

fn check(
    text: &str,
    what: &'static str,
    most: usize,
    allowed: &'static str,
    accepts: impl Fn(char) -> bool,
) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty { what });
    }
    // Nearly every text is ASCII, and is read from the database much more often than written by anybody.
    let length = if text.is_ascii() { text.len() } else { text.chars().count() };
    if length > most {
        return Err(NameError::TooLong { what, length, most });
    }
    match text.chars().find(|character| !accepts(*character)) {
        Some(character) => Err(NameError::Character { what, character, allowed }),
        None => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $example:literal, $what:literal, $most:literal, $allowed:literal, $accepts:expr, $extra:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check(text, $what, $most, $allowed, $accepts)?;
                let extra: fn(&str) -> Result<(), NameError> = $extra;
                extra(text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        $crate::text_form::json_by_text!(str $name);

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::Type::String)
                    .min_length(Some(1))
                    .max_length(Some($most))
                    .pattern(pattern($allowed))
                    .examples([$example])
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {}
    };
}

/// What is said to be allowed, as the pattern of a schema; none where no pattern says it shortly.
fn pattern(allowed: &str) -> Option<&'static str> {
    match allowed {
        "letters, digits, `.`, `-` and `_`" => Some("^[A-Za-z0-9._-]+$"),
        "letters, digits and any of `.-_/:@+`" => Some("^[A-Za-z0-9._/:@+-]+$"),
        "visible ASCII characters" => Some("^[!-~]+$"),
        _ => None,
    }
}

/// Control characters, and those that reorder or hide what a terminal shows.
fn is_deceptive(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn is_host_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '.' | '-' | '_')
}

fn is_word_character(character: char) -> bool {
    is_host_character(character) || matches!(character, '/' | ':' | '@' | '+')
}

fn refuse_uuid(text: &str) -> Result<(), NameError> {
    match uuid::Uuid::try_parse(text) {
        Ok(_) => Err(NameError::LooksLikeAnId(text.to_owned())),
        Err(_) => Ok(()),
    }
}

name! {
    /// The name of an instance, unique among the joined ones without regard to case; never parses as a UUID.
    InstanceName, "web-1", "an instance name", 253, "letters, digits, `.`, `-` and `_`", is_host_character, refuse_uuid
}
name! {
    /// What a reservation is for, such as `billing-api`.
    ServiceName, "billing-api", "a service name", 100, "letters, digits and any of `.-_/:@+`", is_word_character, |_| Ok(())
}
name! {
    /// Which of a service's ports this is, such as `http` or `grpc`.
    PortName, "http", "a port name", 63, "letters, digits and any of `.-_/:@+`", is_word_character, |_| Ok(())
}
name! {
    /// The name of a pool.
    PoolName, "default", "a pool name", 63, "letters, digits, `.`, `-` and `_`", is_host_character, |_| Ok(())
}
name! {
    /// Who a token stands for; stable while tokens are rotated.
    Subject, "local:root", "a subject", 300, "letters, digits and any of `.-_/:@+`", is_word_character, |_| Ok(())
}
name! {
    /// A remark by a person, one line.
    Note, "moved from web-2", "a note", 1000, "anything but control characters", |character| !is_deceptive(character), |_| Ok(())
}

name! {
    /// What kind of thing a label tells, such as `env`.
    LabelKey, "env", "a label's key", 63, "letters, digits and any of `.-_/`", |character| is_host_character(character) || character == '/', |_| Ok(())
}
name! {
    /// What a label says, such as `prod`.
    LabelValue, "prod", "a label's value", 63, "letters, digits and any of `.-_/:@+`", is_word_character, |_| Ok(())
}
name! {
    /// What is expected of an observed text, such as the name of a process; compared as it is written.
    Expected, "nginx", "an expectation", 1024, "anything but control characters", |character| !is_deceptive(character), |_| Ok(())
}
name! {
    /// The name of an ignore rule.
    IgnoreName, "sshd", "the name of an ignore rule", 63, "letters, digits, `.`, `-` and `_`", is_host_character, |_| Ok(())
}
name! {
    /// What a client calls a request, so that it can send it again and have it take effect once.
    IdempotencyKey, "0190163d-8694-739b-aea5-966c26f8ad91", "an idempotency key", 200, "visible ASCII characters", |character| character.is_ascii_graphic(), |_| Ok(())
}

impl InstanceName {
    /// The nearest valid name to a host name that may not be one: foreign characters become `-`.
    pub fn from_host_name(host_name: &str) -> InstanceName {
        let replaced: String =
            host_name.chars().take(253).map(|c| if is_host_character(c) { c } else { '-' }).collect();
        replaced.parse().unwrap_or_else(|_| InstanceName("unnamed".to_owned()))
    }
}

impl ServiceName {
    /// The nearest valid name to what was observed, such as a unit or a program: foreign characters become `-`. None
    /// where nothing is left of it.
    pub fn from_observed(text: &str) -> Option<ServiceName> {
        let replaced: String =
            text.chars().map(|c| if is_word_character(c) { c } else { '-' }).take(100).collect();
        replaced.trim_matches('-').parse().ok()
    }
}

/// Text that an agent saw on its machine: a process name, an executable's path, a systemd unit.
///
/// Control characters (NUL and ESC among them) are escaped as `\u{1b}`, and at most [`Observed::MAX_CHARS`] characters
/// are kept, so that no process name can break a terminal, a log or a database.
///
/// Copies share one text: the same few names and paths are in every listener of a process, several times over.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Observed(Arc<str>);

impl Observed {
    /// How long an observed text may be; one that was cut ends with `…`.
    pub const MAX_CHARS: usize = 1024;

    /// Takes any text, escaping and shortening as needed. What was taken before is taken as it is: otherwise agent and
    /// server would not mean the same.
    pub fn new(text: &str) -> Observed {
        let mut escaped = String::with_capacity(text.len().min(Self::MAX_CHARS));
        for character in text.chars().take(Self::MAX_CHARS + 1) {
            if is_deceptive(character) {
                escaped.extend(character.escape_unicode());
            } else {
                escaped.push(character);
            }
        }
        if escaped.chars().count() > Self::MAX_CHARS {
            let cut = escaped.char_indices().nth(Self::MAX_CHARS - 1).map_or(escaped.len(), |(cut, _)| cut);
            escaped.truncate(cut);
            escaped.push('…');
        }
        Observed(escaped.into())
    }

    /// The escaped text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<&str> for Observed {
    fn from(text: &str) -> Observed {
        Observed::new(text)
    }
}

impl FromStr for Observed {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Observed, Self::Err> {
        Ok(Observed::new(text))
    }
}

text_form!(str Observed, "nginx");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_refuse_what_no_name_should_hold() {
        for bad in ["", "a b", "a\0b", "tab\t", "ü", &"x".repeat(254), "0190163d-8694-739b-aea5-966c26f8ad91"]
        {
            assert!(bad.parse::<InstanceName>().is_err(), "{bad:?} was taken for an instance name");
        }
        assert_eq!("web-1.example".parse::<InstanceName>().unwrap().as_str(), "web-1.example");
        assert_eq!("team/billing@v2".parse::<ServiceName>().unwrap().as_str(), "team/billing@v2");
        assert!("line\nbreak".parse::<Note>().is_err());
        assert!("back\u{202e}wards".parse::<Note>().is_err());
        assert!("Grüße aus Köln".parse::<Note>().is_ok());
    }

    #[test]
    fn a_key_is_one_to_two_hundred_visible_characters() {
        for good in ["x", "8e03978e-40d5", "~!#\"{}", &"k".repeat(200)] {
            assert_eq!(good.parse::<IdempotencyKey>().unwrap().as_str(), good);
        }
        for bad in ["", "two words", "tab\t", "é", "del\x7f", &"k".repeat(201)] {
            assert!(bad.parse::<IdempotencyKey>().is_err(), "{bad:?} was taken for a key");
        }
    }

    #[test]
    fn any_host_name_becomes_an_instance_name() {
        assert_eq!(InstanceName::from_host_name("my host!").as_str(), "my-host-");
        assert_eq!(InstanceName::from_host_name("").as_str(), "unnamed");
        assert_eq!(InstanceName::from_host_name(&"ä".repeat(999)).as_str().len(), 253);
    }

    #[test]
    fn what_was_observed_becomes_a_service_name_where_anything_is_left_of_it() {
        let table = [
            ("nginx", Some("nginx")),
            ("getty@tty1", Some("getty@tty1")),
            ("my app (v2)", Some("my-app--v2")),
            ("ä", None),
            ("", None),
        ];
        for (seen, name) in table {
            assert_eq!(ServiceName::from_observed(seen), name.map(|name| name.parse().unwrap()), "{seen}");
        }
        assert_eq!(ServiceName::from_observed(&"x".repeat(999)).unwrap().as_str().len(), 100);
    }

    #[test]
    fn observed_text_is_escaped_once_and_bounded() {
        assert_eq!(Observed::new("exe\u{202e}gpj").as_str(), "exe\\u{202e}gpj", "nothing is shown backwards");
        let observed = Observed::new("\x1b[31mred\0");
        assert_eq!(observed.as_str(), "\\u{1b}[31mred\\u{0}");
        assert_eq!(Observed::new(observed.as_str()), observed, "escaping twice changes nothing");
        assert_eq!(Observed::new(&"x".repeat(10_000_000)).as_str().chars().count(), 1024);
        let whole = "x".repeat(1024);
        assert_eq!(Observed::new(&whole).as_str(), whole);
        // Escapes make a text longer, and one that was cut may end within one.
        for count in 165..180 {
            let taken = Observed::new(&format!("{}\u{1b}", "\r".repeat(count)));
            assert_eq!(Observed::new(taken.as_str()), taken, "{count}");
            assert!(taken.as_str().chars().count() <= 1024);
        }
    }
}
