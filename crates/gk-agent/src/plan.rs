//! What to do next. Pure: everything it decides by is in its arguments.

use std::time::Duration;

use crate::state::SyncState;

/// A delta of up to this many changes is worth its while however few listeners there are.
const SMALL_DELTA: usize = 64;

/// The next thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing, if nothing changes before this time since the start.
    Nothing {
        /// When to ask again.
        until: Duration,
    },
    /// Send the unanswered contact again.
    Again,
    /// Say that nothing changed.
    Heartbeat,
    /// Tell what changed.
    Delta {
        /// How many steps of the journal; none when only occupied ports changed.
        steps: usize,
    },
    /// Tell the next piece of a report that was begun.
    Piece,
    /// Tell everything.
    Report {
        /// Whether it opens a session.
        opening: bool,
    },
}

/// Decides what to do at `elapsed` since the start.
pub(crate) fn plan(state: &SyncState, elapsed: Duration) -> Action {
    if state.is_sending {
        return Action::Nothing { until: Duration::MAX };
    }
    if elapsed < state.backoff.until() {
        return Action::Nothing { until: state.backoff.until() };
    }
    if state.has_unanswered() {
        return Action::Again;
    }
    if state.is_opening() {
        return Action::Report { opening: true };
    }
    if state.has_pieces() {
        return Action::Piece;
    }
    if state.is_catching_up() && !state.journal.is_empty() {
        return Action::Delta { steps: state.journal.ready(usize::MAX, |_| true).max(1) };
    }
    if state.report_wanted_at.is_some_and(|wanted_at| wanted_at <= elapsed) {
        return Action::Report { opening: false };
    }
    let changed_at = state.journal.since();
    let tell_at = changed_at.map(|at| if state.is_in_haste { elapsed } else { state.pace.due(at) });
    if tell_at.is_some_and(|tell_at| tell_at <= elapsed) {
        return tell_changes(state);
    }
    // After the journal, never instead of it: a report tells what is, and forgets what came and went.
    let report_at = state.last_report + state.habits.report_every;
    if changed_at.is_none() && (state.sees_unreported() || report_at <= elapsed) {
        return Action::Report { opening: false };
    }
    let heartbeat_at = state.last_contact + state.heartbeat_every;
    if elapsed < heartbeat_at || tell_at.is_some() {
        // Changes go soon, and a heartbeat with them.
        let next_at = tell_at.unwrap_or_else(|| heartbeat_at.min(report_at));
        return Action::Nothing { until: state.report_wanted_at.map_or(next_at, |at| at.min(next_at)) };
    }
    // Occupied ports come and go with every look-up of a name. They are no listeners, so they never cause a contact:
    // they go with the next one.
    if state.occupied_differ() { Action::Delta { steps: 0 } } else { Action::Heartbeat }
}

/// A delta of as many steps as fit into one. A report when not even one fits: it changes more than half of all
/// listeners, or something in a part that the server was not told to be complete.
fn tell_changes(state: &SyncState) -> Action {
    let limit = SMALL_DELTA.max(state.view.len() / 2);
    match state.journal.ready(limit, |part| state.is_reported(part)) {
        0 => Action::Report { opening: false },
        steps => Action::Delta { steps },
    }
}

#[cfg(test)]
mod tests {
    use gk_client::session::SavedSession;
    use gk_model::contact::{Contact, ContactAnswer, ContactBody, Occupied, Session};
    use gk_model::port::{Port, Protocol};
    use uuid::Uuid;

    use super::*;
    use crate::failure::Failure;
    use crate::samples::{at, habits, listener, parts, snapshot};
    use crate::view::Snapshot;

    const NOTHING_ON_ITS_WAY: Action = Action::Nothing { until: Duration::from_secs(30) };
    const REPORT: Action = Action::Report { opening: false };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn blind() -> SyncState {
        let saved = SavedSession { session: Session(4), opening: Some(Uuid::from_u128(9)) };
        SyncState::new(saved, false, habits(seconds(280)))
    }

    fn fresh() -> SyncState {
        let mut state = blind();
        state.observe(snapshot([listener(80, 1), listener(81, 1)], at(0)), at(0), Duration::ZERO);
        state
    }

    fn taken(contact: &Contact, want_report: bool) -> ContactAnswer {
        let (session, acknowledged) = (Session(5), contact.sequence);
        ContactAnswer {
            session,
            acknowledged,
            want_report,
            heartbeat_seconds: 30,
            previous: None,
            renew_credential: false,
        }
    }

    /// Does what is planned at `elapsed`, and lets the server take it.
    fn deliver(state: &mut SyncState, elapsed: Duration, want_report: bool) {
        let flight = state.compose(plan(state, elapsed), at(0), elapsed).unwrap();
        let answer = taken(&flight.contact, want_report);
        state.answered(flight, &answer, elapsed);
    }

