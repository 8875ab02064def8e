//! A file of `/proc` that every scan reads: kept open, because opening and closing it costs four times what reading does.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// More than nearly all of them hold.
const USUAL_BYTES: usize = 4 * 1024;

/// More than any holds: a list of every other port, in 32,768 entries of at most six bytes.
const MOST_BYTES: usize = 256 * 1024;

/// One file, with what it held when it was read last.
#[derive(Debug)]
pub(crate) struct Polled {
    path: &'static str,
    file: Option<File>,
    text: Vec<u8>,
    /// To read into.
    buffer: Vec<u8>,
}

impl Polled {
    /// Not yet opened. A setting below `/proc/sys/net` is that of the thread that reads it first.
    pub(crate) const fn new(path: &'static str) -> Polled {
        Polled { path, file: None, text: Vec::new(), buffer: Vec::new() }
    }

    /// Reads it again; whether it holds something else than before. One that cannot be read holds nothing.
    pub(crate) fn refresh(&mut self) -> bool {
        self.buffer.resize(self.buffer.len().max(USUAL_BYTES), 0);
        let mut length = self.read().unwrap_or(0);
        // What fills the buffer was cut.
        if length == self.buffer.len() && length < MOST_BYTES {
            self.buffer.resize(MOST_BYTES, 0);
            length = self.read().unwrap_or(0);
        }
        let found = &self.buffer[..length];
        let is_other = self.text != found;
        if is_other {
            self.text.clear();
            self.text.extend_from_slice(found);
        }
        is_other
    }

    /// What it held.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.text).unwrap_or_default()
    }

    /// After an error it is opened anew.
    fn read(&mut self) -> io::Result<usize> {
        let file = match self.file.take() {
            Some(file) => file,
            None => File::open(self.path)?,
        };
        // The kernel makes the text anew for whoever reads at the beginning.
        let length = file.read_at(&mut self.buffer, 0)?;
        self.file = Some(file);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_read_anew_each_time_however_long_it_grows() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file").to_str().unwrap().to_owned().leak();
        let mut polled = Polled::new(path);
        assert_eq!((polled.refresh(), polled.text()), (false, ""), "it is not there");
        for length in [1, USUAL_BYTES - 1, USUAL_BYTES, USUAL_BYTES + 1, 100_000, 7, 0] {
            let text = "7".repeat(length);
            fs::write(&*path, &text).unwrap();
            assert!(polled.refresh());
            assert_eq!(polled.text(), text);
            assert!(!polled.refresh());
        }
        let mut load = Polled::new("/proc/loadavg");
        load.refresh();
        let numbers = load.text().split(' ').count();
        load.refresh();
        assert_eq!((numbers, load.text().split(' ').count()), (5, 5));
    }
}
