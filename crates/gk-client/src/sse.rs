//! Server-sent events (WHATWG HTML 9.2), read from whatever pieces of bytes come.
//!
//! Pure. A line ends with LF, CR or both; a field is `name: value`; an empty line ends an event; a line that begins with
//! a colon is a comment. Whoever sends more than [`MOST_BYTES`] for one event is refused, so that a broken server cannot
//! fill the memory.

use std::collections::VecDeque;

/// The most that one line, or the data of one event, may have.
const MOST_BYTES: usize = 1 << 20;

/// One event of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Frame {
    /// What kind it is; empty when it does not say.
    pub(crate) event: String,
    /// Where the stream has come with it, if it says.
    pub(crate) id: Option<String>,
    /// What it tells.
    pub(crate) data: String,
}

/// A line, or an event, that is longer than any of a server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of more than {MOST_BYTES} bytes")]
pub(crate) struct TooLong;

/// What has been read of an event so far.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    /// The line before ended with CR, so that an LF now is the rest of its end.
    after_cr: bool,
    /// Whether anything was read; a byte order mark may come first.
    has_begun: bool,
    frame: Frame,
    has_data: bool,
    complete: VecDeque<Frame>,
}

impl Parser {
    /// Takes the next bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        for byte in bytes {
            let after_cr = std::mem::replace(&mut self.after_cr, *byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => self.end_line()?,
                _ if self.line.len() >= MOST_BYTES => return Err(TooLong),
                byte => self.line.push(*byte),
            }
        }
        Ok(())
    }

    /// The next event that is complete.
    pub(crate) fn pop(&mut self) -> Option<Frame> {
        self.complete.pop_front()
    }

    fn end_line(&mut self) -> Result<(), TooLong> {
        let line = std::mem::take(&mut self.line);
        let mut line = String::from_utf8_lossy(&line).into_owned();
        if !std::mem::replace(&mut self.has_begun, true) && line.starts_with('\u{feff}') {
            line.remove(0);
        }
        if line.is_empty() {
            let frame = std::mem::take(&mut self.frame);
            // One without data is none.
            if std::mem::take(&mut self.has_data) {
                self.complete.push_back(frame);
            }
            return Ok(());
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => value.clone_into(&mut self.frame.event),
            "id" => self.frame.id = Some(value.to_owned()),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.frame.data.push('\n');
                }
                self.frame.data.push_str(value);
            }
            _ => {}
        }
        if self.frame.data.len() > MOST_BYTES { Err(TooLong) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&[u8]]) -> Vec<Frame> {
        let mut parser = Parser::default();
        pieces.iter().for_each(|piece| parser.push(piece).unwrap());
        std::iter::from_fn(|| parser.pop()).collect()
    }

    fn frame(event: &str, id: Option<&str>, data: &str) -> Frame {
        Frame { event: event.to_owned(), id: id.map(str::to_owned), data: data.to_owned() }
    }

    #[test]
    fn events_are_read_however_they_are_written_and_cut() {
        let table: [(&str, Vec<Frame>); 12] = [
            ("id: a.1\nevent: opened\ndata: {}\n\n", vec![frame("opened", Some("a.1"), "{}")]),
            ("data:x\n\n", vec![frame("", None, "x")]),
            ("data:  x\n\n", vec![frame("", None, " x")]),
            ("data: a\ndata: b\ndata\n\n", vec![frame("", None, "a\nb\n")]),
            (": a comment\n\ndata: x\n\n\n\n", vec![frame("", None, "x")]),
            ("event: x\nid: 1\n\ndata: y\n\n", vec![frame("", None, "y")]),
            (
                "data: x\r\n\r\ndata: y\r\rdata: z\n\n",
                ["x", "y", "z"].map(|data| frame("", None, data)).into(),
            ),
            ("\u{feff}data: x\n\n", vec![frame("", None, "x")]),
            ("retry: 5\nother: 7\ndata: ü\n\n", vec![frame("", None, "ü")]),
            ("data: a: b\n\n", vec![frame("", None, "a: b")]),
            ("data: half", vec![]),
            ("data: whole\n", vec![]),
        ];
        for (text, expected) in table {
            assert_eq!(read(&[text.as_bytes()]), expected, "{text:?}");
            for cut in 0..=text.len() {
                let (one, two) = text.as_bytes().split_at(cut);
                assert_eq!(read(&[one, two]), expected, "{text:?} cut at {cut}");
            }
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(read(&bytes), expected, "{text:?} byte by byte");
        }
    }

    #[test]
    fn what_never_ends_is_refused() {
        let mut parser = Parser::default();
        let long = vec![b'x'; MOST_BYTES / 4];
        assert!((0..8).any(|_| parser.push(&long).is_err()), "a line");
        let mut parser = Parser::default();
        let line = [b"data: ", &long[..], b"\n"].concat();
        assert!((0..8).any(|_| parser.push(&line).is_err()), "an event");
    }
}
