//! The other system calls std does not offer, each behind a safe function: directories of numbers and links of
//! `/proc`, process descriptors, network namespaces, interfaces, `uname`, and a bind without SO_REUSEADDR.
#![expect(
    unsafe_code,
    reason = "std has no getdents, readlinkat, pidfd, poll, setns, getifaddrs, uname or plain bind"
)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use gk_model::contact::Family;
use gk_model::port::{Port, Protocol};

use crate::parse::Inode;

/// Names those entries of a directory that are numbers, from where it stands on: processes in `/proc`, descriptors in
/// `/proc/PID/fd`. `std::fs::read_dir` allocates twice for each, which shows when a machine has 100,000 descriptors.
/// A directory that can be read no further (its process ended) just ends.
pub(crate) fn for_each_number(directory: &File, mut each: impl FnMut(u32)) {
    let mut buffer = [0u8; 16 * 1024];
    loop {
        // SAFETY: the kernel writes at most `buffer.len()` bytes into `buffer`.
        let length = unsafe {
            libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
        };
        let Some(mut rest) = usize::try_from(length).ok().and_then(|length| buffer.get(..length)) else {
            return;
        };
        if rest.is_empty() {
            return;
        }
        while let Some((name, after)) = split_entry(rest) {
            each_number(name, &mut each);
            rest = after;
        }
    }
}

/// The name of the first `linux_dirent64` (8 bytes inode, 8 offset, 2 length, 1 type, then the name) and the rest.
fn split_entry(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::from(u16::from_ne_bytes(*bytes.get(16..)?.first_chunk()?));
    let name = bytes.get(19..length)?;
    Some((name.split(|byte| *byte == 0).next()?, bytes.get(length..)?))
}

fn each_number(name: &[u8], each: &mut impl FnMut(u32)) {
    let digits = name.iter().all(u8::is_ascii_digit).then(|| std::str::from_utf8(name).ok()).flatten();
    if let Some(number) = digits.and_then(|digits| digits.parse().ok()) {
        each(number);
    }
}

/// The socket behind descriptor `number` of a `/proc/PID/fd` directory; `None` when it is none.
pub(crate) fn socket_behind(directory: &File, number: u32) -> io::Result<Option<Inode>> {
    let mut name = [0u8; 11];
    {
        use io::Write;
        // Ten digits and the terminating zero that is already there.
        write!(&mut name[..10], "{number}")?;
    }
    let mut target = [0u8; 32];
    // SAFETY: `name` ends with a zero, and the kernel writes at most `target.len()` bytes into `target`.
    let length = unsafe {
        libc::readlinkat(
            directory.as_raw_fd(),
            name.as_ptr().cast(),
            target.as_mut_ptr().cast(),
            target.len(),
        )
    };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    Ok(target.get(..length).and_then(socket_inode))
}

/// Of a link's target: `socket:[4711]`.
fn socket_inode(target: &[u8]) -> Option<Inode> {
    let digits = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok().map(Inode)
}

/// A descriptor that stands for a process, whoever gets its number later. Linux 5.3.
pub(crate) fn open_process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes and returns plain numbers; the descriptor is close-on-exec by definition.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the descriptor was just opened and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Which of these processes have ended, in the same order; a process is ended as soon as it is a zombie.
pub(crate) fn have_ended(processes: &[BorrowedFd<'_>]) -> Vec<bool> {
    let watch =
        |process: &BorrowedFd<'_>| libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut polled: Vec<libc::pollfd> = processes.iter().map(watch).collect();
    // SAFETY: pointer and length describe `polled`; with a timeout of 0 the call does not wait.
    unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, 0) };
    polled.iter().map(|process| process.revents != 0).collect()
}

/// Whether a file that tells of changes by an exceptional condition has changed since this was last asked.
pub(crate) fn has_changed(file: &File) -> bool {
    let mut polled = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLPRI, revents: 0 };
    // SAFETY: the pointer is to one pollfd; with a timeout of 0 the call does not wait.
    unsafe { libc::poll(&raw mut polled, 1, 0) };
    polled.revents & libc::POLLPRI != 0
}

/// Moves the calling thread, and no other, into a network namespace. Needs CAP_SYS_ADMIN there and here.
pub(crate) fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: takes plain numbers, and refuses what is no network namespace.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The name of the interface with this index in the calling thread's network namespace.
pub(crate) fn interface_name(index: u32) -> Option<String> {
    let mut name = [0u8; libc::IF_NAMESIZE];
    // SAFETY: `name` has the IF_NAMESIZE bytes that the call may write.
    let known = unsafe { !libc::if_indextoname(index, name.as_mut_ptr().cast()).is_null() };
    let name = CStr::from_bytes_until_nul(&name).ok().filter(|_| known)?;
    Some(name.to_string_lossy().into_owned())
}

