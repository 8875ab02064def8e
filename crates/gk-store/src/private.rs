//! Who can reach what lies in the data directory: this account and root, whatever the umask, and nobody else.
//!
//! What only lets others *read* is closed to them: it is ours, so we may, and what the database holds is history and
//! hashes, no secret. What lets others *write*, or belongs to another account, is refused: nobody can tell what was
//! done to it, and a mode that is put right afterwards only hides that. No link is followed either. One that was laid while
//! others could write would make a server of root lock, close or fill whatever it leads to.
//!
//! The directory itself may be a link, as systemd makes one for a service with `DynamicUser=`. Who may write above
//! the directory can take it away, and is not looked at: what is put in its place belongs to somebody else.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use gk_model::paths::SOCKET_FILE;

use crate::directory::OpenError;

/// Why what is there is not used.
#[derive(Debug, thiserror::Error)]
pub enum Exposed {
    /// Other accounts could change it.
    #[error(
        "others may write to {path}, and could make the server believe anything: if nobody has, run chmod go-w {path}",
        path = .0.display()
    )]
    Writable(PathBuf),
    /// Its owner could change it.
    #[error(
        "{} belongs to uid {owner}, and this is uid {own}: run it as that account, or, if what is there can be trusted, \
         chown -R {own} {}; or name another directory with --data", path.display(), directory.display()
    )]
    Foreign {
        /// What it is.
        path: PathBuf,
        /// The data directory.
        directory: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        own: u32,
    },
    /// It could lead anywhere.
    #[error(
        "{} is a link or no plain file: put the file itself there, or name the directory that it is in with --data",
        .0.display()
    )]
    Irregular(PathBuf),
    /// The directory is shared with something else, which we must not lock others out of.
    #[error(
        "others may read the data directory {directory}, and {entry:?} in it is not Gatekeeper's: name a directory of \
         its own with --data, or close this one with chmod 0700 {directory}", directory = .directory.display()
    )]
    Shared {
        /// The data directory.
        directory: PathBuf,
        /// What else is in it.
        entry: String,
    },
}

/// Makes the directory for its owner alone, unless it is there, and whatever is missing above it.
///
/// What is made directly above is for everybody to pass, whatever the umask: an agent's identity lies beside it, and is for
/// everybody to read. What is above that is as the umask says, and never for others to write to.
pub(crate) fn make(directory: &Path) -> io::Result<()> {
    if let Some(parent) =
        directory.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.exists())
    {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        fs::set_permissions(parent, Permissions::from_mode(0o755))?;
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        created => created,
    }
}

/// Closes the data directory and everything of ours in it to other accounts, or says why it must not be used.
pub(crate) fn close_to_others(directory: &Path) -> Result<(), OpenError> {
    let own = rustix::process::geteuid().as_raw();
    let about = about(directory);
    // Held open: what was looked at is what is changed, wherever a link leads by now.
    let opened = File::open(directory).map_err(about)?;
    let metadata = opened.metadata().map_err(about)?;
    check(directory, directory, &metadata, own)?;
    let (ours, others) = entries(directory).map_err(about)?;
    if is_open(&metadata) {
        if let Some(entry) = others.first() {
            let entry = entry.to_string_lossy().into_owned();
            return Err(Exposed::Shared { directory: directory.to_owned(), entry }.into());
        }
        opened.set_permissions(Permissions::from_mode(0o700)).map_err(about)?;
        tell(directory, &metadata);
    }
    ours.iter().try_for_each(|name| close(directory, &directory.join(name), own))
}

fn about(path: &Path) -> impl Fn(io::Error) -> OpenError + Copy {
    |source| OpenError::Directory { path: path.to_owned(), source }
}

/// What is ours in the data directory, and what is not.
fn entries(directory: &Path) -> io::Result<(Vec<OsString>, Vec<OsString>)> {
    let names = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name()));
    let names = names.collect::<io::Result<Vec<OsString>>>()?;
    Ok(names.into_iter().partition(|name| is_ours(name)))
}

fn is_ours(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name == "tls" || name.starts_with("gatekeeper.") || name.starts_with("restore.partial")
}

fn is_open(metadata: &Metadata) -> bool {
    metadata.mode() & 0o077 != 0
}

fn tell(path: &Path, metadata: &Metadata) {
    let mode = format!("{:04o}", metadata.mode() & 0o7777);
    tracing::warn!(file = %path.display(), file.mode = mode, "other accounts could read this, and cannot any more");
}

