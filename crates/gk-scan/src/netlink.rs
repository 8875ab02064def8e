//! The sock_diag socket: sends one query, receives its dump. Thin on purpose; what the bytes mean is `parse`'s concern.
//!
//! A socket shows the network namespace of the thread that opened it, for as long as it is open. No privilege is needed.
#![expect(
    unsafe_code,
    reason = "netlink has no safe interface in std: socket, setsockopt, connect, send, recv"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::ScanError;
use crate::dump::Dump;
use crate::parse::{Message, Query, messages};

/// The kernel fills at most 32 KiB per datagram of a dump, and less where we cannot take as much (`netlink_dump` in
/// `net/netlink/af_netlink.c`).
const RECEIVE_BYTES: usize = 32 * 1024;

/// A dump is computed while we receive, so nothing ever takes seconds; this only turns a hang into an error.
const RECEIVE_TIMEOUT_SECONDS: libc::time_t = 5;

/// How often a dump is repeated when the kernel says that the table changed under it.
const DUMP_ATTEMPTS: usize = 4;

/// An open sock_diag socket.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens it in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Netlink, ScanError> {
        let socket = connected_socket().map_err(ScanError::Open)?;
        Ok(Netlink { socket, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// Brings `dump` to what the query finds now. After an error it holds an unknown part of that, and this socket may
    /// still receive the rest: open another one.
    pub(crate) fn dump(&mut self, query: Query, dump: &mut Dump) -> Result<(), ScanError> {
        dump.begin();
        for _ in 0..DUMP_ATTEMPTS {
            dump.rewind();
            let settled = self.dump_once(query, dump)?;
            if settled {
                dump.end(query.protocol);
                return Ok(());
            }
        }
        Err(ScanError::Unsettled)
    }

    /// Whether the table held still during the dump.
    fn dump_once(&mut self, query: Query, dump: &mut Dump) -> Result<bool, ScanError> {
        self.send(&query.encode()).map_err(ScanError::Exchange)?;
        let mut settled = true;
        loop {
            let length = self.receive().map_err(ScanError::Exchange)?;
            let datagram = self.buffer.get(..length).ok_or(ScanError::Malformed)?;
            if dump.hear_again(datagram) {
                continue;
            }
            for envelope in messages(datagram) {
                settled &= !envelope.interrupted;
                match envelope.message {
                    // What an interrupted dump tells is not kept: then what is told again was not interrupted.
                    Message::Socket(told) if settled => dump.hear(told),
                    Message::Done => return Ok(settled),
                    Message::Failed(errno) => {
                        return Err(ScanError::Refused(io::Error::from_raw_os_error(errno)));
                    }
                    Message::Malformed => return Err(ScanError::Malformed),
                    Message::Socket(_) | Message::Other => {}
                }
            }
        }
    }

    fn send(&self, request: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer and length describe `request`, which outlives the call.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
        if usize::try_from(sent) == Ok(request.len()) { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The length of the next datagram, which may exceed the buffer: then it was cut.
    fn receive(&mut self) -> io::Result<usize> {
        loop {
            let (socket, buffer) = (self.socket.as_raw_fd(), &mut self.buffer);
            // SAFETY: the pointer and length describe `buffer`, which is ours alone during the call.
            let length =
                unsafe { libc::recv(socket, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_TRUNC) };
            match usize::try_from(length) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => return Ok(length),
                Err(_) => match io::Error::last_os_error() {
                    interrupted if interrupted.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
    }
}

/// Connected to the kernel, so that no other process can slip us an answer.
fn connected_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    // SAFETY: takes and returns plain numbers.
    let fd = checked(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG) })?;
    // SAFETY: the descriptor was just opened and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let timeout = libc::timeval { tv_sec: RECEIVE_TIMEOUT_SECONDS, tv_usec: 0 };
    // SAFETY: `timeout` is a timeval of the length given, alive during the call.
    checked(unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const timeout).cast(),
            size_of_val(&timeout) as libc::socklen_t,
        )
    })?;
    // SAFETY: sockaddr_nl is plain numbers, for which zero is valid: port 0 is the kernel.
    let mut kernel: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    kernel.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    // SAFETY: `kernel` is a sockaddr_nl of the length given, alive during the call.
    checked(unsafe {
        libc::connect(fd, (&raw const kernel).cast(), size_of_val(&kernel) as libc::socklen_t)
    })?;
    Ok(socket)
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::thread;

    use gk_model::contact::Family;
    use gk_model::port::Protocol;

    use super::*;
    use crate::parse::{State, States};

    const NLM_F_DUMP_INTR: u8 = 0x10;

    /// One socket with this cookie, told by a dump that may be interrupted.
    fn told(cookie: u8, flags: u8) -> Vec<u8> {
        let mut message = vec![0; 88];
        (message[0], message[4], message[6]) = (88, 20, flags);
        (message[16], message[17], message[21], message[60]) = (2, 10, 80, cookie);
        message
    }

    fn done() -> Vec<u8> {
        [&[20, 0, 0, 0, 3][..], &[0; 15]].concat()
    }

    /// Answers each query with the next of these.
    fn kernel(answers: Vec<Vec<Vec<u8>>>) -> (Netlink, thread::JoinHandle<()>) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let answer = move || {
            for datagrams in answers {
                theirs.recv(&mut [0; 128]).unwrap();
                for datagram in datagrams.into_iter().chain([done()]) {
                    theirs.send(&datagram).unwrap();
                }
            }
        };
        (Netlink { socket: ours.into(), buffer: vec![0; RECEIVE_BYTES] }, thread::spawn(answer))
    }

    #[test]
    fn an_interrupted_dump_is_made_again_although_it_tells_what_was_told_before() {
        let intr = NLM_F_DUMP_INTR;
        let (mut netlink, kernel) = kernel(vec![
            vec![told(1, 0), told(2, 0)],
            // Interrupted in its first message, and later; then neither.
            vec![told(1, intr), told(2, 0)],
            vec![told(1, 0), told(3, intr)],
            vec![told(1, 0), told(2, 0)],
            // Three in a row, of which the third tells the same as the second.
            vec![told(1, 0), told(4, intr)],
            vec![told(1, intr), told(4, intr)],
            vec![told(1, intr), told(4, intr)],
            vec![told(1, 0), told(4, 0)],
            // Never.
            vec![told(1, intr)],
            vec![told(1, intr)],
            vec![told(1, intr)],
            vec![told(1, intr)],
        ]);
        let query =
            Query { protocol: Protocol::Tcp, family: Family::V4, states: States::of(&[State::LISTEN]) };
        let mut dump = Dump::default();
        for (cookies, is_news) in [([1, 2], true), ([1, 2], false), ([1, 4], true)] {
            netlink.dump(query, &mut dump).unwrap();
            assert_eq!(dump.is_news(), is_news, "{cookies:?}");
            if let Some(news) = dump.take_news() {
                assert_eq!(news.iter().map(|socket| socket.cookie.0).collect::<Vec<_>>(), cookies);
            }
        }
        assert!(matches!(netlink.dump(query, &mut dump), Err(ScanError::Unsettled)));
        kernel.join().unwrap();
    }
}
