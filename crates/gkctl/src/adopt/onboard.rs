//! `gkctl port adopt --all`: brings a busy machine under the plan, port by port.
//!
//! Each adoption stands alone: what was answered is done, whatever interrupts the rest, and running it again goes on with
//! what is left. The server decides on each; a refusal is told, and the next one is tried.

use std::io::{self, BufRead, Write};

use anyhow::{Context as _, Error, Result};
use gk_client::{Client, ClientError};
use gk_model::id::InstanceRef;
use gk_model::ignore::Ignore;
use gk_model::port_state::State;
use gk_model::query::{IgnoreQuery, PortQuery};
use gk_model::reservation::Reservation;
use gk_model::text::ServiceName;

use super::choose::{Choice, Dialogue};
use super::plan::{self, Fate, Line};
use super::{Adoption, told};
use crate::absence;
use crate::args::Adopt;
use crate::context::{Context, collect, note};
use crate::error::{Exit, Failure, exit_of, in_words};
use crate::output::{Column, List, exact, or_dash};
use crate::port::purpose;
use crate::secret_input::can_ask;

const COLUMNS: [Column<Reservation>; 3] = [
    Column::new("PORT", |made: &Reservation| format!("{}/{}", made.ports(), made.protocol)),
    Column::new("SERVICE", |made: &Reservation| exact(purpose(made)))
        .shown_as(|made, _| or_dash(purpose(made))),
    Column::new("EXPECTED", |made: &Reservation| exact(made.expect.as_ref()))
        .shown_as(|made, _| or_dash(made.expect.as_ref())),
];

const ADOPTED: List<'static, Reservation> = List {
    columns: &COLUMNS,
    name: |made| format!("{}/{}", made.ports(), made.protocol),
    when_empty: "Nothing was adopted.",
};

/// Shows the plan, asks what of it to do, and does that.
pub(super) fn onboard(context: &Context, wanted: &Adopt, instance: &InstanceRef) -> Result<()> {
    let client = context.client()?;
    let lines = look(context, &client, wanted, instance)?;
    let is_asked = !wanted.yes && !wanted.dry_run;
    if lines.is_empty() || wanted.dry_run || (is_asked && !can_ask()) {
        plan::LIST.print(context, &lines)?;
        return if is_asked && !lines.is_empty() { Err(nobody_to_ask().into()) } else { Ok(()) };
    }
    let mut session = Session { context, client: &client, wanted, instance, made: Vec::new(), refused: None };
    let done = match wanted.yes {
        true => session.take_all(&lines),
        false => {
            note(plan::LIST.table(context, &lines).trim_end());
            session.ask_all(&lines, &mut Dialogue { input: io::stdin().lock(), output: io::stderr() })
        }
    };
    // What was adopted is told also when the server went away in the middle.
    ADOPTED.print(context, &session.made)?;
    done?;
    match session.refused {
        None => Ok(()),
        Some((count, exit)) => Err(some_refused(count, exit).into()),
    }
}

/// The instance's ports that nobody reserved, and what would become of them.
fn look(context: &Context, client: &Client, wanted: &Adopt, instance: &InstanceRef) -> Result<Vec<Line>> {
    let labels = client.get_instance(instance)?.labels;
    let rules: Vec<Ignore> =
        collect(None, |cursor, limit| client.list_ignores(&IgnoreQuery { cursor, limit }))?;
    let ports = collect(None, |cursor, limit| {
        let (state, protocol) = (Some(State::Unreserved), wanted.protocol);
        client.list_instance_ports(
            instance,
            &PortQuery { state, protocol, cursor, limit, ..PortQuery::default() },
        )
    })?;
    let seen = ports.iter().map(|port| (&port.instance.name, port.presence, port.observed_at));
    absence::notes(seen, context.now).iter().for_each(note);
    let mut lines = plan::plan(&ports, &labels, &rules);
    if wanted.no_expect {
        lines.iter_mut().for_each(expect_nobody);
    }
    Ok(lines)
}

