//! The agent's side of the talk with the server: what goes out, and what comes of it.

use std::time::Duration;

use gk_client::join::JoinError;
use gk_client::session::save_session;
use gk_client::{ClientError, Joined};
use gk_model::contact::{ContactAnswer, ContactBody};
use gk_model::instance::{HEARTBEAT_EVERY, JoinRequest};
use gk_model::protection::Protection;
use gk_model::secret::Secret;
use gk_model::text::InstanceName;

use crate::AgentError;
use crate::engine::News;
use crate::failure::{Failure, Verdict};
use crate::memory;
use crate::plan::{Action, plan};
use crate::renew::is_stranger;
use crate::run::Agent;
use crate::send::{Job, Mailer, Outcome};
use crate::state::Flight;

/// How often it is looked whether the facts are still the same.
const FACTS_EVERY: Duration = Duration::from_secs(300);

impl Agent {
    /// Sends what is due, and tells until when nothing else is.
    pub(super) fn send_next(&mut self, mailer: &Mailer) -> Duration {
        let action = plan(&self.state, self.elapsed());
        self.send(action, mailer);
        match action {
            Action::Nothing { until } => {
                self.send_facts(mailer);
                until
            }
            _ => Duration::MAX,
        }
    }

    pub(super) fn send(&mut self, action: Action, mailer: &Mailer) {
        if let Some(flight) = self.compose(action) {
            mailer.send(Job::Contact(Box::new(flight)));
        }
    }

    pub(super) fn compose(&mut self, action: Action) -> Option<Flight> {
        let elapsed = self.elapsed();
        let flight = self.state.compose(action, self.clock.at(elapsed), elapsed)?;
        self.write_spool(false);
        let (kind, count) = match &flight.contact.body {
            ContactBody::Heartbeat => ("heartbeat", 0),
            ContactBody::Delta { listeners, closed, .. } => ("delta", listeners.len() + closed.len()),
            ContactBody::Report { listeners, .. } => ("report", listeners.len()),
        };
        tracing::debug!(
            contact.kind = kind,
            contact.sequence = flight.contact.sequence,
            listeners.count = count,
            "sending"
        );
        Some(flight)
    }

    /// Also while nothing else gets through: that the server knows only the new credential may be why.
    pub(super) fn send_renewal(&mut self, mailer: &Mailer) {
        if !self.state.is_sending && self.renewal.take_turn(self.elapsed()) {
            mailer.send(Job::Renew(Box::new(self.facts_request()), self.config.state_dir.clone()));
        }
    }

    /// Whether there is a new credential by now.
    pub(super) fn renewed(&mut self, result: Result<Secret, JoinError>) -> bool {
        let kept = match result {
            Ok(new) => self.home.keep_credential(&self.config, new).map_err(JoinError::State),
            Err(error) if is_stranger(&error) => return false,
            Err(error) => Err(error),
        };
        if let Err(error) = &kept {
            tracing::warn!(error = error as &dyn std::error::Error, "cannot take up a new credential yet");
        }
        kept.is_ok()
    }

    /// Facts go when there is nothing else to tell and the server is known to answer.
    pub(super) fn send_facts(&mut self, mailer: &Mailer) {
        let is_quiet = !self.state.is_sending && !self.state.is_opening() && self.trouble.is_none();
        if !is_quiet || self.elapsed() < self.facts_at {
            return;
        }
        self.facts_at = self.elapsed() + FACTS_EVERY;
        let request = self.facts_request();
        if self.facts.as_ref() != Some(&request.facts) {
            mailer.send(Job::Facts(Box::new(request)));
        } else {
            mailer.send(Job::Pins);
        }
    }

    /// People wait for this one, so it goes at the next chance.
    pub(super) fn protected(&mut self, protection: Protection) {
        self.protection = Some(protection);
        self.facts_at = self.elapsed();
    }

    /// As for protection, the facts follow at the next chance.
    pub(super) fn contained(&mut self, news: News) {
        if self.engines.learn(news) {
            self.facts_at = self.elapsed();
        }
    }

