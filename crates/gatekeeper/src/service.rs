//! How it goes, told to the service manager that started us (`Type=notify` of systemd). Elsewhere it does nothing.

use std::cell::Cell;
use std::io::ErrorKind;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use gk_agent::AgentError;
use gk_server::TlsError;
use gk_store::OpenError;
use sd_notify::NotifyState;

/// How the process ends, so that the manager knows whether to start it again.
pub(crate) fn exit_code(error: &anyhow::Error) -> ExitCode {
    if needs_people(error) { ExitCode::from(3) } else { ExitCode::FAILURE }
}

/// Whether a start would end as this one did, until somebody has looked: an agent without an identity, files that others
/// could have changed, a key that others could have read.
fn needs_people(error: &anyhow::Error) -> bool {
    let of_agent = match error.downcast_ref() {
        Some(AgentError::NotJoined | AgentError::Ended(_) | AgentError::Address(_)) => true,
        // Not to be believed, or damaged; what the system refuses is of another kind.
        Some(AgentError::State(error)) => error.kind() == ErrorKind::InvalidData,
        _ => false,
    };
    of_agent
        || matches!(error.downcast_ref(), Some(OpenError::Exposed(_)))
        || matches!(error.downcast_ref(), Some(TlsError::Exposed { .. }))
}

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

/// For a loop that comes by often: ready the first time, and then alive as often as the manager asks.
#[derive(Default)]
pub(crate) struct Pulse {
    last: Cell<Option<Instant>>,
}

impl Pulse {
    pub(crate) fn beat(&self) {
        let is_due = |last: Instant| pulse_every().is_some_and(|every| last.elapsed() >= every);
        match self.last.get() {
            None => ready(),
            Some(last) if is_due(last) => pulse(),
            Some(_) => return,
        }
        self.last.set(Some(Instant::now()));
    }
}
