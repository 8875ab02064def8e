//! A network namespace of its own for a test, which then runs in a process of its own: no code of ours is unsafe for it.

use std::path::Path;
use std::process::{Command, Output};

/// What the process of the test is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum As {
    /// Root, who may change the kernel's list.
    Root,
    /// An account without any capability.
    Nobody,
    /// Root, where the kernel's settings cannot be changed, as under `ProtectKernelTunables=`.
    RootWithReadOnlySettings,
}

const INSIDE: &str = "GK_AGENT_TEST_INSIDE";

/// Runs the test that calls it, by the name of its thread, once more inside; `lo` is up there.
///
/// Where that is not permitted it fails under CI, and elsewhere says what was not exercised.
pub(crate) fn in_new_namespace(what: &str, who: As, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    // Read through a descriptor, because nobody may look into root's directories.
    let run = match who {
        As::Root => "exec \"$@\"",
        As::Nobody => {
            "exec 9<\"$1\"; shift; exec setpriv --reuid 65534 --regid 65534 --clear-groups /proc/self/fd/9 \"$@\""
        }
        As::RootWithReadOnlySettings => {
            "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec \"$@\""
        }
    };
    if !enter("true", Path::new("/bin/true"), &[]).is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "no network namespace for {what}");
        return say(&format!("{what}, for want of a network namespace"));
    }
    let name = std::thread::current().name().expect("the harness names the threads of tests").to_owned();
    let output =
        enter(run, &std::env::current_exe().unwrap(), &["--exact", &name, "--nocapture", "--test-threads=1"]);
    let Output { status, stdout, stderr } = output.unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success() && stdout.contains("1 passed"), "inside: {status}\n{stdout}\n{stderr}");
}

fn enter(run: &str, program: &Path, args: &[&str]) -> std::io::Result<Output> {
    let script = format!("ip link set lo up && {run}");
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--", "sh", "-c", &script, "sh"]).arg(program).args(args);
    command.env(INSIDE, "1").env("TMPDIR", "/tmp").output()
}

/// Past the capture of the test harness, which would swallow what a passing test prints.
fn say(what: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "NOT EXERCISED: {what}").unwrap();
}
