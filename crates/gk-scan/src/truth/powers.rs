//! Each capability removed in turn: what is seen without it is what is said to be seen, and the rest is not covered.
#![expect(unsafe_code, reason = "capabilities have no interface in std")]

use std::collections::BTreeSet;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use gk_model::listener::Netns;
use gk_model::port::Protocol::Tcp;

use super::machine::{Mounted, NOBODY, Place, end, in_new_machine, netns_of, spawn_server};
use super::start;
use super::world::{Spec, at, check, exercised};
use crate::{Scan, Scanner, privileges};

/// Of the structures of capset(2).
const VERSION_3: u32 = 0x2008_0522;

const DAC_OVERRIDE: u32 = 1;
const DAC_READ_SEARCH: u32 = 2;
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;

/// Capabilities, whether they may enter each of the two other namespaces, and whether owners are seen.
const TABLE: &[(&[u32], Seen)] = &[
    (&[SYS_PTRACE, DAC_READ_SEARCH, SYS_ADMIN], Seen { mounted: true, of_process: true, owners: true }),
    (&[SYS_PTRACE, DAC_OVERRIDE, SYS_ADMIN], Seen { mounted: true, of_process: true, owners: true }),
    (&[DAC_READ_SEARCH, SYS_ADMIN], Seen { mounted: true, of_process: false, owners: false }),
    (&[SYS_PTRACE, SYS_ADMIN], Seen { mounted: true, of_process: true, owners: false }),
    (&[SYS_PTRACE, DAC_READ_SEARCH], Seen { mounted: false, of_process: false, owners: true }),
    (&[SYS_ADMIN], Seen { mounted: true, of_process: false, owners: false }),
    (&[], Seen { mounted: false, of_process: false, owners: false }),
];

fn names(capabilities: &[u32]) -> String {
    let name = |capability: &u32| match *capability {
        DAC_OVERRIDE => "CAP_DAC_OVERRIDE",
        DAC_READ_SEARCH => "CAP_DAC_READ_SEARCH",
        SYS_PTRACE => "CAP_SYS_PTRACE",
        _ => "CAP_SYS_ADMIN",
    };
    match capabilities {
        [] => "no capability".to_owned(),
        some => some.iter().map(name).collect::<Vec<_>>().join(", "),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    mounted: bool,
    of_process: bool,
    owners: bool,
}

#[test]
fn each_missing_capability_hides_what_it_is_said_to_hide() {
    in_new_machine("scans with few capabilities", || {
        let spec = Spec { port: 8_000, ..at(Tcp, "0.0.0.0") };
        let here = spawn_server(Place::Here, spec).unwrap();
        let elsewhere = spawn_server(Place::Elsewhere, spec).unwrap();
        let mounted = Mounted::new("mounted", || spec.serve());
        let of_process = netns_of(format!("/proc/{}/ns/net", elsewhere.id()));
        for (capabilities, seen) in TABLE {
            for uid in [0, NOBODY + 1] {
                let report = scan_with(capabilities, uid);
                let what = format!("{capabilities:?} as {uid}: {report:#?}");
                let listens = |netns: Netns| report.contains(&format!("listener {netns} 8000"));
                let covers = |netns: Netns| report.contains(&format!("covered {netns}"));
                let found = [Netns::Home, mounted.netns, of_process].map(listens);
                assert_eq!(found, [true, seen.mounted, seen.of_process], "{what}");
                assert_eq!([Netns::Home, mounted.netns, of_process].map(covers), found, "{what}");
                assert_eq!(report.contains(&format!("owner {}", here.id())), seen.owners, "{what}");
                let of_other = report.contains(&format!("owner {}", elsewhere.id()));
                assert_eq!(of_other, seen.owners && seen.of_process, "{what}");
                let knows_all = report.contains("knows all");
                assert!(!knows_all || capabilities.contains(&SYS_PTRACE), "{what}");
                let says_owners = report.contains("sees other accounts");
                assert_eq!(says_owners, seen.owners, "{what}");
                let says_namespaces = report.contains("enters other namespaces");
                assert_eq!(says_namespaces, seen.mounted && seen.of_process, "{what}");
            }
            exercised(&format!("a scan with {}", names(capabilities)));
        }
        [here, elsewhere].into_iter().for_each(end);
    });
}

#[test]
fn a_namespace_that_denies_itself_is_not_covered_and_closes_nothing() {
    in_new_machine("a namespace that may be entered no more", || {
        let mounted = Mounted::new("mounted", || at(Tcp, "0.0.0.0").serve());
        let covers =
            |scan: &Scan| scan.coverage.parts.iter().filter(|part| part.netns == mounted.netns).count();
        let shows = |scan: &Scan| scan.listeners.iter().any(|one| one.key.netns == mounted.netns);
        let mut scanner = Scanner::of_all_namespaces().unwrap();
        let first = scanner.scan(start()).unwrap();
        assert_eq!((covers(&first), shows(&first)), (4, true));
        let later = start().plus(Duration::from_secs(9));
        for _ in 0..3 {
            have_sys_admin(false);
            scanner.change_powers();
            for _ in 0..10 {
                let blind = scanner.scan(later).unwrap();
                assert_eq!((covers(&blind), shows(&blind)), (0, false));
                assert!(blind.coverage.namespaces.contains_key(&mounted.netns), "it may be there");
            }
            have_sys_admin(true);
            scanner.change_powers();
            let again = scanner.scan(later).unwrap();
            assert_eq!((covers(&again), shows(&again)), (4, true));
            let listener = again.listeners.iter().find(|one| one.key.netns == mounted.netns).unwrap();
            assert_eq!(listener.last_seen_at, later);
        }
    });
}

/// Takes it from the calling thread's effective set, or gives it back.
fn have_sys_admin(yes: bool) {
    let header = [VERSION_3, 0u32];
    let mut sets = [0u32; 6];
    // SAFETY: both structures are 8 and 24 bytes that outlive the calls.
    unsafe {
        check(libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) as i32).unwrap();
        sets[0] = if yes { sets[0] | 1 << SYS_ADMIN } else { sets[0] & !(1 << SYS_ADMIN) };
        check(libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) as i32).unwrap();
    }
}

