//! Which values of options hold a secret, and how they are shown without it.

use std::borrow::Cow;

use gk_model::secret::Secret;

/// Stands where a secret was.
const MASK: &str = "***";

/// Whether a value holds a secret: a token, which belongs into a file of its own, or the password of a database.
pub(crate) fn is_secret(value: &str) -> bool {
    masked(value) != value
}

/// The value as everybody may see it.
pub(crate) fn masked(value: &str) -> String {
    match without_password(value) {
        Some(shown) => shown,
        None if Secret::is_begun_by(value) => MASK.to_owned(),
        None => value.to_owned(),
    }
}

/// The address with its passwords masked, if any was found (it may have been masked before). Not by the parser of
/// addresses: a password in one that it refuses is a password too.
fn without_password(value: &str) -> Option<String> {
    let (scheme, rest) = value.split_once("://")?;
    let (address, query) =
        rest.split_once('?').map_or((rest, None), |(address, query)| (address, Some(query)));
    // The last @, because one in a password may have been left as it is.
    let account_and_place = address.rsplit_once('@').and_then(|(account, place)| {
        let (name, _password) = account.split_once(':')?;
        Some(format!("{name}:{MASK}@{place}"))
    });
    let parameters: Vec<_> =
        query.into_iter().flat_map(|query| query.split('&')).map(mask_parameter).collect();
    let found =
        account_and_place.is_some() || parameters.iter().any(|parameter| matches!(parameter, Cow::Owned(_)));
    let query = query.map(|_| format!("?{}", parameters.join("&"))).unwrap_or_default();
    found.then(|| format!("{scheme}://{}{query}", account_and_place.as_deref().unwrap_or(address)))
}

/// Owned if it is a password.
fn mask_parameter(parameter: &str) -> Cow<'_, str> {
    match parameter.split_once('=') {
        Some((name, _)) if decoded(name).contains("password") => format!("{name}={MASK}").into(),
        _ => parameter.into(),
    }
}

/// In small letters, and each `%xx` as what it stands for: whoever parses the address decodes it, too.
fn decoded(name: &str) -> String {
    let (mut text, mut rest) = (String::new(), name);
    while let Some((before, after)) = rest.split_once('%') {
        let byte = after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        text.push_str(before);
        text.push(byte.map_or('%', char::from));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    (text + rest).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_or_token_is_masked_and_nothing_else() {
        let table = [
            ("127.0.0.1:5000", "127.0.0.1:5000"),
            ("postgres://ada@db/gk?sslmode=require", "postgres://ada@db/gk?sslmode=require"),
            ("postgres://ada:sesame@db:5432/gk", "postgres://ada:***@db:5432/gk"),
            ("mysql://ada:se:s@me@db/gk", "mysql://ada:***@db/gk"),
            ("postgres:///gk?user=a&password=sesame&x=y", "postgres:///gk?user=a&password=***&x=y"),
            ("postgres:///gk?user=a&pass%77ord=sesame", "postgres:///gk?user=a&pass%77ord=***"),
            ("postgres:///gk?%50%41SSWORD=sesame&a=%", "postgres:///gk?%50%41SSWORD=***&a=%"),
            ("postgres:///gk?%=%zz&%e4=1&x%5=2", "postgres:///gk?%=%zz&%e4=1&x%5=2"),
            ("gkt_0123456789", "***"),
            ("[2001:db8::1]:5000", "[2001:db8::1]:5000"),
        ];
        for (value, shown) in table {
            assert_eq!(masked(value), shown);
            assert_eq!(is_secret(value), value != shown, "{value}");
            assert_eq!(masked(shown), shown, "masked twice");
        }
    }
}
