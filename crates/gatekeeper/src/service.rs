//! How it goes, told to the service manager that started us (`Type=notify` of systemd). Elsewhere it does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// The service is there for others.
pub(crate) fn ready() {
    notify(NotifyState::Ready);
}

/// It is about to end, and may take a moment.
pub(crate) fn stopping() {
    notify(NotifyState::Stopping);
}

/// How often to say that we live: twice in the time after which the manager takes us for hung. `None` when nobody asks.
pub(crate) fn pulse_every() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|patience| patience / 2)
}

/// We live.
pub(crate) fn pulse() {
    notify(NotifyState::Watchdog);
}

/// A manager that does not listen is no reason to end.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(error = &error as &dyn std::error::Error, "cannot tell the service manager");
    }
}
