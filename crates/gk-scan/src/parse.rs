//! The language of sock_diag: a query out, messages in. Pure: bytes to values, no system call.
//!
//! Formats come from `linux/netlink.h` (`nlmsghdr`, `nlattr`) and `linux/inet_diag.h` (`inet_diag_req_v2`,
//! `inet_diag_msg`). Numbers are in the machine's byte order, ports and addresses in the network's. The kernel is
//! trusted to be the sender but not to be the kernel we know: nothing here indexes without asking, unknown attributes
//! and message types are passed over, and a length that does not fit ends the datagram as [`Message::Malformed`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use gk_model::contact::Family;
use gk_model::port::{Port, Protocol};

/// Bytes of a query: `nlmsghdr` and `inet_diag_req_v2`.
const QUERY_BYTES: usize = HEADER_BYTES + 56;
const HEADER_BYTES: usize = 16;
/// Bytes of `inet_diag_msg`, after which attributes follow.
const SOCKET_BYTES: usize = 72;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const INET_DIAG_SKV6ONLY: u16 = 11;
const INET_DIAG_CGROUP_ID: u16 = 21;

/// The state of a socket in the kernel's numbering, which UDP borrows from TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State(u8);

impl State {
    /// A TCP connection, or a UDP socket that has one peer.
    pub(crate) const ESTABLISHED: State = State(1);
    /// For UDP: a socket that takes datagrams from anyone.
    pub(crate) const CLOSE: State = State(7);
    /// A TCP socket that accepts connections.
    pub(crate) const LISTEN: State = State(10);
    /// A TCP socket that is bound and does nothing yet. A state to ask for only, since Linux 6.8: the sockets
    /// themselves answer with `CLOSE`, and an older kernel finds none.
    pub(crate) const BOUND_INACTIVE: State = State(13);
}

/// A set of states, as a dump is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct States(u32);

impl States {
    /// Whatever holds a port, in any state this or a later kernel knows.
    pub(crate) const ALL: States = States(u32::MAX);

    pub(crate) const fn of(states: &[State]) -> States {
        let (mut mask, mut index) = (0, 0);
        while index < states.len() {
            mask |= 1 << states[index].0;
            index += 1;
        }
        States(mask)
    }
}

/// What a dump is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query {
    pub(crate) protocol: Protocol,
    pub(crate) family: Family,
    pub(crate) states: States,
}

impl Query {
    /// The request as the kernel wants it. All have the same sequence number, zero, which its answers repeat: each is read
    /// to its end before the next is sent, and so what did not change is told in the same bytes.
    pub(crate) fn encode(self) -> [u8; QUERY_BYTES] {
        let mut bytes = [0; QUERY_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &(QUERY_BYTES as u32).to_ne_bytes());
        put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        put(6, &(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
        put(HEADER_BYTES, &[family_number(self.family), protocol_number(self.protocol)]);
        put(HEADER_BYTES + 4, &self.states.0.to_ne_bytes());
        bytes
    }
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

/// The kernel's name for a socket: unique until the machine restarts, unlike its inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Cookie(pub(crate) u64);

/// A socket's number in `/proc/PID/fd`, `socket:[4711]`. The kernel gives numbers again after 2³².
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Inode(pub(crate) u32);

/// The number of a cgroup: the inode of its directory in the cgroup2 file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CgroupId(pub(crate) u64);

/// The number of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Uid(pub(crate) u32);

/// A socket that holds a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Socket {
    pub(crate) cookie: Cookie,
    pub(crate) protocol: Protocol,
    pub(crate) state: State,
    pub(crate) port: Port,
    pub(crate) address: IpAddr,
    /// The interface it is bound to, by index; 0 for none.
    pub(crate) interface_index: u32,
    /// Told for listening TCP and unconnected UDP sockets; false for all others.
    pub(crate) v6only: bool,
    pub(crate) uid: Uid,
    /// `None` when no process ever held it, as with sockets of the kernel itself.
    pub(crate) inode: Option<Inode>,
    /// `None` on kernels before 5.7 and those without cgroups.
    pub(crate) cgroup: Option<CgroupId>,
}

/// A message with what its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Envelope<'a> {
    /// The kernel says that the table changed during the dump.
    pub(crate) interrupted: bool,
    pub(crate) message: Message<'a>,
}

/// What the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// One socket.
    Socket(Told<'a>),
    /// The dump ends here, complete.
    Done,
    /// The dump was refused or broken off, with this `errno`.
    Failed(i32),
    /// Nothing that matters: another type of message.
    Other,
    /// A length that cannot be; the rest of the datagram is lost.
    Malformed,
}

/// A socket as the kernel tells of it: an `inet_diag_msg` and its attributes, not yet read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told<'a> {
    /// The whole message, its header included, without padding.
    message: &'a [u8],
    /// The compiler knows how long it is, and so that each of its fields is there.
    fixed: &'a [u8; SOCKET_BYTES],
    attributes: &'a [u8],
}

