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

/// The kernel fills at most 32 KiB per datagram of a dump; twice that leaves room for a change of mind.
const RECEIVE_BYTES: usize = 64 * 1024;

/// A dump is computed while we receive, so nothing ever takes seconds; this only turns a hang into an error.
const RECEIVE_TIMEOUT_SECONDS: libc::time_t = 5;

/// How often a dump is repeated when the kernel says that the table changed under it.
const DUMP_ATTEMPTS: usize = 4;

/// An open sock_diag socket.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens it in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Netlink, ScanError> {
        let socket = connected_socket().map_err(ScanError::Open)?;
        Ok(Netlink { socket, sequence: 0, buffer: vec![0; RECEIVE_BYTES] })
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
        self.sequence = self.sequence.wrapping_add(1);
        self.send(&query.encode(self.sequence)).map_err(ScanError::Exchange)?;
        let mut settled = true;
        loop {
            let length = self.receive().map_err(ScanError::Exchange)?;
            let datagram = self.buffer.get(..length).ok_or(ScanError::Malformed)?;
            for envelope in messages(datagram) {
                if let Message::Malformed = envelope.message {
                    return Err(ScanError::Malformed);
                }
                if envelope.sequence != self.sequence {
                    continue;
                }
                settled &= !envelope.interrupted;
                match envelope.message {
                    Message::Socket(told) => dump.hear(told),
                    Message::Done => return Ok(settled),
                    Message::Failed(errno) => {
                        return Err(ScanError::Refused(io::Error::from_raw_os_error(errno)));
                    }
                    Message::Other | Message::Malformed => {}
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
