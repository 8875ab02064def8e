//! Points in time: microseconds since the Unix epoch, written as RFC 3339 in UTC.
//!
//! Everything that depends on time takes `now` as an argument. Only the edges of a process read the clock, through
//! [`Timestamp::from_clock`].

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::text_form::{json_from_text, text_schema};

/// A point in time with microsecond resolution. Text form: `2026-11-22T20:04:05.000000Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// A text that is no point in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a time: write it as {forms}")]
pub struct TimestampError {
    text: String,
    forms: &'static str,
}

impl TimestampError {
    fn new(text: &str, forms: &'static str) -> TimestampError {
        TimestampError { text: text.chars().take(40).flat_map(char::escape_debug).collect(), forms }
    }
}

impl Timestamp {
    /// What this machine's clock says. For the edges only.
    pub fn from_clock() -> Timestamp {
        Timestamp(jiff::Timestamp::now().as_microsecond())
    }

    /// From microseconds since the Unix epoch, clamped to years -9999 to 9999 so that it can always be written.
    pub fn from_micros(micros: i64) -> Timestamp {
        let (least, most) = (jiff::Timestamp::MIN.as_microsecond(), jiff::Timestamp::MAX.as_microsecond());
        Timestamp(micros.clamp(least, most))
    }

    /// Microseconds since the Unix epoch.
    pub fn as_micros(self) -> i64 {
        self.0
    }

    /// Later by `span`; stops at the end of the calendar.
    #[must_use]
    pub fn plus(self, span: Duration) -> Timestamp {
        Timestamp::from_micros(self.0.saturating_add(micros(span)))
    }

    /// Earlier by `span`; stops at the beginning of the calendar.
    #[must_use]
    pub fn minus(self, span: Duration) -> Timestamp {
        Timestamp::from_micros(self.0.saturating_sub(micros(span)))
    }

    /// How long after `earlier` this is; zero when it is before.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Reads what people type: RFC 3339, a date or a date and time in their own time zone, or an age (`90s`, `30m`, `2h`,
    /// `7d`, also as `-2h` or `2h ago`) counted back from `now`.
    ///
    /// # Errors
    /// [`TimestampError`] with the accepted forms.
    pub fn parse_from_people(text: &str, now: Timestamp, zone: &Zone) -> Result<Timestamp, TimestampError> {
        let age = text.strip_suffix(" ago").or_else(|| text.strip_prefix('-')).unwrap_or(text);
        parse_span(age)
            .map(|age| now.minus(age))
            .or_else(|| text.parse().ok())
            .or_else(|| zone.parse(text))
            .ok_or_else(|| {
                TimestampError::new(
                    text,
                    "an age like 30m, 2h or 7d, or as 2026-11-21, 2026-11-21 12:00 or 2026-11-21T12:00:00Z",
                )
            })
    }

    /// `2026-11-21 12:00:05` in a time zone, in a form that [`Timestamp::parse_from_people`] takes.
    pub fn in_zone(self, zone: &Zone) -> String {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(instant) => instant.to_zoned(zone.0.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
            Err(_) => self.to_string(),
        }
    }
}

/// By what people tell the time.
#[derive(Clone, Debug)]
pub struct Zone(jiff::tz::TimeZone);

impl Zone {
    /// As everybody's clock is compared.
    pub fn utc() -> Zone {
        Zone(jiff::tz::TimeZone::UTC)
    }

    /// What this machine is set to; UTC where it is set to nothing. For the edges only.
    pub fn of_machine() -> Zone {
        Zone(jiff::tz::TimeZone::try_system().unwrap_or(jiff::tz::TimeZone::UTC))
    }

    /// A fixed number of hours ahead of UTC.
    pub fn ahead(hours: i8) -> Zone {
        Zone(
            jiff::tz::Offset::from_hours(hours)
                .map_or(jiff::tz::TimeZone::UTC, jiff::tz::Offset::to_time_zone),
        )
    }