/// The messages of one datagram.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = Envelope<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        (!rest.is_empty()).then(|| match split_message(rest) {
            Some((header, message, after)) => {
                rest = after;
                envelope(&header, message)
            }
            None => {
                rest = &[];
                Envelope { interrupted: false, message: Message::Malformed }
            }
        })
    })
}

struct Header {
    kind: u16,
    flags: u16,
}

/// The first message, what its header says, and what follows its padding.
fn split_message(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let length = usize::try_from(number32(bytes, 0)?).ok()?;
    let message = bytes.get(..length).filter(|message| message.len() >= HEADER_BYTES)?;
    let header = Header { kind: number16(bytes, 4)?, flags: number16(bytes, 6)? };
    Some((header, message, after_padding(bytes, length)))
}

/// What follows the first `length` of these bytes and the padding to a multiple of four, which the last item may lack.
fn after_padding(bytes: &[u8], length: usize) -> &[u8] {
    bytes.get((length + 3) & !3..).unwrap_or_default()
}

/// `N` bytes from offset `at`. By reference, so that a number is loaded whole: a copy is put together byte by byte,
/// which makes the parser half as slow again.
fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<&[u8; N]> {
    bytes.get(at..)?.first_chunk()
}

fn number16(bytes: &[u8], at: usize) -> Option<u16> {
    field(bytes, at).map(|field| u16::from_ne_bytes(*field))
}

fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    field(bytes, at).map(|field| u32::from_ne_bytes(*field))
}

fn number64(bytes: &[u8], at: usize) -> Option<u64> {
    field(bytes, at).map(|field| u64::from_ne_bytes(*field))
}

fn envelope<'a>(header: &Header, message: &'a [u8]) -> Envelope<'a> {
    let payload = message.get(HEADER_BYTES..).unwrap_or_default();
    let message = match header.kind {
        NLMSG_DONE => ending(payload, Message::Done),
        // An "error" of 0 is an acknowledgement, which no dump asks for.
        NLMSG_ERROR => ending(payload, Message::Other),
        SOCK_DIAG_BY_FAMILY => match payload.split_first_chunk() {
            Some((fixed, attributes)) => Message::Socket(Told { message, fixed, attributes }),
            None => Message::Malformed,
        },
        _ => Message::Other,
    };
    Envelope { interrupted: header.flags & NLM_F_DUMP_INTR != 0, message }
}

/// Both NLMSG_DONE and NLMSG_ERROR begin with a negated `errno`; old kernels leave it out of NLMSG_DONE.
fn ending<'a>(payload: &[u8], fine: Message<'a>) -> Message<'a> {
    match number32(payload, 0).map(u32::cast_signed) {
        Some(negated) if negated < 0 => Message::Failed(negated.saturating_neg()),
        _ => fine,
    }
}

impl<'a> Told<'a> {
    /// How long a message is for most sockets; none with all that is asked for is shorter.
    pub(crate) const USUAL_BYTES: usize = 124;

