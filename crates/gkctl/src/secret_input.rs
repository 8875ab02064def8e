//! How a secret gets in: from a file, from stdin, or typed at a terminal that does not show it. Never as an argument,
//! because every account of a machine can read those, and shells keep them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use gk_model::secret::Secret;
use rustix::termios::{self, LocalModes, OptionalActions, SpecialCodeIndex, Termios};

use crate::error::{Exit, Failure};

/// The longest secret, and room for blanks around it. What is longer is none, and is not read to its end.
const MOST_BYTES: u64 = 4 << 10;

/// Reads the secret in a file; for `-`, from stdin, which asks for it (`prompt`) where it is a terminal.
pub(crate) fn read(file: &Path, prompt: &str) -> Result<Secret> {
    if Secret::is_begun_by(&file.to_string_lossy()) {
        let message = "this option names a file, and that looks like the token itself, which every account can read now";
        return Err(Failure::new(Exit::Usage, message)
            .hint("put a new token into a file of mode 0600, or into GATEKEEPER_TOKEN, and revoke this one")
            .into());
    }
    if file.as_os_str() == "-" {
        return read_stdin(prompt);
    }
    let open = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    parse(
        &file.display().to_string(),
        &read_bounded(open).with_context(|| format!("cannot read {}", file.display()))?,
    )
}

/// Reads a secret from stdin, which asks for it where it is a terminal.
pub(crate) fn read_stdin(prompt: &str) -> Result<Secret> {
    let text = match io::stdin().is_terminal() {
        true => ask(prompt)?,
        false => read_bounded(io::stdin().lock()).context("cannot read a token from stdin")?,
    };
    parse("stdin", &text)
}

/// Whether somebody can be asked.
pub(crate) fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

fn read_bounded(source: impl Read) -> io::Result<String> {
    let mut text = String::new();
    source.take(MOST_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

fn parse(from: &str, text: &str) -> Result<Secret> {
    let parsed = text.parse();
    Ok(parsed.map_err(|error| Failure::new(Exit::Usage, format!("{from}: {error}")))?)
}

/// Asks at the terminal of stdin, and shows nothing of the answer.
fn ask(prompt: &str) -> Result<String> {
    let _quiet = Quiet::begin().context("cannot ask at this terminal")?;
    let mut stderr = io::stderr();
    let _ = write!(stderr, "{prompt}: ").and_then(|()| stderr.flush());
    let typed = read_line(&mut io::stdin().lock().bytes());
    let _ = writeln!(stderr);
    typed
        .context("cannot ask at this terminal")?
        .ok_or_else(|| Failure::new(Exit::Error, "nothing was typed").into())
}

/// One line, key by key; none when it was given up, by Ctrl-C or Ctrl-D. The terminal does nothing of this itself, so
/// that Ctrl-C cannot leave it silent behind.
fn read_line(keys: &mut impl Iterator<Item = io::Result<u8>>) -> io::Result<Option<String>> {
    const INTERRUPT: u8 = 3;
    const END: u8 = 4;
    const BACKSPACE: u8 = 8;
    const DELETE: u8 = 127;
    const CLEAR: u8 = 21;
    let mut line = Vec::new();
    for key in keys {
        match key? {
            b'\r' | b'\n' => return Ok(Some(String::from_utf8_lossy(&line).into_owned())),
            INTERRUPT | END => return Ok(None),
            BACKSPACE | DELETE => drop(line.pop()),
            CLEAR => line.clear(),
            key => line.push(key),
        }
    }
    Ok(None)
}

/// A terminal that shows nothing, until this is dropped.
struct Quiet(Termios);

impl Quiet {
    fn begin() -> io::Result<Quiet> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        quiet.special_codes[SpecialCodeIndex::VMIN] = 1;
        quiet.special_codes[SpecialCodeIndex::VTIME] = 0;
        termios::tcsetattr(io::stdin(), OptionalActions::Drain, &quiet)?;
        Ok(Quiet(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // A terminal that is gone needs no mending.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// Refuses a command line that holds a secret, before anything could repeat it.
pub(crate) fn refuse_in_arguments<'a>(mut arguments: impl Iterator<Item = &'a OsStr>) -> Result<(), Failure> {
    match arguments.any(|argument| holds_secret(&argument.to_string_lossy())) {
        false => Ok(()),
        true => Err(Failure::new(
            Exit::Usage,
            "a token was given as an argument, where every account of this machine can read it; nothing was done",
        )
        .hint(
            "end that token with `gkctl token revoke`, and give the next one to `gkctl login`, by --token-file FILE, \
             or in GATEKEEPER_TOKEN",
        )),
    }
}

/// Whether there is a secret in it anywhere.
fn holds_secret(text: &str) -> bool {
    const LENGTH: usize = "gkt_".len() + 64;
    text.match_indices("gk")
        .any(|(at, _)| text.get(at..at + LENGTH).is_some_and(|part| part.parse::<Secret>().is_ok()))
}

#[cfg(test)]
mod tests {
    use gk_model::secret::SecretKind;

    use super::*;

    fn typed(keys: &str) -> Option<String> {
        read_line(&mut keys.bytes().map(Ok)).unwrap()
    }

    #[test]
    fn a_line_is_typed_corrected_and_given_up() {
        let table = [
            ("abc\n", Some("abc")),
            ("abc\r", Some("abc")),
            ("abx\u{7f}c\n", Some("abc")),
            ("x\u{8}\u{8}abc\n", Some("abc")),
            ("wrong\u{15}abc\n", Some("abc")),
            ("abc\u{3}", None),
            ("abc\u{4}\n", None),
            ("abc", None),
        ];
        for (keys, line) in table {
            assert_eq!(typed(keys).as_deref(), line, "{keys:?}");
        }
    }

    #[test]
    fn a_secret_among_arguments_is_found_wherever_it_is() {
        let secret = Secret::from_random(SecretKind::Subject, &[0xab; 32]);
        let secret = secret.reveal();
        let refused =
            |argument: &str| refuse_in_arguments([OsStr::new("login"), OsStr::new(argument)].into_iter());
        for bad in [secret.to_owned(), format!("--token={secret}"), format!("gkt_{secret}é")] {
            let failure = refused(&bad).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage);
            assert!(!failure.message.contains(secret));
        }
        for good in ["gkt_", "gk", &secret[..67], "web-1", "é"] {
            assert!(refused(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_file_is_read_and_never_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let secret = Secret::from_random(SecretKind::Join, &[1; 32]);
        std::fs::write(&file, format!(" {}\n", secret.reveal())).unwrap();
        assert_eq!(read(&file, "token").unwrap(), secret);
        std::fs::write(&file, "hunter2").unwrap();
        let error = format!("{:#}", read(&file, "token").unwrap_err());
        assert!(error.contains("not a Gatekeeper token") && !error.contains("hunter2"), "{error}");
        assert!(read(Path::new("/dev/zero"), "token").is_err(), "no endless file is read to its end");
    }
}
