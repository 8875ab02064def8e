//! From the number of a cgroup to its unit and container.
//!
//! sock_diag tells the cgroup in which a socket was made, by number, which is the inode of a directory in the cgroup2
//! file system. So units and containers are known without any privilege. The tree is walked only when a number turns up
//! that was not there before. A number that is still unknown then never will be known: its cgroup is gone, or lies
//! outside of our cgroup namespace.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::numbers::NumberMap;
use crate::parse::CgroupId;
use crate::place::{Place, place};

/// The cgroups of the machine, as far as sockets asked for them.
#[derive(Debug)]
pub(crate) struct Cgroups {
    mount: Option<PathBuf>,
    /// Each made once, since hundreds of sockets may share it; none for the root and what is not known.
    places: NumberMap<CgroupId, Option<Place>>,
}

impl Cgroups {
    /// Of the cgroup2 file system mounted in our mount namespace; knows nothing when there is none.
    pub(crate) fn find() -> Cgroups {
        let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
        Cgroups { mount: cgroup2_mount(&String::from_utf8_lossy(&mounts)), places: NumberMap::default() }
    }

    /// Makes the places of these numbers known, and forgets all others.
    pub(crate) fn learn(&mut self, wanted: impl IntoIterator<Item = CgroupId>) {
        let mut places = NumberMap::default();
        let mut unknown = false;
        for id in wanted {
            let place = self.places.remove(&id);
            unknown |= place.is_none() && !places.contains_key(&id);
            places.entry(id).or_insert(place.flatten());
        }
        self.places = places;
        if let Some(mount) = self.mount.as_deref().filter(|_| unknown) {
            walk(mount, "", &mut self.places);
        }
    }

    /// What its path below the mount says, such as `/system.slice/nginx.service`; `None` for the root and what is not known.
    pub(crate) fn place(&self, id: CgroupId) -> Option<&Place> {
        self.places.get(&id)?.as_ref()
    }
}

/// Fills in the places of those directories whose inodes are asked for.
fn walk(directory: &Path, path: &str, places: &mut NumberMap<CgroupId, Option<Place>>) {
    let inode = fs::metadata(directory).map(|metadata| CgroupId(metadata.ino()));
    if let Some(known) = inode.ok().and_then(|inode| places.get_mut(&inode)) {
        *known = (!path.is_empty()).then(|| place(path));
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), &format!("{path}/{}", entry.file_name().to_string_lossy()), places);
        }
    }
}

/// The mount point of the first cgroup2 line of `/proc/PID/mountinfo`: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified`
/// beside the old hierarchies. Format: proc_pid_mountinfo(5); the mount point is field 5, the type follows ` - `.
pub(crate) fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let point = filesystem.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4))??;
        Some(PathBuf::from(unescape(point)))
    })
}

/// The kernel writes blanks in paths as `\040`, and tab, newline and backslash likewise.
pub(crate) fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

/// The path in `/proc/PID/cgroup` that says most: the one of cgroup2 (`0::/…`), or on machines that still run systemd
/// in the old hierarchy that one's, or any other below the root. Lines are `number:controllers:path`.
pub(crate) fn best_path(file: &str) -> Option<&str> {
    let rank = |number: &str, controllers: &str| match (number, controllers) {
        ("0", "") => 0,
        (_, "name=systemd") => 1,
        _ => 2,
    };
    file.lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            (path != "/").then(|| (rank(number, controllers), path))
        })
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> (tempfile::TempDir, Cgroups) {
        let directory = tempfile::tempdir().unwrap();
        let cgroups = Cgroups { mount: Some(directory.path().to_owned()), places: NumberMap::default() };
        (directory, cgroups)
    }

    fn add(mount: &Path, path: &str) -> CgroupId {
        fs::create_dir_all(mount.join(path)).unwrap();
        CgroupId(fs::metadata(mount.join(path)).unwrap().ino())
    }

    fn unit(cgroups: &Cgroups, id: CgroupId) -> Option<&str> {
        cgroups.place(id)?.unit.as_ref().map(gk_model::text::Observed::as_str)
    }

    #[test]
    fn numbers_lead_to_units_also_those_made_later() {
        let (directory, mut cgroups) = tree();
        let root = CgroupId(fs::metadata(directory.path()).unwrap().ino());
        let early = add(directory.path(), "system.slice/a.service");
        cgroups.learn([root, early]);
        assert_eq!((cgroups.place(root), unit(&cgroups, early)), (None, Some("a.service")));
        let late = add(directory.path(), "b.scope");
        cgroups.learn([early, late]);
        assert_eq!((unit(&cgroups, early), unit(&cgroups, late)), (Some("a.service"), Some("b.scope")));
    }

    #[test]
    fn what_was_looked_for_in_vain_is_not_looked_for_again() {
        let (directory, mut cgroups) = tree();
        let made_later = CgroupId(u64::MAX);
        cgroups.learn([made_later]);
        assert_eq!(cgroups.places.get(&made_later), Some(&None));
        drop(directory);
        cgroups.learn([made_later]);
        assert_eq!(cgroups.place(made_later), None);
        cgroups.learn([]);
        assert!(cgroups.places.is_empty(), "forgotten when no socket asks any more");
    }

    #[test]
    fn the_mount_is_found_pure_and_hybrid() {
        let pure = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(pure).unwrap(), Path::new("/sys/fs/cgroup"));
        assert_eq!(cgroup2_mount(hybrid).unwrap(), Path::new("/sys/fs/cgroup/uni fied"));
        assert_eq!(cgroup2_mount("nonsense\n - cgroup2 x\n"), None);
    }

    #[test]
    fn a_process_tells_its_most_telling_path() {
        let hybrid = "4:memory:/m\n1:name=systemd:/system.slice/a.service\n0::/\n";
        assert_eq!(best_path(hybrid), Some("/system.slice/a.service"));
        assert_eq!(best_path("4:memory:/m\n0::/user.slice\n"), Some("/user.slice"));
        assert_eq!(best_path("4:memory:/m:odd\n0::/\n"), Some("/m:odd"));
        assert_eq!(best_path("0::/\nnonsense\n"), None);
    }
}
