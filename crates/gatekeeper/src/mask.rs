//! Which values of options hold a secret, and how they are shown without it.

use gk_model::secret::Secret;
use gk_store::DatabaseUrl;

/// Stands where a secret was.
const MASK: &str = "***";

/// Whether a value holds a secret: a token, which belongs into a file of its own, or the password of a database.
pub(crate) fn is_secret(value: &str) -> bool {
    masked(value) != value
}

/// The value as everybody may see it.
pub(crate) fn masked(value: &str) -> String {
    let shown = without_password(value);
    // However it is written: the parser decodes what we would not look for.
    let holds_another = shown == value && value.parse().is_ok_and(|url: DatabaseUrl| url.has_password());
    if holds_another || Secret::is_begun_by(value) { MASK.to_owned() } else { shown }
}

/// Not by the parser of addresses: a password in one that it refuses is a password too.
fn without_password(value: &str) -> String {
    let Some((scheme, rest)) = value.split_once("://") else { return value.to_owned() };
    let (address, query) =
        rest.split_once('?').map_or((rest, None), |(address, query)| (address, Some(query)));
    // The last @, because one in a password may have been left as it is.
    let address = match address.rsplit_once('@') {
        Some((account, place)) => match account.split_once(':') {
            Some((name, _)) => format!("{name}:{MASK}@{place}"),
            None => address.to_owned(),
        },
        None => address.to_owned(),
    };
    let query = query.map(|query| {
        let parameters = query.split('&').map(|parameter| match parameter.split_once('=') {
            Some((name, _)) if name.to_ascii_lowercase().contains("password") => format!("{name}={MASK}"),
            _ => parameter.to_owned(),
        });
        format!("?{}", parameters.collect::<Vec<_>>().join("&"))
    });
    format!("{scheme}://{address}{}", query.unwrap_or_default())
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
            ("postgres:///gk?user=a&pass%77ord=sesame", "***"),
            ("gkt_0123456789", "***"),
            ("[2001:db8::1]:5000", "[2001:db8::1]:5000"),
        ];
        for (value, shown) in table {
            assert_eq!(masked(value), shown);
            assert_eq!(is_secret(value), value != shown, "{value}");
        }
    }
}
