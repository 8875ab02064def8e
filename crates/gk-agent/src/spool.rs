//! The spool: what is not told yet, so that it survives the agent's death. Pure; `spool_file` has the disk.
//!
//! **When.** While the server answers, a change is told within about two seconds of being seen, and nothing is written:
//! what a kill then takes away is less than what a scan misses anyway, and the next run's report tells where it ended.
//! The spool begins when a contact fails or stays unanswered for two seconds, and ends when everything is told. So a
//! quiet agent, and one whose server answers, write nothing at all.
//!
//! **What.** Lines of a checksum and a JSON record. The first is the *base*: the set as the server was told of it. Then
//! come steps, each one's changes following from the set before; *told* before a contact leaves that tells the oldest
//! steps; *taken* when it was answered. A record that was cut by a crash, and all behind it, is ignored. What is
//! appended is bounded by [`MOST_BYTES`]; beyond that the older half of the steps is folded (they are counted, see
//! `step`) and the file is written anew.
//!
//! **Exactly once.** *Told* names session and number. The next run opens with a report that covers nothing, and the
//! answer says how far the session before had come on the server: by that, and by nothing else, the steps of the last
//! *told* count as taken or not. Where the two histories do not fit (the spool lost its end with the machine, or is
//! another session's), its steps are not told one by one, but by their result.
//!
//! **Synced** is only the base, and what was appended every few seconds: the page cache survives the agent, and a
//! machine that crashes has closed all its ports anyway.

use std::collections::VecDeque;

use gk_model::contact::{Churn, Closed, Session};
use gk_model::id::InstanceId;
use gk_model::listener::Listener;
use serde::{Deserialize, Serialize};

use crate::clock::{Earlier, Mark};
use crate::step::Step;
use crate::view::Set;

/// How much is appended before the file is written anew.
pub(crate) const MOST_BYTES: usize = 8 << 20;

/// Where the talk with the server was: the last number it acknowledged in this session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) session: Session,
    /// The highest there is where it is not known: then nothing was told in this session by whoever wrote this.
    pub(crate) acknowledged: u64,
}

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "lowercase")]
enum Record {
    Base { instance: InstanceId, mark: Mark, place: Place, listeners: Vec<Listener> },
    Step { listeners: Vec<Listener>, closed: Vec<Closed>, churned: Vec<Churn> },
    Told { place: Place, sequence: u64, steps: usize },
    Taken,
}

/// What is to happen to the file, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// These bytes go to its end.
    Append(Vec<u8>),
    /// They take the place of what is in it, as a whole or not at all.
    Replace(Vec<u8>),
    /// It goes.
    Remove,
}

/// Who writes a spool, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    pub(crate) instance: InstanceId,
    pub(crate) mark: Mark,
}

/// Everything that is not told yet.
pub(crate) struct Untold<'s> {
    pub(crate) place: Place,
    /// The set before all of it.
    pub(crate) base: Set,
    /// What a contact tells that is not answered, and its number.
    pub(crate) told: Option<(u64, &'s Step)>,
    pub(crate) steps: Vec<&'s Step>,
}

impl Untold<'_> {
    /// All of it, as the whole contents of a file.
    pub(crate) fn write(self, owner: Owner) -> Vec<u8> {
        let Owner { instance, mark } = owner;
        let listeners = self.base.into_values().collect();
        let mut bytes = line(&Record::Base { instance, mark, place: self.place, listeners });
        if let Some((sequence, step)) = self.told {
            bytes.extend(step_line(step));
            bytes.extend(line(&Record::Told { place: self.place, sequence, steps: 1 }));
        }
        self.steps.into_iter().for_each(|step| bytes.extend(step_line(step)));
        bytes
    }
}

/// The line of a step.
pub(crate) fn step_line(step: &Step) -> Vec<u8> {
    line(&Record::Step { listeners: step.listeners(), closed: step.closed(), churned: step.churned() })
}

/// The line that says that so many of the oldest steps are being told.
pub(crate) fn told_line(place: Place, sequence: u64, steps: usize) -> Vec<u8> {
    line(&Record::Told { place, sequence, steps })
}

/// The line that says that they arrived.
pub(crate) fn taken_line() -> Vec<u8> {
    line(&Record::Taken)
}

fn line(record: &Record) -> Vec<u8> {
    let json = serde_json::to_vec(record).expect("records have string keys and no failing serializers");
    let mut line = format!("{:08x} ", crc32fast::hash(&json)).into_bytes();
    line.extend(json);
    line.push(b'\n');
    line
}

/// What an earlier run left.
#[derive(Debug)]
pub(crate) struct Spooled {
    pub(crate) instance: InstanceId,
    pub(crate) mark: Mark,
    pub(crate) place: Place,
    /// The set after everything.
    pub(crate) set: Set,
    /// What may have been told, and by which number.
    pub(crate) told: Option<(u64, Step)>,
    pub(crate) steps: VecDeque<Step>,
    /// How many bytes at the end were no whole record.
    pub(crate) torn_bytes: usize,
}

impl Spooled {
    /// Reads a file; nothing, when there is no whole base in it.
    pub(crate) fn read(bytes: &[u8]) -> Option<Spooled> {
        let mut rest = bytes;
        let Record::Base { instance, mark, place, listeners } = next(&mut rest)? else { return None };
        let set = listeners.into_iter().map(|listener| (listener.key.clone(), listener)).collect();
        let mut spooled =
            Spooled { instance, mark, place, set, told: None, steps: VecDeque::new(), torn_bytes: 0 };
        let mut telling = None;
        while let Some(record) = next(&mut rest) {
            match record {
                Record::Base { .. } => break,
                Record::Step { listeners, closed, churned } => {
                    spooled.steps.push_back(Step::of_told(&mut spooled.set, listeners, closed, churned));
                }
                Record::Told { place, sequence, steps } => {
                    spooled.place = place;
                    telling = Some((sequence, steps));
                }
                Record::Taken => {
                    let Some((sequence, steps)) = telling.take() else { break };
                    spooled.place.acknowledged = sequence;
                    spooled.take(steps);
                }
            }
        }
        spooled.torn_bytes = rest.len();
        spooled.told = telling.map(|(sequence, steps)| (sequence, spooled.take(steps)));
        Some(spooled)
    }

    fn take(&mut self, steps: usize) -> Step {
        let mut sum = Step::default();
        for step in self.steps.drain(..steps.min(self.steps.len())) {
            sum.fold(step);
        }
        sum
    }

    /// The same with its times on the line of this run.
    pub(crate) fn on_line(self, earlier: Earlier) -> Spooled {
        let bring = |at| earlier.bring(at);
        let mut set = self.set;
        for listener in set.values_mut() {
            listener.first_seen_at = bring(listener.first_seen_at);
            listener.last_seen_at = bring(listener.last_seen_at);
        }
        let told = self.told.map(|(sequence, step)| (sequence, step.moved(bring)));
        let steps = self.steps.into_iter().map(|step| step.moved(bring)).collect();
        Spooled { set, told, steps, ..self }
    }
}

/// The next whole record, which is taken off the front.
fn next(bytes: &mut &[u8]) -> Option<Record> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (checksum, json) = bytes[..end].split_at_checked(9)?;
    let checksum = u32::from_str_radix(str::from_utf8(checksum).ok()?.strip_suffix(' ')?, 16).ok()?;
    let record = (checksum == crc32fast::hash(json)).then(|| serde_json::from_slice(json).ok())??;
    *bytes = &bytes[end + 1..];
    Some(record)
}