/// Whether anybody but us could have changed it.
fn check(directory: &Path, path: &Path, metadata: &Metadata, own: u32) -> Result<(), Exposed> {
    let (path, owner) = (path.to_owned(), metadata.uid());
    if owner != own {
        return Err(Exposed::Foreign { path, directory: directory.to_owned(), owner, own });
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(Exposed::Writable(path));
    }
    Ok(())
}

/// Closes a file, or a directory and what is in it. Nobody else can exchange it meanwhile: it lies in a directory that is
/// ours alone by now.
fn close(directory: &Path, path: &Path, own: u32) -> Result<(), OpenError> {
    // The server puts its own socket in the place of what is there.
    if path.file_name() == Some(OsStr::new(SOCKET_FILE)) {
        return Ok(());
    }
    let metadata = match path.symlink_metadata() {
        // Of another server, which is about to be found by its lock.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(about(path))?,
    };
    if !metadata.is_file() && !metadata.is_dir() {
        return Err(Exposed::Irregular(path.to_owned()).into());
    }
    check(directory, path, &metadata, own)?;
    if is_open(&metadata) {
        let mode = if metadata.is_dir() { 0o700 } else { 0o600 };
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(about(path))?;
        tell(path, &metadata);
    }
    if !metadata.is_dir() {
        return Ok(());
    }
    let inside = fs::read_dir(path).map_err(about(path))?;
    inside.into_iter().try_for_each(|entry| close(directory, &entry.map_err(about(path))?.path(), own))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn refusal(directory: &Path) -> String {
        close_to_others(directory).unwrap_err().to_string()
    }

    #[test]
    fn the_data_directory_is_private_and_what_is_above_it_is_not() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("gatekeeper/server");
        make(&directory).unwrap();
        assert_eq!(mode(&directory), 0o700);
        assert_eq!(mode(directory.parent().unwrap()), 0o755, "an agent's identity beside it stays readable");
    }

    #[test]
    fn what_others_can_read_is_closed_and_what_they_can_write_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let files = ["gatekeeper.db", "gatekeeper.db-wal", "tls/ca.pem"].map(|name| place.path().join(name));
        fs::create_dir(place.path().join("tls")).unwrap();
        files.iter().for_each(|file| fs::write(file, "").unwrap());
        set_mode(&place.path().join("tls"), 0o755);
        files.iter().for_each(|file| set_mode(file, 0o644));
        set_mode(place.path(), 0o755);
        close_to_others(place.path()).unwrap();
        assert_eq!((mode(place.path()), mode(&place.path().join("tls"))), (0o700, 0o700));
        for file in &files {
            assert_eq!(mode(file), 0o600, "{}", file.display());
            set_mode(file, 0o620);
            let told = refusal(place.path());
            assert!(told.contains(&format!("chmod go-w {}", file.display())), "{told}");
            set_mode(file, 0o600);
        }
        set_mode(place.path(), 0o770);
        assert!(refusal(place.path()).contains("chmod go-w"));
    }

    #[test]
    fn no_link_is_followed_but_the_one_to_the_directory() {
        let place = tempfile::tempdir().unwrap();
        let (data, elsewhere) = (place.path().join("data"), place.path().join("elsewhere"));
        fs::create_dir(&data).unwrap();
        fs::write(&elsewhere, "").unwrap();
        set_mode(&elsewhere, 0o644);
        symlink(&elsewhere, data.join("gatekeeper.lock")).unwrap();
        assert!(refusal(&data).contains("is a link"));
        assert_eq!(mode(&elsewhere), 0o644);
        fs::remove_file(data.join("gatekeeper.lock")).unwrap();
        let link = place.path().join("link");
        symlink(&data, &link).unwrap();
        close_to_others(&link).unwrap();
        assert_eq!(mode(&data), 0o700);
    }

    #[test]
    fn a_directory_that_is_shared_with_something_else_is_not_closed_to_it() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("diary"), "").unwrap();
        set_mode(place.path(), 0o755);
        let told = refusal(place.path());
        assert!(told.contains("\"diary\"") && told.contains("--data"), "{told}");
        assert_eq!(mode(place.path()), 0o755);
        set_mode(place.path(), 0o700);
        close_to_others(place.path()).unwrap();
        assert_ne!(mode(&place.path().join("diary")), 0o600, "it is none of ours");
    }
}
