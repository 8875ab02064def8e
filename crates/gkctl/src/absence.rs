//! Instances that are not there: what was observed of them is old, and every answer says so.

use std::collections::BTreeMap;

use gk_model::instance::Presence;
use gk_model::text::InstanceName;
use gk_model::time::Timestamp;

use crate::output::age;

/// How many absent instances are named before the rest is counted.
const MOST_NOTES: usize = 5;

/// Of whom something is told: its name, whether it is there, and when its listeners were last confirmed.
pub(crate) type Seen<'a> = (&'a InstanceName, Presence, Option<Timestamp>);

/// A line for every instance that is not there, so that old data looks old.
pub(crate) fn notes<'a>(seen: impl IntoIterator<Item = Seen<'a>>, now: Timestamp) -> Vec<String> {
    let absent: BTreeMap<_, _> = seen
        .into_iter()
        .filter(|(_, presence, _)| *presence != Presence::Online)
        .map(|(name, presence, observed_at)| (name, (presence, observed_at)))
        .collect();
    let lines = absent.iter().map(|(name, (presence, observed_at))| {
        let is_away = if *presence == Presence::Left { "has left" } else { "is offline" };
        match observed_at {
            Some(at) => format!("{name} {is_away}; listeners as of {}", age::exact_in_words(*at, now)),
            None => format!("{name} {is_away} and never reported its listeners"),
        }
    });
    let more = absent.len().saturating_sub(MOST_NOTES);
    let rest = (more > 0).then(|| format!("{more} more instances are not online"));
    lines.take(MOST_NOTES).chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn old_data_looks_old() {
        let now = Timestamp::from_micros(1_700_000_000_000_000);
        let then = Some(now.minus(Duration::from_hours(3)));
        let names: Vec<InstanceName> = (1..=8).map(|n| format!("web-{n}").parse().unwrap()).collect();
        let seen = [
            (&names[0], Presence::Offline, then),
            (&names[0], Presence::Offline, then),
            (&names[1], Presence::Online, then),
            (&names[2], Presence::Offline, None),
        ];
        assert_eq!(
            notes(seen, now),
            [
                "web-1 is offline; listeners as of 2023-11-14 19:13:20 UTC (3 h ago)",
                "web-3 is offline and never reported its listeners"
            ]
        );
        let many = names.iter().map(|name| (name, Presence::Offline, None));
        assert_eq!(notes(many, now).last().unwrap(), "3 more instances are not online");
    }
}
