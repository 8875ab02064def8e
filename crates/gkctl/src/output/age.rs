//! Times as people say them: `3m ago`, and `2026-11-21 12:00:05` for what is long ago. One unit is enough for an age;
//! whoever needs microseconds asks for JSON. Every time is that of the zone
//! that this machine is set to, as what is typed is.

use std::sync::OnceLock;
use std::time::Duration;

use gk_model::time::{Timestamp, Zone};

/// The time zone of this machine, looked at once.
pub(crate) fn zone() -> &'static Zone {
    static ZONE: OnceLock<Zone> = OnceLock::new();
    ZONE.get_or_init(|| if cfg!(test) { Zone::utc() } else { Zone::of_machine() })
}

/// The oldest that is still an age in a table.
const LONG_AGO: Duration = Duration::from_hours(48);

/// `3m ago`, for tables; beyond 48 h the time itself. What is in the future by the server's clock happened `just now`.
pub(crate) fn ago(then: Timestamp, now: Timestamp) -> String {
    ago_until(LONG_AGO, then, now)
}

/// The same, with another span after which the time itself is shown.
pub(crate) fn ago_until(longest: Duration, then: Timestamp, now: Timestamp) -> String {
    if now.since(then) > longest {
        return exact(then);
    }
    match split(now.since(then)) {
        (0, _) => "just now".to_owned(),
        (count, unit) => format!("{count}{unit} ago"),
    }
}

/// `2026-11-21 12:00:05`, in a form that `--at` takes.
pub(crate) fn exact(time: Timestamp) -> String {
    time.in_zone(zone())
}

/// `2026-11-21 12:00:05 UTC`, for sentences.
pub(crate) fn moment(time: Timestamp) -> String {
    format!("{} {}", exact(time), zone().word(time))
}

/// `2026-11-21 12:00:05 UTC (3 h ago)`, for sentences.
pub(crate) fn exact_in_words(then: Timestamp, now: Timestamp) -> String {
    format!("{} ({})", moment(then), ago_in_words(then, now))
}

/// `3 h ago`, for sentences.
pub(crate) fn ago_in_words(then: Timestamp, now: Timestamp) -> String {
    match split(now.since(then)) {
        (0, _) => "just now".to_owned(),
        (count, unit) => format!("{count} {unit} ago"),
    }
}

/// `in 3h` or `in 1h 30m` for what is to come, to the nearest minute, so that what was just set to end in 3 hours does;
/// beyond 48 h to the nearest day. As [`ago`] for what has been.
pub(crate) fn around(then: Timestamp, now: Timestamp) -> String {
    if then <= now {
        return ago(then, now);
    }
    let seconds = then.since(now).as_secs();
    let minutes = (seconds + 30) / 60;
    match (minutes / 60, minutes % 60) {
        _ if seconds < 60 => format!("in {seconds}s"),
        (0, minutes) => format!("in {minutes}m"),
        (hours @ 1..48, 0) => format!("in {hours}h"),
        (hours @ 1..48, minutes) => format!("in {hours}h {minutes}m"),
        (hours, _) => format!("in {}d", (hours + 12) / 24),
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
            // (seconds, in a table, in a sentence)
            (0, "just now", "just now"),
            (59, "59s ago", "59 s ago"),
            (60, "1m ago", "1 m ago"),
            (3_599, "59m ago", "59 m ago"),
            (3 * 3_600, "3h ago", "3 h ago"),
            (47 * 3_600, "47h ago", "47 h ago"),
            (48 * 3_600, "2d ago", "2 d ago"),
            (48 * 3_600 + 1, "2023-11-12 22:13:19", "2 d ago"),
        ];
        for (seconds, short, long) in table {
            let then = now.minus(Duration::from_secs(seconds));
            assert_eq!((ago(then, now).as_str(), ago_in_words(then, now).as_str()), (short, long));
        }
        assert_eq!(ago(now.plus(Duration::from_hours(1)), now), "just now");
        let hour = Duration::from_hours(1);
        assert_eq!(ago_until(hour, now.minus(hour), now), "1h ago");
        assert_eq!(ago_until(hour, now.minus(Duration::from_mins(61)), now), "2023-11-14 21:12:20");
    }

    #[test]
    fn what_lies_ahead_is_told_to_the_minute() {
        let now = Timestamp::from_micros(1_700_000_000_000_000);
        let table = [
            (0, "just now"),
            (1, "in 1s"),
            (89, "in 1m"),
            (3_599, "in 1h"),
            (5_399, "in 1h 30m"),
            (7_199, "in 2h"),
            (48 * 3_600 - 1, "in 2d"),
            (90 * 86_400 - 5, "in 90d"),
        ];
        for (seconds, said) in table {
            assert_eq!(around(now.plus(Duration::from_secs(seconds)), now), said);
        }
        assert_eq!(around(now.minus(Duration::from_mins(1)), now), "1m ago");
    }

    #[test]
    fn an_exact_time_can_be_typed_again() {
        let time = Timestamp::from_micros(1_700_000_000_123_456);
        assert_eq!(exact(time), "2023-11-14 22:13:20");
        let typed = Timestamp::parse_from_people(&exact(time), time, zone()).unwrap();
        assert_eq!(typed, Timestamp::from_micros(1_700_000_000_000_000));
    }
}