fn expect_nobody(line: &mut Line) {
    if let Fate::Adopt { expect, .. } = &mut line.fate {
        *expect = None;
    }
}

fn nobody_to_ask() -> Failure {
    Failure::new(Exit::Usage, "this is no terminal, so nobody can choose; nothing was adopted")
        .hint("take all of it with --yes, or only look with --dry-run; one port: gkctl port adopt PORT")
}

fn some_refused(count: usize, exit: Exit) -> Failure {
    let ports = if count == 1 { "1 of these ports was" } else { &format!("{count} of these ports were") };
    Failure::new(exit, format!("{ports} not adopted"))
        .hint("the reasons are above; what was adopted stays so")
}

/// What was done so far.
struct Session<'a> {
    context: &'a Context<'a>,
    client: &'a Client,
    wanted: &'a Adopt,
    instance: &'a InstanceRef,
    made: Vec<Reservation>,
    /// How many the server refused, and how to end because of the first.
    refused: Option<(usize, Exit)>,
}

impl Session<'_> {
    fn take_all(&mut self, lines: &[Line]) -> Result<()> {
        self.set_rules(lines)?;
        lines.iter().try_for_each(|line| match &line.fate {
            Fate::Adopt { service, .. } => self.take(line, service.clone()),
            Fate::Skipped { reason } => {
                note(format_args!("{} stays as it is: {reason}", plan::number(line)));
                Ok(())
            }
            Fate::Ignored { .. } | Fate::WouldBeIgnored { .. } => Ok(()),
        })
    }

    fn ask_all(&mut self, lines: &[Line], dialogue: &mut Dialogue<impl BufRead, impl Write>) -> Result<()> {
        let cannot_ask = "cannot ask at this terminal";
        if let Some(question) = question(lines) {
            match dialogue.confirm(&question).context(cannot_ask)? {
                None => return Ok(()),
                Some(true) => self.set_rules(lines)?,
                Some(false) => {}
            }
        }
        decide(
            lines,
            |line, service| dialogue.choose(&about(line), service).context(cannot_ask),
            |line, service| self.take(line, service),
        )
    }

    /// Sets the default rules that the plan names. Whoever may not leaves these ports as they are.
    fn set_rules(&mut self, lines: &[Line]) -> Result<()> {
        let defaults = Ignore::defaults();
        for (name, ports) in plan::offered(lines) {
            let Some((_, rule)) = defaults.iter().find(|(default, _)| *default == name) else { continue };
            match self.client.set_ignore(&name, rule) {
                Ok(set) => note(format_args!("set the ignore rule {}: {}", set.name, ports.join(", "))),
                Err(refusal) => self.refuse(&format!("the ignore rule {name} was not set"), refusal)?,
            }
        }
        Ok(())
    }

    fn take(&mut self, line: &Line, service: Option<ServiceName>) -> Result<()> {
        let Fate::Adopt { expect, .. } = &line.fate else { return Ok(()) };
        let adoption = Adoption {
            instance: self.instance.clone(),
            port: line.port,
            protocol: line.protocol,
            service,
            note: self.wanted.note.clone(),
            expect: expect.clone(),
        };
        match adoption.make(self.client) {
            Ok(made) => {
                note(told(&made));
                self.made.push(made);
                Ok(())
            }
            Err(refusal) => self.refuse(&format!("{} was not adopted", plan::number(line)), refusal),
        }
    }

    /// Tells a refusal and goes on. A server that is away would refuse all the others in the same way.
    fn refuse(&mut self, what: &str, error: ClientError) -> Result<()> {
        if !matches!(error, ClientError::Refused(_)) {
            return Err(error.into());
        }
        let error = Error::from(error);
        let (reason, hint) = in_words(&error, self.context.shown(), self.context.now);
        note(format_args!("{what}: {reason}"));
        hint.iter().for_each(|hint| note(format_args!("hint: {hint}")));
        let exit = exit_of(&error);
        self.refused = Some(self.refused.map_or((1, exit), |(count, first)| (count + 1, first)));
        Ok(())
    }
}