    fn lose(state: &mut SyncState, elapsed: Duration) {
        let flight = state.compose(plan(state, elapsed), at(0), elapsed).unwrap();
        state.failed(flight, Failure::Away, elapsed);
    }

    /// In contact since the start, nothing to tell.
    fn quiet() -> SyncState {
        let mut state = fresh();
        deliver(&mut state, Duration::ZERO, false);
        state
    }

    fn sees(state: &mut SyncState, ports: impl IntoIterator<Item = u16>) {
        let listeners: Vec<_> = ports.into_iter().map(|port| listener(port, 1)).collect();
        state.observe(snapshot(listeners, at(1)), at(1), Duration::ZERO);
    }

    #[test]
    fn first_it_opens_a_session_and_one_contact_is_enough_at_a_time() {
        let mut state = fresh();
        assert_eq!(plan(&state, Duration::ZERO), Action::Report { opening: true });
        let flight = state.compose(Action::Report { opening: true }, at(0), Duration::ZERO).unwrap();
        sees(&mut state, [80]);
        assert_eq!(plan(&state, seconds(9)), Action::Nothing { until: Duration::MAX });
        let answer = taken(&flight.contact, false);
        state.answered(flight, &answer, seconds(9));
        assert_eq!(plan(&state, seconds(9)), Action::Delta { steps: 1 });
    }

    #[test]
    fn time_alone_brings_heartbeats_and_reports() {
        let mut state = quiet();
        for (elapsed, expected) in [
            (0, NOTHING_ON_ITS_WAY),
            (29, NOTHING_ON_ITS_WAY),
            (30, Action::Heartbeat),
            (279, Action::Heartbeat),
            (280, REPORT),
        ] {
            assert_eq!(plan(&state, seconds(elapsed)), expected, "after {elapsed} s");
        }
        deliver(&mut state, seconds(270), false);
        assert_eq!(plan(&state, seconds(271)), Action::Nothing { until: seconds(280) });
    }

    #[test]
    fn a_change_is_told_at_once_by_the_smallest_contact_that_can() {
        let table: [(Vec<u16>, Action); 5] = [
            (vec![80, 81], NOTHING_ON_ITS_WAY),
            (vec![80, 82], Action::Delta { steps: 1 }),
            ((80..146).collect(), Action::Delta { steps: 1 }),
            ((80..147).collect(), REPORT),
            (vec![], Action::Delta { steps: 1 }),
        ];
        for (ports, expected) in table {
            let mut state = quiet();
            sees(&mut state, ports.clone());
            assert_eq!(plan(&state, seconds(1)), expected, "{ports:?}");
        }
    }

    #[test]
    fn what_came_and_went_is_told_before_a_report_that_is_due() {
        let mut state = quiet();
        sees(&mut state, [80, 81, 82]);
        sees(&mut state, [80, 81]);
        assert_eq!(plan(&state, seconds(280)), Action::Delta { steps: 1 });
        deliver(&mut state, seconds(280), false);
        assert_eq!(plan(&state, seconds(280)), Action::Delta { steps: 1 });
        deliver(&mut state, seconds(280), false);
        assert_eq!(plan(&state, seconds(280)), REPORT);
    }

    #[test]
    fn a_part_that_was_not_reported_needs_a_report_once_something_is_there() {
        let half =
            |port: u16| Snapshot { covered: parts()[..1].to_vec(), ..snapshot([listener(port, 1)], at(0)) };
        let mut state = blind();
        state.observe(half(80), at(0), Duration::ZERO);
        deliver(&mut state, Duration::ZERO, false);
        sees(&mut state, [80]);
        assert_eq!(plan(&state, seconds(1)), NOTHING_ON_ITS_WAY, "an empty part is nothing to tell");
        sees(&mut state, [80, 8_080]);
        assert_eq!(plan(&state, seconds(1)), REPORT);
        deliver(&mut state, seconds(1), false);
        state.observe(half(80), at(2), Duration::ZERO);
        state.habits.report_every = seconds(5);
        deliver(&mut state, seconds(6), false);
        sees(&mut state, [80, 8_080]);
        assert_eq!(plan(&state, seconds(7)), REPORT, "unchanged, but the last report did not cover it");
    }

    #[test]
    fn a_server_that_wants_a_report_gets_it_but_not_one_after_another() {
        let mut state = quiet();
        sees(&mut state, [80]);
        deliver(&mut state, seconds(1), true);
        assert_eq!(plan(&state, seconds(1)), REPORT);
        deliver(&mut state, seconds(1), true);
        assert_eq!(plan(&state, seconds(2)), Action::Nothing { until: seconds(31) });
        assert_eq!(plan(&state, seconds(31)), REPORT);
        deliver(&mut state, seconds(31), false);
        assert_eq!(plan(&state, seconds(32)), Action::Nothing { until: seconds(61) });
    }

