//! The kernel's list of ports that it gives to nobody by itself: `net.ipv4.ip_local_reserved_ports`.
//!
//! **Owns** reading and changing it. There is one for each network namespace, for TCP and UDP, IPv4 and IPv6 together;
//! `/proc/sys/net` shows the calling thread's, and nobody else's is ever touched. A listed port is never chosen by
//! `connect()`, by a bind to port 0, by a listen without bind or by the first datagram of an unbound socket. Whoever
//! asks for it by number gets it.
//!
//! **Promises** that entries of other people survive, and that what was written is read back: the kernel takes at most
//! [`LONGEST_WRITE`] bytes at once, drops the rest, and tells so by a number that few programs look at (`sysctl -p` sets
//! the first 682 ports of a long list and reports success).
//!
//! **Refuses** to know whose an entry is. Nor can it take an entry out in one step, because the kernel cannot: it reads
//! the list and replaces it by the rest. What somebody else adds in the microseconds between is lost, and while a list
//! of several writes is replaced, its higher ports are missing for as long.
//!
//! Facts, all of them tried by the tests: a write at offset 0 replaces the list, a write at any other offset adds to
//! it; text that is no list is refused and changes nothing; reading goes on nowhere, so that the first read has to be
//! large enough for everything.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use gk_model::port::PortRange;
use gk_model::port_set::PortSet;

/// Where it is.
pub(crate) const LIST: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// The most bytes that the kernel takes at once: one less than a page of 4 KiB, the smallest there is.
const LONGEST_WRITE: usize = 4_095;

/// More than most lists. The kernel makes a buffer as long as ours before it writes a byte into it, which takes it 0.1 ms
/// for the longest, and a scan reads the list twice a second.
const USUAL_LIST: usize = 4 * 1024;

/// More than the longest list there can be: every other port, in 32,768 entries of at most six bytes.
const LONGEST_LIST: usize = 256 * 1024;

/// The list of the calling thread's network namespace, as it is now.
///
/// # Errors
/// When it cannot be read.
pub fn reserved_ports() -> io::Result<PortSet> {
    read(&File::open(LIST)?)
}

/// The list of the network namespace of the thread that opened it, open for changes.
#[derive(Debug)]
pub struct ReservedList(File);

impl ReservedList {
    /// Opens it. Nothing is changed by that alone, so it also tells whether this process may.
    ///
    /// # Errors
    /// `PermissionDenied` for whoever is neither root nor has CAP_NET_ADMIN, `ReadOnlyFilesystem` where `/proc/sys` is
    /// mounted so.
    pub fn open() -> io::Result<ReservedList> {
        File::options().read(true).write(true).open(LIST).map(ReservedList)
    }

    /// Adds ports, and reads back what the list holds then.
    ///
    /// # Errors
    /// When the kernel refuses; a part may have been added.
    pub fn add(&self, ports: &PortSet) -> io::Result<PortSet> {
        // Any offset but 0 adds, and has no other meaning.
        self.write(1, ports)?;
        read(&self.0)
    }

    /// Takes ports out, and reads back what the list holds then.
    ///
    /// # Errors
    /// When the kernel refuses; after a failure in the middle of a long list its higher ports are missing.
    pub fn take_out(&self, ports: &PortSet) -> io::Result<PortSet> {
        let mut rest = read(&self.0)?;
        rest.remove_all(ports);
        self.write(0, &rest)?;
        read(&self.0)
    }

    fn write(&self, mut offset: u64, ports: &PortSet) -> io::Result<()> {
        for chunk in chunks(&ports.ranges(), LONGEST_WRITE) {
            match self.0.write_at(chunk.as_bytes(), offset)? {
                taken if taken == chunk.len() => offset += taken as u64,
                taken => {
                    let what = format!("the kernel took {taken} of {} bytes", chunk.len());
                    return Err(io::Error::new(io::ErrorKind::WriteZero, what));
                }
            }
        }
        Ok(())
    }
}

fn read(file: &File) -> io::Result<PortSet> {
    let mut text = vec![0; USUAL_LIST];
    let mut length = file.read_at(&mut text, 0)?;
    // A list that fills the buffer was cut.
    if length == text.len() {
        text.resize(LONGEST_LIST, 0);
        length = file.read_at(&mut text, 0)?;
    }
    Ok(parse(&String::from_utf8_lossy(&text[..length])))
}

/// `8080,9148-9150`, or an empty line. Port 0, which the kernel takes as well, is none.
pub(crate) fn parse(text: &str) -> PortSet {
    let mut ports = PortSet::default();
    for entry in text.trim().split(',') {
        let range = match entry.strip_prefix("0-") {
            Some(last) => format!("1-{last}").parse(),
            None => entry.parse(),
        };
        range.into_iter().for_each(|range| ports.insert_range(range));
    }
    ports
}

/// The same list in texts of at most `longest` bytes, each a list of its own. Nothing is one empty line, because the
/// kernel takes no notice of an empty write.
fn chunks(ranges: &[PortRange], longest: usize) -> Vec<String> {
    let mut chunks = vec![String::new()];
    for range in ranges {
        let entry = range.to_string();
        let last = chunks.last_mut().expect("there is always one");
        match last.len() + 1 + entry.len() {
            _ if last.is_empty() => *last = entry,
            length if length <= longest => last.extend([",", &entry]),
            _ => chunks.push(entry),
        }
    }
    if ranges.is_empty() {
        chunks[0].push('\n');
    }
    chunks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use gk_model::port::Port;

    use super::*;

    fn ranges(text: &str) -> Vec<String> {
        parse(text).ranges().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_list_is_read_as_the_kernel_writes_it() {
        assert_eq!(ranges("8080,9148-9150\n"), ["8080", "9148-9150"]);
        assert_eq!(ranges("0-3,65535\n"), ["1-3", "65535"]);
        assert_eq!(ranges("0\n"), [""; 0]);
        assert_eq!(ranges("0-0,7\n"), ["7"]);
        assert_eq!(ranges("\n"), [""; 0]);
    }

    #[test]
    fn nothing_is_written_as_an_empty_line() {
        assert_eq!(chunks(&[], LONGEST_WRITE), ["\n"]);
    }

    proptest! {
        #[test]
        fn chunks_are_short_lists_that_hold_everything_once(
            ports in proptest::collection::btree_set(1u16.., 1..200), longest in 11usize..60,
        ) {
            let ports: PortSet = ports.into_iter().filter_map(Port::new).collect();
            let chunks = chunks(&ports.ranges(), longest);
            prop_assert!(chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= longest));
            prop_assert!(chunks.windows(2).all(|pair| pair[0].len() + 12 > longest || pair[0].len() + 1 + pair[1].len() > longest));
            prop_assert_eq!(parse(&chunks.join(",")), ports);
        }
    }
}