    /// One that was kept by [`Told::keep`], at the beginning of these bytes, and what follows it.
    pub(crate) fn kept(bytes: &'a [u8]) -> Option<(Told<'a>, &'a [u8])> {
        let (header, message, after) = split_message(bytes)?;
        match envelope(&header, message).message {
            Message::Socket(told) => Some((told, after)),
            _ => None,
        }
    }

    /// Adds it to `bytes`, as the kernel would.
    pub(crate) fn keep(self, bytes: &mut Vec<u8>) {
        bytes.extend(self.message);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }

    /// Writes it over one that is the same.
    pub(crate) fn keep_over(self, kept: &mut [u8]) {
        if let Some(kept) = kept.get_mut(..self.message.len()) {
            kept.copy_from_slice(self.message);
        }
    }

    /// Whether it tells the same but for timers and queues, which say nothing of who a socket is.
    pub(crate) fn is_same(self, other: Told<'_>) -> bool {
        let (one, other_one) = (self.fixed, other.fixed);
        // Of lengths that the compiler knows, which it compares without a call.
        field::<48>(one, 4) == field::<48>(other_one, 4)
            && field::<8>(one, 64) == field::<8>(other_one, 64)
            && field::<2>(one, 0) == field::<2>(other_one, 0)
            && self.attributes == other.attributes
    }

    /// `None` when it holds no port, or is of a family that has none. The kernel does not repeat the protocol that it was
    /// asked for.
    pub(crate) fn read(self, protocol: Protocol) -> Option<Socket> {
        let Told { fixed, attributes, .. } = self;
        let [family, state] = *field(fixed, 0)?;
        let inode = number32(fixed, 68)?;
        let mut socket = Socket {
            cookie: Cookie(u64::from(number32(fixed, 48)?) << 32 | u64::from(number32(fixed, 44)?)),
            protocol,
            state: State(state),
            port: Port::new(u16::from_be(number16(fixed, 4)?))?,
            address: address(family, fixed)?,
            interface_index: number32(fixed, 40)?,
            v6only: false,
            uid: Uid(number32(fixed, 64)?),
            inode: (inode != 0).then_some(Inode(inode)),
            cgroup: None,
        };
        read_attributes(attributes, &mut socket);
        Some(socket)
    }
}

/// `idiag_src`, of which an IPv4 socket fills the first four bytes.
fn address(family: u8, fixed: &[u8; SOCKET_BYTES]) -> Option<IpAddr> {
    match family {
        2 => Some(Ipv4Addr::from(*field::<4>(fixed, 8)?).into()),
        10 => Some(Ipv6Addr::from(*field::<16>(fixed, 8)?).into()),
        _ => None,
    }
}

