//! A machine with many network namespaces: mounted ones as `ip netns` makes them, and some that only a process keeps.
#![expect(unsafe_code, reason = "namespaces, mounts and accounts of children have no safe interface in std")]

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gk_model::listener::Netns;

use super::world::{self, Spec, check, enter_new_namespace};

/// Where `ip netns` keeps its namespaces.
const MOUNTS: &str = "/run/netns";

/// An account that every machine has, and that is not ours.
pub(crate) const NOBODY: u32 = 65_534;

/// Runs a test on a thread with a network namespace and a mount namespace of its own, with an empty `/run`.
pub(crate) fn in_new_machine(what: &str, test: impl FnOnce() + Send) {
    world::after(enter_new_machine, what, test);
}

fn enter_new_machine() -> io::Result<()> {
    // SAFETY: changes this thread alone, which was made for the purpose.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE)?;
    mount("tmpfs", "/run", "tmpfs", 0)?;
    fs::create_dir(MOUNTS)?;
    // As `ip netns` wants it; otherwise it mounts everything a second time.
    mount(MOUNTS, MOUNTS, "", libc::MS_BIND)?;
    mount("", MOUNTS, "", libc::MS_SHARED)?;
    enter_new_namespace()
}

fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong) -> io::Result<()> {
    let [source, target, kind] = [source, target, kind].map(|text| CString::new(text).unwrap());
    // SAFETY: all three are strings that end with a zero and outlive the call; no data is given.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) })
}

/// A network namespace that is kept by a mount, and what was made in it.
pub(crate) struct Mounted<T> {
    name: String,
    pub(crate) netns: Netns,
    pub(crate) made: T,
}

impl<T: Send> Mounted<T> {
    /// Makes it on a thread of its own, as `ip netns add` does, and something in it.
    pub(crate) fn new(name: &str, make: impl FnOnce() -> T + Send) -> Mounted<T> {
        let path = format!("{MOUNTS}/{name}");
        let (netns, made) = std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter_new_namespace().unwrap();
                File::create(&path).unwrap();
                mount("/proc/thread-self/ns/net", &path, "", libc::MS_BIND).unwrap();
                (netns_of("/proc/thread-self/ns/net"), make())
            });
            inside.join().unwrap()
        });
        Mounted { name: name.to_owned(), netns, made }
    }
}

impl<T> Mounted<T> {
    /// Takes the mount away, as `ip netns del` does; what was made stays.
    pub(crate) fn unmount(self) -> T {
        let path = format!("{MOUNTS}/{}", self.name);
        let target = CString::new(path.as_str()).unwrap();
        // SAFETY: `target` is a string that ends with a zero and outlives the call.
        check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }).unwrap();
        fs::remove_file(path).unwrap();
        self.made
    }

    /// Runs something inside, on a thread of its own.
    pub(crate) fn inside<R: Send>(&self, run: impl FnOnce() -> R + Send) -> R {
        let door = File::open(format!("{MOUNTS}/{}", self.name)).unwrap();
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                crate::sys::enter(&door).unwrap();
                run()
            });
            inside.join().unwrap()
        })
    }
}

/// The namespace behind a file.
pub(crate) fn netns_of(path: impl AsRef<Path>) -> Netns {
    Netns::Other(fs::metadata(path).unwrap().ino())
}

/// Where a child that serves is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the namespace of its parent.
    Here,
    /// In a network namespace of its own.
    Elsewhere,
    /// In a network namespace that belongs to a user namespace that it made without any privilege.
    Unprivileged,
}

/// A child of [`NOBODY`] that serves a socket until it is killed.
pub(crate) fn spawn_server(place: Place, spec: Spec) -> io::Result<Child> {
    let mut command = Command::new("cat");
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    // SAFETY: plain system calls that change the child alone, which has one thread; nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            if place == Place::Elsewhere {
                check(libc::unshare(libc::CLONE_NEWNET))?;
            }
            check(libc::setresuid(NOBODY, NOBODY, NOBODY))?;
            if place == Place::Unprivileged {
                check(libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET))?;
            }
            // What it is called by outside does not change by that, but who may look at it does.
            check(libc::prctl(libc::PR_SET_DUMPABLE, 1))?;
            let socket: OwnedFd = spec.serve();
            check(libc::fcntl(socket.as_raw_fd(), libc::F_SETFD, 0))?;
            std::mem::forget(socket);
            Ok(())
        });
    }
    command.spawn()
}

/// Lets a child end.
pub(crate) fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Asks again and again until there is an answer.
pub(crate) fn wait<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::yield_now();
    }
}

/// Gives every mounted namespace a number in this one, which the kernel takes back when the namespace is freed.
pub(crate) fn watch_mounted() {
    for entry in fs::read_dir(MOUNTS).unwrap() {
        ip(&["netns", "set", entry.unwrap().file_name().to_str().unwrap(), "auto"]);
    }
}

/// Watches the namespace of a process, too.
pub(crate) fn watch_process(pid: u32) {
    let (name, pid) = (format!("of-{pid}"), pid.to_string());
    ip(&["netns", "attach", &name, &pid]);
    ip(&["netns", "set", &name, "auto"]);
    ip(&["netns", "del", &name]);
}

/// How many of the watched namespaces were not freed yet.
pub(crate) fn count_watched() -> usize {
    ip(&["netns", "list-id"]).lines().count()
}

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("iproute2 is installed, as for `ss`");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
