//! How it goes, told to the service manager that started us (`Type=notify` of systemd). Elsewhere it does nothing.

use std::cell::Cell;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// How a process ends that cannot go on, so that the manager knows whether to start it again: not when a start would end in
/// the same way until somebody has looked.
pub fn exit_code(needs_people: bool) -> ExitCode {
    if needs_people { ExitCode::from(3) } else { ExitCode::FAILURE }
}

/// The service is there for others.
pub fn ready() {
    notify(NotifyState::Ready);
}

/// It is about to end, and may take a moment.
pub fn stopping() {
    notify(NotifyState::Stopping);
}

/// How often to say that we live: twice in the time after which the manager takes us for hung. `None` when nobody asks.
pub fn pulse_every() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|patience| patience / 2)
}

/// We live.
pub fn pulse() {
    notify(NotifyState::Watchdog);
}

/// A manager that does not listen is no reason to end.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(error = &error as &dyn std::error::Error, "cannot tell the service manager");
    }
}

/// For a loop that comes by often: ready the first time, and then alive as often as the manager asks.
#[derive(Default)]
pub struct Pulse {
    last: Cell<Option<Instant>>,
}

impl Pulse {
    /// One time round.
    pub fn beat(&self) {
        let is_due = |last: Instant| pulse_every().is_some_and(|every| last.elapsed() >= every);
        match self.last.get() {
            None => ready(),
            Some(last) if is_due(last) => pulse(),
            Some(_) => return,
        }
        self.last.set(Some(Instant::now()));
    }
}
