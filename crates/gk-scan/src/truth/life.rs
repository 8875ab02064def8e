//! Odd lives of single sockets, each with its end: what a scan says afterwards is what is there.
#![expect(unsafe_code, reason = "signals, descriptors in messages and MPTCP have no safe interface in std")]

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use gk_model::port::Protocol::Tcp;

use super::machine::{end, wait};
use super::world::{
    Entry, Spec, at, check, exercised, in_new_namespace, listen, port_of, refused, set, spawn_holder,
    stop_listening,
};
use super::{entries, owners, scan, start, wait_until_dead};
use crate::scanner::Scanner;

/// Scans until the one listener has these owners.
fn wait_for_owners(scanner: &mut Scanner, expected: &[u32]) {
    let expected = BTreeSet::from_iter(expected.iter().copied());
    wait(&format!("owners {expected:?}"), || {
        (BTreeSet::from_iter(owners(&scan(scanner))) == expected).then_some(())
    });
}

#[test]
fn a_killed_listener_lives_on_in_the_child_that_it_forked() {
    in_new_namespace("a listener that is killed and leaves a holder", || {
        let socket = at(Tcp, "127.0.0.1").serve();
        let (fd, entry) = (socket.as_raw_fd(), Entry::own(at(Tcp, "127.0.0.1"), &socket));
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 300 & exec cat"]).stdin(Stdio::piped()).stdout(Stdio::null());
        // SAFETY: fcntl is async-signal-safe and changes only the child's own table of descriptors.
        unsafe { command.pre_exec(move || check(libc::fcntl(fd, libc::F_SETFD, 0))) };
        let mut server = command.spawn().unwrap();
        drop(socket);
        let mut scanner = Scanner::new().unwrap();
        let both = wait("two owners, both after exec", || {
            let scan = scan(&mut scanner);
            let named = |name| scan.listeners[0].owners.iter().any(|owner| owner.name.as_str() == name);
            Some(owners(&scan)).filter(|owners| owners.len() == 2 && named("cat") && named("sleep"))
        });
        let holder = *both.iter().find(|pid| **pid != server.id()).unwrap();
        server.kill().unwrap();
        wait_until_dead(server.id());
        let left = entries(&scan(&mut scanner));
        assert_eq!(left, [Entry { owners: [holder].into(), ..entry }].into());
        // SAFETY: the holder sleeps for minutes, so the number is still its own.
        check(unsafe { libc::kill(holder.cast_signed(), libc::SIGKILL) }).unwrap();
        wait_until_dead(holder);
        assert_eq!(scan(&mut scanner).listeners, []);
        server.wait().unwrap();
    });
}

#[test]
fn every_owner_is_asked_again_who_it_is() {
    in_new_namespace("owners that become other programs", || {
        let socket = at(Tcp, "127.0.0.1").serve();
        let fd = socket.as_raw_fd();
        let mut holders: Vec<Child> = (0..3)
            .map(|_| {
                let mut command = Command::new("sh");
                command.args(["-c", "read line; exec cat"]).stdin(Stdio::piped()).stdout(Stdio::null());
                // SAFETY: fcntl is async-signal-safe and changes only the child's own table of descriptors.
                unsafe { command.pre_exec(move || check(libc::fcntl(fd, libc::F_SETFD, 0))) };
                command.spawn().unwrap()
            })
            .collect();
        drop(socket);
        let mut scanner = Scanner::new().unwrap();
        let mut named = |name: &str| {
            let scan = scan(&mut scanner);
            scan.listeners[0].owners.iter().filter(|owner| owner.name.as_str() == name).count()
        };
        wait("three shells", || (named("sh") == 3).then_some(()));
        // Until none of them is looked at because it is new.
        (0..20).for_each(|_| assert_eq!(named("sh"), 3));
        for holder in &mut holders {
            holder.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        }
        wait("three times cat", || (named("cat") == 3).then_some(()));
        for mut holder in holders {
            holder.kill().unwrap();
            holder.wait().unwrap();
        }
    });
}

