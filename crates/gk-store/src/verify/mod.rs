//! Verifying: every invariant that the tables should hold, computed again from the tables.
//!
//! It sees one moment, changes nothing, and takes nobody's word: where two tables tell the same thing they are compared.
//! A check is a statement that lists what is wrong, or a function where a statement cannot say it. On a small
//! database all of them take milliseconds, so tests call [`Store::verify`] after every step.

mod code;
mod settled;
mod sql;
#[cfg(test)]
mod tests;

use gk_model::time::Timestamp;

use crate::backup::open_existing;
use crate::directory::OpenError;
use crate::error::{Error, StoreError};
use crate::migrate::STEPS;
use crate::tx::Reader;
use crate::{Shared, Store, StoreConfig};

/// How many violations of one kind are told.
const SHOWN: usize = 20;

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The invariant, as a sentence.
    pub invariant: &'static str,
    /// How many things were looked at.
    pub looked_at: u64,
    /// How many violations there are.
    pub violations: u64,
    /// The first of them, in words; at most 20.
    pub shown: Vec<String>,
}

impl Checked {
    fn new(invariant: &'static str) -> Checked {
        Checked { invariant, looked_at: 0, violations: 0, shown: Vec::new() }
    }

    fn report(&mut self, violation: String) {
        self.violations += 1;
        if self.shown.len() < SHOWN {
            self.shown.push(violation);
        }
    }
}

/// What all checks found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Every check that could be made, in order.
    pub checks: Vec<Checked>,
}

impl Verdict {
    /// The number of violations of any kind.
    pub fn violations(&self) -> u64 {
        self.checks.iter().map(|check| check.violations).sum()
    }

    /// What is wrong, in words: nothing for a sound database.
    pub fn problems(&self) -> Vec<String> {
        let told = |check: &Checked| {
            let of_one = |shown: &String| format!("{}: not so: {shown}", check.invariant);
            check.shown.iter().map(of_one).collect::<Vec<String>>()
        };
        self.checks.iter().flat_map(told).collect()
    }
}

/// How a check is made.
enum How {
    /// `of` counts what is looked at; `found` lists one text for each violation.
    Sql { of: &'static str, found: &'static str },
    /// Counts and reports by itself.
    Code(fn(&mut Reader<'_>, &mut Checked) -> Result<(), StoreError>),
}

struct Check {
    invariant: &'static str,
    how: How,
}

const CHECKS: &[Check] = &[
    Check { invariant: "the database file is sound", how: How::Code(code::check_file) },
    Check { invariant: "claims are the ports of live reservations", how: sql::CLAIMS },
    Check { invariant: "ended reservations claim nothing", how: sql::ENDED },
    Check { invariant: "live reservations do not overlap", how: sql::OVERLAPS },
    Check { invariant: "events are numbered without a gap", how: sql::NUMBERS },
    Check { invariant: "no event happened after it was recorded", how: sql::EVENT_TIMES },
    Check { invariant: "each live reservation has one open interval", how: sql::HELD },
    Check { invariant: "no port was held twice at a time", how: How::Code(code::check_held_once) },
    Check { invariant: "each listener has one open interval", how: sql::LISTENED },
    Check { invariant: "no interval ends before it begins", how: sql::INTERVAL_TIMES },
    Check { invariant: "digests fit the stored listeners", how: How::Code(code::check_digests) },
    Check { invariant: "drift is kept as it is", how: How::Code(settled::check_drift) },
    Check { invariant: "counters count what there is", how: How::Code(settled::check_counts) },
    Check { invariant: "no two joined instances share a name", how: sql::NAMES },
    Check { invariant: "labels are written down as they are", how: sql::LABELS },
    Check { invariant: "every row belongs to a known instance", how: sql::REFERENCES },
    Check { invariant: "pools are what they may be", how: How::Code(code::check_pools) },
    Check { invariant: "the use of pools is counted", how: sql::POOL_USE },
];

impl Reader<'_> {
    /// Checks every invariant of the tables.
    ///
    /// # Errors
    /// Only when the database fails; what is wrong with what it holds is in the answer.
    pub fn verify(&mut self) -> Result<Verdict, Error> {
        Ok(self.verify_telling(&mut |_| {})?)
    }

    fn verify_telling(&mut self, tell: &mut dyn FnMut(&'static str)) -> Result<Verdict, StoreError> {
        let mut verdict = Verdict::default();
        for check in CHECKS {
            tell(check.invariant);
            match self.run(check) {
                Ok(checked) => verdict.checks.push(checked),
                // In a file with damaged pages any statement may fail, and why is already told.
                Err(_) if verdict.checks.first().is_some_and(|file| file.violations > 0) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(verdict)
    }

    fn run(&mut self, check: &Check) -> Result<Checked, StoreError> {
        let mut checked = Checked::new(check.invariant);
        match check.how {
            How::Code(run) => run(self, &mut checked)?,
            How::Sql { of, found } => {
                checked.looked_at = self.count(of)?;
                checked.violations = self.count(&format!("({found}) as violation"))?;
                if checked.violations > 0 {
                    let rows = self.query(&format!("{found} limit {SHOWN}"), &[])?;
                    let texts = rows.into_iter().map(|mut row| row.take());
                    checked.shown = texts.collect::<Result<Vec<String>, StoreError>>()?;
                }
            }
        }
        Ok(checked)
    }

    fn count(&mut self, what: &str) -> Result<u64, StoreError> {
        let row = self.query_one(&format!("select count(*) from {what}"), &[])?;
        row.map_or(Ok(0), |mut row| row.take())
    }
}

impl Store {
    /// Checks every invariant of the tables; see [`Reader::verify`].
    ///
    /// # Errors
    /// Only when the database fails.
    #[expect(clippy::redundant_closure_for_method_calls, reason = "the method itself is not general enough")]
    pub async fn verify(&self) -> Result<Verdict, Error> {
        self.read(|reader| reader.verify()).await
    }
}

/// Verifies a database, served or not, and tells each invariant before it is checked. Blocks.
///
/// # Errors
/// [`OpenError`] when there is no database, or it cannot be read.
pub fn verify(
    config: &StoreConfig,
    now: Timestamp,
    tell: &mut dyn FnMut(&'static str),
) -> Result<Verdict, OpenError> {
    let (mut connection, found) = open_existing(config)?;
    let (known, place) = (STEPS.len() as u64, config.place());
    if found < known {
        return Err(OpenError::Older { place, found, known });
    }
    let shared = Shared::new(config, now);
    let verdict = Reader::new(&mut connection, &shared).verify_telling(tell);
    verdict.map_err(|source| OpenError::Database { place, source })
}
