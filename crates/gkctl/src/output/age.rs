//! Times as people say them: `3m ago`. One unit is enough; whoever needs more asks for JSON.

use std::time::Duration;

use gk_model::time::Timestamp;

/// `3m ago`, for tables. What is in the future by the server's clock happened `just now`.
pub(crate) fn ago(then: Timestamp, now: Timestamp) -> String {
    match split(now.since(then)) {
        (0, _) => "just now".to_owned(),
        (count, unit) => format!("{count}{unit} ago"),
    }
}

/// `3 h ago`, for sentences.
pub(crate) fn ago_in_words(then: Timestamp, now: Timestamp) -> String {
    match split(now.since(then)) {
        (0, _) => "just now".to_owned(),
        (count, unit) => format!("{count} {unit} ago"),
    }
}

fn split(span: Duration) -> (u64, &'static str) {
    let seconds = span.as_secs();
    match seconds {
        0..60 => (seconds, "s"),
        60..3_600 => (seconds / 60, "m"),
        3_600..172_800 => (seconds / 3_600, "h"),
        _ => (seconds / 86_400, "d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_one_unit() {
        let now = Timestamp::from_micros(1_700_000_000_000_000);
        let table = [
            (0, "just now", "just now"),
            (59, "59s ago", "59 s ago"),
            (60, "1m ago", "1 m ago"),
            (3_599, "59m ago", "59 m ago"),
            (3 * 3_600, "3h ago", "3 h ago"),
            (47 * 3_600, "47h ago", "47 h ago"),
            (48 * 3_600, "2d ago", "2 d ago"),
        ];
        for (seconds, short, long) in table {
            let then = now.minus(Duration::from_secs(seconds));
            assert_eq!((ago(then, now).as_str(), ago_in_words(then, now).as_str()), (short, long));
        }
        assert_eq!(ago(now.plus(Duration::from_hours(1)), now), "just now");
    }
}
