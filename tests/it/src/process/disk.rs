//! Disks that are full, read-only, or hold something else: refused in words, and nothing is lost or touched.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use gk_client::{Client, ClientError};
use gk_model::id::{InstanceId, ReservationId};
use gk_model::problem::{Code, Problem};
use gk_model::reservation::ReserveRequest;
use tempfile::TempDir;

use super::crash::join;
use super::harness::{Place, Server, error_of, gatekeeper, is_root, refusal_of, reserve, stdout};

/// A small file system in memory, gone when its test ends.
pub(super) struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` where it cannot be: only root may mount. CI does.
    pub(super) fn mount(size: &str) -> Option<SmallDisk> {
        let disk = SmallDisk(TempDir::with_prefix("gatekeeper-disk-").unwrap());
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size},mode=755"), "tmpfs"])
            .arg(disk.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(disk),
            refused => {
                let why = refused.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
                eprintln!("NOT TESTED: a full disk, because nothing can be mounted here: {why:?}");
                assert!(std::env::var_os("CI").is_none(), "in CI the tests run as root and may mount");
                None
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Leaves so many bytes.
    pub(super) fn fill(&self, left: u64) {
        let ballast = std::fs::File::create(self.ballast()).unwrap();
        let mut zeros = std::io::Read::take(std::io::repeat(0), u64::MAX);
        let full = std::io::copy(&mut zeros, &mut &ballast).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        let length = ballast.metadata().unwrap().len();
        ballast.set_len(length - left).unwrap();
    }

    pub(super) fn make_space(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, because a killed server may still be letting go of it.
        let _not_mounted = Command::new("umount").arg("-l").arg(self.path()).output();
    }
}

/// Reserves until the server says 503 so many times.
pub(super) fn reserve_until_put_off(
    client: &Client,
    instance: InstanceId,
    ledger: &mut BTreeMap<ReservationId, u16>,
    times: usize,
) -> Vec<Problem> {
    let mut put_off = Vec::new();
    while put_off.len() < times {
        match reserve(client, &ReserveRequest::next_free(instance)) {
            Ok(made) => assert!(ledger.insert(made.id, made.first_port.get()).is_none()),
            Err(ClientError::Refused(problem)) => put_off.push(*problem),
            Err(other) => panic!("{other:?}"),
        }
        assert!(ledger.len() < 1500, "the disk does not get full");
    }
    put_off
}

pub(super) fn stored(server: &Server) -> BTreeMap<ReservationId, u16> {
    server.live().iter().map(|made| (made.id, made.first_port.get())).collect()
}

#[test]
fn a_full_disk_puts_writes_off_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount("16m") else { return };
    let server = Server::start(&disk.path().join("data"));
    let client = server.admin().with_patience(std::time::Duration::ZERO);
    let instance = join(&client, "web-1", 1);
    let mut ledger = BTreeMap::new();
    for left in [0, 40_000] {
        disk.fill(left);
        for problem in reserve_until_put_off(&client, instance, &mut ledger, 5) {
            assert_eq!(problem.code, Code::Unavailable);
            assert_eq!(problem.detail, "the server's disk is full; nothing was changed");
        }
        assert_eq!(stored(&server), ledger, "reads work, and show what was answered and nothing else");
        client.ready().unwrap();
        disk.make_space();
        let made = reserve(&client, &ReserveRequest::next_free(instance)).expect("it goes on by itself");
        ledger.insert(made.id, made.first_port.get());
        assert_eq!(stored(&server), ledger);
        assert_eq!(server.event_numbers(), (1..=1 + ledger.len() as u64).collect::<Vec<_>>());
        server.verify();
    }
}

#[test]
fn a_server_that_starts_or_is_killed_on_a_full_disk_says_so_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount("16m") else { return };
    let data = disk.path().join("data");
    let mut server = Server::start(&data);
    let client = server.admin().with_patience(std::time::Duration::ZERO);
    let instance = join(&client, "web-1", 1);
    let mut ledger = BTreeMap::new();
    disk.fill(20_000);
    reserve_until_put_off(&client, instance, &mut ledger, 3);
    server.process.kill();
    let error = refusal_of(&mut gatekeeper("server", &disk.path().join("other"), None));
    assert!(error.contains("full") || error.contains("No space left"), "{error}");
    disk.make_space();
    server.restart();
    assert_eq!(stored(&server), ledger);
    server.verify();
}

#[test]
fn a_backup_to_a_full_disk_fails_in_words_and_leaves_nothing() {
    let Some(disk) = SmallDisk::mount("1m") else { return };
    let place = Place::new();
    let server = Server::start(&place.join("data"));
    join(&server.admin(), "web-1", 1);
    disk.fill(8192);
    let output = gatekeeper("backup", &server.data, None).arg(disk.path().join("backup")).output().unwrap();
    let error = error_of(&output);
    assert!(
        error.contains("the disk that holds the database is full") || error.contains("No space"),
        "{error}"
    );
    let names: Vec<_> =
        std::fs::read_dir(disk.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["ballast"]);
}

/// `gatekeeper server` as somebody to whom permissions apply, root or not.
fn start_as_mortal(data: &Path) -> String {
    let mut server = gatekeeper("server", data, None);
    if !is_root() {
        return refusal_of(&mut server);
    }
    let mut mortal = Command::new("setpriv");
    mortal.args(["--bounding-set", "-dac_override,-dac_read_search", "--"]);
    mortal.arg(server.get_program()).args(server.get_args()).env_remove("DATABASE_URL");
    refusal_of(&mut mortal)
}

#[test]
fn what_may_not_be_written_is_named() {
    let place = Place::new();
    let data = place.join("data");
    drop(Server::start(&data));
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    let (file, lock) = (data.join("gatekeeper.db"), data.join("gatekeeper.lock"));
    mode(&file, 0o400);
    let error = start_as_mortal(&data);
    assert!(error.contains("this account may not write to the database file"), "{error}");
    mode(&file, 0o600);

    std::fs::remove_file(&lock).unwrap();
    mode(&data, 0o500);
    let error = start_as_mortal(&data);
    assert!(error.contains("cannot use the data directory") && error.contains("denied"), "{error}");
    let error = start_as_mortal(&data.join("below"));
    assert!(error.contains("cannot use the data directory") && error.contains("denied"), "{error}");

    mode(&data, 0o770);
    let error = start_as_mortal(&data);
    assert!(error.contains("others may write to") && error.contains("chmod go-w"), "{error}");
    mode(&data, 0o700);
    Server::start(&data).verify();
}

/// What the server says of this database file, which must be the same afterwards.
fn refuse(data: &Path, bytes: &[u8]) -> String {
    let file = data.join("gatekeeper.db");
    std::fs::write(&file, bytes).unwrap();
    let error = refusal_of(&mut gatekeeper("server", data, None));
    assert!(std::fs::read(&file).unwrap() == bytes, "touched");
    assert!(error.contains(&file.display().to_string()), "{error}");
    error
}

#[test]
fn a_file_that_is_damaged_or_somebody_elses_is_refused_untouched() {
    let place = Place::new();
    let data = place.join("data");
    let mut server = Server::start(&data);
    join(&server.admin(), "web-1", 1);
    server.process.terminate();
    let sound = std::fs::read(data.join("gatekeeper.db")).unwrap();
    let damaged = |range: std::ops::Range<usize>| {
        let mut bytes = sound.clone();
        bytes[range].iter_mut().for_each(|byte| *byte ^= 0xa5);
        bytes
    };
    let not_ours = "this is not a Gatekeeper database";
    let broken = "the database is damaged";
    // (the bytes, what is said)
    let table = [
        (damaged(0..16), not_ours),
        (damaged(16..24), not_ours),
        (damaged(100..140), broken),
        (damaged(2000..4096), broken),
        (sound[..4096 + 100].to_vec(), broken),
        (sound[..50].to_vec(), broken),
        (b"dear diary, ".repeat(1000), not_ours),
    ];
    for (number, (bytes, words)) in table.iter().enumerate() {
        let error = refuse(&data, bytes);
        assert!(error.contains(words), "case {number}: {error}");
    }
    refuse_foreign(&place, &data);
    std::fs::write(data.join("gatekeeper.db"), &sound).unwrap();
    Server::start(&data).verify();
}

/// An SQLite database of another program; a backup is one.
fn refuse_foreign(place: &Place, data: &Path) {
    let (other, backup) = (place.join("other"), place.join("backup"));
    drop(Server::start(&other));
    stdout(&gatekeeper("backup", &other, None).arg(&backup).output().unwrap());
    let error = refuse(data, &std::fs::read(&backup).unwrap());
    assert!(error.contains("backup") && error.contains("gatekeeper restore"), "{error}");
}
