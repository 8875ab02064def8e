//! The text form of values, declared once: on the wire, in queries, on the command line and in the database.

/// JSON by `Display` and `FromStr`; by `as_str`, without formatting, where there is `str` before the name.
macro_rules! json_by_text {
    ($name:ident) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        $crate::text_form::json_from_text!($name);
    };
    (str $name:ident) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        $crate::text_form::json_from_text!($name);
    };
}

pub(crate) use json_by_text;

macro_rules! json_from_text {
    ($name:ident) => {
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text: String = serde::Deserialize::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(crate) use json_from_text;

/// Derives the wire form of a type from its `Display` (or `as_str`, as above) and `FromStr`: JSON by serde, and the
/// OpenAPI schema, a string with the given example (and format or pattern, where there is one). So a value has one text form, in
/// JSON, in queries, on the command line and in the database.
macro_rules! text_form {
    (str $name:ident, $example:literal) => {
        $crate::text_form::json_by_text!(str $name);
        $crate::text_form::text_schema!($name, $example);
    };
    ($name:ident, $example:literal $(, $format:ident)? $(; $pattern:expr)?) => {
        $crate::text_form::json_by_text!($name);
        $crate::text_form::text_schema!($name, $example $(, $format)? $(; $pattern)?);
    };
}

pub(crate) use text_form;

macro_rules! text_schema {
    ($name:ident, $example:literal $(, $format:ident)? $(; $pattern:expr)?) => {

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::Type::String)
                    $(.format(Some(utoipa::openapi::SchemaFormat::KnownFormat(
                        utoipa::openapi::KnownFormat::$format,
                    ))))?
                    $(.pattern(Some($pattern)))?
                    .examples([$example])
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {}
    };
}

pub(crate) use text_schema;

/// A word outside a closed list of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` is not {what}: use {known}")]
pub struct WordError {
    word: String,
    what: &'static str,
    known: String,
}

impl WordError {
    pub(crate) fn new(word: &str, what: &'static str, known: &[&str]) -> WordError {
        let word = word.chars().take(40).flat_map(char::escape_debug).collect();
        WordError { word, what, known: known.join(", ") }
    }
}

/// Declares an enum whose values are words: one list gives JSON, queries, command line, database and OpenAPI.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$value_doc:meta])* $value:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$value_doc])* $value,)+
        }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [$name] = &[$($name::$value),+];

            /// The word for it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($name::$value => $word,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::text_form::WordError;

            fn from_str(text: &str) -> Result<$name, Self::Err> {
                match text {
                    $($word => Ok($name::$value),)+
                    _ => Err($crate::text_form::WordError::new(text, $what, &[$($word),+])),
                }
            }
        }

        $crate::text_form::json_by_text!(str $name);

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::Type::String)
                    .enum_values(Some([$($word),+]))
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {}
    };
}

pub(crate) use words;
