//! A value, or the wish to have none: what an empty text says, as in `--note ''`.

use std::str::FromStr;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OrNone<T>(pub(crate) Option<T>);

impl<T: FromStr> FromStr for OrNone<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<OrNone<T>, T::Err> {
        if text.is_empty() { Ok(OrNone(None)) } else { text.parse().map(|value| OrNone(Some(value))) }
    }
}
