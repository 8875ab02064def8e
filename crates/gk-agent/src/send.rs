//! The thread that talks to the server, so that a slow or hung one never stops observation.
//!
//! It does one job at a time and gives each back with its result. When the agent ends it is left behind rather than
//! waited for: it may hang in a request for half a minute.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use gk_client::join::JoinError;
use gk_client::{Client, ClientError, Joined};
use gk_model::contact::ContactAnswer;
use gk_model::id::InstanceId;
use gk_model::instance::JoinRequest;
use gk_model::secret::Secret;

use crate::renew::renew;
use crate::state::Flight;
use crate::stop::Event;

/// What is to be sent.
#[derive(Debug)]
pub(crate) enum Job {
    /// A contact.
    Contact(Box<Flight>),
    /// What the machine says of itself.
    Facts(Box<JoinRequest>),
    /// The same with another credential, which is made here and pending in this state directory.
    Renew(Box<JoinRequest>, PathBuf),
    /// The question which keys vouch for the server.
    Pins,
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The contact, and its answer.
    Contact(Box<Flight>, Result<ContactAnswer, ClientError>),
    /// The facts, and the instance as the server knows it now.
    Facts(Box<JoinRequest>, Box<Result<Joined, ClientError>>),
    /// The new credential. It is good by now, and still to be kept.
    Renewed(Result<Secret, JoinError>),
    /// The client knows them now, if the server could be asked.
    Pins,
}

/// The way to the thread.
#[derive(Debug)]
pub(crate) struct Mailer {
    jobs: Sender<Job>,
    thread: JoinHandle<()>,
}

impl Mailer {
    /// Starts the thread; it ends after the mailer or the receiver of its events is gone.
    pub(crate) fn start(client: Client, instance: InstanceId, events: Sender<Event>) -> io::Result<Mailer> {
        let (sender, jobs) = mpsc::channel();
        let work = move || serve(&client, instance, &jobs, &events);
        let thread = thread::Builder::new().name("contact".to_owned()).spawn(work)?;
        Ok(Mailer { jobs: sender, thread })
    }

    /// Passes a panic of the thread on: an agent that waits for an answer that nobody fetches would look alive.
    ///
    /// # Panics
    /// When the thread has.
    pub(crate) fn assert_alive(&self) {
        assert!(!self.thread.is_finished(), "the thread that talks to the server panicked");
    }

    /// Hands over a job.
    pub(crate) fn send(&self, job: Job) {
        self.jobs.send(job).expect("the thread serves as long as the mailer and the agent's inbox live");
    }
}

fn serve(client: &Client, instance: InstanceId, jobs: &Receiver<Job>, events: &Sender<Event>) {
    for job in jobs {
        let outcome = match job {
            Job::Contact(flight) => {
                let result = client.contact(instance, &flight.contact);
                Outcome::Contact(flight, result)
            }
            Job::Facts(request) => {
                let result = client.join(&request);
                renew_pins(client);
                Outcome::Facts(request, Box::new(result))
            }
            Job::Renew(request, state_dir) => Outcome::Renewed(renew(client, &state_dir, &request)),
            Job::Pins => {
                renew_pins(client);
                Outcome::Pins
            }
        };
        if events.send(Event::Sent(outcome)).is_err() {
            return;
        }
    }
}

/// Asks who vouches for the server from now on. There are years to learn it, so a failure is none to speak of.
pub(crate) fn renew_pins(client: &Client) {
    if let Err(error) = client.renew_pins() {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "the server did not say who vouches for it"
        );
    }
}