/// What a scan with exactly these capabilities says, in lines of `tell_what_is_seen`.
fn scan_with(capabilities: &'static [u32], uid: u32) -> BTreeSet<String> {
    // A copy that any account may run.
    let program = "/run/scan-with-few-capabilities";
    if !std::fs::exists(program).unwrap() {
        std::fs::copy(std::env::current_exe().unwrap(), program).unwrap();
    }
    let mut command = Command::new(program);
    command.args(["--exact", "truth::powers::tell_what_is_seen", "--ignored", "--nocapture"]);
    // SAFETY: plain system calls that change the child alone; nothing is allocated.
    unsafe { command.pre_exec(move || keep_only(capabilities, uid)) };
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text.lines().map(str::to_owned).collect()
}

/// See capabilities(7): ambient ones survive exec for any account, and the bounding set limits what root gets by exec.
fn keep_only(capabilities: &[u32], uid: u32) -> io::Result<()> {
    let mask = capabilities.iter().fold(0u64, |mask, capability| mask | 1 << capability);
    let [low, high] = [mask as u32, (mask >> 32) as u32];
    let header = [VERSION_3, 0];
    let sets = [low, low, low, high, high, high];
    // SAFETY: numbers only, but for capset, whose two structures are 8 and 24 bytes that outlive the call.
    unsafe {
        for capability in (0..64).filter(|capability| mask >> capability & 1 == 0) {
            // Fails for numbers that the kernel does not have.
            libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
        }
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0))?;
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresuid(uid, uid, uid))?;
        if libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) < 0 {
            return Err(io::Error::last_os_error());
        }
        for capability in capabilities {
            check(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, *capability, 0, 0))?;
        }
    }
    Ok(())
}

#[test]
#[ignore = "is run by each_missing_capability_hides_what_it_is_said_to_hide, as another program"]
fn tell_what_is_seen() {
    let mut scanner = Scanner::of_all_namespaces().unwrap();
    // What is denied at first stays denied, and what was seen stays seen.
    let scan = (0..5).map(|_| scanner.scan(start()).unwrap()).last().unwrap();
    for listener in &scan.listeners {
        println!("listener {} {}", listener.key.netns, listener.key.port);
        listener.owners.iter().for_each(|owner| println!("owner {}", owner.pid));
    }
    scan.coverage.parts.iter().for_each(|part| println!("covered {}", part.netns));
    let privileges = privileges();
    for (is_so, what) in [
        (scan.coverage.knows_all_namespaces, "knows all"),
        (privileges.sees_other_accounts(), "sees other accounts"),
        (privileges.enters_other_namespaces(), "enters other namespaces"),
    ] {
        if is_so {
            println!("{what}");
        }
    }
}