    /// How people call it at a moment: `UTC`, `CET`, `+02`.
    pub fn word(&self, at: Timestamp) -> String {
        match jiff::Timestamp::from_microsecond(at.0) {
            Ok(instant) => instant.to_zoned(self.0.clone()).strftime("%Z").to_string(),
            Err(_) => "UTC".to_owned(),
        }
    }

    fn parse(&self, text: &str) -> Option<Timestamp> {
        let civil = text.parse::<jiff::civil::DateTime>().ok()?;
        let zoned = civil.to_zoned(self.0.clone()).ok()?;
        Some(Timestamp(zoned.timestamp().as_microsecond()))
    }
}

impl Timestamp {
    /// Reads the `Date` of an HTTP answer, which is whole seconds; none when it is no date.
    pub fn parse_http_date(text: &str) -> Option<Timestamp> {
        let instant = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
        Some(Timestamp(instant.as_microsecond()))
    }

    const FORM: [u8; 27] = *b"0000-00-00T00:00:00.000000Z";

    /// Fills in the digits: a page of history has thousands of times, and a calendar of the world is slow at it. Years
    /// with a sign are left to that.
    fn write(self, text: &mut [u8; 27]) -> Option<&str> {
        let (seconds, micros) = (self.0.div_euclid(1_000_000), self.0.rem_euclid(1_000_000));
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400) as u32);
        let (year, month, day) = civil(days);
        let year = u32::try_from(year).ok().filter(|year| *year <= 9999)?;
        fill(&mut text[0..4], year);
        fill(&mut text[5..7], month);
        fill(&mut text[8..10], day);
        fill(&mut text[11..13], second / 3600);
        fill(&mut text[14..16], second / 60 % 60);
        fill(&mut text[17..19], second % 60);
        fill(&mut text[20..26], micros as u32);
        std::str::from_utf8(text).ok()
    }
}

/// The last digits of a number.
fn fill(digits: &mut [u8], mut number: u32) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Year, month and day of a day since 1970-01-01. Years are counted from March on here, so that a leap day is the last
/// of its year, and in eras of 400 years, which are all equally long.
fn civil(days: i64) -> (i64, u32, u32) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097) as u32);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + i64::from(year_of_era) + i64::from(month <= 2), month, day)
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

/// A span of time as people write it: `90s`, `30m`, `2h`, `7d`; none when it is anything else.
pub fn parse_span(text: &str) -> Option<Duration> {
    let unit = text.chars().next_back()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return None,
    };
    let count: u64 = text.strip_suffix(unit)?.parse().ok()?;
    count.checked_mul(seconds).map(Duration::from_secs)
}