#[test]
fn a_child_that_takes_its_time_from_fork_to_exec_is_no_owner_afterwards() {
    in_new_namespace("children between fork and exec", || {
        // So many that the slices, which would notice too, do not come by in time.
        let _sockets: Vec<OwnedFd> = (0..400).map(|_| at(Tcp, "127.0.0.1").serve()).collect();
        let mut scanner = Scanner::new().unwrap();
        for scans_before_exec in 1..=3_usize {
            let (mut forked, teller) = std::io::pipe().unwrap();
            let (gate, mut opener) = std::io::pipe().unwrap();
            let mut command = Command::new("sleep");
            command.arg("1000");
            let pass = move || (&teller).write_all(b"!").and_then(|()| (&gate).read_exact(&mut [0]));
            // SAFETY: write and read are async-signal-safe, and both ends are the child's own.
            unsafe { command.pre_exec(pass) };
            let (held, mut child) = std::thread::scope(|scope| {
                let spawned = scope.spawn(|| command.spawn().unwrap());
                // Judged below: as long as the gate is shut, nothing here may end.
                let told = forked.read_exact(&mut [0]);
                let held = told.map(|()| {
                    (0..scans_before_exec).map(|_| owners(&scan(&mut scanner)).len()).collect::<Vec<_>>()
                });
                opener.write_all(b"!").unwrap();
                (held.unwrap(), spawned.join().unwrap())
            });
            let afterwards = owners(&scan(&mut scanner));
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(held, vec![800; scans_before_exec]);
            assert_eq!(afterwards, [std::process::id(); 400], "after {scans_before_exec}");
        }
    });
}

#[test]
fn a_second_listen_that_fails_changes_nothing() {
    in_new_namespace("a second listen on one port", || {
        let reuse = |spec: Spec| {
            let socket = spec.open();
            set(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, &1i32.to_ne_bytes());
            spec.bind_to(&socket);
            socket
        };
        let first = reuse(at(Tcp, "127.0.0.1"));
        let spec = Spec { port: port_of(&first).get(), ..at(Tcp, "127.0.0.1") };
        let second = reuse(spec);
        listen(&first);
        let mut scanner = Scanner::new().unwrap();
        let before = scan(&mut scanner);
        assert_eq!(entries(&before), [Entry::own(spec, &first)].into());
        for _ in 0..10 {
            // SAFETY: takes plain numbers.
            let refused = check(unsafe { libc::listen(second.as_raw_fd(), 16) }).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
            assert_eq!(scan(&mut scanner).listeners, before.listeners);
        }
        drop(first);
        assert_eq!(scan(&mut scanner).listeners, [], "the second is only bound");
        listen(&second);
        assert_eq!(entries(&scan(&mut scanner)), [Entry::own(spec, &second)].into());
    });
}

#[test]
fn a_socket_that_stops_listening_and_listens_again_is_gone_in_between() {
    in_new_namespace("shutdown and listening again", || {
        let socket = at(Tcp, "::1").serve();
        let mut scanner = Scanner::new().unwrap();
        for _ in 0..50 {
            assert_eq!(entries(&scan(&mut scanner)), [Entry::own(at(Tcp, "::1"), &socket)].into());
            stop_listening(&socket);
            assert_eq!(scan(&mut scanner).listeners, []);
            listen(&socket);
        }
    });
}

#[test]
fn a_socket_that_was_inherited_before_it_listened_has_all_its_owners_at_once() {
    in_new_namespace("a socket that is older than it listens", || {
        let spec = at(Tcp, "127.0.0.1");
        let socket = spec.bind();
        let mut holders = [(); 2].map(|()| spawn_holder(&socket));
        let mut scanner = Scanner::new().unwrap();
        // Until nobody is looked into because it is new, or has another number of descriptors.
        (0..3).for_each(|_| assert_eq!(scan(&mut scanner).listeners, []));
        listen(&socket);
        let mine = Entry::own(spec, &socket);
        let expected = mine.owners.iter().copied().chain(holders.iter().map(Child::id)).collect();
        assert_eq!(entries(&scan(&mut scanner)), [Entry { owners: expected, ..mine }].into());
        for holder in &mut holders {
            holder.kill().unwrap();
            holder.wait().unwrap();
        }
    });
}