/// Each is its length, its type, and its value; ends at the first whose length cannot be.
fn read_attributes(mut rest: &[u8], socket: &mut Socket) {
    while let Some(header) = number32(rest, 0).map(u32::to_ne_bytes) {
        let (length, kind) = ([header[0], header[1]], [header[2], header[3]]);
        let length = usize::from(u16::from_ne_bytes(length));
        let Some(value) = rest.get(4..length) else { return };
        match u16::from_ne_bytes(kind) {
            INET_DIAG_SKV6ONLY => socket.v6only = value.first().is_some_and(|flag| *flag != 0),
            INET_DIAG_CGROUP_ID => socket.cgroup = number64(value, 0).map(CgroupId),
            _ => {}
        }
        rest = after_padding(rest, length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message with its header and padding, as the kernel lays it out.
    fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_BYTES + payload.len()).unwrap();
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes()].concat();
        bytes.extend([&7u32.to_ne_bytes()[..], &0u32.to_ne_bytes(), payload].concat());
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// `[::1]:8080`, bound to interface 3, v6only, of account 1000, in cgroup 77.
    fn socket_payload() -> Vec<u8> {
        let mut payload = vec![0; SOCKET_BYTES];
        payload[0] = 10;
        payload[1] = State::LISTEN.0;
        payload[4..6].copy_from_slice(&8080u16.to_be_bytes());
        payload[8..24].copy_from_slice(&Ipv6Addr::LOCALHOST.octets());
        payload[40..44].copy_from_slice(&3u32.to_ne_bytes());
        payload[44..48].copy_from_slice(&5u32.to_ne_bytes());
        payload[48..52].copy_from_slice(&1u32.to_ne_bytes());
        payload[64..68].copy_from_slice(&1000u32.to_ne_bytes());
        payload[68..72].copy_from_slice(&4711u32.to_ne_bytes());
        for (kind, value) in [(8, &[0][..]), (INET_DIAG_SKV6ONLY, &[1]), (21, &77u64.to_ne_bytes())] {
            payload.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            payload.extend(u16::to_ne_bytes(kind));
            payload.extend(value);
            payload.resize(payload.len().next_multiple_of(4), 0);
        }
        payload
    }

    fn read(datagram: &[u8]) -> Vec<Message<'_>> {
        let read = |envelope: Envelope<'_>| {
            if let Message::Socket(told) = envelope.message {
                told.read(Protocol::Tcp);
            }
        };
        messages(datagram).inspect(|envelope| read(*envelope)).map(|envelope| envelope.message).collect()
    }

    #[test]
    fn a_socket_is_read_field_by_field() {
        let expected = Socket {
            cookie: Cookie(1 << 32 | 5),
            protocol: Protocol::Tcp,
            state: State::LISTEN,
            port: Port::new(8080).unwrap(),
            address: Ipv6Addr::LOCALHOST.into(),
            interface_index: 3,
            v6only: true,
            uid: Uid(1000),
            inode: Some(Inode(4711)),
            cgroup: Some(CgroupId(77)),
        };
        let mut datagram = message(SOCK_DIAG_BY_FAMILY, 2, &socket_payload());
        datagram.extend(message(NLMSG_DONE, 2 | NLM_F_DUMP_INTR, &0i32.to_ne_bytes()));
        let all: Vec<Envelope<'_>> = messages(&datagram).collect();
        assert!(!all[0].interrupted);
        let Message::Socket(told) = all[0].message else { panic!("{:?}", all[0]) };
        assert_eq!(told.read(Protocol::Tcp), Some(expected));
        assert_eq!(all[1], Envelope { interrupted: true, message: Message::Done });
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn endings_carry_their_errno() {
        assert_eq!(read(&message(NLMSG_DONE, 0, &[])), [Message::Done]);
        assert_eq!(read(&message(NLMSG_DONE, 0, &(-4i32).to_ne_bytes())), [Message::Failed(4)]);
        assert_eq!(read(&message(NLMSG_ERROR, 0, &(-2i32).to_ne_bytes())), [Message::Failed(2)]);
        assert_eq!(read(&message(NLMSG_ERROR, 0, &i32::MIN.to_ne_bytes())), [Message::Failed(i32::MAX)]);
        assert_eq!(read(&message(NLMSG_ERROR, 0, &0i32.to_ne_bytes())), [Message::Other]);
        assert_eq!(read(&message(99, 0, b"whatever")), [Message::Other]);
    }

    #[test]
    fn lengths_that_cannot_be_end_the_datagram() {
        for length in [0u32, 15, 17, u32::MAX] {
            let mut datagram = message(NLMSG_DONE, 0, &[]);
            datagram[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(read(&datagram), [Message::Malformed], "length {length}");
        }
        assert_eq!(read(&message(SOCK_DIAG_BY_FAMILY, 0, &[0; 71])), [Message::Malformed]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_spin(datagram in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(read(&datagram).len() <= datagram.len() / HEADER_BYTES + 1);
        }

        #[test]
        fn no_damage_to_a_real_message_makes_it_panic(keep in 0usize..200, at in 0usize..110, byte: u8) {
            let mut datagram = message(SOCK_DIAG_BY_FAMILY, 2, &socket_payload());
            datagram.truncate(keep);
            if let Some(victim) = datagram.get_mut(at) {
                *victim = byte;
            }
            prop_assert!(read(&datagram).len() <= 8);
        }
    }
}
