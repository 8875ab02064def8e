//! A network namespace of its own, sockets of every kind in it, and the words of the ledger.
#![expect(unsafe_code, reason = "namespaces and socket options have no safe interface in std")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use gk_model::listener::Listener;
use gk_model::port::{Port, Protocol};

/// Between fork and exec a child holds every descriptor of this process. That is the truth, and a scan shows it; so
/// tests that compare owners take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Runs a test on a thread with a network namespace of its own, in which only `lo` exists and is up.
///
/// Where that is not permitted it fails under CI, and elsewhere says what was not exercised.
pub(crate) fn in_new_namespace(what: &str, test: impl FnOnce() + Send) {
    after(enter_new_namespace, what, test);
}

/// Runs a test on a thread as `enter` leaves it.
pub(crate) fn after(enter: fn() -> io::Result<()>, what: &str, test: impl FnOnce() + Send) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        let run = || match enter() {
            Ok(()) => {
                // First, because some tests give up the right to write anything down.
                exercised("network namespaces of our own");
                test();
            }
            Err(error) => refused("network namespaces of our own", what, &error),
        };
        if let Err(panic) = scope.spawn(run).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Notes that something of the kernel's was there and did what a test expects, for the table that `make test` ends with.
pub(crate) fn exercised(facility: &str) {
    note(&format!("exercised\t{facility}"));
}

/// Notes that something was not to be had, so that a test could not be made. Under CI that is a failure.
pub(crate) fn refused(facility: &str, test: &str, why: &io::Error) {
    assert!(std::env::var_os("CI").is_none(), "{facility}, for {test}: {why}");
    note(&format!("REFUSED\t{facility}: {why}"));
    // Past the capture of the test harness, which would swallow what a passing test prints.
    writeln!(io::stderr(), "NOT EXERCISED: {test}, for want of {facility}: {why}").unwrap();
}

fn note(line: &str) {
    if let Ok(file) = std::env::var("GATEKEEPER_FACILITIES") {
        // As the first thread of this process sees it: this one may have file systems of its own.
        let file = format!("/proc/self/root{file}");
        let mut file = fs::File::options().create(true).append(true).open(file).unwrap();
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

pub(crate) fn enter_new_namespace() -> io::Result<()> {
    // SAFETY: changes the network namespace of this thread alone, which was made for the purpose.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    let socket = open(libc::AF_INET, libc::SOCK_DGRAM);
    // SAFETY: ifreq is plain numbers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l', b'o'].map(u8::cast_signed));
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq with a name and flags.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })?;
    // The kernel gives ports to servers from one range and, later, to clients from another.
    give_ports_from("20000 29999");
    Ok(())
}

/// Sets from where the kernel gives ports in this namespace.
pub(crate) fn give_ports_from(range: &str) {
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", range).unwrap();
}