#[test]
fn a_socket_that_a_new_process_inherited_has_its_older_owners_at_once() {
    in_new_namespace("a socket that a new process inherited", || {
        let spec = at(Tcp, "127.0.0.1");
        let socket = spec.bind();
        let mut scanner = Scanner::new().unwrap();
        (0..3).for_each(|_| assert_eq!(scan(&mut scanner).listeners, []));
        listen(&socket);
        // Looked through because it is new, it explains the socket.
        let mut holder = spawn_holder(&socket);
        let mine = Entry::own(spec, &socket);
        let expected = mine.owners.iter().copied().chain([holder.id()]).collect();
        assert_eq!(entries(&scan(&mut scanner)), [Entry { owners: expected, ..mine }].into());
        holder.kill().unwrap();
        holder.wait().unwrap();
    });
}

#[test]
fn sockets_that_close_one_after_the_other_leave_none_behind() {
    in_new_namespace("sockets that close one after the other", || {
        let spec = at(Tcp, "127.0.0.1");
        let mut sockets: Vec<OwnedFd> = (0..3).map(|_| spec.serve()).collect();
        let mut scanner = Scanner::new().unwrap();
        while !sockets.is_empty() {
            let expected = sockets.iter().map(|socket| Entry::own(spec, socket)).collect();
            assert_eq!(entries(&scan(&mut scanner)), expected);
            sockets.pop();
        }
        assert_eq!(scan(&mut scanner).listeners, []);
    });
}

#[test]
fn a_multipath_listener_is_one_tcp_listener() {
    in_new_namespace("MPTCP", || {
        // SAFETY: takes and returns plain numbers.
        let fd = unsafe {
            libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_MPTCP)
        };
        if let Err(error) = check(fd) {
            return refused("MPTCP", "a listener for several paths", &error);
        }
        // SAFETY: the descriptor was just opened and nobody else knows it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        at(Tcp, "127.0.0.1").bind_to(&socket);
        listen(&socket);
        let mut scanner = Scanner::new().unwrap();
        for _ in 0..2 {
            assert_eq!(entries(&scan(&mut scanner)), [Entry::own(at(Tcp, "127.0.0.1"), &socket)].into());
        }
        drop(socket);
        assert_eq!(scan(&mut scanner).listeners, []);
        exercised("MPTCP");
    });
}

#[test]
fn a_passed_descriptor_is_owned_by_whoever_has_it() {
    in_new_namespace("descriptors that travel", || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let channel = theirs.as_raw_fd();
        // SAFETY: plain system calls in a child with one thread.
        unsafe {
            command.pre_exec(move || {
                let socket = at(Tcp, "127.0.0.1").serve();
                check(libc::fcntl(socket.as_raw_fd(), libc::F_SETFD, 0))?;
                send_descriptor(channel, socket.as_raw_fd())?;
                std::mem::forget(socket);
                Ok(())
            });
        }
        let giver = command.spawn().unwrap();
        let mut scanner = Scanner::new().unwrap();
        assert_eq!(owners(&scan(&mut scanner)), [giver.id()], "on its way it belongs to nobody else");
        let received = receive_descriptor(&ours).unwrap();
        wait_for_owners(&mut scanner, &[giver.id(), std::process::id()]);
        end(giver);
        wait_for_owners(&mut scanner, &[std::process::id()]);
        // And back on the way, where nobody has it: still a listener, of nobody.
        send_descriptor(ours.as_raw_fd(), received.as_raw_fd()).unwrap();
        drop(received);
        wait_for_owners(&mut scanner, &[]);
        assert_eq!(scan(&mut scanner).listeners.len(), 1);
        drop((ours, theirs));
        wait("the listener ends with the last message", || {
            scan(&mut scanner).listeners.is_empty().then_some(())
        });
    });
}