/// The addresses of every interface of the calling thread's network namespace but loopback.
pub(crate) fn interface_addresses() -> Vec<IpAddr> {
    let mut list = std::ptr::null_mut();
    // SAFETY: on success `list` is a valid list that is ours until freed below; on failure it is not looked at.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return Vec::new();
    }
    let (mut addresses, mut next) = (Vec::new(), list);
    // SAFETY: every `ifa_next` is null or valid until freeifaddrs.
    while let Some(interface) = unsafe { next.as_ref() } {
        if interface.ifa_flags & libc::IFF_LOOPBACK as libc::c_uint == 0 {
            // SAFETY: `ifa_addr` is null or points to an address of the type its family says.
            addresses.extend(unsafe { address(interface.ifa_addr) });
        }
        next = interface.ifa_next;
    }
    // SAFETY: came from getifaddrs, is freed once and not used after.
    unsafe { libc::freeifaddrs(list) };
    addresses
}

/// # Safety
/// `sockaddr` is null or points to a socket address of the type that its `sa_family` says.
unsafe fn address(sockaddr: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: by the caller's promise.
    match i32::from(unsafe { sockaddr.as_ref() }?.sa_family) {
        libc::AF_INET => {
            // SAFETY: AF_INET says that it is a sockaddr_in.
            let inet = unsafe { &*sockaddr.cast::<libc::sockaddr_in>() };
            Some(Ipv4Addr::from(u32::from_be(inet.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: AF_INET6 says that it is a sockaddr_in6.
            let inet6 = unsafe { &*sockaddr.cast::<libc::sockaddr_in6>() };
            Some(Ipv6Addr::from(inet6.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

/// What `uname` says of the running system.
#[derive(Debug)]
pub(crate) struct Uname {
    pub(crate) host_name: String,
    pub(crate) kernel: String,
    pub(crate) architecture: String,
}

/// Asks the kernel for its name.
pub(crate) fn uname() -> Option<Uname> {
    // SAFETY: utsname is arrays of bytes, for which zero is valid.
    let mut name: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: `name` is a utsname to be filled.
    if unsafe { libc::uname(&raw mut name) } != 0 {
        return None;
    }
    Some(Uname {
        host_name: text(&name.nodename),
        kernel: text(&name.release),
        architecture: text(&name.machine),
    })
}

fn text(field: &[libc::c_char]) -> String {
    let bytes: Vec<u8> =
        field.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Binds the wildcard address without SO_REUSEADDR, as `std` would set for TCP, and lets go at once. The IPv6 socket
/// is dual-stack, so that it also collides with IPv4 sockets.
pub(crate) fn bind_wildcard(protocol: Protocol, family: Family, port: Port) -> io::Result<()> {
    let kind = match protocol {
        Protocol::Tcp => libc::SOCK_STREAM,
        Protocol::Udp => libc::SOCK_DGRAM,
    };
    match family {
        Family::V4 => {
            let socket = open_socket(libc::AF_INET, kind)?;
            // SAFETY: sockaddr_in is plain numbers, for which zero is valid: the wildcard.
            let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
            address.sin_family = libc::AF_INET as libc::sa_family_t;
            address.sin_port = port.get().to_be();
            // SAFETY: `address` is a sockaddr_in.
            unsafe { bind(&socket, &address) }
        }
        Family::V6 => {
            let socket = open_socket(libc::AF_INET6, kind)?;
            accept_ipv4_too(&socket)?;
            // SAFETY: sockaddr_in6 is plain numbers, for which zero is valid: the wildcard.
            let mut address: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
            address.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            address.sin6_port = port.get().to_be();
            // SAFETY: `address` is a sockaddr_in6.
            unsafe { bind(&socket, &address) }
        }
    }
}

fn open_socket(domain: libc::c_int, kind: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes and returns plain numbers.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn accept_ipv4_too(socket: &OwnedFd) -> io::Result<()> {
    let off: libc::c_int = 0;
    let length = size_of_val(&off) as libc::socklen_t;
    // SAFETY: `off` is an int of the length given, alive during the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_V6ONLY,
            (&raw const off).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// # Safety
/// `A` is a socket address structure.
unsafe fn bind<A>(socket: &OwnedFd, address: &A) -> io::Result<()> {
    let length = size_of::<A>() as libc::socklen_t;
    // SAFETY: by the caller's promise, and `address` is alive during the call.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const *address).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_numbers_are_read_whole() {
        let directory = tempfile::tempdir().unwrap();
        for number in 0..2_000 {
            File::create(directory.path().join(number.to_string())).unwrap();
        }
        for other in ["self", "+7", "-1", "1a", "99999999999"] {
            File::create(directory.path().join(other)).unwrap();
        }
        let mut seen = Vec::new();
        for_each_number(&File::open(directory.path()).unwrap(), |number| seen.push(number));
        seen.sort_unstable();
        assert_eq!(seen, (0..2_000).collect::<Vec<u32>>());
    }

    #[test]
    fn a_descriptor_leads_to_its_socket_and_to_nothing_else() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let number = u32::try_from(socket.as_raw_fd()).unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap();
        let directory = File::open("/proc/self/fd").unwrap();
        let inode = socket_behind(&directory, number).unwrap().unwrap();
        assert_eq!(link.to_str().unwrap(), format!("socket:[{}]", inode.0));
        let own = u32::try_from(directory.as_raw_fd()).unwrap();
        assert_eq!(socket_behind(&directory, own).unwrap(), None);
        let none = socket_behind(&directory, u32::MAX).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::NotFound);
    }
}
