//! Stopping an agent from outside, and what else may wake it.

use std::sync::mpsc::{self, Receiver, Sender};

use gk_model::protection::Protection;

use crate::engine::News;
use crate::send::Outcome;

/// What the loop of an agent waits for.
#[derive(Debug)]
pub(crate) enum Event {
    /// The sender is done with a job.
    Sent(Outcome),
    /// How far the kernel keeps off reserved ports has changed.
    Protected(Protection),
    /// Container engines were asked.
    Contained(News),
    /// It is to end.
    Stop,
}

/// Ends an agent; the program keeps it, for its signal handler.
#[derive(Clone, Debug)]
pub struct Stopper(Sender<Event>);

/// What [`crate::run`] takes to be ended by.
#[derive(Debug)]
pub struct StopSignal {
    pub(crate) sender: Sender<Event>,
    pub(crate) inbox: Receiver<Event>,
}

/// Both ends. One channel carries the stop and the answers, so that the loop waits in one place for either.
pub fn stop_channel() -> (Stopper, StopSignal) {
    let (sender, inbox) = mpsc::channel();
    (Stopper(sender.clone()), StopSignal { sender, inbox })
}

impl Stopper {
    /// Tells the agent to end: it delivers what just changed, for two seconds at most, and returns.
    pub fn stop(&self) {
        // An agent that is gone needs no telling.
        let _ = self.0.send(Event::Stop);
    }
}
