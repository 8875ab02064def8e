//! Asking at a terminal, line by line: what to do with a port, and yes or no.
//!
//! Whoever ends the input quits, and nothing is taken for granted.

use std::io::{self, BufRead, Write};

use gk_model::text::ServiceName;

/// What was chosen for a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// Adopt it for this.
    Adopt(Option<ServiceName>),
    /// Leave it.
    Skip,
    /// Adopt it and all that follow, as proposed.
    All,
    /// Ask no more.
    Quit,
}

const HELP: &str = "y adopt it (also Enter), n leave it, e another service name, a adopt it and all that follow, q stop here";

/// A conversation: what is typed, and where questions go.
pub(super) struct Dialogue<I, O> {
    pub(super) input: I,
    pub(super) output: O,
}

impl<I: BufRead, O: Write> Dialogue<I, O> {
    /// Asks what to do with a port for which `service` is proposed.
    pub(super) fn choose(&mut self, about: &str, service: Option<&ServiceName>) -> io::Result<Choice> {
        let proposed = service.map_or_else(|| "no service name".to_owned(), ToString::to_string);
        loop {
            let Some(answer) = self.ask(&format!("{about} → {proposed}? [Y/n/e/a/q/?] "))? else {
                return Ok(Choice::Quit);
            };
            match answer.to_ascii_lowercase().as_str() {
                "" | "y" | "yes" => return Ok(Choice::Adopt(service.cloned())),
                "n" | "no" => return Ok(Choice::Skip),
                "a" | "all" => return Ok(Choice::All),
                "q" | "quit" => return Ok(Choice::Quit),
                "e" | "edit" => match self.service()? {
                    Some(service) => return Ok(Choice::Adopt(Some(service))),
                    None => continue,
                },
                _ => self.say(HELP)?,
            }
        }
    }

    /// Asks for a service name; none when nothing was typed, and then the port is asked about again.
    fn service(&mut self) -> io::Result<Option<ServiceName>> {
        loop {
            match self.ask("  service name: ")?.as_deref() {
                None | Some("") => return Ok(None),
                Some(text) => match text.parse() {
                    Ok(service) => return Ok(Some(service)),
                    Err(error) => self.say(&format!("  {error}"))?,
                },
            }
        }
    }

    /// Asks yes or no; Enter is yes. None when the input ends.
    pub(super) fn confirm(&mut self, question: &str) -> io::Result<Option<bool>> {
        loop {
            let Some(answer) = self.ask(&format!("{question} [Y/n] "))? else { return Ok(None) };
            match answer.to_ascii_lowercase().as_str() {
                "" | "y" | "yes" => return Ok(Some(true)),
                "n" | "no" => return Ok(Some(false)),
                _ => self.say("y or n")?,
            }
        }
    }

    fn ask(&mut self, question: &str) -> io::Result<Option<String>> {
        self.output.write_all(question.as_bytes())?;
        self.output.flush()?;
        let mut line = String::new();
        match self.input.read_line(&mut line)? {
            0 => {
                writeln!(self.output)?;
                Ok(None)
            }
            _ => Ok(Some(line.trim().to_owned())),
        }
    }

    fn say(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.output, "{line}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(typed: &str, service: Option<&str>) -> (Choice, String) {
        let service = service.map(|service| service.parse().unwrap());
        let mut dialogue = Dialogue { input: typed.as_bytes(), output: Vec::new() };
        let choice = dialogue.choose("80/tcp nginx (pid 7)", service.as_ref()).unwrap();
        (choice, String::from_utf8(dialogue.output).unwrap())
    }

    #[test]
    fn every_answer_means_one_thing() {
        let adopt = |service: &str| Choice::Adopt(service.parse().ok());
        let table = [
            ("\n", adopt("nginx")),
            ("y\n", adopt("nginx")),
            ("YES\n", adopt("nginx")),
            (" n \n", Choice::Skip),
            ("a\n", Choice::All),
            ("q\n", Choice::Quit),
            ("", Choice::Quit),
            ("what\nn\n", Choice::Skip),
            ("e\nweb\n", adopt("web")),
            ("e\na b\nweb\n", adopt("web")),
            ("e\n\nn\n", Choice::Skip),
            ("e\n", Choice::Quit),
        ];
        for (typed, choice) in table {
            assert_eq!(chosen(typed, Some("nginx")).0, choice, "{typed:?}");
        }
        assert_eq!(chosen("y\n", None).0, Choice::Adopt(None));
    }

    #[test]
    fn a_question_shows_what_it_is_about_and_help_what_can_be_typed() {
        let (_, said) = chosen("?\nn\n", Some("nginx"));
        let question = "80/tcp nginx (pid 7) → nginx? [Y/n/e/a/q/?] ";
        assert_eq!(said, format!("{question}{HELP}\n{question}"));
        assert!(chosen("n\n", None).1.contains("→ no service name?"));
        assert!(chosen("e\na b\nweb\n", None).1.contains("a service name may not contain ' '"));
    }

    #[test]
    fn yes_or_no() {
        for (typed, answer) in [("\n", Some(true)), ("n\n", Some(false)), ("x\ny\n", Some(true)), ("", None)]
        {
            let mut dialogue = Dialogue { input: typed.as_bytes(), output: Vec::new() };
            assert_eq!(dialogue.confirm("Set them?").unwrap(), answer, "{typed:?}");
        }
    }
}