    pub(super) fn facts_request(&self) -> JoinRequest {
        self.home.facts_request(&self.config, self.protection.clone(), self.engines.summary())
    }

    pub(super) fn facts_told(&mut self, request: JoinRequest, result: Result<Joined, ClientError>) {
        match result {
            Ok(joined) => {
                self.facts = Some(request.facts);
                self.learn(joined.instance.name);
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the server did not take the facts");
                self.facts_at = self.elapsed() + HEARTBEAT_EVERY;
            }
        }
    }

    /// Writes down how the server calls this machine, and who vouches for it from now on.
    pub(super) fn learn(&mut self, name: InstanceName) {
        if let Err(error) = self.home.learn(&self.config, name, &self.client) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "cannot write down this machine's new name, or the server's new pins");
        }
    }

    pub(super) fn take_back(&mut self, outcome: Outcome) -> Result<(), AgentError> {
        match outcome {
            Outcome::Facts(request, result) => self.facts_told(*request, *result),
            Outcome::Pins => self.learn(self.home.identity.name.clone()),
            Outcome::Contact(flight, Ok(answer)) => self.answered(*flight, &answer),
            Outcome::Contact(flight, Err(error)) => self.failed(*flight, error)?,
            Outcome::Renewed(result) => {
                self.renewed(result);
            }
        }
        Ok(())
    }

    pub(super) fn answered(&mut self, flight: Flight, answer: &ContactAnswer) {
        let was_report = flight.ends_report();
        self.state.answered(flight, answer, self.elapsed());
        if answer.renew_credential {
            self.renewal.want();
        }
        if self.trouble.take().is_some() {
            tracing::info!("the server answers again");
        }
        let (counted, lost) = (self.state.journal.take_forgotten(), std::mem::take(&mut self.state.lost));
        if counted > 0 {
            tracing::warn!(
                changes.count = counted,
                "too much changed meanwhile: some is told only by its number"
            );
        }
        if lost > 0 {
            tracing::warn!(
                changes.count = lost,
                "what was spooled does not fit: it is told only by its result"
            );
        }
        // What is in doubt has to be settled on disk before the session that settles it.
        let is_new_session = self.state.saved() != self.saved;
        self.write_spool(is_new_session);
        self.keep_session();
        if was_report {
            memory::give_back();
        }
    }

    /// Writes the session down if it is a new one. Without it the next run repeats the nonce that is in the file,
    /// which gets the same session again; so a failure is no reason to end.
    pub(super) fn keep_session(&mut self) {
        if self.state.saved() == self.saved {
            return;
        }
        self.saved = self.state.saved();
        tracing::info!(
            instance.id = %self.home.identity.id,
            session.number = self.saved.session.0,
            listeners.count = self.state.view.len(),
            "in contact with the server"
        );
        if let Err(error) = save_session(&self.config.state_dir, self.saved) {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot write down the session");
        }
    }

    pub(super) fn failed(&mut self, flight: Flight, error: ClientError) -> Result<(), AgentError> {
        if matches!(error, ClientError::InsecureHttp { .. }) {
            return Err(AgentError::Deliver(error));
        }
        let failure = Failure::of(&error);
        if failure == Failure::Unknown {
            self.renewal.hurry();
        }
        let verdict = self.state.failed(flight, failure, self.elapsed());
        self.write_spool(false);
        if let Verdict::End(ending) = verdict {
            return Err(ending.into());
        }
        if self.trouble.replace(failure) != Some(failure) {
            tracing::warn!(error = &error as &dyn std::error::Error, "{}", consequence(failure));
        }
        Ok(())
    }
}

fn consequence(failure: Failure) -> &'static str {
    match failure {
        Failure::Unknown => {
            "the server does not accept this machine's credential; trying again slowly (if the instance is gone for \
             good, join again with `gkctl instance join`)"
        }
        Failure::Refused => "the server refused a contact; a full report follows",
        Failure::Away | Failure::Ended(_) => {
            "no useful answer from the server; observing goes on, and is told later"
        }
    }
}