    #[test]
    fn after_a_failure_it_waits_and_says_the_same_again_unless_it_said_nothing() {
        let mut state = quiet();
        lose(&mut state, seconds(30));
        let until = state.backoff.until();
        assert!(until >= seconds(31));
        assert_eq!(plan(&state, seconds(30)), Action::Nothing { until });
        assert_eq!(plan(&state, until), Action::Heartbeat);
        sees(&mut state, [80]);
        assert_eq!(plan(&state, seconds(30)), Action::Nothing { until }, "not even for a change");
        lose(&mut state, until);
        sees(&mut state, [80, 81]);
        assert_eq!(plan(&state, state.backoff.until()), Action::Again);
    }

    #[test]
    fn what_was_refused_as_a_delta_is_told_as_a_report() {
        let mut state = quiet();
        sees(&mut state, [80]);
        let flight = state.compose(plan(&state, seconds(1)), at(1), seconds(1)).unwrap();
        state.failed(flight, Failure::Refused, seconds(1));
        assert_eq!(plan(&state, state.backoff.until()), REPORT);
    }

    #[test]
    fn occupied_ports_never_cause_a_contact_and_go_with_the_next() {
        let mut state = quiet();
        let occupied = vec![Occupied { protocol: Protocol::Udp, port: Port::new(40_000).unwrap() }];
        let scan = snapshot([listener(80, 1), listener(81, 1)], at(1));
        state.observe(Snapshot { occupied: Some(occupied), ..scan }, at(1), Duration::ZERO);
        assert_eq!(plan(&state, seconds(1)), NOTHING_ON_ITS_WAY);
        assert_eq!(plan(&state, seconds(30)), Action::Delta { steps: 0 });
        deliver(&mut state, seconds(30), false);
        assert_eq!(plan(&state, seconds(60)), Action::Heartbeat);
    }

    #[test]
    fn a_change_waits_a_moment_for_others_and_a_storm_is_told_in_bundles() {
        let mut state = quiet();
        let scan = |state: &mut SyncState, ports: [u16; 3], elapsed| {
            state.observe(snapshot(ports.map(|port| listener(port, 1)), at(1)), at(1), elapsed);
        };
        let ms = Duration::from_millis;
        scan(&mut state, [80, 81, 82], ms(10_000));
        assert_eq!(plan(&state, ms(10_000)), Action::Nothing { until: ms(10_300) });
        scan(&mut state, [80, 81, 83], ms(10_200));
        assert_eq!(
            plan(&state, ms(10_300)),
            Action::Delta { steps: 1 },
            "not put off; 82 cannot be told twice"
        );
        for _ in 0..9 {
            state.pace.tell(ms(10_300));
        }
        assert_eq!(plan(&state, ms(10_600)), Action::Nothing { until: ms(10_750) });
        state.make_haste(ms(10_600));
        assert_eq!(plan(&state, ms(10_600)), Action::Delta { steps: 1 }, "an agent that ends does not wait");
    }

    #[test]
    fn after_a_suspend_everything_that_was_due_is_due() {
        let mut state = quiet();
        assert_eq!(plan(&state, seconds(3_600)), REPORT);
        state.last_report = seconds(3_600);
        assert_eq!(plan(&state, seconds(3_600)), Action::Heartbeat);
    }

    #[test]
    fn a_report_too_large_for_one_contact_goes_in_pieces() {
        let mut state = blind();
        let many = (1..=60_000).map(|port| listener(port, 1));
        state.observe(snapshot(many, at(0)), at(0), Duration::ZERO);
        let (mut told, mut contacts) = (0, 0);
        while plan(&state, Duration::ZERO) != NOTHING_ON_ITS_WAY {
            let action = plan(&state, Duration::ZERO);
            let expected = if contacts == 0 { Action::Report { opening: true } } else { Action::Piece };
            assert_eq!(action, expected);
            let flight = state.compose(action, at(0), Duration::ZERO).unwrap();
            let bytes = serde_json::to_vec(&flight.contact).unwrap().len();
            assert!(bytes < 8 << 20, "{bytes}");
            let ContactBody::Report { listeners, .. } = &flight.contact.body else { unreachable!() };
            (told, contacts) = (told + listeners.len(), contacts + 1);
            let answer = taken(&flight.contact, false);
            state.answered(flight, &answer, Duration::ZERO);
        }
        assert_eq!(told, 60_000);
        assert!(contacts > 5, "{contacts}");
    }
}
