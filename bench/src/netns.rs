//! A network namespace for one thread, and the cheapest way there is to read its socket tables.
#![expect(unsafe_code, reason = "namespaces, interface flags and netlink have no safe interface in std")]

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};

/// Moves the calling thread into a new network namespace, in which `lo` is up. Children of this thread are born there.
pub(crate) fn enter_new() -> io::Result<()> {
    // SAFETY: takes a plain number, and changes the calling thread alone.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    let socket = open(libc::AF_INET, 0)?;
    // SAFETY: ifreq is plain numbers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l', b'o'].map(u8::cast_signed));
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq with a name and flags.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })?;
    Ok(())
}

/// From where the kernel gives ports to whoever asks for any, in this thread's namespace.
pub(crate) fn give_ports_from(range: &str) -> Result<()> {
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", range).context("cannot set the range of ports")
}

/// Dumps of sock_diag whose answers nobody looks at: the floor under every scan.
pub(crate) struct BareDumps {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl BareDumps {
    /// Of the calling thread's namespace.
    pub(crate) fn open() -> Result<BareDumps> {
        let socket = open(libc::AF_NETLINK, libc::NETLINK_SOCK_DIAG).context("no sock_diag")?;
        Ok(BareDumps { socket, buffer: vec![0; 64 * 1024] })
    }

    /// What a scan asks for: TCP in LISTEN, and UDP with and without a peer; of both families.
    pub(crate) fn run(&mut self) -> Result<()> {
        for (protocol, states) in [(6u8, 1u32 << 10), (17, 1 << 7 | 1 << 1)] {
            for family in [2u8, 10] {
                self.dump(family, protocol, states)?;
            }
        }
        Ok(())
    }

    fn dump(&mut self, family: u8, protocol: u8, states: u32) -> Result<()> {
        const LENGTH: usize = 72;
        const SOCK_DIAG_BY_FAMILY: u16 = 20;
        const REQUEST_AND_DUMP: u16 = 0x301;
        const NLMSG_DONE: u16 = 3;
        let mut request = [0u8; LENGTH];
        request[..4].copy_from_slice(&(LENGTH as u32).to_ne_bytes());
        request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        request[6..8].copy_from_slice(&REQUEST_AND_DUMP.to_ne_bytes());
        request[16..18].copy_from_slice(&[family, protocol]);
        request[20..24].copy_from_slice(&states.to_ne_bytes());
        let fd = self.socket.as_raw_fd();
        // SAFETY: pointer and length describe `request`.
        let sent = unsafe { libc::send(fd, request.as_ptr().cast(), LENGTH, 0) };
        ensure!(sent == LENGTH as isize, "cannot ask for a dump: {}", io::Error::last_os_error());
        loop {
            // SAFETY: pointer and length describe `buffer`, which is ours alone.
            let length = unsafe { libc::recv(fd, self.buffer.as_mut_ptr().cast(), self.buffer.len(), 0) };
            let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
            // The end of a dump is a datagram of its own.
            let kind = self.buffer[..length].get(4..6).context("a short answer")?;
            if u16::from_ne_bytes([kind[0], kind[1]]) <= NLMSG_DONE {
                return Ok(());
            }
        }
    }
}

fn open(domain: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes and returns plain numbers.
    let fd = check(unsafe { libc::socket(domain, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the descriptor was just opened and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