/// One byte with a descriptor, as unix(7) says.
fn send_descriptor(channel: i32, descriptor: i32) -> io::Result<()> {
    with_message(|message| {
        // SAFETY: the buffer behind the message has room for a head and one descriptor.
        unsafe {
            let head = libc::CMSG_FIRSTHDR(message);
            (*head).cmsg_level = libc::SOL_SOCKET;
            (*head).cmsg_type = libc::SCM_RIGHTS;
            (*head).cmsg_len = libc::CMSG_LEN(4) as _;
            libc::CMSG_DATA(head).cast::<i32>().write_unaligned(descriptor);
        }
        // SAFETY: `message` points to buffers that live until the end of this closure.
        check(unsafe { libc::sendmsg(channel, message, 0) } as i32)
    })
}

fn receive_descriptor(channel: &UnixStream) -> io::Result<OwnedFd> {
    with_message(|message| {
        // SAFETY: `message` points to buffers that live until the end of this closure, and the kernel writes into them.
        check(unsafe { libc::recvmsg(channel.as_raw_fd(), message, libc::MSG_CMSG_CLOEXEC) } as i32)?;
        // SAFETY: the message is the kernel's now, with a head that is inside of the buffer, or null.
        let head = unsafe { libc::CMSG_FIRSTHDR(message).as_ref() }.ok_or(io::ErrorKind::InvalidData)?;
        assert_eq!((head.cmsg_level, head.cmsg_type), (libc::SOL_SOCKET, libc::SCM_RIGHTS));
        // SAFETY: after a head of that type the kernel has written one descriptor, which nobody else knows.
        unsafe {
            let data = libc::CMSG_DATA(libc::CMSG_FIRSTHDR(message));
            Ok(OwnedFd::from_raw_fd(data.cast::<i32>().read_unaligned()))
        }
    })
}

/// The kernel reads and writes the buffers by the pointers in the message, so nothing here may hold a reference to them
/// meanwhile: the compiler would take it that nobody else writes there, and read what was there before.
fn with_message<T>(run: impl FnOnce(*mut libc::msghdr) -> io::Result<T>) -> io::Result<T> {
    let mut byte = [0u8; 1];
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = [0u64; 3];
    // SAFETY: msghdr is numbers and pointers, for which zero is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of_val(&control) as _;
    run(&raw mut message)
}

#[test]
fn twenty_thousand_connections_change_nothing_and_are_not_even_told_of() {
    in_new_namespace("20,000 accepted connections", || {
        let acceptor = TcpListener::bind("0.0.0.0:7000").unwrap();
        let mut scanner = Scanner::new().unwrap();
        scan(&mut scanner);
        // Our own descriptors were looked through when we were new; a second scan settles what was found.
        let (before, told) = (scan(&mut scanner), scanner.told_sockets());
        for hundred in 0..200 {
            // Many addresses, so that the ports suffice for all that are in TIME_WAIT.
            let address = format!("127.0.{}.1:7000", hundred / 10);
            let open: Vec<[TcpStream; 2]> = (0..100).map(|_| connect(&acceptor, &address)).collect();
            assert!(!scanner.look(start()).unwrap());
            assert_eq!(scanner.listeners(), before.listeners);
            assert_eq!(scanner.told_sockets(), told, "the kernel tells of listening sockets only");
            drop(open);
        }
        assert_eq!(scan(&mut scanner).listeners, before.listeners);
        assert_eq!(before.listeners[0].last_seen_at, start());
    });
}

/// Both ends of a connection that was used.
fn connect(acceptor: &TcpListener, address: &str) -> [TcpStream; 2] {
    let mut outgoing = TcpStream::connect(address).unwrap();
    let (mut incoming, _) = acceptor.accept().unwrap();
    outgoing.write_all(b"x").unwrap();
    incoming.read_exact(&mut [0]).unwrap();
    [outgoing, incoming]
}