/// In the largest unit that is exact, as [`parse_span`] reads it: `7d`, `36h`, `90m`, `0s`.
pub fn span_in_words(span: Duration) -> String {
    let seconds = span.as_secs();
    let units = [(86_400, "d"), (3_600, "h"), (60, "m")];
    let unit = units.into_iter().find(|(length, _)| seconds > 0 && seconds.is_multiple_of(*length));
    unit.map_or_else(|| format!("{seconds}s"), |(length, unit)| format!("{}{unit}", seconds / length))
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Timestamp, TimestampError> {
        text.parse::<jiff::Timestamp>()
            .map(|instant| Timestamp(instant.as_microsecond()))
            .map_err(|_| TimestampError::new(text, "2026-11-22T20:04:05Z"))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Timestamp::FORM;
        match self.write(&mut text) {
            Some(text) => f.write_str(text),
            None => {
                let instant = jiff::Timestamp::from_microsecond(self.0).map_err(|_| fmt::Error)?;
                write!(f, "{instant:.6}")
            }
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// As `Display` has it, without its detour.
impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = Timestamp::FORM;
        match self.write(&mut text) {
            Some(text) => serializer.serialize_str(text),
            None => serializer.collect_str(self),
        }
    }
}

json_from_text!(Timestamp);
text_schema!(Timestamp, "2026-11-22T20:04:05.000000Z", DateTime);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_told_exactly() {
        for (seconds, said) in [(604_800, "7d"), (129_600, "36h"), (5_400, "90m"), (601, "601s"), (0, "0s")] {
            let span = Duration::from_secs(seconds);
            assert_eq!((span_in_words(span).as_str(), parse_span(said)), (said, Some(span)));
        }
    }

    #[test]
    fn times_are_written_in_utc_with_microseconds() {
        let time = Timestamp::from_micros(1_700_000_000_000_001);
        assert_eq!(time.to_string(), "2023-11-14T22:13:20.000001Z");
        assert_eq!(time.to_string().parse(), Ok(time));
        assert_eq!("2023-11-14T23:13:20.000001+01:00".parse(), Ok(time));
    }

    #[test]
    fn every_time_is_written_as_the_calendar_has_it() {
        let same = |micros: i64| {
            let instant = jiff::Timestamp::from_microsecond(micros).unwrap();
            assert_eq!(Timestamp::from_micros(micros).to_string(), format!("{instant:.6}"));
        };
        // Days of more than a whole era, then some of every age.
        let day = 86_400_000_000;
        for days in (-1_000..150_000_i64).step_by(3) {
            same(days * day + (days * 7_919_999_983).rem_euclid(day));
        }
        let (least, most) = (jiff::Timestamp::MIN.as_microsecond(), 253_402_207_200_000_000);
        (least..most).step_by(3_600_000_007 * 19_997).for_each(same);
        for edge in
            [least + 1, most, -62_167_219_200_000_000, -62_135_596_800_000_000, 0, 951_868_800_000_000]
        {
            same(edge);
            same(edge - 1);
        }
        for end in [Timestamp::from_micros(i64::MIN), Timestamp::from_micros(i64::MAX)] {
            assert_eq!(end.to_string().parse(), Ok(end));
        }
    }

    #[test]
    fn people_may_write_a_date_or_an_age() {
        let now = Timestamp::from_micros(1_700_000_000_000_000);
        let read = |text| Timestamp::parse_from_people(text, now, &Zone::utc()).unwrap().to_string();
        for age in ["2h", "-2h", "2h ago"] {
            assert_eq!(read(age), "2023-11-14T20:13:20.000000Z");
        }
        assert_eq!(read("2023-11-14"), "2023-11-14T00:00:00.000000Z");
        assert_eq!(read("2023-11-14 10:00"), "2023-11-14T10:00:00.000000Z");
        for bad in ["", "yesterday", "h", "--3h", "-3h ago", "ago", "3", "99999999999999999999d"] {
            assert!(
                Timestamp::parse_from_people(bad, now, &Zone::utc()).is_err(),
                "{bad:?} was taken for a time"
            );
        }
    }

    #[test]
    fn people_tell_the_time_of_their_own_zone() {
        let (now, ahead) = (Timestamp::from_micros(1_700_000_000_000_000), Zone::ahead(2));
        assert_eq!(now.in_zone(&ahead), "2023-11-15 00:13:20");
        let read = |text: &str| Timestamp::parse_from_people(text, now, &ahead).unwrap();
        assert_eq!(read(&now.in_zone(&ahead)), now);
        assert_eq!(read("2023-11-14T22:13:20Z"), now, "whoever names a zone means it");
        assert_eq!((Zone::utc().word(now).as_str(), ahead.word(now).as_str()), ("UTC", "+02"));
    }

    #[test]
    fn the_date_of_an_answer_is_read() {
        let read = Timestamp::parse_http_date;
        assert_eq!(
            read("Tue, 14 Nov 2023 22:13:20 GMT"),
            Some(Timestamp::from_micros(1_700_000_000_000_000))
        );
        assert_eq!(read("2023-11-14T22:13:20Z"), None);
        assert_eq!(read(""), None);
    }

    #[test]
    fn arithmetic_stops_at_the_ends_of_the_calendar() {
        let end = Timestamp::from_micros(i64::MAX);
        assert_eq!(end.plus(Duration::MAX), end);
        assert!(!Timestamp::from_micros(i64::MIN).to_string().is_empty());
        assert_eq!(Timestamp::from_micros(0).since(end), Duration::ZERO);
    }
}