/// Makes this thread an account without any capability, for as long as it lives.
pub(crate) fn become_nobody() {
    const NOBODY: libc::uid_t = 65_534;
    // SAFETY: takes plain numbers. The system call changes this thread alone; libc's function of that name, all of them.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// A socket as a test wants it.
#[derive(Clone, Copy)]
pub(crate) struct Spec {
    pub(crate) protocol: Protocol,
    pub(crate) address: &'static str,
    pub(crate) port: u16,
    pub(crate) v6only: bool,
    pub(crate) reuse_port: bool,
    pub(crate) interface: &'static str,
}

/// Any port of this address, without options.
pub(crate) const fn at(protocol: Protocol, address: &'static str) -> Spec {
    Spec { protocol, address, port: 0, v6only: false, reuse_port: false, interface: "" }
}

impl Spec {
    /// Opens it without binding it.
    pub(crate) fn open(self) -> OwnedFd {
        let address: IpAddr = self.address.parse().unwrap();
        let domain = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let kind = if self.protocol == Protocol::Tcp { libc::SOCK_STREAM } else { libc::SOCK_DGRAM };
        let socket = open(domain, kind);
        if address.is_ipv6() {
            set(&socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &i32::from(self.v6only).to_ne_bytes());
        }
        if self.reuse_port {
            set(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, &1i32.to_ne_bytes());
        }
        if !self.interface.is_empty() {
            set(&socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, self.interface.as_bytes());
        }
        socket
    }

    /// Opens and binds it.
    pub(crate) fn bind(self) -> OwnedFd {
        let socket = self.open();
        self.bind_to(&socket);
        socket
    }

    /// Binds a socket that was opened in another way.
    pub(crate) fn bind_to(self, socket: &OwnedFd) {
        self.try_bind(socket).unwrap();
    }

    /// As [`Spec::bind_to`], where somebody may be in the way.
    pub(crate) fn try_bind(self, socket: &OwnedFd) -> io::Result<()> {
        bind(socket, SocketAddr::new(self.address.parse().unwrap(), self.port))
    }

    /// Opens it and makes it accept traffic.
    pub(crate) fn serve(self) -> OwnedFd {
        let socket = self.bind();
        if self.protocol == Protocol::Tcp {
            listen(&socket);
        }
        socket
    }
}

/// Makes a TCP socket accept connections.
pub(crate) fn listen(socket: &OwnedFd) {
    // SAFETY: takes plain numbers.
    check(unsafe { libc::listen(socket.as_raw_fd(), 16) }).unwrap();
}

pub(crate) fn open(domain: libc::c_int, kind: libc::c_int) -> OwnedFd {
    // SAFETY: takes and returns plain numbers.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, 0) };
    check(fd).unwrap();
    // SAFETY: the descriptor was just opened and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

pub(crate) fn set(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &[u8]) {
    let length = libc::socklen_t::try_from(value.len()).unwrap();
    // SAFETY: pointer and length describe `value`.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), length) })
        .unwrap();
}

fn bind(socket: &OwnedFd, to: SocketAddr) -> io::Result<()> {
    // SAFETY: both structures are plain numbers, for which zero is valid.
    let (mut v4, mut v6): (libc::sockaddr_in, libc::sockaddr_in6) = unsafe { std::mem::zeroed() };
    let (address, length): (*const libc::sockaddr, usize) = match to {
        SocketAddr::V4(to) => {
            v4.sin_family = libc::AF_INET as libc::sa_family_t;
            v4.sin_port = to.port().to_be();
            v4.sin_addr.s_addr = u32::from_ne_bytes(to.ip().octets());
            ((&raw const v4).cast(), size_of_val(&v4))
        }
        SocketAddr::V6(to) => {
            v6.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            v6.sin6_port = to.port().to_be();
            v6.sin6_addr.s6_addr = to.ip().octets();
            ((&raw const v6).cast(), size_of_val(&v6))
        }
    };
    // SAFETY: `address` points to a socket address of `length` bytes that lives until the end of this function.
    check(unsafe { libc::bind(socket.as_raw_fd(), address, libc::socklen_t::try_from(length).unwrap()) })
}

pub(crate) fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What the socket was given.
pub(crate) fn address_of(socket: &OwnedFd) -> SocketAddr {
    // `getsockname` is the same for every kind of socket; std offers it on this type.
    UdpSocket::from(socket.try_clone().unwrap()).local_addr().unwrap()
}

/// Its port.
pub(crate) fn port_of(socket: &OwnedFd) -> Port {
    Port::new(address_of(socket).port()).unwrap()
}

/// What the kernel says of IPV6_V6ONLY, which bind sets by itself for any address but the wildcard.
pub(crate) fn v6only_of(socket: &OwnedFd) -> bool {
    let (mut value, mut length): (libc::c_int, libc::socklen_t) = (0, 4);
    let (level, option) = (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
    let value_at = (&raw mut value).cast();
    // SAFETY: `value` is an int of `length` bytes, to be filled.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, value_at, &raw mut length) }).unwrap();
    value != 0
}

/// A child that holds this socket, and no other of ours, until it is killed.
pub(crate) fn spawn_holder(socket: &OwnedFd) -> Child {
    let fd = socket.as_raw_fd();
    let mut command = Command::new("cat");
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    // SAFETY: fcntl is async-signal-safe and changes only the child's own table of descriptors.
    unsafe { command.pre_exec(move || check(libc::fcntl(fd, libc::F_SETFD, 0))) };
    // Returns when the child has called exec, so it holds nothing else any more.
    command.spawn().unwrap()
}

/// One listener in the words of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) protocol: Protocol,
    pub(crate) address: SocketAddr,
    pub(crate) interface: String,
    pub(crate) v6only: bool,
    pub(crate) owners: BTreeSet<u32>,
}

impl Entry {
    /// Of a socket that only this process holds.
    pub(crate) fn own(spec: Spec, socket: &OwnedFd) -> Entry {
        let address = address_of(socket);
        Entry {
            protocol: spec.protocol,
            address,
            interface: spec.interface.to_owned(),
            v6only: address.is_ipv6() && v6only_of(socket),
            owners: BTreeSet::from([std::process::id()]),
        }
    }

    /// As `ss` writes it: `*` for the dual-stack wildcard, `[::]` for the other, the interface after `%`.
    pub(crate) fn as_in_ss(&self) -> String {
        let address = match self.address.ip() {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) if address.is_unspecified() && !self.v6only => "*".to_owned(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        let interface =
            if self.interface.is_empty() { String::new() } else { format!("%{}", self.interface) };
        format!("{} {address}{interface}:{}", self.protocol, self.address.port())
    }
}

impl From<&Listener> for Entry {
    fn from(listener: &Listener) -> Entry {
        let key = &listener.key;
        Entry {
            protocol: key.protocol,
            address: SocketAddr::new(key.address, key.port.get()),
            interface: key.interface.as_ref().map(ToString::to_string).unwrap_or_default(),
            v6only: key.v6only,
            owners: listener.owners.iter().map(|owner| owner.pid).collect(),
        }
    }
}

/// What `ss` sees in this namespace; `None` when there is no `ss`, which CI must have.
pub(crate) fn ss() -> Option<BTreeSet<String>> {
    let output = match Command::new("ss").args(["-H", "-t", "-u", "-l", "-n"]).output() {
        Ok(output) => output,
        Err(error) => {
            refused("ss, the second witness", "a comparison with what it sees", &error);
            return None;
        }
    };
    exercised("ss, the second witness");
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        format!("{} {}", fields[0], fields[4])
    };
    Some(text.lines().map(line).collect())
}

/// Takes a TCP socket out of LISTEN without closing it.
pub(crate) fn stop_listening(socket: &OwnedFd) {
    // SAFETY: takes plain numbers.
    check(unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RD) }).unwrap();
}