/// Asks about each port that can be adopted, and takes it at once, so that nothing is lost when the next question is the
/// last.
fn decide(
    lines: &[Line],
    mut choose: impl FnMut(&Line, Option<&ServiceName>) -> Result<Choice>,
    mut take: impl FnMut(&Line, Option<ServiceName>) -> Result<()>,
) -> Result<()> {
    let mut takes_all = false;
    for line in lines {
        let Fate::Adopt { service, .. } = &line.fate else { continue };
        let choice = if takes_all { Choice::All } else { choose(line, service.as_ref())? };
        match choice {
            Choice::Adopt(service) => take(line, service)?,
            Choice::Skip => {}
            Choice::All => {
                takes_all = true;
                take(line, service.clone())?;
            }
            Choice::Quit => break,
        }
    }
    Ok(())
}

fn about(line: &Line) -> String {
    format!("{}  {}", plan::number(line), line.who)
}

/// `Nearly every machine runs these: sshd (22/tcp). Ignore them, on all machines?`
fn question(lines: &[Line]) -> Option<String> {
    let offered = plan::offered(lines);
    let each: Vec<String> =
        offered.iter().map(|(name, ports)| format!("{name} ({})", ports.join(", "))).collect();
    (!each.is_empty())
        .then(|| format!("Nearly every machine runs {}. Ignore that, on all machines?", each.join(", ")))
}

#[cfg(test)]
mod tests {
    use gk_model::labels::Labels;

    use super::*;
    use crate::samples::{instance, listener, state};

    fn lines() -> Vec<Line> {
        let here = instance("web-1");
        let of = |port, exe| state(&here, port, None, vec![listener(port, exe, "ada")]);
        let ports = [
            of(22, "/usr/sbin/sshd"),
            of(80, "/bin/a"),
            of(81, "/bin/b"),
            of(82, "/bin/c"),
            of(83, "/bin/d"),
        ];
        plan::plan(&ports, &Labels::default(), &[])
    }

    /// What is taken, by what is typed.
    fn taken(typed: &str) -> Vec<String> {
        let mut dialogue = Dialogue { input: typed.as_bytes(), output: Vec::new() };
        let mut taken = Vec::new();
        decide(
            &lines(),
            |line, service| Ok(dialogue.choose(&about(line), service)?),
            |line, service| {
                taken.push(format!("{} {}", plan::number(line), or_dash(service)));
                Ok(())
            },
        )
        .unwrap();
        taken
    }

    #[test]
    fn each_answer_is_done_at_once_and_quitting_leaves_the_rest() {
        let table: [(&str, &[&str]); 7] = [
            ("q\ny\ny\ny\ny\n", &[]),
            ("y\nn\ne\nweb\nq\n", &["80/tcp a", "82/tcp web"]),
            ("n\na\n", &["81/tcp b", "82/tcp c", "83/tcp d"]),
            ("\n\n\n\n", &["80/tcp a", "81/tcp b", "82/tcp c", "83/tcp d"]),
            ("y\n", &["80/tcp a"]),
            ("q\n", &[]),
            ("", &[]),
        ];
        for (typed, expected) in table {
            assert_eq!(taken(typed), expected, "{typed:?}");
        }
    }

    #[test]
    fn a_failure_ends_it_and_what_was_taken_stays() {
        let mut taken = 0;
        let failed = decide(
            &lines(),
            |_, _| Ok(Choice::All),
            |line, _| {
                taken += 1;
                if line.port.get() == 81 { Err(anyhow::anyhow!("away")) } else { Ok(()) }
            },
        );
        assert!(failed.is_err());
        assert_eq!(taken, 2, "nothing is asked for after that");
    }

    #[test]
    fn what_runs_everywhere_is_offered_in_one_question() {
        assert_eq!(
            question(&lines()).unwrap(),
            "Nearly every machine runs sshd (22/tcp). Ignore that, on all machines?"
        );
        assert_eq!(question(&lines()[1..]), None);
    }
}
